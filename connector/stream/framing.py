"""Bytes to frames. Pure; linear in the bytes fed, bounded by `max_frame_bytes`.

All framers keep one contract: `feed` takes the next bytes and returns the frames they complete, the same
ones however the bytes are cut, without their line ends; blank frames are keep-alives and dropped. What
`feed` cannot use it counts by reason instead of returning. A tail still held when the connection ends is
no frame: its sender never finished it.

Bytes are cut, never text: `str.splitlines` also breaks at U+2028 and its kin, which are legal inside
JSON strings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from itertools import repeat
from typing import Protocol, TypeVar

import orjson

from connector.errors import FramingLost
from connector.stream.documents import Nesting

MAX_RUBBISH_LINES = 3
"""Lines in a row where a length should stand, after which the stream counts as out of step."""

MAX_LENGTH_LINE_BYTES = 1024
"""Longest line in which a length is looked for, its ``\\n`` not counted."""

MAX_SKIP_FRAMES = 64
"""A length above so many times `max_frame_bytes` is taken for rubbish, not for a frame to skip: skipping
it would be silence, for hours perhaps, where a new connection is quick."""

MAX_NOTICE_BYTES = 4096
r"""Longest message that may end with a bare ``\n`` where ``\r\n`` ends messages."""

_MAX_LENGTH_DIGITS = 10

Frame = TypeVar("Frame")


class Framer(Protocol[Frame]):
    """What cuts one connection's bytes.

    Attributes:
        discarded: bytes dropped so far, by reason.
    """

    discarded: Counter[str]

    def feed(self, chunk: bytes) -> list[Frame]:
        """Take the next bytes and return the frames they complete.

        Raises:
            FramingLost: no frame can be found in what follows.
        """
        ...

    @property
    def held_bytes(self) -> int:
        """Bytes of the frame still incomplete."""
        ...


@dataclass(slots=True)
class _Notice:
    r"""Looks for the ``\n`` after a complete JSON object at the beginning of a frame.

    An object is complete where its first bracket is closed, so there is one place to look at in a frame,
    and its bytes are scanned once.
    """

    _nesting: Nesting = field(default_factory=Nesting)
    _scanned: int = 0
    _ruled_out: bool = False

    def end(self, data: bytes | bytearray, start: int, fresh: int, max_bytes: int) -> int:
        r"""Return the place of that ``\n`` in *data*, or -1.

        Args:
            data: holds the frame's beginning.
            start: where in *data* the frame begins.
            fresh: no such ``\n`` stands before this place.
            max_bytes: longest object to look for.
        """
        stop = start + max_bytes
        if self._ruled_out or data.find(b"\n", fresh, stop + 1) < 0:
            return -1
        newline = data.find(b"}\n", fresh, stop + 1) + 1
        while newline:
            closed = self._nesting.end(data[start + self._scanned : newline], 0)
            if closed >= 0:
                complete = start + self._scanned + closed == newline and _is_json(data[start:newline])
                self._ruled_out = not complete
                return newline if complete else -1
            self._scanned = newline - start
            newline = data.find(b"}\n", newline, stop + 1) + 1
        return -1


@dataclass(slots=True)
class LineFramer:
    r"""Frames that end with a line end.

    Where that is ``\r\n``, a bare ``\n`` belongs to the frame, with one exception: Twitter and Gnip end
    their statuses with ``\r\n`` but some notices of theirs with ``\n`` alone. So a ``\n`` ends a frame
    also when all before it is one complete JSON object of at most `MAX_NOTICE_BYTES`. That cuts nothing
    in two, as no longer JSON text begins with a complete object.

    Attributes:
        delimiter: ``b"\r\n"`` or ``b"\n"``; None is either: a ``\n``, and one ``\r`` before it.
        max_frame_bytes: a longer frame is skipped to its end and counted as ``oversize``.
    """

    delimiter: bytes | None
    max_frame_bytes: int
    discarded: Counter[str] = field(default_factory=Counter, init=False)
    _tail: bytearray = field(default_factory=bytearray, init=False)
    _skipping: bool = field(default=False, init=False)  # inside a frame already found oversize
    _notice: _Notice = field(default_factory=_Notice, init=False)  # that the tail may hold

    @property
    def held_bytes(self) -> int:
        """See `Framer`."""
        return len(self._tail)

    def feed(self, chunk: bytes) -> list[bytes]:
        """See `Framer`."""
        tail = self._tail
        if b"\n" not in chunk:  # nor does any frame end
            tail += chunk
            if self._skipping or len(tail) > self.max_frame_bytes:
                self._limit()
            return []
        end = self.delimiter or b"\n"
        if tail:
            seam = len(tail) - 1  # a line end may straddle two chunks
            tail += chunk
            if tail.find(end, seam) < 0:
                return self._settle(seam)
            chunk = bytes(tail)
            tail.clear()
        lines, rest, may_be_bare = self._cut(chunk)
        tail += rest
        if not lines:
            return self._settle(0)
        if self._skipping:
            self._discard_oversize(len(lines.pop(0)))
            self._skipping = False
        if may_be_bare:
            lines = [part for line in lines for part in self._parts(line)]
        if lines and max(map(len, lines)) > self.max_frame_bytes:
            self._discard_oversize(sum(n for n in map(len, lines) if n > self.max_frame_bytes))
            lines = [line for line in lines if len(line) <= self.max_frame_bytes]
        self._notice = _Notice()
        return [*filter(None, lines), *self._settle(0)]

    def _cut(self, chunk: bytes) -> tuple[list[bytes], bytes, bool]:
        r"""Return the lines in *chunk*, what follows them, and whether a bare ``\n`` may be in a line."""
        lines = BytesIO(chunk).readlines()  # many times as fast as `split`, which looks at byte after byte
        rest = b"" if lines[-1].endswith(b"\n") else lines.pop()
        if self.delimiter == b"\r\n":
            if all(map(bytes.endswith, lines, repeat(b"\r\n"))):
                return [line[:-2] for line in lines], rest, False
            *lines, rest = chunk.split(b"\r\n")
            return lines, rest, True
        lines = [line[:-1] for line in lines]
        if self.delimiter is None:
            lines = [line.removesuffix(b"\r") for line in lines]
        return lines, rest, False

    def _parts(self, line: bytes) -> Iterator[bytes]:
        r"""Cut *line* after each notice that ended with a bare ``\n``."""
        start = 0
        while (end := _Notice().end(line, start, start, self._max_notice_bytes)) >= 0:
            yield line[start:end]
            start = end + 1
        yield line[start:]

    def _settle(self, fresh: int) -> list[bytes]:
        """Take the notices out of the tail, of which the bytes from *fresh* on are new, and limit it."""
        tail = self._tail
        notices: list[bytes] = []
        if self.delimiter == b"\r\n" and not self._skipping:
            start = 0
            while (end := self._notice.end(tail, start, fresh, self._max_notice_bytes)) >= 0:
                notices.append(bytes(tail[start:end]))
                start = fresh = end + 1
                self._notice = _Notice()
            del tail[:start]
        self._limit()
        return notices

    def _limit(self) -> None:
        """Drop what an oversize frame has piled up, but for a byte that may begin a line end."""
        tail = self._tail
        size = len(tail) - tail.endswith(b"\r")
        if self._skipping or size > self.max_frame_bytes:
            self._discard_oversize(size)
            del tail[:size]
            self._skipping = True

    @property
    def _max_notice_bytes(self) -> int:
        return min(MAX_NOTICE_BYTES, self.max_frame_bytes)

    def _discard_oversize(self, size: int) -> None:
        if size:
            self.discarded["oversize"] += size


@dataclass(slots=True)
class LengthFramer:
    r"""Frames announced by their length: ``<decimal>\r\n`` and then exactly so many bytes.

    The length counts bytes, the line end after the frame included; blank lines before a length are
    keep-alives (Twitter streaming, ``delimited=length``). A line that is no length is skipped and counted
    as ``no_length``.

    Attributes:
        max_frame_bytes: a longer frame is skipped by its length and counted as ``oversize``.
    """

    max_frame_bytes: int
    discarded: Counter[str] = field(default_factory=Counter, init=False)
    _buffer: bytearray = field(default_factory=bytearray, init=False)
    _due: int = field(default=0, init=False)  # bytes of the frame announced; 0 while none is
    _skip: int = field(default=0, init=False)  # bytes of an oversize frame to drop before those due
    _oversize: bool = field(default=False, init=False)  # those due are the end of an oversize frame
    _rubbish: int = field(default=0, init=False)  # lines in a row that were no length
    _lost: FramingLost | None = field(default=None, init=False)

    @property
    def held_bytes(self) -> int:
        """See `Framer`."""
        return len(self._buffer)

    def feed(self, chunk: bytes) -> list[bytes]:
        """See `Framer`."""
        if self._lost is not None:
            raise self._lost
        buffer = self._buffer
        if buffer:
            buffer += chunk
            if len(buffer) < self._due:
                return []
            chunk = bytes(buffer)
            buffer.clear()
        frames: list[bytes] = []
        try:
            used = self._read(chunk, frames)
        except FramingLost as lost:
            self._lost = lost
            if not frames:
                raise
            return frames  # what was complete before goes out first
        buffer += chunk[used:]
        return frames

    def _read(self, data: bytes, frames: list[bytes]) -> int:
        """Append the frames in *data* to *frames* and return how many bytes were used up."""
        at, end = 0, len(data)
        while at < end:
            if self._skip:
                step = min(self._skip, end - at)
                self._skip -= step
                self.discarded["oversize"] += step
                at += step
            elif self._due:
                if end - at < self._due:
                    break
                self._take(_without_line_end(data, at, at + self._due), frames)
                at += self._due
                self._due = 0
            else:
                newline = data.find(b"\n", at, at + MAX_LENGTH_LINE_BYTES + 1)
                if newline >= 0:
                    self._announce(data[at:newline].strip())
                    at = newline + 1
                elif end - at <= MAX_LENGTH_LINE_BYTES:
                    break
                else:
                    self.discarded["no_length"] += MAX_LENGTH_LINE_BYTES + 1
                    raise FramingLost("no line end where a length should stand")
        return at

    def _take(self, body: bytes, frames: list[bytes]) -> None:
        if self._oversize or len(body) > self.max_frame_bytes:
            self.discarded["oversize"] += len(body)
        elif body:
            frames.append(body)
        self._oversize = False

    def _announce(self, line: bytes) -> None:
        if not line:
            return
        length = int(line) if line.isdigit() and len(line) <= _MAX_LENGTH_DIGITS else -1
        if 0 <= length <= MAX_SKIP_FRAMES * self.max_frame_bytes:
            self._rubbish = 0
            self._due = length
            if length > self.max_frame_bytes + len(b"\r\n"):
                # All but its line end, which is not known to be one before it is there.
                self._skip, self._due, self._oversize = length - 2, 2, True
        else:
            self.discarded["no_length"] += len(line)
            self._rubbish += 1
            if self._rubbish >= MAX_RUBBISH_LINES:
                raise FramingLost(f"expected a length, got {line[:40]!r}")


def _without_line_end(data: bytes, start: int, end: int) -> bytes:
    if data.endswith(b"\r\n", start, end):
        end -= 2
    elif data.endswith(b"\n", start, end):
        end -= 1
    return data[start:end]


def _is_json(data: bytes | bytearray) -> bool:
    try:
        # A wrong byte in a string does not make the object any less complete.
        orjson.loads(data.decode(errors="replace"))
    except orjson.JSONDecodeError:
        return False
    return True
