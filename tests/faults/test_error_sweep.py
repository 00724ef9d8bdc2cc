"""Whatever a broker answers to the writer: the right reaction, nothing lost, and the next batch goes on.

The broker is a mock that knows no isolation, so the tests are the isolation: they note where in the topic
each attempt's records lie, and look past those of attempts that failed, whatever the writer makes of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from mock_kafka import MockKafka

from connector.delivery.acknowledgements import Acknowledgements
from connector.delivery.batch import Batch
from connector.delivery.outbox import Entry, Outbox
from connector.delivery.restore import Restored
from connector.delivery.transactions import Transactions
from connector.delivery.verdict import Call, Verdict, verdict
from connector.delivery.writer import Committed, Condemned, Failed, Log, Recovered, Writer
from connector.model import Grant, Status, Tenure, Topics

RETRY, ABORT, POISONED, UNKNOWN, FENCED, FATAL = Verdict

TOPICS = Topics(
    predicates="predicates", statuses="statuses", positions="positions", events="events", dlq="dlq"
)
TENURE = Tenure(partition=0, term=1)
METADATA = Consumer({"group.id": "group"}).consumer_group_metadata()
AT_ONCE = 32  # cases that run side by side: they wait far more than they work
PATIENCE_S = 60.0

SILENT = "retried inside"  # librdkafka does it again by itself, and nobody hears of it

# What brokers answer to each request of a transaction, and what it means for the writer.
TRANSACTION: Mapping[str, Mapping[Verdict | str, str]] = {
    "AddPartitionsToTxn": {
        SILENT: """
            COORDINATOR_LOAD_IN_PROGRESS COORDINATOR_NOT_AVAILABLE NOT_COORDINATOR CONCURRENT_TRANSACTIONS
            UNKNOWN_TOPIC_OR_PART _TRANSPORT
        """,
        ABORT: "OPERATION_NOT_ATTEMPTED TRANSACTION_ABORTABLE REQUEST_TIMED_OUT",
        UNKNOWN: "INVALID_TXN_STATE UNKNOWN",
        FENCED: "INVALID_PRODUCER_EPOCH PRODUCER_FENCED INVALID_PRODUCER_ID_MAPPING UNKNOWN_PRODUCER_ID",
        FATAL: """
            TOPIC_AUTHORIZATION_FAILED TRANSACTIONAL_ID_AUTHORIZATION_FAILED CLUSTER_AUTHORIZATION_FAILED
            UNSUPPORTED_VERSION INVALID_REQUEST TOPIC_EXCEPTION
        """,
    },
    "Produce": {
        SILENT: """
            INVALID_MSG UNKNOWN_TOPIC_OR_PART LEADER_NOT_AVAILABLE NOT_LEADER_FOR_PARTITION
            REQUEST_TIMED_OUT NOT_ENOUGH_REPLICAS NOT_ENOUGH_REPLICAS_AFTER_APPEND KAFKA_STORAGE_ERROR
            _TRANSPORT
        """,
        ABORT: """
            NETWORK_EXCEPTION CONCURRENT_TRANSACTIONS TRANSACTION_ABORTABLE UNKNOWN_TOPIC_ID
            THROTTLING_QUOTA_EXCEEDED
        """,
        POISONED: "MSG_SIZE_TOO_LARGE RECORD_LIST_TOO_LARGE INVALID_RECORD POLICY_VIOLATION",
        UNKNOWN: "INVALID_TXN_STATE UNKNOWN OUT_OF_ORDER_SEQUENCE_NUMBER",
        FENCED: "INVALID_PRODUCER_EPOCH PRODUCER_FENCED INVALID_PRODUCER_ID_MAPPING UNKNOWN_PRODUCER_ID",
        FATAL: """
            TOPIC_AUTHORIZATION_FAILED TRANSACTIONAL_ID_AUTHORIZATION_FAILED CLUSTER_AUTHORIZATION_FAILED
            TOPIC_EXCEPTION INVALID_REQUIRED_ACKS INVALID_TIMESTAMP UNSUPPORTED_COMPRESSION_TYPE
            UNSUPPORTED_FOR_MESSAGE_FORMAT UNSUPPORTED_VERSION INVALID_REQUEST
        """,
    },
    "AddOffsetsToTxn": {
        SILENT: """
            COORDINATOR_LOAD_IN_PROGRESS COORDINATOR_NOT_AVAILABLE NOT_COORDINATOR CONCURRENT_TRANSACTIONS
            REQUEST_TIMED_OUT _TRANSPORT
        """,
        ABORT: "TRANSACTION_ABORTABLE",
        UNKNOWN: "INVALID_TXN_STATE UNKNOWN",
        FENCED: "INVALID_PRODUCER_EPOCH PRODUCER_FENCED INVALID_PRODUCER_ID_MAPPING UNKNOWN_PRODUCER_ID",
        FATAL: """
            GROUP_AUTHORIZATION_FAILED TRANSACTIONAL_ID_AUTHORIZATION_FAILED CLUSTER_AUTHORIZATION_FAILED
            UNSUPPORTED_VERSION INVALID_REQUEST INVALID_GROUP_ID
        """,
    },
    "TxnOffsetCommit": {
        SILENT: """
            COORDINATOR_LOAD_IN_PROGRESS COORDINATOR_NOT_AVAILABLE NOT_COORDINATOR CONCURRENT_TRANSACTIONS
            UNKNOWN_TOPIC_OR_PART REQUEST_TIMED_OUT _TRANSPORT
        """,
        ABORT: "TRANSACTION_ABORTABLE",
        UNKNOWN: "INVALID_TXN_STATE UNKNOWN",
        FENCED: """
            INVALID_PRODUCER_EPOCH PRODUCER_FENCED INVALID_PRODUCER_ID_MAPPING UNKNOWN_PRODUCER_ID
            ILLEGAL_GENERATION UNKNOWN_MEMBER_ID FENCED_INSTANCE_ID REBALANCE_IN_PROGRESS
            STALE_MEMBER_EPOCH FENCED_MEMBER_EPOCH GROUP_ID_NOT_FOUND
        """,
        FATAL: """
            TOPIC_AUTHORIZATION_FAILED GROUP_AUTHORIZATION_FAILED TRANSACTIONAL_ID_AUTHORIZATION_FAILED
            CLUSTER_AUTHORIZATION_FAILED OFFSET_METADATA_TOO_LARGE INVALID_COMMIT_OFFSET_SIZE
            INVALID_GROUP_ID UNSUPPORTED_FOR_MESSAGE_FORMAT UNSUPPORTED_VERSION INVALID_REQUEST
        """,
    },
    "EndTxn": {
        SILENT: """
            COORDINATOR_LOAD_IN_PROGRESS COORDINATOR_NOT_AVAILABLE NOT_COORDINATOR CONCURRENT_TRANSACTIONS
            _TRANSPORT
        """,
        UNKNOWN: "INVALID_TXN_STATE UNKNOWN TRANSACTION_ABORTABLE REQUEST_TIMED_OUT MSG_SIZE_TOO_LARGE",
        FENCED: "INVALID_PRODUCER_EPOCH PRODUCER_FENCED INVALID_PRODUCER_ID_MAPPING UNKNOWN_PRODUCER_ID",
        FATAL: """
            TRANSACTIONAL_ID_AUTHORIZATION_FAILED CLUSTER_AUTHORIZATION_FAILED UNSUPPORTED_VERSION
            INVALID_REQUEST
        """,
    },
}

# What they answer while a producer is made, and what its making comes to.
MAKING: Mapping[str, Mapping[Verdict | str, str]] = {
    "InitProducerId": {
        SILENT: """
            COORDINATOR_LOAD_IN_PROGRESS COORDINATOR_NOT_AVAILABLE NOT_COORDINATOR CONCURRENT_TRANSACTIONS
            REQUEST_TIMED_OUT TRANSACTION_ABORTABLE UNKNOWN INVALID_PRODUCER_ID_MAPPING UNKNOWN_PRODUCER_ID
            INVALID_REQUEST UNSUPPORTED_VERSION _TRANSPORT
        """,
        FENCED: "INVALID_PRODUCER_EPOCH PRODUCER_FENCED",
        FATAL: """
            TRANSACTIONAL_ID_AUTHORIZATION_FAILED CLUSTER_AUTHORIZATION_FAILED INVALID_TRANSACTION_TIMEOUT
        """,
    },
    "FindCoordinator": {
        SILENT: """
            COORDINATOR_LOAD_IN_PROGRESS COORDINATOR_NOT_AVAILABLE NOT_COORDINATOR REQUEST_TIMED_OUT
            TRANSACTION_ABORTABLE GROUP_AUTHORIZATION_FAILED INVALID_GROUP_ID INVALID_REQUEST UNKNOWN
            UNSUPPORTED_VERSION _TRANSPORT
        """,
        FATAL: "TRANSACTIONAL_ID_AUTHORIZATION_FAILED CLUSTER_AUTHORIZATION_FAILED",
    },
}


class Leased:
    """A lease that is never lost."""

    grant = Grant(frozenset({TENURE}), METADATA)

    async def changed(self) -> None:
        """Nothing changes, however long who is fenced waits for it."""
        await asyncio.Event().wait()


@dataclass
class Watched:
    """A log that knows better than the writer which attempts came to something.

    Attributes:
        lands: commits that fail here took place there. The mock forgets their offsets, so they are
            committed in its stead.
        visible: offsets in the statuses' topic that a reader of committed records would see.
    """

    log: Log
    kafka: MockKafka
    lands: bool = False
    visible: list[int] = field(default_factory=list)

    def open(self) -> None:
        self.log.open()

    def write(self, batch: Batch) -> None:
        start = self.kafka.end(TOPICS.statuses)
        try:
            self.log.write(batch)
        except KafkaException:
            if not (self.lands and self.log.during is Call.COMMIT):
                raise
            self._see(start)
            self.kafka.commit("group", TopicPartition(TOPICS.predicates, 0, 0, f"other {batch.mark}"))
            raise
        self._see(start)

    def _see(self, start: int) -> None:
        self.visible += range(start, self.kafka.end(TOPICS.statuses))

    def has(self, batch: Batch) -> bool:
        return self.log.has(batch)

    @property
    def during(self) -> Call:
        return self.log.during

    def close(self) -> None:
        self.log.close()


@dataclass
class Story:
    """What happened to a writer that was given batches, one after another, the second of them into a fault.

    Attributes:
        failures: the verdicts, in order.
        recoveries: whether the batch was found in the log, in order.
        condemned: records given up.
        committed: ids of statuses in the order in which they became visible.
        seqs: their numbers.
        written: ids of all statuses in the topic, aborted ones too.
    """

    failures: list[Verdict] = field(default_factory=list)
    recoveries: list[bool] = field(default_factory=list)
    condemned: int = 0
    committed: list[str] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    written: list[str] = field(default_factory=list)


def log_of(kafka: MockKafka, mode: str, commit: Any = lambda _: None) -> Log:
    """Return what the connector writes with."""
    common = {"kafka": kafka.properties, "replica": "one", "topics": TOPICS, "max_record_bytes": 1 << 20}
    if mode == "exactly_once":
        return Transactions(group="group", **common)
    return Acknowledgements(commit=commit, **common)


async def tell(
    kafka: MockKafka,
    log: Log,
    break_it: Any,
    mend_it: Any = lambda: None,
    sizes: tuple[int, ...] = (4, 4, 4),
    lands: bool = False,
) -> Story:
    """Give a writer batches of *sizes* statuses, break Kafka before the second, mend it once that failed."""
    story, watched = Story(), Watched(log, kafka, lands)
    writer = Writer(log=watched, commit_interval_s=0, rng=Random(1))
    writer.adopt(TENURE, Restored())
    outbox, ids = Outbox(1 << 20), iter(range(1 << 20))

    def put(size: int) -> None:
        statuses = [Status(str(next(ids)), b"{}") for _ in range(size)]
        outbox.put(Entry(tenure=TENURE, stream="s", version="v", statuses=statuses))

    waiting = list(sizes)
    put(waiting.pop(0))
    try:
        async for outcome in writer.run(outbox, Leased()):
            match outcome:
                case Failed(_, judged):
                    story.failures.append(judged)
                    mend_it()
                case Recovered(was_committed):
                    story.recoveries.append(was_committed)
                case Condemned():
                    story.condemned += 1
                case Committed():
                    if outbox.size_bytes:
                        continue  # the rest of a batch that was halved
                    if len(waiting) == len(sizes) - 1:
                        await asyncio.to_thread(break_it)
                    if waiting:
                        put(waiting.pop(0))
                    else:
                        outbox.close()
    except Exception:
        await writer.close()  # before its broker goes
        raise
    await writer.close()
    written = await asyncio.to_thread(kafka.records, TOPICS.statuses)
    visible = [written[offset] for offset in watched.visible if offset in written]
    story.written = [one.key().decode() for one in written.values()]
    story.committed = [one.key().decode() for one in visible]
    story.seqs = [int(dict(one.headers())["seq"]) for one in visible]
    return story


def judge(error: KafkaError, during: Call) -> Verdict:
    """Return what *error* means, as the writer would take it."""
    return verdict(
        error.name(),
        is_fatal=error.fatal(),
        needs_abort=error.txn_requires_abort(),
        is_retriable=error.retriable(),
        during=during,
    )


@contextlib.asynccontextmanager
async def new_kafka() -> AsyncIterator[MockKafka]:
    """Yield a mock with the connector's topics."""
    topics = (TOPICS.predicates, TOPICS.statuses, TOPICS.positions, TOPICS.events, TOPICS.dlq)
    kafka = await asyncio.to_thread(MockKafka, *topics)
    try:
        yield kafka
    finally:
        await asyncio.to_thread(kafka.close)


