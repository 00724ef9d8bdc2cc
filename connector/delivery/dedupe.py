"""Statuses that come again, recognised by their bytes among the last ones that went out. Pure.

Upstreams send again after a reconnect with a cursor, a time or a backfill, and two connections that overlap
bring the same. Only then is anything looked up: otherwise a window costs a mark of eight bytes for each
status, and for a stream that cannot resume not even that.

A byte-identical repetition is dropped. The same id with another body is an update, and goes out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TypeVar

from xxhash import xxh3_64_digest

from connector.model import Status

_T = TypeVar("_T")

WINDOW = 1 << 19
"""How many of a stream's last statuses are recognised: some nine minutes of a thousand each second."""

MARK_BYTES = 8
"""A mark is the XXH3 of a status: among so many, a false match is less likely than one in 10**13."""

LINGER_S = 60.0
"""How long a connection has to bring nothing again until nothing is expected to come again."""


def content(status: Status) -> bytes:
    """Return what makes a status the same as another; no message looks like a deleted one."""
    return b"\x00deleted\x00" + status.id.encode() if status.body is None else status.body


class Window:
    """What one stream put out lately. All times are readings of one monotonic clock, in seconds.

    Attributes:
        suppressed: how many came again, and were dropped.
    """

    def __init__(self, marks: bytes = b"", *, keeps: bool, size: int = WINDOW) -> None:
        """Go on from *marks*, oldest first.

        Args:
            marks: of the last statuses in the log.
            keeps: whether to remember at all times, because the upstream may send again what it sent before
                a restart, or only while it is being watched.
            size: how many marks are kept.
        """
        self.suppressed = 0
        self._keeps = keeps
        self._size_bytes = size * MARK_BYTES
        self._marks = bytearray(marks)
        self._seen: set[bytes] | None = None
        self._until: float | None = None

    @property
    def is_watching(self) -> bool:
        """Whether repetitions are looked for."""
        return self._seen is not None

    def watch(self) -> None:
        """Look for repetitions from now on, until `settle` and the time after it."""
        self._until = None
        if self._seen is None:
            self._seen = set(_each(self._marks))

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
            items, each = self._unseen(items, each, now)
        marks = b"".join(each)
        self._marks += marks
        if len(self._marks) > 2 * self._size_bytes:
            del self._marks[: -self._size_bytes]
            if self._seen is not None:
                self._seen = set(_each(self._marks))
        return items, marks if self._keeps else b""

    def _unseen(self, items: Sequence[_T], each: list[bytes], now: float) -> tuple[Sequence[_T], list[bytes]]:
        assert self._seen is not None
        new = set(each)
        if len(new) == len(each) and self._seen.isdisjoint(new):  # by far the most often
            self._seen |= new
            return items, each
        kept: list[_T] = []
        marks: list[bytes] = []
        for item, mark in zip(items, each, strict=True):
            if mark not in self._seen:
                self._seen.add(mark)
                kept.append(item)
                marks.append(mark)
        if repeated := len(items) - len(kept):
            self.suppressed += repeated
            if self._until is not None:
                self._until = now + LINGER_S
        return kept, marks

    def _forget(self) -> None:
        self._seen = self._until = None
        if not self._keeps:
            self._marks.clear()


def _each(marks: bytes | bytearray) -> list[bytes]:
    return [bytes(marks[at : at + MARK_BYTES]) for at in range(0, len(marks), MARK_BYTES)]
