"""Frames to statuses: which message is what, touching no more of it than needed. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import msgspec
import orjson

from connector.errors import EndedByServer
from connector.model import Status
from connector.stream.dialect import Dialect
from connector.stream.sse import SseEvent

MAX_CURSOR_BYTES = 8192
"""Longest cursor: Wikimedia's names every partition of several topics."""

MAX_ID_CHARS = 2048
"""Longest id: it becomes a record's key, beside a body that may be as long as records are."""

MAX_RULES_BYTES = 4096
"""Longest word about which predicates a status matched; of a longer one nothing is passed on."""

MAX_NOTICE_BYTES = 4096
"""Longest notice that is passed on as JSON; of a longer one the beginning, as text."""

_ABSENT = msgspec.UNSET
_NOT_THERE = msgspec.Raw(b"")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # no header takes them
# Deep nesting raises RecursionError, which msgspec does not wrap.
_UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


@dataclass(frozen=True, slots=True)
class Malformed:
    """A frame that is no message: kept whole, with the reason."""

    reason: str
    detail: str
    frame: bytes


@dataclass(frozen=True, slots=True)
class Notice:
    """A message about the stream or about statuses sent before, rather than a status."""

    kind: str
    message: object


@dataclass(frozen=True, slots=True)
class Messages:
    """What one piece of a stream held.

    Attributes:
        disconnect: the server announced that it closes the connection.
        last_cursor: where the upstream can resume after all of it, where that is beyond the last status.
    """

    statuses: Sequence[Status] = ()
    malformed: Sequence[Malformed] = ()
    notices: Sequence[Notice] = ()
    disconnect: EndedByServer | None = None
    last_cursor: str | None = None
    _marks: Sequence[object] = ()
    _cursor_of: Callable[[Any], str | int | None] | None = None

    def cursor_after(self, count: int) -> str | None:
        """Where the upstream can resume after the first *count* statuses; None where it cannot."""
        if count == len(self.statuses) and self.last_cursor is not None:
            return self.last_cursor
        if self._cursor_of is None or count == 0:
            return None
        cursor = self._cursor_of(self._marks[count - 1])
        return None if cursor is None else _safe(str(cursor))


class Decoder:
    """Reads the members a dialect names, and only those: the body stays the upstream's bytes."""

    def __init__(self, dialect: Dialect) -> None:
        """Compile the dialect's JSON pointers into typed decoders."""
        cursor = None if dialect.resume is None else dialect.resume.cursor
        rules = dialect.messages.rules
        self._status = msgspec.json.Decoder(
            _shape([one for one in (cursor, dialect.messages.id) if one], rules)
        )
        self._id = attrgetter(_path(dialect.messages.id))
        self._rules = None if rules is None else attrgetter(_path(rules))
        self._cursor = None if cursor is None else attrgetter(_path(cursor))
        self._cursor_of_event = dialect.resume is not None and cursor is None
        self._events = frozenset(dialect.messages.events)
        self._disconnect = dialect.messages.disconnect
        self._notices = dialect.messages.notices

    def decode(self, frames: list[bytes]) -> Messages:
        """Sort *frames* into statuses, notices, announcements and malformed ones."""
        return self._decode(frames, None, self._cursor)

    def decode_events(self, events: list[SseEvent], last_id: str | None) -> tuple[Messages, int]:
        """Do the same with server-sent events.

        Args:
            events: as dispatched.
            last_id: the id in force after them, which an event without data may have set.

        Returns:
            The messages, and the number of bytes in events of types that carry none.
        """
        wanted = [one for one in events if not self._events or one.event in self._events]
        dropped = 0
        if len(wanted) < len(events):
            dropped = sum(len(one.data) for one in events if one.event not in self._events)
        frames = [one.data for one in wanted]
        if not self._cursor_of_event:
            return self._decode(frames, None, self._cursor), dropped
        return self._decode(frames, wanted, attrgetter("last_id"), _safe(last_id)), dropped

    def _decode(
        self,
        frames: list[bytes],
        marks: Sequence[object] | None,
        cursor_of: Callable[[Any], str | int | None] | None,
        last_cursor: str | None = None,
    ) -> Messages:
        """Decode *frames*; *marks*, which hold their cursors, are what is decoded unless given."""
        if not frames:
            return Messages(last_cursor=last_cursor)
        try:
            # msgspec skips members it does not need without looking at their UTF-8.
            b"\n".join(frames).decode()
            decode, get_id = self._status.decode, self._id
            decoded = [decode(frame) for frame in frames]
            statuses = [Status(str(get_id(one)), frame) for one, frame in zip(decoded, frames, strict=True)]
            if self._rules is not None:
                statuses = [
                    status._replace(rules=self._matched(one))
                    for status, one in zip(statuses, decoded, strict=True)
                ]
        except _UNREADABLE:
            return self._decode_each(frames, marks, cursor_of, last_cursor)  # find out which is no status
        if not all(0 < len(status.id) <= MAX_ID_CHARS for status in statuses):
            return self._decode_each(frames, marks, cursor_of, last_cursor)
        return Messages(
            statuses,
            last_cursor=last_cursor,
            _marks=decoded if marks is None else marks,
            _cursor_of=cursor_of,
        )

    def _decode_each(
        self,
        frames: list[bytes],
        marks: Sequence[object] | None,
        cursor_of: Callable[[Any], str | int | None] | None,
        last_cursor: str | None,
    ) -> Messages:
        statuses: list[Status] = []
        kept: list[object] = []
        malformed: list[Malformed] = []
        notices: list[Notice] = []
        disconnect = None
        for at, frame in enumerate(frames):
            try:
                frame.decode()
                message = self._status.decode(frame)
            except _UNREADABLE as error:
                match self._explain(frame, error):
                    case Malformed() as bad:
                        malformed.append(bad)
                    case Notice() as notice:
                        notices.append(notice)
                    case EndedByServer() as announced:
                        disconnect = announced
                continue
            identity = str(self._id(message))
            if not identity:
                malformed.append(Malformed("no_id", "the id is empty", frame))
            elif len(identity) > MAX_ID_CHARS:
                malformed.append(Malformed("id_too_long", f"more than {MAX_ID_CHARS} characters", frame))
            else:
                statuses.append(Status(identity, frame, self._matched(message)))
                kept.append(message if marks is None else marks[at])
        return Messages(statuses, malformed, notices, disconnect, last_cursor, kept, cursor_of)

    def _matched(self, message: object) -> bytes:
        rules = b"" if self._rules is None else bytes(self._rules(message))
        return rules if len(rules) <= MAX_RULES_BYTES else b""

    def _explain(self, frame: bytes, error: Exception) -> Malformed | Notice | EndedByServer:
        """Say why *frame* is no status."""
        try:
            frame.decode()
            message = msgspec.json.decode(frame)
        except _UNREADABLE as unreadable:
            return Malformed("not_json", str(unreadable)[:200], frame)
        if self._disconnect and (announced := member(message, self._disconnect.at)) is not _ABSENT:
            code = member(announced, self._disconnect.code) if self._disconnect.code else _ABSENT
            said = msgspec.json.encode(announced).decode()[:200]
            return EndedByServer(said, None if code is _ABSENT else str(code))
        for kind, pointer in self._notices.items():
            if (notice := member(message, pointer)) is not _ABSENT:
                return Notice(kind, _told(notice))
        return Malformed("no_id", str(error)[:200], frame)


