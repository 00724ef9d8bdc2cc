r"""Server-sent events, as the HTML standard has them (section 9.2, "server-sent events"). Pure.

Lines end with ``\r``, ``\n`` or ``\r\n`` and nothing else; a blank line ends an event. Data stay bytes:
whether they are UTF-8 is the decoder's business.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

_BOM = b"\xef\xbb\xbf"
_COMMENT = b":"
_LONGEST_FIELD_NAME = len(b"event: ")
_MAX_RETRY_DIGITS = 9

ROOM_BYTES = 1024
"""What an event's id, name and line in hand may add to its data before it counts as oversize."""


class SseEvent(NamedTuple):
    """One event.

    Attributes:
        data: its ``data`` lines, joined by line feeds.
        last_id: the last id the server set, with this event or before; None while it set none, empty
            after it took the id back.
    """

    data: bytes
    event: str = "message"
    last_id: str | None = None


@dataclass(slots=True)
class SseFramer:
    """Frames that are server-sent events; comments and events without data are keep-alives.

    An event whose data are longer than allowed is skipped to its end and counted as ``oversize``, line
    ends and comments not included; so is one with any other line that long. Its id is not taken.

    Attributes:
        max_frame_bytes: longest data of an event.
        last_id: the id to resume after: the last one that a blank line made valid; None while there was
            none, empty after the server took it back.
        retry_s: how long the server wants a client to wait before it connects again.
    """

    max_frame_bytes: int
    last_id: str | None = field(default=None, init=False)
    retry_s: float | None = field(default=None, init=False)
    discarded: Counter[str] = field(default_factory=Counter, init=False)
    _begun: bool = field(default=False, init=False)  # past the place where a BOM may stand
    _after_cr: bool = field(default=False, init=False)  # a line feed would belong to the line end before
    _tail: bytearray = field(default_factory=bytearray, init=False)  # the line still incomplete
    _data: bytes | bytearray | None = field(default=None, init=False)
    _event: bytes = field(default=b"", init=False)
    _id: bytes | None = field(default=None, init=False)  # that this event sets
    _seen: int = field(default=0, init=False)  # bytes of this event's lines, comments aside
    _skipping: bool = field(default=False, init=False)  # inside an event already found oversize

    @property
    def held_bytes(self) -> int:
        """See `Framer`."""
        return self._kept_bytes + (0 if self._tail.startswith(_COMMENT) else len(self._tail))

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """See `Framer`."""
        if not self._begun:
            chunk = self._without_bom(chunk)
        if not chunk:
            return []
        chunk = self._with_line_feeds(chunk)
        tail = self._tail
        events: list[SseEvent] = []
        if b"\n" in chunk:
            text = bytes(tail) + chunk if tail else chunk
            tail.clear()
            lines = text.split(b"\n")
            tail += lines.pop()
            # Where all of it fits, each line does.
            fits = self._kept_bytes + len(text) <= self.max_frame_bytes
            for line in lines:
                if not line:
                    self._end_event(events)
                elif line.startswith(_COMMENT):
                    pass
                elif self._skipping:
                    self.discarded["oversize"] += len(line)
                else:
                    self._seen += len(line)
                    if fits or self._has_room(line):
                        self._field(line)
                    else:
                        self._skip()
        else:
            tail += chunk
        self._settle()
        return events

    def _without_bom(self, chunk: bytes) -> bytes:
        """Return what of the stream's beginning is no BOM; nothing while that is open."""
        chunk = bytes(self._tail) + chunk
        self._tail.clear()
        if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
            self._tail += chunk
            return b""
        self._begun = True
        return chunk.removeprefix(_BOM)

    def _with_line_feeds(self, chunk: bytes) -> bytes:
        r"""Turn all line ends into ``\n``: a ``\r`` at once, so no event waits for the next chunk."""
        if self._after_cr:
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return chunk

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match name:
            case b"data":
                if self._data is None:
                    self._data = value
                else:
                    self._data = self._data if isinstance(self._data, bytearray) else bytearray(self._data)
                    self._data += b"\n" + value
                if len(self._data) > self.max_frame_bytes:
                    self._skip()
            case b"event":
                self._event = value
            case b"id":
                if b"\0" not in value:
                    self._id = value
            case b"retry":
                if value.isdigit() and len(value) <= _MAX_RETRY_DIGITS:
                    self.retry_s = int(value) / 1000
            case _:
                pass  # the standard has unknown fields ignored

    def _end_event(self, events: list[SseEvent]) -> None:
        if self._id is not None:
            self.last_id = self._id.decode(errors="replace")
        if self._data is not None:
            name = self._event.decode(errors="replace") or "message"
            events.append(SseEvent(bytes(self._data), name, self.last_id))
        self._forget()
        self._skipping = False

    @property
    def _kept_bytes(self) -> int:
        return len(self._data or b"") + len(self._event) + len(self._id or b"")

    def _has_room(self, line: bytes | bytearray) -> bool:
        return (
            len(line) <= self.max_frame_bytes + _LONGEST_FIELD_NAME
            and self._kept_bytes + len(line) <= self.max_frame_bytes + ROOM_BYTES
        )

    def _skip(self) -> None:
        self.discarded["oversize"] += self._seen
        self._forget()
        self._skipping = True

    def _forget(self) -> None:
        self._data, self._event, self._id, self._seen = None, b"", None, 0

    def _settle(self) -> None:
        """Keep of the incomplete line no more than is needed: of a line to skip, the byte that says so."""
        tail = self._tail
        if tail.startswith(_COMMENT):
            del tail[1:]
        elif tail and not self._skipping and not self._has_room(tail):
            self._skip()
        if self._skipping and len(tail) > 1:
            self.discarded["oversize"] += len(tail) - 1
            del tail[1:]
