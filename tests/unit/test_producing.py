"""Records reach the client's queue in order, however often it is full."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError, KafkaException

from connector.delivery.producing import produce, properties
from connector.delivery.records import Record


class Queue:
    """A producer whose queue takes so many records until it is polled."""

    def __init__(self, room: int, refuses: str = "") -> None:
        self.room = room
        self.refuses = refuses
        self.waiting = 0
        self.taken: list[tuple[object, ...]] = []
        self.polled = 0

    def produce(self, topic, value, key, partition, *, headers) -> None:
        if key == self.refuses:
            raise KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
        if self.waiting == self.room:
            raise BufferError("Local: Queue full")
        self.waiting += 1
        self.taken.append((topic, value, key, headers, partition))

    def poll(self, timeout_s: float) -> None:
        assert 0 < timeout_s < 1, "it waits for the queue, and not for long"
        self.polled += 1
        self.waiting = 0


def records(count: int) -> list[Record]:
    return [Record("t", b"v", str(number), [("h", b"1")], number - 1) for number in range(count)]


@pytest.mark.parametrize("room", [1, 3, 100])
def test_a_full_queue_is_polled_until_it_takes_the_record(room):
    queue = Queue(room)
    produce(queue, iter(records(10)))
    assert queue.taken == records(10)
    assert queue.polled == (10 - 1) // room


def test_a_record_that_is_refused_ends_it():
    queue = Queue(100, refuses="3")
    with pytest.raises(KafkaException):
        produce(queue, iter(records(10)))
    assert queue.taken == records(10)[:3]


@pytest.mark.parametrize(("longest", "batch"), [(50_000, 50_000), (5_000_000, 1_000_000)])
def test_no_batch_is_longer_than_a_record_may_be(longest, batch):
    made = properties({"bootstrap.servers": "k:9092"}, longest)
    assert (made["message.max.bytes"], made["batch.size"]) == (longest, batch)
    assert made["bootstrap.servers"] == "k:9092"
    assert made["partitioner"] == "murmur2_random"


def test_what_is_only_a_matter_of_speed_can_be_set():
    assert properties({}, 10**6)["compression.type"] == "lz4"
    given = {"compression.type": "zstd", "linger.ms": 50}
    assert given.items() <= properties(given, 10**6).items()


def test_the_property_s_other_name_counts_too():
    """The later of two names wins in librdkafka, so what is given has to stand behind what is ours."""
    made = list(properties({"compression.codec": "none"}, 10**6))
    assert made.index("compression.type") < made.index("compression.codec")
