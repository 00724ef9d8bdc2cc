"""Exactly once: one Kafka transaction for each batch. Blocking; lives in the writer's thread.

Each transaction sends offsets for every control partition whose records it carries, with the group metadata
taken when the batch was formed. A replica that lost its lease is refused there, and nothing of the batch
becomes visible.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from connector.delivery.batch import Batch
from connector.delivery.producing import (
    CALL_TIMEOUT_S,
    RETRY_BACKOFF_S,
    flush,
    make,
    make_reporting,
    produce,
    properties,
)
from connector.delivery.verdict import Call
from connector.model import Topics

log = structlog.get_logger("connector.transactions")

EPOCH_GUARD_S = 0.6 * RETRY_BACKOFF_S
"""A commit that takes longer may have been sent twice, and its second copy may still arrive.

It would then act on the next transaction: librdkafka keeps one epoch for all of them. A new producer
raises the epoch, and the straggler is refused.
"""

_TRANSACTION_TIMEOUT_S = 15.0

_UNMARKED_S = 20.0
"""A transaction that is pending for longer than brokers bear one has ended, and its markers are missing."""

_UNMARKED = "~unmarked"
"""Key of the record that leads a missing marker to a partition of the positions; it has no value."""

_REFUSED = frozenset({KafkaError._INCONSISTENT, KafkaError.TOPIC_AUTHORIZATION_FAILED})  # noqa: SLF001
"""Records were not delivered. The first is all that a call knows of it: reports say why.

