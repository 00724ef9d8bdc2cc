"""The one transactional producer: statuses, positions, events and control offsets, all or nothing.

Each transaction sends offsets for every control partition whose records it carries, with the group
metadata taken when the batch was formed. A replica that lost its lease is refused there, and nothing of
the batch becomes visible.

After any failure the answer is the same, whatever the error said: a new producer under the same
transactional id, which ends the transaction of the old one, and then a question to the log: the
committed offset carries the mark of the batch that wrote it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, TypeVarTuple, Unpack

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from connector.delivery import positions, records
from connector.delivery.outbox import Entry, Outbox
from connector.delivery.records import Record
from connector.delivery.restore import Restored
from connector.model import Grant, Position, StreamId, Tenure, Topics

log = structlog.get_logger("connector.writer")

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")

BATCH_BYTES = 4 << 20
"""About how much one transaction carries at most: large enough to be cheap, small enough to be short."""

RETRY_BACKOFF_S = 0.25
"""librdkafka's pause before it sends a request again; well above a healthy commit."""

EPOCH_GUARD_S = 0.6 * RETRY_BACKOFF_S
"""A commit that takes longer may have been sent twice, and its second copy may still arrive.

It would then act on the next transaction: librdkafka keeps one epoch for all of them. A new producer
raises the epoch, and the straggler is refused.
"""

_CALL_TIMEOUT_S = 5.0
_TRANSACTION_TIMEOUT_S = 15.0
_RETRY_S = 1.0


class Ownership(Protocol):
    """Where the proof of the lease comes from."""

    @property
    def grant(self) -> Grant:
        """What is owned now, with its proof."""
        ...

    async def changed(self) -> None:
        """Wait until `grant` is another one."""
        ...


