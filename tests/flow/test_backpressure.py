"""Kafka takes nothing for a while, in virtual time: reading pauses, and is given up when it lasts."""

from __future__ import annotations

import asyncio

import pytest
from script import LINES, RESUMABLE, Hang, Wait, line, lines
from story import OK, Story, flow

from connector.errors import BadStatus, Disconnected
from connector.stream.handover import Phase

pytestmark = pytest.mark.looptime

PATIENCE_S = 60.0
CAPACITY = 6000
SOME = [line(number) for number in range(1, 30)]
"""More than fits: reading pauses within it."""


def gaps(story: Story) -> list[tuple[str, str]]:
    return [(gap.data["from"][14:19], gap.data["to"][14:19]) for gap in story.events("stream.gap")]


def purposely(story: Story) -> list[str]:
    """Return the reasons of connections that were closed on purpose."""
    return [one.data["reason"] for one in story.events("connection.dis") if "purpose" in one.data["reason"]]


def kafka_is_back(story: Story) -> None:
    """Settle all there is."""
    story.outbox.settle(story.entries()[story.settled :])
    story.settled = len(story.entries())


class Log(Story):
    """A story whose outbox is emptied now and then; nobody else does it."""

    settled = 0


async def test_a_short_pause_costs_nothing(looptime) -> None:
    story = Log([OK, *SOME, Hang()], capacity=CAPACITY)
    async with story.running():
        story.publish("a")
        await asyncio.sleep(PATIENCE_S - 1)
        assert story.outbox.is_full("tech")
        assert story.subscription.is_live
        for _ in range(20):
            kafka_is_back(story)
            await asyncio.sleep(PATIENCE_S - 1)
    assert story.ids() == list(range(1, 30))
    assert len(story.script.attempts) == 1
    assert gaps(story) == []


