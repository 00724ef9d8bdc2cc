"""The fault proxy, against a real broker and a real client: what is tested through it really happened."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from harness import PATIENCE_S, Kafka
from kafka_proxy import Proxy
from kafka_wire import LAYOUTS, Api


@pytest.fixture
def topic(kafka: Kafka) -> str:
    """Return a topic with one partition."""
    topic = kafka.topics.of("statuses")
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap, "log_level": 0})
    for created in admin.create_topics([NewTopic(topic, 1, 1)]).values():
        created.result(PATIENCE_S)
    return topic


def run_transaction(bootstrap: str, topic: str) -> None:
    """Write a record and an offset; raise whatever went wrong."""
    client = {"bootstrap.servers": bootstrap, "log_level": 0}
    producer = Producer({**client, "transactional.id": topic})
    producer.init_transactions(PATIENCE_S)
    producer.begin_transaction()
    producer.produce(topic, b"x", "x")
    assert producer.flush(PATIENCE_S) == 0
    consumer = Consumer({**client, "group.id": topic})
    try:
        metadata = consumer.consumer_group_metadata()
    finally:
        consumer.close()
    producer.send_offsets_to_transaction([TopicPartition(topic, 0, 1)], metadata, PATIENCE_S)
    producer.commit_transaction(PATIENCE_S)


@pytest.mark.parametrize(
    ("api", "error"),
    [
        (Api.INIT_PRODUCER_ID, KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED),
        (Api.ADD_PARTITIONS_TO_TXN, KafkaError.TOPIC_AUTHORIZATION_FAILED),
        (Api.PRODUCE, KafkaError.TOPIC_AUTHORIZATION_FAILED),
        (Api.ADD_OFFSETS_TO_TXN, KafkaError.GROUP_AUTHORIZATION_FAILED),
        (Api.TXN_OFFSET_COMMIT, KafkaError.ILLEGAL_GENERATION),
        (Api.END_TXN, KafkaError.INVALID_TXN_STATE),
    ],
    ids=lambda value: value.name if isinstance(value, Api) else "",
)
def test_an_answer_of_the_tests_choosing_is_what_the_client_is_told(
    kafka: Kafka, topic: str, api: Api, error: int
) -> None:
    with Proxy(kafka.bootstrap) as proxy:
        refused = proxy.catch(api)
        refused.answer(error)
        with pytest.raises(KafkaException) as told:
            run_transaction(proxy.bootstrap, topic)
        assert len(refused.requests) == 1
        assert told.value.args[0].code() == error


@pytest.mark.parametrize("fate", ["cut", "swallow", "forward"])
def test_a_client_gets_over_whatever_happens_to_its_connections(kafka: Kafka, topic: str, fate: str) -> None:
    """The first request of each kind: lost, its answer lost, or merely stopped for a while."""
    with Proxy(kafka.bootstrap) as proxy:
        kinds = [api for api in Api if api in LAYOUTS and LAYOUTS[api].request]
        caught = [proxy.catch(api) for api in kinds]
        for one in caught:
            tell: Callable[[], None] = getattr(one, fate)
            tell()
        run_transaction(proxy.bootstrap, topic)
        times = 1 if fate == "forward" else 2
        assert [len(proxy.seen(api)) >= times for api in kinds] == [True] * len(kinds)
        assert [record.value() for record in kafka.records("statuses")] == [b"x"]
        # Each carries what the broker believes: its fields were read as they were meant.
        (commit, *_) = proxy.seen(Api.END_TXN)
        assert (commit.fields["transactional_id"], commit.fields["committed"]) == (topic, True)
        (offsets, *_) = proxy.seen(Api.TXN_OFFSET_COMMIT)
        assert offsets.topics == {topic}
        assert offsets.fields["topics"][0]["partitions"][0]["offset"] == 1
