"""A scripted upstream: each connection plays its script, under virtual time, without a network.

Chunks that stand next to each other come without a pause between them, as they do from a socket whose
buffer holds more than one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from connector.stream.connection import Opened, Target
from connector.stream.dialect import Dialect, load


@dataclass(frozen=True, slots=True)
class Wait:
    """The upstream does nothing for so long."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Hang:
    """The upstream does nothing any more; only the client can end the connection."""


Step = Opened | bytes | Wait | Hang | Exception
"""What a connection does next; an exception ends it, and so does the end of the script."""


@dataclass(slots=True)
class Connection:
    """What is known of one attempt.

    Attributes:
        asked_at: when it was asked for, in seconds of loop time.
        closed_at: when it ended, whoever ended it.
        played: steps begun.
    """

    form: dict[str, str]
    target: Target
    asked_at: float
    closed_at: float | None = None
    played: int = 0


@dataclass(slots=True)
class Script:
    """Implements `Connect`: the n-th attempt plays the n-th script; one too many fails the test.

    Attributes:
        connections: all attempts, in order.
        most_open: how many were open at once, attempts included.
    """

    scripts: Sequence[Sequence[Step]]
    connections: list[Connection] = field(default_factory=list)
    most_open: int = 0

    async def __call__(self, target: Target, form: Mapping[str, str]) -> AsyncGenerator[Opened | bytes, None]:
        """Play the next script; see `Connect`."""
        connection = Connection(dict(form), target, now())
        self.connections.append(connection)
        self.most_open = max(self.most_open, self.open)
        if len(self.connections) > len(self.scripts):
            raise AssertionError(f"attempt {len(self.connections)} at {now()} s is one too many")
        try:
            for step in self.scripts[len(self.connections) - 1]:
                connection.played += 1
                match step:
                    case Wait(seconds):
                        await asyncio.sleep(seconds)
                    case Hang():
                        await asyncio.get_running_loop().create_future()
                    case Exception():
                        raise step
                    case _:
                        yield step
        finally:
            connection.closed_at = now()

    @property
    def open(self) -> int:
        """How many connections are open."""
        return sum(one.closed_at is None for one in self.connections)

    @property
    def asked_at(self) -> list[float]:
        """When each attempt came."""
        return [one.asked_at for one in self.connections]

    @property
    def closed_at(self) -> list[float | None]:
        """When each attempt ended."""
        return [one.closed_at for one in self.connections]

    def asked(self, name: str) -> list[str | None]:
        """Return a form field of each attempt."""
        return [one.form.get(name) for one in self.connections]


def now() -> float:
    """Return the loop's time, free of the dust of floating-point sums."""
    return round(asyncio.get_running_loop().time(), 6)


KEEP_ALIVE = b"\r\n"

TARGET = Target(url="http://upstream/", authorization=lambda: None, connect_timeout_s=10, stall_timeout_s=90)

PLAIN: dict[str, Any] = {
    "request": {"parameters": None},
    "framing": {"kind": "lines"},
    "backoff": {"network": {"jitter": 0}, "http": {"jitter": 0}},
}
"""Laid over a dialect: lines, and delays without chance."""

RESUMABLE: dict[str, Any] = {**PLAIN, "resume": {"parameter": "since_seq", "cursor": "/seq"}}
"""As `PLAIN`, and the upstream resumes after a cursor."""


def manners(override: Mapping[str, object] = PLAIN) -> Dialect:
    """Return Twitter's manners with *override* laid over them."""
    return load("twitter-v1", override)


def body(number: int) -> bytes:
    """Return the status with this number."""
    return b'{"id_str":"%d","seq":%d}' % (number, number)


def line(*numbers: int) -> bytes:
    """Return a chunk that holds the statuses with these numbers."""
    return b"".join(body(number) + b"\r\n" for number in numbers)
