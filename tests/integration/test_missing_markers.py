"""A commit that Kafka holds for complete without having written its markers: pending for ever.

A broker that is stopped in the wrong moment leaves it so. Here a request does that comes after its
transaction has ended, to a broker that does not verify whether there is one.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition
from harness import STREAM, Kafka, eventually
from kafka import Broker
from kafka_proxy import Proxy
from kafka_wire import Api

from connector import model
from connector.delivery import restore, transactions
from connector.delivery.batch import Batch, Ledger, form
from connector.delivery.outbox import Entry
from connector.delivery.transactions import Transactions
from connector.model import Position, Status, Tenure

pytestmark = pytest.mark.skipif(shutil.which("java") is None, reason="needs a broker of its own, and so Java")

IN_TIME_S = 30.0


def create_topics(kafka: Kafka) -> model.Topics:
    """Create this test's topics, each with one partition."""
    kafka.create_topics(partitions=1)
    return model.Topics(**kafka.topics.as_dict())


def group(kafka: Kafka) -> str:
    """Return the group's name."""
    return f"{kafka.topics.prefix}-connector"


def a_log(kafka: Kafka, topics: model.Topics, bootstrap: str | None = None) -> Transactions:
    """Return a replica's, which can be reached another way."""
    return Transactions(
        kafka={"bootstrap.servers": bootstrap or kafka.bootstrap, "log_level": 0},
        group=group(kafka),
        replica="test",
        topics=topics,
        max_record_bytes=1 << 20,
    )


def a_batch(kafka: Kafka, mark: str) -> Batch:
    """Return one with a status, by a member of nothing."""
    asking = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": group(kafka), "log_level": 0})
    proof = asking.consumer_group_metadata()
    asking.close()
    tenure = Tenure(0, 1)
    entry = Entry(tenure=tenure, stream=STREAM, statuses=[Status("1", b"{}")], handled=5)
    return form([entry], {tenure: Ledger(0, {}, {})}, proof, mark, 0.0)


class Replica:
    """One that has committed a batch, which is pending all the same."""

    def __init__(self, kafka: Kafka) -> None:
        self.topics = create_topics(kafka)
        self.client = {"bootstrap.servers": kafka.bootstrap, "log_level": 0}
        with Proxy(kafka.bootstrap) as proxy:
            self.log = a_log(kafka, self.topics, proxy.bootstrap)
            self.group = self.log.group
            self.batch = a_batch(kafka, "mark")
            self.log.write(self.batch)
            assert self.log.has(self.batch)
            *_, offsets = proxy.seen(Api.TXN_OFFSET_COMMIT)  # the first may be too early for a new broker
            self.log.close()
            assert proxy.send(offsets) == 0
        self.log = a_log(kafka, self.topics)
        self.log.open()


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    """Run a broker that takes whatever comes."""
    broker = Broker(tmp_path / "kafka", more="transaction.partition.verification.enable=false\n")
    try:
        yield Replica(Kafka(broker.bootstrap))
    finally:
        broker.stop()


def test_the_next_owner_has_them_written(replica: Replica) -> None:
    """A dead replica's, some seconds after it was fenced."""
    found = restore.restore(replica.client, replica.group, replica.topics, 0, IN_TIME_S, own="another")
    assert (found.handled, found.positions) == (5, {STREAM: Position(1)})


def test_the_same_owner_has_them_written(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own, once they are pending for longer than any transaction lasts."""
    monkeypatch.setattr(restore, "_OWN_UNMARKED_S", 3.0)
    own = replica.log.transactional_id
    found = restore.restore(replica.client, replica.group, replica.topics, 0, IN_TIME_S, own=own)
    assert (found.handled, found.positions) == (5, {STREAM: Position(1)})


def test_a_writer_that_recovers_has_them_written(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it would ask for ever what became of its last batch. It has to read the log anew then."""
    monkeypatch.setattr(transactions, "CALL_TIMEOUT_S", 2.0)
    monkeypatch.setattr(transactions, "_UNMARKED_S", 3.0)
    told: list[bool | None] = []

    def has_told() -> bool:
        with contextlib.suppress(KafkaException):
            told.append(replica.log.has(replica.batch))
        return bool(told)

    eventually(has_told, "an end of what is pending", IN_TIME_S)
    assert told == [None]
    assert replica.log.has(replica.batch)


def test_a_commit_that_was_confirmed_and_is_not_there_is_noticed(kafka: Kafka) -> None:
    """Whoever asks for a later batch learns that the log is not where it left it."""
    topics = create_topics(kafka)
    log = a_log(kafka, topics)
    first, second, third = (a_batch(kafka, mark) for mark in ("first", "second", "third"))
    log.write(first)
    log.write(second)
    assert log.has(third) is False
    offset = TopicPartition(topics.predicates, 0, 5, f"{log.transactional_id} {first.mark}")
    asking = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": log.group, "log_level": 0})
    asking.commit(offsets=[offset], asynchronous=False)
    asking.close()
    assert log.has(third) is None
    assert log.has(first)
