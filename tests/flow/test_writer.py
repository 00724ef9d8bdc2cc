"""Batches go into a log that fails as told, in virtual time: what the writer does about it."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, Future
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import looptime as virtual
import pytest
from confluent_kafka import KafkaError, KafkaException
from hypothesis import given, settings
from hypothesis import strategies as st

from connector.delivery.batch import Batch
from connector.delivery.journal import PAGE_BYTES, Page
from connector.delivery.outbox import Entry, Outbox
from connector.delivery.poison import REASON
from connector.delivery.restore import Restored
from connector.delivery.verdict import Call, Verdict
from connector.delivery.writer import (
    Committed,
    Condemned,
    Failed,
    Outcome,
    Recovered,
    Undone,
    Unrecovered,
    Writer,
)
from connector.model import DeadLetter, Event, Grant, Position, Status, Tenure, Topics

pytestmark = pytest.mark.looptime

HOME, AWAY = Tenure(1, 1), Tenure(2, 1)
TOPICS = Topics(
    predicates="predicates", statuses="statuses", positions="positions", events="events", dlq="dlq"
)
ENOUGH = 1_000
"""More attempts than any test needs: a writer that goes round in circles ends there."""


def failure(name: str = "_TIMED_OUT", *, fatal: bool = False) -> KafkaException:
    code: int = getattr(KafkaError, name)
    return KafkaException(KafkaError(code, name, fatal))


TOO_LARGE = failure("MSG_SIZE_TOO_LARGE")


@dataclass(frozen=True)
class Fails:
    """What becomes of one batch.

    Attributes:
        during: where it fails.
        in_log: it is there all the same.
        meanwhile: what happens while it is being written.
    """

    error: KafkaException | None = field(default_factory=failure)
    during: Call = Call.COMMIT
    in_log: bool = False
    meanwhile: Callable[[], None] = lambda: None


WRITTEN = Fails(None)


class FakeLog:
    """Takes batches, and fails as told; beyond that it refuses what it finds poisonous.

    Attributes:
        fails: what becomes of the next batches, in order.
        opening: what becomes of the next producers, in order.
        asking: what becomes of the next questions, in order.
        poison: ids of statuses that are refused.
        largest: how many statuses a batch may have.
        is_undone: what it took before is not in it.
        batches: what is in the log.
        calls: what was called, and when.
    """

    def __init__(self, *fails: Fails) -> None:
        self.fails = deque(fails)
        self.opening: deque[KafkaException | None] = deque()
        self.asking: deque[KafkaException | None] = deque()
        self.poison: set[str] = set()
        self.largest = 1 << 30
        self.is_undone = False
        self.during = Call.INIT
        self.batches: list[Batch] = []
        self.calls: list[tuple[str, float]] = []
        self.threads: set[int] = set()
        self._clock = asyncio.get_running_loop().time

    def open(self) -> None:
        self._called("open")
        if self.opening and (error := self.opening.popleft()):
            raise error

    def write(self, batch: Batch) -> None:
        self._called("write")
        assert self.batches.count(batch) == 0
        now = self.fails.popleft() if self.fails else self._judge(batch)
        self.during = now.during
        now.meanwhile()
        if now.error is None or now.in_log:
            self.batches.append(batch)
        if now.error is not None:
            raise now.error

    def _judge(self, batch: Batch) -> Fails:
        ids = [status.id for entry in batch.entries for status in entry.statuses]
        refused = len(ids) > self.largest or not self.poison.isdisjoint(ids)
        return Fails(TOO_LARGE, Call.FLUSH) if refused else WRITTEN

    def has(self, batch: Batch) -> bool | None:
        self._called("has")
        if self.asking and (error := self.asking.popleft()):
            raise error
        return None if self.is_undone else any(one.mark == batch.mark for one in self.batches)

    def close(self) -> None:
        self._called("close")

    def _called(self, name: str) -> None:
        self.threads.add(threading.get_ident())
        self.calls.append((name, self._clock()))
        assert len(self.calls) < ENOUGH

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    @property
    def written_at(self) -> list[float]:
        return [at for name, at in self.calls if name == "write"]

    def ids(self) -> list[int]:
        """Return the statuses that are in the log, in order."""
        return [int(one.id) for batch in self.batches for entry in batch.entries for one in entry.statuses]

    def seqs(self) -> list[int]:
        records = [one for batch in self.batches for one in batch.content(TOPICS, "/connector/r")]
        return [int(dict(one.headers)["seq"]) for one in records if one.topic == "statuses"]

    def letters(self) -> list[DeadLetter]:
        return [one for batch in self.batches for entry in batch.entries for one in entry.dead_letters]

    def sequence(self) -> list[int | str]:
        """Return statuses and the keys of dead letters in the order in which they are in the log."""
        found: list[int | str] = []
        for entry in (entry for batch in self.batches for entry in batch.entries):
            found += [f"dead {(letter.key or b'').decode()}" for letter in entry.dead_letters]
            found += [int(status.id) for status in entry.statuses]
        return found


class AtOnce(Executor):
    """Runs everything where it is submitted, so that nothing but virtual time passes."""

    def submit(self, function, /, *arguments, **named):
        future: Future[object] = Future()
        try:
            future.set_result(function(*arguments, **named))
        except KafkaException as error:
            future.set_exception(error)
        return future


class Lease:
    """What is owned; a test grants and takes it."""

    def __init__(self, *tenures: Tenure, metadata: bytes | None = b"proof") -> None:
        self.grant = Grant(frozenset(tenures), metadata)
        self._changed = asyncio.Event()

    def give(self, *tenures: Tenure, metadata: bytes | None = b"proof") -> None:
        self.grant = Grant(frozenset(tenures), metadata)
        self._changed.set()

    async def changed(self) -> None:
        self._changed.clear()
        await self._changed.wait()


@dataclass
class Running:
    """A writer with all around it.

    Attributes:
        told: its outcomes so far.
    """

    writer: Writer
    log: FakeLog
    outbox: Outbox
    lease: Lease
    told: list[Outcome] = field(default_factory=list)

    def put(self, *numbers: int, tenure: Tenure = HOME, each: bool = False, **more: object) -> None:
        """Put statuses in one entry, or one for *each*."""
        for some in [[number] for number in numbers] if each else [numbers]:
            statuses = [Status(str(number), b'{"n":%d}' % number) for number in some]
            stream = "tech" if tenure == HOME else "news"
            self.outbox.put(Entry(tenure=tenure, stream=stream, statuses=statuses, **more))

    def kinds(self, *kinds: type) -> list[Outcome]:
        return [one for one in self.told if isinstance(one, kinds)]

    @property
    def verdicts(self) -> list[Verdict]:
        return [one.verdict for one in self.told if isinstance(one, Failed)]

    async def run(self) -> None:
        async with aclosing(self.writer.run(self.outbox, self.lease)) as outcomes:
            async for outcome in outcomes:
                self.told.append(outcome)

    async def end(self) -> None:
        """Let it write all there is."""
        self.outbox.close()
        await self.run()
        assert self.outbox.size_bytes == 0


def writing(*fails: Fails, owned: Sequence[Tenure] = (HOME,), interval_s: float = 0.0) -> Running:
    writer = Writer(log=FakeLog(*fails), commit_interval_s=interval_s, rng=Random(1))
    writer._thread.shutdown()
    writer._thread = AtOnce()
    for tenure in owned:
        writer.adopt(tenure, Restored())
    return Running(writer, writer.log, Outbox(1 << 30), Lease(*owned))


@asynccontextmanager
async def in_background(running: Running) -> AsyncIterator[None]:
    task = asyncio.create_task(running.run())
    yield
    running.outbox.close()
    await task


# --- When all goes well -------------------------------------------------------------------------


async def test_what_is_put_is_written_in_order_and_counted() -> None:
    running = writing(owned=(HOME, AWAY))
    running.put(1, 2, 3)
    running.put(4, tenure=AWAY)
    running.put(5, dead_letters=[DeadLetter("not_json", "", "tech", "upstream", None, b"x")])
    await running.end()
    assert running.log.ids() == [1, 2, 3, 4, 5]
    (committed,) = running.told
    assert isinstance(committed, Committed)
    assert committed.statuses == {"tech": 4, "news": 1}
    assert committed.dead_letters == {"not_json": 1}
    assert committed.seconds >= 0
    assert running.log.names == ["write"]


async def test_batches_follow_one_another_on_the_state_of_the_one_before() -> None:
    running = writing()
    restored = Restored(handled=7, positions={"tech": Position(40, "c")})
    restored.take("seen/tech/3", (3).to_bytes(8, "big") + b"m" * PAGE_BYTES)
    running.writer.adopt(HOME, restored)
    async with in_background(running):
        for number in (1, 2, 3):
            running.put(number, marks=b"x" * 8)
            await asyncio.sleep(1)
    assert running.log.seqs() == [41, 42, 43]
    after = [batch.ledgers[HOME] for batch in running.log.batches]
    assert [ledger.handled for ledger in after] == [7, 7, 7]
    assert [ledger.pages["tech"] for ledger in after] == [Page(4, b"x" * 8 * count) for count in (1, 2, 3)]
    written = [note.key for note in running.log.batches[0].state(TOPICS)]
    assert written == ["seen/tech/4", "tech"], "the page in the log was full"


async def test_batches_do_not_follow_too_closely(looptime) -> None:
    """The time between them is a real clock's, which stands still here."""
    running = writing(interval_s=5)
    async with in_background(running):
        for number in range(4):
            running.put(number)
            await asyncio.sleep(0.01)
    first, *others = running.log.written_at
    assert first == 0
    assert others == [pytest.approx(5, abs=0.5)]
    assert running.log.ids() == [0, 1, 2, 3]


