"""Reconnect stories in virtual time: exact events, exact delays."""

from __future__ import annotations

import asyncio
import gzip
from collections import Counter
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from script import LINES, NO_JITTER, TARGET, Hang, Script, Wait, line, lines, manners

from connector.errors import BadStatus, Disconnected, Stalled, Unreachable
from connector.model import PredicateSet
from connector.stream.budget import Budget
from connector.stream.connection import Opened
from connector.stream.credentials import Bearer
from connector.stream.policy import Outcome
from connector.stream.reader import (
    Ask,
    Connected,
    Connecting,
    Deferred,
    Live,
    Lost,
    Reader,
    Received,
)

pytestmark = pytest.mark.looptime(idle_timeout=1)

OK = Opened()
X_V2 = {"first_s": 5, "add_s": 0, "factor": 2, "cap_s": 320, "jitter": 0}
PREDICATES = PredicateSet.of({"track": ["kafka"]})


def reader(script: Script, override=LINES, ask=lambda: Ask(PREDICATES, None), budget=None) -> Reader:
    return Reader(
        connect=script,
        target=TARGET,
        dialect=manners(override),
        ask=ask,
        budget=budget or Budget(),
        wall=asyncio.get_running_loop().time,
        rng=Random(1),
    )


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


async def delays(script: Script, count: int, override=LINES) -> list[float]:
    lost = [event for event in await take(reader(script, override), count) if isinstance(event, Lost)]
    return [event.retry_in_s for event in lost]


def net(reason: str, delay_s: float, **more) -> Lost:
    return Lost(reason, Outcome.NETWORK, delay_s, **more)


TRY = Connecting()
ENDED = "the server ended the stream"


async def test_network_errors_are_retried_ever_more_slowly(looptime) -> None:
    script = Script([[Disconnected("refused")]] * 70)
    assert await delays(script, 140) == [min(16, 0.25 * n) for n in range(1, 71)]
    assert looptime == sum(min(16, 0.25 * n) for n in range(1, 70))


async def test_http_errors_are_retried_at_the_seeds_pace(looptime) -> None:
    assert await delays(Script([[BadStatus(503)]] * 7), 14) == [10, 30, 70, 150, 240, 240, 240]


async def test_http_errors_are_retried_at_the_pace_of_other_dialects(looptime) -> None:
    override = {**LINES, "backoff": {**NO_JITTER, "http": X_V2}}
    assert await delays(Script([[BadStatus(503)]] * 8), 16, override) == [5, 10, 20, 40, 80, 160, 320, 320]


@pytest.mark.parametrize("status", [420, 429])
async def test_a_limited_client_waits_a_minute_and_then_twice_as_long(status: int, looptime) -> None:
    script = Script([[BadStatus(status)]] * 6)
    assert await delays(script, 12) == [60, 120, 240, 480, 960, 960]


async def test_a_limited_client_waits_as_long_as_it_is_told(looptime) -> None:
    """By Retry-After and by x-rate-limit-reset; never less than by the rule, and never for ever."""
    script = Script(
        [
            [BadStatus(429, retry_after_s=100)],
            [BadStatus(429, retry_after_s=1)],
            [BadStatus(429, reset_in_s=900)],
            [BadStatus(429, retry_after_s=1e9)],
        ]
    )
    assert await delays(script, 8) == [100, 120, 900, 86400]


async def test_retry_after_is_heard_with_other_statuses_too_but_the_reset_is_not(looptime) -> None:
    """X sends the reset with every answer."""
    script = Script([[BadStatus(503, retry_after_s=25, reset_in_s=900)], [BadStatus(503, reset_in_s=900)]])
    assert await delays(script, 4) == [25, 30]


async def test_a_healthy_stream_that_drops_is_reconnected_at_once(looptime) -> None:
    """And only if that fails, more and more slowly."""
    script = Script(
        [
            [Disconnected("x")],
            [OK, line(1), Wait(30), Disconnected("reset")],
            [Disconnected("refused")],
            [Disconnected("refused")],
        ]
    )
    assert await delays(script, 11) == [0.25, 0, 0.25, 0.5]


