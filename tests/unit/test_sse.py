"""Events come out as the HTML standard has them, however the bytes were cut.

The examples are those of the standard (section 9.2.6) and of the web-platform-tests, ``eventsource/``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.stream.sse import ROOM_BYTES, SseEvent, SseFramer

LIMIT = 40
BOM = b"\xef\xbb\xbf"

Outcome = tuple[list[SseEvent], str | None, float | None, Counter[str], int]
"""Events, last id, retry, bytes discarded, bytes held."""


def cut(data: bytes, at: Iterable[int]) -> Iterator[bytes]:
    places = sorted({min(place, len(data)) for place in at} | {0, len(data)})
    for start, end in pairwise(places):
        yield data[start:end]


def outcome(chunks: Iterable[bytes], limit: int) -> Outcome:
    framer = SseFramer(limit)
    events: list[SseEvent] = []
    for chunk in chunks:
        events += framer.feed(chunk)
        assert framer.held_bytes <= limit + ROOM_BYTES
    return events, framer.last_id, framer.retry_s, +framer.discarded, framer.held_bytes


def however_cut(data: bytes, at: Iterable[int] = (), limit: int = LIMIT) -> Outcome:
    """Return what comes of *data*, which must not depend on where they are cut."""
    whole = outcome([data], limit)
    assert outcome(cut(data, range(len(data))), limit) == whole
    assert outcome(cut(data, at), limit) == whole
    return whole


def events_of(data: bytes) -> list[SseEvent]:
    return however_cut(data, limit=10_000)[0]


def data_of(data: bytes) -> list[bytes]:
    return [event.data for event in events_of(data)]


# --- However cut --------------------------------------------------------------------------------


def by_the_letter(data: bytes) -> tuple[list[SseEvent], str | None, float | None]:
    """Read a whole stream as the standard's text says, without any limit."""
    text = data.removeprefix(BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events: list[SseEvent] = []
    last_id, id_buffer, retry_s, buffer, name = None, None, None, b"", b""
    for line in text.split(b"\n")[:-1]:
        if not line:
            last_id = id_buffer
            if buffer:
                events.append(SseEvent(buffer[:-1], name.decode(errors="replace") or "message", last_id))
            buffer, name = b"", b""
            continue
        if line.startswith(b":"):
            continue
        field, _, value = line.partition(b":")
        value = value[1:] if value.startswith(b" ") else value
        if field == b"data":
            buffer += value + b"\n"
        elif field == b"event":
            name = value
        elif field == b"id" and b"\0" not in value:
            id_buffer = value.decode(errors="replace")
        elif field == b"retry" and value and not value.strip(b"0123456789") and len(value) <= 9:
            retry_s = int(value) / 1000
    return events, last_id, retry_s


ends = st.sampled_from([b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b"\n\r"])
tokens = ends | st.sampled_from(
    [
        b"data",
        b"data:",
        b"data: ",
        b"data:  x",
        b"data:x\n",
        b"data\n\n",
        b"event",
        b"event:",
        b"event: e\n",
        b"id",
        b"id:",
        b"id: 1\n",
        b"id: \xff\n",
        b"id:\x00\n",
        b"retry:",
        b"retry: 15\n",
        b"retry\n",
        b"retry:1a\n",
        b":",
        b": x\n",
        b" ",
        b"1",
        b"\x00",
        b"\xff",
        b"\x85",
        b"\xe2\x80\xa8",
        BOM,
        *cut(BOM, range(3)),
    ]
)
sized = st.sampled_from([LIMIT - 6, LIMIT, LIMIT + 1, LIMIT + 8, ROOM_BYTES]).map(lambda size: b"x" * size)
hostile = st.lists(tokens | sized, max_size=40).map(b"".join) | st.binary(max_size=200)
places = st.lists(st.integers(0, 300), max_size=20)


@given(hostile, places)
def test_events_are_the_same_however_cut(data, at):
    events, _, _, discarded, held = however_cut(data, at)
    assert all(len(event.data) <= LIMIT for event in events)
    assert sum(len(event.data) for event in events) + discarded.total() + held <= len(data)


@given(st.booleans(), st.lists(tokens, max_size=40).map(b"".join), places)
def test_events_are_those_of_the_standard(bom, data, at):
    data = BOM * bom + data
    assert however_cut(data, at, limit=10_000)[:3] == by_the_letter(data)


# --- The standard's examples --------------------------------------------------------------------


def test_example_of_a_stock_ticker():
    assert events_of(b"data: YHOO\ndata: +2\ndata: 10\n\n") == [(b"YHOO\n+2\n10", "message", None)]


def test_example_of_a_test_stream():
    text = b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n"
    assert events_of(text) == [
        (b"first event", "message", "1"),
        (b"second event", "message", ""),
        (b" third event", "message", ""),
    ]


def test_example_of_empty_data():
    """Two events; the last block is not ended and so discarded."""
    assert data_of(b"data\n\ndata\ndata\n\ndata:") == [b"", b"\n"]


def test_example_of_identical_events():
    assert data_of(b"data:test\n\ndata: test\n\n") == [b"test", b"test"]


# --- The web-platform-tests ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "data"),
    [
        pytest.param(BOM + b"data:1\n\n" + BOM + b"data:2\n\ndata:3\n\n", [b"1", b"3"], id="format-bom"),
        pytest.param(BOM + BOM + b"data:1\n\ndata:2\n\ndata:3\n\n", [b"2", b"3"], id="format-bom-2"),
        pytest.param(
            b"data:1\r:\0\n:\r\ndata:2\n:%b\rdata:3\n:data:fail\r:%b\ndata:4\n\n"
            % (b"x" * 2048, b"x" * 2048),
            [b"1\n2\n3\n4"],
            id="format-comments",
        ),
        pytest.param(
            b"retry:1000\ndata:test1\n\nid:test\ndata:test2",
            [b"test1"],
            id="format-data-before-final-empty-line",
        ),
        pytest.param(b"data:\n\ndata\ndata\n\ndata:test\n\n", [b"", b"\n", b"test"], id="format-field-data"),
        pytest.param(
            b"data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n"
            b" data:32\ndata:4\n\n",
            [b"\0\n 2\n1\n3\n\n4"],
            id="format-field-parsing",
        ),
        pytest.param(
            b"data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacommentyay\n\n",
            [b"test\n"],
            id="format-field-unknown",
        ),
        pytest.param(b"data:\ttest\rdata: \ndata:test\n\n", [b"\ttest\n\ntest"], id="format-leading-space"),
        pytest.param(b"data:test\r\ndata\ndata:test\r\n\r\n", [b"test\n\ntest"], id="format-newlines"),
        pytest.param(b"data:\0\n\n\n\n", [b"\0"], id="format-null-character"),
        pytest.param("data:ok…\n\n".encode(), ["ok…".encode()], id="format-utf-8"),
        pytest.param(b"data:\xff\xfe\n\n", [b"\xff\xfe"], id="bytes that are no UTF-8 are left alone"),
        pytest.param(b"\xef\xbbdata:1\n\ndata:2\n\n", [b"2"], id="part of a BOM is none"),
        pytest.param(b"\xef\xbb", [], id="part of a BOM and no more"),
        pytest.param(BOM, [], id="a BOM and no more"),
        pytest.param(b"\n" + BOM + b"data:1\n\n", [], id="a BOM stands at the beginning only"),
        pytest.param(
            "data:a\u2028b\u2029c\x85\x0b\x0c\x1c\n\n".encode(),
            ["a\u2028b\u2029c\x85\x0b\x0c\x1c".encode()],
            id="line ends of text are none",
        ),
    ],
)
def test_data_as_in_web_platform_tests(text, data):
    assert data_of(text) == data


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_lines_end_with_cr_lf_or_both(end):
    text = end.join([b":c", b"id:1", b"data:a", b"data:b", b"", b"", b"data:c", b"", b""])
    assert events_of(text) == [(b"a\nb", "message", "1"), (b"c", "message", "1")]


