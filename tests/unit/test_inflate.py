"""What a server compressed comes out whole and at once, however cut, and no bomb fills the memory."""

from __future__ import annotations

import gzip
import struct
import sys
import tracemalloc
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.errors import FramingLost
from connector.stream.inflate import MAX_CREDIT, MAX_PIECE_BYTES, RATIO, Inflate, inflater

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Compress = Callable[[bytes], bytes]


def zlib_format(wbits: int) -> Compress:
    def compress(data: bytes) -> bytes:
        compressor = zlib.compressobj(wbits=wbits)
        return compressor.compress(data) + compressor.flush()

    return compress


def stored(data: bytes) -> bytes:
    compressor = zlib.compressobj(level=0, wbits=-15)
    return compressor.compress(data) + compressor.flush()


def checked_zstd(data: bytes) -> bytes:
    return zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})


CODINGS: dict[str, tuple[str, Compress]] = {
    "identity": ("identity", bytes),
    "gzip": ("gzip", gzip.compress),
    "zlib": ("deflate", zlib_format(15)),
    "zlib with a small window": ("deflate", zlib_format(9)),
    "raw deflate": ("deflate", zlib_format(-15)),
    "stored raw deflate": ("deflate", stored),
    "zstd": ("zstd", zstd.compress),
    "zstd with a checksum": ("zstd", checked_zstd),
}
COMPRESSED = {name: both for name, both in CODINGS.items() if name != "identity"}
MEMBERS = {name: both for name, both in COMPRESSED.items() if both[0] in {"gzip", "zstd"}}

every_coding = pytest.mark.parametrize(("coding", "compress"), CODINGS.values(), ids=CODINGS)
every_compression = pytest.mark.parametrize(("coding", "compress"), COMPRESSED.values(), ids=COMPRESSED)
every_coding_of_members = pytest.mark.parametrize(("coding", "compress"), MEMBERS.values(), ids=MEMBERS)


def skippable(data: bytes) -> bytes:
    return struct.pack("<II", 0x184D2A53, len(data)) + data


def cut(data: bytes, at: Iterable[int]) -> Iterator[bytes]:
    """Yield *data* cut at the given places."""
    places = sorted({min(place, len(data)) for place in at} | {0, len(data)})
    for start, end in pairwise(places):
        yield data[start:end]


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    return cut(data, range(len(data)))


def feed_all(inflate: Inflate, chunks: Iterable[bytes]) -> bytes:
    """Feed *chunks*, holding each piece to its bound: what is not compressed is no larger than its chunk."""
    out: list[bytes] = []
    for chunk in chunks:
        pieces = list(inflate.feed(chunk))
        assert all(0 < len(piece) <= max(MAX_PIECE_BYTES, len(chunk)) for piece in pieces)
        out += pieces
    return b"".join(out)


def until_lost(inflate: Inflate, chunks: Iterable[bytes]) -> tuple[bytes, str]:
    """Feed *chunks* until the framing is lost; return what came out before, and why it was lost."""
    out = bytearray()
    try:
        for chunk in chunks:
            for piece in inflate.feed(chunk):
                assert 0 < len(piece) <= MAX_PIECE_BYTES
                out += piece
    except FramingLost as lost:
        return bytes(out), str(lost)
    pytest.fail("nothing was found wrong")


def lost(coding: str, chunks: Iterable[bytes]) -> str:
    """Return why decoding *chunks* fails."""
    return until_lost(inflater(coding), chunks)[1]


places = st.lists(st.integers(0, 3000), max_size=20)
message = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda byte, size: byte * size, st.binary(min_size=1, max_size=1), st.integers(0, 200_000)),
    st.sampled_from([b"", b"\0", b"\0" * MAX_PIECE_BYTES, b"ab" * MAX_PIECE_BYTES]),
)
NOISE = bytes((index * index * 2654435761 >> 13) & 0xFF for index in range(70_000))
"""Does not compress."""


# --- What comes out -----------------------------------------------------------------------------


