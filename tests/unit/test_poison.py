"""A record that Kafka does not take costs that record, and leaves as much of it as the topic takes."""

from __future__ import annotations

import pytest

from connector.delivery.dedupe import MARK_BYTES
from connector.delivery.outbox import Entry
from connector.delivery.poison import COPY_BYTES, REASON, condemned
from connector.model import ControlRecord, DeadLetter, Event, Note, Status, Tenure

HOME = Tenure(1, 1)
DETAIL = "MSG_SIZE_TOO_LARGE: Broker: Message size too large"


def state(**more: object) -> Entry:
    """Return an entry with everything that has to be in the log whatever becomes of its records."""
    return Entry(
        tenure=HOME,
        stream="tech",
        version="v",
        cursor="c",
        marks=b"m" * MARK_BYTES,
        attempts=(1.0,),
        heard_at=2.0,
        handled=7,
        **more,
    )


def steps(entry: Entry | None) -> list[Entry]:
    """Return what is written in place of *entry*, if all of it is refused."""
    made: list[Entry] = []
    while (entry := entry and condemned(entry, DETAIL)) is not None:
        made.append(entry)
    return made


def test_a_status_leaves_a_dead_letter_then_one_without_a_copy_then_nothing():
    first, second, third = steps(state(statuses=[Status("9", b"body")]))
    assert list(first.dead_letters) == [
        DeadLetter(REASON, DETAIL, "tech", "upstream", b"9", b"body", COPY_BYTES)
    ]
    assert [letter.copy_bytes for letter in second.dead_letters] == [0]
    assert [letter.value for letter in second.dead_letters] == [b"body"], "its hash is of the whole"
    assert third == state()
    assert not first.statuses


def test_a_record_that_moves_leaves_a_dead_letter_that_says_where_it_was():
    record = ControlRecord(3, 17, b"tech/a", b"{}", (0, 5))
    first, *_, last = steps(state(moves=[(record, 1)]))
    assert list(first.dead_letters) == [
        DeadLetter(REASON, DETAIL, None, "control/3/17", b"tech/a", b"{}", COPY_BYTES)
    ]
    assert not first.moves
    assert last == state(), "it is handled"


def test_a_dead_letter_leaves_one_without_a_copy_and_then_nothing():
    letter = DeadLetter("not_json", "why", "tech", "upstream", None, b"x")
    one, other = steps(state(dead_letters=[letter]))
    assert [(one.reason, one.copy_bytes) for one in one.dead_letters] == [("not_json", 0)]
    assert other == state()


def test_letters_that_were_there_stay():
    letter = DeadLetter("not_json", "why", "tech", "upstream", None, b"x")
    first = steps(state(statuses=[Status("9", b"body")], dead_letters=[letter]))[0]
    assert [one.reason for one in first.dead_letters] == ["not_json", REASON]


@pytest.mark.parametrize("what", [{"events": [Event("e", "tech")]}, {"notes": [Note("n/0", b"x" * 9)]}])
def test_an_event_or_a_note_goes_and_the_state_stays(what):
    assert steps(state(**what)) == [state()]


def test_where_the_state_alone_is_refused_it_is_the_topic_that_is_wrong():
    assert condemned(state(), DETAIL) is None


def test_what_it_was_is_left_untouched():
    entry = state(statuses=[Status("9", b"body")])
    condemned(entry, DETAIL)
    assert entry == state(statuses=[Status("9", b"body")])