def test_line_ends_may_be_mixed():
    assert data_of(b"data:a\rdata:b\ndata:c\r\n\rdata:d\n\r\ndata:e\r\r\n") == [b"a\nb\nc", b"d", b"e"]


def test_a_carriage_return_ends_the_line_at_once_and_swallows_a_line_feed_to_come():
    framer = SseFramer(LIMIT)
    assert framer.feed(b"data:a\r") == []
    assert framer.feed(b"\r") == [(b"a", "message", None)]
    assert framer.feed(b"\n") == []
    assert framer.feed(b"data:b\r") == []
    assert framer.feed(b"") == []
    assert framer.feed(b"\n") == []
    assert framer.feed(b"\n") == [(b"b", "message", None)]


def test_format_field_event():
    assert events_of(b"event:test\ndata:x\n\ndata:x\n\n") == [(b"x", "test", None), (b"x", "message", None)]


def test_format_field_event_empty():
    assert events_of(b"event: \ndata:data\n\n") == [(b"data", "message", None)]
    assert events_of(b"event:a\nevent\ndata:data\n\n") == [(b"data", "message", None)]


def test_an_event_without_data_gives_its_id_but_not_its_name():
    events, last_id, *_ = however_cut(b"event:add\nid:7\n\ndata:x\n\n")
    assert events == [(b"x", "message", "7")]
    assert last_id == "7"


