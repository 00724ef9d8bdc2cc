"""A dialect is data: shipped by name, any key of it laid over, and refused where it does not fit."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from connector.model import PredicateSet
from connector.stream import dialect
from connector.stream.framing import LengthFramer, LineFramer

PREDICATES = PredicateSet.of({"track": ["kafka", "apache flink"], "follow": ["2", "1"]})
RESUME = {"resume": {"parameter": "since_id", "cursor": "/id_str"}}


def test_every_dialect_that_is_shipped_loads():
    assert dialect.names() == ["twitter-v1"]
    for name in dialect.names():
        assert dialect.load(name, {}).request.predicates


def test_a_dialect_nobody_ships_is_not_found():
    with pytest.raises(KeyError, match="gopher"):
        dialect.load("gopher", {})


def test_twitter_is_asked_by_form():
    assert dialect.load("twitter-v1", {}).form(PREDICATES, None) == {
        "delimited": "length",
        "stall_warnings": "true",
        "follow": "1,2",
        "track": "apache flink,kafka",
    }


def test_a_cursor_is_sent_where_the_upstream_can_resume_and_only_there():
    resuming = dialect.load("twitter-v1", RESUME)
    assert resuming.form(PREDICATES, "7")["since_id"] == "7"
    assert "since_id" not in resuming.form(PREDICATES, None)
    plain = dialect.load("twitter-v1", {})
    assert plain.form(PREDICATES, "7") == plain.form(PREDICATES, None)


def test_asking_leaves_the_dialect_as_it_is():
    twitter = dialect.load("twitter-v1", RESUME)
    twitter.form(PREDICATES, "7")
    assert twitter.form(PredicateSet(), None) == {"delimited": "length", "stall_warnings": "true"}


def test_an_override_changes_its_keys_and_leaves_their_neighbours():
    plain = dialect.load("twitter-v1", {})
    other = dialect.load("twitter-v1", {"liveness": {"stall_timeout_s": 5}, "request": {"separator": " "}})
    assert other.liveness.stall_timeout_s == 5
    assert other.liveness.connect_timeout_s == plain.liveness.connect_timeout_s
    assert other.form(PREDICATES, None)["follow"] == "1 2"
    assert other.backoff == plain.backoff
    assert dialect.load("twitter-v1", {}) == plain, "what is shipped is not changed by it"


def test_an_override_of_null_removes_a_key():
    assert dialect.load("twitter-v1", {"messages": {"disconnect": None}}).messages.disconnect is None
    assert "delimited" not in dialect.load(
        "twitter-v1", {"request": {"parameters": {"delimited": None}}}
    ).form(PREDICATES, None)
    assert dialect.load("twitter-v1", {"nothing": None}) == dialect.load("twitter-v1", {})


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ({"framing": {"kind": "smoke"}}, ("framing", "kind")),
        ({"framing": {"delimiter": "\r"}}, ("framing", "delimiter")),
        ({"framing": {"max_frame_bytes": 0}}, ("framing", "max_frame_bytes")),
        ({"framing": None}, ("framing",)),
        ({"messages": {"id": "id_str"}}, ("messages", "id")),
        ({"messages": {"id": "/a//b"}}, ("messages", "id")),
        ({"messages": {"id": ""}}, ("messages", "id")),
        ({"request": {"predicates": []}}, ("request", "predicates")),
        ({"request": {"method": "GET"}}, ("request", "method")),
        ({"liveness": {"stall_timeout_s": 0}}, ("liveness", "stall_timeout_s")),
        ({"backoff": {"http": {"jitter": 1.5}}}, ("backoff", "http", "jitter")),
        ({"backoff": {"http": {"factor": 0.5}}}, ("backoff", "http", "factor")),
        ({"backoff": {"htpp": {}}}, ("backoff", "htpp")),
        ({"resume": {"parameter": "since_id"}}, ("resume", "cursor")),
        ({"wings": 2}, ("wings",)),
    ],
)
def test_an_override_that_does_not_fit_is_refused_at_its_place(override, place):
    with pytest.raises(ValidationError) as refused:
        dialect.load("twitter-v1", override)
    assert [mistake["loc"] for mistake in refused.value.errors()] == [place]


def test_each_connection_has_a_framer_of_its_own():
    framing = dialect.load("twitter-v1", {}).framing
    assert framing.framer() == LengthFramer(1_000_000)
    assert framing.framer() is not framing.framer()


@pytest.mark.parametrize("delimiter", ["\r\n", "\n"])
def test_lines_are_framed_by_their_delimiter(delimiter):
    override = {"framing": {"kind": "lines", "delimiter": delimiter, "max_frame_bytes": 9}}
    assert dialect.load("twitter-v1", override).framing.framer() == LineFramer(delimiter.encode(), 9)
