"""What publishers are told about their predicate changes. Pure.

Every accepted change ends in exactly one further answer: applied, superseded by a newer record of its key,
or unchanged when it takes back what was pending.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from connector.model import Event, StreamId


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

    def as_dict(self) -> dict[str, object]:
        """Return it in the shape that events carry: by the place its publisher knows."""
        partition, offset = self.published or (self.partition, self.offset)
        return {"key": self.key, "partition": partition, "offset": offset}


@dataclass(slots=True)
class Answers:
    """One stream's changes that were accepted and wait to be applied.

    Attributes:
        waiting: oldest first.
    """

    stream: StreamId
    waiting: list[Change] = field(default_factory=list)
    _last_offset: int | None = None  # of the control records seen

    def load(self, waiting: Sequence[Change]) -> None:
        """Take over changes that were accepted before, and whose effect nobody has seen yet."""
        self.waiting = list(waiting)
        self._last_offset = max((one.offset for one in waiting), default=None)

    def accepted(self, change: Change, version: str, due_in_s: float) -> Event:
        """Note that *change* waits; it will be asked for in *due_in_s* seconds at the latest."""
        self.waiting.append(change)
        self._last_offset = change.offset
        data = {"predicates": version, "due_in_s": round(due_in_s, 3)}
        return self._event("accepted", change, data)

    def unchanged(self, change: Change, version: str) -> Event:
        """Say that *change* leaves what is asked for as it is."""
        self._last_offset = change.offset
        return self._event("unchanged", change, {"predicates": version})

    def superseded(self, by: Change) -> list[Event]:
        """Forget waiting changes of the same key: the newer record says what its publisher wants."""
        gone = [one for one in self.waiting if one.key == by.key]
        self.waiting = [one for one in self.waiting if one.key != by.key]
        return [self._event("superseded", one, {"by": by.as_dict()["offset"]}) for one in gone]

    def applied(
        self, carried: Sequence[Change], data: Mapping[str, object]
    ) -> tuple[list[Event], int | None]:
        """Say of those of *carried* that still wait that they are in force.

        Returns:
            The answers, and the offset up to which all records are answered for good; None if unknown.
        """
        done = [one for one in self.waiting if one in carried]
        self.waiting = [one for one in self.waiting if one not in carried]
        offset = max((one.offset for one in carried), default=None) if self.waiting else self._last_offset
        return [self._event("applied", one, data) for one in done], offset

    def _event(self, answer: str, change: Change, data: Mapping[str, object]) -> Event:
        return Event(f"predicates.{answer}", self.stream, {**change.as_dict(), **data})
