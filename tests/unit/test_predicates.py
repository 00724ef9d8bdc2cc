"""A control record becomes a predicate set, or changes nothing and says why and where."""

from __future__ import annotations

import json
from itertools import permutations
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.control.predicates import (
    MAX_VALUE_BYTES,
    Contribution,
    Contributions,
    check_size,
    check_union,
    parse,
    schema,
    stream_of,
)
from connector.errors import PredicatesRejected
from connector.model import PredicateSet
from connector.stream import dialect
from connector.stream.request import Predicate

NAMES = dict.fromkeys(["track", "follow", "a/b", "c~d"], Predicate())
DEEP = b"[" * 100_000 + b"]" * 100_000

# --- Keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "stream"),
    [
        (b"tech", "tech"),
        (b"tech/team-a", "tech"),
        (b"tech/team-a/service", "tech"),
        (b"tech/", "tech"),
        ("größe/x".encode(), "größe"),
        (b"/x", ""),
    ],
)
def test_a_key_names_its_stream_before_the_first_slash(key, stream):
    assert stream_of(key) == stream


@pytest.mark.parametrize(
    ("key", "reason"), [(None, "key_missing"), (b"", "key_missing"), (b"te\xffch", "key_not_utf8")]
)
def test_a_key_that_names_no_stream_is_rejected(key, reason):
    with pytest.raises(PredicatesRejected) as rejected:
        stream_of(key)
    assert rejected.value.reason == reason


@given(st.binary(max_size=50))
def test_any_key_names_a_stream_or_is_rejected(key):
    try:
        stream = stream_of(key)
    except PredicatesRejected:
        return
    assert key.startswith(stream.encode())
    assert "/" not in stream


# --- Values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "terms"),
    [
        (b"{}", {}),
        (b' { "track" : [ ] } ', {}),
        (b'{"track": ["kafka"]}', {"track": ["kafka"]}),
        (b'{"track": ["b", "a", "b"], "follow": ["1"]}', {"follow": ["1"], "track": ["a", "b"]}),
        (b'{"track": ["  kafka streams\\t"]}', {"track": ["kafka streams"]}),
        (b'{"track": ["\\ud83d\\ude00", "caf\xc3\xa9"]}', {"track": ["café", "😀"]}),
        (b'{"a/b": ["x"], "c~d": ["y"]}', {"a/b": ["x"], "c~d": ["y"]}),
    ],
)
def test_a_good_value_is_normalised(value, terms):
    contribution = parse(value, NAMES)
    assert contribution == Contribution(PredicateSet.of(terms))
    assert contribution.as_dict() == terms
    assert contribution.predicates.is_empty == (not terms)


def test_a_paused_contribution_is_told_from_an_empty_one():
    paused = parse(b'{"paused": true, "track": ["a"]}', NAMES)
    assert paused == Contribution(of("a"), is_paused=True)
    assert parse(json.dumps(paused.as_dict()).encode(), NAMES) == paused
    assert parse(b'{"paused": false, "track": ["a"]}', NAMES) == Contribution(of("a"))
    assert parse(b'{"paused": true}', NAMES) == Contribution(PredicateSet(), is_paused=True)