async def test_producers_are_made_at_the_start_and_let_go_at_the_end() -> None:
    running = writing()
    await running.writer.start()
    running.put(1)
    await running.end()
    await running.writer.close()
    assert running.log.names == ["open", "write", "close"]


@pytest.mark.looptime(idle_timeout=5)
async def test_the_log_is_called_in_one_thread_beside_the_event_loop() -> None:
    writer = Writer(log=FakeLog(Fails()), commit_interval_s=0)
    writer.adopt(HOME, Restored())
    running = Running(writer, writer.log, Outbox(1 << 30), Lease(HOME))
    await writer.start()
    running.put(1, 2)
    await running.end()
    assert running.log.names == ["open", "write", "open", "has", "write"]
    assert len(running.log.threads) == 1
    assert threading.get_ident() not in running.log.threads
    await writer.close()


@pytest.mark.looptime(idle_timeout=5)
async def test_a_producer_that_failed_is_gone_before_the_next_one_is_made() -> None:
    """One that lives on sends what it holds as soon as Kafka is back, beside its successor."""

    class Producing(FakeLog):
        def open(self) -> None:
            left.append([producer() for producer in made])
            super().open()

        def write(self, batch: Batch) -> None:
            producer = threading.Event()  # like one, it is in use while `write` runs
            made.append(weakref.ref(producer))
            self._fail_once(batch)

        def _fail_once(self, batch: Batch) -> None:
            if len(made) == 1:
                raise failure("_TIMED_OUT")
            super().write(batch)

    made: list[weakref.ref[threading.Event]] = []
    left: list[list[threading.Event | None]] = []
    writer = Writer(log=Producing(), commit_interval_s=0)
    writer.adopt(HOME, Restored())
    running = Running(writer, writer.log, Outbox(1 << 30), Lease(HOME))
    running.put(1)
    await running.end()
    assert left == [[None]]
    await writer.close()


