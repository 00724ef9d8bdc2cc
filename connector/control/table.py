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
    MAX_KEY_BYTES,
    Contribution,
    Contributions,
    Limits,
    check_size,
    check_union,
    parse,
    stream_of,
)
from connector.control.shares import SUFFIX_BYTES, names, whole
from connector.errors import PredicatesRejected
from connector.model import ControlRecord, Note, StreamId

_KEPT = "kept/"

_NOT_OURS = frozenset({"key_missing", "key_too_long", "key_not_utf8", "unknown_stream", "share_key"})


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


class Gone(NamedTuple):
    """A record that the connector put for a share that there is no more, or not yet."""

    stream: StreamId


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
        shared: how many shares those streams have that have several. Their contributions are dealt.
    """

    limits: Mapping[StreamId, Mapping[str, Limits]]
    partition: int
    partitions: int
    shared: Mapping[StreamId, int] = field(default_factory=dict)
    _shares: frozenset[StreamId] = field(init=False)
    _streams: dict[StreamId, Contributions] = field(default_factory=dict, init=False)
    _kept: dict[bytes, Kept] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._shares = frozenset(share for its in self.shared.items() for share in names(*its))

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
            is_kept = kept is not None and kept.offset == record.offset
            value = kept.value if kept is not None and is_kept else record.value
            try:
                stream = self._stream_of(record)
                if not is_kept:
                    self._check_dealt(record, stream)
                if self._home(stream) == self.partition:
                    self.of(stream).put(key or b"", self._read(stream, value))
            except PredicatesRejected as rejected:
                if rejected.reason not in _NOT_OURS:
                    unfit.append((record, rejected))
        return unfit

    def take(self, record: ControlRecord) -> Taken | Elsewhere | Gone:
        """Take in a record that nobody has answered yet.

        Raises:
            PredicatesRejected: it must change nothing; `keep` sees to it that it never does.
        """
        if record.is_dealt and (gone := stream_of(record.key)) not in self.limits:
            return Gone(gone)
        stream = self._stream_of(record)
        self._check_dealt(record, stream)
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
            known = ", ".join(sorted(self.limits.keys() - self._shares))
            raise PredicatesRejected("unknown_stream", f"no stream {stream[:80]!r}; there are: {known}")
        return stream

    def _check_dealt(self, record: ControlRecord, stream: StreamId) -> None:
        key = record.key or b""
        if stream in self._shares and not record.is_dealt:
            raise PredicatesRejected("share_key", f"shares have no publishers: use {whole(stream)!r}")
        if stream in self.shared and len(key) > MAX_KEY_BYTES - SUFFIX_BYTES:
            longest = MAX_KEY_BYTES - SUFFIX_BYTES
            raise PredicatesRejected("key_too_long", f"{len(key)} bytes; at most {longest} for shares")

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