@pytest.mark.parametrize(
    ("value", "reason", "pointer"),
    [
        (b"", "not_json", ""),
        (b"track: [kafka]", "not_json", ""),
        (b'{"track": ["a",]}', "not_json", ""),
        (b'{"track": ["a"]} {}', "not_json", ""),
        (b'{"track": ["\xff"]}', "not_json", ""),
        (b'{"track": ["a\nb"]}', "not_json", ""),
        (b'{"track": [NaN]}', "not_json", ""),
        (b'{"track": [-Infinity]}', "not_json", ""),
        (b"Infinity", "not_json", ""),
        (DEEP, "not_json", ""),
        (b'{"track": %b}' % DEEP, "not_json", ""),
        (b"1" * 5000, "not_json", ""),
        (b"null", "not_an_object", ""),
        (b'"track"', "not_an_object", ""),
        (b'[{"track": ["a"]}]', "not_an_object", ""),
        (b'{"tracks": ["a"]}', "unknown_predicate", "/tracks"),
        (b'{"Track": ["a"]}', "unknown_predicate", "/Track"),
        (b'{"": ["a"]}', "unknown_predicate", "/"),
        (b'{"x/y~z": ["a"]}', "unknown_predicate", "/x~1y~0z"),
        (b'{"track": "a"}', "not_a_list", "/track"),
        (b'{"track": null}', "not_a_list", "/track"),
        (b'{"c~d": {}}', "not_a_list", "/c~0d"),
        (b'{"track": ["a", 1]}', "not_a_string", "/track/1"),
        (b'{"track": [null]}', "not_a_string", "/track/0"),
        (b'{"a/b": [["a"]]}', "not_a_string", "/a~1b/0"),
        (b'{"track": ["a", "b", ""]}', "empty_term", "/track/2"),
        (b'{"track": [" \\t\\u2003 "]}', "empty_term", "/track/0"),
        (b'{"track": ["a\\u0000b"]}', "control_character", "/track/0"),
        (b'{"track": ["a\\nb"]}', "control_character", "/track/0"),
        (b'{"track": ["a", "a\\u007fb"]}', "control_character", "/track/1"),
        (b'{"track": ["\\ud83d"]}', "not_unicode", "/track/0"),
        (b'{"track": ["a", "\\ude00\\ud83d"]}', "not_unicode", "/track/1"),
        (b'{"track": ["a"], "paused": "yes"}', "not_a_boolean", "/paused"),
        (b'{"paused": 1}', "not_a_boolean", "/paused"),
        (b'{"paused": true, "paused": false}', "duplicate_member", "/paused"),
        (b'{"track": ["a"], "track": ["b"]}', "duplicate_member", "/track"),
        (b'{"follow": [], "track": [], "track": []}', "duplicate_member", "/track"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_bad_value_is_rejected_with_its_reason_and_place(value, reason, pointer):
    with pytest.raises(PredicatesRejected) as rejected:
        parse(value, NAMES)
    assert (rejected.value.reason, rejected.value.pointer) == (reason, pointer)
    assert rejected.value.detail
    assert len(rejected.value.detail) <= 200


def test_an_unknown_predicate_is_told_which_ones_are_known():
    with pytest.raises(PredicatesRejected, match="known are: follow, track"):
        parse(b'{"tracks": []}', dict.fromkeys(["track", "follow"], Predicate()))


def test_the_longest_value_allowed_is_read():
    frame = b'{"track": [""]}'
    value = b'{"track": ["%b"]}' % (b"x" * (MAX_VALUE_BYTES - len(frame)))
    assert len(value) == MAX_VALUE_BYTES
    check_size(value)
    with pytest.raises(PredicatesRejected, match="too_large"):
        check_size(value + b" ")
    assert len(parse(value, NAMES).predicates.terms) == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters()),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.sampled_from([*NAMES]) | st.text(st.characters(), max_size=3), below, max_size=3)
    ),
    max_leaves=10,
)


REASONS = {
    "not_json", "not_an_object", "unknown_predicate", "not_a_list", "not_a_string", "empty_term",
    "control_character", "not_unicode", "duplicate_member", "not_a_boolean",
}  # fmt: skip


@given(st.binary())
def test_any_bytes_are_read_or_rejected(value):
    try:
        parse(value, NAMES)
    except PredicatesRejected as rejected:
        assert rejected.reason in REASONS


@given(json_values)
def test_any_json_is_read_as_it_says_or_rejected(value):
    try:
        contribution = parse(json.dumps(value).encode(), NAMES)
    except PredicatesRejected as rejected:
        assert rejected.reason in REASONS
    else:
        said = {name: [normalize("NFC", term.strip()) for term in terms] for name, terms in value.items()}
        assert contribution == Contribution(PredicateSet.of(said))


# --- Sets ---------------------------------------------------------------------------------------

term = (
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=5)
    .map(lambda text: normalize("NFC", text))
    .filter(lambda text: text == text.strip() != "")
)
terms = st.dictionaries(st.sampled_from([*NAMES]), st.lists(term, max_size=4), max_size=4)
sets = terms.map(PredicateSet.of)


