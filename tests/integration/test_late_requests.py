"""Requests that arrive late: lost with their connection, sent again, answered, and then there after all.

librdkafka keeps one epoch over all transactions of a producer, so Kafka takes a request of transaction 1
that arrives in transaction 2 for one of transaction 2. The writer's guard is a new producer, and with it a
new epoch, after every commit slow enough to have been sent twice, and after every failure.

Each story is told twice: to the writer, whom it must not harm, and without the guard, where it must do its
harm. A story that harms nobody would prove nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Self

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from harness import PATIENCE_S, STREAM, Kafka, eventually
from kafka_proxy import Proxy
from kafka_wire import Api, Request

from connector import model
from connector.delivery import transactions as guarded
from connector.delivery.outbox import Entry, Outbox
from connector.delivery.restore import Restored
from connector.delivery.transactions import Transactions
from connector.delivery.writer import Committed, Failed, Outcome, Recovered, Writer
from connector.model import Grant, Status, Tenure

ACCEPTED = 0
REFUSED = KafkaError.INVALID_PRODUCER_EPOCH


@pytest.fixture
def without_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no commit be slow enough for a new producer."""
    monkeypatch.setattr(guarded, "EPOCH_GUARD_S", math.inf)


@pytest.fixture
def topics(kafka: Kafka) -> model.Topics:
    """Create this test's topics, each with one partition."""
    kafka.create_topics(partitions=1)
    return model.Topics(**kafka.topics.as_dict())


@pytest.fixture
def proxy(kafka: Kafka) -> Iterator[Proxy]:
    """Stand before the broker."""
    with Proxy(kafka.bootstrap) as proxy:
        yield proxy


class Writing:
    """The writer in a thread, behind the proxy, with a lease that a real consumer group proves."""

    def __init__(self, kafka: Kafka, topics: model.Topics, proxy: Proxy) -> None:
        self._kafka = kafka
        self._topics = topics
        self.group = f"{kafka.topics.prefix}-connector"
        self._tenure = Tenure(0, 1)
        self._handled = 0
        self._outbox = Outbox(1 << 20)
        log = Transactions(
            kafka={"bootstrap.servers": proxy.bootstrap, "log_level": 0},
            group=self.group,
            replica="test",
            topics=topics,
            max_record_bytes=1 << 20,
        )
        self._writer = Writer(log=log, commit_interval_s=0.0)
        self._writer.adopt(self._tenure, Restored())
        self._thread = ThreadPoolExecutor(1)
        self.outcomes: list[Outcome] = []

    def __enter__(self) -> Self:
        self._member = Consumer(
            {
                "bootstrap.servers": self._kafka.bootstrap,
                "group.id": self.group,
                "enable.auto.commit": False,
                "log_level": 0,
            }
        )
        self._member.subscribe([self._topics.predicates])
        eventually(lambda: self._member.poll(0.1) or self._member.assignment(), "a member of the group")
        self.grant = Grant(frozenset({self._tenure}), self._member.consumer_group_metadata())
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._writer.start())
        self._ended = self._thread.submit(self._loop.run_until_complete, self._run())
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._outbox.close)
        self._ended.result(PATIENCE_S)
        self._thread.shutdown()
        self._loop.close()
        self._member.close()

    async def _run(self) -> None:
        async with contextlib.aclosing(self._writer.run(self._outbox, self)) as outcomes:
            async for outcome in outcomes:
                self.outcomes.append(outcome)
        await self._writer.close()

    async def changed(self) -> None:
        """Wait for another grant: there is none."""
        await asyncio.Event().wait()

    def put(self, *ids: str, size_bytes: int = 1) -> None:
        """Have a status for each of *ids* written, in one transaction with a control record's offset."""
        self._handled += 1
        statuses = [Status(one, b"x" * size_bytes) for one in ids]
        entry = Entry(tenure=self._tenure, stream=STREAM, statuses=statuses, handled=self._handled)
        self._loop.call_soon_threadsafe(self._outbox.put, entry)

    def lose_lease(self) -> None:
        """Lose the lease and what was not written, and get it back."""
        lost, self._tenure, self._handled = self._tenure, Tenure(0, self._tenure.term + 1), 0

        def change() -> None:
            self.grant = Grant(frozenset({self._tenure}), self.grant.metadata)
            self._writer.abandon(lost)
            self._outbox.drop(lost)
            self._writer.adopt(self._tenure, Restored())

        self._loop.call_soon_threadsafe(change)

    def await_outcomes(self, *expected: type[Outcome]) -> None:
        """Wait for as many outcomes as are expected, and hold them against these."""

        def came() -> bool:
            if self._ended.done():
                self._ended.result()
            return len(self.outcomes) >= len(expected)

        eventually(came, "an outcome")
        assert [type(one) for one in self.outcomes] == list(expected), self.outcomes
        assert not any(one.was_committed for one in self.outcomes if isinstance(one, Recovered))

    def committed_offset(self) -> int:
        """Return how many control records are handled, as the next owner would read it."""
        (found,) = self._member.committed([TopicPartition(self._topics.predicates, 0)], PATIENCE_S)
        return found.offset

    def assert_written(self, *ids: str) -> None:
        """Hold the log against what was put since the lease was last taken."""
        delivered = self._kafka.delivered()
        assert [one.key for one in delivered] == list(ids)
        assert [one.seq for one in delivered] == list(range(1, len(ids) + 1))
        newest = self._kafka.records("positions")[-1]
        assert json.loads(newest.value())["seq"] == len(ids)
        assert self.committed_offset() == self._handled