async def test_who_is_fenced_goes_on_with_the_next_proof_at_once() -> None:
    """A generation of the group has ended, and the next one is there in a moment."""
    running = writing(Fails(failure("ILLEGAL_GENERATION"), Call.SEND_OFFSETS))
    running.put(1)
    async with in_background(running):
        await asyncio.sleep(0.1)
        running.lease.give(HOME, metadata=b"newer proof")
        await asyncio.sleep(5)
    assert running.verdicts == [Verdict.FENCED]
    assert running.log.ids() == [1]
    assert running.log.written_at == [0.0, 0.1]


async def test_a_log_that_has_lost_what_was_in_it_is_not_written_to_from_memory() -> None:
    """Whoever runs the partitions begins anew; the others go on."""
    running = writing(Fails(failure("_TIMED_OUT"), Call.FLUSH), owned=(HOME, AWAY))
    running.log.is_undone = True
    running.put(1)
    async with in_background(running):
        await asyncio.sleep(5)
        assert running.kinds(Undone) == [Undone(frozenset({HOME}))]
        assert running.kinds(Recovered) == []
        running.put(2)
        running.put(3, tenure=AWAY)
        await asyncio.sleep(5)
    assert running.log.ids() == [3]
    assert running.outbox.size_bytes == 0


# --- Failures -----------------------------------------------------------------------------------

