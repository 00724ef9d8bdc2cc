"""Statuses, events and dead letters as Kafka records. Pure.

A header's value is bytes; librdkafka copies what it is given, so shared header lists are safe.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import repeat
from operator import attrgetter
from typing import NamedTuple

import orjson

from connector.model import DEALT, MOVED_FROM, NOWHERE, ControlRecord, DeadLetter, Event, Status

Headers = list[tuple[str, str | bytes | None]]


class Record(NamedTuple):
    """What `produce` takes. *partition* -1 lets the partitioner choose by key."""

    topic: str
    value: bytes | None
    key: bytes | str | None
    headers: Headers
    partition: int = -1


_record = partial(tuple.__new__, Record)  # as `Record` does, but without a call of Python's own each
_id, _body, _rules = (attrgetter(name) for name in Status._fields)


def of_statuses(
    topic: str, stream: str, version: str, after_seq: int, statuses: Sequence[Status]
) -> Iterator[Record]:
    """Return the records of *statuses*, numbered on from *after_seq*."""
    shared: Headers = [("stream", stream.encode()), ("predicates", version.encode())]
    numbers = range(after_seq + 1, after_seq + 1 + len(statuses))
    headers: list[Headers] = [[*shared, ("seq", b"%d" % seq)] for seq in numbers]
    if any(map(_rules, statuses)):
        for its, status in zip(headers, statuses, strict=True):
            if status.rules:
                its.append(("rules", status.rules))
    values = map(_body, statuses), map(_id, statuses), headers
    return map(_record, zip(repeat(topic), *values, repeat(-1), strict=False))


def of_event(topic: str, source: str, identity: str, at: float, event: Event) -> Record:
    """Return *event* as a CloudEvent 1.0 in JSON (structured content mode).

    Args:
        topic: where it goes.
        source: URI reference of the replica that saw it.
        identity: unique among the source's events.
        at: when, in seconds since the epoch.
        event: what.
    """
    when = dt.datetime.fromtimestamp(at, dt.UTC)
    value = {
        "specversion": "1.0",
        "id": identity,
        "source": source,
        "type": event.type,
        "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": event.data,
    }
    if event.stream is not None:
        value["subject"] = event.stream
    headers: Headers = [("content-type", b"application/cloudevents+json; charset=utf-8")]
    return Record(topic, orjson.dumps(value), event.stream, headers)


def of_dead_letter(topic: str, letter: DeadLetter) -> Record:
    """Return *letter* with its reason in headers; its bytes untouched, unless very long."""
    value = letter.value
    headers: Headers = [
        ("reason", letter.reason.encode()),
        ("detail", letter.detail.encode(errors="replace")),
        ("origin", letter.origin.encode()),
    ]
    if letter.stream is not None:
        headers.append(("stream", letter.stream.encode(errors="replace")))
    if value is not None:
        headers.append(("sha256", hashlib.sha256(value).hexdigest().encode()))
        if len(value) > letter.copy_bytes:
            headers.append(("cut", b"%d" % len(value)))
            value = value[: letter.copy_bytes]
    return Record(topic, value, letter.key, headers)


def of_note(topic: str, partition: int, key: str, value: bytes | None) -> Record:
    """Return a position's or a note's record, in the partition that mirrors the stream's home."""
    return Record(topic, value, key, [], partition)


def of_move(topic: str, moved: ControlRecord, partition: int) -> Record:
    """Return a control record for its stream's home, which says where its publisher put it."""
    headers: Headers = []
    if moved.published is not None or moved.offset != NOWHERE:
        headers.append((MOVED_FROM, b"%d/%d" % (moved.published or (moved.partition, moved.offset))))
    if moved.is_dealt:
        headers.append((DEALT, b""))
    return Record(topic, moved.value, moved.key, headers, partition)