@given(terms, st.randoms())
def test_equal_sets_are_equal_whatever_the_order(some, rng):
    shuffled = [(name, rng.sample(values, len(values)) + values[:1]) for name, values in some.items()]
    rng.shuffle(shuffled)
    one, other = PredicateSet.of(some), PredicateSet.of(dict(shuffled))
    assert one == other
    assert hash(one) == hash(other)
    assert one.version == other.version


@given(sets, sets)
def test_versions_tell_sets_apart(one, other):
    assert (one.version == other.version) == (one == other)


def test_a_version_is_the_same_everywhere_and_for_ever():
    """It stands in records' headers and in positions: a new release must not change it."""
    assert PredicateSet().version == "4f53cda18c2b"
    assert PredicateSet.of({"track": ["kafka", "café"], "follow": ["1"]}).version == "afdf27a6bb2f"


@given(sets)
def test_a_set_is_read_back_from_its_own_shape(one):
    assert parse(json.dumps(one.as_dict()).encode(), NAMES).predicates == one


@given(st.lists(sets, max_size=4))
def test_a_union_asks_for_all_that_any_asks_for_and_no_more(some):
    union = PredicateSet.union(some)
    pairs = {(name, value) for one in some for name, values in one.terms for value in values}
    assert {(name, value) for name, values in union.terms for value in values} == pairs
    assert union.is_empty == (not pairs)
    assert all(PredicateSet.union(order) == union for order in permutations(some, len(some)))
    assert PredicateSet.union([union, *some]) == union


def test_the_truth_of_a_set_is_not_asked_for():
    with pytest.raises(TypeError, match="is_empty"):
        bool(PredicateSet())


# --- Contributions ------------------------------------------------------------------------------


def of(*track: str) -> PredicateSet:
    return PredicateSet.of({"track": track})


def test_contributions_add_up_and_go_with_their_key():
    contributions = Contributions()
    assert contributions.union() == PredicateSet()
    contributions.put(b"tech", Contribution(of("a", "b")))
    contributions.put(b"tech/team", Contribution(of("b", "c")))
    assert contributions.union() == of("a", "b", "c")
    contributions.put(b"tech", None)
    assert contributions.union() == of("b", "c")
    contributions.put(b"tech/team", None)
    assert contributions.union().is_empty


def test_a_key_replaces_what_it_contributed_before():
    contributions = Contributions()
    contributions.put(b"tech", Contribution(of("a", "b")))
    contributions.put(b"tech", Contribution(of("c")))
    assert contributions.union() == of("c")


def test_removing_what_is_not_there_changes_nothing():
    contributions = Contributions()
    contributions.put(b"tech", Contribution(of("a")))
    contributions.put(b"tech/team", None)
    assert contributions.union() == of("a")


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.none() | sets), max_size=12))
def test_only_the_newest_record_of_each_key_counts(records):
    contributions = Contributions()
    for key, predicates in records:
        contributions.put(key, None if predicates is None else Contribution(predicates))
    newest = [one for one in dict(records).values() if one is not None]
    assert contributions.union() == PredicateSet.union(newest)


def test_what_is_paused_asks_for_nothing():
    contributions = Contributions()
    contributions.put(b"tech", Contribution(of("a")))
    contributions.put(b"tech/team", Contribution(of("b"), is_paused=True))
    assert contributions.union() == of("a")
    assert contributions.by_key()[b"tech/team"].predicates == of("b")


@pytest.mark.parametrize(
    ("before", "after", "pointer"),
    [
        ("ab", "abc", None),
        ("abc", "abcd", "/track"),
        ("abcde", "abcd", None),  # the limit was lower once: a union that shrinks is a good one
        ("abcde", "abcdx", None),
        ("abcde", "abcdef", "/track"),
    ],
)
def test_all_together_are_held_to_the_upstreams_limit(before, after, pointer):
    limits = {"track": Predicate(max_values=3)}
    if pointer is None:
        check_union(of(*after), of(*before), limits)
        return
    with pytest.raises(PredicatesRejected, match="the upstream takes 3") as rejected:
        check_union(of(*after), of(*before), limits)
    assert (rejected.value.reason, rejected.value.pointer) == ("quota_exceeded", pointer)