PAUSED = (0.5, 1.0)
AT_ONCE = (0.0, 0.0)


@pytest.mark.parametrize(
    ("error", "during", "verdict", "pause"),
    [
        (failure("_TRANSPORT"), Call.INIT, Verdict.RETRY, PAUSED),
        (failure("_QUEUE_FULL"), Call.PRODUCE, Verdict.RETRY, PAUSED),
        (failure("_TIMED_OUT"), Call.FLUSH, Verdict.ABORT, AT_ONCE),
        (failure("_TIMED_OUT"), Call.SEND_OFFSETS, Verdict.ABORT, AT_ONCE),
        (failure("_TIMED_OUT"), Call.COMMIT, Verdict.UNKNOWN, AT_ONCE),
        (failure("_STATE", fatal=True), Call.PRODUCE, Verdict.UNKNOWN, AT_ONCE),
        (failure("_FENCED", fatal=True), Call.COMMIT, Verdict.FENCED, PAUSED),
        (failure("ILLEGAL_GENERATION"), Call.SEND_OFFSETS, Verdict.FENCED, PAUSED),
        (failure("TOPIC_AUTHORIZATION_FAILED"), Call.FLUSH, Verdict.FATAL, PAUSED),
        (failure("MSG_SIZE_TOO_LARGE"), Call.FLUSH, Verdict.POISONED, AT_ONCE),
    ],
)
async def test_after_a_failure_a_new_producer_then_the_log_is_asked_then_it_is_written_again(
    error, during, verdict, pause, looptime
) -> None:
    running = writing(Fails(error, during))
    running.put(1, 2)
    await running.end()
    assert running.log.names[:4] == ["write", "open", "has", "write"]
    failed, recovered, *_ = running.told
    assert failed == Failed(error.args[0], verdict)
    assert recovered == Recovered(was_committed=False)
    least, most = pause
    assert least <= running.log.written_at[1] <= most
    assert running.log.ids() == [1, 2]
    assert running.log.seqs() == [1, 2]


@pytest.mark.parametrize("during", list(Call))
async def test_what_is_in_the_log_all_the_same_is_not_written_again(during, looptime) -> None:
    running = writing(Fails(during=during, in_log=True))
    running.put(1, 2, marks=b"m" * 16)
    running.put(3, cursor="c")
    async with in_background(running):
        await asyncio.sleep(5)
        assert running.outbox.size_bytes == 0
        running.put(4)
        await asyncio.sleep(5)
    assert running.log.ids() == [1, 2, 3, 4]
    assert running.log.seqs() == [1, 2, 3, 4], "the state goes on after it"
    kinds = [type(one) for one in running.told]
    assert kinds == [Failed, Recovered, Committed, Committed]
    assert running.told[1] == Recovered(was_committed=True)
    assert running.log.written_at == [0, 5]


async def test_a_batch_that_goes_on_failing_is_written_at_the_pace_of_the_pauses(looptime) -> None:
    running = writing(*[Fails()] * 9)
    running.put(1)
    await running.end()
    first, second, *later = running.log.written_at
    assert (first, second) == (0, 0), "the first time at once"
    assert 0.5 * len(later) <= later[-1] <= len(later)
    assert running.log.ids() == [1]


