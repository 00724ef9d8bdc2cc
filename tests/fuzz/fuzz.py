"""Feeds the parsers hostile bytes, whole and cut at random, and holds what comes out to be the same.

    python tests/fuzz/fuzz.py [--inputs 5000000] [--seed N] [--parser NAME]

Inputs are drawn from each parser's own alphabet of tokens; most are short, as short ones find nearly
everything. One seed gives one batch of inputs: a failure prints the seed and the input itself. The exit
code is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import gzip
import multiprocessing
import os
import random
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from connector.errors import FramingLost
from connector.stream.documents import DocumentFramer
from connector.stream.framing import MAX_LENGTH_LINE_BYTES, LengthFramer, LineFramer
from connector.stream.inflate import MAX_PIECE_BYTES, inflater, zstd
from connector.stream.sse import ROOM_BYTES, SseFramer

LIMIT = 12
"""The framers' `max_frame_bytes`: small, so that short inputs reach it."""

BATCH = 5_000
"""Inputs from one seed."""

SHOWN = 5
"""Failures printed for one parser."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that must not depend on where the bytes were cut."""

    frames: list[Any]
    lost: str | None
    discarded: Counter[str]
    held_bytes: int
    state: tuple[Any, ...]


def outcome(framer: Any, chunks: Sequence[bytes], most_held: int, state: Sequence[str]) -> Outcome:
    """Feed *chunks* to *framer* and say what came of it."""
    frames: list[Any] = []
    lost = None
    try:
        for chunk in (*chunks, b""):  # the last finds out about framing lost with the last byte
            frames += framer.feed(chunk)
            assert framer.held_bytes <= most_held, f"holds {framer.held_bytes} bytes"
    except FramingLost as error:
        lost = str(error)
    values = tuple(getattr(framer, name) for name in state)
    return Outcome(frames, lost, +framer.discarded, framer.held_bytes, values)


def cuts(data: bytes, rng: random.Random) -> list[bytes]:
    """Return *data* in pieces: single bytes, or cut at a few random places."""
    if rng.random() < 0.25:
        return [data[at : at + 1] for at in range(len(data))]
    places = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(1, 5)))
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


def check_framer(
    make: Callable[[], Any],
    account: Callable[[bytes, Outcome], None],
    most_held: int,
    state: Sequence[str],
    data: bytes,
    rng: random.Random,
) -> None:
    """Compare what *data* gives whole with what it gives in pieces."""
    whole = outcome(make(), [data], most_held, state)
    pieces = cuts(data, rng)
    cut = outcome(make(), pieces, most_held, state)
    assert whole == cut, f"whole {whole}\n  cut {pieces}: {cut}"
    account(data, whole)


# --- Where the bytes went -----------------------------------------------------------------------


def account_lines(delimiter: bytes | None, data: bytes, got: Outcome) -> None:
    """Each byte is in a frame, was discarded, is held, or belongs to a line end."""
    assert got.lost is None
    assert all(0 < len(frame) <= LIMIT for frame in got.frames)
    line_ends = len(data) - sum(map(len, got.frames)) - got.discarded.total() - got.held_bytes
    line_feeds = data.count(b"\n")
    fewest = data.count(delimiter) * len(delimiter) if delimiter else line_feeds
    most = line_feeds if delimiter == b"\n" else line_feeds + data.count(b"\r\n")
    assert fewest <= line_ends <= most, f"{line_ends} bytes unaccounted for: {got}"
    if delimiter == b"\n":
        expected = [line for line in data.split(b"\n")[:-1] if 0 < len(line) <= LIMIT]
        assert got.frames == expected
    if delimiter is None:
        lines = [line.removesuffix(b"\r") for line in data.split(b"\n")[:-1]]
        assert got.frames == [line for line in lines if 0 < len(line) <= LIMIT]
    if delimiter == b"\r\n" and b"}\n" not in data:
        assert got.frames == [line for line in data.split(b"\r\n")[:-1] if 0 < len(line) <= LIMIT]


def account_length(data: bytes, got: Outcome) -> None:
    """No byte is counted twice; which ones made up the lengths is not told."""
    assert all(0 < len(frame) <= LIMIT for frame in got.frames)
    assert sum(map(len, got.frames)) + got.discarded.total() + got.held_bytes <= len(data)


def account_documents(data: bytes, got: Outcome) -> None:
    """Each byte is in a frame, was discarded, is held, or is white space between documents."""
    assert got.lost is None
    assert all(2 <= len(frame) <= LIMIT for frame in got.frames)
    rest = len(data) - sum(map(len, got.frames)) - got.discarded.total() - got.held_bytes
    assert 0 <= rest <= sum(map(data.count, (b" ", b"\t", b"\r", b"\n")))
    assert all(frame[:1] in b"{[" and frame[-1:] in b"}]" and frame in data for frame in got.frames)


