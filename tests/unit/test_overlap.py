"""Two connections of one upstream become one sequence: each status once, in order, none missing.

The overlap says where the sequence switches; the window drops what both brought.
"""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from connector.delivery.dedupe import Window
from connector.model import Status
from connector.stream.overlap import Overlap

BODY_BYTES = 6


class Joined(Overlap):
    """An overlap, and the window that its sequence goes through."""

    def __init__(self) -> None:
        super().__init__()
        self.window = Window(keeps=False)
        self.window.watch()

    @property
    def suppressed(self) -> int:
        return self.window.suppressed

    def fresh(self, some: Sequence[Status]) -> Sequence[Status]:
        return self.window.fresh(some, 0.0)[0]

    def brought(self, some: Sequence[Status]) -> tuple[Sequence[Status], bool]:
        """Return what goes out of what the old connection brought, and whether the two have met."""
        met_at = self.old(some)
        return self.fresh(some[:met_at]), met_at is not None

    def released(self) -> Sequence[Status]:
        return self.fresh(self.release())


def overlapping() -> Joined:
    return Joined()


def statuses(*numbers: int) -> list[Status]:
    return [Status(str(number), b"%06d" % number) for number in numbers]


def numbers(some: Sequence[Status]) -> list[int]:
    return [int(status.id) for status in some]


@given(st.data())
def test_one_sequence_comes_of_any_interleaving(data):
    """An upstream of `total` statuses: the old connection gives 0… , the new one all from `switch` on."""
    total = data.draw(st.integers(1, 25), "total")
    switch = data.draw(st.integers(0, total), "switch")
    overlap, out = overlapping(), list[int]()
    old_at, new_at, met = 0, switch, False
    while not met and data.draw(st.booleans(), "goes on") and (old_at < total or new_at < total):
        if data.draw(st.booleans(), "old") and old_at < total:
            upto = data.draw(st.integers(old_at + 1, total))
            fresh, met = overlap.brought(statuses(*range(old_at, upto)))
            assert numbers(fresh) == list(range(old_at, upto))[: len(fresh)], "a beginning"
            assert met or len(fresh) == upto - old_at
            out += numbers(fresh)
            assert met == any(switch <= number < new_at for number in range(old_at, upto))
            old_at = old_at + len(fresh) if met else upto
        elif new_at < total:
            upto = data.draw(st.integers(new_at + 1, total))
            overlap.hold(statuses(*range(new_at, upto)))
            new_at = upto
            assert overlap.held_bytes == (new_at - switch) * BODY_BYTES
    if old_at < switch:  # the old connection is drained: it has brought all that the new one never will
        fresh, late = overlap.brought(statuses(*range(old_at, switch)))
        assert not late
        out += numbers(fresh)
        old_at = switch
    out += numbers(overlap.released())
    while new_at < total:  # unless they met, the new one may lag behind
        upto = data.draw(st.integers(new_at + 1, total))
        late_ones = statuses(*range(new_at, upto))
        out += numbers(late_ones if met else overlap.fresh(late_ones))
        new_at = upto
    assert out == list(range(total))
    assert overlap.suppressed == old_at - switch


@given(st.data())
def test_nothing_is_lost_or_doubled_when_the_new_connection_is_lost_and_comes_again(data):
    """Without a cursor: what the lost one brought goes out at once, and the old one goes on."""
    total = data.draw(st.integers(1, 25), "total")
    old_at = data.draw(st.integers(0, total), "brought by the old one before")
    overlap, out = overlapping(), list[int]()
    out += numbers(overlap.brought(statuses(*range(old_at)))[0])
    begin = 0  # the upstream goes on meanwhile, so a later connection begins later
    for _ in range(data.draw(st.integers(1, 3), "lost connections")):
        begin = data.draw(st.integers(begin, total))
        end = data.draw(st.integers(begin, total))
        overlap.hold(statuses(*range(begin, end)))
        out += numbers(overlap.released())
        begin = end
        # The old one is behind what the lost one brought, and no held status is left to meet.
        upto = data.draw(st.integers(old_at, total))
        fresh, met = overlap.brought(statuses(*range(old_at, upto)))
        assert not met
        out += numbers(fresh)
        old_at = upto
    overlap.hold(statuses(*range(begin, total)))
    fresh, met = overlap.brought(statuses(*range(old_at, total)))
    out += numbers(fresh)
    out += numbers(overlap.released())
    assert sorted(out) == list(range(total))


