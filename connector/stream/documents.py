"""JSON documents that follow one another with nothing to tell them apart but their own brackets. Pure.

Only brackets, strings and escapes are looked at: whether a document is valid JSON is the decoder's
business. Every byte is scanned once, when it comes, however large the document it belongs to.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

_WHITE_SPACE = b" \t\r\n"
_BEGIN = re.compile(rb"[{\[]")
_QUOTE, _BACKSLASH, _OPENING = ord('"'), ord("\\"), b"{["

# Possessive quantifiers never back up, so no input makes these take more than linear time.
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_NO_BRACKET = re.compile(
    rb'[^"{}\[\]]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"{}\[\]]*+)*+', re.DOTALL
)  # strings that end here are skipped whole


@dataclass(slots=True)
class Nesting:
    """Follows one document through its brackets, to where the first of them is closed."""

    _depth: int = 0
    _in_string: bool = False
    _escaped: bool = False  # the byte after a backslash is yet to come

    def end(self, data: bytes | bytearray, at: int) -> int:
        """Return where in *data* the document ends, or -1.

        Args:
            data: the next bytes, at least one.
            at: where in *data* to go on.
        """
        depth, stop = self._depth, len(data)
        if self._escaped:
            self._escaped = False
            at += 1
        while at < stop:
            if self._in_string:
                at = _IN_STRING.match(data, at).end()  # type: ignore[union-attr]  # matches anything
                if at == stop:
                    break
                # Either a quote, or a backslash that is the last byte here.
                self._escaped = self._in_string = data[at] == _BACKSLASH
                at += 1
                continue
            at = _NO_BRACKET.match(data, at).end()  # type: ignore[union-attr]  # matches anything
            if at == stop:
                break
            byte = data[at]
            at += 1
            if byte == _QUOTE:
                self._in_string = True
            elif byte in _OPENING:
                depth += 1
            else:
                depth -= 1
                if depth <= 0:
                    self._depth = 0
                    return at
        self._depth = depth
        return -1


@dataclass(slots=True)
class DocumentFramer:
    """Frames that are JSON objects or arrays, separated by nothing or by white space.

    What else stands between documents is skipped and counted as ``no_document``; white space is not
    counted. Any closing bracket closes one level, whatever its kind.

    Attributes:
        max_frame_bytes: a longer document is skipped to its end and counted as ``oversize``.
    """

    max_frame_bytes: int
    discarded: Counter[str] = field(default_factory=Counter, init=False)
    _held: bytearray = field(default_factory=bytearray, init=False)
    _within: bool = field(default=False, init=False)  # a document has begun and not ended
    _skipping: bool = field(default=False, init=False)  # ... and was already found oversize
    _nesting: Nesting = field(default_factory=Nesting, init=False)

    @property
    def held_bytes(self) -> int:
        """See `Framer`."""
        return len(self._held)

    def feed(self, chunk: bytes) -> list[bytes]:
        """See `Framer`."""
        frames: list[bytes] = []
        at, stop = 0, len(chunk)
        while at < stop:
            if not self._within:
                begin = match.start() if (match := _BEGIN.search(chunk, at)) else stop
                self._discard("no_document", len(chunk[at:begin].translate(None, _WHITE_SPACE)))
                at = begin
                self._within = at < stop
                continue
            end = self._nesting.end(chunk, at)
            here = (stop if end < 0 else end) - at
            if self._skipping or len(self._held) + here > self.max_frame_bytes:
                self._discard("oversize", len(self._held) + here)
                self._held.clear()
                self._skipping = True
            elif end < 0 or self._held:
                self._held += chunk[at : at + here]
            if end < 0:
                break
            if not self._skipping:
                frames.append(bytes(self._held) or chunk[at:end])
                self._held.clear()
            self._within = self._skipping = False
            at = end
        return frames

    def _discard(self, reason: str, size: int) -> None:
        if size:
            self.discarded[reason] += size
