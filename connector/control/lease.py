"""The lease: the consumer group on the control topic says which replica runs which streams.

One thread polls. What it learns reaches the event loop in order, as values on a queue; what the
loop must know about ownership at any moment is one immutable `Grant`, replaced as a whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from enum import Enum, auto

import structlog
from confluent_kafka import OFFSET_BEGINNING as BEGINNING
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from connector.control.messages import control_record
from connector.control.ownership import Assigned, CaughtUp, Failed, LeaseEvent, Lost, Read, Revoked
from connector.control.proof import Pulse, Standing, has_generation
from connector.model import ControlRecord, Grant, Tenure

log = structlog.get_logger("connector.lease")

HANDOVER_BUDGET_S = 5.0
"""How long a planned hand-over may hold the group's rebalance while streams drain and commit."""

HEARTBEATS = 10
"""How many to a session, at least. A broker that has just started refuses the first; what is read and not
committed is lost with the lease, for an upstream that cannot send it again."""

HEARTBEAT_S = 0.25
"""Longest interval. A member learns by its next heartbeat that there is something to share out anew, and what
is to move waits for the last of them."""

STALE = 0.8
"""After this much of a session without a word from the coordinator streams are stopped: before the session is
over, as another replica may start them then, and upstreams count connections."""

_ASTRAY = 10
"""After as many statistics without a coordinator a new client is made: 5 s, or less in a short session."""

_POLL_S = 0.2

_REFUSED_FOR_S = 10.0
"""How long an error counts after it came last: librdkafka tells of what lasts every other second."""


class _End(Enum):
    OF_LEASE = auto()


