"""What goes over to another control topic asks for the same, and forgets nobody who waits."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from connector.control.answers import Answers, Change, noted_waiting
from connector.control.relocation import Content, content, stream_of_note, stream_or_none
from connector.control.table import Elsewhere, Table
from connector.errors import PredicatesRejected
from connector.model import ControlRecord
from connector.stream import dialect

LIMITS = {"tech": dialect.load("ndjson", {}).request.predicates}
HERE = 3


def everywhere(_stream: str) -> bool:
    return True


def record(offset: int, key: bytes | None, value: object) -> ControlRecord:
    encoded = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
    return ControlRecord(HERE, offset, key, encoded)


def waiting(*changes: Change) -> dict[str, bytes]:
    """Return the notes of changes that were accepted."""
    notes = [note for one in changes for note in Answers("tech").accepted(one, "", 0.0).notes]
    return {note.key: note.value for note in notes if note.value is not None}


def counts(found: Content) -> dict[bytes | None, bytes | None]:
    return {one.record.key: one.record.value for one in found.answered}


def test_of_each_key_the_newest_answered_record_goes_over_and_fresh_ones_stay_behind_it():
    records = [
        record(0, b"tech/a", {"track": ["1"]}),
        record(1, b"tech/b", {"track": ["2"]}),
        record(2, b"tech/a", {"track": ["3"]}),
        record(3, b"tech/b", {"track": ["4"]}),
    ]
    found = content(HERE, records, 3, {}, everywhere)
    assert counts(found) == {b"tech/a": b'{"track": ["3"]}', b"tech/b": b'{"track": ["2"]}'}
    assert list(found.fresh) == [records[3]]


def test_what_was_taken_back_or_moved_home_does_not_go_over():
    def is_home(stream: str) -> bool:
        return stream == "tech"

    records = [
        record(0, b"tech/a", {"track": ["1"]}),
        record(1, b"tech/a", None),
        record(2, b"news", {"track": ["2"]}),
        record(3, None, {}),
        record(4, b"\xff", {}),
    ]
    assert content(HERE, records, 5, {}, is_home) == Content([], [], {})
    assert content(HERE, records, 2, {}, is_home).fresh == records[2:]


def test_a_key_whose_newest_record_was_rejected_goes_over_with_what_stays_of_it():
    """Also where compaction or a fresh record has left nothing of it on the topic."""
    bad = record(7, b"tech/a", b"rubbish")
    notes = {"kept/tech/a": b'7 {"track":["1"]}', "kept/tech/b": b"8 ", "kept/tech/c": b'2 {"track":["2"]}'}
    found = content(HERE, [bad, record(8, b"tech/b", b"rubbish")], 9, notes, everywhere)
    assert counts(found) == {b"tech/a": b'{"track":["1"]}', b"tech/c": b'{"track":["2"]}'}
    assert found.notes == {}


def test_who_waits_is_told_by_the_place_that_his_publisher_knows():
    notes = waiting(
        Change("tech/a", HERE, 5), Change("tech/b", HERE, 4, (1, 17)), Change("tech/gone", HERE, 6)
    )
    records = [
        record(4, b"tech/b", {"track": ["2"]}),
        record(5, b"tech/a", {"track": ["1"]}),
        record(6, b"tech/gone", None),
    ]
    found = content(HERE, records, 7, notes, everywhere)
    assert [one.record.key for one in found.answered] == [b"tech/b", b"tech/a", b"tech/gone"]
    noted = [one.note(0, 10 + number) for number, one in enumerate(found.answered)]
    assert noted_waiting("tech", {note.key: note.value for note in noted if note}) == [
        Change("tech/b", 0, 10, (1, 17)),
        Change("tech/a", 0, 11, (HERE, 5)),
        Change("tech/gone", 0, 12, (HERE, 6)),
    ]
    assert counts(found)[b"tech/gone"] is None


def test_a_change_waits_on_although_a_later_record_of_its_key_is_the_one_on_the_topic():
    """It asked for nothing else, and was answered."""
    found = content(
        HERE,
        [record(9, b"tech/a", {"track": ["1"]})],
        10,
        waiting(Change("tech/a", HERE, 5), Change("tech/b", HERE, 7)),
        everywhere,
    )
    assert [(one.record.key, one.record.value) for one in found.answered] == [
        (b"tech/a", b'{"track": ["1"]}'),
        (b"tech/b", None),
    ]
    note = found.answered[0].note(1, 2)
    assert note is not None
    assert noted_waiting("tech", {note.key: note.value}) == [Change("tech/a", 1, 2, (HERE, 5))]


def test_notes_that_name_no_offset_go_over_as_they_are():
    notes = {"deleted/tech/1": b"1", "in-force/tech/0": b"{}", "in-force/news/0": b"{}"}
    found = content(HERE, [], 0, notes, lambda stream: stream == "tech")
    assert found.notes == {"deleted/tech/1": b"1", "in-force/tech/0": b"{}"}
    assert {stream_of_note(key) for key in found.notes} == {"tech"}


VALUES: list[bytes | None] = [
    None,
    b'{"track": ["a"]}',
    b'{"track": ["b", "c"]}',
    b'{"paused": true}',
    b"bad",
]
KEYS: list[bytes | None] = [b"tech", b"tech/a", b"tech/b", b"other", b"\xff", None]


@given(
    st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES))),
    st.integers(0, 30),
    st.booleans(),
)
def test_the_same_is_asked_for_whatever_publishers_wrote(
    written: Sequence[tuple[bytes | None, bytes | None]], handled: int, is_compacted: bool
) -> None:
    table = Table(limits=LIMITS, partition=0, partitions=1)
    notes: dict[str, bytes] = {}
    records = [ControlRecord(0, offset, *one) for offset, one in enumerate(written)]
    for one in records[:handled]:
        try:
            taken = table.take(one)
            assert not isinstance(taken, Elsewhere)
            note = taken.note
        except PredicatesRejected:
            note = table.keep(one)
        if note is not None:
            notes.pop(note.key, None)
            if note.value is not None:
                notes[note.key] = note.value
    if is_compacted:
        newest = {one.key: one.offset for one in records[:handled]}
        records = [one for one in records if one.offset >= handled or newest[one.key] == one.offset]

    found = content(0, records, handled, notes, everywhere)
    there = [one.record._replace(offset=offset) for offset, one in enumerate(found.answered)]
    moved = Table(limits=LIMITS, partition=0, partitions=1)
    moved.load(there, found.notes)
    assert moved.of("tech").by_key() == table.of("tech").by_key()
    for before, after in zip(records[len(records) - len(found.fresh) :], found.fresh, strict=True):
        assert before == after
        assert _taken(table, before) == _taken(moved, after)
    assert moved.of("tech").by_key() == table.of("tech").by_key()


def _taken(table: Table, one: ControlRecord) -> object:
    take: Callable[[ControlRecord], object] = table.take
    try:
        taken = take(one)
    except PredicatesRejected as rejected:
        table.keep(one)
        return rejected.reason
    return stream_or_none(one), type(taken)


def test_what_is_kept_of_a_shares_key_goes_over_as_what_the_connector_put():
    share = "tech.1-of-3"
    others = record(5, f"{share}/a".encode(), {"track": ["x"]})
    notes = {f"kept/{share}/a": b"5 " + b'{"track":["kafka"]}'}
    (answered,) = content(HERE, [others], 6, notes, everywhere).answered
    assert answered.record.value == b'{"track":["kafka"]}'
    assert answered.record.is_dealt
    dealt = others._replace(is_dealt=True)
    assert content(HERE, [dealt], 6, {}, everywhere).answered[0].record == dealt
