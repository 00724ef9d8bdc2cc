"""Written without transactions: nothing is missing, and only what was under way at a failure comes again."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition
from harness import (
    PARTITIONS,
    PATIENCE_S,
    STREAM,
    Connector,
    Kafka,
    Upstream,
    await_complete,
    eventually,
    stream,
)
from kafka_proxy import Proxy
from kafka_wire import Api

RESUME = {"resume": {"parameter": "since_seq", "cursor": "/seq"}}
AT_LEAST_ONCE = {"mode": "at_least_once"}


@pytest.fixture
def proxy(kafka: Kafka) -> Iterator[Proxy]:
    """Stand before the broker."""
    with Proxy(kafka.bootstrap) as proxy:
        yield proxy


def test_without_a_failure_nothing_comes_twice(kafka: Kafka, tmp_path: Path) -> None:
    """Over a changed predicate, and over a planned restart."""
    with (
        Upstream("--rate", "300", "--connects", "1000") as upstream,
        Connector(
            tmp_path, kafka, {STREAM: stream(upstream.url, override=RESUME)}, delivery=AT_LEAST_ONCE
        ) as connector,
    ):
        connector.create_topics().start()
        kafka.publish(STREAM, {"track": ["kafka"]})
        eventually(lambda: len(kafka.delivered()) > 100, "a flow")
        kafka.publish(STREAM, {"track": ["kafka", "python"]})
        eventually(lambda: len(kafka.events("predicates.applied")) == 2, "the change applied")
        code, seconds = connector.stop()
        assert code == 0
        assert seconds < 10
        assert _lag(kafka) == 0
        count = len(kafka.delivered())
        connector.start()
        eventually(lambda: len(kafka.delivered()) > count + 100, "a flow again")
        await_complete(kafka, upstream)
        assert connector.stop()[0] == 0
        assert list(kafka.answers().values()) == [["accepted", "applied"]] * 2
        assert '"at_least_once"' in connector.log.read_text()


def test_kill_minus_nine_loses_nothing(kafka: Kafka, proxy: Proxy, tmp_path: Path) -> None:
    """First with statuses on their way, then anywhere. What was under way comes again, byte for byte."""
    behind = Kafka(proxy.bootstrap)
    behind.topics = kafka.topics
    with (
        Upstream("--rate", "300", "--connects", "1000") as upstream,
        Connector(
            tmp_path, behind, {STREAM: stream(upstream.url, override=RESUME)}, delivery=AT_LEAST_ONCE
        ) as connector,
    ):
        connector.create_topics()
        kafka.publish(STREAM, {"track": ["kafka", "python"]})
        for number, count in ((1, 100), (2, 300), (3, 500)):
            connector.start()
            eventually(lambda least=number: len(upstream.connections()) == least, "a connection")
            eventually(lambda least=count: len(_keys(kafka)) > least, "a flow")
            if number == 1:
                caught = proxy.catch(Api.PRODUCE, where=lambda one: kafka.topics.of("statuses") in one.topics)
                caught.wait()
            if number < 3:
                connector.stop(signal.SIGKILL)
            if number == 1:
                caught.cut()
        kafka.publish(f"{STREAM}/other", {"track": ["python"]})
        eventually(lambda: len(kafka.events("predicates.unchanged")) == 1, "an answer")
        published = upstream.freeze()

        def is_there() -> bool:
            newest = upstream.connections()[-1]["last_seq"]
            return newest == published and upstream.owed().keys() <= _keys(kafka)

        eventually(is_there, "everything owed")
        eventually(lambda: _lag(kafka) == 0, "all control records counted as handled")
        assert connector.stop()[0] == 0
        sent = upstream.sent()
        delivered = kafka.delivered()
        assert all(sent[one.key] == one.value for one in delivered)
        assert {one.seq for one in delivered} == set(range(1, len(_keys(kafka)) + 1))
        answers = kafka.answers()
        assert [told[-1] for told in answers.values()] == ["applied", "unchanged"]


@pytest.mark.parametrize(
    "error", [KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, KafkaError.TOPIC_AUTHORIZATION_FAILED]
)
def test_what_is_not_taken_is_written_again(error: int, kafka: Kafka, proxy: Proxy, tmp_path: Path) -> None:
    """Whether the client is of no further use after it, or goes on."""
    behind = Kafka(proxy.bootstrap)
    behind.topics = kafka.topics
    with (
        Upstream("--rate", "300", "--connects", "1000") as upstream,
        Connector(
            tmp_path, behind, {STREAM: stream(upstream.url, override=RESUME)}, delivery=AT_LEAST_ONCE
        ) as connector,
    ):
        connector.create_topics().start()
        kafka.publish(STREAM, {"track": ["kafka"]})
        eventually(lambda: len(kafka.delivered()) > 100, "a flow")
        is_status = kafka.topics.of("statuses")
        proxy.catch(Api.PRODUCE, times=2, where=lambda one: is_status in one.topics).answer(error)
        eventually(lambda: connector.logged("writer.recovered"), "another producer")
        published = upstream.freeze()
        eventually(lambda: upstream.connections()[-1]["last_seq"] == published, "all sent")
        eventually(lambda: upstream.owed().keys() <= _keys(kafka), "everything owed")
        eventually(connector.is_ready, "ready")
        assert connector.stop()[0] == 0
        is_fatal = error == KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER
        assert ("Fatal error" in connector.log.read_text()) == is_fatal


def _keys(kafka: Kafka) -> set[str]:
    return {one.key for one in kafka.delivered()}


def _lag(kafka: Kafka) -> int:
    """Return how many control records are not committed as handled."""
    group = f"{kafka.topics.prefix}-connector"
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": group, "log_level": 0})
    try:
        control = [TopicPartition(kafka.topics.of("predicates"), number) for number in range(PARTITIONS)]
        committed = consumer.committed(control, timeout=PATIENCE_S)
        ends = [consumer.get_watermark_offsets(one, timeout=PATIENCE_S)[1] for one in control]
        return sum(end - max(0, its.offset) for its, end in zip(committed, ends, strict=True))
    finally:
        consumer.close()
