"""A batch is numbered on from the last committed state, and its records say what the state is after it."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from connector.delivery.batch import Batch, Ledger, form
from connector.delivery.dedupe import MARK_BYTES
from connector.delivery.journal import Page, next_page
from connector.delivery.outbox import Entry, Outbox
from connector.delivery.records import Record
from connector.delivery.restore import Restored
from connector.model import ControlRecord, DeadLetter, Event, Note, Position, Status, Tenure, Topics

TOPICS = Topics(
    predicates="predicates", statuses="statuses", positions="positions", events="events", dlq="dlq"
)
ONE, TWO = Tenure(1, 1), Tenure(2, 7)
STREAMS = {ONE: ("a", "b"), TWO: ("c",)}


TOLD = [
    (None, None, None, None, None),
    ("c1", "v1", (), 1.0, 5),
    ("", "v1", (1.0, 2.0), 0.0, 0),
    ("c2", None, None, 3.0, None),
    (None, "v2", (1.0,), None, 9),
]
"""Some cursors, versions, attempts, times when the upstream was heard, and control offsets."""


def fresh() -> dict[Tenure, Ledger]:
    return {tenure: Ledger(0, {}, {}) for tenure in STREAMS}


def batch(
    entries: Sequence[Entry], ledgers: dict[Tenure, Ledger] | None = None, mark: str = "m", at: float = 1.5
) -> Batch:
    return form(entries, ledgers or fresh(), b"proof", mark, at)


def content(of: Batch, topic: str) -> list[Record]:
    return [record for record in of.content(TOPICS, "/connector/r") if record.topic == topic]


def seqs(of: Batch) -> list[tuple[str, int]]:
    """Return whose statuses there are, and their numbers."""
    told = [dict(record.headers) for record in content(of, "statuses")]
    return [(headers["stream"].decode(), int(headers["seq"])) for headers in told]


@st.composite
def entries(draw) -> Entry:
    tenure = draw(st.sampled_from([ONE, TWO]))
    stream = draw(st.none() | st.sampled_from(STREAMS[tenure]))
    count = 0 if stream is None else draw(st.integers(0, 4))
    mark = draw(st.sampled_from([b"", b"x" * MARK_BYTES, b"y" * MARK_BYTES]))
    cursor, version, attempts, heard_at, handled = draw(st.sampled_from(TOLD))
    return Entry(
        tenure=tenure,
        stream=stream,
        statuses=[Status(str(number), b"{}") for number in range(count)],
        version=version,
        cursor=cursor,
        marks=mark * count,
        attempts=attempts,
        heard_at=heard_at,
        events=[Event("e", stream)] * (count % 3),
        dead_letters=[DeadLetter("not_json", "", stream, "upstream", None, b"x")] * (count % 2),
        handled=handled,
        notes=[Note(f"note/{draw(st.integers(0, 2))}", draw(st.sampled_from([None, b"1", b"2"])))],
    )


some_entries = st.lists(entries(), max_size=5)
batches = st.lists(some_entries, min_size=1, max_size=4)


@given(batches)
def test_statuses_are_numbered_without_a_hole_from_batch_to_batch(many):
    ledgers, last = fresh(), Counter[str]()
    for some in many:
        formed = batch(some, ledgers)
        for stream, seq in seqs(formed):
            last[stream] += 1
            assert seq == last[stream]
        ledgers |= formed.ledgers
    numbers = {name: it.seq for ledger in ledgers.values() for name, it in ledger.positions.items() if it.seq}
    assert numbers == dict(last)


@given(batches)
def test_a_restart_finds_the_state_that_the_writer_goes_on_from(many):
    ledgers, found = fresh(), {tenure.partition: Restored() for tenure in STREAMS}
    for some in many:
        formed = batch(some, ledgers)
        for record in formed.state(TOPICS):
            assert record.topic == "positions"
            assert isinstance(record.key, str)
            found[record.partition].take(record.key, record.value)
        for partition, offset in formed.offsets().items():
            found[partition].handled = offset
        ledgers |= formed.ledgers
        for tenure, ledger in ledgers.items():
            restored = found[tenure.partition]
            pages = {stream: next_page(its[-1]) for stream, its in restored.journals().items()}
            assert (restored.handled, restored.positions) == (ledger.handled, ledger.positions)
            assert pages == ledger.pages
    for tenure, streams in STREAMS.items():
        for stream in streams:
            its = b"".join(one.marks for some in many for one in some if one.stream == stream)
            read = found[tenure.partition].journals().get(stream, [])
            assert b"".join(page.marks for page in read) == its, "in the order in which they went out"


@given(some_entries)
def test_forming_changes_nothing_that_is_committed(some):
    ledgers = {
        ONE: Ledger(5, {"a": Position(3, "c", "v", (1.0,), 2.0)}, {"a": Page(2, b"x" * MARK_BYTES)}),
        TWO: Ledger(0, {}, {}),
    }
    before = copy.deepcopy(ledgers)
    formed = batch(some, ledgers)
    list(formed.state(TOPICS))
    assert ledgers == before
    assert all(formed.ledgers[tenure] is not ledgers[tenure] for tenure in formed.ledgers)
    assert seqs(formed) == seqs(batch(some, ledgers)), "formed again it is the same"


@given(some_entries, st.integers(0, 100))
def test_a_control_partition_is_handled_as_far_as_its_furthest_entry(some, before):
    ledgers = fresh()
    ledgers[ONE].handled = before
    handled = {
        tenure.partition: max(
            [ledgers[tenure].handled, *(one.handled or 0 for one in some if one.tenure == tenure)]
        )
        for tenure in {one.tenure for one in some}
    }
    assert batch(some, ledgers).offsets() == handled, "of those alone whose entries it carries"


@given(some_entries)
def test_what_it_carries_is_counted(some):
    formed = batch(some)
    statuses, letters = formed.counts()
    assert statuses == Counter(stream for stream, _ in seqs(formed))
    assert letters.total() == len(content(formed, "dlq"))
    assert letters.keys() <= {"not_json"}


def test_a_position_that_stays_is_not_written_again():
    ledgers = fresh()
    ledgers[ONE].positions["a"] = Position(3, "c")
    said = [
        Entry(tenure=ONE, stream="a", events=[Event("e", "a")]),
        Entry(tenure=ONE, stream="a", cursor="c"),
    ]
    assert list(batch(said, ledgers).state(TOPICS)) == []
    (moved,) = batch([*said, Entry(tenure=ONE, stream="a", cursor="d")], ledgers).state(TOPICS)
    assert (moved.key, moved.partition) == ("a", ONE.partition)


def test_statuses_carry_the_version_of_their_entry():
    some = [
        Entry(tenure=ONE, stream="a", statuses=[Status("1", b"{}")], version="v1"),
        Entry(tenure=ONE, stream="a", statuses=[Status("2", b"{}")], version="v2"),
    ]
    versions = [dict(record.headers)["predicates"] for record in content(batch(some), "statuses")]
    assert versions == [b"v1", b"v2"]


def test_events_bear_the_batchs_mark_and_time():
    some = [Entry(tenure=ONE, events=[Event("e", None)] * 2), Entry(tenure=TWO, events=[Event("f", "c")])]
    told = [json.loads(record.value or b"") for record in content(batch(some, mark="x", at=7.5), "events")]
    assert [event["id"] for event in told] == ["x-0", "x-1", "x-2"]
    assert {event["time"] for event in told} == {"1970-01-01T00:00:07.500Z"}
    assert {event["source"] for event in told} == {"/connector/r"}


def test_a_record_that_moves_goes_where_it_belongs():
    moved = ControlRecord(2, 9, b"a", b"{}")
    (record,) = content(batch([Entry(tenure=TWO, moves=[(moved, 1)], handled=10)]), "predicates")
    assert (record.key, record.value, record.partition) == (b"a", b"{}", 1)


def test_notes_are_kept_in_the_order_in_which_they_were_put():
    some = [
        Entry(tenure=ONE, notes=[Note("n/0", b"1"), Note("n/0", None)]),
        Entry(tenure=TWO, notes=[Note("n/0", b"3")]),
    ]
    assert [(one.partition, one.value) for one in batch(some).state(TOPICS)] == [
        (1, b"1"),
        (1, None),
        (2, b"3"),
    ]


# --- Entries in parts ---------------------------------------------------------------------------


def whole(count: int, **more: object) -> Entry:
    return Entry(
        tenure=ONE,
        stream="a",
        statuses=[Status(str(number), b"{}") for number in range(count)],
        version="v",
        cursor="c",
        heard_at=9.0,
        attempts=(1.0,),
        **more,
    )


@given(st.integers(2, 9), st.integers(1, 8), st.booleans())
def test_the_parts_of_an_entry_say_together_what_it_said(count, at, has_marks):
    marks = bytes(range(count * MARK_BYTES)) if has_marks else b""
    entry = whole(count, marks=marks, events=[Event("e", "a")], notes=[Note("n/0", b"1")], handled=3)
    first, rest = entry.split(min(at, count - 1))
    assert [*first.statuses, *rest.statuses] == [*entry.statuses]
    assert first.marks + rest.marks == marks
    assert len(first.marks) == (len(first.statuses) * MARK_BYTES if has_marks else 0)
    assert (first.tenure, first.stream, first.version) == (entry.tenure, "a", "v")
    assert (first.cursor, first.heard_at, first.handled, first.attempts) == (None,) * 4
    assert not first.events
    assert not first.notes
    assert (rest.cursor, rest.heard_at, rest.handled, rest.events) == ("c", 9.0, 3, entry.events)

    ledgers = fresh()
    one = batch([first], ledgers)
    assert one.ledgers[ONE].positions["a"] == Position(len(first.statuses), None, "v"), "resumes before it"
    two = batch([rest], {**ledgers, **one.ledgers})
    assert two.ledgers == batch([entry], ledgers).ledgers
    assert [seq for _, seq in seqs(one) + seqs(two)] == list(range(1, count + 1))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 5))
def test_an_outbox_emptied_in_parts_leaves_the_same_state(counts, most):
    outbox, ledgers = Outbox(1 << 30), fresh()
    put = [whole(count, marks=b"m" * MARK_BYTES * count, handled=at) for at, count in enumerate(counts)]
    for entry in put:
        outbox.put(entry)
    size = 0
    while taken := outbox.take(1 << 30, most):
        assert sum(max(1, len(one.statuses)) for one in taken) <= most
        ledgers |= batch(taken, ledgers).ledgers
        size += sum(one.size_bytes for one in taken)
        outbox.settle(taken)
    assert outbox.size_bytes == 0
    assert ledgers[ONE] == batch(put).ledgers[ONE]
