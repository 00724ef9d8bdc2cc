"""Which control partition is home to a stream. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from connector.model import DEALT, MOVED_FROM, StreamId

_MASK = 0xFFFFFFFF
_M = 0x5BD1E995


def home(stream: StreamId, partitions: int) -> int:
    """Return the partition that Kafka's own producers choose for the key *stream*.

    Kafka's default partitioner is murmur2 over the key, made positive, modulo the partitions
    (`org.apache.kafka.clients.producer.internals.BuiltInPartitioner`). Other clients hash
    otherwise, and ``<stream>/<publisher>`` keys hash elsewhere, so records are rerouted here.
    """
    return (murmur2(stream.encode()) & 0x7FFFFFFF) % partitions


def published(headers: Iterable[tuple[str, object]]) -> tuple[int, int] | None:
    """Return where a record was published, from its *headers*, if it was moved from there."""
    for name, value in headers:
        if name == MOVED_FROM and isinstance(value, bytes) and re.fullmatch(rb"\d{1,9}/\d{1,18}", value):
            partition, offset = value.split(b"/")
            return int(partition), int(offset)
    return None


def is_dealt(headers: Iterable[tuple[str, object]]) -> bool:
    """Whether a record's *headers* say that the connector put it, for a share of a stream."""
    return any(name == DEALT for name, _ in headers)


def murmur2(data: bytes) -> int:
    """Return Kafka's 32-bit murmur2 of *data*, unsigned (`org.apache.kafka.common.utils.Utils`)."""
    length = len(data)
    h = (0x9747B28C ^ length) & _MASK
    whole = length & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * _M & _MASK
        k = (k ^ (k >> 24)) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    if rest := data[whole:]:
        h = (h ^ int.from_bytes(rest, "little")) * _M & _MASK
    h = (h ^ (h >> 13)) * _M & _MASK
    return h ^ (h >> 15)
