"""Owned partitions → streams → readers: the only place where the rooms meet.

A partition's life: its lease begins; its records are read to the end and its positions restored, side by
side; then its streams start, and further records are changes. It ends with the lease, planned (drain,
commit, give back) or lost (drop at once).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random

import structlog
from confluent_kafka import KafkaException

from connector import sharing
from connector.control import ownership, shares
from connector.control.answers import Change, noted_waiting
from connector.control.debounce import Debounce
from connector.control.demand import Demand, noted_in_force
from connector.control.home import home
from connector.control.lease import Lease
from connector.control.predicates import MAX_KEY_BYTES
from connector.control.table import Elsewhere, Gone, Table, Taken
from connector.delivery.dedupe import Window
from connector.delivery.deletions import Deletions
from connector.delivery.outbox import Entry, Outbox
from connector.delivery.promise import Mode
from connector.delivery.restore import Restored
from connector.delivery.writer import Writer
from connector.errors import PredicatesRejected
from connector.lifecycle import Lifecycle
from connector.model import ControlRecord, DeadLetter, Event, Note, Position, StreamId, Tenure
from connector.ops.metrics import Metrics
from connector.outlet import Outlet
from connector.settings import StreamSettings
from connector.status import status
from connector.stream.amender import Amender
from connector.stream.budget import Budget
from connector.stream.connection import Connect, Target
from connector.stream.reader import Ask, Reader
from connector.subscription import Subscription

log = structlog.get_logger("connector.supervisor")

_RESTORE_RETRY_S = 1.0


@dataclass(slots=True, eq=False)
class _Partition:
    """One owned control partition.

    Attributes:
        early: records read before the partition was loaded.
    """

    tenure: Tenure
    table: Table
    early: list[ControlRecord] = field(default_factory=list)
    restored: Restored | None = None
    caught_up: bool = False
    loaded: bool = False
    subscriptions: dict[StreamId, Subscription] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Supervisor:
    """Runs the streams whose lease this replica holds.

    Attributes:
        streams: what runs, by name: the configured streams, and the shares of those that have several.
        shared: how many shares a configured stream has that has several.
        partitions: how many the control topic has.
        restore: reads a partition's state back from the log; blocking.
        topic: the control topic's name, for dead letters.
        mode: how the writer writes, which the promise depends on.
        wall: reads the wall clock, in seconds since the epoch.
    """

    streams: Mapping[StreamId, StreamSettings]
    partitions: int
    lease: Lease
    outbox: Outbox
    writer: Writer
    restore: Callable[[int], Restored]
    connect: Connect
    metrics: Metrics
    topic: str
    shared: Mapping[StreamId, int] = field(default_factory=dict)
    mode: Mode = "exactly_once"
    rng: Random = field(default_factory=Random)
    wall: Callable[[], float] = time.time
    _owned: dict[int, _Partition] = field(default_factory=dict, init=False)
    _tasks: asyncio.TaskGroup = field(default_factory=asyncio.TaskGroup, init=False)
    _draining: bool = field(default=False, init=False)

    async def run(self) -> None:
        """Follow the lease until it is closed.

        Raises:
            ExceptionGroup: a part failed in a way nobody foresaw, or the group refused us for good.
        """
        async with self._tasks:
            async for event in self.lease.events():
                match event:
                    case ownership.Assigned(tenures):
                        for tenure in tenures:
                            self._begin(tenure)
                    case ownership.Read(records):
                        for record in records:
                            self._read(record)
                    case ownership.CaughtUp(number):
                        if partition := self._owned.get(number):
                            partition.caught_up = True
                            self._load(partition)
                    case ownership.Revoked(tenures, released):
                        # Stopped here and now: the next event may begin a new tenure.
                        for tenure in tenures:
                            self._stop(tenure)
                        self._tasks.create_task(self._give_back(tenures, released.set))
                    case ownership.Lost(tenures):
                        for tenure in tenures:
                            self._end(tenure)
                    case ownership.Failed(error):
                        raise error

    async def drain(self) -> None:
        """Stop reading; return when everything read is committed."""
        self._draining = True
        tenures = [one.tenure for one in self._owned.values()]
        for tenure in tenures:
            self._stop(tenure)
        await self._give_back(tenures, lambda: None)

    def troubles(self) -> Iterable[str]:
        """Yield what keeps owned streams from delivering."""
        for partition in self._owned.values():
            if not partition.loaded:
                yield f"partition {partition.tenure.partition}: loading"
            for subscription in partition.subscriptions.values():
                if not subscription.is_live:
                    why = f" ({subscription.trouble})" if subscription.trouble else ""
                    yield f"stream {subscription.stream}: no live connection{why}"

    def status(self) -> dict[str, object]:
        """Return how each configured stream is, as far as this replica knows."""
        told: dict[str, object] = {}
        for stream, settings in self.streams.items():
            partition = self._owned.get(home(stream, self.partitions))
            subscription = None if partition is None else partition.subscriptions.get(stream)
            state = "loading" if partition else "elsewhere"
            told[stream] = status(settings.promise(self.mode), subscription, state)
        return told

    # A partition's life

    def _begin(self, tenure: Tenure) -> None:
        if not self._draining:
            limits = {stream: its.manners.request.predicates for stream, its in self.streams.items()}
            for stream, count in self.shared.items():
                limits[stream] = limits[shares.names(stream, count)[0]]
            table = Table(
                limits=limits, partition=tenure.partition, partitions=self.partitions, shared=self.shared
            )
            partition = self._owned[tenure.partition] = _Partition(tenure, table)
            self._tasks.create_task(self._restore(partition), name=f"restore-{tenure.partition}")

    async def _restore(self, partition: _Partition) -> None:
        number = partition.tenure.partition
        while self._owned.get(number) is partition:
            try:
                partition.restored = await asyncio.to_thread(self.restore, number)
            except KafkaException as error:
                log.warning("restore.failed", partition=number, error=str(error))
                await asyncio.sleep(_RESTORE_RETRY_S)
            else:
                self._load(partition)
                return

    def _load(self, partition: _Partition) -> None:
        """Start the partition's streams, once both its records and its positions are known."""
        restored = partition.restored
        number = partition.tenure.partition
        is_ours = self._owned.get(number) is partition
        if restored is None or not partition.caught_up or partition.loaded or not is_ours:
            return
        partition.loaded = True
        self.writer.adopt(partition.tenure, restored)
        answered = [record for record in partition.early if record.offset < restored.handled]
        late = partition.early[len(answered) :]
        partition.early.clear()
        for record, rejected in partition.table.load(answered, restored.notes):  # settings have changed
            key = Change.of(record).key
            log.warning("control.record_unfit", key=key, offset=record.offset, reason=str(rejected))
        for entry in sharing.entries(partition.tenure, partition.table, restored, self.streams.keys()):
            self.outbox.put(entry)
        journals = restored.journals()
        for stream, settings in self.streams.items():
            if home(stream, self.partitions) != number:
                continue
            position = restored.positions.get(stream, Position())
            marks = b"".join(page.marks for page in journals.get(stream, ()))
            outlet = Outlet(
                stream=stream,
                tenure=partition.tenure,
                outbox=self.outbox,
                metrics=self.metrics,
                wall=self.wall,
                window=Window(marks, keeps=settings.manners.resume is not None),
                deletions=Deletions(stream, restored.notes),
                cursor=position.cursor,
                heard_at=position.heard_at,
                version=position.predicates,
            )
            subscription = self._subscription(stream, settings, outlet, position)
            partition.subscriptions[stream] = subscription
            target = partition.table.of(stream).union()
            waiting = noted_waiting(stream, restored.notes)
            in_force = noted_in_force(stream, restored.notes, settings.manners.request.predicates)
            subscription.load(target, waiting, in_force)
            self._tasks.create_task(subscription.run(), name=stream)
        for record in late:
            self._handle(partition, record)

    def _subscription(
        self, stream: StreamId, settings: StreamSettings, outlet: Outlet, position: Position
    ) -> Subscription:
        dialect = settings.manners
        rules = dialect.rules
        target = Target(
            url=str(settings.url),
            credentials=settings.auth.credentials(),
            liveness=dialect.liveness,
            response=dialect.response,
            tls=settings.tls.tls(),
            proxy=None if settings.proxy is None else str(settings.proxy),
            allow_link_local=settings.allow_link_local,
            rules_path=None if rules is None else rules.path,
            max_rules=None if rules is None else dialect.request.predicates[rules.predicate].max_values,
        )
        budget = Budget() if dialect.budget is None else Budget(**dialect.budget.model_dump())
        budget.restore(position.attempts)

        def reader(ask: Callable[[], Ask]) -> Reader:
            return Reader(
                connect=self.connect,
                target=target,
                dialect=dialect,
                ask=ask,
                budget=budget,
                wall=self.wall,
                rng=self.rng,
            )

        def amender(ask: Callable[[], Ask]) -> Amender:
            return Amender(connect=self.connect, target=target, dialect=dialect, ask=ask, rng=self.rng)

        return Subscription(
            stream=stream,
            outlet=outlet,
            reader=reader,
            amender=amender,
            dialect=dialect,
            demand=Demand(stream=stream, debounce=Debounce(settings.debounce.min_s, settings.debounce.max_s)),
            budget=budget,
            lifecycle=Lifecycle(stream=stream, metrics=self.metrics, resume=dialect.resume, wall=self.wall),
        )

    async def _give_back(self, tenures: Iterable[Tenure], done: Callable[[], None]) -> None:
        """Commit what was read under tenures that are stopped."""
        for tenure in tenures:
            await self.outbox.written(tenure)
            self.writer.abandon(tenure)
        done()

    def _end(self, tenure: Tenure) -> None:
        """Close everything under a lost lease; nothing more can be committed for it."""
        self._stop(tenure)
        self.writer.abandon(tenure)
        self.outbox.drop(tenure)

    def _stop(self, tenure: Tenure) -> None:
        """Stop what runs under *tenure*, if anything does."""
        partition = self._owned.get(tenure.partition)
        if partition is None or partition.tenure != tenure:
            return
        del self._owned[tenure.partition]
        for subscription in partition.subscriptions.values():
            subscription.stop()

    # Control records

    def _read(self, record: ControlRecord) -> None:
        partition = self._owned.get(record.partition)
        if partition is None:
            return  # the lease ended while it was on its way
        if partition.loaded:
            self._handle(partition, record)
        else:
            partition.early.append(record)

    def _handle(self, partition: _Partition, record: ControlRecord) -> None:
        """Answer a record that nobody has answered yet."""
        try:
            taken = partition.table.take(record)
        except PredicatesRejected as rejected:
            self._reject(partition, record, rejected)
            return
        match taken:
            case Elsewhere(stream, to):
                self._reroute(partition.tenure, record, stream, to)
            case Gone(stream):
                log.info("control.record_passed", stream=stream, offset=record.offset)
                self.outbox.put(Entry(tenure=partition.tenure, handled=record.offset + 1))
            case Taken(stream, note) if stream in self.shared:
                self._deal(partition.tenure, record, stream, note)
            case Taken(stream, note):
                target = partition.table.of(stream).union()
                partition.subscriptions[stream].change(target, Change.of(record), note)

    def _reject(self, partition: _Partition, record: ControlRecord, rejected: PredicatesRejected) -> None:
        origin = f"{self.topic}/{record.partition}/{record.offset}"
        log.warning("predicates.rejected", origin=origin, reason=rejected.reason)
        change, note = Change.of(record), partition.table.keep(record)
        data = {
            **change.as_dict(),
            "reason": rejected.reason,
            "pointer": rejected.pointer,
            "detail": rejected.detail,
        }
        stream = change.key.partition("/")[0] or None
        key = None if record.key is None else record.key[:MAX_KEY_BYTES]
        letter = DeadLetter(rejected.reason, rejected.detail, stream, origin, key, record.value)
        self.outbox.put(
            Entry(
                tenure=partition.tenure,
                events=[Event("predicates.rejected", stream, data)],
                dead_letters=[letter],
                handled=record.offset + 1,
                notes=[] if note is None else [note],
            )
        )

    def _reroute(self, tenure: Tenure, record: ControlRecord, stream: StreamId, to: int) -> None:
        """Move a record to its stream's home: other clients' partitioners hash otherwise."""
        data = {**Change.of(record).as_dict(), "to_partition": to}
        self.outbox.put(
            Entry(
                tenure=tenure,
                events=[Event("predicates.rerouted", stream, data)],
                moves=[(record, to)],
                handled=record.offset + 1,
            )
        )

    def _deal(self, tenure: Tenure, record: ControlRecord, stream: StreamId, note: Note | None) -> None:
        """Pass a record on to all shares of its stream, or to none of them."""
        count = self.shared[stream]
        data = {**Change.of(record).as_dict(), "shares": shares.names(stream, count)}
        self.outbox.put(
            Entry(
                tenure=tenure,
                events=[Event("predicates.dealt", stream, data)],
                moves=shares.dealt(record, stream, count, self.partitions),
                handled=record.offset + 1,
                notes=[note] if note else [],
            )
        )