def test_an_event_name_that_is_no_utf8_is_readable():
    assert events_of(b"event:\xff\nid:\xfe\ndata:x\n\n") == [(b"x", "\ufffd", "\ufffd")]


def test_the_last_id_is_the_one_of_an_ended_event():
    framer = SseFramer(LIMIT)
    assert framer.last_id is None
    framer.feed(b"id:1\ndata:x\n\nid:2\ndata:y\n")
    assert framer.last_id == "1"
    assert framer.feed(b"\n") == [(b"y", "message", "2")]
    assert framer.last_id == "2"


def test_an_id_holds_until_the_next_and_an_empty_one_resets_it():
    text = b"data:a\n\nid:1\ndata:b\n\ndata:c\n\nid:\ndata:d\n\nid: 2\nid:3\ndata:e\n\n"
    assert [event.last_id for event in events_of(text)] == [None, "1", "1", "", "3"]


def test_an_id_with_nul_is_ignored():
    events, last_id, *_ = however_cut(b"id:1\ndata:a\n\nid:2\0\ndata:b\n\nid:\0\0\n\n")
    assert [event.last_id for event in events] == ["1", "1"]
    assert last_id == "1"


@pytest.mark.parametrize(
    ("value", "retry_s"),
    [
        (b"retry:3000", 3.0),
        (b"retry: 3000", 3.0),
        (b"retry:03000", 3.0),
        (b"retry:0", 0.0),
        (b"retry:999999999", 999_999.999),
        (b"retry:1000x", None),
        (b"retry:-1", None),
        (b"retry:+1", None),
        (b"retry:1.5", None),
        (b"retry:1_0", None),
        (b"retry:  1", None),
        (b"retry:1 ", None),
        (b"retry", None),
        (b"retry:", None),
        ("retry:٣".encode(), None),
        (b"retry:1000000000", None),
        (b"retry:" + b"9" * 5000, None),
        (b"Retry:1", None),
    ],
)
def test_retry_is_a_number_of_milliseconds_or_ignored(value, retry_s):
    assert however_cut(value + b"\n", limit=10_000)[2] == retry_s
    earlier = however_cut(b"retry:7\n" + value + b"\n", limit=10_000)[2]
    assert earlier == (0.007 if retry_s is None else retry_s)


def test_a_field_ends_at_its_first_colon():
    assert data_of(b"data:a:b: c\n\n") == [b"a:b: c"]


def test_an_incomplete_event_is_held_and_never_returned():
    events, last_id, _, discarded, held = however_cut(b"data:x\n\n:comment\nid:12\nevent:add\ndata:345\ndat")
    assert events == [(b"x", "message", None)]
    assert last_id is None
    assert not discarded
    assert held == len("12" + "add" + "345" + "dat")
    assert however_cut(b"data:x\n\n:comment")[4] == 0


# --- Limits -------------------------------------------------------------------------------------


def test_data_as_long_as_allowed_are_kept():
    text = b"id: 1\nevent: add\ndata: " + b"x" * LIMIT + b"\n\ndata:" + b"x" * (LIMIT - 2) + b"\ndata:x\n\n"
    events, _, _, discarded, _ = however_cut(text)
    assert events == [(b"x" * LIMIT, "add", "1"), (b"x" * (LIMIT - 2) + b"\nx", "message", "1")]
    assert not discarded


