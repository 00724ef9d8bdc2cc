"""A stream's shares: their names, what is dealt to them, and what a change of their number leaves."""

from __future__ import annotations

import pytest

from connector.control import shares
from connector.control.home import home, is_dealt, published
from connector.control.predicates import MAX_KEY_BYTES, Contribution
from connector.control.table import Gone, Table, Taken
from connector.delivery import records
from connector.delivery.restore import Restored
from connector.errors import PredicatesRejected
from connector.model import ControlRecord, PredicateSet
from connector.stream.request import Predicate

PARTITIONS = 6
THREE = ("tech.1-of-3", "tech.2-of-3", "tech.3-of-3")
LIMITS = {name: {"track": Predicate(max_values=2)} for name in ("tech", *THREE)}
VALUE = b'{"track":["kafka"]}'


def table(stream: str) -> Table:
    """Return the table of a stream's home."""
    return Table(limits=LIMITS, partition=home(stream, PARTITIONS), partitions=PARTITIONS, shared={"tech": 3})


def record(
    key: str, value: bytes | None = VALUE, *, offset: int = 0, is_dealt: bool = False
) -> ControlRecord:
    number = home(key.partition("/")[0], PARTITIONS)
    return ControlRecord(number, offset, key.encode(), value, is_dealt=is_dealt)


def test_a_shares_name_leads_back_to_its_stream():
    assert shares.names("tech", 3) == THREE
    assert shares.names("tech", 1) == ()
    assert {shares.whole(name) for name in THREE} == {"tech"}
    assert shares.whole("tech") == "tech"
    assert shares.whole("tech.10-of-12.2-of-99") == "tech.10-of-12"


def test_the_longest_name_of_a_share_has_room_in_a_key():
    longest = shares.names("tech", shares.MAX_SHARES)[-1]
    assert len(longest) == len("tech") + shares.SUFFIX_BYTES


@pytest.mark.parametrize("key", ["tech", "tech/tech/a", "tech/ä"])
@pytest.mark.parametrize("value", [VALUE, None])
def test_a_record_is_dealt_to_each_shares_home_and_keeps_its_publishers_place(key, value):
    put = record(key, value, offset=7)._replace(published=(3, 4))
    moves = shares.dealt(put, "tech", 3, PARTITIONS)
    publisher = key.removeprefix("tech")
    assert [one.key.decode() for one, _ in moves] == [share + publisher for share in THREE]
    assert [to for _, to in moves] == [home(share, PARTITIONS) for share in THREE]
    written = [records.of_move("predicates", *move) for move in moves]
    assert {one.value for one in written} == {value}
    assert {published(one.headers) for one in written} == {(3, 4)}
    assert all(is_dealt(one.headers) for one in written)


def test_what_is_dealt_anew_comes_from_no_place():
    by_key = {b"tech/a": Contribution(PredicateSet.of({"track": ["kafka"]}), is_paused=True)}
    moves = shares.dealt_anew("tech", by_key, 2, 1, PARTITIONS)
    assert [(one.key, one.value) for one, _ in moves] == [
        (b"tech.1-of-2/a", None),
        (b"tech.2-of-2/a", None),
    ]
    moves = shares.dealt_anew("tech", by_key, 1, 2, PARTITIONS)
    assert {one.value for one, _ in moves} == {b'{"track":["kafka"],"paused":true}'}
    assert {published(records.of_move("predicates", *move).headers) for move in moves} == {None}


def test_a_moved_record_that_was_not_dealt_says_nothing_of_it():
    assert not is_dealt(records.of_move("predicates", record("tech"), 1).headers)


def test_how_many_shares_there_were_is_noted():
    assert shares.noted("tech", {}) == 1
    key, value = shares.note("tech", 3)
    assert value is not None
    assert shares.noted("tech", {key: value}) == 3
    assert shares.note("tech", 1) == (key, None)


@pytest.mark.parametrize("share", THREE)
def test_only_the_connector_asks_anything_of_a_share(share):
    of_share = table(share)
    with pytest.raises(PredicatesRejected, match="use 'tech'") as rejected:
        of_share.take(record(f"{share}/a"))
    assert rejected.value.reason == "share_key"
    assert of_share.take(record(f"{share}/a", is_dealt=True)) == Taken(share, None)
    assert not of_share.of(share).union().is_empty


def test_what_others_put_under_a_shares_key_counts_after_a_restart_neither():
    share = THREE[0]
    good, bad = record(f"{share}/a", is_dealt=True), record(f"{share}/a", b'{"track":["x"]}', offset=1)
    before = table(share)
    before.take(good)
    with pytest.raises(PredicatesRejected):
        before.take(bad)
    note = before.keep(bad)
    assert note is not None
    for notes, track in (({note.key: note.value}, {"track": ["kafka"]}), ({}, {})):
        after = table(share)
        after.load([bad], notes)  # the good one is compacted away
        assert after.of(share).union().as_dict() == track


def test_a_key_leaves_room_for_the_longest_share():
    of_stream, room = table("tech"), MAX_KEY_BYTES - shares.SUFFIX_BYTES
    assert of_stream.take(record("tech/" + (room - 5) * "a")) == Taken("tech", None)
    with pytest.raises(PredicatesRejected) as rejected:
        of_stream.take(record("tech/" + (room - 4) * "a"))
    assert rejected.value.reason == "key_too_long"


def test_what_is_dealt_to_a_share_that_is_gone_is_passed_over():
    assert table("tech").take(record("tech.1-of-2/a", None, is_dealt=True)) == Gone("tech.1-of-2")
    with pytest.raises(PredicatesRejected, match=r"there are: tech$") as rejected:
        table("tech").take(record("tech.1-of-2/a"))
    assert rejected.value.reason == "unknown_stream"


def test_a_stream_with_shares_is_held_to_the_upstreams_limits_before_anything_is_dealt():
    of_stream = table("tech")
    of_stream.take(record("tech/a", b'{"track":["1","2"]}'))
    with pytest.raises(PredicatesRejected) as rejected:
        of_stream.take(record("tech/b", b'{"track":["3"]}'))
    assert rejected.value.reason == "quota_exceeded"


def test_all_about_a_stream_can_be_taken_back():
    restored = Restored()
    its = {"tech": b'{"seq":1}', "seen/tech/0": b"x", "kept/tech/a": b"0 ", "waiting/tech/3": b"x"}
    for key, value in {**its, "tech.1-of-2": b'{"seq":1}', "seen/tech.1-of-2/0": b"x"}.items():
        restored.take(key, value)
    assert restored.streams() == {"tech", "tech.1-of-2"}
    assert {note.key for note in restored.removal("tech")} == its.keys()
    assert {note.value for note in restored.removal("tech")} == {None}
