"""Each failure falls in exactly one class, and each class waits by its own rule."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.errors import (
    BadStatus,
    Disconnected,
    EndedByServer,
    FramingLost,
    Stalled,
    Unreachable,
    Unsendable,
    WrongContent,
)
from connector.stream import dialect
from connector.stream.policy import (
    MAX_WAIT_S,
    Outcome,
    Pace,
    asked_s,
    classify,
    reset_in_s,
    retry_after_s,
)

NO_JITTER = {"backoff": {rule: {"jitter": 0} for rule in ("network", "http", "rate_limited")}}
TWITTER = dialect.load("twitter-v1", NO_JITTER)
NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Disconnected("the server ended the stream"), Outcome.NETWORK),
        (Unreachable("refused"), Outcome.NETWORK),
        (Stalled("silent"), Outcome.NETWORK),
        (FramingLost("a bomb"), Outcome.NETWORK),
        (EndedByServer("x"), Outcome.ENDED),
        (EndedByServer("x", "1"), Outcome.ENDED),
        (EndedByServer("x", "2"), Outcome.REPLACED),
        (EndedByServer("x", "7"), Outcome.REPLACED),
        (BadStatus(420, "Exceeded connection limit for user"), Outcome.CROWDED),
        (BadStatus(420, "Too many connects"), Outcome.RATE_LIMITED),
        (EndedByServer("x", "6"), Outcome.REFUSED),
        (Unsendable("169.254.169.254"), Outcome.REFUSED),
        (WrongContent("json", is_declared=True), Outcome.REFUSED),
        (WrongContent("html", is_declared=False), Outcome.HTTP),
        *((BadStatus(status), Outcome.RATE_LIMITED) for status in (420, 429)),
        *((BadStatus(status), Outcome.REFUSED) for status in (204, 401, 403, 404, 406, 410, 413, 416)),
        *((BadStatus(status), Outcome.HTTP) for status in (201, 302, 400, 408, 500, 502, 503, 504, 599)),
    ],
)
def test_every_failure_has_its_class(error, outcome):
    assert classify(error, TWITTER) is outcome


def test_a_dialect_may_say_otherwise():
    other = dialect.load("twitter-v1", {"policy": {"refused": [503], "rate_limited": [404]}})
    statuses = (503, 404, 401, 429)
    expected = [Outcome.REFUSED, Outcome.RATE_LIMITED, Outcome.HTTP, Outcome.HTTP]
    assert [classify(BadStatus(status), other) for status in statuses] == expected


def test_codes_are_compared_as_text():
    other = dialect.load("ndjson", {"messages": {"disconnect": {"refused": ["gone", 6]}}})
    assert [classify(EndedByServer("x", code), other) for code in ("gone", "6", "66", None)] == [
        *(Outcome.REFUSED, Outcome.REFUSED),
        *(Outcome.ENDED, Outcome.ENDED),
    ]


def pace() -> Pace:
    return Pace(TWITTER, Random(1))


def test_each_rule_goes_on_from_its_own_last_delay():
    one = pace()
    outcomes = [Outcome.NETWORK, Outcome.HTTP, Outcome.NETWORK, Outcome.RATE_LIMITED, Outcome.HTTP]
    waits = [one.after(outcome, was_healthy=False) for outcome in outcomes]
    assert waits == [0.25, 10, 0.5, 60, 30]


def test_an_announced_end_counts_as_one_that_was_not():
    one = pace()
    assert [one.after(o, was_healthy=False) for o in (Outcome.ENDED, Outcome.NETWORK)] == [0.25, 0.5]


@pytest.mark.parametrize("outcome", [Outcome.NETWORK, Outcome.ENDED])
def test_after_a_healthy_connection_the_first_attempt_is_at_once(outcome):
    one = pace()
    waits = [one.after(outcome, was_healthy=healthy) for healthy in (False, False, True, False, False)]
    assert waits == [0.25, 0.5, 0, 0.25, 0.5]


def test_a_healthy_connection_does_not_spare_the_wait_after_a_refusal():
    assert pace().after(Outcome.REFUSED, was_healthy=True) == 900


def test_what_the_stream_asks_for_is_a_floor_for_reconnects_alone():
    one = pace()
    assert one.after(Outcome.NETWORK, was_healthy=True, floor_s=3) == 3
    assert one.after(Outcome.HTTP, was_healthy=False, floor_s=30) == 10


def test_what_an_answer_asks_for_is_a_floor_too_but_not_for_ever():
    one = pace()
    assert one.after(Outcome.HTTP, was_healthy=False, asked_s=25) == 25
    assert one.after(Outcome.HTTP, was_healthy=False, asked_s=1) == 30
    assert one.after(Outcome.HTTP, was_healthy=False, asked_s=1e12) == MAX_WAIT_S


@given(st.lists(st.tuples(st.sampled_from(Outcome), st.booleans()), max_size=50))
def test_no_wait_is_negative_or_endless(walk):
    one = Pace(dialect.load("twitter-v1", {}), Random(1))
    assert all(0 <= one.after(outcome, was_healthy=healthy) <= 960 for outcome, healthy in walk)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120),
        ("1.5", 1.5),
        ("0", 0),
        ("-5", 0),
        ("Fri, 15 Jan 2027 08:01:00 GMT", 60),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 0),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("Fri, 99 Jan 2027 08:01:00 GMT", None),
        ("9" * 400, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text, seconds):
    assert retry_after_s(text, NOW) == seconds


@given(st.text(max_size=40))
def test_a_header_of_any_text_is_a_wait_or_none(text):
    for read in (retry_after_s, reset_in_s):
        wait_s = read(text, NOW)
        assert wait_s is None or wait_s >= 0


def test_the_reset_is_an_instant():
    assert reset_in_s(str(int(NOW) + 90), NOW) == 90
    assert reset_in_s("5", NOW) == 0


def test_the_reset_matters_to_who_is_rate_limited_alone():
    error = BadStatus(503, retry_after_s=5, reset_in_s=900)
    assert asked_s(error, Outcome.HTTP) == 5
    assert asked_s(error, Outcome.RATE_LIMITED) == 900
    assert asked_s(BadStatus(503), Outcome.HTTP) is None
    assert asked_s(Stalled("x"), Outcome.NETWORK) is None