@pytest.mark.parametrize(
    "lines",
    [
        [b"data:" + b"x" * (LIMIT + 1)],
        [b"data: " + b"x" * 50 * LIMIT],
        [b"data:x"] * (LIMIT // 2 + 1),
        [b"data:" + b"x" * LIMIT, b"data"],
        [b"id:" + b"x" * 2 * LIMIT, b"data:x"],
        [b"data:x", b"event:" + b"x" * 2 * LIMIT],
        [b"data:x", b"x" * 2 * LIMIT, b"data:x", b"retry"],
    ],
)
@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_an_oversize_event_is_skipped_to_its_end_and_its_id_is_not_taken(lines, end):
    before, after = [b"id:1", b"data:before", b""], [b"data:after", b"", b""]
    text = end.join([*before, b"id:2", b"event:e", *lines, b":no", b"id:3", b"data:y", b"", *after])
    events, last_id, _, discarded, held = however_cut(text, range(0, len(text), 7))
    assert events == [(b"before", "message", "1"), (b"after", "message", "1")]
    assert last_id == "1"
    assert discarded == Counter(oversize=sum(map(len, [b"id:2", b"event:e", *lines, b"id:3", b"data:y"])))
    assert held == 0


def test_an_overlong_comment_is_only_skipped():
    text = b"id:1\n:" + b"x" * 5000 + b"\ndata:x\n\n:" + b"x" * 5000
    assert however_cut(text, [2500]) == ([(b"x", "message", "1")], "1", None, Counter(), 0)


@pytest.mark.parametrize(
    "chunk",
    [
        b"x" * 999,
        b"data:x\n" * 99,
        b"data\n" * 99,
        b":" * 999,
        b":x\n" * 99,
        b"id:x\n" * 99,
        b"event:" * 99,
        b"x\r" * 99,
        b"data:" + b"x" * (LIMIT - 1) + b"\nid:" + b"x" * (LIMIT - 1),
    ],
)
def test_an_event_without_end_does_not_pile_up(chunk):
    framer = SseFramer(LIMIT)
    for _ in range(1000):
        assert framer.feed(chunk) == []
        assert framer.held_bytes <= LIMIT + ROOM_BYTES


def test_data_one_byte_too_long_are_oversize():
    events, _, _, discarded, _ = however_cut(b"data:" + b"x" * (LIMIT + 1) + b"\n\ndata:y\n\n")
    assert events == [(b"y", "message", None)]
    assert discarded == Counter(oversize=LIMIT + 6)


def test_id_name_and_line_together_keep_within_their_room():
    """With a large limit, so that none of them is too long by itself."""
    lines = [b"id:" + b"1" * 9_000, b"event:" + b"2" * 2_100, b"data:x"]
    text = b"\n".join([*lines, b"", b"data:y", b"", b""])
    events, last_id, _, discarded, _ = however_cut(text, [9_004, 11_111], limit=10_000)
    assert events == [(b"y", "message", None)]
    assert last_id is None
    assert discarded == Counter(oversize=sum(map(len, lines)))


@pytest.mark.parametrize("pattern", [b"x", b"data\n", b"data:ab\n"])
def test_eight_times_the_bytes_in_single_bytes_take_eight_times_the_time(pattern):
    took_s = []
    pieces = [pattern[at : at + 1] for at in range(len(pattern))]
    for size in (40_000, 320_000):
        framer = SseFramer(1 << 24)
        began = process_time()
        framer.feed(b"data:")
        for _ in range(size // len(pieces)):
            for piece in pieces:
                framer.feed(piece)
        took_s.append(process_time() - began)
        assert framer.held_bytes >= size // 5 - 5
    assert took_s[1] < 24 * took_s[0]


def test_a_keep_alive_at_the_very_beginning_is_not_taken_for_a_bom():
    framer = SseFramer(LIMIT)
    assert framer.feed(b"\n\n") == []
    assert framer.held_bytes == 0


def test_no_bytes_are_no_event():
    framer = SseFramer(LIMIT)
    assert framer.feed(b"") == []
    assert framer.held_bytes == 0
