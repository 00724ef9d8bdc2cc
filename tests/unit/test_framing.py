"""Frames come out the same however the bytes were cut, and nothing is dropped uncounted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.errors import FramingLost
from connector.stream.framing import MAX_RUBBISH_LINES, Framer, LengthFramer, LineFramer

LIMIT = 40
LINE_OF_LENGTH_BYTES = 1024
"""Longest line that may stand where a length is due."""

DELIMITERS = (b"\r\n", b"\n")
BREAKS = "\N{LINE SEPARATOR}\N{PARAGRAPH SEPARATOR}\x85\x0b\x0c\x1c\x1d\x1e\r"
"""What text, unlike bytes, is split at."""


def cut(data: bytes, at: Iterable[int]) -> Iterator[bytes]:
    """Yield *data* cut at the given places."""
    places = sorted({min(place, len(data)) for place in at} | {0, len(data)})
    for start, end in pairwise(places):
        yield data[start:end]


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    return cut(data, range(len(data)))


def feed_all(framer: Framer, chunks: Iterable[bytes]) -> list[bytes]:
    """Feed *chunks*, holding the framer to its bound after each."""
    frames: list[bytes] = []
    for chunk in chunks:
        frames += framer.feed(chunk)
        assert framer.held_bytes <= max(LIMIT + 2, LINE_OF_LENGTH_BYTES)
    return frames


places = st.lists(st.integers(0, 2000), max_size=30)

# --- Lines --------------------------------------------------------------------------------------

line = st.one_of(
    st.sampled_from([b"", b"\n", b"\r", b"x" * LIMIT, b"x" * (LIMIT + 1), b"x" * (LIMIT + 2)]),
    st.binary(max_size=3 * LIMIT),
    st.text(alphabet="ab" + BREAKS, max_size=20).map(str.encode),
)


def lines_of(data: bytes, delimiter: bytes) -> tuple[list[bytes], int, list[bytes]]:
    """Return what a framer must make of *data*: frames, keep-alives and the oversize."""
    *whole, _tail = data.split(delimiter)
    fitting = [one for one in whole if len(one) <= LIMIT]
    frames = [one for one in fitting if one]
    return frames, len(fitting) - len(frames), [one for one in whole if len(one) > LIMIT]


@given(st.sampled_from(DELIMITERS), st.lists(line, max_size=12), places)
def test_lines_are_the_same_however_cut(delimiter, lines, at):
    data = delimiter.join(lines)
    frames, heartbeats, _ = lines_of(data, delimiter)
    for chunks in ([data], byte_by_byte(data), cut(data, at)):
        framer = LineFramer(delimiter, LIMIT)
        assert feed_all(framer, chunks) == frames
        assert framer.heartbeats == heartbeats


@given(st.sampled_from(DELIMITERS), st.binary(max_size=600) | st.text("\r\nx").map(str.encode), places)
def test_lines_of_garbage_are_the_same_however_cut(delimiter, data, at):
    frames, heartbeats, _ = lines_of(data, delimiter)
    for chunks in ([data], byte_by_byte(data), cut(data, at)):
        framer = LineFramer(delimiter, LIMIT)
        assert feed_all(framer, chunks) == frames
        assert framer.heartbeats == heartbeats


@given(st.sampled_from(DELIMITERS), st.lists(line, max_size=12), places)
def test_every_byte_of_a_line_is_a_frame_a_delimiter_held_or_counted(delimiter, lines, at):
    data = delimiter.join(lines)
    frames, heartbeats, oversize = lines_of(data, delimiter)
    for chunks in ([data], byte_by_byte(data), cut(data, at)):
        framer = LineFramer(delimiter, LIMIT)
        feed_all(framer, chunks)
        used = sum(map(len, frames)) + len(delimiter) * (len(frames) + heartbeats)
        unused = len(data) - used - framer.held_bytes
        # Whether the delimiter of an oversize frame counts with it is nobody's business.
        assert unused - len(delimiter) * len(oversize) <= framer.discarded.total() <= unused


def test_a_bare_line_feed_belongs_to_a_frame_that_ends_with_crlf():
    framer = LineFramer(b"\r\n", LIMIT)
    assert framer.feed(b'{"a":\n1}\r\n\n\r\n\r\r\n') == [b'{"a":\n1}', b"\n", b"\r"]
    assert framer.heartbeats == 0


@pytest.mark.parametrize("delimiter", DELIMITERS)
def test_lines_are_never_split_where_text_would_be(delimiter):
    body = json.dumps({"text": BREAKS.replace("\r", "")}, ensure_ascii=False).encode()
    for chunks in ([body + delimiter], byte_by_byte(body + delimiter)):
        assert feed_all(LineFramer(delimiter, 1000), chunks) == [body]


def test_a_delimiter_may_straddle_two_chunks():
    framer = LineFramer(b"\r\n", LIMIT)
    assert framer.feed(b"one\r") == []
    assert framer.feed(b"\ntwo\r") == [b"one"]
    assert framer.feed(b"\r") == []
    assert framer.feed(b"\n") == [b"two\r"]


@pytest.mark.parametrize("delimiter", DELIMITERS)
@pytest.mark.parametrize("size", [LIMIT + 1, LIMIT + 2, LIMIT + 3, 50 * LIMIT])
def test_an_oversize_line_is_skipped_and_the_next_survives(delimiter, size):
    data = delimiter.join([b"before", b"x" * size, b"after", b"", b""])
    for chunks in ([data], byte_by_byte(data)):
        framer = LineFramer(delimiter, LIMIT)
        assert feed_all(framer, chunks) == [b"before", b"after"]
        assert size <= framer.discarded["oversize"] <= size + len(delimiter)
        assert framer.heartbeats == 1


@pytest.mark.parametrize("delimiter", DELIMITERS)
def test_a_line_as_long_as_allowed_is_kept(delimiter):
    for chunks in ([b"x" * LIMIT + delimiter], byte_by_byte(b"x" * LIMIT + delimiter)):
        framer = LineFramer(delimiter, LIMIT)
        assert feed_all(framer, chunks) == [b"x" * LIMIT]
        assert framer.discarded.total() == 0


def test_a_line_without_end_does_not_pile_up():
    framer = LineFramer(b"\r\n", LIMIT)
    for _ in range(1000):
        assert framer.feed(b"x" * 1000) == []
        assert framer.held_bytes <= 1
    assert framer.discarded["oversize"] + framer.held_bytes == 1_000_000


def test_a_line_that_never_ended_is_held_and_never_returned():
    framer = LineFramer(b"\r\n", LIMIT)
    assert framer.feed(b"whole\r\nhal") == [b"whole"]
    assert framer.held_bytes == 3


# --- Lengths ------------------------------------------------------------------------------------


def announced(body: bytes) -> bytes:
    return b"%d\r\n%b" % (len(body), body)


Unit = tuple[bytes, list[bytes], int, int]
"""Bytes of a stream, and what must come of them: frames, keep-alives, bytes discarded."""


def kept(body: bytes, end: bytes) -> Unit:
    return announced(body + end), [body], 0, 0


def skipped(size: int) -> Unit:
    return announced(b"x" * size), [], 0, size


def rubbish(text: bytes) -> Unit:
    """Return a line that is no length, and a frame: never three such lines in a row."""
    return text + b"\r\n" + announced(b"ok\r\n"), [b"ok"], 0, len(text)


body = (st.binary(min_size=1, max_size=LIMIT) | st.just(b"x" * LIMIT)).filter(
    lambda one: not one.endswith(b"\n")
)
unit: st.SearchStrategy[Unit] = st.one_of(
    st.builds(kept, body, st.sampled_from([b"\r\n", b"\n", b""])),
    st.builds(skipped, st.integers(LIMIT + 3, 20 * LIMIT)),
    st.builds(rubbish, st.sampled_from([b"-5", b"+5", b"abc", b"5 5", b"1" * 11, "٣".encode(), b"{}"])),
    st.sampled_from([(b"\r\n", [], 1, 0), (b"\n", [], 1, 0), (b" \r\n", [], 1, 0), (b"0\r\n", [], 0, 0)]),
)


@given(st.lists(unit, max_size=10), st.binary(max_size=10), places)
def test_announced_frames_are_the_same_however_cut(units, ahead, at):
    data = b"".join(one[0] for one in units) + b"99999\r\n" + ahead
    expected = [frame for one in units for frame in one[1]]
    for chunks in ([data], byte_by_byte(data), cut(data, at)):
        framer = LengthFramer(LIMIT)
        assert feed_all(framer, chunks) == expected
        assert framer.heartbeats == sum(one[2] for one in units)
        assert framer.discarded.total() == sum(one[3] for one in units) + len(ahead)


@given(
    st.binary(max_size=3000)
    | st.lists(st.sampled_from([b"\r\n", b"\n", b"7", b"3", b"x", b"-", b"41\r\n", b"99999"])).map(b"".join),
    places,
)
def test_garbage_in_place_of_lengths_raises_nothing_but_framing_lost(data, at):
    for chunks in ([data], byte_by_byte(data), cut(data, at)):
        framer = LengthFramer(LIMIT)
        try:
            frames = feed_all(framer, chunks)
        except FramingLost:
            continue
        assert all(0 < len(frame) <= LIMIT + 2 for frame in frames)
        counted = sum(map(len, frames)) + framer.discarded.total() + framer.held_bytes
        assert counted <= len(data)


def test_keep_alives_before_a_length_are_counted():
    framer = LengthFramer(LIMIT)
    assert framer.feed(b"\r\n\r\n\n" + announced(b"one\r\n") + b"\r\n" + announced(b"two\r\n")) == [
        b"one",
        b"two",
    ]
    assert framer.heartbeats == 4


def test_one_line_end_is_stripped_and_no_more():
    framer = LengthFramer(LIMIT)
    data = b"".join(map(announced, [b"a\r\n", b"b\n", b"c", b"d\r\n\r\n", b" e \r\n", b"f\r"]))
    assert framer.feed(data) == [b"a", b"b", b"c", b"d\r\n", b" e ", b"f\r"]


def test_a_line_end_within_an_announced_frame_belongs_to_it():
    body = json.dumps({"text": BREAKS}, ensure_ascii=False).encode() + b"\r\n3\r\nabc"
    for chunks in ([announced(body)], byte_by_byte(announced(body))):
        assert feed_all(LengthFramer(1000), chunks) == [body]


def test_a_length_may_straddle_two_chunks():
    framer = LengthFramer(LIMIT)
    assert framer.feed(b"1") == []
    assert framer.feed(b"2\r") == []
    assert framer.feed(b"\nhello worl") == []
    assert framer.held_bytes == len("hello worl")
    assert framer.feed(b"d!3\r\nab") == [b"hello world!"]
    assert framer.feed(b"c") == [b"abc"]


@pytest.mark.parametrize("text", [b"-3", b"+3", b"3.0", b"0x3", b"3 3", b"three", "٣".encode(), b"1" * 11])
def test_what_is_no_length_is_skipped_and_counted(text):
    framer = LengthFramer(LIMIT)
    assert framer.feed(text + b"\r\n" + announced(b"abc")) == [b"abc"]
    assert framer.discarded == {"no_length": len(text)}


@pytest.mark.parametrize("chunks", [lambda data: [data], byte_by_byte], ids=["whole", "byte by byte"])
def test_three_lines_in_a_row_that_are_no_length_lose_the_framing(chunks):
    framer = LengthFramer(LIMIT)
    with pytest.raises(FramingLost, match="expected a length, got b'third'"):
        feed_all(framer, chunks(b"first\r\nsecond\r\n\r\nthird\r\n"))
    assert MAX_RUBBISH_LINES == 3


def test_a_length_between_rubbish_forgives_it():
    framer = LengthFramer(LIMIT)
    for _ in range(10):
        assert framer.feed(b"x\ny\n" + announced(b"abc")) == [b"abc"]
    assert framer.discarded == {"no_length": 20}


def test_a_line_without_end_where_a_length_should_stand_loses_the_framing():
    framer = LengthFramer(LIMIT)
    assert framer.feed(b"x" * LINE_OF_LENGTH_BYTES) == []
    with pytest.raises(FramingLost, match="no line end"):
        framer.feed(b"x")


@pytest.mark.parametrize("size", [LIMIT + 3, 1_000_000])
def test_a_frame_announced_too_long_is_skipped_and_the_next_survives(size):
    data = announced(b"before\r\n") + announced(b"x" * size) + announced(b"after\r\n")
    for chunks in ([data], cut(data, range(0, len(data), 999))):
        framer = LengthFramer(LIMIT)
        assert feed_all(framer, chunks) == [b"before", b"after"]
        assert framer.discarded == {"oversize": size}


def test_an_announced_frame_as_long_as_allowed_is_kept_with_its_line_end():
    framer = LengthFramer(LIMIT)
    assert framer.feed(announced(b"x" * LIMIT + b"\r\n")) == [b"x" * LIMIT]


def test_an_absurd_length_takes_no_memory():
    framer = LengthFramer(LIMIT)
    assert framer.feed(b"9999999999\r\n") == []
    for _ in range(100):
        assert framer.feed(b"x" * 10_000) == []
        assert framer.held_bytes == 0
    assert framer.discarded == {"oversize": 1_000_000}


# --- Both ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "framer", [LineFramer(b"\r\n", 1 << 22), LengthFramer(1 << 22)], ids=["lines", "length"]
)
def test_a_large_frame_in_tiny_chunks_is_read_in_linear_time(framer):
    """Searching or copying from the start at every byte would take a terabyte of work here: no end."""
    body = b"x" * 2_000_000
    data = announced(body + b"\r\n") if isinstance(framer, LengthFramer) else body + b"\r\n"
    frames = [frame for at in range(len(data)) for frame in framer.feed(data[at : at + 1])]
    assert frames == [body]
    assert framer.held_bytes == 0


@pytest.mark.parametrize("framer", [LineFramer(b"\r\n", LIMIT), LengthFramer(LIMIT)], ids=["lines", "length"])
def test_no_bytes_are_no_frame(framer):
    assert framer.feed(b"") == []
    assert framer.heartbeats == 0
    assert framer.held_bytes == 0


def test_a_frame_that_was_complete_goes_out_before_the_framing_is_given_up():
    """However the bytes were cut."""
    framer = LengthFramer(100)
    assert framer.feed(b"4\r\nlast" + b"x\ny\nz\n") == [b"last"]
    with pytest.raises(FramingLost):
        framer.feed(b"more\n")
