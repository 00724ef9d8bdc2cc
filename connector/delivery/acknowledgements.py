"""At least once: what others read first, and once that is acknowledged, the state. Blocking.

For brokers without transactions, or for whom a commit's milliseconds are too many. What fails in between is
written again; and nothing fences a replica that has lost its lease and does not know it yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from confluent_kafka import KafkaError, KafkaException, Producer

from connector.delivery.batch import Batch
from connector.delivery.producing import flush, make_reporting, produce, properties
from connector.delivery.records import Record
from connector.delivery.verdict import Call
from connector.model import Topics


@dataclass(slots=True, kw_only=True)
class Acknowledgements:
    """One idempotent producer.

    Attributes:
        kafka: librdkafka properties: where Kafka is.
        replica: this process's name.
        topics: their names.
        max_record_bytes: longest record librdkafka may accept.
        commit: commits offsets of the control topic by partition, as a member of the group.
        epochs: how many producers were made so far.
        guarded: none of them was made for a slow commit: there is none.
        during: the call that `write` made last.
    """

    kafka: Mapping[str, object]
    replica: str
    topics: Topics
    max_record_bytes: int
    commit: Callable[[Mapping[int, int]], None]
    epochs: int = field(default=0, init=False)
    guarded: int = field(default=0, init=False)
    during: Call = field(default=Call.INIT, init=False)
    _producer: Producer | None = field(default=None, init=False)
    _undelivered: list[KafkaError] = field(default_factory=list, init=False)

    def open(self) -> None:
        """Make a producer; what the one before it had not sent is forgotten."""
        self.close()
        self._producer, self._undelivered = make_reporting(
            {**properties(self.kafka, self.max_record_bytes), "enable.idempotence": True}
        )
        self.epochs += 1

    def write(self, batch: Batch) -> None:
        """Write *batch*, its state last.

        Raises:
            KafkaException: it failed, wholly or in part: it has to be written again.
        """
        self._send(batch.content(self.topics, f"/connector/{self.replica}"))
        self._send(batch.state(self.topics))
        self.commit(batch.offsets())

    def _send(self, written: Iterable[Record]) -> None:
        if self._producer is None:
            self.open()
        producer = self._producer
        assert producer is not None
        self.during = Call.PRODUCE
        produce(producer, written)
        self.during = Call.DELIVERY
        flush(producer)
        if self._undelivered:
            raise KafkaException(self._undelivered[0])

    def has(self, batch: Batch) -> bool:  # noqa: ARG002 (the writer's question, which has one answer here)
        """Return that *batch* is not in the log: at least nobody can tell."""
        return False

    def close(self) -> None:
        """Let go of the producer, and of what it had not sent."""
        if self._producer is not None:
            self._producer.purge()
            self._producer = None
