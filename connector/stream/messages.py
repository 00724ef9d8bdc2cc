"""Frames to statuses: which message is what, touching no more of it than needed. Pure."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import repeat
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

MAX_WITHHELD = (1 << 63) - 1
"""Largest number of withheld statuses: no event takes a larger one."""

_status = partial(tuple.__new__, Status)  # as `Status` does, but without a call of Python's own each
_exhaust = partial(deque[object], maxlen=0)
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
        statuses: deleted ones among them, without a body, where the upstream said so.
        disconnect: the server announced that it closes the connection.
        last_cursor: where the upstream can resume after all of it, where that is beyond the last status.
        withheld: how many statuses the connection was not sent since it opened, where that was said.
    """

    statuses: Sequence[Status] = ()
    malformed: Sequence[Malformed] = ()
    notices: Sequence[Notice] = ()
    disconnect: EndedByServer | None = None
    last_cursor: str | None = None
    withheld: int | None = None
    _marks: Sequence[object] = ()
    _cursor_of: Callable[[Any], str | int | None] | None = None

    def cursor_after(self, count: int) -> str | None:
        """Where the upstream can resume after the first *count* statuses; None where it cannot."""
        if count == len(self.statuses) and self.last_cursor is not None:
            return self.last_cursor
        if self._cursor_of is None or count == 0:
            return None
        mark = self._marks[count - 1]
        cursor = None if mark is None else self._cursor_of(mark)
        return None if cursor is None else _safe(str(cursor))


_Found = Status | Malformed | Notice | EndedByServer | int
"""What a frame is; an integer says how many statuses were withheld."""


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
        resume = dialect.resume
        self._cursor_of_event = resume is not None and resume.cursor is None and resume.since is None
        self._events = frozenset(dialect.messages.events)
        self._disconnect = dialect.messages.disconnect
        self._limit = dialect.messages.limit
        self._notices = dialect.messages.notices
        delete = dialect.messages.delete
        self._deleting_event = None if delete is None else delete.event
        if self._events and self._deleting_event is not None:
            self._events |= {self._deleting_event}
        self._deletes_at: str | None = None  # the member that tells a delete, where no event type does
        self._id_at = dialect.messages.id
        self._delete: msgspec.json.Decoder[Any] | None = None
        if delete is not None and delete.id is not None:
            self._delete = msgspec.json.Decoder(_shape([delete.id], None))
            self._deleted_id = attrgetter(_path(delete.id))
            if delete.event is None:
                self._deletes_at = f"/{delete.id.split('/')[1]}"

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
        deletes: Container[int] = ()
        if self._deleting_event is not None:
            deletes = {at for at, one in enumerate(wanted) if one.event == self._deleting_event}
        if not self._cursor_of_event:
            return self._decode(frames, None, self._cursor, None, deletes), dropped
        return self._decode(frames, wanted, attrgetter("last_id"), _safe(last_id), deletes), dropped

    def _decode(
        self,
        frames: list[bytes],
        marks: Sequence[object] | None,
        cursor_of: Callable[[Any], str | int | None] | None,
        last_cursor: str | None = None,
        deletes: Container[int] = (),
    ) -> Messages:
        """Decode *frames*.

        Args:
            frames: the messages.
            marks: what holds their cursors; None if they do themselves.
            cursor_of: finds a cursor in its mark.
            last_cursor: see `Messages`.
            deletes: places of those whose event type says that they are deletes.
        """
        if not frames:
            return Messages(last_cursor=last_cursor)
        if deletes:
            return self._decode_each(frames, marks, cursor_of, last_cursor, deletes)
        try:
            # msgspec skips members it does not need without looking at their UTF-8. One by one: the text of
            # all together would be four times their size in fresh memory, where one character needs that.
            _exhaust(map(bytes.decode, frames))
            decoded = list(map(self._status.decode, frames))
            ids = list(map(str, map(self._id, decoded)))
        except _UNREADABLE:
            return self._decode_each(frames, marks, cursor_of, last_cursor)  # find out which is no status
        if not all(ids) or max(map(len, ids)) > MAX_ID_CHARS:
            return self._decode_each(frames, marks, cursor_of, last_cursor)
        rules = repeat(b"") if self._rules is None else map(self._matched, decoded)
        statuses = list(map(_status, zip(ids, frames, rules, strict=False)))
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
        deletes: Container[int] = (),
    ) -> Messages:
        statuses: list[Status] = []
        kept: list[object] = []
        malformed: list[Malformed] = []
        notices: list[Notice] = []
        disconnect = withheld = None
        for at, frame in enumerate(frames):
            message: object = None
            try:
                frame.decode()
                if at in deletes:
                    found: _Found = self._deleted(frame)
                else:
                    message = self._status.decode(frame)
                    found = Status(str(self._id(message)), frame, self._matched(message))
            except _UNREADABLE as error:
                found = self._explain(frame, error)
            if isinstance(found, Status):
                if 0 < len(found.id) <= MAX_ID_CHARS:
                    if message is None and kept:
                        message = kept[-1]  # a delete has no cursor of its own: it repeats the one before
                    statuses.append(found)
                    kept.append(message if marks is None else marks[at])
                    continue
                found = _unfit(found, frame)
            match found:
                case Malformed():
                    malformed.append(found)
                case Notice():
                    notices.append(found)
                case EndedByServer():
                    disconnect = found
                case int():
                    withheld = found
        return Messages(
            statuses, malformed, notices, disconnect, last_cursor, withheld, _marks=kept, _cursor_of=cursor_of
        )

    def _deleted(self, frame: bytes) -> Status:
        """Read a message that says which status is no more; raises one of `_UNREADABLE` if it does not."""
        if self._delete is None:
            return Status(frame.decode(), None)
        return Status(str(self._deleted_id(self._delete.decode(frame))), None)

    def _may_delete(self, message: object) -> bool:
        """Whether *message* may be a delete by its content: what has a status's id never is one."""
        return (
            self._deletes_at is not None
            and member(message, self._deletes_at) is not _ABSENT
            and member(message, self._id_at) in (_ABSENT, None)
        )

    def _matched(self, message: object) -> bytes:
        rules = b"" if self._rules is None else bytes(self._rules(message))
        return rules if len(rules) <= MAX_RULES_BYTES else b""

    def _explain(self, frame: bytes, error: Exception) -> _Found:
        """Say why *frame* is no status."""
        try:
            frame.decode()
            message = msgspec.json.decode(frame)
        except _UNREADABLE as unreadable:
            return Malformed("not_json", str(unreadable)[:200], frame)
        if self._may_delete(message):
            try:
                return self._deleted(frame)
            except _UNREADABLE as unfit:
                error = unfit
        if self._disconnect and (announced := member(message, self._disconnect.at)) is not _ABSENT:
            code = member(announced, self._disconnect.code) if self._disconnect.code else _ABSENT
            said = msgspec.json.encode(announced).decode()[:200]
            return EndedByServer(said, None if code is _ABSENT else str(code))
        if self._limit and (count := member(message, self._limit)) is not _ABSENT:
            return _counted(count, frame)
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


def _unfit(status: Status, frame: bytes) -> Malformed:
    """Say why the *status* that *frame* held has no id that can be a record's key."""
    if status.id:
        return Malformed("id_too_long", f"more than {MAX_ID_CHARS} characters", frame)
    return Malformed("no_id", "the id is empty", frame)


def _counted(count: object, frame: bytes) -> int | Malformed:
    if isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= MAX_WITHHELD:
        return count
    return Malformed("no_count", "the number of withheld statuses is no integer, or out of range", frame)


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
