"""Frames come out the same however the bytes were cut, and nothing is dropped uncounted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.errors import FramingLost
from connector.stream.documents import Nesting
from connector.stream.framing import (
    MAX_LENGTH_LINE_BYTES,
    MAX_NOTICE_BYTES,
    MAX_RUBBISH_LINES,
    MAX_SKIP_FRAMES,
    Framer,
    LengthFramer,
    LineFramer,
)

LIMIT = 40

DELIMITERS = (b"\r\n", b"\n", None)
BREAKS = "\N{LINE SEPARATOR}\N{PARAGRAPH SEPARATOR}\x85\x0b\x0c\x1c\x1d\x1e\r"
"""What text, unlike bytes, is split at."""


def cut(data: bytes, at: Iterable[int]) -> Iterator[bytes]:
    """Yield *data* cut at the given places."""
    places = sorted({min(place, len(data)) for place in at} | {0, len(data)})
    for start, end in pairwise(places):
        yield data[start:end]


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    return cut(data, range(len(data)))


def feed_all(framer: Framer[bytes], chunks: Iterable[bytes], most_held: int | None = None) -> list[bytes]:
    """Feed *chunks*, holding the framer to its bound after each."""
    frames: list[bytes] = []
    for chunk in chunks:
        frames += framer.feed(chunk)
        assert framer.held_bytes <= (most_held or max(LIMIT + 2, MAX_LENGTH_LINE_BYTES))
    return frames


Outcome = tuple[list[bytes], str | None, Counter[str], int]
"""Frames, what was said when the framing was lost, bytes discarded and bytes held."""


def outcome(framer: Framer[bytes], chunks: Iterable[bytes]) -> Outcome:
    frames: list[bytes] = []
    lost = None
    try:
        for chunk in (*chunks, b""):  # the last one finds out what the last byte did
            frames += feed_all(framer, [chunk])
    except FramingLost as error:
        lost = str(error)
    return frames, lost, +framer.discarded, framer.held_bytes


def however_cut(make: Callable[[], Framer[bytes]], data: bytes, at: Iterable[int]) -> Outcome:
    """Return what comes of *data*, which must not depend on where they are cut."""
    whole = outcome(make(), [data])
    assert outcome(make(), byte_by_byte(data)) == whole
    assert outcome(make(), cut(data, at)) == whole
    return whole


places = st.lists(st.integers(0, 2000), max_size=30)

# --- Lines --------------------------------------------------------------------------------------

NOTICE = b'{"error":"\xff}\\n"}'
tokens = [
    b"x",
    b"x" * LIMIT,
    b"\r\n",
    b"\n",
    b"\r",
    b"{}",
    b"{}\n",
    b"}\n",
    b"{",
    b"}",
    b"[",
    b'"',
    b"\\",
    b'\\"',
    b" ",
]
line = st.one_of(
    st.sampled_from([b"", b"\r", b"x" * LIMIT, b"x" * (LIMIT + 1), b"x" * (LIMIT + 2), NOTICE, b"{}", b"}"]),
    st.binary(max_size=3 * LIMIT),
    st.lists(st.sampled_from(tokens), max_size=6).map(b"".join),
    st.text(alphabet="ab" + BREAKS, max_size=20).map(str.encode),
)
lines = st.builds(bytes.join, st.sampled_from([b"\r\n", b"\n"]), st.lists(line, max_size=12)) | st.lists(
    st.sampled_from(tokens), max_size=40
).map(b"".join)


def lines_of(data: bytes, delimiter: bytes | None) -> tuple[list[bytes], int, int, int]:
    """Return what a framer must make of *data*: frames, bytes of line ends, of oversize and of the tail.

    Byte after byte, with all of the frame looked at anew for each: slow, and plainly right.
    """
    frames, line_ends, oversize, begun = [], 0, 0, b""
    for at in range(len(data)):
        begun += data[at : at + 1]
        if delimiter is None:
            end = b"\r\n" if begun.endswith(b"\r\n") else b"\n"
        else:
            end = b"\n" if delimiter == b"\r\n" and is_notice(begun) else delimiter
        if not begun.endswith(end):
            continue
        one = begun.removesuffix(end)
        line_ends += len(end)
        if len(one) > LIMIT:
            oversize += len(one)
        elif one:
            frames.append(one)
        begun = b""
    return frames, line_ends, oversize, len(begun)


def is_notice(begun: bytes) -> bool:
    try:
        json.loads(begun.decode(errors="replace"))
    except ValueError:
        return False
    return begun.endswith(b"}\n") and len(begun) - 1 <= min(LIMIT, MAX_NOTICE_BYTES)


@given(st.sampled_from(DELIMITERS), lines, places)
def test_lines_are_the_same_however_cut_and_every_byte_is_accounted_for(delimiter, data, at):
    frames, lost, discarded, held = however_cut(lambda: LineFramer(delimiter, LIMIT), data, at)
    expected, line_ends, oversize, tail = lines_of(data, delimiter)
    assert frames == expected
    assert lost is None
    # An oversize line may be counted while it still comes, and all but a line end's first byte is.
    assert discarded.total() + held == oversize + tail
    assert held <= tail
    assert sum(map(len, frames)) + line_ends + discarded.total() + held == len(data)


def test_a_bare_line_feed_belongs_to_a_frame_that_ends_with_crlf():
    framer = LineFramer(b"\r\n", LIMIT)
    assert framer.feed(b'{"a":\n1}\r\n\n\r\n\r\r\n') == [b'{"a":\n1}', b"\n", b"\r"]


def test_either_line_end_takes_one_carriage_return_off_and_no_more():
    framer = LineFramer(None, LIMIT)
    assert framer.feed(b"a\r\nb\nc\r\r\n\r\n\nd\re\n\rf\n") == [b"a", b"b", b"c\r", b"d\re", b"\rf"]
    assert framer.feed(b"g\r") == []
    assert framer.feed(b"\n") == [b"g"]


@pytest.mark.parametrize("delimiter", DELIMITERS)
def test_lines_are_never_split_where_text_would_be(delimiter):
    body = json.dumps({"text": BREAKS.replace("\r", "")}, ensure_ascii=False).encode() + b"\rx"
    for chunks in ([body + b"\r\n"], byte_by_byte(body + b"\r\n")):
        frames = feed_all(LineFramer(delimiter, 1000), chunks)
        assert frames == [body + b"\r" if delimiter == b"\n" else body]


def test_a_delimiter_may_straddle_two_chunks():
    framer = LineFramer(b"\r\n", LIMIT)
    assert framer.feed(b"one\r") == []
    assert framer.feed(b"\ntwo\r") == [b"one"]
    assert framer.feed(b"\r") == []
    assert framer.feed(b"\n") == [b"two\r"]


@pytest.mark.parametrize("delimiter", [b"\r\n", b"\n"])
@pytest.mark.parametrize("kind", ["exact", "either"])
@pytest.mark.parametrize("size", [LIMIT + 1, LIMIT + 2, LIMIT + 3, 50 * LIMIT])
def test_an_oversize_line_is_skipped_and_the_next_survives(delimiter, kind, size):
    data = delimiter.join([b"before", b"x" * size, b"after", b"", b""])
    for chunks in ([data], byte_by_byte(data)):
        framer = LineFramer(delimiter if kind == "exact" else None, LIMIT)
        assert feed_all(framer, chunks) == [b"before", b"after"]
        assert framer.discarded == Counter(oversize=size)


@pytest.mark.parametrize("delimiter", DELIMITERS)
def test_a_line_as_long_as_allowed_is_kept(delimiter):
    end = delimiter or b"\r\n"
    for chunks in ([b"x" * LIMIT + end], byte_by_byte(b"x" * LIMIT + end)):
        framer = LineFramer(delimiter, LIMIT)
        assert feed_all(framer, chunks) == [b"x" * LIMIT]
        assert framer.discarded.total() == 0


@pytest.mark.parametrize("delimiter", DELIMITERS)
@pytest.mark.parametrize("chunk", [b"x" * 1000, b"x\r" * 500, b'{"":"' + b"}\r" * 500])
def test_a_line_without_end_does_not_pile_up(delimiter, chunk):
    framer = LineFramer(delimiter, LIMIT)
    for _ in range(1000):
        assert framer.feed(chunk) == []
        assert framer.held_bytes <= 1
    assert framer.discarded["oversize"] + framer.held_bytes == 1000 * len(chunk)


def test_a_line_that_never_ended_is_held_and_never_returned():
    framer = LineFramer(b"\r\n", LIMIT)
    assert framer.feed(b"whole\r\nhal") == [b"whole"]
    assert framer.held_bytes == 3


# --- Notices that end with a line feed where statuses end with CRLF ------------------------------

ERROR = b'{"error":{"message":"forced disconnect"}}'
BIG = 100_000


def test_a_notice_is_found_at_once_when_it_is_the_last_thing_received():
    framer = LineFramer(b"\r\n", BIG)
    assert framer.feed(b'{"id":1}\r\n' + ERROR + b"\n") == [b'{"id":1}', ERROR]
    assert framer.held_bytes == 0
    assert [framer.feed(byte) for byte in byte_by_byte(ERROR + b"\n")] == [[]] * len(ERROR) + [[ERROR]]


def test_a_notice_does_not_take_the_status_after_it_along():
    data = ERROR + b"\n" + ERROR + b'\n{"id":1}\r\n' + ERROR + b"\n\r\n\r\n" + b'{"id":2}\r\n'
    for chunks in ([data], byte_by_byte(data)):
        framer = LineFramer(b"\r\n", BIG)
        assert feed_all(framer, chunks, BIG) == [
            ERROR,
            ERROR,
            b'{"id":1}',
            ERROR,
            b'{"id":2}',
        ]


@pytest.mark.parametrize(
    "status",
    [
        b'{"a":{"b":1}\n,"c":[{}\n]}',
        b'{"a":"}\n\\"}\n"}',
        b'[{}\n,{"a":1}\n]',
        b'"{}\n"',
        b'{"a":1}}\n',
        b'}\n{"a":1}\n',
        b'{"a":1} x}\n',
        b'{"a" 1}\n',
        b'x{"a":1}\n',
        b'{"a":1} \n',
        b"{]}\n",
    ],
)
def test_a_line_feed_after_anything_but_a_complete_object_cuts_nothing(status):
    for chunks in ([status + b"\r\n"], byte_by_byte(status + b"\r\n")):
        framer = LineFramer(b"\r\n", BIG)
        assert feed_all(framer, chunks, BIG) == [status]


@pytest.mark.parametrize("delimiter", [b"\n", None])
def test_where_a_line_feed_ends_every_line_notices_are_nothing_special(delimiter):
    framer = LineFramer(delimiter, BIG)
    assert framer.feed(b'{"a":{}\n}\n') == [b'{"a":{}', b"}"]


@pytest.mark.parametrize(("size", "found"), [(MAX_NOTICE_BYTES, True), (MAX_NOTICE_BYTES + 1, False)])
def test_a_notice_is_short(size, found):
    notice = b'{"a":"' + b"x" * (size - 8) + b'"}'
    for chunks in ([notice + b"\n"], byte_by_byte(notice + b"\n")):
        framer = LineFramer(b"\r\n", BIG)
        assert feed_all(framer, chunks, BIG) == [notice] * found


def test_a_notice_is_found_after_a_frame_that_had_none():
    framer = LineFramer(b"\r\n", BIG)
    assert framer.feed(b"x}\n") == []
    assert framer.feed(b'y\r\n{"a":') == [b"x}\ny"]
    assert framer.feed(b"1}\n") == [b'{"a":1}']


def test_a_notice_with_a_byte_that_is_no_utf8_is_as_complete_as_any():
    framer = LineFramer(b"\r\n", BIG)
    assert framer.feed(b'{"a":"\xff"}\n{"id":1}\r\n') == [b'{"a":"\xff"}', b'{"id":1}']


def test_a_notice_longer_than_a_frame_may_be_is_part_of_an_oversize_one():
    notice = b'{"a":"' + b"x" * LIMIT + b'"}'
    frames, _, discarded, held = however_cut(
        lambda: LineFramer(b"\r\n", LIMIT), notice + b"\nx\r\n{}\n", [len(notice) + 1]
    )
    assert frames == [b"{}"]
    assert discarded == Counter(oversize=len(notice) + 2)
    assert held == 0


def test_whether_deep_nesting_is_a_notice_does_not_depend_on_the_stack():
    for depth in (200, 600, 815):
        data = b'{"":' * depth + b"1" + b"}" * depth + b"\n"
        assert LineFramer(b"\r\n", BIG).feed(data) == [data[:-1]]
    too_deep = b'{"":' + b"[" * 1500 + b"]" * 1500 + b"}\n"
    for chunks in ([too_deep], byte_by_byte(too_deep)):
        framer = LineFramer(b"\r\n", BIG)
        assert feed_all(framer, chunks, BIG) == []
        assert framer.held_bytes == len(too_deep)


@pytest.mark.parametrize(
    "line", [b"}\n" * 2000, b'{"' + b"}\n" * 2000, b"{}{}\n" * 700, b"[" + b"{}\n" * 1300]
)
def test_hostile_line_feeds_are_scanned_once(line, monkeypatch):
    scanned = 0
    scan = Nesting.end

    def counted(self, data, at):
        nonlocal scanned
        scanned += len(data) - at
        return scan(self, data, at)

    monkeypatch.setattr(Nesting, "end", counted)
    for chunks in ([line * 9], byte_by_byte(line * 9)):
        scanned = 0
        framer = LineFramer(b"\r\n", BIG)
        assert feed_all(framer, chunks, BIG) == []
        assert scanned <= MAX_NOTICE_BYTES


# --- Lengths ------------------------------------------------------------------------------------


def announced(body: bytes) -> bytes:
    return b"%d\r\n%b" % (len(body), body)


Unit = tuple[bytes, list[bytes], int, int]
"""Bytes of a stream, and what must come of them: frames, bytes discarded as oversize and as no length."""


def kept(body: bytes, end: bytes) -> Unit:
    return announced(body + end), [body], 0, 0


def skipped(size: int, end: bytes) -> Unit:
    return announced(b"x" * size + end), [], size, 0


def rubbish(text: bytes) -> Unit:
    """Return a line that is no length, and a frame: never three such lines in a row."""
    return text + b"\r\n" + announced(b"ok\r\n"), [b"ok"], 0, len(text)


NO_LENGTHS = (b"-3", b"+3", b"3.0", b"0x3", b"3 3", b"three", "٣".encode(), b"1" * 11, b"9999999999", b"{}")

body = (st.binary(min_size=1, max_size=LIMIT) | st.just(b"x" * LIMIT)).filter(
    lambda one: not one.endswith((b"\n", b"\r"))
)
line_end = st.sampled_from([b"\r\n", b"\n", b""])
unit: st.SearchStrategy[Unit] = st.one_of(
    st.builds(kept, body, line_end),
    st.builds(skipped, st.integers(LIMIT + 1, 20 * LIMIT), line_end),
    st.builds(rubbish, st.sampled_from(NO_LENGTHS)),
    st.sampled_from([b"\r\n", b"\n", b" \r\n", b"0\r\n", b"2\r\n\r\n", b"1\n\n"]).map(
        lambda one: (one, [], 0, 0)
    ),
)
length_tokens = st.sampled_from(
    [
        b"\r\n",
        b"\n",
        b"7",
        b"3",
        b"x",
        b"-",
        b"41\r\n",
        b"42\r\n",
        b"43\r\n",
        b"99999",
        b"2560\r\n",
        b"x" * 1020,
    ]
)


@given(st.lists(unit, max_size=10), st.binary(max_size=10), places)
def test_announced_frames_are_the_same_however_cut(units, ahead, at):
    data = b"".join(one[0] for one in units) + b"999\r\n" + ahead
    outcome = however_cut(lambda: LengthFramer(LIMIT), data, at)
    oversize = sum(one[2] for one in units) + len(ahead)
    assert outcome == (
        [frame for one in units for frame in one[1]],
        None,
        +Counter(oversize=oversize, no_length=sum(one[3] for one in units)),
        0,
    )


@given(st.binary(max_size=3000) | st.lists(length_tokens, max_size=30).map(b"".join), places)
def test_garbage_in_place_of_lengths_is_the_same_however_cut(data, at):
    frames, _, discarded, held = however_cut(lambda: LengthFramer(LIMIT), data, at)
    assert all(0 < len(frame) <= LIMIT for frame in frames)
    assert sum(map(len, frames)) + discarded.total() + held <= len(data)


def test_keep_alives_before_a_length_are_dropped():
    framer = LengthFramer(LIMIT)
    assert framer.feed(b"\r\n\r\n\n" + announced(b"one\r\n") + b"\r\n" + announced(b"two\r\n")) == [
        b"one",
        b"two",
    ]
    assert framer.discarded.total() == 0


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


@pytest.mark.parametrize("text", NO_LENGTHS)
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
    assert framer.feed(b"x" * MAX_LENGTH_LINE_BYTES) == []
    with pytest.raises(FramingLost, match="no line end"):
        framer.feed(b"x")
    with pytest.raises(FramingLost, match="no line end"):
        framer.feed(b"\n" + announced(b"abc"))


@pytest.mark.parametrize(
    ("size", "lost"), [(MAX_LENGTH_LINE_BYTES, False), (MAX_LENGTH_LINE_BYTES + 1, True)]
)
def test_a_line_too_long_for_a_length_is_so_also_when_it_comes_whole(size, lost):
    data = b"x" * size + b"\n" + announced(b"abc")
    frames, said, discarded, held = however_cut(lambda: LengthFramer(LIMIT), data, [5])
    assert frames == ([] if lost else [b"abc"])
    assert (said is not None) == lost
    assert discarded == Counter(no_length=size)
    assert held == 0


@pytest.mark.parametrize("end", [b"\r\n", b"\n", b""])
@pytest.mark.parametrize("size", [LIMIT + 1, LIMIT + 2, LIMIT + 3, MAX_SKIP_FRAMES * LIMIT - 2])
def test_a_frame_announced_too_long_is_skipped_and_the_next_survives(size, end):
    data = announced(b"before\r\n") + announced(b"x" * size + end) + announced(b"after\r\n")
    outcome = however_cut(lambda: LengthFramer(LIMIT), data, range(0, len(data), 99))
    assert outcome == ([b"before", b"after"], None, Counter(oversize=size), 0)


def test_an_announced_frame_as_long_as_allowed_is_kept_with_its_line_end():
    framer = LengthFramer(LIMIT)
    assert framer.feed(announced(b"x" * LIMIT + b"\r\n")) == [b"x" * LIMIT]


def test_an_absurd_length_does_not_make_the_reader_deaf():
    framer = LengthFramer(LIMIT)
    absurd = MAX_SKIP_FRAMES * LIMIT + 1
    assert framer.feed(b"%d\r\n" % absurd + announced(b"abc")) == [b"abc"]
    assert framer.discarded == Counter(no_length=len(str(absurd)))


def test_a_frame_that_was_complete_goes_out_before_the_framing_is_given_up():
    for rubbish in (b"x\ny\nz\n", b"x" * (MAX_LENGTH_LINE_BYTES + 1)):
        framer = LengthFramer(100)
        assert framer.feed(b"4\r\nlast" + rubbish) == [b"last"]
        for _ in range(2):
            with pytest.raises(FramingLost):
                framer.feed(b"more\n")


def test_an_oversize_frame_takes_no_memory():
    framer = LengthFramer(20_000)
    assert framer.feed(b"1000000\r\n") == []
    for _ in range(99):
        assert framer.feed(b"x" * 10_000) == []
        assert framer.held_bytes == 0
    assert framer.feed(b"x" * 9_998 + b"\r\n" + announced(b"abc")) == [b"abc"]
    assert framer.discarded == Counter(oversize=999_998)


# --- Both ---------------------------------------------------------------------------------------


def one_byte_feeds_s(framer: Framer[bytes], pattern: bytes, size: int, end: bytes) -> float:
    """Feed a frame of *size* bytes byte by byte, and return how long the processor took."""
    feed = framer.feed
    pieces = [pattern[at : at + 1] for at in range(len(pattern))]
    began = process_time()
    for _ in range(size // len(pieces)):
        for piece in pieces:
            feed(piece)
    took_s = process_time() - began
    (frame,) = feed(end)
    assert abs(len(frame) - size) <= 1
    assert framer.held_bytes == 0
    return took_s


def test_ten_times_the_bytes_take_ten_times_the_time():
    """One run against another, a byte at a time: work that grows with the square would be a hundred times."""
    one, ten = (
        one_byte_feeds_s(LineFramer(b"\r\n", 1 << 24), b"xxxxxxxxxx", size, b"\r\n")
        for size in (1_000_000, 10_000_000)
    )
    assert ten < 25 * one


@pytest.mark.parametrize(
    ("delimiter", "pattern"), [(b"\r\n", b"}\n"), (b"\r\n", b"\n\n"), (None, b"\r\r"), (b"\n", b"\r}")]
)
def test_hostile_line_ends_take_no_more_than_their_share_of_time(delimiter, pattern):
    one, eight = (
        one_byte_feeds_s(LineFramer(delimiter, 1 << 24), pattern, size, delimiter or b"\n")
        for size in (60_000, 480_000)
    )
    assert eight < 24 * one


def test_a_large_announced_frame_in_tiny_chunks_is_read_in_linear_time():
    """Copying it at every byte would take a terabyte of work here: no end."""
    framer = LengthFramer(1 << 22)
    framer.feed(b"2000000\r\n")
    assert one_byte_feeds_s(framer, b"x", 1_999_999, b"x") > 0


@pytest.mark.parametrize("framer", [LineFramer(b"\r\n", LIMIT), LineFramer(None, LIMIT), LengthFramer(LIMIT)])
def test_no_bytes_are_no_frame(framer):
    assert framer.feed(b"") == []
    assert framer.held_bytes == 0
