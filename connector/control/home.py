"""Which control partition is home to a stream. Pure."""

from __future__ import annotations

from connector.model import StreamId

_MASK = 0xFFFFFFFF
_M = 0x5BD1E995


def home(stream: StreamId, partitions: int) -> int:
    """Return the partition that Kafka's own producers choose for the key *stream*.

    Kafka's default partitioner is murmur2 over the key, made positive, modulo the partitions
    (`org.apache.kafka.clients.producer.internals.BuiltInPartitioner`). Other clients hash
    otherwise, and ``<stream>/<publisher>`` keys hash elsewhere, so records are rerouted here.
    """
    return (murmur2(stream.encode()) & 0x7FFFFFFF) % partitions


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