async def test_a_stream_that_drops_before_it_was_healthy_backs_off(looptime) -> None:
    """Bytes are not enough: a page of HTML or an error message is bytes as well."""
    override = {**LINES, "messages": {"disconnect": {"at": "/errors", "code": None}}}
    error = b'{"errors":[{"title":"operational-disconnect"}]}\r\n'
    script = Script(
        [
            [OK, line(1), Wait(29), Disconnected("reset")],
            [OK],
            [OK, b"<html>\r\n<body>\r\n", Disconnected("end")],
            [OK, error, Hang()],
            [BadStatus(503)],
            [OK, line(1)],
        ]
    )
    assert await delays(script, 25, override) == [0.25, 0.5, 0.75, 1.0, 10, 1.25]


async def test_backs_off_until_the_stream_is_healthy_not_until_the_first_200(looptime) -> None:
    """A peer that accepts and hangs up does not get hammered."""
    script = Script(
        [[OK], [OK], [BadStatus(503)], [OK, line(1), Wait(30), Disconnected("reset")], [OK, line(2), Hang()]]
    )
    assert await take(reader(script), 17) == [
        *(TRY, Connected(), net(ENDED, 0.25)),
        *(TRY, Connected(), net(ENDED, 0.5)),
        *(TRY, Lost("HTTP 503", Outcome.HTTP, 10, code="503")),
        *(TRY, Connected(), Live(), ["1"], net("reset", 0)),
        *(TRY, Connected(), Live(), ["2"]),
    ]
    assert looptime == 0.25 + 0.5 + 10 + 30


async def test_a_200_with_a_late_first_byte_is_not_healthy_by_its_age(looptime) -> None:
    script = Script([[Disconnected("x")], [OK, Wait(40), line(1), Disconnected("y")], [Disconnected("z")]])
    assert await delays(script, 9) == [0.25, 0.5, 0.75]


async def test_keep_alives_alone_make_a_stream_healthy(looptime) -> None:
    script = Script([[Disconnected("x")], [OK, b"\r\n", Wait(30), Disconnected("y")], [Disconnected("z")]])
    assert await take(reader(script), 9) == [
        *(TRY, net("x", 0.25)),
        *(TRY, Connected(), Live(), [], net("y", 0)),
        *(TRY, net("z", 0.25)),
    ]


async def test_a_stall_is_told_as_one(looptime) -> None:
    script = Script([[OK, line(1), Wait(90), Stalled("stalled: silent for 90 s")]])
    assert (await take(reader(script), 5))[-1] == net("stalled: silent for 90 s", 0, is_stall=True)


async def test_a_tail_cut_off_is_counted_and_never_delivered(looptime) -> None:
    script = Script([[OK, line(1) + b'{"id_str":"2"', Disconnected("cut")], [OK, line(3)]])
    assert await take(reader(script), 9) == [
        *(TRY, Connected(), Live(), ["1"], net("cut", 0.25, discarded=Counter(cut=13))),
        *(TRY, Connected(), Live(), ["3"]),
    ]


async def test_a_disconnect_notice_ends_the_connection(looptime) -> None:
    notice = b'{"disconnect":{"code":7,"reason":"admin logout"}}\r\n'
    script = Script([[OK, line(1), notice, line(2), Hang()], [Hang()]])
    events = await take(reader(script), 6)
    assert events[:5] == [TRY, Connected(), Live(), ["1"], []]
    said = 'the server said {"code":7,"reason":"admin logout"}'
    assert events[5] == Lost(said, Outcome.REPLACED, 0.25, code="7")
    assert script.attempts[0].closed_at == 0


async def test_a_revoked_token_is_a_refusal(looptime) -> None:
    notice = b'{"disconnect":{"code":6,"reason":"token revoked"}}\r\n'
    (lost,) = (
        event
        for event in await take(reader(Script([[OK, line(1), Wait(60), notice]])), 6)
        if isinstance(event, Lost)
    )
    assert (lost.outcome, lost.retry_in_s) == (Outcome.REFUSED, 900)


