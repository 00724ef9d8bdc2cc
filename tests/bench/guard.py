"""How many of Python's instructions a status costs from the socket's bytes to `produce()`: no timer, no noise.

The whole way is walked by one thread, with a producer and a metric that do nothing. What is done in C (the
HTTP parser, JSON, hashing, librdkafka) is not counted: this guards against Python that creeps in per status.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from upstream import statuses

from connector.delivery import producing
from connector.delivery.batch import Ledger, form
from connector.delivery.dedupe import Window
from connector.delivery.deletions import Deletions
from connector.delivery.outbox import Outbox
from connector.model import Tenure, Topics
from connector.ops.metrics import Metrics
from connector.outlet import Outlet
from connector.stream import dialect
from connector.stream.intake import Intake
from connector.stream.messages import Decoder

TENURE = Tenure(0, 1)
TOPICS = Topics(predicates="c", statuses="s", positions="p", events="e", dlq="d")
MANNERS = dialect.parse(
    dialect.text("ndjson"),
    {
        "framing": {"kind": "lines", "delimiter": "\r\n"},
        "messages": {"id": "/id_str"},
        "resume": {"parameter": "after", "cursor": "/id_str"},
    },
)
STATUSES = 64

BOUNDS = {1: 1600, 64: 145}
"""By how many statuses a chunk of the connection holds: how many instructions each may cost."""


class _Producer:
    def produce(self, *_: object, **__: object) -> None:
        """Take a record."""


def path() -> Callable[[list[bytes]], None]:
    """Return what takes a connection's chunks and leads their statuses to a producer."""
    outbox = Outbox(1 << 30)
    outlet = Outlet(
        stream="tech",
        tenure=TENURE,
        outbox=outbox,
        metrics=Metrics(),
        wall=time.time,
        window=Window(keeps=True),
        deletions=Deletions("tech", {}),
        cursor=None,
        heard_at=None,
        version="0123456789ab",
    )
    outlet.window.watch()  # as for a minute after each connection, the dearer time
    intake = Intake(MANNERS, Decoder(MANNERS), "")
    producer: Any = _Producer()

    def move(chunks: list[bytes]) -> None:
        for chunk in chunks:
            for piece in intake.feed(chunk):
                found = piece.messages
                cursor = found.cursor_after(len(found.statuses))
                outlet.deliver(found.statuses, cursor, "0123456789ab", 0.0)
        entries = outbox.take(1 << 30)
        batch = form(entries, {TENURE: Ledger(0, {}, {})}, b"", "mark", 0.0)
        producing.produce(producer, batch.content(TOPICS, "/connector/bench"))
        producing.produce(producer, batch.state(TOPICS))
        outbox.settle(entries)

    return move


def counted() -> Iterator[tuple[str, float, float]]:
    """Yield what was counted, how many for each status, and how many it may be."""
    bodies = [b"%b\r\n" % one for one in statuses(2200)[:STATUSES]]
    for per_chunk, bound in BOUNDS.items():
        chunks = [b"".join(bodies[at : at + per_chunk]) for at in range(0, STATUSES, per_chunk)]
        yield f"{per_chunk} in a chunk", _instructions(path(), chunks) / STATUSES, bound


def _instructions(move: Callable[[list[bytes]], None], chunks: list[bytes]) -> int:
    count = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        if event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        elif event == "opcode":
            count += 1
        return trace

    async def counting() -> None:  # the outbox wakes others, which takes a loop
        sys.settrace(trace)
        try:
            move(chunks)
        finally:
            sys.settrace(None)

    asyncio.run(counting())
    return count