A right that is missing is told of by name at first, and as the first is in later attempts.
"""


@dataclass(slots=True, kw_only=True)
class Transactions:
    """The one transactional producer of this process.

    Attributes:
        kafka: librdkafka properties: where Kafka is.
        group: the consumer group of the lease.
        replica: this process's name; no other living process may bear it.
        topics: their names.
        max_record_bytes: longest record librdkafka may accept.
        epochs: how many producers were made so far.
        guarded: how many of them because a commit was so slow that it may have been sent twice.
        during: the call that `write` made last.
    """

    kafka: Mapping[str, object]
    group: str
    replica: str
    topics: Topics
    max_record_bytes: int
    epochs: int = field(default=0, init=False)
    guarded: int = field(default=0, init=False)
    during: Call = field(default=Call.INIT, init=False)
    _producer: Producer | None = field(default=None, init=False)
    _asks_why: bool = field(default=False, init=False)  # records were not delivered
    _undelivered: list[KafkaError] = field(default_factory=list, init=False)
    _pending_since: float | None = field(default=None, init=False)
    _marks: dict[int, str] = field(default_factory=dict, init=False)  # of the last commits, by partition

    @property
    def transactional_id(self) -> str:
        """One per replica: a restarted replica ends the open transaction of its former self."""
        return f"{self.group}-{self.replica}"

    def open(self) -> None:
        """Make a producer, which ends whatever transaction the one before it left open.

        Raises:
            KafkaException: Kafka did not answer, or refused; the first may change.
        """
        self._producer = None  # its threads end before the next one's begin
        wanted = transactional(self.kafka, self.max_record_bytes, self.transactional_id)
        if self._asks_why:
            producer, self._undelivered = make_reporting(wanted)
        else:
            producer = make(wanted)
        producer.init_transactions(CALL_TIMEOUT_S)
        self._producer = producer
        self.epochs += 1

    def write(self, batch: Batch) -> None:
        """Write *batch*, all or nothing.

        Raises:
            KafkaException: it failed, or nobody knows; `open` and then `has` tell.
        """
        try:
            self._write(batch)
        except KafkaException as failed:
            if (code := failed.args[0].code()) in _REFUSED:
                # Where records are refused once others are near: reports are asked for from now on.
                self._asks_why = True
            if code == KafkaError._INCONSISTENT and self._undelivered:  # noqa: SLF001
                raise KafkaException(self._undelivered[0]) from failed
            raise

    def _write(self, batch: Batch) -> None:
        self.during = Call.INIT
        if self._producer is None:
            self.open()
        producer = self._producer
        assert producer is not None
        self.during = Call.PRODUCE
        producer.begin_transaction()
        try:
            produce(producer, batch.content(self.topics, f"/connector/{self.replica}"))
            produce(producer, batch.state(self.topics))
        except KafkaException as refused:
            if refused.args[0].code() == KafkaError._STATE:  # noqa: SLF001
                # The transaction failed while it was still filled; the next call says why.
                self._send_offsets(producer, batch)
            raise
        # Offsets after the flush: sent first, they wait for the last commit's aftermath.
        self.during = Call.FLUSH
        flush(producer)
        sent_at = time.monotonic()
        self._send_offsets(producer, batch)
        self.during = Call.COMMIT
        producer.commit_transaction(CALL_TIMEOUT_S)
        self._committed(batch)
        if (took_s := time.monotonic() - sent_at) >= EPOCH_GUARD_S:
            log.debug("writer.epoch_raised", seconds=round(took_s, 3))
            self.guarded += 1
            self._producer = None  # the next transaction makes a new one

    def _send_offsets(self, producer: Producer, batch: Batch) -> None:
        self.during = Call.SEND_OFFSETS
        offsets = [
            TopicPartition(self.topics.predicates, partition, offset, f"{self.transactional_id} {batch.mark}")
            for partition, offset in batch.offsets().items()
        ]
        producer.send_offsets_to_transaction(offsets, batch.metadata, CALL_TIMEOUT_S)

    def has(self, batch: Batch) -> bool | None:
        """Return whether *batch* is in the log, asking the log; final only after `open`.

        None says that the log is not what this process took it for: a commit that Kafka had confirmed is not
        there, or only in part.

        Raises:
            KafkaException: Kafka did not answer.
        """
        # All of them: another replica may have taken one over and left its own mark there.
        control = [TopicPartition(self.topics.predicates, partition) for partition in batch.offsets()]
        with _asking(self.kafka, self.group, "read_committed") as consumer:
            try:
                found = consumer.committed(control, timeout=CALL_TIMEOUT_S)
            except KafkaException:
                now = time.monotonic()
                self._pending_since = self._pending_since or now
                if now - self._pending_since < _UNMARKED_S:
                    raise
                self._complete(control)
                return None
        self._pending_since = None
        for partition in found:
            if partition.error is not None:
                raise KafkaException(partition.error)
        if any((one.metadata or "").endswith(batch.mark) for one in found):
            self._committed(batch)
            return True
        return None if any(map(self._is_undone, found)) else False

    def _committed(self, batch: Batch) -> None:
        self._marks.update(dict.fromkeys(batch.offsets(), batch.mark))

    def _is_undone(self, found: TopicPartition) -> bool:
        """Whether what this process committed last for a partition is not what it committed last there."""
        ours = f"{self.transactional_id} {self._marks.get(found.partition, '')}"
        return (
            found.partition in self._marks
            and author(found.metadata) == self.transactional_id
            and found.metadata != ours
        )

    def _complete(self, control: list[TopicPartition]) -> None:
        assert self._producer is not None
        self._pending_since = None
        with _asking(self.kafka, self.group, "read_uncommitted") as unheld:
            complete(self._producer, unheld, control, self.topics.positions)

    def close(self) -> None:
        """Let go of the producer; an open transaction is left to its successor."""
        self._producer = None


def transactional(
    kafka: Mapping[str, object], max_record_bytes: int, transactional_id: str
) -> dict[str, Any]:
    """Return the properties of a transactional producer; librdkafka bears less in one than in others."""
    return {
        **properties(kafka, max_record_bytes),
        "transactional.id": transactional_id,
        "transaction.timeout.ms": int(_TRANSACTION_TIMEOUT_S * 1000),
    }


def author(metadata: str | None) -> str:
    """Return the transactional id in the metadata of a committed offset; empty if none is there."""
    return (metadata or "").rpartition(" ")[0]


def fence(kafka: Mapping[str, object], transactional_id: str) -> Producer:
    """End the open transaction of a process that is dead, or has lost its lease.

    If it is alive, its next call fails, and it goes on with a new producer.

    Returns:
        The producer that is in its place now.

    Raises:
        KafkaException: Kafka did not answer, or refused.
    """
    producer = make({**properties(kafka, 1 << 20), "transactional.id": transactional_id})
    producer.init_transactions(CALL_TIMEOUT_S)
    return producer


def complete(producer: Producer, unheld: Consumer, control: list[TopicPartition], mirror: str) -> None:
    """Write the markers of a transaction that Kafka holds for complete, by another one of the same producer.

    A broker that is being stopped may report a commit, note it as complete, and write its markers nowhere
    (seen with Kafka 4.3). Then offsets and positions are pending for ever: no time-out ends them, as there is
    no transaction any more. A marker ends whatever its producer has pending in the partition where it is.

    What had been confirmed may be lost then: markers of an abort that came between are as good. So the
    offsets are those from before, and whoever has a memory of its own must read the log anew.

    Args:
        producer: under the transactional id of whoever left it, and in no transaction.
        unheld: a consumer of the group that never joined it, and sees offsets from before what is pending.
        control: partitions whose offsets are pending.
        mirror: the topic that has their positions.

    Raises:
        KafkaException: Kafka did not answer, or refused.
    """
    offsets = unheld.committed(control, timeout=CALL_TIMEOUT_S)
    for partition in offsets:
        partition.offset = max(0, partition.offset)  # none yet is a negative number
    producer.begin_transaction()
    for partition in control:
        producer.produce(mirror, None, _UNMARKED, partition.partition)
    flush(producer)
    producer.send_offsets_to_transaction(offsets, unheld.consumer_group_metadata(), CALL_TIMEOUT_S)
    producer.commit_transaction(CALL_TIMEOUT_S)
    log.warning("transaction.completed", partitions=[partition.partition for partition in control])


@contextlib.contextmanager
def _asking(kafka: Mapping[str, object], group: str, isolation: str) -> Iterator[Consumer]:
    consumer = Consumer(
        {**kafka, "group.id": group, "enable.auto.commit": False, "isolation.level": isolation}
    )
    try:
        yield consumer
    finally:
        consumer.close()
