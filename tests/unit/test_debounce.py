"""The more updates wait the sooner they are due, but restarts keep their distance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.control.debounce import Debounce


def waiting(pending: int, *, min_s: float = 120, max_s: float = 600, restarted_at: float = 1000) -> Debounce:
    debounce = Debounce(min_s, max_s)
    debounce.restarted(restarted_at)
    for _ in range(pending):
        debounce.put()
    return debounce


@pytest.mark.parametrize(
    ("pending", "distance_s"),
    [
        (0, 600),
        (10, 440),
        (20, 370),
        (30, 320),
        (40, 280),
        (50, 240),
        (60, 210),
        (70, 180),
        (80, 150),
        (90, 120),
    ],
)
def test_the_distance_is_that_of_the_table(pending, distance_s):
    debounce = waiting(pending)
    assert debounce.distance_s(pending) == distance_s
    if pending:
        assert debounce.deadline() == 1000 + distance_s


def test_nothing_pending_is_never_due():
    assert Debounce(120, 600).deadline() is None
    assert Debounce(120, 600).deadline(idle=True) is None
    assert waiting(0).deadline() is None


def test_the_first_restart_is_due_at_once():
    debounce = Debounce(120, 600)
    debounce.put()
    deadline = debounce.deadline()
    assert deadline is not None
    assert deadline < 0  # whatever the clock shows


def test_a_lone_update_waits_for_most_of_the_longest_time():
    assert waiting(1).deadline() == 1000 + 550


def test_while_idle_only_the_shortest_distance_counts():
    assert waiting(1).deadline(idle=True) == 1000 + 120


@pytest.mark.parametrize("pending", [90, 100, 143, 144, 145, 10_000, 1_000_000])
def test_no_crowd_gets_below_the_shortest_distance(pending):
    assert Debounce(120, 600).distance_s(pending) == 120
    assert Debounce(0, 600).distance_s(10_000) == 0


def test_cleared_updates_are_forgotten():
    debounce = waiting(50)
    debounce.clear()
    assert debounce.deadline() is None
    debounce.put()
    assert debounce.deadline() == waiting(1).deadline()


def test_a_restart_takes_all_pending_updates_with_it():
    debounce = waiting(50)
    debounce.restarted(2000)
    assert debounce.deadline() is None
    debounce.put()
    assert debounce.deadline() == 2000 + 550


def test_asking_changes_nothing():
    debounce = waiting(7)
    assert debounce.deadline() == debounce.deadline() == waiting(7).deadline()


limits = st.tuples(st.floats(0, 1e5), st.floats(0.001, 1e5)).map(sorted)


@given(limits, st.integers(1, 300), st.integers(0, 300), st.booleans())
def test_one_more_never_moves_the_deadline_later(limits, pending, more, idle):
    min_s, max_s = limits
    few = waiting(pending, min_s=min_s, max_s=max_s).deadline(idle=idle)
    many = waiting(pending + more, min_s=min_s, max_s=max_s).deadline(idle=idle)
    assert few is not None
    assert many is not None
    assert many <= few


@given(limits, st.integers(1, 300))
def test_the_deadline_lies_between_the_two_limits(limits, pending):
    min_s, max_s = limits
    distance_s = waiting(pending, min_s=min_s, max_s=max_s, restarted_at=0).deadline()
    assert distance_s is not None
    assert min_s <= distance_s <= max_s


def test_nothing_is_due_before_the_upstream_may_be_asked_again():
    """Nor after a reconnect of the reader itself: what is due costs a connection that lives."""
    subject = Debounce(min_s=1, max_s=2)
    subject.put()
    subject.restarted(0)
    subject.put()
    subject.postpone(60)
    assert subject.deadline() == 60
    subject.restarted(5)
    assert subject.deadline() is None
    subject.put()
    assert (subject.deadline(), subject.deadline(idle=True)) == (60, 60)
    subject.restarted(70)
    subject.put()
    assert 71 <= subject.deadline() <= 72
