"""As much of Kafka's wire protocol as a fault proxy needs: who asks what, and how to refuse it. Pure.

A message is a table of fields; one encoder and one decoder serve them all. Only versions whose fields stand
here are understood, any other raises: a proxy that guesses would prove nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any, NamedTuple

Message = dict[str, Any]


class Api(IntEnum):
    """Requests, by the number they have on the wire; API_VERSIONS is the first on each connection."""

    PRODUCE = 0
    METADATA = 3
    FIND_COORDINATOR = 10
    HEARTBEAT = 12
    API_VERSIONS = 18
    INIT_PRODUCER_ID = 22
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28


class Field(NamedTuple):
    """A field of a message.

    Attributes:
        kind: a code of `struct`, or string, bytes, array.
        since: first version of the API that has it.
        of: the fields of an array's elements.
    """

    name: str
    kind: str
    since: int = 0
    of: tuple[Field, ...] = ()


class Layout(NamedTuple):
    """How an API is written.

    Attributes:
        known: the last version that is as described here.
        flexible: the first version with compact strings and tagged fields.
        response_is_whole: whether no field follows those described.
    """

    known: int
    flexible: int
    request: tuple[Field, ...]
    response: tuple[Field, ...]
    response_is_whole: bool = True


_THROTTLE = Field("throttle_ms", "i")
_ERROR = Field("error", "h")
_PRODUCER = (Field("transactional_id", "string"), Field("producer_id", "q"), Field("epoch", "h"))
_BROKER = (Field("node", "i"), Field("host", "string"), Field("port", "i"))


def _topics(*of_partition: Field) -> Field:
    partitions = Field("partitions", "array", of=(Field("partition", "i"), *of_partition))
    return Field("topics", "array", of=(Field("name", "string"), partitions))


LAYOUTS: Mapping[int, Layout] = {
    Api.PRODUCE: Layout(
        12,
        9,
        (
            Field("transactional_id", "string", 3),
            Field("acks", "h"),
            Field("timeout_ms", "i"),
            _topics(Field("records", "bytes")),
        ),
        (
            _topics(
                _ERROR,
                Field("offset", "q"),
                Field("appended_at", "q", 2),
                Field("log_start", "q", 5),
                Field("records", "array", 8, (Field("index", "i"), Field("message", "string"))),
                Field("message", "string", 8),
            ),
            Field("throttle_ms", "i", 1),
        ),
    ),
    Api.METADATA: Layout(
        13,
        9,
        (),
        (Field("throttle_ms", "i", 3), Field("brokers", "array", of=(*_BROKER, Field("rack", "string", 1)))),
        response_is_whole=False,
    ),
    Api.FIND_COORDINATOR: Layout(
        3,
        3,
        (),
        (Field("throttle_ms", "i", 1), _ERROR, Field("message", "string", 1), *_BROKER),
    ),
    Api.INIT_PRODUCER_ID: Layout(
        5,
        2,
        (
            Field("transactional_id", "string"),
            Field("timeout_ms", "i"),
            Field("producer_id", "q", 3),
            Field("epoch", "h", 3),
        ),
        (_THROTTLE, _ERROR, Field("producer_id", "q"), Field("epoch", "h")),
    ),
    Api.ADD_PARTITIONS_TO_TXN: Layout(2, 3, (*_PRODUCER, _topics()), (_THROTTLE, _topics(_ERROR))),
    Api.ADD_OFFSETS_TO_TXN: Layout(4, 3, (*_PRODUCER, Field("group", "string")), (_THROTTLE, _ERROR)),
    Api.END_TXN: Layout(4, 3, (*_PRODUCER, Field("committed", "?")), (_THROTTLE, _ERROR)),
    Api.TXN_OFFSET_COMMIT: Layout(
        5,
        3,
        (
            Field("transactional_id", "string"),
            Field("group", "string"),
            Field("producer_id", "q"),
            Field("epoch", "h"),
            Field("generation", "i", 3),
            Field("member", "string", 3),
            Field("instance", "string", 3),
            _topics(Field("offset", "q"), Field("leader_epoch", "i", 2), Field("metadata", "string")),
        ),
        (_THROTTLE, _topics(_ERROR)),
    ),
}


@dataclass(frozen=True)
class Request:
    """A request as it came, without the length before it.

    Attributes:
        api: of any number; those that are in `Api` can be read.
        correlation: names the request among its connection's.
    """

    frame: bytes
    api: int
    version: int
    correlation: int

    @classmethod
    def of(cls, frame: bytes) -> Request:
        """Read the head of *frame*."""
        return cls(frame, *struct.unpack_from(">hhi", frame))

    @property
    def layout(self) -> Layout:
        """How it is written.

        Raises:
            ValueError: its version is not described here.
        """
        layout = LAYOUTS[self.api]
        if self.version > layout.known:
            raise ValueError(f"{Api(self.api).name} version {self.version} is not described")
        return layout

    @cached_property
    def fields(self) -> Message:
        """What it says."""
        layout = self.layout
        reader = _Reader(self.frame, self.version, compact=False, at=8)
        reader.value(Field("client", "string"))  # never compact
        reader.compact = self.version >= layout.flexible
        reader.tags()
        return reader.struct(layout.request)

    @property
    def topics(self) -> set[str]:
        """The topics it is about."""
        return {topic["name"] for topic in self.fields["topics"]}

    def refusal(self, error: int) -> bytes:
        """Return the response that answers it, each partition of it, with *error*."""
        refused: Message = {"error": error}
        if any(field.name == "topics" for field in self.layout.response):
            refused["topics"] = [
                {
                    "name": topic["name"],
                    "partitions": [
                        {"partition": one["partition"], "error": error, "offset": -1, "appended_at": -1}
                        for one in topic["partitions"]
                    ],
                }
                for topic in self.fields["topics"]
            ]
        return self.response(refused)

    def response(self, fields: Message, rest: bytes = b"") -> bytes:
        """Return the response that says *fields*; what is not among them is zero or empty."""
        layout = self.layout
        writer = _Writer(self.version, compact=self.version >= layout.flexible)
        writer.out += struct.pack(">i", self.correlation)
        writer.tags()
        writer.struct(layout.response, fields, tagged=layout.response_is_whole)
        return bytes(writer.out) + rest

    def read_response(self, frame: bytes) -> tuple[Message, bytes]:
        """Return what the response to this request says, and its bytes beyond the described fields."""
        layout = self.layout
        reader = _Reader(frame, self.version, compact=self.version >= layout.flexible, at=4)
        reader.tags()
        fields = reader.struct(layout.response, tagged=layout.response_is_whole)
        return fields, frame[reader.at :]

    def error_in(self, frame: bytes) -> int:
        """Return the error code in the response to this request; 0 says that all is well."""
        fields, _ = self.read_response(frame)
        partitions = (one for topic in fields.get("topics", ()) for one in topic["partitions"])
        return next((one["error"] for one in (fields, *partitions) if one.get("error")), 0)


@dataclass(slots=True)
class _Reader:
    data: bytes
    version: int
    compact: bool
    at: int = 0

    def struct(self, fields: Sequence[Field], *, tagged: bool = True) -> Message:
        message = {field.name: self.value(field) for field in fields if field.since <= self.version}
        if tagged:
            self.tags()
        return message

    def value(self, field: Field) -> Any:
        match field.kind:
            case "array":
                return [self.struct(field.of) for _ in range(self._size("i"))]
            case "string":
                size = self._size("h")
                return None if size < 0 else self._bytes(size).decode()
            case "bytes":
                size = self._size("i")
                return None if size < 0 else self._bytes(size)
            case code:
                return self._number(code)

    def tags(self) -> None:
        """Pass over the tagged fields."""
        if self.compact:
            for _ in range(self._varint()):
                self._varint()
                self._bytes(self._varint())

    def _size(self, code: str) -> int:
        size: int = self._varint() - 1 if self.compact else self._number(code)
        return size

    def _number(self, code: str) -> Any:
        (number,) = struct.unpack(">" + code, self._bytes(struct.calcsize(">" + code)))
        return number

    def _varint(self) -> int:
        number = shift = 0
        while True:
            (byte,) = self._bytes(1)
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    def _bytes(self, size: int) -> bytes:
        found = self.data[self.at : self.at + size]
        if len(found) < size:
            raise ValueError("the message ends too soon")
        self.at += size
        return found


class _Writer:
    def __init__(self, version: int, *, compact: bool) -> None:
        self.version = version
        self.compact = compact
        self.out = bytearray()

    def struct(self, fields: Sequence[Field], message: Message, *, tagged: bool = True) -> None:
        for field in fields:
            if field.since <= self.version:
                self._value(field, message.get(field.name))
        if tagged:
            self.tags()

    def tags(self) -> None:
        """Say that there are no tagged fields."""
        if self.compact:
            self.out.append(0)

    def _value(self, field: Field, value: Any) -> None:
        match field.kind:
            case "array":
                elements = value or []
                self._size("i", len(elements))
                for element in elements:
                    self.struct(field.of, element)
            case "string" | "bytes" as kind:
                encoded = value.encode() if isinstance(value, str) else value
                self._size("h" if kind == "string" else "i", -1 if encoded is None else len(encoded))
                self.out += encoded or b""
            case code:
                self.out += struct.pack(">" + code, value or 0)

    def _size(self, code: str, size: int) -> None:
        if not self.compact:
            self.out += struct.pack(">" + code, size)
            return
        size += 1
        while size >= 0x80:
            self.out.append(size & 0x7F | 0x80)
            size >>= 7
        self.out.append(size)
