"""Delays grow as the platform asks, and jitter only ever shortens them, by no more than its share."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.stream import dialect
from connector.stream.backoff import Backoff

RULES = dialect.load("twitter-v1", {}).backoff


def first(count: int, backoff: Backoff, seed: int = 0) -> list[float]:
    return list(islice(backoff.delays(Random(seed)), count))


def exactly(delays: dialect.Delays) -> Backoff:
    return replace(delays.backoff(), jitter=0.0)


def test_network_failures_are_retried_a_quarter_second_later_each_time_up_to_16():
    expected = [0.25 * attempt for attempt in range(1, 65)] + [16.0] * 6
    assert first(70, exactly(RULES.network)) == expected


def test_refused_requests_are_retried_10_seconds_later_and_then_ever_more_up_to_240():
    assert first(7, exactly(RULES.http)) == [10, 30, 70, 150, 240, 240, 240]


def test_a_rate_limit_doubles_the_delay_from_a_minute_up_to_16():
    assert first(7, exactly(RULES.rate_limited)) == [60, 120, 240, 480, 960, 960, 960]


def test_no_jitter_shortens_the_wait_while_limited():
    assert RULES.rate_limited.jitter == 0
    assert first(7, RULES.rate_limited.backoff()) == first(7, exactly(RULES.rate_limited))


@pytest.mark.parametrize("rule", ["network", "http"])
def test_the_other_rules_do_have_jitter(rule):
    backoff = getattr(RULES, rule).backoff()
    assert first(20, backoff, seed=1) != first(20, backoff, seed=2)
    assert first(20, backoff, seed=1) == first(20, backoff, seed=1)


def test_a_first_delay_above_the_cap_is_capped():
    rule = Backoff(first_s=50, add_s=0, factor=2, cap_s=20, jitter=0)
    assert first(2, rule) == [20, 20]


def test_each_sequence_begins_anew():
    rule = exactly(RULES.http)
    assert first(3, rule) == first(3, rule) == [10, 30, 70]


seconds = st.floats(0.001, 1e6)
rules = st.builds(
    Backoff,
    first_s=seconds,
    add_s=st.floats(0, 1e6),
    factor=st.floats(1, 1e6),
    cap_s=seconds,
    jitter=st.floats(0, 1),
)


@given(rules, st.integers())
def test_jitter_only_takes_away_and_at_most_its_share(rule, seed):
    plain = first(30, replace(rule, jitter=0.0))
    for delay_s, full_s in zip(first(30, rule, seed), plain, strict=True):
        assert full_s * (1 - rule.jitter) <= delay_s <= full_s


@given(rules)
def test_without_jitter_delays_never_shrink_and_never_pass_the_cap(rule):
    delays = first(50, replace(rule, jitter=0.0))
    assert delays == sorted(delays)
    assert delays[-1] <= rule.cap_s


@pytest.mark.parametrize("rule", ["network", "http", "rate_limited"])
def test_thousands_of_attempts_do_not_overflow(rule):
    delays = first(5000, getattr(RULES, rule).backoff())
    assert all(map(math.isfinite, delays))
    assert max(delays[-100:]) <= getattr(RULES, rule).cap_s
