"""Another number of control partitions: all that counts goes to new topics, in one transaction. Blocking.

Control records, positions and the offset that tells which records were answered hang together, so they go
over together or not at all: whatever interrupts it, it can begin anew. Meanwhile this process is the only
member of the connector's group, so no replica can begin on half of it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from connector.control import relocation
from connector.control.home import home
from connector.control.messages import control_record, is_end
from connector.control.relocation import Answered, Content, stream_of_note, stream_or_none
from connector.delivery import journal, positions, records
from connector.delivery.journal import Page
from connector.delivery.producing import produce, properties
from connector.delivery.records import Record
from connector.delivery.restore import Restored, restore
from connector.errors import CopyRefused
from connector.model import ControlRecord, Position, StreamId, Topics

_TIMEOUT_S = 30.0
_TRANSACTION_TIMEOUT_S = 300.0
_MEMBERSHIP_S = 1800.0
_MAX_RECORD_BYTES = 1 << 20
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Copied:
    """What went over.

    Attributes:
        streams: how many have a position.
        keys: how many control keys contribute or wait.
        fresh: how many control records are still to be answered.
    """

    streams: int
    keys: int
    fresh: int


class _Part(NamedTuple):
    """One old control partition: what of it goes over."""

    content: Content
    positions: Mapping[StreamId, Position]
    pages: Mapping[StreamId, Sequence[Page]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repartition:
    """The way from some topics to others.

    Attributes:
        kafka: librdkafka properties: where Kafka is.
        group: the connector's consumer group.
        old: the topics to go from; of them all but the control topic and the positions stay.
        new: the topics to go to.
        partitions: how many control partitions there are to be.
        session_timeout_s: how long the group takes this process for alive, should it die.
    """

    kafka: Mapping[str, Any]
    group: str
    old: Topics
    new: Topics
    partitions: int
    session_timeout_s: float

    def run(self) -> Copied:
        """Copy.

        Raises:
            CopyRefused: somebody runs, the new topics are in use, or the old ones cannot be understood.
            KafkaException: Kafka refused, or did not answer in time. Nothing was copied then.
        """
        with self._alone() as member:
            producer = self._producer()  # ends what an interrupted copy left open
            reader = self._reader()
            try:
                for topic in (self.new.predicates, self.new.positions):
                    if any(True for _ in self._all_of(reader, topic)):
                        raise CopyRefused(
                            f"topic {topic!r} is not empty: the copy was made already, or it is in use"
                        )
                parts = self._read(reader)
            finally:
                reader.close()
            self._write(producer, member, parts)
        return Copied(
            sum(len(part.positions) for part in parts),
            sum(len(part.content.answered) for part in parts),
            sum(len(part.content.fresh) for part in parts),
        )

    # The group

    @contextmanager
    def _alone(self) -> Iterator[Consumer]:
        """Be the group's only member: who joins later waits, or spoils the transaction."""
        if self._members():
            raise CopyRefused(f"group {self.group!r} has members: stop all replicas first")
        member = Consumer(
            {
                **self.kafka,
                "group.id": self.group,
                "partition.assignment.strategy": "cooperative-sticky",
                "enable.auto.commit": False,
                "session.timeout.ms": int(self.session_timeout_s * 1000),
                "max.poll.interval.ms": int(_MEMBERSHIP_S * 1000),
                "isolation.level": "read_committed",
            }
        )
        try:
            member.subscribe([self.new.predicates])
            deadline_at = time.monotonic() + _TIMEOUT_S
            while len(member.assignment()) < self.partitions:
                message = member.poll(_POLL_S)
                if message is not None:
                    is_end(message)
                if time.monotonic() > deadline_at:
                    raise CopyRefused(f"group {self.group!r} has members: stop all replicas first")
            if self._members() != 1:
                raise CopyRefused(f"group {self.group!r} has members: stop all replicas first")
            yield member
        finally:
            member.close()

    def _members(self) -> int:
        admin = AdminClient(dict(self.kafka))
        (asked,) = admin.describe_consumer_groups([self.group], request_timeout=_TIMEOUT_S).values()
        try:
            return len(asked.result().members)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                return 0
            raise

    # What is there

    def _read(self, reader: Consumer) -> list[_Part]:
        restored = self._restored(_partitions(reader, self.old.positions))
        homes = _homes(restored)
        if homes and not any(one.handled for one in restored):
            raise CopyRefused(
                f"group {self.group!r} has answered nothing on {self.old.predicates!r}, although there are "
                "positions: are these the group and the topic? If its offsets have expired, start the "
                "connector on the old topics once more"
            )
        parts = []
        for number in range(_partitions(reader, self.old.predicates)):
            its = restored[number] if number < len(restored) else Restored()
            held = [control_record(one) for one in self._until_end(reader, self.old.predicates, number)]

            def is_home(stream: StreamId, number: int = number) -> bool:
                return homes.get(stream, home(stream, len(restored))) == number

            content = relocation.content(number, held, its.handled, its.notes, is_home)
            pages = {stream: pages for stream, pages in its.journals().items() if is_home(stream)}
            parts.append(_Part(content, its.positions, pages))
        return parts

    def _restored(self, partitions: int) -> list[Restored]:
        try:
            return [
                restore(self.kafka, self.group, self.old, number, _TIMEOUT_S) for number in range(partitions)
            ]
        except msgspec.DecodeError as error:
            raise CopyRefused(f"topic {self.old.positions!r} does not hold positions: {error}") from None

    def _all_of(self, reader: Consumer, topic: str) -> Iterator[Message]:
        for number in range(_partitions(reader, topic)):
            yield from self._until_end(reader, topic, number)

    def _until_end(self, reader: Consumer, topic: str, partition: int) -> Iterator[Message]:
        """Yield a partition's committed records up to its end, waiting for transactions that are open."""
        place = TopicPartition(topic, partition)
        uncommitted = Consumer({**self._properties(), "isolation.level": "read_uncommitted"})
        try:
            place.offset, end = uncommitted.get_watermark_offsets(place, timeout=_TIMEOUT_S)
        finally:
            uncommitted.close()
        if place.offset == end:
            return
        reader.assign([place])
        deadline_at = time.monotonic() + _TIMEOUT_S
        while True:
            message = reader.poll(_POLL_S)
            if message is None or is_end(message):
                if message is not None and (message.offset() or 0) >= end:
                    return
                if time.monotonic() > deadline_at:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"{topic}/{partition}"))  # noqa: SLF001
                continue
            deadline_at = time.monotonic() + _TIMEOUT_S
            yield message

    def _reader(self) -> Consumer:
        return Consumer({**self._properties(), "isolation.level": "read_committed"})

    def _properties(self) -> dict[str, Any]:
        return {
            **self.kafka,
            "group.id": self.group,  # required, but not joined: partitions are assigned by hand
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }

    # What is to be there

    def _producer(self) -> Producer:
        producer = Producer(
            {
                **properties(self.kafka, _MAX_RECORD_BYTES),
                "transactional.id": f"{self.group}-repartition",
                "transaction.timeout.ms": int(_TRANSACTION_TIMEOUT_S * 1000),
            }
        )
        producer.init_transactions(_TIMEOUT_S)
        return producer

    def _write(self, producer: Producer, member: Consumer, parts: Sequence[_Part]) -> None:
        producer.begin_transaction()
        try:
            places = self._write_answered(producer, [one for part in parts for one in part.content.answered])
            produce(producer, chain.from_iterable(self._state(part) for part in parts))
            # Behind what is answered: an offset between them is all that will tell them apart.
            produce(producer, (self._moved(record) for part in parts for record in part.content.fresh))
            _flush(producer)
            handled = dict.fromkeys(range(self.partitions), 0)
            for partition, offset in places:
                handled[partition] = max(handled[partition], offset + 1)
            offsets = [TopicPartition(self.new.predicates, *place) for place in handled.items()]
            producer.send_offsets_to_transaction(offsets, member.consumer_group_metadata(), _TIMEOUT_S)
            producer.commit_transaction(_TIMEOUT_S)
        except BaseException:
            with suppress(KafkaException):
                producer.abort_transaction(_TIMEOUT_S)
            raise

    def _write_answered(
        self, producer: Producer, answered: Sequence[Answered]
    ) -> Collection[tuple[int, int]]:
        """Write what counts, and who waits for an answer to it; return where each is."""
        places: dict[int, tuple[int, int]] = {}

        def delivered(number: int, error: KafkaError | None, message: Message) -> None:
            partition, offset = message.partition(), message.offset()
            if error is None and partition is not None and offset is not None:
                places[number] = partition, offset

        for number, one in enumerate(answered):
            topic, value, key, headers, partition = self._moved(one.record)
            report = partial(delivered, number)
            producer.produce(topic, value, key, partition, headers=headers, on_delivery=report)
            producer.poll(0)
        _flush(producer)
        if len(places) < len(answered):
            raise KafkaException(KafkaError(KafkaError._FAIL, "records are not taken"))  # noqa: SLF001
        waiting = [note for number, one in enumerate(answered) if (note := one.note(*places[number]))]
        produce(producer, (self._note(*note) for note in waiting))
        return places.values()

    def _state(self, part: _Part) -> Iterator[Record]:
        for stream, position in part.positions.items():
            yield self._note(stream, positions.encode(position))
        for stream, pages in part.pages.items():
            for page in pages:
                yield self._note(*journal.note(stream, page))
        for key, note in part.content.notes.items():
            yield self._note(key, note)

    def _note(self, key: str, value: bytes | None) -> Record:
        stream = stream_of_note(key) if "/" in key else key
        return records.of_note(self.new.positions, home(stream, self.partitions), key, value)

    def _moved(self, record: ControlRecord) -> Record:
        stream = stream_or_none(record)
        to = record.partition % self.partitions if stream is None else home(stream, self.partitions)
        return records.of_move(self.new.predicates, record, to)


def _homes(restored: Sequence[Restored]) -> dict[StreamId, int]:
    """Return where each stream's state is: not where the topics' partitions say, if some were added."""
    homes: dict[StreamId, int] = {}
    for number, one in enumerate(restored):
        for stream in one.positions:
            if stream in homes:
                raise CopyRefused(
                    f"stream {stream!r} has positions in partitions {homes[stream]} and {number}: it went on "
                    "after partitions were added to the old topics, and nobody can tell which one counts"
                )
            homes[stream] = number
    return homes


def _partitions(client: Consumer, topic: str) -> int:
    # All of them: asking for one by name creates it where brokers create what is missing.
    found = client.list_topics(timeout=_TIMEOUT_S).topics
    if topic not in found:
        raise CopyRefused(f"there is no topic {topic!r}")
    return len(found[topic].partitions)


def _flush(producer: Producer) -> None:
    if producer.flush(_TIMEOUT_S):
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "records are not taken"))  # noqa: SLF001
