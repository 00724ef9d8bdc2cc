"""Runs the connector and kills it with SIGKILL at one point of a transaction's life.

    python crash_runner.py POINT NTH MARKER STATUSES POSITIONS run --config connector.yaml

The connector knows nothing of this: the Kafka clients that it imports are replaced by ones that count what
is asked of them. Right before the kill the point is noted in MARKER, with the statuses of the transaction
that is open, or was the last.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

HALF = 3
"""How many statuses of a transaction the broker has when it is killed halfway; one more was to come."""


class Point(StrEnum):
    """Where to kill; the nth transaction that carries statuses is meant, unless another is named."""

    BEFORE_BEGIN = "before_the_transaction_begins"
    AFTER_BEGIN = "after_it_began"
    HALFWAY = "some_statuses_are_at_the_broker"
    BEFORE_POSITION = "all_statuses_are_at_the_broker_and_their_position_is_not"
    BEFORE_FLUSH = "all_is_produced_and_not_flushed"
    AFTER_FLUSH = "flushed_and_the_offsets_not_sent"
    BEFORE_COMMIT = "offsets_sent_and_the_commit_not"
    DURING_COMMIT = "the_commit_is_sent_and_not_answered"
    AFTER_COMMIT = "the_commit_is_answered_and_not_noted"
    RECOVERING = "the_answer_was_lost_and_the_log_is_asked"
    RECOVERED = "an_answer_was_lost_and_the_next_commit_is_answered"
    REPEATED = "a_commit_failed_and_the_next_is_answered"
    DURING_INIT = "a_new_process_asks_for_its_epoch"
    DURING_RESTORE = "a_new_process_has_read_the_position"


@dataclass(slots=True, kw_only=True)
class Plot:
    """When to kill, and what has happened so far.

    Attributes:
        point: where.
        nth: at which transaction of those that carry statuses.
        marker: the file for the last words.
        statuses: the topic.
        positions: the topic.
        carried: how many transactions with statuses are over.
        keys: of the statuses in the open transaction, or the last.
        has_failed: whether a commit was made to fail, for the connector to recover from.
    """

    point: Point
    nth: int
    marker: Path
    statuses: str
    positions: str
    carried: int = 0
    keys: list[str] = field(default_factory=list)
    has_failed: bool = False

    @property
    def is_due(self) -> bool:
        """Whether the open transaction is the one that is meant."""
        return bool(self.keys) and self.carried + 1 >= self.nth

    def passes(self, point: Point) -> None:
        """Kill, if this is the point."""
        if point is self.point:
            self.kill()

    def kill(self) -> NoReturn:
        """Say where, and die."""
        self.marker.write_text(json.dumps({"point": self.point, "keys": self.keys}))
        os.kill(os.getpid(), signal.SIGKILL)
        while True:
            signal.pause()


@dataclass(slots=True)
class _Sent:
    """Takes librdkafka's lines for a logger, and kills when a request has gone out to the broker."""

    plot: Plot
    request: str = ""

    def log(self, _level: int, _form: str, _facility: str, _client: str, line: str) -> None:
        if self.request and f"Sent {self.request}Request" in line:
            self.plot.kill()


