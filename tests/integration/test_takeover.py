"""What a replica that takes a partition over relies on: the group's word, and the log's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TypeVar

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from harness import PATIENCE_S, STREAM, Kafka

from connector import model
from connector.control import lease as leases
from connector.control.lease import Assigned, Lease, LeaseEvent, Revoked
from connector.delivery import positions, restore
from connector.model import Position

_Event = TypeVar("_Event", bound=LeaseEvent)

NOT_YET_S = 3.0
"""How long nothing may happen that must wait for the test: much longer than where it does not wait."""


@pytest.fixture
def topics(kafka: Kafka) -> model.Topics:
    """Create this test's topics, each with two partitions."""
    topics = model.Topics(**kafka.topics.as_dict())
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap, "log_level": 0})
    wanted = [NewTopic(name, 2, 1) for name in kafka.topics.as_dict().values()]
    for created in admin.create_topics(wanted).values():
        created.result(PATIENCE_S)
    return topics


# -- what the group says -----------------------------------------------------------------------------------


class Member:
    """A replica's lease, and what it was told."""

    def __init__(self, kafka: Kafka, topics: model.Topics) -> None:
        client = {"bootstrap.servers": kafka.bootstrap, "log_level": 0}
        group = {"group.id": f"{kafka.topics.prefix}-connector"}
        self.lease = Lease({**client, **group}, topics.predicates, session_s=30)
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
            if not written:
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
