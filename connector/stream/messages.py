"""Frames to statuses: which message is what, touching no more of it than needed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import msgspec

from connector.model import Status
from connector.stream.dialect import Dialect

_ABSENT = msgspec.UNSET
# Deep nesting raises RecursionError, which msgspec does not wrap.
_UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


@dataclass(frozen=True, slots=True)
class Malformed:
    """A frame that is no message: kept whole, with the reason."""

    reason: str
    detail: str
    frame: bytes


@dataclass(frozen=True, slots=True)
class Messages:
    """What one chunk of a stream held.

    Attributes:
        disconnect: what the server said when it announced that it closes the connection.
    """

    statuses: Sequence[Status] = ()
    malformed: Sequence[Malformed] = ()
    disconnect: str | None = None
    _decoded: Sequence[object] = ()
    _cursor_of: Callable[[object], str | int] | None = None

    def cursor_after(self, count: int) -> str | None:
        """Where the upstream can resume after the first *count* statuses; None where it cannot."""
        if self._cursor_of is None or count == 0:
            return None
        return str(self._cursor_of(self._decoded[count - 1]))


class Decoder:
    """Reads the members a dialect names, and only those: the body stays the upstream's bytes."""

    def __init__(self, dialect: Dialect) -> None:
        """Compile the dialect's JSON pointers into typed decoders."""
        pointers = {} if dialect.resume is None else {"cursor": dialect.resume.cursor}
        pointers["id"] = dialect.messages.id  # last: an id that is the cursor too must be a string
        self._status = msgspec.json.Decoder(_shape(pointers, {"id": str, "cursor": str | int}))
        self._id = attrgetter(_path(dialect.messages.id))
        self._cursor = attrgetter(_path(dialect.resume.cursor)) if dialect.resume else None
        self._disconnect = dialect.messages.disconnect

    def decode(self, frames: list[bytes]) -> Messages:
        """Sort *frames* into statuses, announcements and malformed ones."""
        if not frames:
            return Messages()
        try:
            # msgspec skips members it does not need without looking at their UTF-8.
            b"\n".join(frames).decode()
            decode, get_id = self._status.decode, self._id
            decoded = [decode(frame) for frame in frames]
            statuses = [Status(get_id(one), frame) for one, frame in zip(decoded, frames, strict=True)]
        except _UNREADABLE:
            return self._decode_each(frames)  # something among them is no status: find out what
        if not all(status.id for status in statuses):
            return self._decode_each(frames)
        return Messages(statuses, _decoded=decoded, _cursor_of=self._cursor)

    def _decode_each(self, frames: list[bytes]) -> Messages:
        statuses: list[Status] = []
        decoded: list[object] = []
        malformed: list[Malformed] = []
        disconnect = None
        for frame in frames:
            try:
                frame.decode()
                message = self._status.decode(frame)
            except _UNREADABLE as error:
                explained = self._explain(frame, error)
                if isinstance(explained, Malformed):
                    malformed.append(explained)
                else:
                    disconnect = explained
                continue
            if identity := self._id(message):
                statuses.append(Status(identity, frame))
                decoded.append(message)
            else:
                malformed.append(Malformed("no_id", "the id is empty", frame))
        return Messages(statuses, malformed, disconnect, decoded, self._cursor)

    def _explain(self, frame: bytes, error: Exception) -> Malformed | str:
        """Say why *frame* is no status: it is malformed, or announces a disconnect."""
        try:
            frame.decode()
            message = msgspec.json.decode(frame)
        except _UNREADABLE as unreadable:
            return Malformed("not_json", str(unreadable)[:200], frame)
        if self._disconnect and (notice := _member(message, self._disconnect)) is not _ABSENT:
            return msgspec.json.encode(notice).decode()[:200]
        return Malformed("no_id", str(error)[:200], frame)


def _shape(pointers: dict[str, str], types: dict[str, Any]) -> type[msgspec.Struct]:
    """Return a struct with just the members that *pointers* lead to."""
    tree: dict[str, Any] = {}
    for purpose, pointer in pointers.items():
        *parents, last = _segments(pointer)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = types[purpose]
    return _struct(tree)


def _struct(tree: dict[str, Any]) -> type[msgspec.Struct]:
    members = [
        (_attribute(name), _struct(kind) if isinstance(kind, dict) else kind) for name, kind in tree.items()
    ]
    renamed = {_attribute(name): name for name in tree}
    return msgspec.defstruct("Message", members, rename=renamed, gc=False)


def _path(pointer: str) -> str:
    return ".".join(_attribute(name) for name in _segments(pointer))


def _attribute(name: str) -> str:
    """Return an identifier for a member's name, which may be any text."""
    return "m_" + name.encode().hex()


def _segments(pointer: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]


def _member(message: object, pointer: str) -> object:
    for name in _segments(pointer):
        if not isinstance(message, dict) or name not in message:
            return _ABSENT
        message = message[name]
    return message
