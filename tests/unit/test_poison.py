"""A record that Kafka does not take is kept as far as Kafka takes it, and its state goes on."""

from __future__ import annotations

from connector.delivery.outbox import Entry
from connector.delivery.poison import COPY_BYTES, REASON, condemned
from connector.model import ControlRecord, DeadLetter, Event, Note, Status, Tenure

ONE = Tenure(1, 1)
BIG = Status("7", b"big")


def test_a_status_becomes_a_dead_letter_and_what_follows_it_stays():
    entry = Entry(tenure=ONE, stream="a", statuses=[BIG], marks=bytes(8), cursor="c", version="v")
    instead = condemned(entry, "TOO_LARGE")
    (letter,) = instead.dead_letters
    assert letter == DeadLetter(REASON, "TOO_LARGE", "a", "upstream", b"7", b"big", COPY_BYTES)
    assert (instead.statuses, instead.cursor, instead.marks, instead.version) == ((), "c", bytes(8), "v")


def test_a_dead_letter_that_is_refused_too_goes_without_its_value_and_then_not_at_all():
    entry = Entry(tenure=ONE, stream="a", statuses=[Status("7", b"big")], cursor="c", handled=4)
    first = condemned(entry, "x")
    second = condemned(first, "x")
    assert [one.copy_bytes for one in second.dead_letters] == [0]
    third = condemned(second, "x")
    assert not third.dead_letters
    assert (third.cursor, third.handled) == ("c", 4)
    assert condemned(third, "x") is None, "then the topic of the positions is what is wrong"


def test_a_control_record_that_cannot_move_is_kept():
    record = ControlRecord(2, 9, b"tech", b"{}")
    instead = condemned(Entry(tenure=ONE, moves=[(record, 1)], handled=10), "x")
    assert not instead.moves
    assert [(one.key, one.value, one.origin) for one in instead.dead_letters] == [
        (b"tech", b"{}", "control/2/9")
    ]


def test_events_and_notes_are_given_up_last():
    entry = Entry(tenure=ONE, events=[Event("x.y", None)], notes=[Note("n/1", b"")], handled=3)
    instead = condemned(entry, "x")
    assert (instead.events, instead.notes, instead.handled) == ((), (), 3)