async def test_a_success_ends_the_pauses(looptime) -> None:
    running = writing(Fails(), Fails(), WRITTEN, Fails(), WRITTEN)
    async with in_background(running):
        for number in (1, 2):
            running.put(number)
            await asyncio.sleep(10)
    assert running.log.written_at[3:] == [10, 10]


async def test_each_attempt_is_a_batch_of_its_own(looptime) -> None:
    """By its mark it is told apart in the log, so the mark of one that failed never returns."""
    seen: list[Batch] = []
    running = writing(Fails(), Fails())
    write = running.log.write
    running.log.write = lambda batch: (seen.append(batch), write(batch))
    running.put(1)
    await running.end()
    assert len({batch.mark for batch in seen}) == 3


async def test_recovery_waits_until_kafka_answers(looptime) -> None:
    running = writing(Fails(in_log=True))
    running.log.opening.extend([failure(), failure("_TRANSPORT")])
    running.log.asking.append(failure())
    running.put(1)
    await running.end()
    assert running.log.names == ["write", "open", "open", "open", "has", "open", "has"]
    assert [type(one) for one in running.told] == [Failed, *[Unrecovered] * 3, Recovered, Committed]
    assert 1.5 <= running.log.calls[-1][1] <= 3
    assert running.log.ids() == [1], "the answer counts that came after the new producer"


async def test_what_comes_meanwhile_follows_what_failed() -> None:
    running = writing()
    running.log.fails.append(Fails(meanwhile=lambda: running.put(4, 5)))
    running.put(1)
    running.put(2, 3)
    await running.end()
    assert running.log.ids() == [1, 2, 3, 4, 5]


# --- The lease ----------------------------------------------------------------------------------


async def test_what_was_read_under_a_lost_lease_is_never_written() -> None:
    gone, unknown = Tenure(1, 0), Tenure(5, 1)
    running = writing(owned=(HOME, AWAY))
    running.lease.give(HOME, AWAY, unknown)
    running.put(1, tenure=gone)
    running.put(2)
    running.put(3, tenure=unknown)
    running.put(4, tenure=AWAY)
    await running.end()
    assert running.log.ids() == [2, 4]
    for tenure in (gone, unknown):
        await asyncio.wait_for(running.outbox.written(tenure), 1)


async def test_nothing_is_written_where_nothing_is_ours() -> None:
    running = writing()
    running.writer.abandon(HOME)
    running.put(1)
    await running.end()
    assert running.log.names == []
    assert running.told == []


@pytest.mark.parametrize("how", ["lost", "abandoned"])
async def test_a_lease_lost_while_its_batch_fails_takes_it_out_of_the_next(how) -> None:
    running = writing(owned=(HOME, AWAY))

    def lose() -> None:
        if how == "lost":
            running.lease.give(AWAY)
        else:
            running.writer.abandon(HOME)

    running.log.fails.append(Fails(failure("_FENCED", fatal=True), meanwhile=lose))
    running.put(1)
    running.put(2, tenure=AWAY)
    await running.end()
    assert running.log.ids() == [2]


async def test_the_state_of_a_lease_lost_while_its_batch_was_written_stays_away() -> None:
    running = writing(owned=(HOME, AWAY))
    running.log.fails.append(Fails(None, meanwhile=lambda: running.writer.abandon(HOME)))
    async with in_background(running):
        running.put(1)
        running.put(2, tenure=AWAY)
        await asyncio.sleep(1)
        running.put(3)
        running.put(4, tenure=AWAY)
        await asyncio.sleep(1)
    assert running.log.ids() == [1, 2, 4]


async def test_without_a_proof_of_the_lease_nothing_is_written(looptime) -> None:
    running = writing()
    running.lease.give(HOME, metadata=None)
    async with in_background(running):
        running.put(1)
        await asyncio.sleep(100)
        assert running.log.names == []
        running.lease.give(HOME, metadata=b"fresh")
        await asyncio.sleep(1)
    assert running.log.ids() == [1]
    assert running.log.batches[0].metadata == b"fresh"