@every_coding
@given(message, places)
def test_a_body_is_the_same_however_cut(coding, compress, data, at):
    body = compress(data)
    chunkings = [[body], cut(body, at)]
    if len(body) < 2000:
        chunkings.append(byte_by_byte(body))
    for chunks in chunkings:
        inflate = inflater(coding)
        assert feed_all(inflate, chunks) == data
        assert inflate.is_complete


@every_coding
@pytest.mark.parametrize("chunks", [lambda data: [data], byte_by_byte], ids=["whole", "byte by byte"])
def test_a_body_that_does_not_compress_is_read_too(coding, compress, chunks):
    inflate = inflater(coding)
    assert feed_all(inflate, chunks(compress(NOISE))) == NOISE
    assert inflate.is_complete


@every_compression
def test_all_that_the_bytes_so_far_say_comes_out_at_once(coding, compress):
    """Also where it fills a piece to the last byte, and the decoder has taken all of its input."""
    body = compress(b"x" * 150_000 + NOISE[:50])
    for end in range(0, len(body), max(1, len(body) // 500)):
        if coding == "zstd":
            unbounded = zstd.ZstdDecompressor().decompress(body[:end])
        else:
            wbits = 31 if coding == "gzip" else 15 if body[0] & 0x0F == 8 else -15
            unbounded = zlib.decompressobj(wbits).decompress(body[:end])
        assert feed_all(inflater(coding), [body[:end]]) == unbounded


@every_coding_of_members
@given(st.lists(message, max_size=6), places)
def test_members_follow_one_another(coding, compress, messages, at):
    body = b"".join(map(compress, messages))
    chunkings = [[body], cut(body, at)]
    if len(body) < 2000:
        chunkings.append(byte_by_byte(body))
    for chunks in chunkings:
        inflate = inflater(coding)
        assert feed_all(inflate, chunks) == b"".join(messages)
        assert inflate.is_complete


@every_coding_of_members
def test_a_message_that_is_a_member_comes_out_at_once(coding, compress):
    inflate = inflater(coding)
    for number in range(50):
        text = b'{"id": %d}\r\n' % number
        assert b"".join(inflate.feed(compress(text))) == text
        assert inflate.is_complete


@every_coding_of_members
def test_many_members_in_one_chunk_are_read_in_linear_time(coding, compress):
    """Copying the rest of the chunk for each member would be gigabytes of work here."""
    body = compress(b"") * 20_000
    assert feed_all(inflater(coding), [body]) == b""


@pytest.mark.parametrize(
    ("coding", "wbits"), [("gzip", 31), ("deflate", 15), ("deflate", -15)], ids=["gzip", "zlib", "raw"]
)
@pytest.mark.parametrize("chunks", [lambda data: [data], byte_by_byte], ids=["whole", "byte by byte"])
def test_a_message_that_was_flushed_comes_out_at_once(coding, wbits, chunks):
    compressor = zlib.compressobj(wbits=wbits)
    inflate = inflater(coding)
    for size in (1, 10, 70_000, MAX_PIECE_BYTES, 2 * MAX_PIECE_BYTES, 3):
        text = b"x" * size
        flushed = compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH)
        assert feed_all(inflate, chunks(flushed)) == text
        assert not inflate.is_complete
    assert feed_all(inflate, [compressor.flush()]) == b""
    assert inflate.is_complete


def test_a_zstd_message_that_was_flushed_comes_out_at_once():
    compressor = zstd.ZstdCompressor()
    inflate = inflater("zstd")
    for size in (1, 10, 70_000, MAX_PIECE_BYTES, 2 * MAX_PIECE_BYTES, 3):
        text = b"x" * size
        flushed = compressor.compress(text, zstd.ZstdCompressor.FLUSH_BLOCK)
        assert feed_all(inflate, [flushed]) == text
        assert not inflate.is_complete
    assert feed_all(inflate, [compressor.flush()]) == b""
    assert inflate.is_complete


@pytest.mark.parametrize("padding", [b"\0", b"\0" * 511, b"\0" * 40_000])
def test_zeros_between_and_after_gzip_members_are_padding(padding):
    body = gzip.compress(b"one") + padding + gzip.compress(b"two") + padding
    for chunks in ([body], byte_by_byte(body)):
        inflate = inflater("gzip")
        assert feed_all(inflate, chunks) == b"onetwo"
        assert inflate.is_complete


@pytest.mark.parametrize("chunks", [lambda data: [data], byte_by_byte], ids=["whole", "byte by byte"])
def test_skippable_zstd_frames_are_skipped(chunks):
    body = skippable(b"") + zstd.compress(b"one") + skippable(b"\0" * 30_000) + zstd.compress(b"two")
    inflate = inflater("zstd")
    assert feed_all(inflate, chunks(body + skippable(b"end"))) == b"onetwo"
    assert inflate.is_complete


@pytest.mark.parametrize("window_log", [10, 23])
def test_a_zstd_window_as_large_as_http_allows_is_read(window_log):
    assert feed_all(inflater("zstd"), [zstd_with_window(window_log)]) == b"text"


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("", b"text"),
        (" Identity ", b"text"),
        ("GZIP", gzip.compress(b"text", mtime=0)),
        ("\tx-gzip", gzip.compress(b"text", mtime=0)),
        ("Deflate", zlib.compress(b"text")),
        ("ZStd", zstd.compress(b"text")),
    ],
)
def test_codings_are_known_in_any_case(coding, body):
    assert feed_all(inflater(coding), [body]) == b"text"


