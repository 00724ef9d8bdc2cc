"""At most so many attempts in any window, over failures, restarts and processes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from connector.stream.budget import Budget


def test_without_a_limit_there_is_no_wait():
    budget = Budget()
    for _ in range(1000):
        budget.spend(0)
    assert budget.wait_s(0) == 0
    assert budget.spent(0) == ()


def test_the_attempt_beyond_waits_for_the_oldest_to_leave_the_window():
    budget = Budget(2, 300)
    for now in (0, 100):
        assert budget.wait_s(now) == 0
        budget.spend(now)
    assert budget.wait_s(100) == 200
    assert budget.wait_s(299.5) == 0.5
    assert budget.wait_s(300) == 0
    assert budget.spent(300) == (100,)


def test_an_attempt_that_never_reached_the_upstream_is_taken_back():
    budget = Budget(1, 300)
    budget.spend(5)
    budget.refund(5)
    budget.refund(5)
    assert budget.wait_s(5) == 0


def test_another_process_goes_on_from_what_was_spent():
    first, second = Budget(2, 300), Budget(2, 300)
    for now in (0, 10):
        first.spend(now)
    second.restore(first.spent(20))
    assert second.wait_s(20) == 280


def test_a_clock_that_was_set_back_costs_one_window_at_most():
    budget = Budget(1, 300)
    budget.spend(1_000_000)
    assert budget.wait_s(0) == 300
    assert budget.wait_s(299) == 1, "the window has begun when the clock was found to be behind"
    assert budget.wait_s(300) == 0


@given(st.integers(1, 5), st.lists(st.floats(0, 1000), max_size=60))
def test_no_window_ever_holds_more(attempts, pauses):
    """Whoever waits as long as told, whatever else passes meanwhile."""
    budget, now, at = Budget(attempts, 300), 0.0, []
    for pause in pauses:
        now += pause
        now += budget.wait_s(now)
        assert budget.wait_s(now) == 0, "told once"
        budget.spend(now)
        at.append(now)
    beyond = list(zip(at, at[attempts:], strict=False))
    assert all(later - earlier >= 300 - 1e-6 for earlier, later in beyond)
    assert all(one <= other for one, other in pairwise(at))
