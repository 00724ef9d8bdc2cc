"""A consumer's view of the statuses topic, while the run goes on and at its end."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import defaultdict

from confluent_kafka import Consumer, Message, TopicPartition

from chaos.checker import Visible


def visible(message: Message) -> Visible:
    """Return what a record says."""
    headers = dict(message.headers())
    return Visible(
        stream=headers["stream"].decode(),
        key=message.key().decode(),
        number=json.loads(message.value())["seq"],
        seq=int(headers["seq"]),
        partition=message.partition(),
        offset=message.offset(),
    )


class Watcher:
    """Reads committed records in a thread of its own, from the first on.

    Attributes:
        seen: in the order in which they came.
    """

    def __init__(self, bootstrap: str, topic: str, partitions: int) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": f"watcher-{uuid.uuid4()}",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 50,
                "reconnect.backoff.max.ms": 500,
                "log_level": 0,
            }
        )
        self._consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
        self.seen: list[Visible] = []
        self._arrivals: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._numbers: dict[str, set[int]] = defaultdict(set)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop reading."""
        self._ended.set()
        self._thread.join()
        self._consumer.close()

    def numbers(self, stream: str) -> set[int]:
        """Return the upstream's numbers of what has been seen of a stream."""
        return set(self._numbers[stream])

    def arrivals(self, stream: str) -> list[tuple[float, float]]:
        """Return when each status was written, rising, and when it was seen; in seconds since the epoch."""
        return sorted(self._arrivals[stream])

    def _run(self) -> None:
        while not self._ended.is_set():
            for message in self._consumer.consume(1000, 0.05):
                if message.error() is not None:
                    continue  # the broker is away; the client goes on by itself
                one = visible(message)
                self.seen.append(one)
                self._arrivals[one.stream].append((message.timestamp()[1] / 1000, time.time()))
                self._numbers[one.stream].add(one.number)
