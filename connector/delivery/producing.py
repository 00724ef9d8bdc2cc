"""What both ways of writing share: how a producer is set up, and how it is fed. Blocking."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from connector.delivery.records import Record

CALL_TIMEOUT_S = 5.0
"""How long a call to Kafka may take until it counts as failed."""

RETRY_BACKOFF_S = 0.25
"""librdkafka's pause before it sends a request again; well above a healthy commit."""

_LARGEST_BATCH_BYTES = 1_000_000

_DEFAULTS = {
    "compression.type": "lz4",  # of JSON a third is left, for a fifteenth more CPU: docs/adr/0012
    "linger.ms": 5,
}


def properties(kafka: Mapping[str, object], max_record_bytes: int) -> dict[str, Any]:
    """Return a producer's properties.

    Args:
        kafka: librdkafka properties: where Kafka is, and what is to be other than `_DEFAULTS`.
        max_record_bytes: the longest record it may accept. No batch is longer either: the broker holds
            batches against the topic's limit, not records.
    """
    return {
        **_DEFAULTS,
        **kafka,
        # Starting over from the bootstrap servers, once no broker is connected, forgets the brokers but not
        # which of them coordinates the group: send_offsets then waits for it without end, whatever its
        # timeout. A new producer starts from there too, and is made after each failure.
        "metadata.recovery.strategy": "none",
        "retry.backoff.ms": int(RETRY_BACKOFF_S * 1000),
        "partitioner": "murmur2_random",  # the partition Kafka's own clients choose
        "message.max.bytes": max_record_bytes,
        "batch.size": min(_LARGEST_BATCH_BYTES, max_record_bytes),
        "queue.buffering.max.messages": 1_000_000,
        "queue.buffering.max.kbytes": 1 << 20,
    }


def make(properties: Mapping[str, Any]) -> Producer:
    """Make a producer that tells nobody why a record was not delivered."""
    return Producer(dict(properties))


def make_reporting(properties: Mapping[str, Any]) -> tuple[Producer, list[KafkaError]]:
    """Make a producer, and a list of why records were not delivered, to which `produce` and `flush` add.

    Reports are not free: for each record, delivered or not, the thread waits for Python's lock once.
    """
    undelivered: list[KafkaError] = []

    def reported(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            undelivered.append(error)

    return Producer({**properties, "delivery.report.only.error": True, "on_delivery": reported}), undelivered


def produce(producer: Producer, written: Iterable[Record]) -> None:
    """Hand records over to *producer*'s queue.

    Raises:
        KafkaException: it takes one of them, or anything, no more.
    """
    take = producer.produce
    for topic, value, key, headers, partition in written:
        while True:
            try:
                take(topic, value, key, partition, headers=headers)
            except BufferError:  # the client's queue is full: let it send some
                with _reporting():
                    producer.poll(0.05)
            else:
                break


def flush(producer: Producer) -> None:
    """Wait until each record in the queue is delivered, or is not.

    Raises:
        KafkaException: they are not taken in time, or the producer is of no further use.
    """
    with _reporting():
        left = producer.flush(CALL_TIMEOUT_S)
    if left:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "records are not taken"))  # noqa: SLF001


@contextlib.contextmanager
def _reporting() -> Iterator[None]:
    """Let reports come. After a fatal error they come with its exception pending, which Python takes ill."""
    try:
        yield
    except SystemError as broken:
        if isinstance(broken.__cause__, KafkaException):
            raise broken.__cause__ from None
        raise