@pytest.fixture
def writing(kafka: Kafka, topics: model.Topics, proxy: Proxy) -> Iterator[Writing]:
    """Run the writer."""
    with Writing(kafka, topics, proxy) as writing:
        yield writing


def visible(kafka: Kafka) -> list[str]:
    """Return the ids that a read_committed reader sees."""
    return [record.key().decode() for record in kafka.records("statuses")]


def appended(kafka: Kafka, topic: str) -> int:
    """Return how long a topic's partition is, whatever becomes of its records."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "group.id": "looking",
            "isolation.level": "read_uncommitted",
            "log_level": 0,
        }
    )
    try:
        return consumer.get_watermark_offsets(TopicPartition(topic, 0), PATIENCE_S)[1]
    finally:
        consumer.close()


# -- a commit comes late, and the transaction that it meets fails ------------------------------------------


def tell_of_a_late_commit_before_a_failure(writing: Writing, proxy: Proxy) -> int:
    """Return what Kafka says to the late commit."""
    commit = proxy.catch(Api.END_TXN)
    commit.cut()
    writing.put("1")
    writing.await_outcomes(Committed)
    # All records of the second transaction are in Kafka before its offsets are sent.
    offsets = proxy.catch(Api.ADD_OFFSETS_TO_TXN)
    proxy.catch(Api.TXN_OFFSET_COMMIT).answer(KafkaError.ILLEGAL_GENERATION)
    writing.put("2")
    offsets.wait()
    answer = commit.arrive_late()
    offsets.forward()
    writing.await_outcomes(Committed, Failed, Recovered, Committed)
    return answer


def test_a_late_commit_makes_nothing_visible_of_a_transaction_that_fails(
    kafka: Kafka, proxy: Proxy, writing: Writing
) -> None:
    assert tell_of_a_late_commit_before_a_failure(writing, proxy) == REFUSED
    writing.assert_written("1", "2")


@pytest.mark.usefixtures("without_guard")
def test_without_the_guard_it_would_double_what_is_written_again(
    kafka: Kafka, proxy: Proxy, writing: Writing
) -> None:
    assert tell_of_a_late_commit_before_a_failure(writing, proxy) == ACCEPTED
    assert visible(kafka) == ["1", "2", "2"]


# -- a commit comes late, in the middle of a partition's records -------------------------------------------


def tell_of_a_late_commit_between_records(kafka: Kafka, writing: Writing, proxy: Proxy, topic: str) -> int:
    """Return what Kafka says to the late commit; the second transaction has not ended."""
    commit = proxy.catch(Api.END_TXN)
    commit.cut()
    writing.put("1")
    writing.await_outcomes(Committed)
    second = proxy.catch(Api.PRODUCE, nth=2, where=lambda request: topic in request.topics)
    writing.put("2", "3", size_bytes=600_000)  # too large for one request
    second.wait()
    # The record of the first transaction, what marks its end, and the first record of the second.
    eventually(lambda: appended(kafka, topic) == 3, "the first of the two records in Kafka")
    answer = commit.arrive_late()
    if answer == ACCEPTED:  # the second record is too late for the transaction once its end is marked
        eventually(lambda: appended(kafka, topic) == 4, "the mark of the end")
    second.forward()
    return answer


def test_a_late_commit_makes_no_half_of_a_transaction_visible(
    kafka: Kafka, topics: model.Topics, proxy: Proxy, writing: Writing
) -> None:
    assert tell_of_a_late_commit_between_records(kafka, writing, proxy, topics.statuses) == REFUSED
    writing.await_outcomes(Committed, Committed)
    writing.assert_written("1", "2", "3")


@pytest.mark.usefixtures("without_guard")
def test_without_the_guard_it_would_double_that_half(
    kafka: Kafka, topics: model.Topics, proxy: Proxy, writing: Writing
) -> None:
    assert tell_of_a_late_commit_between_records(kafka, writing, proxy, topics.statuses) == ACCEPTED
    writing.await_outcomes(Committed, Failed, Recovered, Committed)
    assert visible(kafka) == ["1", "2", "2", "3"]


# -- offsets come late -------------------------------------------------------------------------------------


def tell_of_late_offsets(writing: Writing, proxy: Proxy) -> int:
    """Return what Kafka says to the late offsets."""
    offsets = proxy.catch(Api.TXN_OFFSET_COMMIT)
    offsets.cut()
    writing.put("1")
    writing.await_outcomes(Committed)
    commit = proxy.catch(Api.END_TXN)
    writing.put("2")
    commit.wait()
    answer = offsets.arrive_late()
    commit.forward()
    writing.await_outcomes(Committed, Committed)
    return answer


def test_late_offsets_do_not_take_the_committed_offset_back(
    kafka: Kafka, proxy: Proxy, writing: Writing
) -> None:
    assert tell_of_late_offsets(writing, proxy) == REFUSED
    writing.assert_written("1", "2")


@pytest.mark.usefixtures("without_guard")
def test_without_the_guard_they_would_take_it_back(kafka: Kafka, proxy: Proxy, writing: Writing) -> None:
    assert tell_of_late_offsets(writing, proxy) == ACCEPTED
    assert writing.committed_offset() == 1
    assert visible(kafka) == ["1", "2"]


# -- records of a failed transaction come late -------------------------------------------------------------


def test_a_late_record_of_a_failed_transaction_does_not_take_anothers_place(
    kafka: Kafka, topics: model.Topics, proxy: Proxy, writing: Writing
) -> None:
    def is_status(request: Request) -> bool:
        return topics.statuses in request.topics

    record = proxy.catch(Api.PRODUCE, where=is_status)
    record.cut()
    again = proxy.catch(Api.PRODUCE, where=is_status)
    again.answer(KafkaError.TOPIC_AUTHORIZATION_FAILED)
    renewal = proxy.catch(Api.INIT_PRODUCER_ID)
    writing.put("1")
    renewal.wait()
    # What failed is not written again, so that what comes after it would get its sequence number.
    writing.lose_lease()
    renewal.forward()
    writing.await_outcomes(Failed, Recovered)
    successor = proxy.catch(Api.PRODUCE, where=is_status)
    writing.put("2")
    successor.wait()
    assert record.arrive_late() == REFUSED
    successor.forward()
    writing.await_outcomes(Failed, Recovered, Committed)
    writing.assert_written("2")


def client(topics: model.Topics, proxy: Proxy, **pause: int) -> Producer:
    """Return a producer that is used again after a failure, as the writer's is not."""
    producer = Producer(
        {
            "bootstrap.servers": proxy.bootstrap,
            "transactional.id": topics.statuses,
            "linger.ms": 0,
            "log_level": 0,
            **pause,
        }
    )
    producer.init_transactions(PATIENCE_S)
    return producer


