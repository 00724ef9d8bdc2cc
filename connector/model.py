"""The nouns every room shares. Pure values: no behaviour beyond telling what they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import orjson

StreamId = str
"""A stream's name in the configuration, and the first part of its control keys."""

MOVED_FROM = "moved-from"
"""Header of a control record that was moved: ``<partition>/<offset>`` where its publisher put it."""

DEALT = "dealt"
"""Header of a control record that the connector put, for a share of a stream."""

NOWHERE = -1
"""Offset of a control record that was on no topic before."""


class Status(NamedTuple):
    """One status, or word that it is no more.

    Attributes:
        id: becomes the record's key.
        body: byte for byte what the upstream sent; None where it deleted the status: a tombstone.
        rules: which predicates it matched, in the upstream's own JSON; empty where it does not say.
    """

    id: str
    body: bytes | None
    rules: bytes = b""


@dataclass(frozen=True)
class PredicateSet:
    """What a stream asks its upstream for, normalised so that equal sets are equal.

    Attributes:
        terms: (name, values) pairs sorted by name; values sorted and unique, never empty.
    """

    terms: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @classmethod
    def of(cls, terms: Mapping[str, Iterable[str]]) -> PredicateSet:
        """Normalise *terms*, dropping names without values."""
        pairs = ((name, tuple(sorted(set(values)))) for name, values in sorted(terms.items()))
        return cls(tuple((name, values) for name, values in pairs if values))

    @classmethod
    def union(cls, sets: Iterable[PredicateSet]) -> PredicateSet:
        """Return the set that asks for all that any of *sets* asks for."""
        merged: dict[str, set[str]] = {}
        for one in sets:
            for name, values in one.terms:
                merged.setdefault(name, set()).update(values)
        return cls.of(merged)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked for, so that no connection is wanted."""
        return not self.terms

    @cached_property
    def version(self) -> str:
        """Twelve hex digits of the content's SHA-256: the same set has the same version everywhere."""
        return hashlib.sha256(orjson.dumps(self.terms)).hexdigest()[:12]

    def as_dict(self) -> dict[str, list[str]]:
        """Return the set in the shape of a control record's value."""
        return {name: list(values) for name, values in self.terms}

    def __bool__(self) -> bool:
        raise TypeError("ask for is_empty: the truth of a predicate set is ambiguous")


class ControlRecord(NamedTuple):
    """A record of the control topic, as consumed.

    Attributes:
        value: None removes the key's contribution.
        published: (partition, offset) where its publisher put it, if it was moved from there.
        is_dealt: the connector put it, for a share of the stream that it is about.
    """

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    published: tuple[int, int] | None = None
    is_dealt: bool = False


class Note(NamedTuple):
    """Something about a partition's streams to be found again after a restart, beside the positions.

    Attributes:
        key: has a ``/`` in it, which no stream's name has. Without one it is a position, to be taken back.
        value: None takes it back.
    """

    key: str
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Event:
    """A lifecycle event; becomes a CloudEvent on the events topic.

    Attributes:
        type: ``noun.past_participle``, e.g. ``predicates.applied``.
        stream: the stream it is about, and the record's key; None when the record named none.
        data: JSON-able members.
    """

    type: str
    stream: StreamId | None
    data: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Bytes that could not be used, kept with the reason.

    Attributes:
        reason: a stable code, e.g. ``not_json``.
        origin: where the bytes came from: ``upstream`` or ``topic/partition/offset``.
        copy_bytes: longest copy of the value that is kept; its hash is of the whole.
    """

    reason: str
    detail: str
    stream: StreamId | None
    origin: str
    key: bytes | None
    value: bytes | None
    copy_bytes: int = 256 * 1024


@dataclass(frozen=True, slots=True)
class Position:
    """How far a stream has come; written in the transaction of the statuses it counts.

    Attributes:
        seq: number of the stream's last status; 0 before the first.
        cursor: what the upstream needs to resume after that status, where it can.
        predicates: version of the predicate set in force.
        attempts: when the upstream was asked lately, in seconds since the epoch; its connect budget
            counts them, whichever process asked.
        heard_at: when the upstream was heard last, in seconds since the epoch: what it sent since then may
            be missing. None before the first time.
    """

    seq: int = 0
    cursor: str | None = None
    predicates: str | None = None
    attempts: tuple[float, ...] = ()
    heard_at: float | None = None


class Tenure(NamedTuple):
    """One uninterrupted ownership of a control partition.

    A partition that was lost and came back has another tenure: what was read under the old one must
    never be written under the new one, because somebody else may have written it in between.
    """

    partition: int
    term: int


@dataclass(frozen=True, slots=True)
class Grant:
    """What this replica owns, and the proof of it, as of one moment.

    Attributes:
        tenures: control partitions owned.
        metadata: the group metadata that proves it to the broker; None while there is no proof.
    """

    tenures: frozenset[Tenure] = frozenset()
    metadata: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Topics:
    """Names of the topics that the connector reads and writes."""

    predicates: str
    statuses: str
    positions: str
    events: str
    dlq: str
