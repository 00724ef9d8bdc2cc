"""What a replica that takes a partition over relies on: the group's word, and the log's."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from harness import PATIENCE_S, STREAM, Kafka, eventually
from kafka_proxy import Proxy
from kafka_wire import Api

from connector import model
from connector.control import lease as leases
from connector.control.lease import Lease
from connector.control.ownership import Assigned, LeaseEvent, Lost, Read, Revoked
from connector.delivery import positions, restore
from connector.model import Position, Tenure

_Event = TypeVar("_Event", bound=LeaseEvent)

NOT_YET_S = 3.0
"""How long nothing may happen that must wait for the test: much longer than where it does not wait."""


@pytest.fixture
def topics(kafka: Kafka) -> model.Topics:
    """Create this test's topics, each with two partitions."""
    kafka.create_topics(partitions=2)
    return model.Topics(**kafka.topics.as_dict())


# -- what the group says -----------------------------------------------------------------------------------


class Member:
    """A replica's lease, and what it was told."""

    def __init__(
        self, kafka: Kafka, topics: model.Topics, bootstrap: str | None = None, session_s: float = 30
    ) -> None:
        client = {"bootstrap.servers": bootstrap or kafka.bootstrap, "log_level": 0}
        group = {"group.id": f"{kafka.topics.prefix}-connector"}
        self.lease = Lease({**client, **group}, topics.predicates, session_s)
        self._events = self.lease.events()

    async def told(self, kind: type[_Event]) -> _Event:
        """Return the next event of a kind."""
        async with asyncio.timeout(PATIENCE_S):
            async for event in self._events:
                if isinstance(event, kind):
                    return event
        raise AssertionError("the lease ended")

    @contextlib.asynccontextmanager
    async def taking_part(self) -> AsyncIterator[None]:
        """Be a member of the group."""
        self.lease.start()
        try:
            yield
        finally:
            await self.lease.close()
            await self._events.aclose()


async def test_a_partition_is_handed_on_when_its_owner_has_let_go_of_it(
    kafka: Kafka, topics: model.Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "HANDOVER_BUDGET_S", PATIENCE_S)
    owner, successor = Member(kafka, topics), Member(kafka, topics)
    async with owner.taking_part():
        assert len((await owner.told(Assigned)).tenures) == 2
        async with successor.taking_part():
            taking = asyncio.create_task(successor.told(Assigned))
            revoked = await owner.told(Revoked)
            done, _ = await asyncio.wait({taking}, timeout=NOT_YET_S)
            assert not done, "another one has it before its owner has let go of it"
            assert revoked.tenures < owner.lease.grant.tenures
            revoked.released.set()
            (taken,), (gone,) = (await taking).tenures, revoked.tenures
            assert taken.partition == gone.partition
            assert gone not in owner.lease.grant.tenures


async def test_a_partition_that_comes_back_is_another_tenure(kafka: Kafka, topics: model.Topics) -> None:
    owner, visitor = Member(kafka, topics), Member(kafka, topics)
    async with owner.taking_part():
        before = (await owner.told(Assigned)).tenures
        async with visitor.taking_part():
            revoked = await owner.told(Revoked)
            revoked.released.set()
            await visitor.told(Assigned)
        (back,) = (await owner.told(Assigned)).tenures
        assert back not in before
        assert owner.lease.grant.tenures == before - revoked.tenures | {back}


async def test_a_partition_begins_anew_when_it_is_told_to(kafka: Kafka, topics: model.Topics) -> None:
    """Its control records come again, under a tenure of its own; the other one goes on."""
    kafka.publish(STREAM, {"track": ["kafka"]}, partition=0)
    member = Member(kafka, topics)
    async with member.taking_part():
        before = (await member.told(Assigned)).tenures
        assert len((await member.told(Read)).records) == 1
        (first,) = (tenure for tenure in before if tenure.partition == 0)
        member.lease.begin_anew(frozenset({first}))
        assert (await member.told(Lost)).tenures == {first}
        (again,) = (await member.told(Assigned)).tenures
        assert again.partition == 0
        assert again != first
        assert len((await member.told(Read)).records) == 1
        assert member.lease.grant.tenures == before - {first} | {again}