def test_without_a_new_producer_it_would_take_that_place(
    kafka: Kafka, topics: model.Topics, proxy: Proxy
) -> None:
    producer = client(topics, proxy, **{"retry.backoff.ms": 2_000, "retry.backoff.max.ms": 2_000})
    producer.begin_transaction()
    record = proxy.catch(Api.PRODUCE)
    producer.produce(topics.statuses, b"x", "aborted")
    record.wait()
    connections = len(proxy.seen(Api.API_VERSIONS))
    record.cut()
    # A record between two attempts can be given up, one on its way cannot: wait for the former, which the
    # client's pause between two attempts makes last.
    eventually(lambda: len(proxy.seen(Api.API_VERSIONS)) > connections, "another connection")
    producer.abort_transaction(PATIENCE_S)

    producer.begin_transaction()
    successor = proxy.catch(Api.PRODUCE)
    reports: list[KafkaError | None] = []
    producer.produce(topics.statuses, b"x", "committed", on_delivery=lambda err, _: reports.append(err))
    successor.wait()
    assert record.arrive_late() == ACCEPTED
    successor.forward()
    assert producer.flush(PATIENCE_S) == 0
    producer.commit_transaction(PATIENCE_S)
    assert reports == [None]
    assert visible(kafka) == ["aborted"]


