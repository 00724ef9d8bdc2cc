"""Content codings, undone as the bytes arrive. Pure; memory stays flat however far the bytes expand.

One contract for all codings: `feed` takes the next bytes, however cut, and yields everything that can be
decoded of them at once, so a message that the server flushed is never held back. httpx decodes too, but
stops silently after the first gzip member, and knows no bound.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from connector.errors import FramingLost

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_PIECE_BYTES = 64 << 10
"""The largest piece that a compressed body yields."""

RATIO = 100
"""How far a body may expand in the long run.

JSON streams compress 5 to 20 times, and keep-alives alone some more; deflate ends at 1032 times and zstd
far beyond, which nothing but a bomb comes near.
"""

MAX_CREDIT = 8 << 20
"""Bytes that a body may expand to beyond `RATIO`: a burst of sameness is no bomb yet.

As much as zstd's window, so that the bound costs no more memory than the coding does by itself.
"""

_SLICE_BYTES = 16 << 10
"""Input is decoded in slices: what a decoder leaves over is copied, and must not be copied whole each time.

`RATIO` times a slice is below `MAX_CREDIT`, so that the verdict does not depend on how the bytes were cut.
"""

_ZSTD_WINDOW_LOG = 23
"""8 MiB, the most that HTTP allows (RFC 9659); a frame may ask for 2 GiB and more."""

_ZLIB, _RAW_DEFLATE, _GZIP = 15, -15, 31  # zlib's names for them, each with the largest window
_DEFLATE_METHOD = 8


class Inflate(Protocol):
    """What undoes one body's coding."""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Take the next bytes and yield what they decode to.

        No piece is longer than *chunk*, or than `MAX_PIECE_BYTES`. Exhaust the iterator before feeding more.

        Raises:
            FramingLost: the bytes are not in this coding, are damaged, or expand out of all proportion;
                nothing more can be fed.
        """
        ...

    @property
    def is_complete(self) -> bool:
        """Whether the body may end here: False where a member still lacks its end."""
        ...


def inflater(coding: str) -> Inflate:
    """Return what undoes *coding*, a Content-Encoding header's value.

    Raises:
        ValueError: this coding is unknown; so is a list of several.
    """
    match coding.strip().lower():
        case "" | "identity":
            return _Identity()
        case "gzip" | "x-gzip":
            return _Members("gzip", lambda _: _Zlib(_GZIP), padding=b"\0")
        case "deflate":
            return _Members("deflate", _deflate, is_single=True)
        case "zstd":
            return _Members("zstd", _zstd)
        case _:
            raise ValueError(f"unknown content coding {coding!r}")


class _Identity:
    is_complete = True

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        if chunk:
            yield chunk


class _Decoder(Protocol):
    """One member's decoder, as bz2 and zstd have it.

    Attributes:
        eof: the member ended and its checksum was right; `unused_data` holds what followed.
    """

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /, max_length: int) -> bytes: ...


class _Zlib:
    """Gives zlib's decoder the manners of `_Decoder`: it keeps its own unconsumed input."""

    def __init__(self, wbits: int) -> None:
        self._zlib = zlib.decompressobj(wbits)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, /, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


def _deflate(first: bytes) -> _Decoder:
    """Return a decoder for zlib's format, or for the raw one that some servers send in its place.

    The first byte tells: in zlib's its low half is 8, which begins no raw one, as there it would be a
    stored block with padding bits that are not zero.
    """
    is_wrapped = first[0] & 0x0F == _DEFLATE_METHOD
    return _Zlib(_ZLIB if is_wrapped else _RAW_DEFLATE)


def _zstd(_: bytes) -> _Decoder:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})


@dataclass(slots=True)
class _Members:
    """A body of members (zstd says frames), one after another; some servers send one per message.

    Attributes:
        start: makes the decoder of the member that begins with these bytes.
        padding: byte that may stand after a member.
        is_single: nothing may follow the first member.
    """

    coding: str
    start: Callable[[bytes], _Decoder]
    padding: bytes = b""
    is_single: bool = False
    _decoder: _Decoder | None = field(default=None, init=False)  # of the member not yet ended
    _has_ended_one: bool = field(default=False, init=False)
    _credit: int = field(default=MAX_CREDIT, init=False)  # a leaky bucket: bytes that may come out

    @property
    def is_complete(self) -> bool:
        return self._decoder is None

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        for at in range(0, len(chunk), _SLICE_BYTES):
            data = chunk[at : at + _SLICE_BYTES]
            self._credit = min(MAX_CREDIT, self._credit + RATIO * len(data))
            while data:  # one turn a member, each of which takes at least a byte
                data = yield from self._member(data)

    def _member(self, data: bytes) -> Generator[bytes, None, bytes]:
        """Yield what *data* holds of one member and return what follows that member's end."""
        if self._decoder is None:
            if self._has_ended_one:
                data = data.lstrip(self.padding)
                if data and self.is_single:
                    raise FramingLost(f"bytes follow the end of the {self.coding} body: {data[:40]!r}")
            if not data:
                return b""
            self._decoder = self.start(data)
        decoder = self._decoder
        # A decoder that has nothing more to give gives nothing; what it gives is taken off the credit.
        while piece := self._decompress(decoder, data):
            yield piece
            if decoder.eof:
                break
            data = b""
        if not decoder.eof:
            return b""
        self._decoder = None
        self._has_ended_one = True
        return decoder.unused_data

    def _decompress(self, decoder: _Decoder, data: bytes) -> bytes:
        try:
            piece = decoder.decompress(data, max_length=MAX_PIECE_BYTES)
        except (zlib.error, zstd.ZstdError) as error:
            raise FramingLost(f"the body is no valid {self.coding}: {error}") from error
        self._credit -= len(piece)
        if self._credit < 0:
            raise FramingLost(f"the {self.coding} body expands more than {RATIO} times: a compression bomb")
        return piece