async def test_what_begins_anew_in_a_rebalance_does_so_after_it(
    kafka: Kafka, topics: model.Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client library refuses to seek then."""
    refused: list[TopicPartition] = []

    class Rebalancing(Consumer):
        """Refuses the first seeks."""

        def seek(self, place: TopicPartition) -> None:
            if len(refused) < 3:
                refused.append(place)
                raise KafkaException(KafkaError(KafkaError._STATE))
            super().seek(place)

    monkeypatch.setattr(leases, "Consumer", Rebalancing)
    member = Member(kafka, topics)
    async with member.taking_part():
        before = (await member.told(Assigned)).tenures
        member.lease.begin_anew(before)
        again = (await member.told(Assigned)).tenures
        assert {tenure.partition for tenure in again} == {tenure.partition for tenure in before}
        assert len(refused) == 3


async def test_partitions_that_are_told_one_after_the_other_all_begin_anew(
    kafka: Kafka, topics: model.Topics
) -> None:
    """One that was forgotten would have an owner, and no streams."""
    member = Member(kafka, topics)
    async with member.taking_part():
        before = (await member.told(Assigned)).tenures
        for tenure in before:
            member.lease.begin_anew(frozenset({tenure}))
        again = set[Tenure]()
        while len(again) < len(before):
            again |= (await member.told(Assigned)).tenures
        assert {tenure.partition for tenure in again} == {tenure.partition for tenure in before}
        assert member.lease.grant.tenures == again
        assert not again & before


async def test_a_client_that_finds_no_coordinator_is_replaced(
    kafka: Kafka, topics: model.Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an outage a client may forget every broker, and then it waits for ever."""
    made: list[Mapping[str, Any]] = []

    class Forgetful(Consumer):
        """The first of them knows of no broker that there is."""

        def __init__(self, config: Mapping[str, Any]) -> None:
            made.append(config)
            super().__init__({**config, "bootstrap.servers": "127.0.0.1:1"} if len(made) == 1 else config)

    monkeypatch.setattr(leases, "Consumer", Forgetful)
    member = Member(kafka, topics, session_s=6)
    async with member.taking_part():
        assert len((await member.told(Assigned)).tenures) == 2
    assert len(made) == 2


# -- when the group's word cannot be had -------------------------------------------------------------------


async def is_suspended_and_begins_anew(member: Member, before: Assigned, cause: threading.Event) -> None:
    """Hold that what is owned stops before it is lost, and begins anew when it has and *cause* is gone."""
    revoked = await member.told(Revoked)
    assert revoked.tenures == before.tenures
    assert member.lease.grant.tenures == before.tenures, "not lost yet"
    cause.set()
    taking = asyncio.create_task(member.told(Assigned))
    done, _ = await asyncio.wait({taking}, timeout=NOT_YET_S)
    assert not done, "begun anew while its streams still run"
    revoked.released.set()
    again = await taking
    assert {one.partition for one in again.tenures} == {one.partition for one in before.tenures}
    assert not again.tenures & before.tenures
    assert member.lease.grant.tenures == again.tenures


async def test_streams_stop_while_the_coordinator_is_silent(
    kafka: Kafka, topics: model.Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before the session is over; only its answers are missing, its connection stands."""
    monkeypatch.setattr(leases, "STALE", 0.1)
    with Proxy(kafka.bootstrap) as proxy:
        member = Member(kafka, topics, proxy.bootstrap)
        async with member.taking_part():
            assigned = await member.told(Assigned)
            held = proxy.catch(Api.HEARTBEAT)
            await asyncio.to_thread(held.wait)
            again = threading.Event()
            forwarding = asyncio.create_task(
                asyncio.to_thread(lambda: again.wait(PATIENCE_S) and held.forward())
            )
            await is_suspended_and_begins_anew(member, assigned, again)
            await forwarding


async def test_streams_stop_while_the_thread_that_polls_is_stuck(
    kafka: Kafka, topics: model.Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would hear that the lease has ended."""
    monkeypatch.setattr(leases, "STALE", 0.1)
    runs = threading.Event()
    runs.set()

    class Stuck(Consumer):
        def consume(self, *arguments: Any, **more: Any) -> Any:
            assert runs.wait(PATIENCE_S)
            return super().consume(*arguments, **more)

    monkeypatch.setattr(leases, "Consumer", Stuck)
    member = Member(kafka, topics)
    async with member.taking_part():
        assigned = await member.told(Assigned)
        runs.clear()
        await is_suspended_and_begins_anew(member, assigned, runs)


async def test_a_stuck_event_loop_loses_its_lease_and_gets_another(
    kafka: Kafka, topics: model.Topics
) -> None:
    """The client library goes on with its heartbeats: without more the group would never know."""
    member = Member(kafka, topics, session_s=6)
    async with member.taking_part():
        assigned = await member.told(Assigned)
        # Blocks this very loop, for as long as it takes; another one gets all that it had meanwhile.
        eventually(lambda: not member.lease.grant.tenures, "the lease is given up")
        successor = Consumer(
            {
                "bootstrap.servers": kafka.bootstrap,
                "group.id": f"{kafka.topics.prefix}-connector",
                "partition.assignment.strategy": "cooperative-sticky",
            }
        )
        successor.subscribe([topics.predicates])
        eventually(lambda: [successor.poll(0.1)] and len(successor.assignment()) == 2, "it is another's")
        successor.close()
        assert (await member.told(Lost)).tenures == assigned.tenures
        assert len((await member.told(Assigned)).tenures) >= 1


# -- what the log says -------------------------------------------------------------------------------------


def test_what_a_predecessor_was_just_committing_is_restored(
    kafka: Kafka, topics: model.Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last transaction ends while the committed offset is looked up; its position counts."""
    client = {"bootstrap.servers": kafka.bootstrap, "log_level": 0}
    group = f"{kafka.topics.prefix}-connector"
    predecessor = Producer({**client, "transactional.id": group})
    predecessor.init_transactions(PATIENCE_S)
    position = Position(seq=7, cursor="7")

    class Looking(Consumer):
        """A consumer whose first question for committed offsets is late."""

        def committed(self, *arguments, **more):
            if not written and arguments[0][0].topic == topics.predicates:
                written.append(True)
                predecessor.begin_transaction()
                predecessor.produce(topics.positions, positions.encode(position), STREAM, 0)
                offsets = [TopicPartition(topics.predicates, 0, 3)]
                proof = self.consumer_group_metadata()
                predecessor.send_offsets_to_transaction(offsets, proof, PATIENCE_S)
                predecessor.commit_transaction(PATIENCE_S)
            return super().committed(*arguments, **more)

    written: list[bool] = []
    monkeypatch.setattr(restore, "Consumer", Looking)
    found = restore.restore(client, group, topics, 0, PATIENCE_S)
    assert found.handled == 3
    assert found.positions == {STREAM: position}


@dataclass
class Predecessor:
    """A replica whose transaction stays open; the broker would bear it for a minute."""

    client: Mapping[str, Any]
    group: str
    topics: model.Topics

    def __post_init__(self) -> None:
        self.id = f"{self.group}-dead"
        self.producer = Producer({**self.client, "transactional.id": self.id})
        self.producer.init_transactions(PATIENCE_S)
        asking = Consumer({**self.client, "group.id": self.group})
        self._proof = asking.consumer_group_metadata()
        asking.close()

    def write(self, seq: int, *, sends_offsets: bool = True) -> None:
        """Write all but the commit."""
        self.producer.begin_transaction()
        self.producer.produce(self.topics.positions, positions.encode(Position(seq)), STREAM, 0)
        assert self.producer.flush(PATIENCE_S) == 0
        if sends_offsets:
            offsets = [TopicPartition(self.topics.predicates, 0, seq, f"{self.id} mark{seq}")]
            self.producer.send_offsets_to_transaction(offsets, self._proof, PATIENCE_S)


@pytest.fixture
def predecessor(kafka: Kafka, topics: model.Topics) -> Predecessor:
    """Commit once, so that the log knows whose partition it was."""
    client = {"bootstrap.servers": kafka.bootstrap, "log_level": 0, "transaction.timeout.ms": 60_000}
    predecessor = Predecessor(client, f"{kafka.topics.prefix}-connector", topics)
    predecessor.write(7)
    predecessor.producer.commit_transaction(PATIENCE_S)
    return predecessor


IN_TIME_S = 20.0
"""Far less than brokers wait until they end a transaction themselves."""


@pytest.mark.parametrize("sends_offsets", [True, False])
def test_a_transaction_that_its_owner_left_open_is_ended(
    predecessor: Predecessor, topics: model.Topics, *, sends_offsets: bool
) -> None:
    """Wherever in it the owner died; what it had committed before counts."""
    predecessor.write(8, sends_offsets=sends_offsets)
    client = {"bootstrap.servers": predecessor.client["bootstrap.servers"], "log_level": 0}
    found = restore.restore(client, predecessor.group, topics, 0, IN_TIME_S, own="another")
    assert (found.handled, found.positions) == (7, {STREAM: Position(7)})
    with pytest.raises(KafkaException):
        predecessor.producer.commit_transaction(PATIENCE_S)


def test_ones_own_transaction_is_waited_for(predecessor: Predecessor, topics: model.Topics) -> None:
    """It ends by itself, with all that is in it."""
    predecessor.write(8)
    client = {"bootstrap.servers": predecessor.client["bootstrap.servers"], "log_level": 0}
    with pytest.raises(KafkaException):
        restore.restore(client, predecessor.group, topics, 0, NOT_YET_S, own=predecessor.id)
    predecessor.producer.commit_transaction(PATIENCE_S)
    found = restore.restore(client, predecessor.group, topics, 0, IN_TIME_S, own=predecessor.id)
    assert (found.handled, found.positions) == (8, {STREAM: Position(8)})


def test_a_predecessor_that_has_ended_well_is_left_alone(
    predecessor: Predecessor, topics: model.Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is pending, so its next transaction goes through."""
    monkeypatch.setattr(restore, "fence", lambda *_: pytest.fail("fenced"))
    client = {"bootstrap.servers": predecessor.client["bootstrap.servers"], "log_level": 0}
    restore.restore(client, predecessor.group, topics, 0, IN_TIME_S, own="another")