async def test_after_a_fence_the_next_batch_has_the_proof_of_that_moment(looptime) -> None:
    running = writing()
    lose = Fails(
        failure("ILLEGAL_GENERATION"),
        Call.SEND_OFFSETS,
        meanwhile=lambda: running.lease.give(HOME, metadata=None),
    )
    running.log.fails.append(lose)
    async with in_background(running):
        running.put(1)
        await asyncio.sleep(50)
        assert len(running.log.written_at) == 1
        running.lease.give(HOME, metadata=b"fresh")
        await asyncio.sleep(1)
    assert [batch.metadata for batch in running.log.batches] == [b"fresh"]


@pytest.mark.looptime(idle_timeout=5)
async def test_a_batch_keeps_the_proof_of_the_moment_in_which_it_was_formed() -> None:
    """Else it would pass for what another owner, in between, may have written already."""
    writer = Writer(log=FakeLog(), commit_interval_s=0)
    writer.adopt(HOME, Restored())
    running = Running(writer, writer.log, Outbox(1 << 30), Lease(HOME, metadata=b"formed"))
    loop, is_written_on = asyncio.get_running_loop(), threading.Event()

    def renew() -> None:
        running.lease.give(HOME, metadata=b"renewed")
        loop.call_soon(loop.call_soon, is_written_on.set)  # once whoever waits for it has heard of it

    def meanwhile() -> None:
        loop.call_soon_threadsafe(renew)
        assert is_written_on.wait(5)

    running.log.fails.append(Fails(None, meanwhile=meanwhile))
    running.put(1)
    await running.end()
    await writer.close()
    assert [batch.metadata for batch in running.log.batches] == [b"formed"]


async def test_offsets_are_sent_for_what_is_carried_alone() -> None:
    running = writing(owned=(HOME, AWAY))
    running.put(1, handled=5)
    await running.end()
    assert [batch.offsets() for batch in running.log.batches] == [{HOME.partition: 5}]


# --- A record that Kafka does not take ----------------------------------------------------------


@pytest.mark.parametrize("poison", [{1}, {5000}, {2345}, {7, 8}, {1, 2500, 2501, 4999}], ids=str)
@pytest.mark.parametrize("each", [False, True], ids=["one entry", "an entry each"])
async def test_the_refused_among_thousands_become_dead_letters_and_the_rest_is_kept(
    poison, each, looptime
) -> None:
    running = writing()
    running.log.poison = {str(number) for number in poison}
    count = 5000
    running.put(*range(1, count + 1), each=each, marks=b"m" * 8 * (1 if each else count))
    running.put(count + 1, cursor="last", handled=9)
    await running.end()
    assert running.log.sequence() == [
        f"dead {number}" if number in poison else number for number in range(1, count + 2)
    ]
    assert {letter.reason for letter in running.log.letters()} == {REASON}
    assert running.log.seqs() == list(range(1, count + 2 - len(poison)))
    condemned = running.kinds(Condemned)
    assert [one.stream for one in condemned] == ["tech"] * len(poison)
    assert all(one.error.code() == KafkaError.MSG_SIZE_TOO_LARGE for one in condemned)
    assert set(running.verdicts) == {Verdict.POISONED}
    assert len(running.kinds(Failed)) <= 15 * len(poison), "found by halving"
    assert running.log.written_at[-1] < 1, "without a pause"
    last = running.log.batches[-1].ledgers[HOME]
    assert (last.positions["tech"].cursor, last.handled) == ("last", 9)
    marked = sum(len(entry.marks) for batch in running.log.batches for entry in batch.entries)
    assert marked == 8 * count, "what was refused is not asked for again either"


async def test_batches_that_are_too_large_as_a_whole_are_made_smaller(looptime) -> None:
    """And then larger again, slowly, as most of them would be refused otherwise."""
    running = writing()
    running.log.largest = 100
    running.put(*range(3000))
    await running.end()
    assert running.log.ids() == list(range(3000))
    assert running.log.letters() == []
    sizes = [sum(len(entry.statuses) for entry in batch.entries) for batch in running.log.batches]
    assert any(size < after for size, after in pairwise(sizes))
    assert len(running.log.written_at) < 2 * len(sizes) < 100


