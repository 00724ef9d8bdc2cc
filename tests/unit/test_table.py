"""A control partition as a table: what counts, what is rejected, and what a restart finds again."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.control.answers import Change
from connector.control.home import home
from connector.control.predicates import MAX_VALUE_BYTES
from connector.control.table import Elsewhere, Table, Taken
from connector.errors import PredicatesRejected
from connector.model import ControlRecord, PredicateSet
from connector.stream.request import Predicate

PARTITIONS = 6
HOME = home("tech", PARTITIONS)
LIMITS = {"tech": {"track": Predicate(max_values=3)}, "news": {"track": Predicate()}}
RUBBISH = b"rubbish"


def table(limits=LIMITS, partition: int = HOME) -> Table:
    return Table(limits=limits, partition=partition, partitions=PARTITIONS)


def asks(*track: str, paused: bool = False) -> bytes:
    return json.dumps({"track": track, "paused": paused}).encode()


def record(offset: int, key: str, value: bytes | None) -> ControlRecord:
    return ControlRecord(HOME, offset, key.encode(), value)


def of(*track: str) -> PredicateSet:
    return PredicateSet.of({"track": track})


class Topic:
    """The control topic, and the notes beside the positions, as a table writes them."""

    def __init__(self) -> None:
        self.table = table()
        self.records: list[ControlRecord] = []
        self.notes: dict[str, bytes] = {}
        self.reasons: list[str | None] = []

    def publish(self, key: str, value: bytes | None) -> None:
        new = record(len(self.records), key, value)
        self.records.append(new)
        try:
            taken = self.table.take(new)
            assert isinstance(taken, Taken)
            note, reason = taken.note, None
        except PredicatesRejected as rejected:
            note, reason = self.table.keep(new), rejected.reason
        self.reasons.append(reason)
        if note is not None and note.value is None:
            del self.notes[note.key]
        elif note is not None:
            self.notes[note.key] = note.value

    def compacted(self, kept: set[int] = frozenset()) -> list[ControlRecord]:
        """Return the newest record of each key, and those at the offsets *kept*."""
        newest = {one.key: one.offset for one in self.records}
        return [one for one in self.records if newest[one.key] == one.offset or one.offset in kept]


values = st.one_of(
    st.none(),
    st.sampled_from([RUBBISH, b'{"trak": []}']),
    st.builds(
        asks, *[st.sampled_from("abcdef")] * 2, paused=st.booleans()
    ),  # three of those may be too many together
)


@given(st.lists(st.tuples(st.sampled_from(["tech", "tech/a", "tech/b"]), values), max_size=25), st.data())
def test_a_restart_finds_what_was_there_whatever_compaction_left(published, data):
    topic = Topic()
    for key, value in published:
        topic.publish(key, value)
    kept = data.draw(st.sets(st.integers(0, len(published))))
    after = table()
    assert after.load(topic.compacted(kept), topic.notes) == []
    assert after.of("tech").by_key() == topic.table.of("tech").by_key()


@given(st.lists(st.tuples(st.sampled_from(["tech", "tech/a", "tech/b"]), values), max_size=25))
def test_the_union_never_exceeds_what_the_upstream_takes(published):
    topic = Topic()
    for key, value in published:
        before = topic.table.of("tech").by_key()
        topic.publish(key, value)
        assert len(topic.table.of("tech").union().as_dict().get("track", ())) <= 3
        if topic.reasons[-1] is not None:
            assert topic.table.of("tech").by_key() == before


def test_a_rejected_record_leaves_what_its_key_asked_for():
    topic = Topic()
    topic.publish("tech/a", asks("a"))
    topic.publish("tech/a", RUBBISH)
    assert topic.notes == {"kept/tech/a": b'1 {"track":["a"]}'}
    after = table()
    after.load(topic.compacted(), topic.notes)
    assert after.of("tech").union() == of("a")
    topic.publish("tech/a", asks("b"))
    assert topic.notes == {}


def test_one_publisher_cannot_take_anothers_share():
    topic = Topic()
    topic.publish("tech/a", asks("a", "b"))
    topic.publish("tech/b", asks("b", "c"))
    topic.publish("tech/c", asks("d"))
    assert topic.reasons == [None, None, "quota_exceeded"]
    topic.publish("tech/b", None)
    topic.publish("tech/c", asks("d"))
    assert topic.reasons[3:] == [None, None]
    assert topic.table.of("tech").union() == of("a", "b", "d")


def test_what_is_paused_takes_no_share_until_it_is_resumed():
    topic = Topic()
    topic.publish("tech/a", asks("a", "b", "c"))
    topic.publish("tech/b", asks("d", paused=True))
    topic.publish("tech/b", asks("d"))
    assert topic.reasons == [None, None, "quota_exceeded"]
    assert topic.table.of("tech").by_key()[b"tech/b"].is_paused


def test_records_of_other_homes_are_sent_there_and_kept_by_nobody():
    elsewhere = table(partition=(HOME + 1) % PARTITIONS)
    assert elsewhere.take(record(0, "tech/a", asks("a"))) == Elsewhere("tech", HOME)
    assert elsewhere.keep(record(1, "tech/a", RUBBISH)) is None
    assert elsewhere.load([record(0, "tech/a", asks("a"))], {}) == []
    assert elsewhere.of("tech").union().is_empty


@pytest.mark.parametrize("key", [None, b"", b"\xff", b"techno", b"nobody/a"])
def test_records_of_no_stream_need_no_note(key):
    rubbish = ControlRecord(HOME, 0, key, RUBBISH)
    with pytest.raises(PredicatesRejected):
        table().take(rubbish)
    assert table().keep(rubbish) is None
    assert table().load([rubbish], {}) == []


@pytest.mark.parametrize("key", [b"tech/" + b"x" * 2000, b"\xff" * 300_000, b'"' * 100_000])
def test_a_key_that_no_answer_could_hold_is_rejected_and_told_in_part(key):
    """Else one record would stop every replica that meets it."""
    long = ControlRecord(HOME, 0, key, asks("a"))
    with pytest.raises(PredicatesRejected, match="key_too_long"):
        table().take(long)
    assert table().keep(long) is None
    assert len(json.dumps(Change.of(long).as_dict())) < 10_000


def test_only_what_comes_from_outside_is_measured():
    """What a key said is kept as it was read: normalised, it may be longer than it was."""
    value = json.dumps({"track": ["\u0958" * 80_000]}, ensure_ascii=False).encode()
    assert len(value) < MAX_VALUE_BYTES < len(value) * 2
    topic = Topic()
    topic.publish("tech/a", value)
    topic.publish("tech/a", RUBBISH)
    assert len(topic.notes["kept/tech/a"]) > MAX_VALUE_BYTES
    after = table()
    assert after.load(topic.compacted(), topic.notes) == []
    assert after.of("tech").by_key() == topic.table.of("tech").by_key()
    with pytest.raises(PredicatesRejected, match="too_large"):
        after.take(record(2, "tech/a", b" " * (MAX_VALUE_BYTES + 1)))


def test_what_settings_no_longer_allow_is_told():
    topic = Topic()
    topic.publish("tech/a", asks("a", "b"))
    topic.publish("tech/b", asks("c"))
    topic.publish("tech/b", RUBBISH)
    narrow = table({"tech": {"track": Predicate(pattern="[ab]", max_values=1)}})
    unfit = narrow.load(topic.compacted(), topic.notes)
    assert [(one.offset, rejected.reason) for one, rejected in unfit] == [
        (0, "too_many_values"),
        (2, "no_match"),  # what was kept in its place
    ]
    assert narrow.of("tech").union().is_empty


def test_limits_that_became_narrower_do_not_undo_what_was_accepted():
    """The upstream decides then; and whoever asks for less is heard."""
    topic = Topic()
    topic.publish("tech/a", asks("a"))
    topic.publish("tech/b", asks("b", "c"))
    narrow = table({"tech": {"track": Predicate(max_values=2)}})
    narrow.load(topic.compacted(), topic.notes)
    assert narrow.of("tech").union() == of("a", "b", "c")
    with pytest.raises(PredicatesRejected, match="quota_exceeded"):
        narrow.take(record(2, "tech/c", asks("d")))
    narrow.take(record(3, "tech/b", asks("c")))
    assert narrow.of("tech").union() == of("a", "c")