@pytest.mark.parametrize("value", [b'{"\\ud800": []}', b'{"\\ud800": [], "\\ud800": []}'])
def test_a_refusal_can_be_told_whatever_the_record_says(value: bytes) -> None:
    """Otherwise one record would stop every replica that meets it."""
    with pytest.raises(PredicatesRejected) as refused:
        parse(value, NAMES)
    refused.value.pointer.encode()
    refused.value.detail.encode()


@pytest.mark.parametrize(
    ("limits", "values", "reason", "pointer"),
    [
        (Predicate(max_values=2), ["a", "b", "c"], "too_many_values", "/track"),
        (Predicate(max_bytes=4), ["fits", "käfer"], "too_long", "/track/1"),
        (Predicate(max_bytes=3), ["ééé"], "too_long", "/track/0"),
        (Predicate(pattern=r"\d+"), ["12", "12a"], "no_match", "/track/1"),
        (Predicate(pattern=r"\d+"), ["12\u0661"], "no_match", "/track/0"),
    ],
)
def test_what_the_upstream_would_not_take_is_rejected(limits, values, reason, pointer):
    value = json.dumps({"track": values}).encode()
    with pytest.raises(PredicatesRejected) as rejected:
        parse(value, {"track": limits})
    assert (rejected.value.reason, rejected.value.pointer) == (reason, pointer)


def test_what_looks_the_same_is_the_same():
    """An accent of its own, as macOS writes it, and one within the letter."""
    composed, decomposed = (
        parse(json.dumps({"track": [term]}).encode(), NAMES) for term in ("caf\u00e9", "cafe\u0301")
    )
    assert composed == decomposed
    both = json.dumps({"track": ["cafe\u0301", "caf\u00e9"]}).encode()
    assert parse(both, {"track": Predicate(max_values=1, max_bytes=5)}) == composed


def test_a_value_that_stands_twice_counts_once():
    assert parse(b'{"track": ["a", " a", "b"]}', {"track": Predicate(max_values=2)}).predicates.terms


def test_the_example_of_a_box_is_a_location():
    twitter = dialect.load("twitter-v1", {}).request.predicates
    assert parse(
        b'{"locations": ["-122.75,36.8,-121.75,37.8"], "follow": ["783214"]}', twitter
    ).predicates.terms
    with pytest.raises(PredicatesRejected, match="no_match"):
        parse(b'{"follow": ["@kafka"]}', twitter)


def test_case_makes_no_difference_where_the_upstream_makes_none():
    limits = {"track": Predicate(lower_case=True, max_values=1, max_bytes=6), "follow": Predicate()}
    read = parse('{"track": ["Käfer", "KÄFER", "ka\u0308fer"], "follow": ["A", "a"]}'.encode(), limits)
    assert read.as_dict() == {"track": ["käfer"], "follow": ["A", "a"]}


def test_a_comma_would_make_two_phrases_of_one():
    twitter = dialect.load("twitter-v1", {}).request.predicates
    with pytest.raises(PredicatesRejected, match="no_match"):
        parse(b'{"track": ["kafka,flink"]}', twitter)


# The schema that publishers are given


def test_a_schema_says_what_would_be_rejected():
    twitter = dialect.load("twitter-v1", {}).request.predicates
    told = schema("tech", twitter)
    assert told["additionalProperties"] is False
    assert told["properties"]["follow"] == {
        "type": "array",
        "items": {"type": "string", "minLength": 1, "pattern": r"^(?:\d+)$"},
        "maxItems": 5000,
    }
    assert told["properties"]["track"]["items"]["maxLength"] == 60
    assert schema("tech", {"a": Predicate()})["properties"] == {
        "a": {"type": "array", "items": {"type": "string", "minLength": 1}},
        "paused": {"type": "boolean", "default": False},
    }