async def test_once_the_refused_is_found_batches_grow_again(looptime) -> None:
    """Slowly: where one is refused others may be near, and each failure costs a new producer."""
    running = writing()
    running.log.poison = {"50"}
    running.put(*range(3000))
    await running.end()
    batches = running.log.batches
    found_at = next(at for at, one in enumerate(batches) if any(entry.dead_letters for entry in one.entries))
    sizes = [sum(len(entry.statuses) for entry in batch.entries) for batch in batches[found_at:]]
    assert sizes[:-1] == sorted(sizes[:-1])
    assert max(sizes) > 150


async def test_a_dead_letter_that_is_refused_too_goes_without_its_copy(looptime) -> None:
    running = writing()

    def judge(batch: Batch) -> Fails:
        refused = any(one.id == "2" for entry in batch.entries for one in entry.statuses) or any(
            letter.copy_bytes for entry in batch.entries for letter in entry.dead_letters
        )
        return Fails(failure("INVALID_RECORD"), Call.FLUSH) if refused else WRITTEN

    running.log._judge = judge
    running.put(1, 2, 3)
    await running.end()
    assert running.log.sequence() == [1, "dead 2", 3]
    assert [letter.copy_bytes for letter in running.log.letters()] == [0]
    assert len(running.kinds(Condemned)) == 2


async def test_an_event_that_is_refused_goes_and_its_statuses_stay(looptime) -> None:
    running = writing()

    def judge(batch: Batch) -> Fails:
        refused = any(entry.events for entry in batch.entries)
        return Fails(failure("POLICY_VIOLATION"), Call.FLUSH) if refused else WRITTEN

    running.log._judge = judge
    running.put(1, 2, cursor="c")
    running.outbox.put(Entry(tenure=HOME, stream="tech", events=[Event("e", "tech")], handled=4))
    running.put(3)
    await running.end()
    assert running.log.sequence() == [1, 2, 3]
    assert running.log.batches[-1].ledgers[HOME].handled == 4


async def test_where_nothing_is_left_to_take_out_it_waits_for_a_person(looptime) -> None:
    """The topic of the positions refuses: each attempt costs a producer, so they are no busy loop."""
    running = writing(*[Fails(TOO_LARGE, Call.FLUSH)] * 60)
    running.outbox.put(Entry(tenure=HOME, stream="tech", cursor="c"))
    await running.end()
    assert len(running.log.written_at) == 61
    assert running.log.written_at[-1] >= 0.5 * 59
    assert running.log.batches[-1].ledgers[HOME].positions["tech"].cursor == "c"


# --- Whatever happens ---------------------------------------------------------------------------

failures = st.sampled_from(
    [
        WRITTEN,
        Fails(),
        Fails(in_log=True),
        Fails(failure("_TRANSPORT"), Call.INIT),
        Fails(failure("_FENCED", fatal=True)),
        Fails(failure("TOPIC_AUTHORIZATION_FAILED"), Call.FLUSH),
    ]
)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    fails=st.lists(failures, max_size=8),
    poison=st.sets(st.integers(0, 60), max_size=4),
)
def test_each_status_is_in_the_log_once_and_in_order_whatever_fails(counts, fails, poison) -> None:
    async def story() -> FakeLog:
        running = writing(*fails)
        running.log.poison = {str(number) for number in poison}
        first = 0
        for count in counts:
            running.put(*range(first, first + count), cursor=str(first + count))
            first += count
        await running.end()
        assert running.log.batches[-1].ledgers[HOME].positions["tech"].cursor == str(first)
        return running.log

    loop = virtual.new_event_loop()
    try:
        log = loop.run_until_complete(story())
    finally:
        loop.close()
    found = log.sequence()
    assert [int(str(one).removeprefix("dead ")) for one in found] == list(range(sum(counts)))
    assert log.seqs() == list(range(1, len(log.ids()) + 1))
    assert {one for one in found if isinstance(one, str)} <= {f"dead {number}" for number in poison}
