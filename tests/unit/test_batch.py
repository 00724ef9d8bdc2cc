"""A batch numbers what it carries, says the state after it, and changes nothing by being formed."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from connector.delivery import journal
from connector.delivery.batch import Ledger, form
from connector.delivery.outbox import Entry, Outbox
from connector.delivery.restore import Restored
from connector.model import ControlRecord, DeadLetter, Event, Note, Position, Status, Tenure, Topics

ONE, TWO = Tenure(1, 1), Tenure(2, 7)
TOPICS = Topics(predicates="p", statuses="s", positions="pos", events="e", dlq="d")


def ledgers() -> dict[Tenure, Ledger]:
    return {ONE: Ledger(3, {"a": Position(10, "c10")}, {}), TWO: Ledger(0, {}, {})}


def entry(tenure: Tenure, stream: str, *ids: int, **more) -> Entry:
    statuses = [Status(str(one), b"x") for one in ids]
    return Entry(tenure=tenure, stream=stream, statuses=statuses, marks=bytes(8) * len(ids), **more)


def formed(*entries: Entry, state=None):
    return form(entries, state or ledgers(), b"proof", "mark", 1.5)


def seqs(batch) -> list[tuple[str, int]]:
    found = [record for record in batch.content(TOPICS, "/connector/r") if record.topic == "s"]
    return [(record.key, int(dict(record.headers)["seq"])) for record in found]


def test_statuses_are_numbered_on_for_each_stream():
    batch = formed(entry(ONE, "a", 1, 2), entry(TWO, "b", 3), entry(ONE, "a", 4, cursor="c13"))
    assert seqs(batch) == [("1", 11), ("2", 12), ("3", 1), ("4", 13)]
    assert batch.ledgers[ONE].positions["a"] == Position(13, "c13")
    assert batch.ledgers[TWO].positions["b"] == Position(1)


def test_the_state_is_what_the_log_says():
    before = ledgers()
    batch = formed(entry(ONE, "a", *range(300), cursor="c"), entry(ONE, "a", 7, heard_at=9.5), state=before)
    state = Restored()
    for record in batch.state(TOPICS):
        assert (record.topic, record.partition) == ("pos", 1)
        state.take(record.key, record.value)
    assert state.positions == batch.ledgers[ONE].positions
    assert sum(len(page.marks) for page in state.journals()["a"]) == 301 * 8
    assert journal.next_page(state.journals()["a"][-1]) == batch.ledgers[ONE].pages["a"]
    assert before == ledgers(), "forming changes nothing"


def test_offsets_are_of_every_partition_that_it_carries_anything_of():
    batch = formed(Entry(tenure=ONE, handled=9), Entry(tenure=ONE, handled=8), entry(TWO, "b", 1))
    assert batch.offsets() == {1: 9, 2: 0}


def test_everything_else_goes_where_it_belongs():
    moved = ControlRecord(1, 5, b"b", b"{}")
    bad = DeadLetter("r", "d", "a", "upstream", None, b"bad")
    batch = formed(
        Entry(tenure=ONE, events=[Event("x.y", "a"), Event("x.z", None)], notes=[Note("n/1", None)]),
        Entry(tenure=ONE, dead_letters=[bad], moves=[(moved, 2)]),
    )
    content = list(batch.content(TOPICS, "/connector/r"))
    assert [record.topic for record in content] == ["e", "e", "d", "p"]
    assert [json.loads(record.value)["id"] for record in content[:2]] == ["mark-0", "mark-1"]
    assert content[-1].partition == 2
    assert [(record.key, record.value) for record in batch.state(TOPICS)] == [("n/1", None)]
    assert batch.counts()[1] == {"r": 1}


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.integers(1, 12))
def test_it_makes_no_difference_how_entries_are_cut(sizes, limit):
    """The cursor comes with the last status of its entry, and each mark with its own."""
    entries, number = [], 0
    for size in sizes:
        ids = range(number, number + size)
        entries.append(
            Entry(
                tenure=ONE,
                stream="a",
                statuses=[Status(str(one), b"x") for one in ids],
                marks=b"".join(one.to_bytes(8, "big") for one in ids),
                cursor=str(number + size),
            )
        )
        number += size
    outbox, state, written, cut = Outbox(1 << 30), {ONE: Ledger(0, {}, {})}, [], []
    for one in entries:
        outbox.put(one)
    while taken := outbox.take(1 << 30, limit):
        batch = form(taken, state, b"", "m", 0.0)
        assert sum(len(one.statuses) for one in taken) <= limit
        position = batch.ledgers[ONE].positions["a"]
        assert int(position.cursor or 0) <= position.seq, "never beyond what is written"
        written += seqs(batch)
        cut += [one.marks for one in taken]
        state = {**state, **batch.ledgers}
        outbox.settle(taken)
    assert [int(key) for key, _ in written] == list(range(number))
    assert [seq for _, seq in written] == list(range(1, 1 + number))
    assert b"".join(cut) == b"".join(one.to_bytes(8, "big") for one in range(number))
    assert outbox.size_bytes == 0