@pytest.mark.parametrize("coding", ["br", "compress", "gzip, gzip", "gzip,", "zstd;q=1", "gzip deflate", "*"])
def test_an_unknown_coding_is_refused(coding):
    with pytest.raises(ValueError, match="unknown content coding"):
        inflater(coding)


# --- Where it ends ------------------------------------------------------------------------------


@every_coding
def test_nothing_fed_is_complete(coding, compress):
    inflate = inflater(coding)
    assert inflate.is_complete
    assert feed_all(inflate, [b""]) == b""
    assert inflate.is_complete


@every_compression
def test_a_body_cut_anywhere_before_its_end_is_incomplete(coding, compress):
    body = compress(b"some text, " * 20)
    inflate = inflater(coding)
    for byte in byte_by_byte(body[:-1]):
        feed_all(inflate, [byte])
        assert not inflate.is_complete
    feed_all(inflate, [body[-1:]])
    assert inflate.is_complete


@every_coding_of_members
def test_a_body_cut_within_a_later_member_is_incomplete(coding, compress):
    inflate = inflater(coding)
    assert feed_all(inflate, [compress(b"one") + compress(b"two")[:5]]) == b"one"
    assert not inflate.is_complete


def test_an_uncompressed_body_may_end_anywhere():
    inflate = inflater("identity")
    assert feed_all(inflate, [b'{"id": ']) == b'{"id": '
    assert inflate.is_complete


# --- Damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
@pytest.mark.parametrize("text", [b"<!DOCTYPE html><html>", b'{"id": 1}\r\n' * 9, b"\xff" * 50])
def test_what_is_not_compressed_is_lost(coding, text):
    for chunks in ([text], byte_by_byte(text)):
        assert f"the body is no valid {coding}: " in lost(coding, chunks)


@pytest.mark.parametrize("compress", [zlib.compress, zlib_format(-15), zstd.compress])
def test_another_coding_than_gzip_is_no_gzip(compress):
    assert "no valid gzip" in lost("gzip", [compress(b"text")])


def test_zeros_before_the_first_gzip_member_are_no_padding():
    assert "no valid gzip" in lost("gzip", [b"\0\0" + gzip.compress(b"text")])


