"""A dialect is data: shipped by name, any key of it laid over, and refused where it does not fit."""

from __future__ import annotations

from urllib.parse import parse_qsl

import orjson
import pytest
from pydantic import ValidationError

from connector.model import PredicateSet
from connector.stream import dialect
from connector.stream.call import call

PREDICATES = PredicateSet.of({"track": ["kafka", "apache flink"], "follow": ["2", "1"]})
TRACK = PredicateSet.of({"track": ["kafka", "a&b"]})
RESUME = {"resume": {"parameter": "since_id", "cursor": "/id_str"}}


def form(name: str, override: dict, predicates=PREDICATES, cursor: str | None = None) -> dict[str, str]:
    return dict(parse_qsl(call(dialect.load(name, override), predicates, cursor).body.decode()))


@pytest.mark.parametrize("name", ["ndjson", "sse", "twitter-v1"])
def test_every_dialect_that_is_shipped_loads(name):
    assert "track" in dialect.load(name, {}).request.predicates
    assert dialect.text(name).startswith("# ")


def test_these_dialects_are_shipped():
    assert dialect.names() == ["ndjson", "sse", "twitter-v1", "x-v2"]


def test_a_dialect_nobody_ships_is_not_found():
    with pytest.raises(KeyError, match="gopher"):
        dialect.load("gopher", {})


# What is asked


def test_twitter_is_asked_by_form():
    request = call(dialect.load("twitter-v1", {}), PREDICATES, None)
    assert (request.method, request.query, request.form) == ("POST", "", True)
    assert request.headers == {"Content-Type": "application/x-www-form-urlencoded"}
    assert form("twitter-v1", {}) == {
        "delimited": "length",
        "stall_warnings": "true",
        "follow": "1,2",
        "track": "apache flink,kafka",
    }


def test_a_query_repeats_the_parameter_for_each_value():
    request = call(dialect.load("ndjson", {}), TRACK, None)
    assert (request.method, request.query, request.body) == ("GET", "track=a%26b&track=kafka", b"")


def test_a_query_may_join_the_values_too():
    request = call(dialect.load("ndjson", {"request": {"separator": ","}}), TRACK, None)
    assert request.query == "track=a%26b%2Ckafka"


@pytest.mark.parametrize(("separator", "track"), [(None, ["a&b", "kafka"]), ("|", "a&b|kafka")])
def test_a_body_may_be_json(separator, track):
    override = {
        "request": {
            "method": "POST",
            "encoding": "json",
            "separator": separator,
            "parameters": {"mode": "live"},
        }
    }
    request = call(dialect.load("ndjson", override), TRACK, None)
    assert orjson.loads(request.body) == {"mode": "live", "track": track}
    assert request.headers["Content-Type"] == "application/json"


def test_a_predicate_may_have_another_name_in_requests():
    override = {"request": {"predicates": {"track": {"parameter": "q"}}}}
    assert call(dialect.load("ndjson", override), TRACK, None).query == "q=a%26b&q=kafka"


def test_events_are_accepted_and_resumed_by_headers():
    sse = dialect.load("sse", {})
    assert call(sse, TRACK, "7").headers == {
        "Cache-Control": "no-store",
        "Accept": "text/event-stream",
        "Last-Event-ID": "7",
    }
    assert "Last-Event-ID" not in call(sse, TRACK, None).headers
    assert "Last-Event-ID" not in call(sse, TRACK, "").headers, "an empty id resets it"


def test_a_cursor_is_sent_where_the_upstream_can_resume_and_only_there():
    assert form("twitter-v1", RESUME, cursor="7")["since_id"] == "7"
    assert "since_id" not in form("twitter-v1", RESUME)
    assert form("twitter-v1", {}, cursor="7") == form("twitter-v1", {})


def test_asking_leaves_the_dialect_as_it_is():
    twitter = dialect.load("twitter-v1", RESUME)
    call(twitter, PREDICATES, "7")
    assert call(twitter, PredicateSet(), None).body == b"delimited=length&stall_warnings=true"


# What is laid over


def test_an_override_changes_its_keys_and_leaves_their_neighbours():
    plain = dialect.load("twitter-v1", {})
    override = {"liveness": {"stall_timeout_s": 5}, "request": {"separator": " "}}
    other = dialect.load("twitter-v1", override)
    assert other.liveness.stall_timeout_s == 5
    assert other.liveness.connect_timeout_s == plain.liveness.connect_timeout_s
    assert form("twitter-v1", override)["follow"] == "1 2"
    assert other.backoff == plain.backoff
    assert dialect.load("twitter-v1", {}) == plain, "what is shipped is not changed by it"


