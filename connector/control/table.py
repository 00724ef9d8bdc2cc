"""One control partition as a table: which publisher asks what of which stream. Pure.

The table is rebuilt from the topic, which is compacted: of each key the newest record is there. Where that
one was rejected, what its key contributes is no longer on the topic; a note says what stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from connector.control.home import home
from connector.control.predicates import (
    Contribution,
    Contributions,
    Limits,
    check_size,
    check_union,
    parse,
    stream_of,
)
from connector.errors import PredicatesRejected
from connector.model import ControlRecord, Note, StreamId

_KEPT = "kept/"

_NOT_OURS = frozenset({"key_missing", "key_too_long", "key_not_utf8", "unknown_stream"})


class Taken(NamedTuple):
    """A record that counts.

    Attributes:
        note: to be written with its answer, if any.
    """

    stream: StreamId
    note: Note | None


class Elsewhere(NamedTuple):
    """A record whose stream has its home in the partition *to*."""

    stream: StreamId
    to: int


class Kept(NamedTuple):
    """What a key contributes although its record at *offset* says otherwise: a control record's value."""

    offset: int
    value: bytes | None


@dataclass(slots=True, kw_only=True)
class Table:
    """What is asked of the streams whose home is one partition.

    Attributes:
        limits: the predicates of every configured stream's upstream, by stream and name.
        partition: which one.
        partitions: how many there are.
    """

    limits: Mapping[StreamId, Mapping[str, Limits]]
    partition: int
    partitions: int
    _streams: dict[StreamId, Contributions] = field(default_factory=dict, init=False)
    _kept: dict[bytes, Kept] = field(default_factory=dict, init=False)

    def of(self, stream: StreamId) -> Contributions:
        """Return what each publisher asks of *stream*."""
        return self._streams.setdefault(stream, Contributions())

    def load(
        self, records: Iterable[ControlRecord], notes: Mapping[str, bytes]
    ) -> list[tuple[ControlRecord, PredicatesRejected]]:
        """Rebuild the table from records that were answered before, and from notes.

        Returns:
            The records that were good when they were answered, but are so no more: settings have changed.
        """
        self._kept = noted_kept(notes)
        newest = {record.key: record for record in records}
        unfit = []
        for key, record in newest.items():
            kept = self._kept.get(key or b"")
            value = kept.value if kept is not None and kept.offset == record.offset else record.value
            try:
                stream = self._stream_of(record)
                if self._home(stream) == self.partition:
                    self.of(stream).put(key or b"", self._read(stream, value))
            except PredicatesRejected as rejected:
                if rejected.reason not in _NOT_OURS:
                    unfit.append((record, rejected))
        return unfit

    def take(self, record: ControlRecord) -> Taken | Elsewhere:
        """Take in a record that nobody has answered yet.

        Raises:
            PredicatesRejected: it must change nothing; `keep` sees to it that it never does.
        """
        stream = self._stream_of(record)
        check_size(record.value or b"")
        contribution = self._read(stream, record.value)
        if (to := self._home(stream)) != self.partition:
            return Elsewhere(stream, to)
        key, contributions = record.key or b"", self.of(stream)
        before, former = contributions.union(), contributions.get(key)
        contributions.put(key, contribution)
        try:
            check_union(contributions.union(), before, self.limits[stream])
        except PredicatesRejected:
            contributions.put(key, former)
            raise
        note = None if self._kept.pop(key, None) is None else Note(_KEPT + key.decode(), None)
        return Taken(stream, note)

    def keep(self, record: ControlRecord) -> Note | None:
        """Return the note that a rejected *record* needs; None if it cannot count after a restart."""
        try:
            stream = self._stream_of(record)
        except PredicatesRejected:
            return None
        if self._home(stream) != self.partition:
            return None
        key = record.key or b""
        contribution = self.of(stream).get(key)
        value = None if contribution is None else orjson.dumps(contribution.as_dict())
        kept = self._kept[key] = Kept(record.offset, value)
        return Note(_KEPT + key.decode(), _encode(kept))

    def _stream_of(self, record: ControlRecord) -> StreamId:
        stream = stream_of(record.key)
        if stream not in self.limits:
            known = ", ".join(sorted(self.limits))
            raise PredicatesRejected("unknown_stream", f"no stream {stream[:80]!r}; there are: {known}")
        return stream

    def _home(self, stream: StreamId) -> int:
        return home(stream, self.partitions)

    def _read(self, stream: StreamId, value: bytes | None) -> Contribution | None:
        return None if value is None else parse(value, self.limits[stream])


def noted_kept(notes: Mapping[str, bytes]) -> dict[bytes, Kept]:
    """Return what stays of keys whose newest record was rejected, by control key."""
    return {
        key.removeprefix(_KEPT).encode(): _decode(value) for key, value in notes.items() if is_of_kept(key)
    }


def is_of_kept(key: str) -> bool:
    """Whether a note of that key says what stays of a control key."""
    return key.startswith(_KEPT)


def _encode(kept: Kept) -> bytes:
    return b"%d %b" % (kept.offset, kept.value or b"")


def _decode(note: bytes) -> Kept:
    offset, _, value = note.partition(b" ")
    return Kept(int(offset), value or None)
