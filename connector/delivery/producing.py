"""What both ways of writing share: how a producer is set up, and how it is fed. Blocking."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from confluent_kafka import Producer

from connector.delivery.records import Record

CALL_TIMEOUT_S = 5.0
"""How long a call to Kafka may take until it counts as failed."""

RETRY_BACKOFF_S = 0.25
"""librdkafka's pause before it sends a request again; well above a healthy commit."""

_LARGEST_BATCH_BYTES = 1_000_000


def properties(kafka: Mapping[str, object], max_record_bytes: int) -> dict[str, Any]:
    """Return a producer's properties.

    Args:
        kafka: librdkafka properties: where Kafka is.
        max_record_bytes: the longest record it may accept. No batch is longer either: the broker holds
            batches against the topic's limit, not records.
    """
    return {
        **kafka,
        # Starting over from the bootstrap servers, once no broker is connected, forgets the brokers but not
        # which of them coordinates the group: send_offsets then waits for it without end, whatever its
        # timeout. A new producer starts from there too, and is made after each failure.
        "metadata.recovery.strategy": "none",
        "retry.backoff.ms": int(RETRY_BACKOFF_S * 1000),
        "partitioner": "murmur2_random",  # the partition Kafka's own clients choose
        "message.max.bytes": max_record_bytes,
        "linger.ms": 5,
        "batch.size": min(_LARGEST_BATCH_BYTES, max_record_bytes),
        "queue.buffering.max.messages": 1_000_000,
        "queue.buffering.max.kbytes": 1 << 20,
    }


def produce(producer: Producer, written: Iterable[Record]) -> None:
    """Hand records over to *producer*'s queue.

    Raises:
        KafkaException: it takes one of them, or anything, no more.
    """
    for topic, value, key, headers, partition in written:
        while True:
            try:
                producer.produce(topic, value, key, partition, headers=headers)
            except BufferError:  # the client's queue is full: let it send some
                producer.poll(0.05)
            else:
                break
