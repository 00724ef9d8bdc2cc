"""One reader of a subscription, and what it was last asked: the active side, or the candidate."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from connector.control.answers import Change
from connector.model import PredicateSet
from connector.stream.reader import Ask


@dataclass(slots=True, eq=False)
class Side:
    """One reader and what it was last asked."""

    number: int
    asked: Ask = field(default_factory=lambda: Ask(PredicateSet(), None))
    carried: Sequence[Change] = ()
    live: bool = False
    stopped: bool = False
    is_paused: bool = False  # waits for room in the outbox: its silence says nothing
    held_cursor: str | None = None  # after what it sent while the other side was drained
    trouble: str | None = None  # why it was lost last
    task: asyncio.Task[None] | None = None


def stop(side: Side | None) -> None:
    """Let go of a side, if there is one; nothing it still brings counts."""
    if side is not None and side.task is not None:
        side.stopped = True
        side.task.cancel()
