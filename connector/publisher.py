"""Predicates as a publisher sees them: put, read back, and the answers to them. Blocking."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from typing import Any

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from connector.control.home import home
from connector.control.messages import control_record, is_end
from connector.control.predicates import Contributions, Limits
from connector.control.table import Table
from connector.errors import PredicatesRejected
from connector.model import StreamId, Topics

_TIMEOUT_S = 10.0
_POLL_S = 0.5


class Publisher:
    """One publisher's view of the control topic and of the answers on the events topic."""

    def __init__(self, kafka: Mapping[str, Any], group: str, topics: Topics) -> None:
        """Prepare; nothing is asked yet.

        Args:
            kafka: librdkafka properties: where Kafka is.
            group: the connector's consumer group, which readers have a right to; it is not joined.
            topics: their names.
        """
        self._kafka = dict(kafka)
        self._group = group
        self._topics = topics

    def put(self, stream: StreamId, key: str, value: bytes | None) -> tuple[int, int]:
        """Write a control record to its stream's home; return its partition and offset.

        Raises:
            KafkaException: Kafka refused it, or did not answer in time.
        """
        producer = Producer({**self._kafka, "acks": "all", "message.timeout.ms": int(_TIMEOUT_S * 1000)})
        reports: list[tuple[KafkaError | None, Message]] = []
        partition = home(stream, self._partitions(producer, self._topics.predicates))
        producer.produce(
            self._topics.predicates,
            value,
            key,
            partition=partition,
            on_delivery=lambda error, message: reports.append((error, message)),
        )
        producer.flush(2 * _TIMEOUT_S)
        error, message = reports[0] if reports else (KafkaError(KafkaError._TIMED_OUT), None)  # noqa: SLF001
        if error is not None or message is None:
            raise KafkaException(error)
        offset = message.offset()
        assert offset is not None
        return partition, offset

    def contributions(self, stream: StreamId, limits: Mapping[str, Limits]) -> Contributions:
        """Return who asks what of *stream*, as the connector has it.

        From its home alone: what is found elsewhere counts once it was moved there, and the original stays.

        Args:
            stream: which one.
            limits: the predicates its upstream knows.

        Raises:
            KafkaException: Kafka did not answer in time, or refused.
        """
        consumer = self._consumer()
        try:
            partitions = self._partitions(consumer, self._topics.predicates)
            number = home(stream, partitions)
            (committed,) = consumer.committed(
                [TopicPartition(self._topics.predicates, number)], timeout=_TIMEOUT_S
            )
            if committed.error is not None:
                raise KafkaException(committed.error)
            notes = {}
            for message in self._until_end(consumer, self._topics.positions, number):
                notes[_text(message.key())] = message.value()
            records = [
                control_record(one) for one in self._until_end(consumer, self._topics.predicates, number)
            ]
        finally:
            consumer.close()
        table = Table(limits={stream: limits}, partition=number, partitions=partitions)
        answered = [record for record in records if record.offset < committed.offset]
        table.load(answered, {key: note for key, note in notes.items() if note is not None})
        for record in records[len(answered) :]:
            with suppress(PredicatesRejected):
                table.take(record)
        return table.of(stream)

    def answers(self) -> Generator[dict[str, Any] | None, None, None]:
        """Yield the connector's answers from now on, as CloudEvents; None now and then, to look at a clock.

        The place to read from is fixed with the first item, which is None: what is published after it is
        answered after it.

        Raises:
            KafkaException: Kafka did not answer in time, or refused.
        """
        consumer = self._consumer()
        try:
            ends = []
            for number in range(self._partitions(consumer, self._topics.events)):
                partition = TopicPartition(self._topics.events, number)
                _, partition.offset = consumer.get_watermark_offsets(partition, timeout=_TIMEOUT_S)
                ends.append(partition)
            consumer.assign(ends)
            yield None
            while True:
                message = consumer.poll(_POLL_S)
                yield None if message is None else _answer(message)
        finally:
            consumer.close()

    @staticmethod
    def _until_end(consumer: Consumer, topic: str, partition: int) -> Iterator[Message]:
        place = TopicPartition(topic, partition, 0)
        # As of now: the positions of a lively stream have no end.
        _, end = consumer.get_watermark_offsets(place, timeout=_TIMEOUT_S)
        consumer.assign([place])
        give_up_at = time.monotonic() + _TIMEOUT_S
        while True:
            message = consumer.poll(_POLL_S)
            if message is None:
                if time.monotonic() > give_up_at:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT))  # noqa: SLF001 (its public name)
                continue
            give_up_at = time.monotonic() + _TIMEOUT_S
            if is_end(message) or (message.offset() or 0) >= end:
                return
            yield message

    def _consumer(self) -> Consumer:
        return Consumer(
            {
                **self._kafka,
                "group.id": self._group,  # required, but never joined: partitions are assigned by hand
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
            }
        )

    @staticmethod
    def _partitions(client: Producer | Consumer, topic: str) -> int:
        # All of them: asking for one by name creates it where brokers create what is missing.
        found = client.list_topics(timeout=_TIMEOUT_S).topics
        if topic not in found:
            raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART, f"there is no topic {topic!r}"))
        return len(found[topic].partitions)


def _text(key: bytes | str | None) -> str:
    return key.decode(errors="replace") if isinstance(key, bytes) else key or ""


def _answer(message: Message) -> dict[str, Any] | None:
    """Return the event that *message* holds; None where it is no answer to a control record."""
    if is_end(message):
        return None
    try:
        event = orjson.loads(message.value() or b"")
    except orjson.JSONDecodeError:
        return None
    is_answer = isinstance(event, dict) and str(event.get("type", "")).startswith("predicates.")
    return event if is_answer else None
