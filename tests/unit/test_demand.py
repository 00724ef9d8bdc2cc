"""What publishers are told: each accepted change gets exactly one last answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from connector.control.answers import Change, Told, noted_waiting
from connector.control.debounce import Debounce
from connector.control.demand import Demand, Verdict, noted_in_force
from connector.model import Note, PredicateSet
from connector.stream.request import Predicate

A, B, C = (PredicateSet.of({"track": [word]}) for word in "abc")
NOTHING = PredicateSet()
LIMITS = {"track": Predicate()}


def demand() -> Demand:
    return Demand(stream="tech", debounce=Debounce(10, 100))


def change(offset: int, key: str = "tech") -> Change:
    return Change(key, 0, offset)


def put(subject: Demand, target: PredicateSet, offset: int, coming: PredicateSet | None = None):
    return subject.change(target, change(offset), coming=coming, now=0.0, idle=False)


def in_force_notes(told: Told) -> list[Note]:
    return [note for note in told.notes if note.key.startswith("in-force/")]


def kinds(told: Told) -> list[str]:
    return [event.type.removeprefix("predicates.") for event in told.events]


def test_what_was_in_force_is_noted_while_the_newest_is_refused_and_only_then():
    subject = demand()
    put(subject, A, 0)
    assert in_force_notes(subject.applied(A, subject.waiting, {})) == []
    put(subject, B, 1)
    goes_on, told = subject.refused(B, "me", subject.waiting, {"reason": "HTTP 406"})
    assert goes_on
    assert kinds(told) == ["refused"]
    (note,) = in_force_notes(told)
    assert noted_in_force("tech", {note.key: note.value}, LIMITS) == A
    assert in_force_notes(subject.refused(B, "me", (), {})[1]) == [], "once is enough"
    assert in_force_notes(subject.applied(A, (), {})) == [], "it is refused still"
    (taken_back,) = in_force_notes(subject.applied(B, (), {}))
    assert (taken_back.key, taken_back.value) == (note.key, None)


def test_a_note_of_predicates_that_are_known_no_more_is_of_no_use():
    subject = demand()
    put(subject, A, 0)
    subject.applied(A, subject.waiting, {})
    put(subject, B, 1)
    (note,) = in_force_notes(subject.refused(B, "me", subject.waiting, {})[1])
    assert noted_in_force("tech", {note.key: note.value}, {"follow": Predicate()}) is None
    assert noted_in_force("news", {note.key: note.value}, LIMITS) is None


def test_after_a_restart_the_newest_is_tried_before_what_was_in_force():
    subject = demand()
    subject.load(B, [], A)
    assert subject.ask("me", must_live=True) == B
    goes_on, told = subject.refused(B, "me", (), {})
    assert goes_on
    assert told.notes == []
    assert subject.ask("me", must_live=True) == A
    assert subject.ask("me", must_live=False) == B
    assert subject.ask("somebody else", must_live=True) == B
    assert len(subject.applied(B, (), {}).notes) == 1


def test_an_emptied_stream_needs_no_note():
    subject = demand()
    subject.load(B, [], A)
    subject.refused(B, "me", (), {})
    verdict, told = put(subject, NOTHING, 1)
    assert (verdict, kinds(told)) == (Verdict.EMPTIED, ["accepted"])
    told = subject.applied(NOTHING, subject.waiting, {})
    assert kinds(told) == ["applied"]
    assert [note.value for note in in_force_notes(told)] == [None]
    assert subject.in_force is None


def test_the_same_again_is_unchanged_unless_the_upstream_refused_it():
    subject = demand()
    put(subject, A, 0)
    assert put(subject, A, 1)[0] is Verdict.UNCHANGED
    subject.refused(A, "me", subject.waiting, {})
    verdict, told = put(subject, A, 2)
    assert (verdict, kinds(told)) == (Verdict.PENDING, ["accepted"])
    assert put(subject, A, 3)[0] is Verdict.UNCHANGED, "it is being asked for"


def test_a_refusal_postpones_nothing_of_others():
    """A change that came while the request was on its way was not carried, and still waits."""
    subject = demand()
    put(subject, A, 0)
    carried = subject.waiting
    put(subject, B, 1, coming=A)
    _, told = subject.refused(A, "me", carried, {})
    assert kinds(told) == []  # the first was superseded: both have the same key
    assert [one.offset for one in subject.waiting] == [1]


def test_a_union_of_any_size_is_read_back_from_its_notes():
    """In records that every topic takes; what was longer before leaves nothing behind."""
    limits = {"rule": Predicate(max_values=1, max_bytes=1)}  # narrower than they were
    log: dict[str, bytes] = {}

    def take(told: Told) -> None:
        for key, value in told.notes:
            log.pop(key, None)
            if value is not None:
                assert len(value) <= 256 * 1024
                log[key] = value

    subject = demand()
    for size in (1000, 300, 0, 700):
        big = PredicateSet.of({"rule": [f"{number:04}" + "é" * 510 for number in range(size + 1)]})
        subject.newest = big
        take(subject.applied(big, (), {}))
        assert log == {}
        subject.newest = A
        take(subject.refused(A, "me", (), {})[1])
        assert noted_in_force("tech", log, limits) == big
        subject.newest = B
        smaller = PredicateSet.of({"rule": ["x"]})
        take(subject.applied(smaller, (), {}))
        assert noted_in_force("tech", log, limits) == smaller
        assert len(log) == 1


def test_the_note_follows_what_goes_on():
    subject = demand()
    put(subject, A, 0)
    subject.applied(A, subject.waiting, {})
    put(subject, B, 1)
    subject.refused(B, "me", subject.waiting, {})
    put(subject, C, 2)
    carried = subject.waiting
    put(subject, B, 3)  # while C is being asked for
    (note,) = in_force_notes(subject.applied(C, carried, {}))
    assert noted_in_force("tech", {note.key: note.value}, LIMITS) == C
    assert in_force_notes(subject.refused(B, "me", subject.waiting, {})[1]) == []


def test_whoever_waits_for_what_is_in_force_now_waits_no_more():
    subject = demand()
    put(subject, A, 0)
    carried = subject.waiting
    subject.change(B, change(1, "tech/b"), coming=None, now=0.0, idle=False)
    subject.change(A, change(2, "tech/b"), coming=None, now=0.0, idle=False)
    told = subject.applied(A, carried, {})
    assert kinds(told) == ["applied", "applied"]
    assert subject.debounce.deadline() is None


@dataclass
class Answered:
    """What one record was told so far."""

    told: list[str] = field(default_factory=list)


LAST = {"applied", "refused", "superseded"}


class Publishers(RuleBasedStateMachine):
    """Publishers change their minds while an upstream accepts and refuses, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.subject = demand()
        self.parts: dict[str, PredicateSet] = {}
        self.answered: list[Answered] = []
        self.asked: tuple[PredicateSet, tuple[Change, ...]] | None = None
        self.notes: dict[str, bytes] = {}

    @initialize()
    def start(self) -> None:
        self.subject.load(NOTHING, [], None)

    def hear(self, told: Told) -> None:
        for key, value in told.notes:
            self.notes.pop(key, None)
            if value is not None:
                self.notes[key] = value
        for event in told.events:
            self.answered[event.data["offset"]].told.append(event.type.removeprefix("predicates."))

    @rule(key=st.sampled_from(["tech", "tech/a"]), asks=st.sampled_from([A, B, C, NOTHING]))
    def publish(self, key: str, asks: PredicateSet) -> None:
        self.parts[key] = asks
        new = Change(key, 0, len(self.answered))
        self.answered.append(Answered())
        union = PredicateSet.union(self.parts.values())
        coming = self.subject.in_force
        verdict, told = self.subject.change(union, new, coming=coming, now=0.0, idle=coming is None)
        self.hear(told)
        if verdict is Verdict.EMPTIED:
            self.hear(self.subject.applied(union, self.subject.waiting, {}))
            self.asked = None
        elif verdict is Verdict.CANCELLED:
            self.hear(self.subject.applied(union, self.subject.waiting, {}))

    @rule(must_live=st.booleans())
    def ask(self, must_live: bool) -> None:
        asked = self.subject.ask("me", must_live=must_live)
        if not asked.is_empty:
            self.asked = (asked, self.subject.waiting if asked == self.subject.newest else ())

    @precondition(lambda self: self.asked is not None)
    @rule()
    def accept(self) -> None:
        self.hear(self.subject.applied(*self.asked, {}))
        self.asked = None

    @precondition(lambda self: self.asked is not None)
    @rule()
    def refuse(self) -> None:
        asked, carried = self.asked
        goes_on, told = self.subject.refused(asked, "me", carried, {})
        self.hear(told)
        self.asked = None
        if goes_on:
            assert self.subject.ask("me", must_live=True) != asked or asked != self.subject.newest

    @invariant()
    def the_notes_say_who_waits(self) -> None:
        assert noted_waiting("tech", self.notes) == list(self.subject.waiting)

    @rule()
    def restart(self) -> None:
        """A new process finds in the log who waits, and what goes on."""
        newest, self.asked = self.subject.newest, None
        self.subject = demand()
        in_force = noted_in_force("tech", self.notes, LIMITS)
        self.subject.load(newest, noted_waiting("tech", self.notes), in_force)
        if newest.is_empty:
            self.hear(self.subject.applied(newest, self.subject.waiting, {}))

    @invariant()
    def nobody_is_told_twice_and_nobody_is_forgotten(self) -> None:
        waiting = {one.offset for one in self.subject.waiting}
        for offset, record in enumerate(self.answered):
            first, *rest = record.told
            assert first in {"accepted", "unchanged"}
            assert len(rest) <= (first == "accepted")
            assert set(rest) <= LAST
            assert (offset in waiting) == (first == "accepted" and not rest)


TestPublishers = Publishers.TestCase
TestPublishers.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
