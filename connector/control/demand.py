"""What one stream's publishers ask for, when that is due, and what each of them is told. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import orjson

from connector.control.answers import Answers, Change, Told
from connector.control.debounce import Debounce
from connector.control.predicates import Limits, parse
from connector.errors import PredicatesRejected
from connector.model import Note, PredicateSet, StreamId

_IN_FORCE = "in-force/"


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
    _is_noted: bool = field(default=False, init=False)  # what is in force stands in the log

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
        self.newest, self.in_force = target, in_force
        self._is_noted = in_force is not None
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
        notes = []
        if goes_on and asked == self.newest and not self._is_noted:
            assert self.in_force is not None
            self._is_noted = True
            notes.append(Note(_IN_FORCE + self.stream, orjson.dumps(self.in_force.as_dict())))
        data = {"predicates": asked.version, **details}
        if goes_on and self.in_force is not None:
            data["in_force"] = self.in_force.version
        return goes_on, self._answers.settled("refused", carried, data) + Told(notes=notes)

    def applied(self, asked: PredicateSet, carried: Sequence[Change], details: Mapping[str, object]) -> Told:
        """Take note that *asked* is in force, and tell those who wait for it."""
        self.in_force = None if asked.is_empty else asked
        notes = []
        if asked == self.newest:
            self._refused, self._is_refused = None, False
            if self._is_noted:
                self._is_noted = False
                notes.append(Note(_IN_FORCE + self.stream, None))
        data = {"predicates": asked.version, **details}
        return self._answers.settled("applied", carried, data) + Told(notes=notes)


def noted_in_force(
    stream: StreamId, notes: Mapping[str, bytes], limits: Mapping[str, Limits]
) -> PredicateSet | None:
    """Return what to go on with where the newest was refused; None if there is no note of it."""
    note = notes.get(_IN_FORCE + stream)
    if note is None:
        return None
    try:
        return parse(note, limits).predicates
    except PredicatesRejected:
        return None  # the upstream's manners were changed since: it cannot be asked for any more