@pytest.mark.parametrize("status", [204, 401, 403, 404, 406, 410, 413, 416])
async def test_a_refused_reader_tries_again_after_a_long_time(status: int, looptime) -> None:
    script = Script([[BadStatus(status)], [Hang()]])
    assert (await take(reader(script), 3))[1] == Lost(
        f"HTTP {status}", Outcome.REFUSED, 900, code=str(status)
    )
    assert looptime == 900


async def test_a_refused_reader_tries_again_when_its_credentials_change(looptime) -> None:
    token = ["old"]
    where = replace(TARGET, credentials=Bearer(lambda: token[0]))
    script = Script([[BadStatus(401)], [Hang()]])

    async def rotate() -> None:
        await asyncio.sleep(42)
        token[0] = "new"

    rotating = asyncio.create_task(rotate())
    await take(replace(reader(script), target=where), 3)
    await rotating
    assert looptime == 45, "looked at every five seconds"


async def test_a_refused_reader_tries_again_when_told_of_a_change(looptime) -> None:
    script = Script([[BadStatus(406)], [Hang()]])
    refused = reader(script)
    asyncio.get_running_loop().call_later(42, refused.changed.set)
    await take(refused, 3)
    assert looptime == 42


async def test_a_change_of_before_the_refusal_is_no_change(looptime) -> None:
    script = Script([[Wait(5), BadStatus(406)], [Hang()]])
    refused = reader(script)
    refused.changed.set()  # and then the reader asks: the change is in what it asks for
    await take(refused, 3)
    assert looptime == 905


async def test_lost_framing_leads_to_a_new_connection(looptime) -> None:
    script = Script([[OK, b"a\r\nb\r\nc\r\n"], [Hang()]])
    events = await take(reader(script, {"backoff": NO_JITTER}), 4)
    assert events[:3] == [TRY, Connected(), Live()]
    assert isinstance(events[3], Lost)
    assert "expected a length" in events[3].reason


# The connect budget


async def test_a_200_and_a_close_over_and_over_stays_within_the_budget(looptime) -> None:
    script = Script([[OK]] * 50)
    source = reader(script, budget=Budget(5, 300))
    lost = 0
    async with aclosing(source.events()) as events:
        async for event in events:
            lost += isinstance(event, Lost)
            if lost == 50:
                break
    at = [attempt.at for attempt in script.attempts]
    assert at[:7] == [0, 0.25, 0.75, 1.5, 2.5, 300, 301.5]
    assert all(later - earlier >= 300 for earlier, later in pairwise(at[::5]))
    assert all(at[n + 5] - at[n] >= 300 for n in range(45))


async def test_a_spent_budget_is_told(looptime) -> None:
    script = Script([[OK], [Hang()]])
    budget = Budget(1, 300)
    assert await take(reader(script, budget=budget), 5) == [
        *(TRY, Connected(), net(ENDED, 300)),
        Deferred(299.75),
        TRY,
    ]


async def test_attempts_that_never_reach_the_upstream_cost_nothing(looptime) -> None:
    """Its limit counts requests, and none of these was one."""
    script = Script([[Unreachable("refused")]] * 20 + [[OK, Hang()]])
    await take(reader(script, budget=Budget(5, 300)), 42)
    assert looptime == sum(0.25 * n for n in range(1, 21))


async def test_a_budget_is_shared_with_the_process_before(looptime) -> None:
    budget = Budget(2, 300)
    budget.restore([-200, -100])
    assert await take(reader(Script([[Hang()]]), budget=budget), 2) == [Deferred(100), TRY]


# Server-sent events

EVENTS = {
    **LINES,
    "framing": {"kind": "sse"},
    "messages": {"id": "/id"},
    "resume": {"header": "Last-Event-ID"},
}