@dataclass(frozen=True, slots=True)
class Committed:
    """A transaction is in the log.

    Attributes:
        statuses: how many, by stream.
        dead_letters: how many, by reason.
        seconds: from its beginning to the commit's answer.
        size_bytes: what it carried.
    """

    statuses: Counter[StreamId]
    dead_letters: Counter[str]
    seconds: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A transaction failed, or its outcome is unknown; the writer goes on by itself."""

    error: KafkaError


@dataclass(frozen=True, slots=True)
class Recovered:
    """The writer has a new producer, and knows whether the failed batch is in the log."""

    was_committed: bool


Outcome = Committed | Failed | Recovered


@dataclass(slots=True)
class _Ledger:
    """The last committed state of one owned control partition."""

    handled: int
    positions: dict[StreamId, Position]


@dataclass(frozen=True, slots=True)
class _Batch:
    """Entries of one transaction, with everything that must not change until its outcome is known."""

    entries: Sequence[Entry]
    metadata: bytes
    ledgers: Mapping[Tenure, _Ledger]  # as they are once the batch is in the log
    after_seq: Sequence[int]  # per entry: the stream's seq before it
    moved: frozenset[StreamId]  # streams whose position changes
    mark: str
    at: float  # wall clock, for the events
    first_event: int = 0


@dataclass(slots=True)
class Writer:
    """Runs transactions, one after another, in a thread of its own.

    Attributes:
        kafka: librdkafka properties: where Kafka is.
        group: the consumer group of the lease.
        replica: this process's name; no other living process may bear it.
        topics: their names.
        commit_interval_s: shortest distance between the beginnings of two transactions.
        max_record_bytes: longest record librdkafka may accept.
    """

    kafka: Mapping[str, object]
    group: str
    replica: str
    topics: Topics
    commit_interval_s: float
    max_record_bytes: int
    _ledgers: dict[Tenure, _Ledger] = field(default_factory=dict, init=False)
    _producer: Producer | None = field(default=None, init=False)
    _thread: ThreadPoolExecutor = field(init=False)
    _event_ids: Iterator[int] = field(default_factory=itertools.count, init=False)
    _session: str = field(default_factory=lambda: uuid.uuid4().hex[:12], init=False)

    def __post_init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")

    @property
    def transactional_id(self) -> str:
        """One per replica: a restarted replica ends the open transaction of its former self."""
        return f"{self.group}-{self.replica}"

    def adopt(self, tenure: Tenure, restored: Restored) -> None:
        """Go on from what the log says about a partition, now that its lease is ours."""
        self._ledgers[tenure] = _Ledger(restored.handled, dict(restored.positions))

    def abandon(self, tenure: Tenure) -> None:
        """Write nothing more under *tenure*."""
        self._ledgers.pop(tenure, None)

    async def start(self) -> None:
        """Make the producer, which ends any open transaction of a former self.

        Raises:
            KafkaException: Kafka did not answer, or refused; the first may change.
        """
        self._producer = await self._call(self._new_producer)

    async def run(self, outbox: Outbox, ownership: Ownership) -> AsyncGenerator[Outcome, None]:
        """Write what *outbox* holds until it is closed and empty, and yield each outcome."""
        began_at = -self.commit_interval_s
        while await outbox.filled():
            await asyncio.sleep(began_at + self.commit_interval_s - time.monotonic())
            grant = ownership.grant
            if grant.metadata is None and grant.tenures:
                await ownership.changed()
                continue
            entries = outbox.take(BATCH_BYTES)
            orphans = [e for e in entries if not self._may_write(e, grant)]
            outbox.settle(orphans)
            entries = [e for e in entries if self._may_write(e, grant)]
            if not entries or grant.metadata is None:
                continue
            batch = self._form(entries, grant.metadata)
            began_at = time.monotonic()
            try:
                await self._call(self._transact, batch)
                in_log = True
            except KafkaException as error:
                yield Failed(error.args[0])
                in_log = await self._recover(batch)
                yield Recovered(in_log)
            if in_log:
                self._settle(batch)
                outbox.settle(entries)
                yield _committed(batch, time.monotonic() - began_at)
            else:
                outbox.put_back(entries)

    async def close(self) -> None:
        """Let go of the producer; an open transaction is left to its successor."""
        self._producer = None
        await asyncio.to_thread(self._thread.shutdown)

    def _may_write(self, entry: Entry, grant: Grant) -> bool:
        return entry.tenure in self._ledgers and entry.tenure in grant.tenures

    def _form(self, entries: Sequence[Entry], metadata: bytes) -> _Batch:
        """Number the statuses and work out the state after them; nothing is changed yet."""
        ledgers: dict[Tenure, _Ledger] = {}
        after_seq: list[int] = []
        moved: set[StreamId] = set()
        for entry in entries:
            ledger = ledgers.get(entry.tenure)
            if ledger is None:
                now = self._ledgers[entry.tenure]
                ledger = ledgers[entry.tenure] = _Ledger(now.handled, dict(now.positions))
            if entry.handled is not None:
                ledger.handled = max(ledger.handled, entry.handled)
            if entry.stream is None:
                after_seq.append(0)
                continue
            before = ledger.positions.get(entry.stream, Position())
            after_seq.append(before.seq)
            after = positions.advance(
                before,
                len(entry.statuses),
                cursor=entry.cursor,
                version=entry.version,
                attempts=entry.attempts,
            )
            if after != before:
                ledger.positions[entry.stream] = after
                moved.add(entry.stream)
        return _Batch(
            entries=entries,
            metadata=metadata,
            ledgers=ledgers,
            after_seq=after_seq,
            moved=frozenset(moved),
            mark=uuid.uuid4().hex,
            at=time.time(),
            first_event=next(self._event_ids),
        )

    def _settle(self, batch: _Batch) -> None:
        """Take the batch's state over, for partitions that are still ours."""
        for tenure, ledger in batch.ledgers.items():
            if tenure in self._ledgers:
                self._ledgers[tenure] = ledger

    async def _recover(self, batch: _Batch) -> bool:
        """Return whether *batch* is in the log, with a fresh producer in place; waits for Kafka."""
        while True:
            try:
                # First the producer: it ends the old transaction, so the log's answer is final.
                self._producer = await self._call(self._new_producer)
                return await self._call(self._is_in_log, batch)
            except KafkaException as error:
                log.debug("writer.recovery_failed", error=str(error))
                await asyncio.sleep(_RETRY_S)

    async def _call(self, function: Callable[[Unpack[_Args]], _T], *arguments: *_Args) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    # Below: the writer's thread.

    def _new_producer(self) -> Producer:
        producer = Producer(
            {
                **self.kafka,
                "transactional.id": self.transactional_id,
                "transaction.timeout.ms": int(_TRANSACTION_TIMEOUT_S * 1000),
                "retry.backoff.ms": int(RETRY_BACKOFF_S * 1000),
                "partitioner": "murmur2_random",  # the partition Kafka's own clients choose
                "message.max.bytes": self.max_record_bytes,
                "linger.ms": 5,
                "batch.size": 1_000_000,
                "queue.buffering.max.messages": 1_000_000,
                "queue.buffering.max.kbytes": 1 << 20,
            }
        )
        producer.init_transactions(_CALL_TIMEOUT_S)
        return producer

    def _transact(self, batch: _Batch) -> None:
        producer = self._producer = self._producer or self._new_producer()
        producer.begin_transaction()
        for record in self._records(batch):
            _produce(producer, record)
        # Offsets after the flush: sent first, they wait for the last commit's aftermath.
        if left := producer.flush(_CALL_TIMEOUT_S):
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"{left} records unsent"))  # noqa: SLF001
        offsets = [
            TopicPartition(
                self.topics.predicates,
                partition,
                ledger.handled,
                f"{self.transactional_id} {batch.mark}",
            )
            for (partition, _), ledger in batch.ledgers.items()
        ]
        sent_at = time.monotonic()
        producer.send_offsets_to_transaction(offsets, batch.metadata, _CALL_TIMEOUT_S)
        producer.commit_transaction(_CALL_TIMEOUT_S)
        if time.monotonic() - sent_at >= EPOCH_GUARD_S:
            log.debug("writer.epoch_raised", seconds=round(time.monotonic() - sent_at, 3))
            self._producer = None  # the next transaction makes a new one

    def _records(self, batch: _Batch) -> Iterator[Record]:
        source = f"/connector/{self.replica}"
        event_ids = itertools.count()
        for entry, after_seq in zip(batch.entries, batch.after_seq, strict=True):
            if entry.statuses:
                assert entry.stream is not None
                yield from records.of_statuses(
                    self.topics.statuses,
                    entry.stream,
                    entry.version or "",
                    after_seq,
                    entry.statuses,
                )
            for event in entry.events:
                identity = f"{self._session}-{batch.first_event}-{next(event_ids)}"
                yield records.of_event(self.topics.events, source, identity, batch.at, event)
            for letter in entry.dead_letters:
                yield records.of_dead_letter(self.topics.dlq, letter)
            for moved, partition in entry.moves:
                yield records.of_move(self.topics.predicates, moved, partition)
            for key, note in entry.notes:
                yield Record(self.topics.positions, note, key, [], entry.tenure.partition)
        for (partition, _), ledger in batch.ledgers.items():
            for stream in batch.moved & ledger.positions.keys():
                encoded = positions.encode(ledger.positions[stream])
                yield records.of_position(self.topics.positions, partition, stream, encoded)

    def _is_in_log(self, batch: _Batch) -> bool:
        consumer = Consumer(
            {
                **self.kafka,
                "group.id": self.group,
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
            }
        )
        try:
            # All of them: another replica may have taken one over and left its own mark there.
            control = [TopicPartition(self.topics.predicates, p) for p, _ in batch.ledgers]
            found = consumer.committed(control, timeout=_CALL_TIMEOUT_S)
            for partition in found:
                if partition.error is not None:
                    raise KafkaException(partition.error)
            return any((partition.metadata or "").endswith(batch.mark) for partition in found)
        finally:
            consumer.close()


def _produce(producer: Producer, record: Record) -> None:
    topic, value, key, headers, partition = record
    while True:
        try:
            producer.produce(topic, value, key, partition, headers=headers)
        except BufferError:  # the client's queue is full: let it send some
            producer.poll(0.05)
        else:
            return


def _committed(batch: _Batch, seconds: float) -> Committed:
    statuses: Counter[StreamId] = Counter()
    dead_letters: Counter[str] = Counter()
    for entry in batch.entries:
        if entry.stream is not None and entry.statuses:
            statuses[entry.stream] += len(entry.statuses)
        dead_letters.update(letter.reason for letter in entry.dead_letters)
    size = sum(entry.size_bytes for entry in batch.entries)
    return Committed(statuses, dead_letters, seconds, size)