class Lease:
    """Membership in the group, from `start` to `close`.

    It ends on its own where the process cannot keep it: streams stop when the coordinator, or the thread that
    polls it, is silent for most of a session, and the group is left when the event loop is for a whole one.
    Both come back by themselves.
    """

    def __init__(self, config: Mapping[str, object], topic: str, session_s: float) -> None:
        """Prepare, without touching the network.

        Args:
            config: librdkafka properties: where Kafka is, and the group's id.
            topic: the control topic.
            session_s: silence after which the group takes a member for dead, in seconds.
        """
        heartbeat_s = min(HEARTBEAT_S, session_s / HEARTBEATS)
        self._session_s = session_s
        self._config = {
            **config,
            "session.timeout.ms": int(session_s * 1000),
            "heartbeat.interval.ms": int(heartbeat_s * 1000),
            "statistics.interval.ms": int(2 * heartbeat_s * 1000),
            "stats_cb": lambda statistics: self._standing.take(statistics, time.monotonic()),
            "partition.assignment.strategy": "cooperative-sticky",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            # An answer that waits for records holds up all else on its connection, a new partition's first.
            "fetch.wait.max.ms": 100,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
        }
        self._topic = topic
        self._grant = Grant()
        self._terms = itertools.count(1)
        self._events: asyncio.Queue[LeaseEvent | _End] = asyncio.Queue()
        self._granted = asyncio.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._polled_at = 0.0
        self._standing: Standing = Standing()  # as the poll thread hears
        self._pulse = Pulse(2 * _POLL_S)
        self._suspended: Revoked | None = None
        self._anew: queue.SimpleQueue[frozenset[Tenure]] = queue.SimpleQueue()
        self._refused = (-_REFUSED_FOR_S, "")
        self._due: queue.SimpleQueue[Mapping[int, int]] = queue.SimpleQueue()  # offsets by partition

    @property
    def grant(self) -> Grant:
        """What is owned now. Read it once per batch: ownership and its proof belong together."""
        return self._grant

    async def changed(self) -> None:
        """Wait until `grant` is another one."""
        self._granted.clear()
        await self._granted.wait()

    def troubles(self) -> Iterable[str]:
        """Yield what the group or its topic refused lately."""
        at, trouble = self._refused
        if time.monotonic() - at < _REFUSED_FOR_S:
            yield trouble

    @property
    def silent_s(self) -> float:
        """Seconds since the poll thread last came round; 0 while it does not run."""
        return time.monotonic() - self._polled_at if self._thread.is_alive() else 0.0

    def commit(self, offsets: Mapping[int, int]) -> None:
        """Let offsets be committed by partition, as a member of the group; from any thread.

        Only for who writes without transactions: there offsets go with the records. What fails is not tried
        again: the next batch brings it.
        """
        self._due.put(offsets)

    def begin_anew(self, tenures: frozenset[Tenure]) -> None:
        """Have partitions restored once more, under tenures of their own; from the event loop."""
        self._tell(Lost(tenures))
        self._anew.put(tenures)

    def start(self) -> None:
        """Join the group."""
        self._loop = asyncio.get_running_loop()
        self._polled_at = time.monotonic()
        self._thread.start()

    async def events(self) -> AsyncGenerator[LeaseEvent, None]:
        """Yield what happens to the lease and its topic, until `close`."""
        while True:
            try:
                async with asyncio.timeout(self._stale_in_s()):
                    event = await self._events.get()
            except TimeoutError:
                if (self._stale_in_s() or 0.0) <= 0.0:
                    yield self._suspend()
                continue
            if event is _End.OF_LEASE:
                return
            yield event

    async def close(self) -> None:
        """Leave the group, so that others take over at once. The caller has drained already."""
        self._stopping.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def _stale_in_s(self) -> float | None:
        """Return how long the last proof of life counts yet; None if nothing hangs on it."""
        if self._suspended is not None or not self._grant.tenures:
            return None
        return self._standing.heard_at + STALE * self._session_s - time.monotonic()

    def _suspend(self) -> Revoked:
        """Stop what is owned before others start it; in the loop, as the poll thread may be stuck itself."""
        silent_s = time.monotonic() - self._standing.heard_at
        self._suspended = revoked = Revoked(self._grant.tenures)
        log.warning("lease.suspended", partitions=_numbers(revoked.tenures), silent_s=round(silent_s, 1))
        return revoked

    def _run(self) -> None:
        """Poll until stopped. Everything below runs in this thread, callbacks included."""
        try:
            while not self._stopping.is_set():
                self._take_part()
                while self._pulse.silent_s and not self._stopping.wait(_POLL_S):
                    pass
        except Exception as error:  # noqa: BLE001 (a thread's only way to be heard)
            self._tell(Failed(error))
        finally:
            self._regrant(Grant())
            self._tell(_End.OF_LEASE)

    def _take_part(self) -> None:
        """Be a member of the group until stopped, or until the event loop is stuck."""
        self._standing = Standing()
        consumer = Consumer(self._config)
        consumer.subscribe(
            [self._topic],
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )
        while not self._stopping.is_set():
            # One, and what is there beside it: a larger number is waited for until the time is over.
            messages = consumer.consume(1, _POLL_S) + consumer.consume(500, 0)
            self._polled_at = time.monotonic()
            self._pulse.poll(self._polled_at, self._in_loop)
            if self._pulse.silent_s >= self._session_s:
                log.error("lease.given_up", loop_silent_s=round(self._pulse.silent_s, 1))
                self._lose(self._grant.tenures)
                break
            if self._standing.astray >= _ASTRAY and not self._grant.tenures:
                log.info("lease.client_replaced")
                break
            self._refresh(consumer)
            self._hand_over(messages)
            self._resume(consumer)
            self._begin_due(consumer)
            self._commit_due(consumer)
        self._commit_due(consumer)
        consumer.close()

    def _resume(self, consumer: Consumer) -> None:
        """Begin anew with what was suspended and is still ours, once its streams have stopped."""
        suspended = self._suspended
        is_stale = time.monotonic() - self._standing.heard_at > STALE * self._session_s
        if suspended is None or is_stale or not suspended.released.is_set():
            return
        if self._begin(consumer, suspended.tenures):
            self._suspended = None

    def _begin_due(self, consumer: Consumer) -> None:
        """Begin anew with what is told to."""
        for _ in range(self._anew.qsize()):
            tenures = self._anew.get()
            if not self._begin(consumer, tenures):
                self._anew.put(tenures)

    def _begin(self, consumer: Consumer, tenures: frozenset[Tenure]) -> bool:
        """Begin anew with what of *tenures* is still ours; False if that has to wait."""
        ours = tenures & self._grant.tenures
        try:
            for tenure in ours:
                consumer.seek(TopicPartition(self._topic, tenure.partition, BEGINNING))
        except KafkaException as error:  # in the middle of a rebalance
            log.debug("lease.resume_failed", detail=str(error))
            return False
        if ours:
            added = self._tenures(ours)
            self._regrant(Grant(self._grant.tenures - ours | added, self._grant.metadata))
            log.info("lease.resumed", partitions=_numbers(added))
            self._tell(Assigned(added))
        return True

    def _hand_over(self, messages: list[Message]) -> None:
        records: list[ControlRecord] = []
        for message in messages:
            error = message.error()
            if error is None:
                records.append(control_record(message))
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 (the library's public name for it)
                if records:
                    self._tell(Read(records))
                    records = []
                partition = message.partition()
                assert partition is not None
                self._tell(CaughtUp(partition))
            elif error.fatal():
                raise KafkaException(error)
            else:
                if not any(self.troubles()):  # it comes again at every attempt
                    log.warning("lease.poll_failed", code=error.name(), detail=error.str())
                self._refused = (time.monotonic(), f"lease: {error.name()}: {error.str()}")
        if records:
            self._tell(Read(records))

    def _commit_due(self, consumer: Consumer) -> None:
        """Commit in this thread: in another one it waits for the poll, and may never get its turn."""
        due: dict[int, int] = {}
        while not self._due.empty():
            due.update(self._due.get())
        ours = {tenure.partition for tenure in self._grant.tenures}
        offsets = [TopicPartition(self._topic, number, due[number]) for number in due.keys() & ours]
        if offsets:
            try:
                consumer.commit(offsets=offsets, asynchronous=True)
            except KafkaException as error:
                log.warning("lease.commit_failed", detail=str(error))

    def _refresh(self, consumer: Consumer) -> None:
        """Take the metadata of the current generation.

        Safe beside a rebalance: librdkafka does not join the next generation before the callback
        that takes a partition away has run, in this same thread, so ownership in the grant is
        never older than the generation that proves it.
        """
        metadata = consumer.consumer_group_metadata()
        if not has_generation(metadata):
            metadata = None
        if metadata != self._grant.metadata:
            self._regrant(Grant(self._grant.tenures, metadata))

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._standing.heard_at = time.monotonic()
        added = self._tenures(partitions)
        for partition in partitions:
            partition.offset = BEGINNING  # the topic is a table: all of it is needed
        consumer.incremental_assign(partitions)
        self._regrant(Grant(self._grant.tenures | added, self._grant.metadata))
        self._refresh(consumer)
        if added:
            log.info("lease.assigned", partitions=_numbers(added))
            self._tell(Assigned(added))

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # The generation that takes the partitions away has begun, and gives them to nobody before we
        # let go of them: its metadata is what the last commit needs.
        self._refresh(consumer)
        gone = self._tenures_of(partitions)
        if gone and not self._stopping.is_set():
            revoked = Revoked(gone)
            self._tell(revoked)
            in_time = self._released(revoked)
            log.info("lease.revoked", partitions=_numbers(gone), drained=in_time)
            self._commit_due(consumer)
        self._regrant(Grant(self._grant.tenures - gone, self._grant.metadata))
        consumer.incremental_unassign(partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._lose(self._tenures_of(partitions))
        consumer.incremental_unassign(partitions)

    def _lose(self, gone: frozenset[Tenure]) -> None:
        self._regrant(Grant(self._grant.tenures - gone, None))
        log.warning("lease.lost", partitions=_numbers(gone))
        self._tell(Lost(gone))

    def _released(self, revoked: Revoked) -> bool:
        """Wait until the streams of *revoked* have stopped; the wait is no sign of a stuck thread."""
        give_up_at = time.monotonic() + HANDOVER_BUDGET_S
        while not revoked.released.wait(_POLL_S):
            self._polled_at = self._standing.heard_at = time.monotonic()
            if self._polled_at > give_up_at:
                return False
        return True

    def _tenures(self, partitions: Iterable[TopicPartition | Tenure]) -> frozenset[Tenure]:
        return frozenset(Tenure(one.partition, next(self._terms)) for one in partitions)

    def _tenures_of(self, partitions: list[TopicPartition]) -> frozenset[Tenure]:
        numbers = {partition.partition for partition in partitions}
        return frozenset(tenure for tenure in self._grant.tenures if tenure.partition in numbers)

    def _regrant(self, grant: Grant) -> None:
        self._grant = grant
        self._in_loop(self._granted.set)

    def _tell(self, event: LeaseEvent | _End) -> None:
        self._in_loop(functools.partial(self._events.put_nowait, event))

    def _in_loop(self, call: Callable[[], None]) -> None:
        # A closed loop means that the process is ending and nobody listens.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)


def _numbers(tenures: frozenset[Tenure]) -> list[int]:
    return sorted(tenure.partition for tenure in tenures)
