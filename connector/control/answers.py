"""What publishers are told about their predicate changes. Pure.

Every accepted change ends in exactly one further answer: applied, refused by the upstream, or superseded by
a newer record of its key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from connector.control.predicates import MAX_KEY_BYTES
from connector.model import ControlRecord, Event, Note, StreamId

_WAITING = "waiting/"
_NOTE = msgspec.json.Encoder()


class Change(NamedTuple):
    """A control record with a place in its stream's predicates.

    Attributes:
        offset: where it is; what counts for what has been applied.
        published: (partition, offset) where its publisher put it, if it was moved from there.
    """

    key: str
    partition: int
    offset: int
    published: tuple[int, int] | None = None

    @classmethod
    def of(cls, record: ControlRecord) -> Change:
        """Return the change that *record* makes."""
        key = (record.key or b"")[:MAX_KEY_BYTES].decode(errors="backslashreplace")
        return cls(key, record.partition, record.offset, record.published)

    def as_dict(self) -> dict[str, object]:
        """Return it in the shape that events carry: by the place its publisher knows."""
        partition, offset = self.published or (self.partition, self.offset)
        return {"key": self.key, "partition": partition, "offset": offset}


@dataclass(frozen=True, slots=True)
class Told:
    """What goes to the log about changes.

    Attributes:
        notes: to be found again after a restart.
    """

    events: Sequence[Event] = ()
    notes: Sequence[Note] = ()

    def __add__(self, more: Told) -> Told:
        return Told([*self.events, *more.events], [*self.notes, *more.notes])


@dataclass(slots=True)
class Answers:
    """One stream's changes that were accepted and wait for their last answer; each has a note until then.

    Attributes:
        waiting: oldest first.
    """

    stream: StreamId
    waiting: list[Change] = field(default_factory=list)

    def accepted(self, change: Change, version: str, due_in_s: float) -> Told:
        """Note that *change* waits; it will be asked for in *due_in_s* seconds at the latest."""
        self.waiting.append(change)
        data = {"predicates": version, "due_in_s": round(due_in_s, 3)}
        return Told([self._event("accepted", change, data)], [note_waiting(self.stream, change)])

    def unchanged(self, change: Change, version: str) -> Told:
        """Say that *change* leaves what is asked for as it is."""
        return Told([self._event("unchanged", change, {"predicates": version})])

    def superseded(self, by: Change) -> Told:
        """Forget waiting changes of the same key: the newer record says what its publisher wants."""
        gone = [one for one in self.waiting if one.key == by.key]
        return self.settled("superseded", gone, {"by": by.as_dict()["offset"]})

    def settled(self, answer: str, carried: Sequence[Change], data: Mapping[str, object]) -> Told:
        """Give those of *carried* that still wait their last answer."""
        those = set(carried)
        done = [one for one in self.waiting if one in those]
        self.waiting = [one for one in self.waiting if one not in those]
        return Told(
            [self._event(answer, one, data) for one in done],
            [Note(_key(self.stream, one), None) for one in done],
        )

    def _event(self, answer: str, change: Change, data: Mapping[str, object]) -> Event:
        return Event(f"predicates.{answer}", self.stream, {**change.as_dict(), **data})


def note_waiting(stream: StreamId, change: Change) -> Note:
    """Return the note that *change* has no last answer yet."""
    return Note(_key(stream, change), _NOTE.encode(change))


def is_of_waiting(key: str) -> bool:
    """Whether a note of that key says that a change has no last answer yet."""
    return key.startswith(_WAITING)


def _key(stream: StreamId, change: Change) -> str:
    return f"{_WAITING}{stream}/{change.offset}"


def noted_waiting(stream: StreamId | None, notes: Mapping[str, bytes]) -> list[Change]:
    """Return the changes that have no last answer yet, oldest first.

    Args:
        stream: whose; None for those of all streams.
        notes: those of one partition.
    """
    prefix = _WAITING if stream is None else f"{_WAITING}{stream}/"
    waiting = [
        msgspec.json.decode(note, type=Change) for key, note in notes.items() if key.startswith(prefix)
    ]
    return sorted(waiting, key=lambda change: change.offset)