def account_sse(data: bytes, got: Outcome) -> None:
    """The events are those of a reader that looks at the whole text, line by line."""
    assert got.lost is None
    assert sum(len(one.data) for one in got.frames) + got.discarded.total() + got.held_bytes <= len(data)
    if not got.discarded:
        text = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        assert got.frames == list(standard_events(text))


def standard_events(text: bytes) -> Iterator[tuple[bytes, str, str | None]]:
    """Yield the events in *text*, by the letter of the standard."""
    last_id, buffer, data, name = None, None, b"", b""
    for line in text.split(b"\n")[:-1]:
        if not line:
            last_id = buffer
            if data:
                decoded = None if last_id is None else last_id.decode(errors="replace")
                yield data[:-1], name.decode(errors="replace") or "message", decoded
            data, name = b"", b""
        elif not line.startswith(b":"):
            key, _, value = line.partition(b":")
            value = value[1:] if value.startswith(b" ") else value
            if key == b"data":
                data += value + b"\n"
            elif key == b"event":
                name = value
            elif key == b"id" and b"\0" not in value:
                buffer = value


# --- The parsers --------------------------------------------------------------------------------

_X = [b"x", b"xx", b"x" * (LIMIT - 1), b"x" * LIMIT, b"x" * (LIMIT + 1), b"x" * (LIMIT + 2)]
_ENDS = [b"\r\n", b"\r\n", b"\n", b"\n", b"\r", b"\n\n", b"\r\r\n"]
_JSON = [
    b"{}",
    b"{}\n",
    b'{"":1}',
    b'{"}',
    b"}\n",
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"\\",
    b'\\"',
    b"1",
    b":",
    b",",
]
_BREAKS = ["\N{LINE SEPARATOR}".encode(), b"\x0b", b"\x1c", b"\x85", b"\xff", b"\0"]

_LONG_OBJECT = b'{"":"' + b"x" * LIMIT + b'"}'
LINE_TOKENS = [_LONG_OBJECT, b'{"":"\xff"}', *_X, *_ENDS, *_JSON, *_BREAKS, b" "]
_SHORT_LENGTH_TOKENS = [
    *_X, *_ENDS, *_ENDS, *(b"%d\r\n" % n for n in range(LIMIT + 6)), *(b"%d" % n for n in range(10)),
    b"%d\r\n" % (64 * LIMIT), b"%d\r\n" % (64 * LIMIT + 1), b"9999999999\r\n", b"-3", b"+3", b"3 3", b"00002",
    "٣".encode(), b" ", b"\t", b"{}", b"1" * 11,
]  # fmt: skip
LENGTH_TOKENS = [*_SHORT_LENGTH_TOKENS * 8, b"x" * (MAX_LENGTH_LINE_BYTES - 1), b"x" * MAX_LENGTH_LINE_BYTES]
DOCUMENT_TOKENS = [
    *_X[:4],
    *_JSON,
    *_JSON,
    *_BREAKS,
    b" ",
    b"\t",
    b"\r\n",
    b'""',
    b"[]",
    b"[{}]",
    b"\\\\",
    b"null",
]
_SHORT_SSE_TOKENS = [
    *_ENDS, *_ENDS, *_BREAKS, *_X,
    b"data", b"data:", b"data: ", b"data:x\n", b"data: x\r\n\r\n", b"data\n\n",
    b"event:", b"event: e\n", b"event\n", b"id:", b"id: 1\n", b"id\n", b"id:\0\n", b"retry:", b"retry: 1\n",
    b"retry:\n", b"1", b"9" * 10, b":", b": x\n", b" ", b"\xef\xbb\xbf", b"\xef", b"\xbb", b"\xbf",
    b"Data:x\n", b"\r",
]  # fmt: skip
SSE_TOKENS = [*_SHORT_SSE_TOKENS * 8, b"x" * ROOM_BYTES, b"\nid:" + b"x" * LIMIT, b":" + b"x" * 50]

_TEXT = b'{"id":1}\n' * 3


def _raw_deflate(text: bytes) -> bytes:
    squeezed = zlib.compressobj(wbits=-15)
    return squeezed.compress(text) + squeezed.flush()


_CODED = {
    "gzip": [gzip.compress(_TEXT, mtime=0), gzip.compress(b"", mtime=0)],
    "deflate": [zlib.compress(_TEXT), _raw_deflate(_TEXT)],
    "zstd": [zstd.compress(_TEXT), zstd.compress(b""), b"\x50\x2a\x4d\x18\x02\0\0\0xx"],
}


