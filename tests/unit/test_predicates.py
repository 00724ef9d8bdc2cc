"""A control record is taken as a whole or refused with a reason and a place; nothing in between."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.control.predicates import MAX_VALUE_BYTES, Contributions, parse, stream_of
from connector.errors import PredicatesRejected
from connector.model import PredicateSet

NAMES = ("track", "follow")

REFUSED = {
    "not_json": [(b'{"track": [kafka]}', ""), (b"", ""), (b'{"track": NaN}', ""), (b"[" * 100_000, "")],
    "not_an_object": [(b'["track"]', ""), (b"null", ""), (b'"track"', "")],
    "unknown_predicate": [(b'{"trak": ["a"]}', "/trak"), (b'{"a/b~c": []}', "/a~1b~0c")],
    "not_a_list": [(b'{"track": "kafka"}', "/track"), (b'{"track": {"a": 1}}', "/track")],
    "not_a_string": [(b'{"track": ["a", 1]}', "/track/1"), (b'{"follow": [null]}', "/follow/0")],
    "empty_term": [(b'{"track": ["a", "  "]}', "/track/1")],
    "control_character": [(b'{"track": ["a\\nb"]}', "/track/0"), (b'{"track": ["\\u0000"]}', "/track/0")],
    "not_unicode": [(b'{"track": ["\\ud800"]}', "/track/0")],
    "duplicate_member": [(b'{"track": ["a"], "track": ["b"]}', "/track")],
    "too_large": [(b" " * (MAX_VALUE_BYTES + 1), "")],
}


@pytest.mark.parametrize(
    ("reason", "value", "pointer"),
    [(reason, value, pointer) for reason, cases in REFUSED.items() for value, pointer in cases],
)
def test_a_bad_value_is_refused_with_a_reason_and_a_pointer(reason: str, value: bytes, pointer: str) -> None:
    with pytest.raises(PredicatesRejected) as refused:
        parse(value, NAMES)
    assert (refused.value.reason, refused.value.pointer) == (reason, pointer)
    assert refused.value.detail


@pytest.mark.parametrize(
    ("key", "reason"), [(None, "key_missing"), (b"", "key_missing"), (b"\xff", "key_not_utf8")]
)
def test_a_bad_key_is_refused(key: bytes | None, reason: str) -> None:
    with pytest.raises(PredicatesRejected) as refused:
        stream_of(key)
    assert refused.value.reason == reason


def test_a_key_names_a_stream_and_perhaps_a_publisher() -> None:
    assert stream_of(b"tech") == stream_of(b"tech/team-a") == stream_of(b"tech/a/b") == "tech"


def test_equal_sets_are_equal_however_they_are_spelled() -> None:
    one = parse(b'{"track": [" kafka", "flink", "kafka"], "follow": []}', NAMES)
    other = parse(b'{"track": ["flink", "kafka"]}', NAMES)
    assert one == other
    assert one.version == other.version
    assert one.as_dict() == {"track": ["flink", "kafka"]}
    assert one.version != parse(b'{"follow": ["flink", "kafka"]}', NAMES).version


def test_the_truth_of_a_set_is_not_to_be_asked_for() -> None:
    with pytest.raises(TypeError, match="is_empty"):
        bool(PredicateSet())


def test_a_stream_asks_for_the_union_of_all_contributions() -> None:
    contributions = Contributions()
    assert contributions.union().is_empty
    contributions.put(b"tech/a", PredicateSet.of({"track": ["kafka"]}))
    contributions.put(b"tech/b", PredicateSet.of({"track": ["flink", "kafka"], "follow": ["1"]}))
    assert contributions.union().as_dict() == {"follow": ["1"], "track": ["flink", "kafka"]}
    contributions.put(b"tech/b", None)
    assert contributions.union().as_dict() == {"track": ["kafka"]}
    contributions.put(b"tech/a", None)
    contributions.put(b"tech/never-there", None)
    assert contributions.union().is_empty


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(value: bytes) -> None:
    try:
        parse(value, NAMES)
    except PredicatesRejected as refused:
        assert refused.reason in REFUSED


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*NAMES, "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(json_values)
def test_no_json_does_more_than_be_refused(value: object) -> None:
    try:
        parsed = parse(json.dumps(value).encode(), NAMES)
    except PredicatesRejected as refused:
        assert refused.reason in REFUSED
    else:
        assert isinstance(value, dict)
        assert parsed == PredicateSet.of(
            {name: [term.strip() for term in terms] for name, terms in value.items()}
        )
