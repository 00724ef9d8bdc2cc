"""The endless reader: exact events at exact times."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from itertools import accumulate
from random import Random

import pytest
from flow.scripted import KEEP_ALIVE, PLAIN, RESUMABLE, TARGET, Hang, Script, Step, Wait, line, manners, now

from connector.errors import BadStatus, Disconnected, FramingLost
from connector.model import PredicateSet
from connector.stream.connection import Opened
from connector.stream.dialect import Dialect
from connector.stream.reader import Ask, Connected, Live, Lost, Reader, ReaderEvent, Received

pytestmark = pytest.mark.looptime(idle_timeout=1)

NOTHING = Ask(PredicateSet(), None)
ENDED = "the server ended the stream"


def reading(
    script: Script, ask: Callable[[], Ask] = lambda: NOTHING, dialect: Dialect | None = None
) -> AsyncGenerator[ReaderEvent, None]:
    reader = Reader(connect=script, target=TARGET, dialect=dialect or manners(), ask=ask, rng=Random(1))
    return reader.events()


async def take(
    count: int,
    script: Script,
    ask: Callable[[], Ask] = lambda: NOTHING,
    dialect: Dialect | None = None,
) -> list[ReaderEvent | list[str]]:
    """Return the next events, what was received as ids and as reasons of what was malformed."""
    events: list[ReaderEvent | list[str]] = []
    async with aclosing(reading(script, ask, dialect)) as source:
        async for event in source:
            events.append(short(event) if isinstance(event, Received) else event)
            if len(events) == count:
                break
    assert script.open == 0
    return events


def short(received: Received) -> list[str]:
    messages = received.messages
    return [status.id for status in messages.statuses] + [bad.reason for bad in messages.malformed]


def sums(delays: Sequence[float]) -> Iterator[float]:
    """Yield when attempts come if each fails at once and these delays follow."""
    return accumulate(delays, initial=0.0)


# Delays


async def test_network_failures_are_retried_linearly(looptime) -> None:
    """0.25 0.5 0.75 … up to 16 s, and 16 s from there on."""
    script = Script([[Disconnected("refused")]] * 67)
    delays = [0.25 * n for n in range(1, 65)] + [16, 16, 16]

    assert await take(67, script) == [Lost("refused", delay) for delay in delays]
    assert script.asked_at == list(sums(delays))[:-1]
    assert looptime == sum(delays[:-1])


async def test_http_failures_are_retried_exponentially(looptime) -> None:
    script = Script([[BadStatus(503, "over capacity")]] * 7)
    delays = [10, 30, 70, 150, 240, 240, 240]

    assert await take(7, script) == [Lost("HTTP 503: over capacity", delay) for delay in delays]
    assert script.asked_at == list(sums(delays))[:-1]
    assert looptime == 740


@pytest.mark.parametrize("status", [420, 429])
async def test_rate_limits_are_waited_out_from_a_minute_on(status: int, looptime) -> None:
    script = Script([[BadStatus(status)]] * 6)
    delays = [60, 120, 240, 480, 960, 960]

    assert await take(6, script) == [Lost(f"HTTP {status}", delay) for delay in delays]
    assert looptime == 60 + 120 + 240 + 480 + 960


async def test_each_kind_of_failure_goes_on_from_its_own_last_delay() -> None:
    kinds = [Disconnected("gone"), BadStatus(503), BadStatus(429)]
    script = Script([[kind] for kind in kinds * 3])

    events = await take(9, script)

    assert [event.retry_in_s for event in events] == [0.25, 10, 60, 0.5, 30, 120, 0.75, 70, 240]


async def test_a_200_that_sends_nothing_backs_off_further(looptime) -> None:
    """An upstream that accepts and hangs up is not hammered."""
    script = Script([[Opened()]] * 4)

    assert await take(8, script) == [
        Connected(),
        Lost(ENDED, 0.25),
        Connected(),
        Lost(ENDED, 0.5),
        Connected(),
        Lost(ENDED, 0.75),
        Connected(),
        Lost(ENDED, 1.0),
    ]
    assert looptime == 1.5


async def test_first_bytes_reset_every_delay_even_a_keep_alive(looptime) -> None:
    script = Script(
        [
            [Disconnected("gone")],
            [Disconnected("gone")],
            [BadStatus(503)],
            [BadStatus(503)],
            [BadStatus(420)],
            [Opened(), KEEP_ALIVE],
            [BadStatus(503)],
            [BadStatus(420)],
            [Disconnected("gone")],
        ]
    )

    assert await take(12, script) == [
        Lost("gone", 0.25),
        Lost("gone", 0.5),
        Lost("HTTP 503", 10),
        Lost("HTTP 503", 30),
        Lost("HTTP 420", 60),
        Connected(),
        Live(),
        [],
        Lost(ENDED, 0.25),
        Lost("HTTP 503", 10),
        Lost("HTTP 420", 60),
        Lost("gone", 0.5),
    ]
    assert looptime == 0.75 + 40 + 60 + 0.25 + 10 + 60


async def test_the_connection_is_closed_before_the_pause_and_not_after_it() -> None:
    script = Script([[Opened(), b"x"], [Opened(), Wait(2), Disconnected("reset")], [Hang()]])
    source = reading(script)

    events = [await anext(source) for _ in range(6)]
    assert isinstance(events[-1], Lost)
    await source.aclose()

    assert script.asked_at == [0, 0.25]
    assert script.closed_at == [0, 2.25]
    assert script.most_open == 1


# What arrives


async def test_chunk_ends_mean_nothing() -> None:
    one, two = line(1), line(2)
    script = Script([[Opened(), one[:5], one[5:] + two[:-1], two[-1:], Hang()]])

    assert await take(5, script) == [Connected(), Live(), [], ["1"], ["2"]]


async def test_a_cut_tail_is_never_delivered_and_its_bytes_are_counted() -> None:
    """Nor is it glued to what the next connection begins with."""
    script = Script([[Opened(), line(1) + b'{"id_str":"2"'], [Opened(), b"}\r\n" + line(3), Hang()]])

    assert await take(7, script) == [
        Connected(),
        Live(),
        ["1"],
        Lost(ENDED, 0.25, cut_bytes=13),
        Connected(),
        Live(),
        ["3", "not_json"],
    ]


async def test_a_tail_that_only_lacks_its_line_end_is_not_delivered_either() -> None:
    script = Script([[Opened(), b'{"id_str":"2"}']])

    assert await take(4, script) == [Connected(), Live(), [], Lost(ENDED, 0.25, cut_bytes=14)]


async def test_a_disconnect_message_ends_the_connection() -> None:
    """What the server sent with it counts; what it might send later is not awaited."""
    script = Script([[Opened(), line(1) + b'{"disconnect":{"code":7}}\r\n', Hang()], [Opened(), Hang()]])

    assert await take(5, script) == [
        Connected(),
        Live(),
        ["1"],
        Lost('the server said {"code":7}', 0.25),
        Connected(),
    ]
    assert script.closed_at[0] == 0


async def test_malformed_frames_do_not_end_the_connection() -> None:
    rubbish = b"<html>\r\n" + b'{"limit":{"track":3}}\r\n' + b"\xff\xfe\r\n"
    script = Script([[Opened(), line(1), rubbish, line(2), Hang()]])

    assert await take(5, script) == [Connected(), Live(), ["1"], ["not_json", "no_id", "not_json"], ["2"]]


async def test_oversize_frames_are_discarded_and_counted() -> None:
    dialect = manners({**PLAIN, "framing": {"kind": "lines", "max_frame_bytes": 40}})
    script = Script([[Opened(), b"x" * 41 + b"\r\n" + line(1), line(2), Hang()]])
    source = reading(script, dialect=dialect)

    _, _, first, second = [await anext(source) for _ in range(4)]
    await source.aclose()

    assert isinstance(first, Received)
    assert isinstance(second, Received)
    assert (short(first), first.discarded) == (["1"], {"oversize": 41})
    assert (short(second), second.discarded, second.wire_bytes) == (["2"], {}, len(line(2)))


async def test_lost_framing_leads_to_a_new_connection() -> None:
    dialect = manners({"backoff": PLAIN["backoff"]})  # lengths, as Twitter has them
    framed = b"24\r\n" + line(1)[:-2].ljust(22) + b"\r\n"
    script = Script([[Opened(), framed, b"a\r\nb\r\nc\r\n", Hang()], [Opened(), framed, Hang()]])

    *before, lost, connected, live, after = await take(7, script, dialect=dialect)

    assert before == [Connected(), Live(), ["1"]]
    assert isinstance(lost, Lost)
    assert (lost.reason, lost.retry_in_s) == (str(FramingLost("expected a length, got b'c'")), 0.25)
    assert [connected, live, after] == [Connected(), Live(), ["1"]]


# What is asked


async def test_every_attempt_asks_anew() -> None:
    """A reconnect carries the newest predicates and the newest cursor."""
    asks = [
        Ask(PredicateSet.of({"track": ["kafka"]}), None),
        Ask(PredicateSet.of({"track": ["kafka", "pulsar"], "follow": ["12"]}), "41"),
        Ask(PredicateSet.of({"follow": ["12"]}), "42"),
    ]
    asked_at: list[float] = []

    def ask() -> Ask:
        asked_at.append(now())
        return asks[len(asked_at) - 1]

    script = Script([[BadStatus(503)], [Opened(), Wait(5)], [Hang()]])
    task = asyncio.create_task(take(9, script, ask, manners(RESUMABLE)))
    await asyncio.sleep(20)
    task.cancel()

    assert asked_at == [0, 10, 15.25]
    assert [one.form for one in script.connections] == [
        {"track": "kafka"},
        {"track": "kafka,pulsar", "follow": "12", "since_seq": "41"},
        {"follow": "12", "since_seq": "42"},
    ]


# Closing


@pytest.mark.parametrize(
    ("steps", "at"),
    [
        ([Hang()], "connect"),
        ([Opened(), Hang()], "first bytes"),
        ([Opened(), line(1), Hang()], "body"),
        ([BadStatus(420)], "pause"),
    ],
)
async def test_a_cancelled_reader_closes_at_once(steps: list[Step], at: str, looptime) -> None:
    """Whatever it was waiting for: the connect, the first bytes, the body or the end of a pause."""
    script = Script([steps])
    task = asyncio.create_task(take(9, script))
    await asyncio.sleep(3)
    assert script.connections[0].played == len(steps)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert script.closed_at == [0 if at == "pause" else 3]
    assert looptime == 3


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_a_generator_closed_between_events_closes_its_connection(count: int, looptime) -> None:
    script = Script([[Opened(), line(1), Hang()]])
    source = reading(script)
    for _ in range(count):
        await anext(source)
    assert script.open == 1

    await source.aclose()

    assert script.open == 0
    assert looptime == 0
