"""The composition root: builds the parts, runs them in one task group, and stops them in order."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

import structlog
from confluent_kafka import KafkaError, KafkaException

from connector import __version__, sharing, topics
from connector.control.lease import Lease
from connector.delivery.acknowledgements import Acknowledgements
from connector.delivery.outbox import Outbox
from connector.delivery.restore import Restored, restore
from connector.delivery.transactions import Transactions
from connector.delivery.verdict import Verdict
from connector.delivery.writer import Committed, Condemned, Failed, Recovered, Undone, Unrecovered, Writer
from connector.errors import WriteRefused
from connector.ops.health import Health
from connector.ops.metrics import Metrics
from connector.ops.server import serve
from connector.settings import Settings
from connector.stream.connection import HttpConnect
from connector.supervisor import Supervisor

log = structlog.get_logger("connector.app")

DRAIN_BUDGET_S = 9.0
"""From the signal to the end of the last commit; the promise is to be gone within ten seconds."""

MAX_POLL_INTERVAL_S = 30.0
"""A poll thread silent for longer has lost its lease, and a process that stuck needs a restart."""

HOPELESS_S = 300.0
"""How long a refusal that only a person can mend is borne, unready, until the process ends: somebody may be
about to mend it, and a process that comes back fresh says it again."""

_PROBE_INTERVAL_S = 5.0
_RESTORE_TIMEOUT_S = 30.0

_T = TypeVar("_T")


async def run(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT; return the exit code.

    Raises:
        TopicsMismatch: the topics are missing or unfit.
        OSError: the ops port is taken.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    health, metrics = Health(), Metrics()
    health.report("kafka", "not reached yet")
    kafka = settings.kafka.properties(settings.replica)
    lease = Lease(
        {
            **kafka,
            "group.id": settings.kafka.group,
            "max.poll.interval.ms": int(MAX_POLL_INTERVAL_S * 1000),
        },
        settings.kafka.topics.predicates,
        settings.kafka.session_timeout_s,
    )
    ops = settings.ops

    def is_alive() -> bool:
        return lease.silent_s < MAX_POLL_INTERVAL_S

    async with serve(ops.host, ops.port, health, metrics, is_alive) as port:
        log.info(
            "connector.started",
            version=__version__,
            replica=settings.replica,
            streams=sorted(settings.streams),
            ops_port=port,
        )
        work = asyncio.create_task(_work(settings, kafka, lease, health, metrics, stop))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([work, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not work.done():
            log.info("connector.stopping")
            await asyncio.wait([work], timeout=DRAIN_BUDGET_S)
        if not work.done():
            log.error("connector.stopped_undrained", budget_s=DRAIN_BUDGET_S)
            # Threads may be waiting for brokers that are gone. What was not committed is read again by
            # the next owner, where the upstream can resume.
            os._exit(1)
        work.result()
    log.info("connector.stopped")
    return 0


async def _work(
    settings: Settings,
    kafka: dict[str, object],
    lease: Lease,
    health: Health,
    metrics: Metrics,
    stop: asyncio.Event,
) -> None:
    cluster = topics.Cluster(kafka)
    names = settings.kafka.topics.names()
    needed = topics.wanted(names, settings.kafka.control_partitions, settings.kafka.status_partitions)
    longest = max(one.manners.framing.max_frame_bytes for one in settings.streams.values())
    written = _log(settings, kafka, lease, longest + topics.BATCH_OVERHEAD_BYTES)
    writer = Writer(log=written, commit_interval_s=settings.delivery.commit_interval_s)
    running = sharing.running(settings.streams)
    for stream, its in running.items():
        promised = its.promise(settings.delivery.mode)
        log.info("stream.promised", stream=stream, **dataclasses.asdict(promised))
        metrics.promised(stream, promised.name)
    try:
        partitions = await _until_reached(
            lambda: asyncio.to_thread(cluster.verify, needed, names.statuses, longest), health, stop
        )
        await _until_reached(writer.start, health, stop)
    except _Stopped:
        return
    outbox = Outbox(settings.delivery.outbox_bytes)

    def restored(partition: int) -> Restored:
        own = written.transactional_id if isinstance(written, Transactions) else ""
        return restore(kafka, settings.kafka.group, names, partition, _RESTORE_TIMEOUT_S, own)

    supervisor = Supervisor(
        streams=running,
        shared=sharing.shared(settings.streams),
        partitions=partitions,
        lease=lease,
        outbox=outbox,
        writer=writer,
        restore=restored,
        connect=HttpConnect(),
        metrics=metrics,
        topic=names.predicates,
        mode=settings.delivery.mode,
    )
    health.check(lease.troubles)
    health.check(supervisor.troubles)
    health.describe(supervisor.status)
    metrics.gauge("producer_epochs", "Producers made so far.", lambda: written.epochs)
    metrics.gauge("commits_guarded", "Commits so slow that a new producer followed.", lambda: written.guarded)
    metrics.gauge("outbox_bytes", "Bytes waiting to be written.", lambda: outbox.size_bytes)
    metrics.gauge("ready", "1 when ready.", lambda: float(not health.troubles()))
    lease.start()
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(supervisor.run(), name="supervisor")
            writing = tasks.create_task(_write(writer, outbox, lease, health, metrics), name="writer")
            probing = tasks.create_task(_probe(cluster, needed, health, outbox), name="probe")
            await stop.wait()
            await supervisor.drain()
            outbox.close()
            await asyncio.wait([writing])
            await lease.close()
            probing.cancel()
    except* WriteRefused as refused:
        raise refused.exceptions[0] from None
    await writer.close()


def _log(
    settings: Settings, kafka: dict[str, object], lease: Lease, max_record_bytes: int
) -> Transactions | Acknowledgements:
    names = settings.kafka.topics.names()
    if settings.delivery.mode == "at_least_once":
        return Acknowledgements(
            kafka=kafka,
            replica=settings.replica,
            topics=names,
            max_record_bytes=max_record_bytes,
            commit=lease.commit,
        )
    return Transactions(
        kafka=kafka,
        group=settings.kafka.group,
        replica=settings.replica,
        topics=names,
        max_record_bytes=max_record_bytes,
    )


async def _write(writer: Writer, outbox: Outbox, lease: Lease, health: Health, metrics: Metrics) -> None:
    """Run the writer, and tell metrics and health how it fares.

    Raises:
        WriteRefused: it was refused for so long that nobody seems to mend it.
    """
    hopeless_since: float | None = None
    async with aclosing(writer.run(outbox, lease)) as outcomes:
        async for outcome in outcomes:
            match outcome:
                case Committed(statuses, dead_letters, seconds):
                    metrics.committed(statuses, dead_letters, seconds)
                    health.report("writer", None)
                    hopeless_since = None
                case Failed(error, verdict) | Unrecovered(error, verdict):
                    if isinstance(outcome, Failed):
                        metrics.failed(error.name(), verdict.value)
                    if isinstance(outcome, Failed) or verdict is Verdict.FATAL:
                        health.report("writer", f"{verdict.value}: {error.name()}: {error.str()}")
                    if verdict is not Verdict.FATAL:
                        hopeless_since = None
                    elif hopeless_since is None:
                        hopeless_since = time.monotonic()
                    elif time.monotonic() - hopeless_since > HOPELESS_S:
                        raise WriteRefused(f"{error.name()}: {error.str()}")
                case Recovered(was_committed):
                    log.info("writer.recovered", was_committed=was_committed)
                case Undone(tenures):
                    log.error("writer.undone", partitions=sorted(tenure.partition for tenure in tenures))
                    lease.begin_anew(tenures)
                case Condemned(stream, error):
                    log.error("record.condemned", stream=stream, code=error.name(), detail=error.str())


async def _probe(
    cluster: topics.Cluster, needed: list[topics.Wanted], health: Health, outbox: Outbox
) -> None:
    """Ask the cluster for its topics now and then, so that an idle process knows they are there."""
    while True:
        if not outbox.size_bytes:
            health.report("writer", None)  # what it could not write is another replica's to read again
        try:
            missing = await asyncio.to_thread(cluster.missing, needed)
        except KafkaException as error:
            health.report("kafka", _reason(error))
        else:
            health.report("kafka", None)
            # The writer's own error names none: a client without a topic's metadata just waits for it.
            health.report("topics", "; ".join(missing) or None)
        await asyncio.sleep(_PROBE_INTERVAL_S)


class _Stopped(Exception):
    """Told to stop before there was anything to stop."""


async def _until_reached(attempt: Callable[[], Awaitable[_T]], health: Health, stop: asyncio.Event) -> _T:
    """Repeat *attempt* until Kafka answers.

    Raises:
        _Stopped: *stop* was set meanwhile.
        KafkaException: Kafka refused in a way that waiting does not mend.
    """
    delay_s = 0.25
    while not stop.is_set():
        try:
            result = await attempt()
        except KafkaException as error:
            if error.args[0].fatal():
                raise
            health.report("kafka", _reason(error))
        else:
            health.report("kafka", None)
            return result
        try:
            await asyncio.wait_for(stop.wait(), delay_s)
        except TimeoutError:
            delay_s = min(5.0, 2 * delay_s)
    raise _Stopped


def _reason(error: KafkaException) -> str:
    cause: KafkaError = error.args[0]
    return f"unreachable: {cause.str()}"
