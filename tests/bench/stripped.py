"""Runs the connector without some of what it does, to see what that costs.

    python stripped.py dedupe,headers run --config connector.yaml

The connector has no switches for this: parts of it are replaced before it starts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from connector.delivery import dedupe, records
from connector.model import Status
from connector.ops.metrics import Metrics


def _no_dedupe() -> None:
    dedupe.Window.fresh = lambda _self, items, *_: (items, b"")  # type: ignore[method-assign]


def _no_seq() -> None:
    records.of_statuses = _records([("stream", b"tech"), ("predicates", b"0123456789ab")])


def _no_headers() -> None:
    records.of_statuses = _records([])


def _records(headers: list[tuple[str, bytes]]) -> Callable[..., Iterator[tuple[object, ...]]]:
    def of_statuses(
        topic: str, _stream: str, _version: str, _after_seq: int, statuses: Sequence[Status]
    ) -> Iterator[tuple[object, ...]]:
        for identity, body, _ in statuses:
            yield topic, body, identity, headers, -1

    return of_statuses


def _no_metrics() -> None:
    """All but the one by which the bench counts."""
    Metrics.received = lambda *_: None  # type: ignore[method-assign]


PARTS: dict[str, Callable[[], None]] = {
    "dedupe": _no_dedupe,
    "seq": _no_seq,
    "headers": _no_headers,  # and seq, which is one
    "metrics": _no_metrics,
}

if __name__ == "__main__":
    _, left_out, *words = sys.argv
    for part in left_out.split(","):
        PARTS[part]()
    from connector.cli import main

    sys.argv = ["connector", *words]
    main()
