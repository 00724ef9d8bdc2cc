"""A partition's state back from the log: control records handled, and its streams' positions.

Blocking; runs in a thread. The order of the three steps matters: committed offsets first (which waits for
a predecessor's pending transaction), then the end of the positions, then the positions up to that end.
Any other order can miss what a predecessor was just committing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from connector.delivery import journal, positions
from connector.delivery.journal import Page
from connector.model import Position, StreamId, Topics

_CALL_TIMEOUT_S = 5.0


@dataclass(slots=True)
class Restored:
    """What the log says about one control partition.

    Attributes:
        handled: the first control offset not yet handled.
        positions: how far each stream has come.
        notes: what else was written beside the positions, by key.
    """

    handled: int = 0
    positions: dict[StreamId, Position] = field(default_factory=dict)
    notes: dict[str, bytes] = field(default_factory=dict)
    _seen: dict[str, bytes] = field(default_factory=dict)  # pages of journals, by key

    def journals(self) -> dict[StreamId, list[Page]]:
        """Return each stream's journal, oldest page first."""
        values: dict[StreamId, list[bytes]] = {}
        for key, value in self._seen.items():
            values.setdefault(journal.stream_of(key), []).append(value)
        return {stream: journal.read(its) for stream, its in values.items()}

    def take(self, key: str, value: bytes | None) -> None:
        """Take in a record of the positions topic."""
        if value is None:
            self.positions.pop(key, None)
            self.notes.pop(key, None)
            self._seen.pop(key, None)
        elif key.startswith(journal.PREFIX):
            self._seen[key] = value
        elif "/" in key:  # no stream's name has one
            self.notes[key] = value
        else:
            self.positions[key] = positions.decode(value)


def restore(
    kafka: Mapping[str, object], group: str, topics: Topics, partition: int, timeout_s: float
) -> Restored:
    """Read what is committed for control partition *partition*.

    Args:
        kafka: librdkafka properties: where Kafka is.
        group: the consumer group whose offsets count control records.
        topics: their names.
        partition: of the control topic, and of the positions topic.
        timeout_s: must exceed the brokers' patience with a dead owner's open transaction.

    Raises:
        KafkaException: Kafka did not answer in time; trying again may help.
    """
    deadline_at = time.monotonic() + timeout_s
    config = {
        **kafka,
        "group.id": group,
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "auto.offset.reset": "earliest",
        "fetch.wait.max.ms": 50,
    }
    # Never subscribed, so it does not join the group; and a look-up never queues behind a poll.
    with _consumer({**config, "isolation.level": "read_committed"}) as consumer:
        handled = _committed(consumer, TopicPartition(topics.predicates, partition), deadline_at)
        with _consumer({**config, "isolation.level": "read_uncommitted"}) as uncommitted:
            mirror = TopicPartition(topics.positions, partition)
            start, end = uncommitted.get_watermark_offsets(mirror, timeout=_CALL_TIMEOUT_S)
        restored = Restored(handled)
        if start < end:
            mirror.offset = start
            _read(consumer, mirror, end, deadline_at, restored)
    return restored


def _committed(consumer: Consumer, control: TopicPartition, deadline_at: float) -> int:
    """Return the committed offset; waits while a transaction on it is pending."""
    while True:
        try:
            (found,) = consumer.committed([control], timeout=_CALL_TIMEOUT_S)
        except KafkaException:
            if time.monotonic() > deadline_at:
                raise
        else:
            if found.error is not None:
                raise KafkaException(found.error)
            return max(0, found.offset)  # no offset yet is a negative number


def _read(
    consumer: Consumer,
    mirror: TopicPartition,
    end: int,
    deadline_at: float,
    into: Restored,
) -> None:
    consumer.assign([mirror])
    while True:
        for message in consumer.consume(1000, 0.2):
            error = message.error()
            if error is None:
                key, value = message.key(), message.value()
                assert key is not None
                into.take(key.decode(), value)
            elif error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001 (the library's public name for it)
                raise KafkaException(error)
            elif (message.offset() or 0) >= end:
                return
        if time.monotonic() > deadline_at:
            raise KafkaException(
                KafkaError(KafkaError._TIMED_OUT, f"positions {mirror.partition} up to {end}")  # noqa: SLF001
            )


@contextlib.contextmanager
def _consumer(config: Mapping[str, object]) -> Iterator[Consumer]:
    consumer = Consumer(dict(config))
    try:
        yield consumer
    finally:
        consumer.close()
