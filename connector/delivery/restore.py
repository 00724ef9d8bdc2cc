"""A partition's state back from the log: control records handled, and its streams' positions.

Blocking; runs in a thread. The order of the three steps matters: committed offsets first (which waits for
a predecessor's pending transaction), then the end of the positions, then the positions up to that end.
Any other order can miss what a predecessor was just committing.

One that died in the middle of a transaction leaves it open until brokers lose patience with it, which takes
many times as long as the lease took. Whoever waits for it ends it: by taking over its transactional id, which
the offset it committed last bears.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from connector.delivery import journal, positions
from connector.delivery.journal import Page
from connector.delivery.transactions import author, complete, fence
from connector.model import Note, Position, StreamId, Topics

log = structlog.get_logger("connector.restore")

_CALL_TIMEOUT_S = 5.0

_PENDING_S = 0.5
"""A transaction that is pending for longer has no owner any more: they take some milliseconds to commit."""

_UNMARKED_S = 5.0
"""One that is pending for longer, though its owner was fenced, has ended, and its markers are missing."""

_OWN_UNMARKED_S = 20.0
"""The same for this process's own, which is not fenced unless brokers would have ended it long ago."""


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

    def streams(self) -> set[StreamId]:
        """Return the streams that have anything there."""
        return {*self.positions, *(key.split("/")[1] for key in (*self.notes, *self._seen))}

    def removal(self, stream: StreamId) -> list[Note]:
        """Return what takes back all that is there about *stream*."""
        keys = [key for key in (*self.notes, *self._seen) if key.split("/")[1] == stream]
        return [Note(key, None) for key in ([stream] if stream in self.positions else []) + keys]

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
    kafka: Mapping[str, object], group: str, topics: Topics, partition: int, timeout_s: float, own: str = ""
) -> Restored:
    """Read what is committed for control partition *partition*.

    Args:
        kafka: librdkafka properties: where Kafka is.
        group: the consumer group whose offsets count control records.
        topics: their names.
        partition: of the control topic, and of the positions topic.
        timeout_s: must exceed the brokers' patience with a dead owner's open transaction.
        own: this process's transactional id, whose transactions end by themselves; empty without one.

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
    control = TopicPartition(topics.predicates, partition)
    mirror = TopicPartition(topics.positions, partition)
    # Never subscribed, so they do not join the group; and a look-up never queues behind a poll.
    with (
        _consumer({**config, "isolation.level": "read_committed"}) as committed,
        _consumer({**config, "isolation.level": "read_uncommitted"}) as uncommitted,
    ):
        # Nothing is ever committed there, so this waits for the group's coordinator and for nobody else.
        committed.committed([mirror], timeout=_CALL_TIMEOUT_S)
        predecessor = _Predecessor(kafka, uncommitted, control, topics.positions, own)
        restored = Restored(_handled(committed, control, predecessor, deadline_at))
        start, end = uncommitted.get_watermark_offsets(mirror, timeout=_CALL_TIMEOUT_S)
        if start < end:
            mirror.offset = start
            _read(committed, mirror, end, predecessor, deadline_at, restored)
    return restored


@dataclass(slots=True)
class _Predecessor:
    """Whoever committed last under a lease that is ours now."""

    kafka: Mapping[str, object]
    uncommitted: Consumer  # sees the offset committed last, where a pending one holds others up
    control: TopicPartition
    mirror: str
    own: str
    _pending_since: float = field(default_factory=time.monotonic)
    _is_fenced: bool = False
    _is_completed: bool = False

    def press(self) -> None:
        """End what it left pending: by now it should have.

        Each step once: a predecessor that is alive goes on, with what is no longer in the way.
        """
        pending_s = time.monotonic() - self._pending_since
        try:
            (found,) = self.uncommitted.committed([self.control], timeout=_CALL_TIMEOUT_S)
            its = author(found.metadata)
            if not its:
                return
            is_own = its == self.own
            if not self._is_fenced and not is_own:
                self._is_fenced = True
                fence(self.kafka, its)
                log.info("predecessor.fenced", partition=self.control.partition, transactional_id=its)
            elif not self._is_completed and pending_s > (_OWN_UNMARKED_S if is_own else _UNMARKED_S):
                self._is_completed = True
                complete(fence(self.kafka, its), self.uncommitted, [self.control], self.mirror)
        except KafkaException as error:
            log.warning("predecessor.not_fenced", partition=self.control.partition, error=str(error))


def _handled(
    committed: Consumer, control: TopicPartition, predecessor: _Predecessor, deadline_at: float
) -> int:
    """Return the committed offset; waits while a transaction on it is pending."""
    timeout_s = _PENDING_S
    while True:
        try:
            (found,) = committed.committed([control], timeout=timeout_s)
        except KafkaException:
            if time.monotonic() > deadline_at:
                raise
            predecessor.press()
            timeout_s = _CALL_TIMEOUT_S
        else:
            if found.error is not None:
                raise KafkaException(found.error)
            return max(0, found.offset)  # no offset yet is a negative number


def _read(
    committed: Consumer,
    mirror: TopicPartition,
    end: int,
    predecessor: _Predecessor,
    deadline_at: float,
    into: Restored,
) -> None:
    # After it has asked for offsets, a client would look for this leader in its next round, once a second.
    committed.list_topics(mirror.topic, timeout=_CALL_TIMEOUT_S)
    committed.assign([mirror])
    came_at: float | None = None  # not before the first answer: until then the broker may be what is slow
    while True:
        # One, and what is there beside it: a larger number is waited for until the time is over.
        for message in committed.consume(1, 0.2) + committed.consume(1000, 0):
            came_at = time.monotonic()
            error = message.error()
            if error is None:
                key, value = message.key(), message.value()
                assert key is not None
                into.take(key.decode(), value)
            elif error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001 (the library's public name for it)
                raise KafkaException(error)
            elif (message.offset() or 0) >= end:
                return
        if came_at is not None and time.monotonic() - came_at > _PENDING_S:
            predecessor.press()
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
