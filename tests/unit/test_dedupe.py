"""What comes again is recognised among the last statuses, while it may come, and at no other time."""

from __future__ import annotations

from operator import attrgetter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from xxhash import xxh3_64_digest

from connector.delivery.dedupe import LINGER_S, MARK_BYTES, WINDOW, Window, content
from connector.model import Status


def statuses(*bodies: int) -> list[Status]:
    """Return one status for each body; what the ids are makes no difference."""
    return [Status(str(body % 3), b"%d" % body) for body in bodies]


def marks(*bodies: int) -> bytes:
    return b"".join(xxh3_64_digest(b"%d" % body) for body in bodies)


def fresh(window: Window, *bodies: int, now: float = 0.0) -> list[int]:
    """Put bodies through *window*, and return those that go out."""
    kept, marked = window.fresh(statuses(*bodies), now)
    out = [int(status.body) for status in kept]
    assert marked in {b"", marks(*out)}
    return out


def remembered(window: Window) -> int:
    return sum(map(len, window._marks)) // MARK_BYTES


class Stream(RuleBasedStateMachine):
    """One stream's window against a list of all that ever went out."""

    @initialize(keeps=st.booleans(), size=st.integers(1, 6), before=st.lists(st.integers(0, 20), max_size=6))
    def start(self, keeps: bool, size: int, before: list[int]) -> None:
        self.keeps, self.size, self.now = keeps, size, 100.0
        self.known = before if keeps else []  # what was noted of what went out, oldest first
        self.watching = False
        self.until: float | None = None
        self.suppressed = 0
        self.window = Window(marks(*self.known), keeps=keeps, size=size)

    @rule()
    def watch(self) -> None:
        self.window.watch()
        self.watching, self.until = True, None

    @rule()
    def settle(self) -> None:
        self.window.settle(self.now)
        if self.watching and self.until is None:
            self.until = self.now + LINGER_S

    @rule(seconds=st.sampled_from([1.0, LINGER_S / 2, LINGER_S - 1, LINGER_S, 2 * LINGER_S]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(bodies=st.lists(st.integers(0, 20), max_size=8))
    def come(self, bodies: list[int]) -> None:
        if self.until is not None and self.now >= self.until:
            self.watching, self.until = False, None
            if not self.keeps:
                self.known = []
        kept, marked = self.window.fresh(statuses(*bodies), self.now)
        out = [int(status.body) for status in kept]
        if not self.watching:
            assert out == bodies, "nothing is looked for"
        repeated = len(bodies) - len(out)
        if self.watching:
            self._judge(bodies, out)
            if repeated and self.until is not None:
                self.until = self.now + LINGER_S
        self.suppressed += repeated
        if self.keeps or self.watching:
            self.known += out
        assert marked == (marks(*out) if self.keeps else b"")

    def _judge(self, bodies: list[int], out: list[int]) -> None:
        """The last `size` are recognised for certain; older ones may be, within its five parts."""
        surely, perhaps = self.known[-self.size :], self.known[-5 * (self.size // 4 + 1 + 8) :]
        rest, seen = list(out), set[int]()
        for body in bodies:
            goes_out = bool(rest) and rest[0] == body
            if goes_out:
                assert body not in surely
                assert body not in seen, "twice in one chunk"
                rest.pop(0)
            else:
                assert body in seen or body in perhaps
            seen.add(body)
        assert rest == []

    @invariant()
    def is_counted(self) -> None:
        assert self.window.suppressed == self.suppressed
        assert self.window.is_watching == self.watching


TestStream = Stream.TestCase


@given(st.integers(1, 400), st.integers(1, 30))
def test_memory_is_bounded_however_long_is_looked_for(size, chunk):
    window = Window(keeps=False, size=size)
    window.watch()
    for at in range(0, 3 * size, chunk):
        fresh(window, *range(at, at + chunk))
        assert min(at, size) <= remembered(window) <= 1.25 * size + 5 * chunk
        assert sum(map(len, window._seen or ())) == remembered(window)


def test_a_repetition_is_dropped_and_an_update_goes_out():
    window = Window(keeps=True)
    window.watch()
    first, update = Status("1", b'{"likes":1}'), Status("1", b'{"likes":2}')
    assert window.fresh([first, update], 0.0)[0] == [first, update]
    assert window.fresh([update, first, update._replace(body=b'{"likes":3}')], 0.0)[0] == [
        update._replace(body=b'{"likes":3}')
    ]
    assert window.suppressed == 2


def test_what_the_log_has_marks_of_does_not_go_out_again():
    window = Window(marks(1, 2, 3), keeps=True)
    window.watch()
    assert fresh(window, 2, 3, 4) == [4]


def test_nothing_is_looked_for_until_something_may_come_again():
    """An upstream that says the same twice over one connection means it."""
    window = Window(marks(1), keeps=True)
    assert fresh(window, 1, 2, 2) == [1, 2, 2]
    window.watch()
    assert fresh(window, 1, 2) == []


def test_what_cannot_come_again_costs_nothing():
    window = Window(keeps=False)
    some = statuses(1, 2, 2)
    assert window.fresh(some, 0.0) == (some, b"")
    assert window.fresh(some, 0.0)[0] is some
    assert remembered(window) == 0
    window.watch()
    assert fresh(window, 1) == [1], "it was not watched when it came"


def test_marks_go_with_what_goes_out_where_it_may_come_again_after_a_restart():
    keeps, forgets = Window(keeps=True), Window(keeps=False)
    for window in (keeps, forgets):
        window.watch()
        window.fresh(statuses(1), 0.0)
    assert keeps.fresh(statuses(1, 2, 3), 0.0)[1] == marks(2, 3)
    assert forgets.fresh(statuses(1, 2, 3), 0.0)[1] == b""
    assert keeps.fresh([], 0.0) == ([], b"")


@pytest.mark.parametrize("keeps", [True, False])
def test_it_is_forgotten_in_time(keeps):
    window = Window(keeps=keeps)
    window.watch()
    assert fresh(window, 1, 2, now=10.0) == [1, 2]
    window.settle(10.0)
    window.settle(50.0)  # a later word does not prolong it
    assert fresh(window, 2, now=10.0 + LINGER_S - 1) == [], "this does"
    assert fresh(window, 3, now=10.0 + LINGER_S + 1) == [3]
    assert fresh(window, 2, now=10.0 + 2 * LINGER_S - 2) == []
    assert fresh(window, 2, now=10.0 + 3 * LINGER_S) == [2]
    assert not window.is_watching
    window.watch()
    assert fresh(window, 3, now=500.0) == ([] if keeps else [3])


def test_who_asks_anew_ends_the_wait():
    window = Window(keeps=False)
    window.watch()
    window.settle(0.0)
    fresh(window, 1)
    window.watch()
    assert fresh(window, 1, now=10 * LINGER_S) == []


def test_a_window_recognises_as_many_as_it_says():
    size = 1000
    window = Window(keeps=True, size=size)
    for at in range(0, 10 * size, 100):
        fresh(window, *range(at, at + 100))
    window.watch()
    assert fresh(window, *range(9 * size, 10 * size)) == []
    assert remembered(window) <= 1.25 * size + 100


def test_the_usual_window_is_some_minutes_of_a_fast_stream():
    window = Window(bytes(WINDOW * MARK_BYTES), keeps=True)
    assert remembered(window) == WINDOW
    assert WINDOW / 1000 > 500


def test_whatever_has_bytes_to_tell_it_by_can_be_recognised():
    window = Window(keeps=True)
    window.watch()
    some = [Status("7", b"one"), Status("7", b"another")]
    assert window.fresh(some, 0.0, attrgetter("body"))[0] == some
    assert window.fresh(some, 0.0, content)[0] == [], "a status is told by its body"
    assert window.fresh(some, 0.0, lambda status: status.id.encode())[0] == some[:1]