def inflate_tokens(coding: str) -> list[bytes]:
    """Return whole members, their halves and single bytes of them, and rubbish."""
    whole = _CODED[coding]
    halves = [
        half for one in whole for half in (one[: len(one) // 2], one[len(one) // 2 :], one[:-4], one[-4:])
    ]
    return [*whole * 4, *halves, *(bytes([byte]) for byte in {*whole[0]}), b"\0", b"\0" * 9, b"\xff", b"xx"]


def check_inflate(coding: str, data: bytes, rng: random.Random) -> None:
    """The text, and whether it ends or breaks, is the same however the bytes were cut.

    Not for zstd: its library looks at a damaged frame's sizes only where it has the whole of it at once, so
    the verdict on damage may differ; the text up to there may not.
    """

    def inflated(chunks: Sequence[bytes]) -> tuple[bytes, bool, bool]:
        one, text = inflater(coding), bytearray()
        try:
            for chunk in chunks:
                for piece in one.feed(chunk):
                    assert 0 < len(piece) <= MAX_PIECE_BYTES
                    text += piece
        except FramingLost:
            return bytes(text), True, False
        return bytes(text), False, one.is_complete

    whole, is_lost, is_complete = inflated([data])
    cut, *rest = inflated(cuts(data, rng))
    if coding == "zstd" and rest != [is_lost, is_complete]:
        assert cut.startswith(whole) or whole.startswith(cut), f"whole {whole!r}, cut {cut!r}"
        return
    assert rest == [is_lost, is_complete], f"whole {is_lost, is_complete}, cut {rest}"
    # A decoder that meets damage keeps what it had not handed out yet.
    assert cut.startswith(whole) if is_lost else cut == whole, f"whole {whole!r}, cut {cut!r}"


Check = Callable[[bytes, random.Random], None]


def _lines(delimiter: bytes | None) -> Check:
    make = partial(LineFramer, delimiter, LIMIT)
    return partial(check_framer, make, partial(account_lines, delimiter), LIMIT + 1, ())


_SSE_STATE = ("last_id", "retry_s")

PARSERS: dict[str, tuple[Sequence[bytes], Check]] = {
    **{f"inflate-{coding}": (inflate_tokens(coding), partial(check_inflate, coding)) for coding in _CODED},
    "length": (
        LENGTH_TOKENS,
        partial(check_framer, partial(LengthFramer, LIMIT), account_length, MAX_LENGTH_LINE_BYTES, ()),
    ),
    "lines-crlf": (LINE_TOKENS, _lines(b"\r\n")),
    "lines-lf": (LINE_TOKENS, _lines(b"\n")),
    "lines-either": (LINE_TOKENS, _lines(None)),
    "documents": (
        DOCUMENT_TOKENS,
        partial(check_framer, partial(DocumentFramer, LIMIT), account_documents, LIMIT, ()),
    ),
    "sse": (
        SSE_TOKENS,
        partial(check_framer, partial(SseFramer, LIMIT), account_sse, LIMIT + ROOM_BYTES, _SSE_STATE),
    ),
}
"""Each parser's alphabet, and what raises if it treats an input differently when that is cut."""


# --- The run ------------------------------------------------------------------------------------


def batch(job: tuple[str, int, int]) -> tuple[int, list[str]]:
    """Check the inputs of one seed; return how many they were, and what failed."""
    name, seed, count = job
    tokens, check = PARSERS[name]
    rng = random.Random(f"{name} {seed}")
    failures = []
    for _ in range(count):
        data = b"".join(rng.choices(tokens, k=rng.choice((2, 4, 6, 8, 10, 12, 30))))
        try:
            check(data, rng)
        except Exception as error:  # noqa: BLE001  # whatever a parser does wrong is what this looks for
            failures.append(f"seed {seed}: {data!r}\n  {type(error).__name__}: {error}")
    return count, failures


def run(pool: Any, name: str, inputs: int, first_seed: int) -> int:
    """Check one parser, print how it went, and return the number of failures."""
    began = time.perf_counter()
    jobs = [
        (name, first_seed + index, min(BATCH, inputs - at))
        for index, at in enumerate(range(0, inputs, BATCH))
    ]
    done, failures = 0, []
    for count, failed in pool.imap_unordered(batch, jobs):
        done += count
        failures += failed
    seconds = time.perf_counter() - began
    told = [f"{name:13} {done:10,} inputs {seconds:8.1f} s {len(failures):6} failures", *failures[:SHOWN]]
    sys.stdout.write("\n  ".join(told) + "\n")
    sys.stdout.flush()
    return len(failures)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=5_000_000, help="for each parser")
    parser.add_argument("--seed", type=int, default=1, help="of the first batch; the next ones count on")
    parser.add_argument("--parser", choices=sorted(PARSERS), help="only this one")
    options = parser.parse_args()
    names = [options.parser] if options.parser else list(PARSERS)
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        failures = sum(run(pool, name, options.inputs, options.seed) for name in names)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
