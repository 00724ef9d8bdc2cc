"""What one stream's publishers ask for, when that is due, and what each of them is told. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import count, takewhile

import orjson

from connector.control.answers import Answers, Change, Told
from connector.control.debounce import Debounce
from connector.model import Note, PredicateSet, StreamId

_IN_FORCE = "in-force/"
_PART_BYTES = 256 * 1024


class Verdict(Enum):
    """What a changed union means for the connections."""

    UNCHANGED = auto()  # nothing
    PENDING = auto()  # it is to be asked for when it is due
    CANCELLED = auto()  # it takes back what was pending: nothing is left to do
    EMPTIED = auto()  # nothing is asked for any more


@dataclass(slots=True, kw_only=True)
class Demand:
    """The newest predicates, who waits for them, and what to go on with where the upstream refuses them.

    All times are readings of one monotonic clock, in seconds.

    Attributes:
        newest: what all publishers together ask for.
        in_force: what the live connection asked for last; None before the first.
    """

    stream: StreamId
    debounce: Debounce
    newest: PredicateSet = field(default_factory=PredicateSet, init=False)
    in_force: PredicateSet | None = field(default=None, init=False)
    _answers: Answers = field(init=False)
    _refused: tuple[PredicateSet, object] | None = field(default=None, init=False)
    _is_refused: bool = field(default=False, init=False)  # the newest was, and nobody asked anew since
    _noted: PredicateSet | None = field(default=None, init=False)  # what goes on, as the log has it

    def __post_init__(self) -> None:
        self._answers = Answers(self.stream)

    @property
    def waiting(self) -> tuple[Change, ...]:
        """The changes that were accepted and have no further answer yet, oldest first."""
        return tuple(self._answers.waiting)

    def load(self, target: PredicateSet, waiting: Sequence[Change], in_force: PredicateSet | None) -> None:
        """Start from the log.

        Args:
            target: what all contributions together ask for.
            waiting: changes that were accepted and have no further answer yet, oldest first.
            in_force: what to go on with, where the newest was refused before.
        """
        self.newest, self.in_force, self._noted = target, in_force, in_force
        self._answers.waiting = list(waiting)
        if not target.is_empty:
            self.debounce.put()

    def change(
        self, target: PredicateSet, change: Change, *, coming: PredicateSet | None, now: float, idle: bool
    ) -> tuple[Verdict, Told]:
        """Take a changed union, and answer its publisher.

        Args:
            target: the union.
            change: what changed it.
            coming: what the connection asks for that is in force, or about to be; None without one.
            now: the time.
            idle: nothing is connected.
        """
        answers = self._answers
        if target == self.newest and not self._is_refused:
            return Verdict.UNCHANGED, answers.unchanged(change, target.version)
        self.newest, self._refused, self._is_refused = target, None, False
        told = answers.superseded(by=change)
        if target.is_empty:
            self.debounce.clear()
            return Verdict.EMPTIED, told + answers.accepted(change, target.version, 0.0)
        if target == coming:
            self.debounce.clear()
            return Verdict.CANCELLED, told + answers.unchanged(change, target.version)
        self.debounce.put()
        due_in_s = max(0.0, (self.debounce.deadline(idle=idle) or 0.0) - now)
        return Verdict.PENDING, told + answers.accepted(change, target.version, due_in_s)

    def ask(self, proof: object, *, must_live: bool) -> PredicateSet:
        """Return what the next connection asks for: the newest.

        Unless the upstream refused just that to who proves its identity by *proof*, and the connection
        *must_live*: what was in force goes on then.
        """
        if must_live and self.in_force is not None and self._refused == (self.newest, proof):
            return self.in_force
        return self.newest

    def refused(
        self, asked: PredicateSet, proof: object, carried: Sequence[Change], details: Mapping[str, object]
    ) -> tuple[bool, Told]:
        """Take note that the upstream refused *asked*, and tell those who wait for it.

        Returns:
            Whether there is something else to go on with. Not where that is refused as well: the two are
            tried in turn then.
        """
        goes_on = self.in_force is not None and self.in_force != asked
        self._refused = (asked, proof) if goes_on else None
        self._is_refused = self._is_refused or asked == self.newest
        notes = self._note(self.in_force) if goes_on and self._is_refused else []
        data = {"predicates": asked.version, **details}
        if goes_on and self.in_force is not None:
            data["in_force"] = self.in_force.version
        return goes_on, self._answers.settled("refused", carried, data) + Told(notes=notes)

    def applied(self, asked: PredicateSet, carried: Sequence[Change], details: Mapping[str, object]) -> Told:
        """Take note that *asked* is in force, and tell those who wait for it."""
        self.in_force = None if asked.is_empty else asked
        notes = []
        if asked == self.newest:  # whoever waits for anything has it
            self._refused, self._is_refused = None, False
            self.debounce.clear()
            carried = self.waiting
            notes = self._note(None)
        elif self._noted is not None:
            notes = self._note(self.in_force)
        data = {"predicates": asked.version, **details}
        return self._answers.settled("applied", carried, data) + Told(notes=notes)

    def _note(self, predicates: PredicateSet | None) -> list[Note]:
        """Write down what goes on, in place of what is noted."""
        if predicates == self._noted:
            return []
        old, new = _parts(self._noted), _parts(predicates)
        self._noted = predicates
        return [
            Note(f"{_IN_FORCE}{self.stream}/{number}", new[number] if number < len(new) else None)
            for number in range(max(len(old), len(new)))
        ]


def noted_in_force(
    stream: StreamId, notes: Mapping[str, bytes], limits: Mapping[str, object]
) -> PredicateSet | None:
    """Return what to go on with where the newest was refused; None if there is no note of it.

    Args:
        stream: which one.
        notes: those of its partition.
        limits: the predicates its upstream knows now. Their limits do not count: it took them once.
    """
    places = (f"{_IN_FORCE}{stream}/{number}" for number in count())
    parts = takewhile(lambda part: part is not None, (notes.get(place) for place in places))
    noted = b"".join(part for part in parts if part is not None)
    if not noted:
        return None
    terms: dict[str, list[str]] = orjson.loads(noted)
    return PredicateSet.of(terms) if terms.keys() <= limits.keys() else None


def _parts(predicates: PredicateSet | None) -> list[bytes]:
    """Return predicates in pieces that are no longer than a record may be: a union has no bound."""
    whole = b"" if predicates is None else orjson.dumps(predicates.as_dict())
    return [whole[at : at + _PART_BYTES] for at in range(0, len(whole), _PART_BYTES)]