def member(message: object, pointer: str) -> object:
    """Return what *pointer* (RFC 6901) leads to within *message*; `msgspec.UNSET` if nothing."""
    for name in _segments(pointer):
        match message:
            case dict() if name in message:
                message = message[name]
            case list() if name.isascii() and name.isdigit() and len(name) < 10 and int(name) < len(message):
                message = message[int(name)]
            case _:
                return _ABSENT
    return message


def _told(notice: object) -> object:
    """Return a notice as an event can carry it: whole if it is short, and no number beyond 64 bits."""
    with suppress(TypeError, RecursionError):
        if len(orjson.dumps([[[[[[[[notice]]]]]]]])) <= MAX_NOTICE_BYTES:  # an event adds levels of its own
            return notice
    return msgspec.json.encode(notice)[:MAX_NOTICE_BYTES].decode(errors="ignore")


def _safe(cursor: str | None) -> str | None:
    """Return the cursor if it can be stored and sent back; else none, which repeats rather than loses."""
    if cursor is None or len(cursor.encode(errors="replace")) > MAX_CURSOR_BYTES:
        return None
    return None if _CONTROL.search(cursor) else cursor


def _shape(pointers: Sequence[str], raw: str | None) -> type[msgspec.Struct]:
    """Return a struct with just the members that *pointers* lead to, and *raw* as it comes, if it does."""
    tree: dict[str, Any] = {}
    for pointer in pointers:
        *parents, last = _segments(pointer)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = str | int
    if raw is not None:
        tree[_segments(raw)[0]] = msgspec.Raw
    return _struct(tree)


def _struct(tree: dict[str, Any]) -> type[msgspec.Struct]:
    members: list[Any] = []
    for name, kind in tree.items():
        if kind is msgspec.Raw:
            members.append((_attribute(name), kind, _NOT_THERE))
        else:
            members.append((_attribute(name), _struct(kind) if isinstance(kind, dict) else kind))
    renamed = {_attribute(name): name for name in tree}
    return msgspec.defstruct("Message", members, rename=renamed, gc=False, kw_only=True)


def _path(pointer: str) -> str:
    return ".".join(_attribute(name) for name in _segments(pointer))


def _attribute(name: str) -> str:
    """Return an identifier for a member's name, which may be any text."""
    return "m_" + name.encode().hex()


def _segments(pointer: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
