"""The bounded buffer between readers and the writer. Lives on the event loop; needs no lock."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from connector.model import ControlRecord, DeadLetter, Event, Note, Status, StreamId, Tenure


@dataclass(slots=True, kw_only=True)
class Entry:
    """What must become visible together, in the order in which entries are put.

    Attributes:
        tenure: the ownership under which it was read, and may be written.
        stream: whose statuses and position these are.
        version: version of the predicate set in force for the statuses.
        cursor: the stream's cursor after the statuses.
        attempts: when the stream's upstream was asked lately; see `Position`.
        handled: next control offset of the partition, once this entry is in the log.
        moves: control records to be written again to another partition: (record, partition).
        notes: to be found again after a restart.
    """

    tenure: Tenure
    stream: StreamId | None = None
    statuses: Sequence[Status] = ()
    version: str | None = None
    cursor: str | None = None
    attempts: tuple[float, ...] | None = None
    events: Sequence[Event] = ()
    dead_letters: Sequence[DeadLetter] = ()
    handled: int | None = None
    moves: Sequence[tuple[ControlRecord, int]] = ()
    notes: Sequence[Note] = ()

    @property
    def size_bytes(self) -> int:
        """Roughly what it weighs."""
        return (
            sum(len(status.body) for status in self.statuses)
            + sum(len(letter.value or b"") for letter in self.dead_letters)
            + sum(len(note.value or b"") for note in self.notes)
            + 500 * (1 + len(self.events))
        )


class Outbox:
    """Entries on their way to the log, oldest first.

    Attributes:
        capacity_bytes: readers wait while it holds more.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._entries: deque[Entry] = deque()
        self._size_bytes = 0
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._closed = False
        self._unsettled: Counter[Tenure] = Counter()
        self._settled = asyncio.Event()

    @property
    def size_bytes(self) -> int:
        """What waits to be written or is being written."""
        return self._size_bytes

    @property
    def is_full(self) -> bool:
        """Whether readers have to wait for `room`."""
        return not self._drained.is_set()

    def put(self, entry: Entry) -> None:
        """Add *entry* at once; whoever reads then awaits `room` before reading on."""
        self._entries.append(entry)
        self._unsettled[entry.tenure] += 1
        self._size_bytes += entry.size_bytes
        self._filled.set()
        if self._size_bytes > self.capacity_bytes:
            self._drained.clear()

    async def room(self) -> None:
        """Return when reading may go on."""
        await self._drained.wait()

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

    def take(self, limit_bytes: int) -> list[Entry]:
        """Return the oldest entries, about *limit_bytes* of them; `settle` or `put_back` follows."""
        taken: list[Entry] = []
        size = 0
        while self._entries and size < limit_bytes:
            taken.append(self._entries.popleft())
            size += taken[-1].size_bytes
        return taken

    def settle(self, entries: Sequence[Entry]) -> None:
        """Forget entries that are in the log, or must never be."""
        self._size_bytes -= sum(entry.size_bytes for entry in entries)
        self._unsettled.subtract(entry.tenure for entry in entries)
        self._settled.set()
        if self._size_bytes <= self.capacity_bytes:
            self._drained.set()

    def put_back(self, entries: Sequence[Entry]) -> None:
        """Return entries that are not in the log to the front, in order."""
        self._entries.extendleft(reversed(entries))
        self._filled.set()

    def drop(self, tenure: Tenure) -> None:
        """Forget what waits under a lease that is lost."""
        gone = [entry for entry in self._entries if entry.tenure == tenure]
        self._entries = deque(entry for entry in self._entries if entry.tenure != tenure)
        self.settle(gone)

    def close(self) -> None:
        """Say that nothing more will be put."""
        self._closed = True
        self._filled.set()
