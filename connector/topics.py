"""The topics the connector needs: what they must be, whether they are, and their creation. Blocking."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType, TopicMetadata  # type: ignore[attr-defined]

from connector.errors import TopicsMismatch
from connector.model import Topics

TIMEOUT_S = 10.0
"""How long a person waits for a busy broker."""

_PROBE_TIMEOUT_S = 3.0  # short: a process that is told to stop waits for it
_DAY_MS = 24 * 3600 * 1000

_CANNOT_TELL = frozenset(
    {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError._TIMED_OUT}  # noqa: SLF001 (its public name)
)

_WAY_OUT = (
    "the number decides where each stream's state is, so none can just be added, and "
    "`connector repartition --help` says how it is changed"
)

BATCH_OVERHEAD_BYTES = 16 * 1024
"""Room for key, headers and batch header beside a status in the topic's `max.message.bytes`."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One topic as it must be.

    Attributes:
        partitions: how many are created; what an existing topic must have only where *exact*.
        config: created with; ``cleanup.policy`` is also demanded of an existing topic where *exact*.
    """

    name: str
    partitions: int
    config: Mapping[str, str]
    exact: bool = False


def wanted(topics: Topics, control_partitions: int, status_partitions: int) -> list[Wanted]:
    """Return what the connector needs of a cluster.

    Args:
        topics: their names.
        control_partitions: partitions of the control topic and of the positions: as many replicas
            can share the streams.
        status_partitions: partitions of the output topic.
    """
    month = {"cleanup.policy": "delete", "retention.ms": str(30 * _DAY_MS)}
    # A position is rewritten with every transaction: small segments keep the table small, and a
    # replica that takes over has to read all of it.
    table = {
        "cleanup.policy": "compact",
        "segment.bytes": str(16 << 20),
        "segment.ms": str(3600 * 1000),
        "min.cleanable.dirty.ratio": "0.1",
    }
    return [
        Wanted(topics.predicates, control_partitions, {"cleanup.policy": "compact"}, exact=True),
        Wanted(topics.positions, control_partitions, table, exact=True),
        Wanted(topics.statuses, status_partitions, {}),
        Wanted(topics.events, 1, month),
        Wanted(topics.dlq, 1, month),
    ]


class Cluster:
    """The administrative side of a Kafka cluster."""

    def __init__(self, kafka: Mapping[str, Any], timeout_s: float = _PROBE_TIMEOUT_S) -> None:
        """Prepare a client from librdkafka properties; nothing is asked yet.

        Args:
            kafka: librdkafka properties: where Kafka is.
            timeout_s: how long it may take to tell of a topic.
        """
        self._timeout_s = timeout_s
        self._admin = AdminClient(
            {
                **kafka,
                "socket.timeout.ms": int(TIMEOUT_S * 1000),
                "allow.auto.create.topics": False,  # else to ask for a topic would create it
            }
        )

    def partitions(self, names: Iterable[str]) -> dict[str, int]:
        """Return the number of partitions of those topics that are there.

        Raises:
            KafkaException: no broker answered in time; trying again may help.
        """
        return {name: len(topic.partitions) for name, topic in self._told(names) if topic.error is None}

    def missing(self, needed: list[Wanted]) -> list[str]:
        """Return the topics that are not there, or not to be seen, each with what Kafka says.

        Also those whose partitions are not as many as they must be: somebody added some.

        Raises:
            KafkaException: no broker answered in time; trying again may help.
        """
        missing = []
        for topic, (name, there) in zip(needed, self._told(one.name for one in needed), strict=True):
            if there.error is not None:
                missing.append(f"{name}: {there.error.str()}")
            elif topic.exact and len(there.partitions) != topic.partitions:
                missing.append(f"{name}: {_number(len(there.partitions))} instead of {topic.partitions}")
        return missing

    def _told(self, names: Iterable[str]) -> Iterator[tuple[str, TopicMetadata]]:
        """Ask for each topic by its name: a cluster may have thousands of others."""
        for name in names:
            yield name, self._admin.list_topics(name, self._timeout_s).topics[name]

    def verify(self, needed: list[Wanted], statuses: str, max_frame_bytes: int) -> int:
        """Return the number of control partitions, if the topics are fit.

        Args:
            needed: what `wanted` says.
            statuses: the output topic, which must take the longest status.
            max_frame_bytes: length of the longest status.

        Raises:
            TopicsMismatch: naming every topic that is missing or unfit, and what mends it.
            KafkaException: no broker answered in time.
        """
        there = self.partitions(topic.name for topic in needed)
        wrong = [f"topic {topic.name!r} is missing" for topic in needed if topic.name not in there]
        wrong += _miscounted(needed[0], needed[1], there)
        present = [topic.name for topic in needed if topic.name in there]
        configs = self._configs(present) if present else {}
        for topic in needed:
            config = configs.get(topic.name)
            if config is None:
                continue
            policy = config["cleanup.policy"]
            if topic.exact and policy != topic.config["cleanup.policy"]:
                wrong.append(f"topic {topic.name!r} has cleanup.policy={policy}, must be compact")
            limit = int(config["max.message.bytes"])
            least = max_frame_bytes + BATCH_OVERHEAD_BYTES
            if topic.name == statuses and limit < least:
                wrong.append(
                    f"topic {topic.name!r} has max.message.bytes={limit}, must be {least} or more: "
                    f"a status may be {max_frame_bytes} bytes long"
                )
        if wrong:
            raise TopicsMismatch("; ".join(wrong))
        return there[needed[0].name]

    def create(self, needed: list[Wanted]) -> list[str]:
        """Create what is missing and return the names; existing topics are left as they are.

        Returns when brokers list what was created: they learn of it a moment after the controller.

        Raises:
            KafkaException: Kafka refused, or did not answer.
        """
        there = self.partitions(topic.name for topic in needed)
        new = [
            NewTopic(topic.name, topic.partitions, config=dict(topic.config))
            for topic in needed
            if topic.name not in there
        ]
        created = []
        for name, future in self._admin.create_topics(new).items() if new else ():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
            else:
                created.append(name)
        give_up_at = time.monotonic() + TIMEOUT_S
        while not self.partitions(created).keys() >= set(created) and time.monotonic() < give_up_at:
            time.sleep(0.1)
        return created

    def _configs(self, topics: list[str]) -> dict[str, dict[str, str]]:
        """Return the settings of *topics*, as far as they can be told.

        DescribeConfigs is a right of its own, which a careful cluster may not give; and brokers
        that named their topics a moment ago and do not answer this are librdkafka's embedded ones.
        """
        resources = [ConfigResource(ResourceType.TOPIC, topic) for topic in topics]
        told = {}
        asked = self._admin.describe_configs(resources, request_timeout=_PROBE_TIMEOUT_S)
        for resource, future in asked.items():
            try:
                entries = future.result()
            except KafkaException as error:
                if error.args[0].code() not in _CANNOT_TELL:
                    raise
            else:
                told[resource.name] = {name: entry.value for name, entry in entries.items()}
        return told


def _miscounted(control: Wanted, mirror: Wanted, there: Mapping[str, int]) -> Iterator[str]:
    """Yield what is wrong with the numbers of partitions that a stream's home hangs on."""
    if control.name not in there or mirror.name not in there:
        return
    has, mirrored, wanted = there[control.name], there[mirror.name], control.partitions
    if has != mirrored:
        must = f"must have {has} like {control.name!r}"
        yield f"topic {mirror.name!r} has {_number(mirrored)}, but {must}: {_WAY_OUT}"
    elif has != wanted:
        yield (
            f"topic {control.name!r} has {_number(has)}, but kafka.control_partitions is {wanted}: "
            f"if it always had so many, set that to {has}. If not, {_WAY_OUT}"
        )


def _number(partitions: int) -> str:
    return f"{partitions} partition" if partitions == 1 else f"{partitions} partitions"