@every_coding_of_members
@pytest.mark.parametrize("rubbish", [b"rubbish", b"\r\n\r\n\r\n", b"0\r\n\r\n"])
def test_rubbish_after_a_member_is_lost_and_what_stood_before_it_is_not(coding, compress, rubbish):
    body = compress(b"text") + rubbish
    for chunks in ([body], byte_by_byte(body)):
        text, why = until_lost(inflater(coding), chunks)
        assert text == b"text"
        assert f"no valid {coding}" in why


def test_zeros_are_padding_of_gzip_alone():
    assert "no valid zstd" in lost("zstd", [zstd.compress(b"text") + b"\0" * 8])


@pytest.mark.parametrize("wbits", [15, -15], ids=["zlib", "raw"])
@pytest.mark.parametrize("rubbish", [b"x", b"\0", zlib.compress(b"more")])
def test_bytes_after_a_deflate_body_are_lost(wbits, rubbish):
    body = zlib_format(wbits)(b"text") + rubbish
    for chunks in ([body], byte_by_byte(body)):
        assert "bytes follow the end of the deflate body" in lost("deflate", chunks)


@pytest.mark.parametrize("coding", ["gzip", "zlib", "zstd with a checksum"])
@pytest.mark.parametrize("chunks", [lambda data: [data], byte_by_byte], ids=["whole", "byte by byte"])
def test_a_wrong_checksum_is_lost(coding, chunks):
    name, compress = CODINGS[coding]
    at = -5 if name == "gzip" else -1  # behind gzip's checksum stands a length
    body = bytearray(compress(b"some text"))
    body[at] ^= 1
    assert f"no valid {name}" in lost(name, chunks(bytes(body)))


def test_a_wrong_length_after_a_gzip_member_is_lost():
    body = bytearray(gzip.compress(b"some text"))
    body[-1] ^= 1
    assert "no valid gzip" in lost("gzip", [bytes(body)])


def test_a_zlib_body_that_needs_a_dictionary_is_lost():
    compressor = zlib.compressobj(zdict=b"some text")
    assert "no valid deflate" in lost("deflate", [compressor.compress(b"some text") + compressor.flush()])


def test_a_zstd_window_larger_than_http_allows_is_lost():
    assert "no valid zstd" in lost("zstd", [zstd_with_window(24)])


def zstd_with_window(window_log: int) -> bytes:
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: window_log})
    return compressor.compress(b"text") + compressor.flush()


STARTS = [
    b"", b"\x1f\x8b\x08\0\0\0\0\0\0\xff", b"\x1f\x8b\x08\x1f", b"\x78\x9c", b"\x28\xb5\x2f\xfd", b"\x4b",
    b"\x28\xb5\x2f\xfd\x04\x58", skippable(b"xyz"), gzip.compress(b"x"), zstd.compress(b"x"),
]  # fmt: skip


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
@given(st.sampled_from(STARTS), st.binary(max_size=400), places)
def test_random_bytes_raise_nothing_but_framing_lost(coding, start, data, at):
    body = start + data
    for chunks in ([body], byte_by_byte(body), cut(body, at)):
        inflate = inflater(coding)
        try:
            feed_all(inflate, chunks)
        except FramingLost:
            continue
        assert isinstance(inflate.is_complete, bool)


@every_compression
@given(message, st.data())
def test_damaged_bodies_raise_nothing_but_framing_lost(coding, compress, data, draw):
    body = bytearray(compress(data))
    for _ in range(draw.draw(st.integers(1, 3))):
        body[draw.draw(st.integers(0, len(body) - 1))] = draw.draw(st.integers(0, 255))
    with suppress(FramingLost):
        feed_all(inflater(coding), [bytes(body)])


# --- Bombs --------------------------------------------------------------------------------------

ZEROS = bytes(1 << 20)
GIGABYTE = 1 << 30