@given(st.integers(0, 10), st.integers(0, 10), st.integers(0, 10))
def test_what_is_discarded_comes_again(before, held, more):
    """With a cursor: the next attempt resumes after the last status that the old one delivered."""
    overlap = overlapping()
    out = numbers(overlap.brought(statuses(*range(before)))[0])
    overlap.hold(statuses(*range(before, before + held)))
    overlap.discard()
    assert overlap.held_bytes == 0
    fresh, met = overlap.brought(statuses(*range(before, before + more)))
    assert not met, "what was forgotten is not there to be met"
    out += numbers(fresh)
    overlap.hold(statuses(*range(before + more, 30)))
    out += numbers(overlap.released())
    assert out == list(range(30))
    assert overlap.suppressed == 0


def test_where_the_two_meet_the_new_one_goes_on():
    overlap = overlapping()
    assert overlap.brought(statuses(1, 2, 3)) == (statuses(1, 2, 3), False)
    overlap.hold(statuses(3, 4, 5, 6))
    assert overlap.brought(statuses(4, 5)) == ([], True)
    assert overlap.released() == statuses(4, 5, 6)
    assert overlap.suppressed == 1


def test_a_meeting_in_the_middle_of_a_chunk_cuts_it_there():
    overlap = overlapping()
    overlap.hold(statuses(5, 6))
    fresh, met = overlap.brought(statuses(3, 4, 5, 6, 7))
    assert met
    assert fresh == statuses(3, 4)
    assert overlap.released() == statuses(5, 6)


def test_a_new_connection_that_lags_behind_repeats_nothing():
    overlap = overlapping()
    overlap.brought(statuses(1, 2, 3, 4))
    assert overlap.released() == []
    assert overlap.fresh(statuses(3, 4, 5)) == statuses(5)
    assert overlap.fresh(statuses(6)) == statuses(6)
    assert overlap.suppressed == 2


def test_what_a_lost_connection_brought_is_not_brought_again_by_the_old_one():
    overlap = overlapping()
    overlap.brought(statuses(1, 2))
    overlap.hold(statuses(4, 5))
    assert overlap.released() == statuses(4, 5)
    assert overlap.brought(statuses(3, 4, 5, 6)) == (statuses(3, 6), False)
    assert overlap.suppressed == 2


def test_while_only_one_connection_lives_statuses_pass_untouched():
    overlap = overlapping()
    some = statuses(1, 2, 3)
    assert overlap.brought(some) == (some, False)
    assert overlap.suppressed == 0


def test_an_update_is_no_meeting():
    """The new connection brought a later version, the old one has the earlier still to give."""
    overlap = overlapping()
    overlap.hold([Status("1", b"later"), Status("2", b"two")])
    assert overlap.brought([Status("1", b"earlier")]) == ([Status("1", b"earlier")], False)
    assert overlap.brought([Status("1", b"later"), Status("2", b"two")]) == ([], True)


def test_what_is_held_is_weighed():
    overlap = overlapping()
    assert overlap.held_bytes == 0
    overlap.hold([Status("1", b"x" * 10), Status("2", b"x" * 5)])
    overlap.hold([Status("3", b"x")])
    assert overlap.held_bytes == 16
    overlap.released()
    assert overlap.held_bytes == 0


def test_a_pause_gives_the_old_connection_its_time_back():
    """What it brought meanwhile is still to come: neither limit may have passed by waiting."""
    overlap = overlapping()
    overlap.begin(100)
    assert overlap.drained_at(1, 5) == 101
    overlap.paused(102, 110)
    assert overlap.drained_at(1, 5) == 111
    assert overlap.drained_at(99, 5) == 113, "two of its five seconds had passed"
    overlap.paused(90, 120)
    assert overlap.drained_at(99, 5) == 125, "a pause from before it began counts from there"
