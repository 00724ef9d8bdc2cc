"""The writer: entries from the outbox become batches, one after another.

Whatever fails, the first answer is the same: a new producer, which ends whatever the old one left open, and
then a question to the log, whether the batch is in. The verdict on the error says what to do about the next
attempt, never what became of the last.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random
from typing import Protocol, TypeVar, TypeVarTuple, Unpack

import structlog
from confluent_kafka import KafkaError, KafkaException

from connector.delivery.batch import Batch, Ledger, form
from connector.delivery.journal import next_page
from connector.delivery.outbox import Entry, Outbox
from connector.delivery.poison import condemned
from connector.delivery.restore import Restored
from connector.delivery.verdict import Call, Verdict, verdict
from connector.model import Grant, StreamId, Tenure

log = structlog.get_logger("connector.writer")

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")

BATCH_BYTES = 8 << 20
"""About how much one batch carries at most: large enough to be cheap, small enough to be short."""

_PAUSE_S = 1.0
"""Longest pause before an attempt that may fail as the last one did; a random half of it is left out."""

_SURELY_ALL = 1 << 15
"""More statuses than a batch ever has."""

_PAUSED = frozenset({Verdict.RETRY, Verdict.FATAL})
"""What needs time to pass: a broker, a person."""


class Log(Protocol):
    """How batches get into the log. Blocking; all calls come from one thread."""

    def open(self) -> None:
        """Make a producer, and end whatever the one before it left open."""
        ...

    def write(self, batch: Batch) -> None:
        """Write *batch*."""
        ...

    def has(self, batch: Batch) -> bool | None:
        """Return whether a *batch* that failed is in the log all the same; None if more than it is not."""
        ...

    @property
    def during(self) -> Call:
        """The call that `write` made last."""
        ...

    def close(self) -> None:
        """Let go of the producer."""
        ...


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
    """A batch is in the log.

    Attributes:
        statuses: how many, by stream.
        dead_letters: how many, by reason.
        seconds: from its beginning to the commit's answer.
    """

    statuses: Counter[StreamId]
    dead_letters: Counter[str]
    seconds: float


@dataclass(frozen=True, slots=True)
class Failed:
    """A batch failed, or its outcome is unknown; the writer goes on by itself."""

    error: KafkaError
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Recovered:
    """The writer has a new producer, and knows whether the failed batch is in the log."""

    was_committed: bool


@dataclass(frozen=True, slots=True)
class Condemned:
    """One record that Kafka does not take was found; its dead letter takes its place."""

    stream: StreamId | None
    error: KafkaError


@dataclass(frozen=True, slots=True)
class Unrecovered:
    """After a failed batch there is no producer yet, or no answer from the log; the writer tries again."""

    error: KafkaError
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Undone:
    """Batches are not in the log that were: what is known of these partitions has to be restored anew."""

    tenures: frozenset[Tenure]


Outcome = Committed | Failed | Unrecovered | Recovered | Condemned | Undone


@dataclass(slots=True, kw_only=True)
class Writer:
    """Writes one batch after another.

    Attributes:
        log: where to; its calls run in a thread of their own.
        commit_interval_s: shortest distance between the beginnings of two batches.
    """

    log: Log
    commit_interval_s: float
    rng: Random = field(default_factory=Random)
    _ledgers: dict[Tenure, Ledger] = field(default_factory=dict, init=False)
    _thread: ThreadPoolExecutor = field(init=False)
    _most: int | None = field(default=None, init=False)  # statuses in a batch, while a bad one is looked for

    def __post_init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")

    def adopt(self, tenure: Tenure, restored: Restored) -> None:
        """Go on from what the log says about a partition, now that its lease is ours."""
        pages = {stream: next_page(pages[-1]) for stream, pages in restored.journals().items() if pages}
        self._ledgers[tenure] = Ledger(restored.handled, dict(restored.positions), pages)

    def abandon(self, tenure: Tenure) -> None:
        """Write nothing more under *tenure*."""
        self._ledgers.pop(tenure, None)

    async def start(self) -> None:
        """Make the producer, which ends any open transaction of a former self.

        Raises:
            KafkaException: Kafka did not answer, or refused; the first may change.
        """
        await self._call(self.log.open)

    async def run(self, outbox: Outbox, ownership: Ownership) -> AsyncGenerator[Outcome, None]:
        """Write what *outbox* holds until it is closed and empty, and yield each outcome."""
        began_at = -self.commit_interval_s
        failed_before = False
        while await outbox.filled():
            await asyncio.sleep(began_at + self.commit_interval_s - time.monotonic())
            grant = ownership.grant
            if grant.metadata is None and grant.tenures:
                await ownership.changed()
                continue
            entries = outbox.take(BATCH_BYTES, self._most)
            orphans = [e for e in entries if not self._may_write(e, grant)]
            outbox.settle(orphans)
            entries = [e for e in entries if self._may_write(e, grant)]
            if not entries or grant.metadata is None:
                continue
            batch = form(entries, self._ledgers, grant.metadata, uuid.uuid4().hex, time.time())
            began_at = time.monotonic()
            if (error := await self._attempt(batch)) is not None:
                judged = _judge(error, self.log.during)
                yield Failed(error, judged)
                while isinstance(in_log := await self._recover(batch), Unrecovered):
                    yield in_log
                if in_log is None:
                    yield self._undo(batch, outbox)
                    continue
                yield Recovered(in_log)
                if not in_log:
                    found = self._narrow(entries, outbox, error) if judged is Verdict.POISONED else None
                    if found is not None:
                        yield found
                    else:
                        outbox.put_back(entries)
                    if judged is Verdict.FENCED:
                        await self._proof_after(grant, ownership)
                    elif judged in _PAUSED or failed_before:
                        await self._pause()
                    is_narrower = judged is Verdict.POISONED and (found is not None or _count(entries) > 1)
                    failed_before = not is_narrower
                    continue
            failed_before = False
            self._settle(batch, outbox)
            yield Committed(*batch.counts(), time.monotonic() - began_at)

    async def close(self) -> None:
        """Let go of the producer; an open transaction is left to its successor."""
        await self._call(self.log.close)
        await asyncio.to_thread(self._thread.shutdown)

    def _may_write(self, entry: Entry, grant: Grant) -> bool:
        return entry.tenure in self._ledgers and entry.tenure in grant.tenures

    def _settle(self, batch: Batch, outbox: Outbox) -> None:
        """Take the batch's state over, for partitions that are still ours."""
        for tenure, ledger in batch.ledgers.items():
            if tenure in self._ledgers:
                self._ledgers[tenure] = ledger
        outbox.settle(batch.entries)
        if self._most is not None:  # slowly, as the reason may be the batch's size rather than one record
            self._most += 1 + self._most // 16
            if self._most > _SURELY_ALL:
                self._most = None

    def _narrow(self, entries: Sequence[Entry], outbox: Outbox, error: KafkaError) -> Condemned | None:
        """Halve the batch until the refused record is alone, and put a dead letter in its place."""
        if (count := _count(entries)) > 1:
            self._most = count // 2
            return None
        (entry,) = entries
        if (instead := condemned(entry, f"{error.name()}: {error.str()}")) is None:
            return None
        self._most = 1  # where one is refused others are near, and each failure costs a new producer
        outbox.replace(entry, instead)
        return Condemned(entry.stream, error)

    def _undo(self, batch: Batch, outbox: Outbox) -> Undone:
        """Forget the state in which *batch* was formed, and what follows from it."""
        for tenure in batch.ledgers:
            self.abandon(tenure)
        outbox.settle(batch.entries)
        return Undone(frozenset(batch.ledgers))

    async def _attempt(self, batch: Batch) -> KafkaError | None:
        """Write *batch*; return what went wrong.

        Not the exception: its traceback would keep the producer that failed alive beside its successor, and
        what that one still sends, once Kafka is back, is of the same epoch.
        """
        try:
            await self._call(self.log.write, batch)
        except KafkaException as failed:
            error: KafkaError = failed.args[0]
            return error
        return None

    async def _recover(self, batch: Batch) -> bool | Unrecovered | None:
        """Return whether *batch* is in the log, with a new producer in place; or why nobody knows yet."""
        try:
            # First the producer: it ends the old transaction, so the log's answer is final.
            await self._call(self.log.open)
            return await self._call(self.log.has, batch)
        except KafkaException as error:
            log.debug("writer.recovery_failed", error=str(error))
            await self._pause()
            return Unrecovered(error.args[0], _judge(error.args[0], Call.INIT))

    async def _proof_after(self, grant: Grant, ownership: Ownership) -> None:
        """Wait for another proof of the lease, no longer than for anything: it may not be what is missing."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._pause_s()):
                while ownership.grant.metadata in (grant.metadata, None):
                    await ownership.changed()

    async def _pause(self) -> None:
        await asyncio.sleep(self._pause_s())

    def _pause_s(self) -> float:
        return _PAUSE_S * (1 - 0.5 * self.rng.random())

    async def _call(self, function: Callable[[Unpack[_Args]], _T], *arguments: *_Args) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)


def _count(entries: Sequence[Entry]) -> int:
    return sum(max(1, len(entry.statuses)) for entry in entries)


def _judge(error: KafkaError, during: Call) -> Verdict:
    return verdict(
        error.name(),
        is_fatal=error.fatal(),
        needs_abort=error.txn_requires_abort(),
        is_retriable=error.retriable(),
        during=during,
    )