def code(name: str) -> int:
    """Return an error's number."""
    number: int = KafkaError.UNKNOWN if name == "UNKNOWN" else getattr(KafkaError, name)
    return number


def answers(table: Mapping[Verdict | str, str]) -> dict[str, Verdict | str]:
    """Return what is to come of each code of *table*."""
    return {name: expected for expected, names in table.items() for name in names.split()}


async def all_of(cases: Mapping[str, Any]) -> dict[str, Any]:
    """Run *cases* side by side; return what became of each."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(AT_ONCE))
    room = asyncio.Semaphore(AT_ONCE)

    async def one(case: Any) -> Any:
        async with room:
            try:
                return await asyncio.wait_for(case, PATIENCE_S)
            except TimeoutError:
                return "the writer stands still"

    ended = await asyncio.gather(*map(one, cases.values()), return_exceptions=True)
    return dict(zip(cases, ended, strict=True))


def complaints(
    story: Story | BaseException | str, expected: Verdict | str, sizes: tuple[int, ...] = (4, 4, 4)
) -> str:
    """Return what is wrong with *story*."""
    if not isinstance(story, Story):
        return story if isinstance(story, str) else f"ended with {story!r}"
    wanted = [str(number) for number in range(sum(sizes))]
    found = []
    if story.committed != wanted:
        found.append(f"visible are {story.committed[:20]} of {story.written[:20]}")
    if story.seqs != list(range(1, len(wanted) + 1)):
        found.append(f"numbered are they {story.seqs[:20]}")
    if story.condemned:
        found.append(f"{story.condemned} condemned")
    failures = [] if expected == SILENT else [expected]
    if story.failures != failures:
        found.append(f"failed as {story.failures}, not {failures}")
    if len(story.recoveries) != len(story.failures):
        found.append(f"{len(story.recoveries)} recoveries")
    return "; ".join(found)


def hold(stories: Mapping[str, Story | BaseException | str], expected: Mapping[str, Verdict | str]) -> None:
    """Hold stories against what was expected of them, and name each that differs."""
    wrong = {case: complaints(story, expected[case]) for case, story in stories.items()}
    lines = [f"{case}: {complaint}" for case, complaint in wrong.items() if complaint]
    assert not lines, "\n".join(["", *lines])


@pytest.mark.parametrize("api", TRANSACTION)
async def test_every_answer_in_a_transaction_has_its_reaction_and_loses_nothing(api: str) -> None:
    """One error, once: the batch is written after all, once, and so is the next one."""

    async def case(name: str) -> Story:
        async with new_kafka() as kafka:
            return await tell(kafka, log_of(kafka, "exactly_once"), lambda: kafka.fail(api, code(name)))

    expected = answers(TRANSACTION[api])
    stories = await all_of({name: case(name) for name in expected})
    hold(stories, expected)


@pytest.mark.parametrize("api", MAKING)
async def test_every_answer_to_a_new_producer_has_its_reaction(api: str) -> None:
    """Made at the start, the producer fails as expected or not at all; made once more, it writes."""

    async def case(name: str) -> Story:
        async with new_kafka() as kafka:
            log = log_of(kafka, "exactly_once")
            kafka.fail(api, code(name))
            met: list[Verdict] = []
            try:
                await asyncio.to_thread(log.open)
            except KafkaException as refused:
                met.append(judge(refused.args[0], Call.INIT))
            story = await tell(kafka, log, lambda: None)
            return replace(story, failures=met + story.failures, recoveries=[True] * len(met))

    expected = answers(MAKING[api])
    stories = await all_of({name: case(name) for name in expected})
    hold(stories, expected)


@pytest.mark.parametrize("api", MAKING)
async def test_no_answer_stops_a_recovery(api: str) -> None:
    """The transaction fails, and then the new producer or the question to the log does."""

    async def case(name: str) -> Story:
        async with new_kafka() as kafka:

            def break_it() -> None:
                kafka.fail("EndTxn", KafkaError.TRANSACTION_ABORTABLE)
                kafka.fail(api, code(name))

            return await tell(kafka, log_of(kafka, "exactly_once"), break_it)

    stories = await all_of({name: case(name) for name in answers(MAKING[api])})
    hold(stories, dict.fromkeys(stories, UNKNOWN))


# What lasts longer than librdkafka tries, and longer than a call may take.
LASTING = {
    "Produce": "NOT_ENOUGH_REPLICAS KAFKA_STORAGE_ERROR NOT_LEADER_FOR_PARTITION _TRANSPORT",
    "AddPartitionsToTxn": "CONCURRENT_TRANSACTIONS COORDINATOR_LOAD_IN_PROGRESS NOT_COORDINATOR _TRANSPORT",
    "AddOffsetsToTxn": "CONCURRENT_TRANSACTIONS COORDINATOR_LOAD_IN_PROGRESS NOT_COORDINATOR _TRANSPORT",
    "TxnOffsetCommit": "CONCURRENT_TRANSACTIONS COORDINATOR_LOAD_IN_PROGRESS NOT_COORDINATOR _TRANSPORT",
    "EndTxn": "CONCURRENT_TRANSACTIONS COORDINATOR_LOAD_IN_PROGRESS NOT_COORDINATOR _TRANSPORT",
}


async def test_what_lasts_fails_the_batch_once_and_passes() -> None:
    """The call gives up; before the commit nothing is in the log, and of a commit the log is asked."""

    async def case(api: str, name: str) -> Story:
        async with new_kafka() as kafka:
            log = log_of(kafka, "exactly_once")
            return await tell(
                kafka, log, lambda: kafka.fail_for_ever(api, code(name)), lambda: kafka.heal(api)
            )

    cases = {f"{api}, {name}": case(api, name) for api, names in LASTING.items() for name in names.split()}
    stories = await all_of(cases)
    hold(stories, {case: UNKNOWN if case.startswith("EndTxn") else ABORT for case in stories})


async def test_a_commit_that_is_answered_too_late_is_found_in_the_log() -> None:
    """It is not written again, and the next batch goes on from it."""
    async with new_kafka() as kafka:
        log = log_of(kafka, "exactly_once")
        story = await tell(kafka, log, lambda: kafka.delay("EndTxn", 7), lands=True)
    assert story.recoveries == [True]
    assert not complaints(story, UNKNOWN)


async def test_a_transaction_that_fails_while_it_is_filled_says_why() -> None:
    """The client takes no more records then, and says no reason: taken for the reason, it would repeat."""
    sizes = (4, 40_000, 4)
    async with new_kafka() as kafka:
        story = await tell(
            kafka,
            log_of(kafka, "exactly_once"),
            lambda: kafka.fail("Produce", KafkaError.INVALID_RECORD),
            sizes=sizes,
        )
    assert not complaints(story, POISONED, sizes)


# Without transactions nothing is fenced, and what is unknown is written again.
ACKNOWLEDGED: Mapping[Verdict | str, str] = {
    SILENT: f"{TRANSACTION['Produce'][SILENT]} UNKNOWN_PRODUCER_ID",
    ABORT: "NETWORK_EXCEPTION",
    POISONED: TRANSACTION["Produce"][POISONED],
    UNKNOWN: "UNKNOWN OUT_OF_ORDER_SEQUENCE_NUMBER",
    FENCED: "INVALID_PRODUCER_EPOCH",
    FATAL: """
        TOPIC_AUTHORIZATION_FAILED CLUSTER_AUTHORIZATION_FAILED TOPIC_EXCEPTION INVALID_REQUIRED_ACKS
        INVALID_TIMESTAMP UNSUPPORTED_COMPRESSION_TYPE UNSUPPORTED_FOR_MESSAGE_FORMAT
    """,
}


async def test_every_answer_to_a_record_without_transactions_has_its_reaction() -> None:
    async def case(name: str) -> Story:
        async with new_kafka() as kafka:
            log = log_of(kafka, "at_least_once")
            return await tell(kafka, log, lambda: kafka.fail("Produce", code(name)))

    expected = answers(ACKNOWLEDGED)
    stories = await all_of({name: case(name) for name in expected})
    hold(stories, expected)


# What the consumer's commit says once the records are acknowledged.
OFFSETS: Mapping[Verdict | str, str] = {
    FENCED: "ILLEGAL_GENERATION UNKNOWN_MEMBER_ID REBALANCE_IN_PROGRESS _ASSIGNMENT_LOST _MAX_POLL_EXCEEDED",
    ABORT: "_TIMED_OUT _TRANSPORT _WAIT_COORD REQUEST_TIMED_OUT NOT_COORDINATOR COORDINATOR_NOT_AVAILABLE",
    FATAL: "GROUP_AUTHORIZATION_FAILED TOPIC_AUTHORIZATION_FAILED OFFSET_METADATA_TOO_LARGE",
    UNKNOWN: "_DESTROY UNKNOWN",
}


async def test_offsets_that_are_not_committed_have_the_batch_written_again() -> None:
    async def case(name: str) -> Story:
        due: list[KafkaError] = []

        def commit(_: Mapping[int, int]) -> None:
            if due:
                raise KafkaException(due.pop())

        async with new_kafka() as kafka:
            log = log_of(kafka, "at_least_once", commit)
            return await tell(kafka, log, lambda: due.append(KafkaError(code(name))))

    expected = answers(OFFSETS)
    stories = await all_of({name: case(name) for name in expected})
    hold(stories, expected)
    assert {len(story.written) for story in stories.values()} == {16}, "once more, and no more than that"
