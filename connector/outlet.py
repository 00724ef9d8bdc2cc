"""What one stream puts into the outbox."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from connector.control.answers import Told
from connector.delivery.outbox import Entry, Outbox
from connector.model import DeadLetter, Event, Note, Status, StreamId, Tenure
from connector.stream.messages import Malformed


@dataclass(slots=True)
class Outlet:
    """One stream's way into the outbox, under one tenure.

    Attributes:
        cursor: after which status the upstream shall resume, where it can.
    """

    stream: StreamId
    tenure: Tenure
    outbox: Outbox
    cursor: str | None
    _entry: partial[Entry] = field(init=False)

    def __post_init__(self) -> None:
        self._entry = partial(Entry, tenure=self.tenure, stream=self.stream)

    def tell(self, events: Sequence[Event], attempts: tuple[float, ...] | None = None) -> None:
        """Put events, and the attempts that the connect budget counts."""
        if events or attempts:
            self.outbox.put(self._entry(events=events, attempts=attempts))

    def answer(self, told: Told, offset: int, note: Note | None = None) -> None:
        """Put the answers to the control record at *offset*."""
        notes = [*told.notes] if note is None else [*told.notes, note]
        self.outbox.put(self._entry(events=told.events, handled=offset + 1, notes=notes))

    def settle(self, told: Told, version: str | None = None) -> None:
        """Put last answers, and the *version* of the predicates in force where that changes."""
        if version is not None or told.events or told.notes:
            self.outbox.put(self._entry(events=told.events, version=version, notes=told.notes))

    def dead_letters(self, malformed: Sequence[Malformed]) -> None:
        """Put frames that are no messages."""
        letters = [
            DeadLetter(bad.reason, bad.detail, self.stream, "upstream", None, bad.frame) for bad in malformed
        ]
        if letters:
            self.outbox.put(self._entry(dead_letters=letters))

    def deliver(self, statuses: Sequence[Status], cursor: str | None, version: str) -> None:
        """Put statuses, and where the upstream can resume after them."""
        if statuses or cursor not in {None, self.cursor}:
            self.cursor = self.cursor if cursor is None else cursor
            self.outbox.put(self._entry(statuses=statuses, cursor=cursor, version=version))
