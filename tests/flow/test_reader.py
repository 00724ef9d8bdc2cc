"""Reconnect stories in virtual time: exact events, exact delays."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from random import Random

import pytest
from script import LINES, NO_JITTER, TARGET, Hang, Script, Wait, line, lines, manners

from connector.errors import BadStatus, Disconnected
from connector.model import PredicateSet
from connector.stream.connection import Opened
from connector.stream.reader import Ask, Connected, Live, Lost, Reader, Received

pytestmark = pytest.mark.looptime

OK = Opened()
PREDICATES = PredicateSet.of({"track": ["kafka"]})


def reader(script: Script, override=LINES, ask=lambda: Ask(PREDICATES, None)) -> Reader:
    return Reader(connect=script, target=TARGET, dialect=manners(override), ask=ask, rng=Random(1))


async def take(source: Reader, count: int) -> list[object]:
    """Return the first *count* events; statuses as their ids."""
    seen: list[object] = []
    async with aclosing(source.events()) as events:
        async for event in events:
            if isinstance(event, Received):
                seen.append([status.id for status in event.messages.statuses])
            else:
                seen.append(event)
            if len(seen) == count:
                break
    return seen


async def delays(script: Script, count: int) -> list[float]:
    lost = [event for event in await take(reader(script), count) if isinstance(event, Lost)]
    return [event.retry_in_s for event in lost]


async def test_network_errors_are_retried_ever_more_slowly(looptime) -> None:
    script = Script([[Disconnected("refused")]] * 70)
    assert await delays(script, 70) == [min(16, 0.25 * n) for n in range(1, 71)]
    assert looptime == sum(min(16, 0.25 * n) for n in range(1, 70))


async def test_http_errors_are_retried_at_the_seeds_pace(looptime) -> None:
    assert await delays(Script([[BadStatus(503)]] * 7), 7) == [10, 30, 70, 150, 240, 240, 240]


@pytest.mark.parametrize("status", [420, 429])
async def test_a_limited_client_waits_a_minute_and_then_twice_as_long(status: int, looptime) -> None:
    assert await delays(Script([[BadStatus(status)]] * 6), 6) == [60, 120, 240, 480, 960, 960]


async def test_backs_off_until_the_first_byte_not_the_first_200(looptime) -> None:
    """A peer that accepts and hangs up does not get hammered."""
    script = Script(
        [[OK], [OK], [BadStatus(503)], [OK, line(1), Disconnected("reset")], [OK, line(2), Hang()]]
    )
    assert await take(reader(script), 12) == [
        Connected(),
        Lost("the server ended the stream", 0.25),
        Connected(),
        Lost("the server ended the stream", 0.5),
        Lost("HTTP 503", 10),
        Connected(),
        Live(),
        ["1"],
        Lost("reset", 0.25),
        Connected(),
        Live(),
        ["2"],
    ]
    assert looptime == 0.25 + 0.5 + 10 + 0.25


async def test_a_keep_alive_is_proof_of_life(looptime) -> None:
    script = Script([[Disconnected("x")], [OK, b"\r\n", Disconnected("y")], [Disconnected("z")]])
    assert await take(reader(script), 6) == [
        Lost("x", 0.25),
        Connected(),
        Live(),
        [],
        Lost("y", 0.25),
        Lost("z", 0.5),
    ]


async def test_a_tail_cut_off_is_counted_and_never_delivered(looptime) -> None:
    script = Script([[OK, line(1) + b'{"id_str":"2"', Disconnected("cut")], [OK, line(3)]])
    assert await take(reader(script), 7) == [
        Connected(),
        Live(),
        ["1"],
        Lost("cut", 0.25, cut_bytes=13),
        Connected(),
        Live(),
        ["3"],
    ]


async def test_a_disconnect_notice_ends_the_connection(looptime) -> None:
    notice = b'{"disconnect":{"code":7,"reason":"admin logout"}}\r\n'
    script = Script([[OK, line(1), notice, line(2), Hang()], [Hang()]])
    events = await take(reader(script), 5)
    assert events[:4] == [Connected(), Live(), ["1"], []]
    assert events[4] == Lost('the server said {"code":7,"reason":"admin logout"}', 0.25)
    assert script.attempts[0].closed_at == 0


async def test_lost_framing_leads_to_a_new_connection(looptime) -> None:
    script = Script([[OK, b"a\r\nb\r\nc\r\n"], [Hang()]])
    events = await take(reader(script, {"backoff": NO_JITTER}), 3)
    assert events[:2] == [Connected(), Live()]
    assert isinstance(events[2], Lost)
    assert "expected a length" in events[2].reason


async def test_every_attempt_asks_for_the_newest(looptime) -> None:
    """A restart after a failure carries the newest predicates and the newest cursor."""
    script = Script([[Disconnected("x")], [BadStatus(503)], [OK, line(5)]])
    asked = iter([("kafka", None), ("flink", None), ("rust", "4")])

    def ask() -> Ask:
        track, cursor = next(asked)
        return Ask(PredicateSet.of({"track": [track]}), cursor)

    override = {**LINES, "resume": {"parameter": "since_seq", "cursor": "/seq"}}
    await take(reader(script, override, ask), 5)
    assert [attempt.form["track"] for attempt in script.attempts] == ["kafka", "flink", "rust"]
    assert [attempt.form.get("since_seq") for attempt in script.attempts] == [None, None, "4"]


@pytest.mark.parametrize(
    "script",
    [[[Hang()]], [[OK, Hang()]], [[OK, line(1), Hang()]], [[BadStatus(420)]]],
    ids=["connecting", "silent", "reading", "backing off"],
)
async def test_it_ends_at_once_wherever_it_is(script, looptime) -> None:
    """Sleeping never delays a shutdown, and no connection is left behind."""
    connections = Script(script)

    async def read() -> None:
        async with aclosing(reader(connections).events()) as events:
            async for _ in events:
                pass

    reading = asyncio.create_task(read())
    await asyncio.sleep(1)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert looptime == 1
    assert all(attempt.closed_at is not None for attempt in connections.attempts)


async def test_malformed_frames_do_not_end_the_connection(looptime) -> None:
    script = Script([[OK, b"}{\r\n" + lines(1, 2) + b'{"no":"id"}\r\n', Wait(5), line(3)]])
    assert await take(reader(script), 4) == [Connected(), Live(), ["1", "2"], ["3"]]
    assert looptime == 5