def test_an_override_of_null_removes_a_key():
    assert dialect.load("twitter-v1", {"messages": {"disconnect": None}}).messages.disconnect is None
    assert dialect.load("twitter-v1", {"budget": None}).budget is None
    assert "delimited" not in form("twitter-v1", {"request": {"parameters": {"delimited": None}}})
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
        ({"request": {"predicates": None}}, ("request", "predicates")),
        ({"request": {"predicates": {"a": {"max_bytes": 0}}}}, ("request", "predicates", "a", "max_bytes")),
        ({"request": {"predicates": {"a": {"pattern": "("}}}}, ("request", "predicates", "a", "pattern")),
        ({"request": {"predicates": {"a": {"parameter": "track"}}}}, ("request",)),
        ({"request": {"predicates": {"delimited": {}}}}, ("request",)),
        ({"request": {"method": "PUT"}}, ("request", "method")),
        ({"request": {"method": "GET"}}, ("request",)),
        ({"request": {"headers": {"Authorization": "x"}}}, ("request", "headers", "Authorization", "[key]")),
        ({"request": {"headers": {"a b": "x"}}}, ("request", "headers", "a b", "[key]")),
        ({"request": {"headers": {"X-A": "a\r\nb"}}}, ("request", "headers", "X-A")),
        ({"response": {"compression": ["br"]}}, ("response", "compression", 0)),
        ({"policy": {"refused": [99]}}, ("policy", "refused", 0)),
        ({"response": {"media_types": ["text/x\r\nX: y"]}}, ("response", "media_types", 0)),
        ({"response": {"media_types": ["text/x; charset=utf-8"]}}, ("response", "media_types", 0)),
        ({"policy": {"retry_refused_after_s": float("inf")}}, ("policy", "retry_refused_after_s")),
        ({"policy": {"retry_refused_after_s": 1e9}}, ("policy", "retry_refused_after_s")),
        ({"backoff": {"http": {"cap_s": float("nan")}}}, ("backoff", "http", "cap_s")),
        ({"budget": {"window_s": float("inf")}}, ("budget", "window_s")),
        ({"budget": {"attempts": 0}}, ("budget", "attempts")),
        ({"handover": {"strategy": "hope"}}, ("handover", "strategy")),
        ({"messages": {"disconnect": "/disconnect"}}, ("messages", "disconnect")),
        ({"messages": {"delete": "/delete"}}, ("messages", "delete")),
        ({"messages": {"delete": {"id": None}}}, ("messages", "delete")),
        ({"messages": {"delete": {"id": "delete"}}}, ("messages", "delete", "id")),
        ({"messages": {"delete": {"event": ""}}}, ("messages", "delete", "event")),
        ({"messages": {"delete": {"event": "delete"}}}, ()),
        ({"messages": {"delete": {"id": "/id_str"}}}, ()),
        ({"messages": {"limit": 5}}, ("messages", "limit")),
        ({"messages": {"limit": "track"}}, ("messages", "limit")),
        ({"liveness": {"stall_timeout_s": 0}}, ("liveness", "stall_timeout_s")),
        ({"backoff": {"http": {"jitter": 1.5}}}, ("backoff", "http", "jitter")),
        ({"backoff": {"http": {"factor": 0.5}}}, ("backoff", "http", "factor")),
        ({"backoff": {"htpp": {}}}, ("backoff", "htpp")),
        ({"resume": {"parameter": "since_id"}}, ()),
        ({"resume": {"parameter": "track", "cursor": "/x"}}, ()),
        ({"resume": {"cursor": "/x"}}, ("resume",)),
        ({"resume": {"parameter": "a", "header": "b", "cursor": "/x"}}, ("resume",)),
        ({"resume": {"header": "Host", "cursor": "/x"}}, ("resume", "header")),
        ({"wings": 2}, ("wings",)),
    ],
)
def test_an_override_that_does_not_fit_is_refused_at_its_place(override, place):
    with pytest.raises(ValidationError) as refused:
        dialect.load("twitter-v1", override)
    assert [mistake["loc"] for mistake in refused.value.errors()] == [place]


@pytest.mark.parametrize(
    ("override", "wrong"),
    [
        ({"messages": {"rules": "/data"}}, "neither messages.id nor resume.cursor can lie within it"),
        ({"messages": {"rules": "/data/rules"}}, "rules"),
        ({"rules": None}, "where handover.strategy is 'rules'"),
        ({"handover": {"strategy": "overlap"}}, "where handover.strategy is 'rules'"),
        ({"rules": {"predicate": "track"}}, "the dialect's only predicate"),
        ({"request": {"predicates": {"paused": {}}}}, "no predicate can be called 'paused'"),
        ({"policy": {"too_many_connections": "("}}, "no regular expression"),
        ({"liveness": {"grace_s": 0}}, "greater than 0"),
    ],
)
def test_rules_fit_together_or_are_refused(override, wrong):
    with pytest.raises(ValidationError, match=wrong):
        dialect.load("x-v2", override)


@pytest.mark.parametrize(
    ("name", "delete", "wrong"),
    [
        ("sse", {}, "give id, event or both"),
        ("ndjson", {"event": "delete"}, "only server-sent events have a type"),
        ("ndjson", {"event": "delete", "id": "/id"}, "only server-sent events have a type"),
        ("ndjson", {"id": "/id"}, "what has messages.id is a status"),
        ("sse", {"id": "/id"}, "what has messages.id is a status"),
    ],
)
def test_a_delete_can_be_told_from_a_status_or_is_refused(name, delete, wrong):
    with pytest.raises(ValidationError, match=wrong):
        dialect.load(name, {"messages": {"delete": delete}})


@pytest.mark.parametrize(
    "delete", [{"event": "delete"}, {"event": "delete", "id": "/id"}, {"id": "/deleted"}]
)
def test_a_delete_may_be_told_by_its_type_or_its_content(delete):
    assert dialect.load("sse", {"messages": {"delete": delete}}).messages.delete is not None
