"""What an upstream says to a restart, and what becomes of it: refusals, one connection too many, silence."""

from __future__ import annotations

import asyncio

import pytest
from script import LINES, RESUMABLE, Hang, Wait, line, lines
from story import OK, Story, flow

from connector.errors import BadStatus, Disconnected
from connector.model import PredicateSet
from connector.stream.handover import Phase

pytestmark = pytest.mark.looptime

CROWDED = BadStatus(420, "Exceeded connection limit for user")
EVICTED = b'{"disconnect":{"code":7,"reason":"admin logout"}}\r\n'
GRACE = {**LINES, "liveness": {"grace_s": 5, "stall_timeout_s": 900}}


def version(*track: str) -> str:
    return PredicateSet.of({"track": track}).version


# One connection too many


async def test_one_connection_too_many_costs_neither_the_old_one_nor_the_change(looptime) -> None:
    """The old one is closed when the upstream may be asked again, and not before."""
    story = Story([OK, *flow(1, 200)], [CROWDED], [OK, *flow(100, 200)], [OK, lines(300), Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(60)
        assert [attempt.at for attempt in story.script.attempts] == [0, 2]
        assert story.script.attempts[0].closed_at is None
        assert story.answers()[1] == ["accepted"]
        await asyncio.sleep(2)
        assert [attempt.at for attempt in story.script.attempts] == [0, 2, 62]
        assert story.script.attempts[0].closed_at == 62
        assert story.answers()[1] == ["accepted", "applied"]
        (told,) = story.events("handover.fell_back")
        assert told.data["strategy"] == "break"
        assert "Exceeded connection limit" in told.data["reason"]
        story.publish("c")  # from now on the old one goes first
        await asyncio.sleep(5)
    assert story.asked() == ["a", "b", "b", "c"]
    assert story.script.most_open == 2, "that was the attempt which was refused"
    assert story.script.attempts[2].closed_at == story.script.attempts[3].at


async def test_a_change_after_one_connection_too_many_waits_as_long_as_the_first(looptime) -> None:
    """The upstream asked for peace, whoever publishes meanwhile."""
    story = Story([OK, *flow(1, 200)], [CROWDED], [OK, line(300), Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(10)
        story.publish("c")
        await asyncio.sleep(60)
    assert [attempt.at for attempt in story.script.attempts] == [0, 2, 62]
    assert story.asked() == ["a", "b", "c"]
    assert story.answers()[1] == ["accepted", "superseded"]
    assert story.answers()[2] == ["accepted", "applied"]


async def test_a_rate_limit_alone_is_no_reason_to_close_the_old_connection(looptime) -> None:
    newer = [OK, lines(*range(63, 90)), Hang()]
    story = Story([OK, *flow(1, 400)], [BadStatus(420, "Enhance your calm")], newer)
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(60.5)
        assert story.script.attempts[0].closed_at is None
        await asyncio.sleep(10)
    assert [attempt.at for attempt in story.script.attempts] == [0, 2, 62]
    assert story.ids() == list(range(1, 90))
    assert story.events("handover.fell_back") == []
    assert story.answers()[1] == ["accepted", "applied"]


async def test_where_the_active_connection_is_one_too_many_it_waits(looptime) -> None:
    """As after a crash, where the upstream counts the dead connection still."""
    story = Story([CROWDED], [CROWDED], [OK, line(1), Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(300)
    assert [attempt.at for attempt in story.script.attempts] == [0, 60, 180]
    assert story.events("handover.fell_back") == []
    assert [event.data["code"] for event in story.events("connection.crowded")] == ["420", "420"]
    assert story.answers()[0] == ["accepted", "applied"]


# The older of two connections closed by the upstream


@pytest.mark.parametrize("proven", [True, False])
async def test_an_upstream_may_close_the_older_connection_itself(proven: bool, looptime) -> None:
    """At the moment the newer one is accepted, which has all from then on: nothing is missing."""
    newer = [OK, lines(4), Hang()] if proven else [OK, Wait(3), lines(4), Hang()]
    story = Story([OK, *flow(1, 2), Wait(0.5), line(3), EVICTED, Hang()], newer)
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(10)
        assert story.subscription.phase is Phase.STEADY
    assert story.ids() == [1, 2, 3, 4]
    assert [event.type for event in story.events("connection.") if event.data["connection"] == 1][-1] == (
        "connection.replaced"
    )
    assert story.events("stream.gap") == []
    assert story.events("predicates.applied")[1].data["without_connection_s"] == 0
    assert story.answers()[1] == ["accepted", "applied"]


async def test_a_stand_in_that_dies_before_it_lived_leaves_a_gap(looptime) -> None:
    newer = [OK, Wait(2), Disconnected("reset")]
    story = Story([OK, *flow(1, 2), Wait(0.5), EVICTED, Hang()], newer, [OK, line(9), Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(10)
    (gap,) = story.events("stream.gap")
    assert (gap.data["connection"], story.ids()) == (2, [1, 2, 9])


async def test_an_eviction_by_somebody_else_is_a_disconnection(looptime) -> None:
    story = Story([OK, line(1), Wait(40), EVICTED, Hang()], [OK, line(2), Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(60)
    assert [event.data["code"] for event in story.events("connection.disconnected")] == ["7"]
    assert len(story.events("stream.gap")) == 1


# Silence


async def test_where_an_upstream_is_silent_until_a_match_time_is_the_proof(looptime) -> None:
    """For the first connection as for a candidate; before its time is over, neither counts."""
    story = Story([OK, Hang()], [OK, Hang()], override=GRACE)
    async with story.running():
        story.publish("a")
        await asyncio.sleep(4.9)
        assert story.answers()[0] == ["accepted"]
        assert not story.subscription.is_live
        await asyncio.sleep(0.2)
        assert story.answers()[0] == ["accepted", "applied"]
        assert story.subscription.is_live
        story.publish("b")
        await asyncio.sleep(4.9)
        assert story.script.attempts[0].closed_at is None
        await asyncio.sleep(2)
        assert story.script.attempts[0].closed_at is not None
    assert story.answers()[1] == ["accepted", "applied"]
    assert len(story.events("connection.live")) == 2


async def test_the_first_byte_after_the_grace_is_no_second_proof(looptime) -> None:
    story = Story([OK, Wait(10), line(1), Hang()], override=GRACE)
    async with story.running():
        story.publish("a")
        await asyncio.sleep(20)
    assert len(story.events("connection.live")) == 1
    assert story.answers()[0] == ["accepted", "applied"]
    assert story.ids() == [1]


async def test_a_connection_that_dies_within_its_grace_has_proven_nothing(looptime) -> None:
    story = Story([OK, Wait(4), Disconnected("reset")], [OK, Hang()], override=GRACE)
    async with story.running():
        story.publish("a")
        await asyncio.sleep(9)
        assert story.answers()[0] == ["accepted"]
        await asyncio.sleep(1)
        assert story.answers()[0] == ["accepted", "applied"]


async def test_a_silent_connection_that_lived_long_is_replaced_at_once(looptime) -> None:
    story = Story([OK, Wait(100), Disconnected("reset")], [OK, Hang()], override=GRACE)
    async with story.running():
        story.publish("a")
        await asyncio.sleep(120)
    assert [attempt.at for attempt in story.script.attempts] == [0, 100]


async def test_without_a_grace_silence_proves_nothing(looptime) -> None:
    story = Story([OK, Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(80)
        assert story.answers()[0] == ["accepted"]


# Refusals


async def test_a_refusal_is_the_last_answer_of_all_whom_it_concerns(looptime) -> None:
    """And whoever came while the request was on its way is heard in his turn."""
    story = Story([Wait(3), BadStatus(406)], [OK, line(1), Hang()])
    async with story.running():
        story.publish("a", key="tech/a")
        story.publish("b", key="tech/b")
        await asyncio.sleep(1)
        story.publish("c", key="tech/c")
        await asyncio.sleep(10)
    assert story.asked() == ["a,b", "a,b,c"]
    assert story.answers() == {
        0: ["accepted", "refused"],
        1: ["accepted", "refused"],
        2: ["accepted", "applied"],
    }
    assert "in_force" not in story.events("predicates.refused")[0].data


async def test_the_same_record_again_asks_again(looptime) -> None:
    story = Story([OK, *flow(1, 200)], [BadStatus(403)], [OK, lines(*range(100, 130)), Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(99)
        story.publish("b")
        await asyncio.sleep(20)
    assert story.asked() == ["a", "b", "b"]
    assert story.answers() == {
        0: ["accepted", "applied"],
        1: ["accepted", "refused"],
        2: ["accepted", "applied"],
    }


async def test_a_refusal_is_told_once_however_often_it_is_repeated(looptime) -> None:
    story = Story(*[[BadStatus(401)]] * 4, [OK, line(1), Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(4000)
    assert len(story.script.attempts) == 5
    assert story.answers()[0] == ["accepted", "refused"]
    assert [event.data["predicates"] for event in story.events("connection.live")] == [version("a")]


async def test_a_restart_goes_on_with_what_was_in_force(looptime) -> None:
    """The newest is tried first, and once more beside what goes on: nothing stands still."""
    story = Story([BadStatus(406)], [OK, *flow(1, 100)], [BadStatus(406)], override=RESUMABLE)
    async with story.running():
        newest, before = (PredicateSet.of({"track": [word]}) for word in "ba")
        story.subscription.load(newest, [], before)
        await asyncio.sleep(10)
        assert story.subscription.is_live
    assert story.asked() == ["b", "a", "b"]
    assert story.answers() == {}
    versions = {entry.version for entry in story.entries() if entry.statuses}
    assert versions == {version("a")}


async def test_what_goes_on_is_noted_until_the_newest_is_in_force(looptime) -> None:
    story = Story([OK, *flow(1, 100)], [BadStatus(406)], [OK, lines(*range(10, 60)), Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(5)
        notes = [one for entry in story.entries() for one in entry.notes if one.key.startswith("in-force/")]
        assert notes == [("in-force/tech/0", b'{"track":["a"]}')]
        story.publish("c")
        await asyncio.sleep(5)
        notes = [one for entry in story.entries() for one in entry.notes if one.key.startswith("in-force/")]
        assert notes[1:] == [("in-force/tech/0", None)]


async def test_the_same_record_again_asks_again_where_nothing_lives(looptime) -> None:
    story = Story([BadStatus(403)], [OK, line(1), Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(10)
        story.publish("a")
        await asyncio.sleep(20)
    assert [attempt.at for attempt in story.script.attempts] == [0, 10]
    assert story.answers() == {0: ["accepted", "refused"], 1: ["accepted", "applied"]}


async def test_what_worked_once_and_is_refused_now_is_asked_for_again_when_somebody_says_so(looptime) -> None:
    story = Story([OK, *flow(1, 40), Disconnected("x")], [BadStatus(403)], [OK, line(41), Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(100)
        story.publish("a")
        await asyncio.sleep(20)
    assert [attempt.at for attempt in story.script.attempts] == [0, 40, 100]
    assert story.answers() == {0: ["accepted", "applied"], 1: ["accepted", "applied"]}


async def test_the_note_says_what_goes_on_now(looptime) -> None:
    """Not what went on when the newest was refused for the first time."""
    newer = [OK, Wait(3), *flow(40, 300)]
    story = Story([OK, *flow(1, 300)], [BadStatus(406)], newer, [BadStatus(406)], debounce=(20, 20))
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(25)
        story.publish("c")
        await asyncio.sleep(15)  # asked for at 40, live at 43
        story.publish("b")
        await asyncio.sleep(60)
    notes = [one for entry in story.entries() for one in entry.notes if one.key.startswith("in-force/")]
    assert [note.value for note in notes] == [b'{"track":["a"]}', b'{"track":["c"]}']
    assert story.asked() == ["a", "b", "c", "b"]


# Changes that come to nothing, and sockets that take their time


async def test_a_change_back_to_what_is_asked_for_already_costs_no_connection(looptime) -> None:
    story = Story([OK, *flow(1, 300)], [OK, Wait(5), *flow(25, 300)], debounce=(20, 20))
    async with story.running():
        story.publish("a")
        await asyncio.sleep(19)
        story.publish("b")
        await asyncio.sleep(2)
        assert story.subscription.phase is Phase.PROVING
        story.publish("c")
        story.publish("b")
        await asyncio.sleep(8)
        assert story.answers()[3] == ["accepted", "applied"]
        await asyncio.sleep(60)
    assert story.asked() == ["a", "b"]


async def test_a_candidate_that_takes_its_time_to_close_still_counts(looptime) -> None:
    story = Story([OK, *flow(1, 100)], [OK, Hang()], [OK, *flow(5, 100)])
    story.script.closing_s = 0.5
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(1.5)
        story.publish("c")
        await asyncio.sleep(6)
    assert story.asked() == ["a", "b", "c"]
    assert story.script.most_open == 2


async def test_a_stream_that_starts_again_waits_for_its_former_connection_to_close(looptime) -> None:
    story = Story([OK, *flow(1, 100)], [OK, *flow(5, 100)])
    story.script.closing_s = 5
    async with story.running():
        story.publish("a")
        await asyncio.sleep(3)
        story.publish()
        story.publish("b")
        await asyncio.sleep(10)
    assert story.script.most_open == 1
    assert story.script.attempts[1].at == 8