async def test_after_a_long_pause_the_connection_is_closed_and_another_waits_for_room(looptime) -> None:
    """The upstream sends what was missed, so there is no gap."""
    story = Log(
        [OK, *SOME, Hang()], [OK, lines(*range(1, 40)), Hang()], capacity=CAPACITY, override=RESUMABLE
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(PATIENCE_S + 1)
        (attempt,) = story.script.attempts
        assert attempt.closed_at == PATIENCE_S
        assert not story.subscription.is_live
        await asyncio.sleep(1000)
        assert len(story.script.attempts) == 1, "there is no room for what it would bring"
        read = len(story.ids())
        assert 1 < read < 20
        kafka_is_back(story)
        await asyncio.sleep(1)
        assert [one.at for one in story.script.attempts] == [0, PATIENCE_S + 1001]
        assert story.script.attempts[1].form["since_seq"] == str(read)
        kafka_is_back(story)
        await asyncio.sleep(1)
    assert story.ids() == list(range(1, 40))
    assert gaps(story) == []
    assert purposely(story) == ["Kafka has not taken what was read for 60 s: closed on purpose"]


async def test_what_an_upstream_does_not_send_again_is_a_gap_from_the_last_that_was_read(looptime) -> None:
    story = Log([OK, line(1), Wait(10), *SOME, Hang()], [OK, line(99), Hang()], capacity=CAPACITY)
    async with story.running():
        story.publish("a")
        await asyncio.sleep(120)
        kafka_is_back(story)
        await asyncio.sleep(1)
    assert story.script.attempts[0].closed_at == 10 + PATIENCE_S
    assert gaps(story) == [("00:10", "02:00")]


async def test_how_long_it_may_last_is_the_dialects(looptime) -> None:
    override = {**LINES, "liveness": {"patience_s": 5}}
    story = Log([OK, *SOME, Hang()], capacity=CAPACITY, override=override)
    async with story.running():
        story.publish("a")
        await asyncio.sleep(50)
    assert story.script.attempts[0].closed_at == 5


async def test_a_change_that_comes_meanwhile_is_asked_for_when_there_is_room(looptime) -> None:
    story = Log(
        [OK, *SOME, Hang()], [OK, lines(*range(20, 40)), Hang()], capacity=CAPACITY, override=RESUMABLE
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(PATIENCE_S + 10)
        story.publish("b")
        await asyncio.sleep(100)
        assert story.asked() == ["a"]
        kafka_is_back(story)
        await asyncio.sleep(1)
    assert story.asked() == ["a", "b"]
    assert story.answers() == {0: ["accepted", "applied"], 1: ["accepted", "applied"]}


async def test_it_can_be_stopped_while_it_waits_for_room(looptime) -> None:
    for after_s in (PATIENCE_S / 2, 2 * PATIENCE_S):
        story = Log([OK, *SOME, Hang()], capacity=CAPACITY)
        async with story.running():
            story.publish("a")
            await asyncio.sleep(after_s)
        assert story.subscription.phase is Phase.CLOSED


async def test_both_connections_of_an_overlap_are_closed_and_one_takes_their_place(looptime) -> None:
    story = Log(
        [OK, *flow(1, 3), *[line(number) for number in range(4, 50)], Hang()],
        [Wait(2), OK, Hang()],
        [OK, lines(*range(1, 60)), Hang()],
        capacity=20_000,
        override=RESUMABLE,
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(200)
        assert [one.closed_at for one in story.script.attempts] == [3 + PATIENCE_S, 4 + PATIENCE_S]
        kafka_is_back(story)
        await asyncio.sleep(1)
        kafka_is_back(story)
        await asyncio.sleep(1)
    assert story.asked() == ["a", "b", "b"]
    assert story.ids() == list(range(1, 60))
    assert story.answers()[1] == ["accepted", "applied"]
    assert gaps(story) == []


@pytest.mark.parametrize(
    ("answer", "wait_s"),
    [
        (BadStatus(429, retry_after_s=300), 300),
        (BadStatus(503, retry_after_s=300), 300),
        (BadStatus(403), 900),
    ],
    ids=str,
)
async def test_what_the_upstream_asks_to_wait_is_waited_whatever_kafka_does(answer, wait_s, looptime) -> None:
    """That there is room again is no reason to ask again."""
    story = Log([Wait(2), answer], [OK, line(1), Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.outbox.capacity_bytes = 1
        await asyncio.sleep(2 * PATIENCE_S)
        kafka_is_back(story)
        await asyncio.sleep(2000)
    assert 2 + wait_s <= story.script.attempts[1].at <= 2 + wait_s + 2 * PATIENCE_S


async def test_where_no_connection_is_open_none_is_closed(looptime) -> None:
    story = Log([Wait(2), BadStatus(503)], [Wait(2), Disconnected("x")], [OK, line(1), Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        for made in (1, 2):
            story.outbox.capacity_bytes = 1
            await asyncio.sleep(3 * PATIENCE_S)
            assert len(story.script.attempts) == made, "and no other is tried"
            story.outbox.capacity_bytes = 1 << 20
            kafka_is_back(story)
            await asyncio.sleep(11)
        await asyncio.sleep(60)
    assert [event.data["reason"] for event in story.events("connection.dis")] == ["HTTP 503", "x"]
    assert story.ids() == [1]


async def test_an_attempt_under_way_asks_for_the_newest_although_there_is_no_room(looptime) -> None:
    """Others filled the outbox: it goes on, or it would ask for what was the newest long ago."""
    story = Log([OK, lines(1), Hang()], [OK, line(2), Hang()])
    async with story.running():
        story.outbox.capacity_bytes = 1
        story.publish("a")
        await asyncio.sleep(3 * PATIENCE_S)
        assert [(one.at, one.closed_at) for one in story.script.attempts] == [(0, PATIENCE_S)]
        story.publish("b")
        story.outbox.capacity_bytes = 1 << 20
        kafka_is_back(story)
        await asyncio.sleep(10)
    assert story.asked() == ["a", "b"]