async def test_the_last_events_id_is_sent_on_reconnect(looptime) -> None:
    """Also one that came without data; and none any more after an empty one."""
    first = b'id: 7\ndata: {"id":"a"}\n\n'
    script = Script(
        [[OK, first, b"id: 8\n\n"], [OK, b"id\n\n"], [OK, first + b"id: 9\ndata: {"], [OK, Hang()]]
    )
    cursor: list[str | None] = [None]

    def ask() -> Ask:
        return Ask(PREDICATES, cursor[0])

    async with aclosing(reader(script, EVENTS, ask).events()) as events:
        async for event in events:
            if isinstance(event, Received):
                now = event.messages.cursor_after(len(event.messages.statuses))
                cursor[0] = cursor[0] if now is None else now
            if len(script.attempts) == 4:
                break
    sent = [attempt.headers.get("Last-Event-ID") for attempt in script.attempts]
    assert sent == [None, "8", None, "7"]


async def test_the_servers_retry_is_honoured(looptime) -> None:
    """Where we would come back at once, and where the rule is shorter; but not for ever."""
    script = Script(
        [
            [OK, b"retry: 3000\n\n", Wait(40)],
            [OK, b"retry: 3000\n\n"],
            [OK, b"retry: 100\n\n"],
            [OK, b"retry: 999999999\n\n"],
        ]
    )
    assert await delays(script, 20, EVENTS) == [3, 3, 0.5, 240]


async def test_a_compressed_stream_cut_within_a_message(looptime) -> None:
    whole = gzip.compress(lines(1, 2))
    script = Script([[Opened("gzip"), whole], [Opened("gzip"), whole[:-3]]])
    events = await take(reader(script), 10)
    assert events[3:5] == [["1", "2"], net(ENDED, 0.25)]
    assert events[8:] == [["1", "2"], net("the server ended the stream within a compressed message", 0.5)]


async def test_every_attempt_asks_for_the_newest(looptime) -> None:
    """A restart after a failure carries the newest predicates and the newest cursor."""
    script = Script([[Disconnected("x")], [BadStatus(503)], [OK, line(5)]])
    asked = iter([("kafka", None), ("flink", None), ("rust", "4")])

    def ask() -> Ask:
        track, cursor = next(asked)
        return Ask(PredicateSet.of({"track": [track]}), cursor)

    override = {**LINES, "resume": {"parameter": "since_seq", "cursor": "/seq"}}
    await take(reader(script, override, ask), 8)
    assert [attempt.form["track"] for attempt in script.attempts] == ["kafka", "flink", "rust"]
    assert [attempt.form.get("since_seq") for attempt in script.attempts] == [None, None, "4"]


@pytest.mark.parametrize(
    "script",
    [
        [[Hang()]],
        [[OK, Hang()]],
        [[OK, line(1), Hang()]],
        [[BadStatus(503, retry_after_s=320)]],
        [[BadStatus(401)]],
    ],
    ids=["connecting", "silent", "reading", "backing off for 320 s", "refused"],
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
    assert await take(reader(script), 5) == [TRY, Connected(), Live(), ["1", "2"], ["3"]]
    assert looptime == 5


async def test_a_chunk_of_many_pieces_counts_once_and_ends_with_its_announcement(looptime) -> None:
    """It stands in the first of them here."""
    notice = b'{"disconnect":{"code":12}}\r\n'
    body = gzip.compress(notice + lines(*range(9000)))
    script = Script([[Opened("gzip"), body[:-1], Hang()], [Hang()]])
    received: list[Received] = []
    lost: list[Lost] = []
    async with aclosing(reader(script).events()) as events:
        async for event in events:
            received += [event] if isinstance(event, Received) else []
            if isinstance(event, Lost):
                lost.append(event)
                break
    assert len(received) > 2
    assert sum(one.wire_bytes for one in received) == len(body) - 1
    assert sum(len(one.messages.statuses) for one in received) == 9000
    assert (lost[0].outcome, lost[0].code) == (Outcome.ENDED, "12")
