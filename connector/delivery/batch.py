"""What one transaction carries, and the state of the log after it. Pure.

A batch is formed from entries and the last committed state; nothing in it changes until its outcome is known.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from connector.delivery import journal, positions, records
from connector.delivery.journal import Page
from connector.delivery.outbox import Entry
from connector.delivery.records import Record
from connector.model import Position, StreamId, Tenure, Topics


@dataclass(slots=True)
class Ledger:
    """The last committed state of one owned control partition.

    Attributes:
        handled: the first control offset not yet handled.
        positions: how far each stream has come.
        pages: where each stream's journal goes on.
    """

    handled: int
    positions: dict[StreamId, Position]
    pages: dict[StreamId, Page]

    def copy(self) -> Ledger:
        """Return what a batch can change without changing this."""
        return Ledger(self.handled, dict(self.positions), dict(self.pages))


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Entries of one transaction, with everything that must not change until its outcome is known.

    Attributes:
        metadata: the proof of ownership, as of the moment it was formed.
        ledgers: as they are once the batch is in the log.
        mark: by which it is found in the log.
        at: when it was formed, in seconds since the epoch.
    """

    entries: Sequence[Entry]
    metadata: bytes
    ledgers: Mapping[Tenure, Ledger]
    mark: str
    at: float
    _after_seq: Sequence[int]  # per entry: the stream's seq before it
    _moved: frozenset[StreamId]  # streams whose position changes
    _pages: Sequence[tuple[Tenure, StreamId, Page]]

    def offsets(self) -> dict[int, int]:
        """Return how far each control partition is handled with it."""
        return {tenure.partition: ledger.handled for tenure, ledger in self.ledgers.items()}

    def counts(self) -> tuple[Counter[StreamId], Counter[str]]:
        """Return how many statuses it has by stream, and how many dead letters by reason."""
        statuses: Counter[StreamId] = Counter()
        dead_letters: Counter[str] = Counter()
        for entry in self.entries:
            if entry.stream is not None and entry.statuses:
                statuses[entry.stream] += len(entry.statuses)
            dead_letters.update(letter.reason for letter in entry.dead_letters)
        return statuses, dead_letters

    def content(self, topics: Topics, source: str) -> Iterator[Record]:
        """Yield what others read: statuses, events, dead letters, and control records that move home.

        Args:
            topics: their names.
            source: URI reference of this replica, for the events.
        """
        event_numbers = itertools.count()
        for entry, after_seq in zip(self.entries, self._after_seq, strict=True):
            if entry.statuses:
                assert entry.stream is not None
                yield from records.of_statuses(
                    topics.statuses, entry.stream, entry.version or "", after_seq, entry.statuses
                )
            for event in entry.events:
                identity = f"{self.mark}-{next(event_numbers)}"
                yield records.of_event(topics.events, source, identity, self.at, event)
            for letter in entry.dead_letters:
                yield records.of_dead_letter(topics.dlq, letter)
            for moved, partition in entry.moves:
                yield records.of_move(topics.predicates, moved, partition)

    def state(self, topics: Topics) -> Iterator[Record]:
        """Yield what a restart finds again: positions, the journal, notes."""
        for entry in self.entries:
            for key, note in entry.notes:
                yield records.of_note(topics.positions, entry.tenure.partition, key, note)
        for tenure, stream, page in self._pages:
            yield records.of_note(topics.positions, tenure.partition, *journal.note(stream, page))
        for tenure, ledger in self.ledgers.items():
            for stream in self._moved & ledger.positions.keys():
                encoded = positions.encode(ledger.positions[stream])
                yield records.of_note(topics.positions, tenure.partition, stream, encoded)


@dataclass(slots=True)
class _Forming:
    ledgers: dict[Tenure, Ledger] = field(default_factory=dict)
    after_seq: list[int] = field(default_factory=list)
    moved: set[StreamId] = field(default_factory=set)
    marks: dict[tuple[Tenure, StreamId], bytearray] = field(default_factory=dict)

    def add(self, entry: Entry, now: Ledger) -> None:
        """Number an entry's statuses and work out the state after them."""
        ledger = self.ledgers.setdefault(entry.tenure, now)
        if entry.handled is not None:
            ledger.handled = max(ledger.handled, entry.handled)
        if entry.stream is None:
            self.after_seq.append(0)
            return
        before = ledger.positions.get(entry.stream, Position())
        self.after_seq.append(before.seq)
        after = positions.advance(
            before,
            len(entry.statuses),
            cursor=entry.cursor,
            version=entry.version,
            attempts=entry.attempts,
            heard_at=entry.heard_at,
        )
        if after != before:
            ledger.positions[entry.stream] = after
            self.moved.add(entry.stream)
        if entry.marks:
            self.marks.setdefault((entry.tenure, entry.stream), bytearray()).extend(entry.marks)

    def pages(self) -> Iterator[tuple[Tenure, StreamId, Page]]:
        """Turn each stream's page, and yield what is to be written of its journal."""
        for (tenure, stream), marks in self.marks.items():
            ledger = self.ledgers[tenure]
            written = journal.append(ledger.pages.get(stream, Page()), bytes(marks))
            ledger.pages[stream] = journal.next_page(written[-1])
            for page in written:
                yield tenure, stream, page


def form(
    entries: Sequence[Entry], ledgers: Mapping[Tenure, Ledger], metadata: bytes, mark: str, at: float
) -> Batch:
    """Form a batch of *entries*, following the state in *ledgers*, which stays as it is."""
    forming = _Forming()
    for entry in entries:
        ledger = forming.ledgers.get(entry.tenure) or ledgers[entry.tenure].copy()
        forming.add(entry, ledger)
    pages = list(forming.pages())
    return Batch(
        entries=entries,
        metadata=metadata,
        ledgers=forming.ledgers,
        mark=mark,
        at=at,
        _after_seq=forming.after_seq,
        _moved=frozenset(forming.moved),
        _pages=pages,
    )
