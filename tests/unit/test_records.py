"""What goes out to Kafka, to the byte."""

from __future__ import annotations

import hashlib
import json

import msgspec
import pytest

from connector.delivery import positions, records
from connector.model import DeadLetter, Event, Position, Status


def test_statuses_are_numbered_on_and_their_bodies_untouched() -> None:
    bodies = [b'{"id_str": "7" }', b'{"id_str":"8"}']
    made = list(
        records.of_statuses("out", "tech", "v1", 41, [Status("7", bodies[0]), Status("8", bodies[1])])
    )
    assert [record.value for record in made] == bodies
    assert made[0].value is bodies[0]
    assert [record.key for record in made] == ["7", "8"]
    assert made[1].headers == [("stream", b"tech"), ("predicates", b"v1"), ("seq", b"43")]


def test_an_event_is_a_cloudevent() -> None:
    event = Event("predicates.applied", "tech", {"offset": 3})
    record = records.of_event("events", "/connector/a", "x-1", 1795528043.7171, event)
    assert record.key == "tech"
    assert json.loads(record.value) == {
        "specversion": "1.0",
        "id": "x-1",
        "source": "/connector/a",
        "type": "predicates.applied",
        "subject": "tech",
        "time": "2026-11-24T13:47:23.717Z",
        "datacontenttype": "application/json",
        "data": {"offset": 3},
    }
    assert dict(record.headers)["content-type"].startswith(b"application/cloudevents+json")
    assert "subject" not in json.loads(records.of_event("e", "/", "1", 0.0, Event("t", None)).value)


def test_a_dead_letter_keeps_the_bytes_and_says_why() -> None:
    letter = DeadLetter("not_json", "line 1", "tech", "upstream", b"k", b"\xff{")
    record = records.of_dead_letter("dlq", letter)
    assert (record.key, record.value) == (b"k", b"\xff{")
    assert dict(record.headers) == {
        "reason": b"not_json",
        "detail": b"line 1",
        "origin": b"upstream",
        "stream": b"tech",
        "sha256": hashlib.sha256(b"\xff{").hexdigest().encode(),
    }


def test_a_very_long_dead_letter_is_cut_and_its_hash_is_of_the_whole() -> None:
    long = b"x" * (records.MAX_DEAD_LETTER_BYTES + 1)
    record = records.of_dead_letter("dlq", DeadLetter("r", "d", None, "o", None, long))
    assert len(record.value) == records.MAX_DEAD_LETTER_BYTES
    headers = dict(record.headers)
    assert headers["cut"] == str(len(long)).encode()
    assert headers["sha256"] == hashlib.sha256(long).hexdigest().encode()


@pytest.mark.parametrize(
    "position", [Position(), Position(3, "c", "v", 7), Position(seq=2**63, cursor=""), Position(applied=0)]
)
def test_a_position_survives_the_log(position: Position) -> None:
    assert positions.decode(positions.encode(position)) == position


@pytest.mark.parametrize("foreign", [b"", b"{}", b'{"seq": "1"}', b"\xff"])
def test_a_position_that_is_not_ours_is_refused(foreign: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        positions.decode(foreign)


def test_a_position_advances_only_where_something_is_known() -> None:
    before = Position(seq=5, cursor="c", predicates="v", applied=9)
    assert positions.advance(before, 2, None, None, None) == Position(7, "c", "v", 9)
    assert positions.advance(before, 0, "d", "w", 11) == Position(5, "d", "w", 11)
    assert positions.advance(before, 0, None, None, 3).applied == 9, "never back"
