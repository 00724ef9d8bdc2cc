"""What the platforms' own documents demand of a client, in virtual time with exact delays."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise

import pytest
from script import NO_JITTER, TARGET, Hang, Script, Step, Wait
from test_reader import X_V2, reader, take

from connector.errors import BadStatus, Disconnected
from connector.stream import dialect
from connector.stream.budget import Budget
from connector.stream.connection import Opened
from connector.stream.policy import Outcome
from connector.stream.reader import Ask, Live, Lost, Reader, Received

pytestmark = pytest.mark.looptime(idle_timeout=1)

OK = Opened()


def speaking(name: str, override: dict, script: Script, ask=None, budget: Budget | None = None) -> Reader:
    manners = dialect.load(name, {"backoff": NO_JITTER, "budget": None, **override})
    source = reader(script, budget=budget)
    where = replace(TARGET, liveness=manners.liveness, response=manners.response)
    return replace(source, dialect=manners, target=where, ask=ask or source.ask)


def lost(seen: list[object]) -> list[Lost]:
    return [event for event in seen if isinstance(event, Lost)]


# Twitter v1.1


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 99])
async def test_twitters_announced_ends_are_reconnected_at_once(code: int, looptime) -> None:
    """Known or not; the budget sees to it that two clients do not evict each other for ever."""
    notice = b'{"disconnect":{"code":%d,"stream_name":"x","reason":"y"}}' % code
    framed = b"%d\r\n%b\r\n" % (len(notice) + 2, notice)
    script = Script([[OK, b"\r\n", Wait(60), framed, Hang()], [Hang()]])
    (loss,) = lost(await take(speaking("twitter-v1", {}, script), 6))
    outcome = Outcome.REPLACED if code in {2, 7} else Outcome.ENDED
    assert (loss.outcome, loss.code, loss.retry_in_s) == (outcome, str(code), 0)


async def test_twitters_revoked_token_is_not_tried_again_soon(looptime) -> None:
    framed = b'32\r\n{"disconnect":{"code":6,"x":""}}\r\n'
    script = Script([[OK, b"\r\n", Wait(60), framed, Hang()], [Hang()]])
    (loss,) = lost(await take(speaking("twitter-v1", {}, script), 6))
    assert (loss.outcome, loss.retry_in_s) == (Outcome.REFUSED, 900)


async def test_a_wrong_password_never_earns_a_420(looptime) -> None:
    """Twitter's own test of a client, for a day: five attempts in five minutes at most."""
    script = Script([[BadStatus(401)]] * 200)
    source = speaking("twitter-v1", {}, script, budget=Budget(5, 300))
    async with aclosing(source.events()) as events:
        async for event in events:
            if asyncio.get_running_loop().time() > 86_400 and isinstance(event, Lost):
                break
    assert [later.at - earlier.at for earlier, later in pairwise(script.attempts)] == [900] * 97


async def test_messages_nobody_knows_are_tolerated(looptime) -> None:
    messages = [b'{"friends":[1,2]}', b'{"event":"user_update"}', b'{"id_str":"1","new_field":-1}']
    framed = [b"%d\r\n%b\r\n" % (len(one) + 2, one) for one in messages]
    assert (await take(speaking("twitter-v1", {}, Script([[OK, *framed, Hang()]])), 6))[-1] == ["1"]


# X v2

X = {
    "request": {"predicates": {"expansions": {}}},
    "messages": {"id": "/data/id", "disconnect": {"at": "/errors/0", "code": "/title"}},
    "liveness": {"stall_timeout_s": 20},
    "backoff": {**NO_JITTER, "http": X_V2},
}
OPERATIONAL = (
    b'{"errors":[{"title":"operational-disconnect","disconnect_type":"UpstreamOperationalDisconnect"}]}\r\n'
)


async def test_xs_operational_disconnect_within_a_200_is_an_end(looptime) -> None:
    """At once after a healthy stream, ever more slowly where it comes first thing."""
    post = b'{"data":{"id":"1"}}\r\n'
    script = Script(
        [[OK, post, Wait(60), OPERATIONAL, Hang()], [OK, OPERATIONAL], [OK, OPERATIONAL], [Hang()]]
    )
    losses = lost(await take(speaking("ndjson", X, script), 16))
    assert [(loss.code, loss.retry_in_s) for loss in losses] == [
        ("operational-disconnect", 0),
        ("operational-disconnect", 0.25),
        ("operational-disconnect", 0.5),
    ]


async def test_xs_http_errors_and_too_many_connections(looptime) -> None:
    script = Script([[BadStatus(503)]] * 8 + [[BadStatus(429)]] * 3 + [[BadStatus(429, reset_in_s=700)]])
    losses = lost(await take(speaking("ndjson", X, script), 24))
    assert [loss.retry_in_s for loss in losses] == [5, 10, 20, 40, 80, 160, 320, 320, 60, 120, 240, 700]


async def test_xs_limit_of_fifty_connects_in_fifteen_minutes(looptime) -> None:
    script = Script([[OK]] * 200)
    source = speaking("ndjson", X, script, budget=Budget(50, 900))
    async with aclosing(source.events()) as events:
        async for event in events:
            if isinstance(event, Lost) and len(script.attempts) == 160:
                break
    at = [attempt.at for attempt in script.attempts]
    assert all(at[n + 50] - at[n] >= 900 for n in range(len(at) - 50))


async def test_blank_lines_are_xs_heartbeats(looptime) -> None:
    beats: list[Step] = [step for _ in range(100) for step in (Wait(19), b"\r\n")]
    seen = await take(speaking("ndjson", X, Script([[OK, b"\r\n", *beats]])), 104)
    assert lost(seen) == []
    assert seen.count([]) == 101


# Server-sent events of Wikimedia and Mastodon


async def test_wikimedias_cursor_is_sent_back_as_it_came(looptime) -> None:
    """It is a JSON array, with commas, quotes and brackets."""
    cursor = (
        '[{"topic":"eqiad.mediawiki.recentchange","partition":0,"timestamp":1700000000001},{"topic":"codfw"}]'
    )
    body = b'event: message\nid: %b\ndata: {"meta":{"id":"a-b"},"x":1}\n\n' % cursor.encode()
    script = Script([[OK, body, Disconnected("after fifteen minutes")], [OK, b": ok\n\n", Hang()]])
    sent: list[str | None] = [None]
    override = {"messages": {"id": "/meta/id", "events": ["message"]}}
    source = speaking("sse", override, script, ask=lambda: Ask(reader(script).ask().predicates, sent[0]))
    async with aclosing(source.events()) as events:
        async for event in events:
            if isinstance(event, Received) and event.messages.statuses:
                sent[0] = event.messages.cursor_after(1)
            if isinstance(event, Live) and len(script.attempts) == 2:
                break
    assert script.attempts[1].headers["Last-Event-ID"] == cursor


async def test_mastodons_events_by_type(looptime) -> None:
    """``delete`` brings a bare id, ``filters_changed`` the word undefined, and nothing can be resumed."""
    body = (
        b":)\n\n:thump\n"
        b'event: update\ndata: {"id":"1"}\n\n'
        b"event: delete\ndata: 1\n\n"
        b"event: filters_changed\ndata: undefined\n\n"
        b'event: status.update\ndata: {"id":"2"}\n\n'
    )
    override = {
        "messages": {"events": ["update", "status.update"], "delete": {"event": "delete"}},
        "resume": None,
    }
    seen = await take(speaking("sse", override, Script([[OK, body, Hang()]])), 4)
    assert seen[-1] == ["1", "1", "2"], "the second one is the delete"
