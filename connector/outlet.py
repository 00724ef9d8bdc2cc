"""What one stream puts into the outbox: each status once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter

from connector.control.answers import Told
from connector.delivery.dedupe import Window, content
from connector.delivery.deletions import Deletions
from connector.delivery.outbox import Entry, Outbox
from connector.model import DeadLetter, Event, Note, PredicateSet, Status, StreamId, Tenure
from connector.ops.metrics import Metrics
from connector.stream.messages import Malformed

HEARD_EVERY_S = 30.0
"""How often the log is told that an upstream without statuses is heard: how exact the bounds of a gap are."""

_body = attrgetter("body")


@dataclass(slots=True, kw_only=True)
class Outlet:
    """One stream's way into the outbox, under one tenure.

    Attributes:
        wall: reads the wall clock, in seconds since the epoch.
        window: recognises what comes again.
        deletions: knows what was deleted.
        cursor: after which status the upstream shall resume, where it can.
        heard_at: when the upstream was heard last, in seconds since the epoch.
        version: of the predicates in force; None before the first.
    """

    stream: StreamId
    tenure: Tenure
    outbox: Outbox
    metrics: Metrics
    wall: Callable[[], float]
    window: Window
    deletions: Deletions
    cursor: str | None
    heard_at: float | None
    version: str | None
    _noted_at: float = field(default=0.0, init=False)  # the last `heard_at` that was put
    _entry: partial[Entry] = field(init=False)

    def __post_init__(self) -> None:
        self._entry = partial(Entry, tenure=self.tenure, stream=self.stream)

    @property
    def unread_since(self) -> float | None:
        """Since when a process that begins now has read nothing; None where nothing was wanted."""
        return None if self.version == PredicateSet().version else self.heard_at

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
        self.version = self.version if version is None else version
        if version is not None or told.events or told.notes:
            self.outbox.put(self._entry(events=told.events, version=version, notes=told.notes))

    def heard(self) -> None:
        """Take note that the upstream is heard at this moment."""
        self.heard_at = self.wall()

    def note_heard(self, every_s: float = 0.0) -> None:
        """Put when the upstream was heard last, unless that was put *every_s* seconds before or later."""
        if self.heard_at is not None and self.heard_at > self._noted_at + every_s:
            self._noted_at = self.heard_at
            self.outbox.put(self._entry(heard_at=self.heard_at))

    def forget_cursor(self) -> None:
        """Put that there is nothing to resume from: the upstream has forgotten it."""
        self.cursor = self.heard_at = None
        self.outbox.put(self._entry(cursor=""))

    def dead_letters(self, malformed: Sequence[Malformed], now: float) -> None:
        """Put frames that are no messages; *now* is a reading of the loop's clock."""
        if malformed:
            fresh, marks = self.window.fresh(malformed, now, attrgetter("frame"))
            letters = [
                DeadLetter(bad.reason, bad.detail, self.stream, "upstream", None, bad.frame) for bad in fresh
            ]
            self.outbox.put(self._entry(dead_letters=letters, marks=marks))

    def deliver(self, statuses: Sequence[Status], cursor: str | None, version: str, now: float) -> None:
        """Put those of *statuses* that have not gone out yet, and where to resume after them."""
        marks, came = b"", len(statuses)
        notes: Sequence[Note] = ()
        if statuses:
            statuses, notes = self.deletions.take(statuses, self.wall())
            by = _body if all(map(_body, statuses)) else content
            statuses, marks = self.window.fresh(statuses, now, by)
            if suppressed := came - len(statuses):
                self.metrics.suppressed(self.stream, suppressed)
        if statuses or notes or cursor not in {None, self.cursor}:
            self.cursor = self.cursor if cursor is None else cursor
            self._noted_at = self.heard_at or 0.0
            self.outbox.put(
                self._entry(
                    statuses=statuses,
                    marks=marks,
                    notes=notes,
                    cursor=cursor,
                    version=version,
                    heard_at=self.heard_at,
                )
            )