# -- an abort comes late -----------------------------------------------------------------------------------


def test_a_late_abort_loses_nothing(kafka: Kafka, proxy: Proxy, writing: Writing) -> None:
    """The writer sends none: a new producer ends what failed. But if it did, this is what became of it."""
    writing.put("1")
    writing.await_outcomes(Committed)
    (commit,) = proxy.seen(Api.END_TXN)
    abort = replace(commit, frame=commit.frame[:-1] + b"\0")
    assert abort.fields == {**commit.fields, "committed": False}
    proxy.catch(Api.TXN_OFFSET_COMMIT).answer(KafkaError.ILLEGAL_GENERATION)
    next_commit = proxy.catch(Api.END_TXN)
    writing.put("2")
    next_commit.wait()
    assert proxy.send(abort) == REFUSED
    next_commit.forward()
    writing.await_outcomes(Committed, Failed, Recovered, Committed)
    writing.assert_written("1", "2")


def test_without_a_new_producer_it_would_lose_what_was_written_before_it(
    kafka: Kafka, topics: model.Topics, proxy: Proxy
) -> None:
    producer = client(topics, proxy)
    producer.begin_transaction()
    producer.produce(topics.statuses, b"x", "1")
    assert producer.flush(PATIENCE_S) == 0
    abort = proxy.catch(Api.END_TXN)
    abort.cut()
    producer.abort_transaction(PATIENCE_S)

    producer.begin_transaction()
    producer.produce(topics.statuses, b"x", "2")
    assert producer.flush(PATIENCE_S) == 0
    assert abort.arrive_late() == ACCEPTED
    producer.produce(topics.positions, b"x", "3")
    assert producer.flush(PATIENCE_S) == 0
    producer.commit_transaction(PATIENCE_S)
    assert visible(kafka) == []
    assert [record.key() for record in kafka.records("positions")] == [b"3"]


# -- what makes the new producer comes late ----------------------------------------------------------------


def test_a_late_renewal_of_the_producer_is_one_more_failure(
    kafka: Kafka, proxy: Proxy, writing: Writing
) -> None:
    """It raises the epoch over the transaction that it meets, which is then written again."""
    writing.put("1")
    writing.await_outcomes(Committed)
    proxy.catch(Api.TXN_OFFSET_COMMIT).answer(KafkaError.ILLEGAL_GENERATION)
    renewal = proxy.catch(Api.INIT_PRODUCER_ID)
    renewal.cut()
    commit = proxy.catch(Api.END_TXN)
    writing.put("2")
    commit.wait()
    assert renewal.arrive_late() in (ACCEPTED, KafkaError.CONCURRENT_TRANSACTIONS)
    commit.forward()
    writing.await_outcomes(Committed, Failed, Recovered, Failed, Recovered, Committed)
    writing.assert_written("1", "2")
