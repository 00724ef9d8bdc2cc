"""Bytes to frames. Pure; linear in the bytes fed, bounded by `max_frame_bytes`.

Both framers keep one contract: `feed` takes the next bytes, however cut, and returns the frames they
complete, without their line ends; blank frames are keep-alives, counted and dropped. What `feed`
cannot use it counts by reason instead of returning. A tail still held when the connection ends is no
frame: its sender never finished it.

Bytes are cut, never text: `str.splitlines` also breaks at U+2028 and its kin, which are legal inside
JSON strings.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from connector.errors import FramingLost

MAX_RUBBISH_LINES = 3
"""Lines in a row where a length should stand, after which the stream counts as out of step."""

_MAX_LENGTH_DIGITS = 10
_MAX_LENGTH_LINE_BYTES = 1024


class Framer(Protocol):
    """What cuts one connection's bytes.

    Attributes:
        heartbeats: keep-alives seen so far.
        discarded: bytes dropped so far, by reason.
    """

    heartbeats: int
    discarded: Counter[str]

    def feed(self, chunk: bytes) -> list[bytes]:
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
class LineFramer:
    r"""Frames that end with a delimiter.

    Attributes:
        delimiter: ends a frame, usually ``b"\r\n"``; a bare ``\n`` then belongs to the frame.
        max_frame_bytes: a longer frame is skipped to its end and counted as ``oversize``.
    """

    delimiter: bytes
    max_frame_bytes: int
    heartbeats: int = field(default=0, init=False)
    discarded: Counter[str] = field(default_factory=Counter, init=False)
    _tail: bytearray = field(default_factory=bytearray, init=False)
    _skipping: bool = field(default=False, init=False)  # inside a frame already found oversize

    @property
    def held_bytes(self) -> int:
        """See `Framer`."""
        return len(self._tail)

    def feed(self, chunk: bytes) -> list[bytes]:
        """See `Framer`."""
        tail = self._tail
        if tail:
            # A delimiter may straddle two chunks, so search from its length - 1 before the seam.
            seam = max(0, len(tail) - len(self.delimiter) + 1)
            tail += chunk
            if tail.find(self.delimiter, seam) < 0:
                self._limit()
                return []
            chunk = bytes(tail)
            tail.clear()
        lines = chunk.split(self.delimiter)
        tail += lines.pop()
        if self._skipping and lines:
            self.discarded["oversize"] += len(lines.pop(0)) + len(self.delimiter)
            self._skipping = False
        if lines and max(map(len, lines)) > self.max_frame_bytes:
            self.discarded["oversize"] += sum(n for n in map(len, lines) if n > self.max_frame_bytes)
            lines = [line for line in lines if len(line) <= self.max_frame_bytes]
        frames = [line for line in lines if line]
        self.heartbeats += len(lines) - len(frames)
        self._limit()
        return frames

    def _limit(self) -> None:
        """Drop what an oversize frame has piled up, but for bytes that may begin a delimiter."""
        keep = len(self.delimiter) - 1
        if self._skipping or len(self._tail) > self.max_frame_bytes + keep:
            drop = max(0, len(self._tail) - keep)
            self.discarded["oversize"] += drop
            del self._tail[:drop]
            self._skipping = True


@dataclass(slots=True)
class LengthFramer:
    r"""Frames announced by their length: ``<decimal>\r\n`` and then exactly so many bytes.

    The length counts bytes, the line end after the frame included; blank lines before a length are
    keep-alives (Twitter streaming, ``delimited=length``).

    Attributes:
        max_frame_bytes: a longer frame is skipped by its length and counted as ``oversize``.
    """

    max_frame_bytes: int
    heartbeats: int = field(default=0, init=False)
    discarded: Counter[str] = field(default_factory=Counter, init=False)
    _buffer: bytearray = field(default_factory=bytearray, init=False)
    _due: int = field(default=0, init=False)  # bytes of the frame announced; 0 while none is
    _skip: int = field(default=0, init=False)  # bytes of an oversize frame still to come
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
        self._buffer += chunk
        if len(self._buffer) < self._due:
            return []
        data = bytes(self._buffer)
        frames: list[bytes] = []
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
                frames.append(_without_line_end(data, at, at + self._due))
                at += self._due
                self._due = 0
            else:
                newline = data.find(b"\n", at)
                if newline < 0:
                    if end - at > _MAX_LENGTH_LINE_BYTES:
                        raise FramingLost("no line end where a length should stand")
                    break
                try:
                    self._announce(data[at:newline].strip())
                except FramingLost as lost:
                    if not frames:
                        raise
                    self._lost = lost  # what was complete before goes out first
                    break
                at = newline + 1
        del self._buffer[:at]
        return [frame for frame in frames if frame]

    def _announce(self, line: bytes) -> None:
        if not line:
            self.heartbeats += 1
        elif line.isdigit() and len(line) <= _MAX_LENGTH_DIGITS:
            self._rubbish = 0
            length = int(line)
            if length > self.max_frame_bytes + len(b"\r\n"):
                self._skip = length
            else:
                self._due = length
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