class _Producer(confluent_kafka.Producer):
    def __init__(self, config: Mapping[str, Any], plot: Plot) -> None:
        self._plot = plot
        self._sent = _Sent(plot)
        more = {}
        if plot.point in {Point.DURING_COMMIT, Point.DURING_INIT}:
            more = {"debug": "protocol", "log_level": 7, "logger": self._sent}
        super().__init__({**config, **more})

    def init_transactions(self, *arguments: Any) -> None:
        if self._plot.point is Point.DURING_INIT:
            self._kill_when_sent("InitProducerId")
        super().init_transactions(*arguments)

    def begin_transaction(self, *arguments: Any) -> None:
        plot = self._plot
        plot.keys = []
        is_due = plot.carried + 1 >= plot.nth
        if is_due:
            plot.passes(Point.BEFORE_BEGIN)
        super().begin_transaction(*arguments)
        if is_due:
            plot.passes(Point.AFTER_BEGIN)

    def produce(
        self, topic: str, value: bytes | None = None, key: str | None = None, *arguments: Any, **more: Any
    ) -> None:
        plot = self._plot
        if plot.is_due:
            if topic == plot.statuses and len(plot.keys) == HALF:
                self._is_at_the_broker(Point.HALFWAY)
            if topic == plot.positions:
                self._is_at_the_broker(Point.BEFORE_POSITION)
        super().produce(topic, value, key, *arguments, **more)
        if topic == plot.statuses:
            assert key is not None
            plot.keys.append(key)

    def _is_at_the_broker(self, point: Point) -> None:
        if self._plot.point is point:
            assert super().flush(5.0) == 0
            self._plot.kill()

    def flush(self, *arguments: Any) -> int:
        if self._plot.is_due:
            self._plot.passes(Point.BEFORE_FLUSH)
        left = super().flush(*arguments)
        if self._plot.is_due:
            assert left == 0
            self._plot.passes(Point.AFTER_FLUSH)
        return left

    def commit_transaction(self, *arguments: Any) -> None:
        plot = self._plot
        if plot.is_due:
            plot.passes(Point.BEFORE_COMMIT)
        fails = plot.is_due and not plot.has_failed
        if fails and plot.point is Point.REPEATED:
            plot.has_failed = True
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "never sent"))
        if plot.is_due and plot.point is Point.DURING_COMMIT:
            self._kill_when_sent("EndTxn")
        super().commit_transaction(*arguments)
        if fails and plot.point in {Point.RECOVERING, Point.RECOVERED}:
            plot.has_failed = True
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "the answer was lost"))
        if plot.is_due:
            plot.passes(Point.AFTER_COMMIT)
            plot.passes(Point.RECOVERED)
            plot.passes(Point.REPEATED)
        plot.carried += bool(plot.keys)

    def _kill_when_sent(self, request: str) -> None:
        """Kill once the next *request* has gone out; its caller never sees the answer.

        Lines come with `poll`, in order, so those of earlier requests are taken in before.
        """
        while super().poll(0):
            pass
        self._sent.request = request
        threading.Thread(target=self._poll_on, daemon=True).start()

    def _poll_on(self) -> NoReturn:
        while True:
            super().poll(1.0)


class _Consumer(confluent_kafka.Consumer):
    def __init__(self, config: Mapping[str, Any], plot: Plot) -> None:
        self._plot = plot
        super().__init__(config)

    def consume(self, *arguments: Any) -> list[Message]:
        messages = super().consume(*arguments)
        if any(one.error() is None and one.topic() == self._plot.positions for one in messages):
            self._plot.passes(Point.DURING_RESTORE)
        return messages

    def committed(self, *arguments: Any, **more: Any) -> list[TopicPartition]:
        found = super().committed(*arguments, **more)
        if self._plot.has_failed:
            self._plot.passes(Point.RECOVERING)
        return found


def main() -> None:
    """Put the clients in place, and be the connector."""
    point, nth, marker, statuses, positions, *words = sys.argv[1:]
    plot = Plot(point=Point(point), nth=int(nth), marker=Path(marker), statuses=statuses, positions=positions)
    original = confluent_kafka.Producer

    def producer(config: Mapping[str, Any]) -> confluent_kafka.Producer:
        return _Producer(config, plot) if "transactional.id" in config else original(config)

    def consumer(config: Mapping[str, Any]) -> confluent_kafka.Consumer:
        return _Consumer(config, plot)

    confluent_kafka.Producer, confluent_kafka.Consumer = producer, consumer
    from connector.cli import main as connector  # only now: its modules import the clients by name

    sys.argv = ["connector", *words]
    connector()


if __name__ == "__main__":
    main()
