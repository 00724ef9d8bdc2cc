"""Predicates that the upstream keeps as rules: changed beside the open connection, in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from script import NO_JITTER, Hang, Wait, lines
from story import OK, Story, flow

from connector.errors import BadStatus, Disconnected, RulesRefused
from connector.model import PredicateSet
from connector.stream.handover import Phase

pytestmark = pytest.mark.looptime

RULES = {
    "request": {
        "parameters": {"delimited": None},
        "predicates": {"follow": None, "locations": None, "track": {"max_values": 5}},
    },
    "framing": {"kind": "lines"},
    "handover": {"strategy": "rules"},
    "rules": {"predicate": "track"},
    "backoff": NO_JITTER,
    "budget": None,
}
NONSENSE = RulesRefused("b", "no viable alternative")


def told(*connections, amending=(), **options) -> Story:
    story = Story(*connections, override=RULES, **options)
    story.script.amending = amending
    return story


async def test_a_change_takes_no_other_connection(looptime) -> None:
    story = told([OK, *flow(1, 100)])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("a", "b")
        await asyncio.sleep(0.5)
        assert story.script.amendments == []
        await asyncio.sleep(5)
        assert story.subscription.phase is Phase.STEADY
    assert [attempt.rules for attempt in story.script.attempts] == [["a"]]
    assert "track" not in story.script.attempts[0].form
    assert story.script.amendments == [(["a", "b"], 2)]
    assert story.ids() == list(range(1, len(story.ids()) + 1))
    applied = story.events("predicates.applied")[1].data
    assert (applied["connection"], applied["without_connection_s"]) == (1, 0)
    versions = [entry.version for entry in story.entries() if entry.statuses]
    a, ab = (PredicateSet.of({"track": words}).version for words in ("a", "ab"))
    assert versions == [a] * versions.count(a) + [ab] * versions.count(ab)
    assert versions.count(a) == 3


async def test_a_hundred_changes_are_one(looptime) -> None:
    story = told([OK, *flow(1, 1000)], debounce=(120, 600))
    async with story.running():
        story.publish("a")
        await asyncio.sleep(10)
        for number in range(100):
            story.publish(f"w{number}", key=f"tech/{number}")
        await asyncio.sleep(300)
    ((rules, at),) = story.script.amendments
    assert (len(rules), at) == (101, 120)
    assert len(story.script.attempts) == 1


async def test_a_change_that_fails_is_tried_again_and_nothing_is_lost(looptime) -> None:
    story = told([OK, *flow(1, 100)], amending=[BadStatus(503), Disconnected("reset"), None])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(5)
        assert story.answers()[1] == ["accepted"]
        story.publish("c")
        await asyncio.sleep(15)
    assert story.script.amendments == [(["b"], 2), (["c"], 12), (["c"], 12.25)]
    assert [event.data["retry_in_s"] for event in story.events("rules.failed")] == [10, 0.25]
    assert story.answers() == {
        0: ["accepted", "applied"],
        1: ["accepted", "superseded"],
        2: ["accepted", "applied"],
    }
    assert story.events("connection.disconnected") == []


async def test_a_rule_that_is_refused_leaves_the_others(looptime) -> None:
    """And is asked for again when something changes."""
    story = told([OK, *flow(1, 300)], amending=[NONSENSE])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(100)
        assert story.subscription.is_live
        (refused,) = story.events("predicates.refused")
        assert "no viable alternative" in refused.data["reason"]
        assert refused.data["in_force"] == PredicateSet.of({"track": ["a"]}).version
        story.publish("a")
        await asyncio.sleep(10)
    assert story.script.amendments == [(["b"], 2), (["a"], 101)]
    assert story.answers()[1] == ["accepted", "refused"]
    assert story.answers()[2] == ["accepted", "applied"]


async def test_an_amendment_under_way_ends_with_its_connection(looptime) -> None:
    """The next attempt brings the rules up to date itself, before it connects."""
    story = told(
        [OK, *flow(1, 40), Disconnected("reset")], [OK, *flow(41, 80)], amending=[Wait(60)], debounce=(10, 10)
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(60)
    assert [attempt.rules for attempt in story.script.attempts] == [["a"], ["b"]]
    assert story.script.amendments == [(["b"], 10)]
    assert story.answers()[1] == ["accepted", "applied"]


async def test_a_change_while_another_is_under_way_follows_it(looptime) -> None:
    story = told([OK, *flow(1, 100)], amending=[Wait(5)])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(3)
        story.publish("a", key="tech")  # taken back, but nobody knows what the upstream has done already
        await asyncio.sleep(20)
    assert story.script.amendments == [(["b"], 2), (["a"], 7)]
    assert story.answers()[2] == ["accepted", "applied"]
    assert story.answers()[1] == ["accepted", "superseded"]


async def test_the_last_predicate_removed_closes_the_connection(looptime) -> None:
    story = told([OK, *flow(1, 100)], amending=[Wait(50)])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(3)
        story.publish()
        await asyncio.sleep(1)
        assert story.subscription.phase is Phase.IDLE
        assert story.script.attempts[0].closed_at == 4
    assert story.answers()[2] == ["accepted", "applied"]


async def test_a_refused_first_rule_leaves_the_stream_waiting(looptime) -> None:
    story = told([NONSENSE], [OK, lines(1), Hang()])
    async with story.running():
        story.publish("b")
        await asyncio.sleep(100)
        assert story.answers()[0] == ["accepted", "refused"]
        story.publish("a")
        await asyncio.sleep(10)
    assert [attempt.rules for attempt in story.script.attempts] == [["b"], ["a"]]
    assert story.answers()[1] == ["accepted", "applied"]


async def test_refused_rules_show_until_something_else_is_asked_for(looptime) -> None:
    story = told([OK, *flow(1, 300)], amending=[NONSENSE])

    def is_refused() -> bool:
        exposed = story.subscription.lifecycle.metrics.exposition().decode()
        return 'connector_stream_refused{stream="tech"} 1.0' in exposed

    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(10)
        assert is_refused()
        story.publish("c")
        await asyncio.sleep(10)
        assert not is_refused()


async def test_rules_beside_a_connection_that_has_proven_nothing_are_not_in_force(looptime) -> None:
    story = told([OK, Wait(20), *flow(1, 10)])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(10)
        assert story.script.amendments == [(["b"], 2)]
        assert story.answers() == {0: ["accepted", "superseded"], 1: ["accepted"]}
        await asyncio.sleep(15)
    assert story.answers()[1] == ["accepted", "applied"]
    assert {entry.version for entry in story.entries() if entry.statuses} == {
        PredicateSet.of({"track": ["b"]}).version
    }


async def test_the_same_trouble_with_the_rules_is_told_once(looptime) -> None:
    story = told([OK, *flow(1, 4000)], amending=[Disconnected("down")] * 100 + [BadStatus(503)] * 10)
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(3600)
    assert len(story.script.amendments) > 100
    assert [event.data["reason"] for event in story.events("rules.failed")] == ["down", "HTTP 503"]
