"""The bounded buffer between readers and the writer. Lives on the event loop; needs no lock."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

from connector.delivery.dedupe import MARK_BYTES
from connector.model import ControlRecord, DeadLetter, Event, Note, Status, StreamId, Tenure

OVERHEAD_BYTES = 256
"""What a status weighs beside its body, and so about what a small one does: Python's objects around it."""

_body = attrgetter("body")


@dataclass(slots=True, kw_only=True)
class Entry:
    """What must become visible together, in the order in which entries are put.

    Attributes:
        tenure: the ownership under which it was read, and may be written.
        stream: whose statuses and position these are.
        version: version of the predicate set in force for the statuses.
        cursor: the stream's cursor after the statuses.
        marks: by which they are recognised when they come again, `MARK_BYTES` for each; or none.
        attempts: when the stream's upstream was asked lately; see `Position`.
        heard_at: when it was heard last; see `Position`.
        handled: next control offset of the partition, once this entry is in the log.
        moves: control records to be written again to another partition: (record, partition).
        notes: to be found again after a restart.
        size_bytes: roughly what it weighs.
    """

    tenure: Tenure
    stream: StreamId | None = None
    statuses: Sequence[Status] = ()
    version: str | None = None
    cursor: str | None = None
    marks: bytes = b""
    attempts: tuple[float, ...] | None = None
    heard_at: float | None = None
    events: Sequence[Event] = ()
    dead_letters: Sequence[DeadLetter] = ()
    handled: int | None = None
    moves: Sequence[tuple[ControlRecord, int]] = ()
    notes: Sequence[Note] = ()
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.size_bytes = (
            sum(map(len, filter(None, map(_body, self.statuses))))
            + OVERHEAD_BYTES * len(self.statuses)
            + sum(len(letter.value or b"") for letter in self.dead_letters)
            + sum(len(note.value or b"") for note in self.notes)
            + sum(len(record.value or b"") for record, _ in self.moves)
            + 500 * (1 + len(self.events))
        )

    def split(self, count: int) -> tuple[Entry, Entry]:
        """Return its first *count* statuses, and an entry with all the rest of it."""
        first = Entry(
            tenure=self.tenure,
            stream=self.stream,
            version=self.version,
            statuses=self.statuses[:count],
            marks=self.marks[: count * MARK_BYTES],
        )
        return first, replace(self, statuses=self.statuses[count:], marks=self.marks[count * MARK_BYTES :])


class Outbox:
    """Entries on their way to the log, oldest first.

    Attributes:
        capacity_bytes: while it holds more, the streams that fill it wait.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._entries: deque[Entry] = deque()
        self._size_bytes = 0
        self._held: Counter[StreamId | None] = Counter()  # bytes, by whose they are
        self._room: dict[StreamId, asyncio.Event] = {}  # of those that wait for it
        self._filled = asyncio.Event()
        self._closed = False
        self._unsettled: Counter[Tenure] = Counter()
        self._settled = asyncio.Event()

    @property
    def size_bytes(self) -> int:
        """What waits to be written or is being written."""
        return self._size_bytes

    def is_full(self, stream: StreamId) -> bool:
        """Whether *stream* has to wait for `room`: the outbox is full, and it holds more than its share.

        A share is what each would have if all that have something in it had the same. So one stream may use
        all of it, but none can keep the others out; and it never holds twice its capacity.
        """
        return (
            self._size_bytes > self.capacity_bytes
            and self._held[stream] * len(self._held) > self.capacity_bytes
        )

    def put(self, entry: Entry) -> None:
        """Add *entry* at once; whoever reads then awaits `room` before reading on."""
        self._entries.append(entry)
        self._unsettled[entry.tenure] += 1
        self._size_bytes += entry.size_bytes
        self._held[entry.stream] += entry.size_bytes
        self._filled.set()

    async def room(self, stream: StreamId) -> None:
        """Return when *stream* may be read on."""
        while self.is_full(stream):
            await self._room.setdefault(stream, asyncio.Event()).wait()

    async def written(self, tenure: Tenure) -> None:
        """Return when all entries put under *tenure* are settled."""
        while self._unsettled[tenure] > 0:
            self._settled.clear()
            await self._settled.wait()
        del self._unsettled[tenure]

    async def filled(self) -> bool:
        """Wait for something to write. False when closed and empty: nothing will come."""
        while not self._entries:
            if self._closed:
                return False
            self._filled.clear()
            await self._filled.wait()
        return True

    def take(self, limit_bytes: int, limit_statuses: int | None = None) -> list[Entry]:
        """Return the oldest entries; `settle` or `put_back` follows.

        Args:
            limit_bytes: about so many of them.
            limit_statuses: at most so many statuses, or one entry without any. It is there to find the one
                that cannot be written.
        """
        taken: list[Entry] = []
        size = statuses = 0
        while self._entries and size < limit_bytes:
            entry = self._entries.popleft()
            if limit_statuses is not None:
                room = limit_statuses - statuses
                if room <= 0 or (taken and not entry.statuses):
                    self._entries.appendleft(entry)
                    break
                if len(entry.statuses) > room:
                    entry, rest = self._split(entry, room)
                    self._entries.appendleft(rest)
                statuses += max(1, len(entry.statuses))
            taken.append(entry)
            size += entry.size_bytes
        return taken

    def _split(self, entry: Entry, count: int) -> tuple[Entry, Entry]:
        parts = entry.split(count)
        added = sum(part.size_bytes for part in parts) - entry.size_bytes
        self._size_bytes += added
        self._held[entry.stream] += added
        self._unsettled[entry.tenure] += 1
        return parts

    def settle(self, entries: Sequence[Entry]) -> None:
        """Forget entries that are in the log, or must never be."""
        for entry in entries:
            self._size_bytes -= entry.size_bytes
            self._held[entry.stream] -= entry.size_bytes
            if not self._held[entry.stream]:
                del self._held[entry.stream]
        self._unsettled.subtract(entry.tenure for entry in entries)
        self._settled.set()
        for stream in [one for one in self._room if not self.is_full(one)]:  # hundreds wait on a full one
            self._room.pop(stream).set()

    def put_back(self, entries: Sequence[Entry]) -> None:
        """Return entries that are not in the log to the front, in order."""
        self._entries.extendleft(reversed(entries))
        self._filled.set()

    def replace(self, entry: Entry, by: Entry) -> None:
        """Put *by* to the front in place of *entry*, which was taken."""
        self.put(by)
        self._entries.rotate(1)
        self.settle([entry])

    def drop(self, tenure: Tenure) -> None:
        """Forget what waits under a lease that is lost."""
        gone = [entry for entry in self._entries if entry.tenure == tenure]
        self._entries = deque(entry for entry in self._entries if entry.tenure != tenure)
        self.settle(gone)

    def close(self) -> None:
        """Say that nothing more will be put."""
        self._closed = True
        self._filled.set()