def zlib_bomb(wbits: int, size: int) -> bytes:
    """Return the beginning of a body of *size* zeros: its megabytes are all one, and flushed."""
    compressor = zlib.compressobj(9, wbits=wbits)
    head = compressor.compress(ZEROS) + compressor.flush(zlib.Z_FULL_FLUSH)
    again = compressor.compress(ZEROS) + compressor.flush(zlib.Z_FULL_FLUSH)
    return head + again * (size // len(ZEROS) - 1)


def zstd_bomb(size: int) -> bytes:
    """Return a frame of *size* zeros: blocks that name a byte and how often it comes."""
    block_bytes = 128 << 10
    window_of_256_kib = 8 << 3
    more, last = ((block_bytes << 3 | 0b010 | bit).to_bytes(3, "little") + b"\0" for bit in (0, 1))
    return b"\x28\xb5\x2f\xfd\0%c" % window_of_256_kib + more * (size // block_bytes - 1) + last


BOMBS = {
    "gzip": ("gzip", lambda size: zlib_bomb(31, size)),
    "zlib": ("deflate", lambda size: zlib_bomb(15, size)),
    "raw deflate": ("deflate", lambda size: zlib_bomb(-15, size)),
    "zstd": ("zstd", zstd_bomb),
}
every_bomb = pytest.mark.parametrize(("coding", "bomb"), BOMBS.values(), ids=BOMBS)


@every_bomb
@pytest.mark.parametrize("step", [1, 100, 20_000])
def test_a_bomb_of_some_kilobytes_is_lost_before_it_is_large(coding, bomb, step):
    body = bomb(16 << 20)
    assert len(body) < 20_000
    out, why = until_lost(inflater(coding), cut(body, range(0, len(body), step)))
    assert why == f"the {coding} body expands more than 100 times: a compression bomb"
    assert MAX_CREDIT - MAX_PIECE_BYTES < len(out) <= MAX_CREDIT + RATIO * len(body)


@every_bomb
def test_a_bomb_of_a_gigabyte_takes_no_memory(coding, bomb):
    body = bomb(GIGABYTE)
    assert len(body) < 1_200_000
    inflate = inflater(coding)
    tracemalloc.start()
    try:
        with pytest.raises(FramingLost, match="compression bomb"):
            deque(inflate.feed(body), maxlen=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_the_zstd_bomb_is_a_valid_frame():
    assert zstd.decompress(zstd_bomb(1 << 20)) == ZEROS


@every_coding_of_members
def test_a_bomb_in_many_members_is_lost(coding, compress):
    body = compress(ZEROS) * 16
    assert "compression bomb" in lost(coding, [body])
    assert "compression bomb" in lost(coding, byte_by_byte(body))


@every_compression
def test_a_burst_of_sameness_is_no_bomb(coding, compress):
    data = b" " * (MAX_CREDIT // 2)
    assert feed_all(inflater(coding), [compress(data)]) == data


@pytest.mark.parametrize("step", [1000, 1 << 30])
def test_a_stream_that_compresses_well_for_ever_is_no_bomb(step):
    """However large the chunks: what they allow is not capped at once."""
    line = b"\r\n" * 300 + NOISE[:6]
    compressor = zlib.compressobj(wbits=31)
    body = b"".join(compressor.compress(line) + compressor.flush(zlib.Z_SYNC_FLUSH) for _ in range(50_000))
    data_bytes = 50_000 * len(line)
    assert data_bytes / len(body) > 20
    assert data_bytes > 3 * MAX_CREDIT
    assert len(feed_all(inflater("gzip"), cut(body, range(0, len(body), step)))) == data_bytes


def test_what_was_saved_up_is_bounded():
    """Years of honest traffic do not buy a larger bomb."""
    inflate = inflater("gzip")
    for _ in range(20):
        feed_all(inflate, [gzip.compress(NOISE)])
    bomb = zlib_bomb(31, 64 << 20)
    out, why = until_lost(inflate, [bomb])
    assert "compression bomb" in why
    assert len(out) <= MAX_CREDIT + RATIO * len(bomb)


def test_an_uncompressed_body_is_no_bomb_and_is_not_copied():
    data = bytes(3 * MAX_CREDIT + 1)
    (piece,) = inflater("identity").feed(data)
    assert piece is data
