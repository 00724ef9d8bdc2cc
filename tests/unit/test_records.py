"""What stands in Kafka is what the documentation of the topics says."""

from __future__ import annotations

import datetime as dt
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.delivery import records
from connector.delivery.records import Headers, Record
from connector.model import DeadLetter, Event, Status

COPY_BYTES = 256 * 1024

# --- Statuses -----------------------------------------------------------------------------------


def test_a_status_is_keyed_by_its_id_and_carries_the_upstreams_bytes():
    body = b'{ "id_str":"9" }'
    (record,) = records.of_statuses("statuses", "tech", "4f53cda18c2b", 0, [Status("9", body)])
    assert record == Record(
        "statuses",
        body,
        "9",
        [("stream", b"tech"), ("predicates", b"4f53cda18c2b"), ("seq", b"1")],
    )
    assert record.value is body
    assert record.partition == -1, "the partitioner chooses by key"


def test_a_deleted_status_is_a_tombstone_with_the_key_of_its_status():
    status, delete = records.of_statuses(
        "statuses", "tech", "v", 7, [Status("é/9", b"{}"), Status("é/9", None)]
    )
    assert (delete.key, delete.value) == (status.key, None)
    assert dict(delete.headers)["seq"] == b"9"


@given(st.integers(0, 2**62), st.integers(0, 20))
def test_statuses_are_numbered_on_from_the_position(after_seq, count):
    some = [Status(str(number), b"{}") for number in range(count)]
    made = list(records.of_statuses("statuses", "tech", "v", after_seq, some))
    assert [dict(record.headers)["seq"] for record in made] == [
        b"%d" % number for number in range(after_seq + 1, after_seq + 1 + count)
    ]
    assert [record.key for record in made] == [status.id for status in some]


def test_a_status_carries_which_predicates_it_matched_where_the_upstream_says_so():
    matched = b'[{"id":"1","tag":"kafka"}]'
    some = [Status("1", b"{}", matched), Status("2", b"{}")]
    one, other = records.of_statuses("statuses", "tech", "v", 0, some)
    assert one.headers[-1] == ("rules", matched)
    assert "rules" not in dict(other.headers)


# --- Events -------------------------------------------------------------------------------------

APPLIED = Event("predicates.applied", "tech", {"offset": 3, "predicates": "4f53cda18c2b"})


def test_an_event_is_a_cloud_event_in_structured_mode():
    record = records.of_event("events", "/connector/c-0", "id-1", 1_700_000_000.1234, APPLIED)
    assert record.topic == "events"
    assert record.key == "tech"
    assert record.partition == -1
    assert record.headers == [("content-type", b"application/cloudevents+json; charset=utf-8")]
    assert record.value is not None
    assert json.loads(record.value) == {
        "specversion": "1.0",
        "id": "id-1",
        "source": "/connector/c-0",
        "type": "predicates.applied",
        "subject": "tech",
        "time": "2023-11-14T22:13:20.123Z",
        "datacontenttype": "application/json",
        "data": {"offset": 3, "predicates": "4f53cda18c2b"},
    }


def test_an_event_about_no_stream_has_neither_subject_nor_key():
    record = records.of_event("events", "s", "i", 0, Event("predicates.rejected", None))
    assert record.key is None
    assert record.value is not None
    value = json.loads(record.value)
    assert "subject" not in value
    assert value["data"] == {}
    assert value["time"] == "1970-01-01T00:00:00.000Z"


@given(st.floats(0, 4e9))
def test_an_events_time_is_utc_to_the_millisecond(at):
    value = json.loads(records.of_event("events", "s", "i", at, APPLIED).value or b"")
    assert value["time"].endswith("Z")
    assert abs(dt.datetime.fromisoformat(value["time"]).timestamp() - at) < 0.001001


# --- Dead letters -------------------------------------------------------------------------------


def letter(value: bytes | None, **other: object) -> DeadLetter:
    members = {"reason": "not_json", "detail": "why", "stream": "tech", "origin": "upstream", "key": b"k"}
    return DeadLetter(**{**members, **other}, value=value)  # type: ignore[arg-type]


def headers(record: Record) -> dict[str, str | bytes | None]:
    as_dict = dict(record.headers)
    assert len(as_dict) == len(record.headers)
    return as_dict


def test_a_dead_letter_is_kept_as_it_was_with_the_reason():
    value = b"\xff\x00 anything"
    record = records.of_dead_letter("dlq", letter(value))
    assert (record.topic, record.value, record.key, record.partition) == ("dlq", value, b"k", -1)
    assert headers(record) == {
        "reason": b"not_json",
        "detail": b"why",
        "origin": b"upstream",
        "stream": b"tech",
        "sha256": hashlib.sha256(value).hexdigest().encode(),
    }


def test_a_long_dead_letter_is_cut_but_its_hash_and_size_are_of_the_whole():
    value = bytes(range(256)) * (COPY_BYTES // 256) + b"more"
    record = records.of_dead_letter("dlq", letter(value))
    assert record.value == value[:COPY_BYTES]
    assert headers(record)["cut"] == b"%d" % len(value)
    assert headers(record)["sha256"] == hashlib.sha256(value).hexdigest().encode()


def test_a_dead_letter_as_long_as_allowed_is_whole():
    value = b"x" * COPY_BYTES
    record = records.of_dead_letter("dlq", letter(value))
    assert record.value == value
    assert "cut" not in headers(record)


def test_a_dead_letter_without_value_key_or_stream_has_no_headers_for_them():
    record = records.of_dead_letter("dlq", letter(None, key=None, stream=None))
    assert (record.value, record.key) == (None, None)
    assert headers(record).keys() == {"reason", "detail", "origin"}


@pytest.mark.parametrize("member", ["detail", "stream"])
def test_text_that_utf8_cannot_spell_does_not_keep_a_letter_back(member):
    assert headers(records.of_dead_letter("dlq", letter(b"", **{member: "a\ud800b"})))[member] == b"a?b"


# --- Positions ----------------------------------------------------------------------------------


def test_a_position_goes_to_the_partition_that_mirrors_the_streams_home():
    none: Headers = []
    assert records.of_note("positions", 4, "tech", b'{"seq":1}') == Record(
        "positions", b'{"seq":1}', "tech", none, 4
    )
