"""Statuses that come again, recognised by their bytes among the last ones that went out. Pure.

Upstreams send again after a reconnect with a cursor, a time or a backfill, and two connections that overlap
bring the same. Only then is anything looked up: otherwise a window costs a mark of eight bytes for each
status, and for a stream that cannot resume not even that.

A byte-identical repetition is dropped. The same id with another body is an update, and goes out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from struct import iter_unpack
from typing import TypeVar

from xxhash import xxh3_64_digest

from connector.model import Status

_T = TypeVar("_T")

WINDOW = 1 << 19
"""How many of a stream's last statuses are recognised: some nine minutes of a thousand each second."""

MARK_BYTES = 8
"""A mark is the XXH3 of a status: among so many, a false match is less likely than one in 10**13."""

_PARTS = 4
"""So many make up a window. Sets of the whole of it, rebuilt as it moves on, took twice the memory."""

LINGER_S = 60.0
"""How long a connection has to bring nothing again until nothing is expected to come again."""


def content(status: Status) -> bytes:
    """Return what makes a status the same as another; no message looks like a deleted one."""
    return b"\x00deleted\x00" + status.id.encode() if status.body is None else status.body


class Window:
    """What one stream put out lately. All times are readings of one monotonic clock, in seconds.

    It is kept in parts, and moves on by dropping the oldest of them, so that what is new costs the same
    however much is remembered.

    Attributes:
        suppressed: how many came again, and were dropped.
    """

    def __init__(self, marks: bytes = b"", *, keeps: bool, size: int = WINDOW) -> None:
        """Go on from *marks*, oldest first.

        Args:
            marks: of the last statuses in the log.
            keeps: whether to remember at all times, because the upstream may send again what it sent before
                a restart, or only while it is being watched.
            size: how many marks are kept; for a moment a quarter more.
        """
        self.suppressed = 0
        self._keeps = keeps
        self._part_bytes = -(-size // _PARTS) * MARK_BYTES
        starts = range(0, len(marks), self._part_bytes) or [0]
        parts = (bytearray(marks[at : at + self._part_bytes]) for at in starts)
        self._marks = deque(parts, maxlen=_PARTS + 1)  # oldest first; the last has room
        self._seen: deque[set[bytes]] | None = None  # the same, to look them up
        self._until: float | None = None

    @property
    def is_watching(self) -> bool:
        """Whether repetitions are looked for."""
        return self._seen is not None

    def watch(self) -> None:
        """Look for repetitions from now on, until `settle` and the time after it."""
        self._until = None
        if self._seen is None:
            self._seen = deque(map(set, map(_each, self._marks)), maxlen=_PARTS + 1)

    def settle(self, now: float) -> None:
        """Take note that the only connection lives: soon it brings nothing again."""
        if self._seen is not None and self._until is None:
            self._until = now + LINGER_S

    def fresh(
        self, items: Sequence[_T], now: float, content: Callable[[_T], bytes] = attrgetter("body")
    ) -> tuple[Sequence[_T], bytes]:
        """Return those of *items* that have not gone out yet; they count as gone out now.

        Beside them their marks, unless the upstream cannot send them again after a restart.
        """
        if self._until is not None and now >= self._until:
            self._forget()
        if not self._keeps and self._seen is None:
            return items, b""
        each = list(map(xxh3_64_digest, map(content, items)))
        if self._seen is not None:
            items, each = self._unseen(self._seen, items, each, now)
        marks = b"".join(each)
        self._marks[-1] += marks
        if len(self._marks[-1]) >= self._part_bytes:
            self._marks.append(bytearray())
            if self._seen is not None:
                self._seen.append(set())
        return items, marks if self._keeps else b""

    def _unseen(
        self, seen: deque[set[bytes]], items: Sequence[_T], each: list[bytes], now: float
    ) -> tuple[Sequence[_T], list[bytes]]:
        new = set(each)
        if len(new) == len(each) and all(map(new.isdisjoint, seen)):  # by far the most often
            seen[-1] |= new
            return items, each
        known = set[bytes]().union(*map(new.intersection, seen))
        kept: list[_T] = []
        marks: list[bytes] = []
        for item, mark in zip(items, each, strict=True):
            if mark not in known:
                known.add(mark)
                kept.append(item)
                marks.append(mark)
        seen[-1].update(marks)
        if repeated := len(items) - len(kept):
            self.suppressed += repeated
            if self._until is not None:
                self._until = now + LINGER_S
        return kept, marks

    def _forget(self) -> None:
        self._seen = self._until = None
        if not self._keeps:
            self._marks.clear()
            self._marks.append(bytearray())


def _each(marks: bytearray) -> Iterator[bytes]:
    return (mark for (mark,) in iter_unpack(f"{MARK_BYTES}s", marks))
