"""A stream's restarts in virtual time: who is connected when, what goes out, what publishers hear."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from script import LINES, RESUMABLE, TARGET, Hang, Step, Wait, line, lines
from story import OK, Story, flow

from connector.delivery.dedupe import MARK_BYTES
from connector.errors import BadStatus, Disconnected, Stalled
from connector.model import PredicateSet
from connector.stream.credentials import NoCredentials
from connector.stream.handover import Phase

pytestmark = pytest.mark.looptime


async def test_an_idle_stream_starts_at_once_with_all_that_came_together(looptime) -> None:
    story = Story([OK, line(1), Hang()])
    async with story.running():
        story.publish("kafka", key="tech/a")
        story.publish("flink", key="tech/b")
        await asyncio.sleep(0)
        await asyncio.sleep(1)
    assert story.asked() == ["flink,kafka"]
    assert story.script.attempts[0].at == 0
    assert story.answers() == {0: ["accepted", "applied"], 1: ["accepted", "applied"]}


async def test_a_hundred_updates_are_one_restart_at_the_curves_time(looptime) -> None:
    story = Story([OK, line(1), Hang()], [OK, line(2), Hang()], debounce=(120, 600))
    async with story.running():
        story.publish("a")
        await asyncio.sleep(10)
        for number in range(100):
            story.publish(f"w{number}", key=f"tech/{number}")
        await asyncio.sleep(300)
    assert [attempt.at for attempt in story.script.attempts] == [0, 120]
    assert story.events("predicates.accepted")[1].data["due_in_s"] == 540
    assert all(told == ["accepted", "applied"] for told in story.answers().values())


async def test_the_new_connection_lives_before_the_old_one_goes(looptime) -> None:
    """And nothing of what both bring is lost or doubled, nor out of order."""
    story = Story(
        [OK, *flow(1, 60, 0.25)],
        [Wait(1), OK, Wait(1), lines(18, 19), Wait(0.5), *flow(20, 60, 0.25)],
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(0.5)
        story.publish("a", "b")
        await asyncio.sleep(12)
    old, new = story.script.attempts
    assert new.at == 2
    assert story.script.most_open == 2
    # Live at 4 s; at 4.25 s the old one brings 18, which the new one has brought already.
    assert old.closed_at == 4.25
    assert story.ids() == list(range(1, len(story.ids()) + 1))
    assert len(story.ids()) > 30
    applied = story.events("predicates.applied")[1]
    assert applied.data["without_connection_s"] == 0
    assert applied.data["connection"] == 2
    assert story.answers() == {0: ["accepted", "applied"], 1: ["accepted", "applied"]}


async def test_an_old_connection_says_nothing_after_the_switch(looptime) -> None:
    """Not even what it has at hand: a cancelled task runs on until it has to wait for something."""
    story = Story(
        [OK, line(1), Wait(2.25), *[line(number) for number in range(5, 9)], Hang()],
        [OK, lines(5, 6), Wait(1), lines(7, 8, 9), Hang()],
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(5)
    assert story.ids() == [1, 5, 6, 7, 8, 9]


async def test_statuses_carry_the_version_of_the_connection_that_brought_them(looptime) -> None:
    story = Story([OK, line(1), Wait(2.2), line(2), Hang()], [OK, lines(2, 3), Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(5)
    versions = [(status.id, entry.version) for entry in story.entries() for status in entry.statuses]
    one, other = (PredicateSet.of({"track": [track]}).version for track in "ab")
    assert versions == [("1", one), ("2", other), ("3", other)]


async def test_an_old_connection_that_falls_quiet_is_let_go(looptime) -> None:
    story = Story([OK, line(1), Wait(2.25), line(2), Hang()], [OK, line(9), Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(10)
    assert story.script.attempts[0].closed_at == 2.25 + 0.5
    assert story.ids() == [1, 2, 9], "the old one's rest first"


async def test_an_old_connection_that_never_meets_the_new_one_is_let_go(looptime) -> None:
    """Disjoint predicates under a flow: there is nothing to meet on."""
    story = Story([OK, *flow(100, 200, 0.2)], [OK, *flow(1, 60, 0.2)])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(8)
    assert story.script.attempts[0].closed_at == 2 + 5
    new = [number for number in story.ids() if number < 100]
    assert new == list(range(1, len(new) + 1))


async def test_a_new_connection_that_lags_behind_doubles_nothing(looptime) -> None:
    """The old one ran ahead and fell quiet; what it brought comes again on the new one, later."""
    old: list[Step] = [OK, line(1), Wait(2.1), lines(2, 3, 4), Hang()]
    story = Story(old, [OK, b"\r\n", Wait(5), lines(2, 3, 4, 5), Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(10)
    assert story.ids() == [1, 2, 3, 4, 5]


async def test_a_failing_candidate_leaves_the_old_connection_alone(looptime) -> None:
    story = Story([OK, *flow(1, 100)], *[[BadStatus(503)]] * 4)
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(60)
        assert story.subscription.is_live
        assert story.script.attempts[0].closed_at is None
        assert [attempt.at for attempt in story.script.attempts] == [0, 2, 12, 42]
    assert story.ids() == list(range(1, len(story.ids()) + 1))
    assert story.answers() == {0: ["accepted", "applied"], 1: ["accepted"]}
    assert len(story.events("connection.disconnected")) == 1, "said once, not at every attempt"


async def test_a_refused_candidate_waits_for_something_else_to_ask_for(looptime) -> None:
    """The old connection lives on; other predicates are tried as soon as they are due."""
    story = Story([OK, *flow(1, 100)], [BadStatus(406)], [OK, lines(*range(30, 60)), Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(30)
        assert story.subscription.is_live
        assert [attempt.at for attempt in story.script.attempts] == [0, 2]
        story.publish("c")
        await asyncio.sleep(5)
        assert [attempt.at for attempt in story.script.attempts] == [0, 2, 31]
    assert story.asked() == ["a", "b", "c"]
    (refused,) = story.events("connection.refused")
    assert refused.data["code"] == "406"
    assert refused.data["retry_in_s"] == 900
    assert story.answers() == {
        0: ["accepted", "applied"],
        1: ["accepted", "refused"],
        2: ["accepted", "applied"],
    }


async def test_what_was_in_force_goes_on_while_the_newest_is_refused(looptime) -> None:
    """The old connection may drop: its successor asks for what works, and the newest is tried again later."""
    story = Story(
        [OK, *flow(1, 40), Disconnected("reset")],
        [BadStatus(406)],
        [OK, *flow(41, 500)],
        [OK, lines(*range(62, 90)), Hang()],
        debounce=(20, 20),
        override=RESUMABLE,
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(45)
        assert [attempt.at for attempt in story.script.attempts] == [0, 20, 40]
        assert story.asked() == ["a", "b", "a"]
        assert story.subscription.is_live
        (refused,) = story.events("predicates.refused")
        a, b = (PredicateSet.of({"track": [word]}).version for word in "ab")
        assert (refused.data["predicates"], refused.data["in_force"]) == (b, a)
        assert (refused.data["reason"], refused.data["retry_in_s"]) == ("HTTP 406", 900)
        await asyncio.sleep(60)
    assert story.asked() == ["a", "b", "a", "b"]
    assert story.script.attempts[3].at == 60
    assert [event.data["predicates"] for event in story.events("connection.live")] == [a, a, b]
    assert story.answers() == {0: ["accepted", "applied"], 1: ["accepted", "refused"]}
    assert story.ids() == list(range(1, len(story.ids()) + 1))


async def test_where_one_connection_is_allowed_a_refused_change_is_taken_back(looptime) -> None:
    """And tried again with the next change only: each attempt costs the connection that lives."""
    override = {**RESUMABLE, "handover": {"strategy": "break"}}
    story = Story(
        [OK, *flow(1, 100)], [BadStatus(406)], [OK, line(4), Hang()], [OK, line(5), Hang()], override=override
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(600)
        assert story.subscription.is_live
        assert story.asked() == ["a", "b", "a"]
        assert story.answers() == {0: ["accepted", "applied"], 1: ["accepted", "refused"]}
        story.publish("c")
        await asyncio.sleep(10)
    assert story.asked() == ["a", "b", "a", "c"]
    assert story.script.most_open == 1
    assert story.answers()[2] == ["accepted", "applied"]


BREAK = {**RESUMABLE, "handover": {"strategy": "break"}}


@pytest.mark.parametrize("between", ["a", "c"])
async def test_what_was_refused_once_may_be_asked_for_again(between: str, looptime) -> None:
    """Access may have been granted since; each change is a new question."""
    connections = [[OK, line(1), Hang()], [BadStatus(403)], *[[OK, line(n), Hang()] for n in (2, 3, 4)]]
    story = Story(*connections, override=BREAK)
    async with story.running():
        for track in ("a", "b", between, "b"):
            story.publish(track)
            await asyncio.sleep(100)
    assert story.asked() == ["a", "b", "a", *(["c"] if between == "c" else []), "b"]
    assert story.answers()[3] == ["accepted", "applied"]


async def test_a_change_refused_for_a_stale_token_is_asked_for_with_a_fresh_one(looptime) -> None:
    """It was the token that was refused, and by the time that is told there is another."""

    class Renewed(NoCredentials):
        def fingerprint(self) -> object:
            return looptime >= 2  # the refusal comes later than that, of a request that was sent earlier

    story = Story(
        [OK, line(1), Hang()],
        [Wait(1), BadStatus(401)],
        [OK, line(2), Hang()],
        override=BREAK,
        debounce=(1.5, 1.5),
    )
    where = replace(TARGET, credentials=Renewed())
    inner = story.subscription.reader
    story.subscription.reader = lambda ask: replace(inner(ask), target=where)
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(100)
    assert story.asked() == ["a", "b", "b"]
    assert story.answers()[1] == ["accepted", "applied"]


async def test_where_all_is_refused_old_and_new_are_tried_in_turn(looptime) -> None:
    story = Story(
        [OK, line(1), Wait(10), Disconnected("x")],
        *[[BadStatus(403)]] * 40,
        override=RESUMABLE,
        debounce=(120, 600),
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(6000)
    assert story.asked()[:6] == ["a", "b", "a", "b", "a", "b"]
    assert len(story.asked()) < 30, "two in ten minutes"


async def test_a_change_that_comes_while_another_is_being_refused_is_asked_for_in_time(looptime) -> None:
    story = Story(
        [OK, *flow(1, 50)], [Wait(3), BadStatus(403)], [OK, lines(*range(6, 50)), Hang()], override=RESUMABLE
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(2)
        story.publish("c")
        await asyncio.sleep(20)
    assert [attempt.at for attempt in story.script.attempts] == [0, 2, 5]
    assert story.asked() == ["a", "b", "c"]


async def test_the_cursor_of_what_was_dropped_with_a_candidate_is_dropped_too(looptime) -> None:
    story = Story(
        [OK, lines(1, 2), Wait(2.5), line(3), Hang()],
        [OK, lines(4, 5), Wait(0.1), Disconnected("x")],
        [OK, b"\r\n", Wait(2), Disconnected("y")],
        [OK, lines(4, 5, 9), Hang()],
        override=RESUMABLE,
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(20)
    assert story.script.attempts[3].form["since_seq"] == "3"
    assert story.ids() == [1, 2, 3, 4, 5, 9]


async def test_a_refusal_shows_as_long_as_it_lasts(looptime) -> None:
    story = Story([OK, *flow(1, 500)], [BadStatus(403)], override=RESUMABLE)

    def is_refused() -> bool:
        shown = story.subscription.lifecycle.metrics.exposition().decode()
        return 'connector_stream_refused{stream="tech"} 1.0' in shown

    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        assert not is_refused()
        story.publish("b")
        await asyncio.sleep(10)
        assert is_refused()
        story.publish("a")
        await asyncio.sleep(10)
        assert not is_refused()


async def test_a_gap_is_told_from_the_last_byte_and_only_where_something_lived(looptime) -> None:
    stall = Stalled("stalled: silent for 90 s", 90)
    story = Story(
        [OK, line(1), Wait(90), stall],
        [OK, line(2), Wait(10), Disconnected("x")],
        [OK, Hang()],
        [OK, line(3), Hang()],
        override={**BREAK, "resume": None},
        debounce=(150, 150),
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(101)
        story.publish("b")
        await asyncio.sleep(300)
    gaps = [(gap.data["from"][14:19], gap.data["to"][14:19]) for gap in story.events("stream.gap")]
    assert gaps == [("00:00", "01:30"), ("01:40", "04:10")]


async def test_credentials_that_are_refused_are_not_asked_with_twice(looptime) -> None:
    """There is nothing that was in force to go back to."""
    story = Story([OK, line(1), Wait(40)], [BadStatus(401)], [Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(500)
    assert [attempt.at for attempt in story.script.attempts] == [0, 40]


async def test_a_refused_stream_is_tried_again_after_a_long_time(looptime) -> None:
    story = Story([BadStatus(403)], [BadStatus(403)], [OK, line(1), Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        assert story.subscription.trouble == "HTTP 403"
        await asyncio.sleep(2000)
    assert [attempt.at for attempt in story.script.attempts] == [0, 900, 1800]
    assert story.ids() == [1]


async def test_where_one_connection_is_allowed_the_old_one_goes_first(looptime) -> None:
    override = {**RESUMABLE, "handover": {"strategy": "break"}}
    story = Story(
        [OK, *flow(1, 100)], [OK, lines(4, 5), Wait(2), Disconnected("x")], [Hang()], override=override
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(2)
        assert story.script.most_open == 1
        assert [attempt.at for attempt in story.script.attempts] == [0, 2]
        await asyncio.sleep(5)
    assert story.script.most_open == 1
    assert story.asked()[:2] == ["a", "b"]
    assert story.script.attempts[1].form["since_seq"] == "3", "goes on after what was delivered"
    assert story.ids() == [1, 2, 3, 4, 5]
    assert not story.events("stream.gap"), "the upstream sends what was missed"
    assert story.answers() == {0: ["accepted", "applied"], 1: ["accepted", "applied"]}


async def test_the_slot_is_free_before_another_connection_is_opened(looptime) -> None:
    override = {**RESUMABLE, "handover": {"strategy": "break"}}
    story = Story([OK, line(1), Hang()], [OK, line(2), Hang()], override=override)
    story.script.closing_s = 3
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(10)
        old, new = story.script.attempts
        assert (old.closed_at, new.at) == (5, 5)
        assert story.script.most_open == 1


async def test_a_refused_stream_waits_for_the_debounce_too(looptime) -> None:
    story = Story([BadStatus(406)], [OK, line(1), Hang()], debounce=(20, 20))
    async with story.running():
        story.publish("a")
        await asyncio.sleep(5)
        story.publish("b")
        await asyncio.sleep(100)
    assert [attempt.at for attempt in story.script.attempts] == [0, 20]


async def test_a_change_after_a_refusal_waits_for_the_budget_in_peace(looptime) -> None:
    """The reader is woken once; nothing spins until it may ask."""
    override = {**LINES, "budget": {"attempts": 1, "window_s": 300}}
    story = Story([BadStatus(406)], [OK, line(1), Hang()], override=override)
    async with story.running():
        story.publish("a")
        await asyncio.sleep(5)
        story.publish("b")
        await asyncio.sleep(400)
    assert [attempt.at for attempt in story.script.attempts] == [0, 300]
    assert story.asked() == ["a", "b"]


async def test_the_life_of_a_connection_is_told(looptime) -> None:
    story = Story(
        [OK, line(1), Wait(40), Stalled("stalled: silent for 90 s")],
        [BadStatus(503, "busy")],
        [BadStatus(503, "busy")],
        [OK],
        [OK, line(2), Hang()],
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(100)
    told = [event.type.partition(".")[2] for event in story.events("connection.")]
    assert told == [
        *("connecting", "connected", "live", "stalled"),
        *("connecting", "disconnected", "connected", "disconnected", "live"),
    ]
    (gap,) = story.events("stream.gap")
    assert gap.data["reason"] == "stalled: silent for 90 s"
    assert gap.data["from"] == "1970-01-01T00:00:40.000Z"
    assert gap.data["to"] == "1970-01-01T00:01:20.250Z"


async def test_a_spent_budget_delays_a_restart_and_says_so(looptime) -> None:
    """Failures and restarts share it; it is written with the position."""
    override = {**LINES, "budget": {"attempts": 3, "window_s": 300}}
    story = Story(
        [OK, line(1), Wait(50), Disconnected("x")],
        [BadStatus(503)],
        [OK, line(2), Hang()],
        [OK, line(3), Hang()],
        override=override,
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(100)
        story.publish("b")
        await asyncio.sleep(300)
    assert [attempt.at for attempt in story.script.attempts] == [0, 50, 60, 300]
    (deferred,) = story.events("connection.deferred")
    assert deferred.data["until"] == "1970-01-01T00:05:00.000Z"
    attempts = [entry.attempts for entry in story.entries() if entry.attempts]
    assert attempts == [(0,), (0, 50), (0, 50, 60), (50, 60, 300)]


def event(number: int) -> bytes:
    return b'id: %d\ndata: {"id":%d}\n\n' % (number, number)


EVENTS = {
    **LINES,
    "framing": {"kind": "sse"},
    "messages": {"id": "/id"},
    "resume": {"header": "Last-Event-ID"},
}


async def test_an_id_without_data_moves_the_cursor_on(looptime) -> None:
    """Wherever it comes: while one connection lives, and on the new one while the old one is drained."""
    story = Story(
        [OK, event(1), b"id: 5\n\n", Wait(2.1), event(6), b"id: 7\n\n", Hang()],
        [OK, b":hi\n\n", Wait(0.2), event(8), b"id: 9\n\n", Wait(5), Disconnected("x")],
        [Hang()],
        override=EVENTS,
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(10)
    assert [attempt.headers.get("Last-Event-ID") for attempt in story.script.attempts] == [None, "5", "9"]
    assert story.ids() == [1, 6, 8]
    assert [entry.cursor for entry in story.entries() if entry.cursor] == ["1", "5", "6", "7", "9"]


async def test_useless_bytes_are_told_anew_on_each_connection(looptime) -> None:
    long = b"x" * 1_000_001 + b"\r\n"
    story = Story([OK, long, long, Disconnected("x")], [OK, long, Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(5)
    assert len(story.events("bytes.discarded")) == 2


async def test_notices_and_useless_bytes_are_told(looptime) -> None:
    warning = b'{"warning":{"percent_full":60}}\r\n'
    long = b"x" * 1_000_001 + b"\r\n"
    story = Story([OK, line(1), warning, long, long, lines(2), b'{"del', Disconnected("cut")], [Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
    assert story.ids() == [1, 2]
    (notice,) = story.events("notice.")
    assert notice.data["notice"] == "warning"
    assert notice.data["message"] == {"percent_full": 60}
    (discarded,) = story.events("bytes.discarded")
    assert discarded.data["bytes"]["oversize"] >= 1_000_000


async def test_a_200_does_not_promote(looptime) -> None:
    story = Story([OK, *flow(1, 30)], [OK, Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(20)
        assert story.script.attempts[0].closed_at is None
        assert story.subscription.phase is Phase.PROVING
    assert story.answers()[1] == ["accepted"]


async def test_newer_predicates_replace_a_candidate_that_is_silent(looptime) -> None:
    story = Story([OK, *flow(1, 30)], [OK, Hang()], [OK, *flow(5, 30)])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(1.5)
        story.publish("c")
        await asyncio.sleep(6)
    assert story.asked() == ["a", "b", "c"]
    assert story.script.most_open == 2, "the silent one went first"
    assert story.answers() == {
        0: ["accepted", "applied"],
        1: ["accepted", "superseded"],
        2: ["accepted", "applied"],
    }


async def test_newer_predicates_wait_for_a_candidate_that_backs_off(looptime) -> None:
    """A change never bypasses a back-off delay."""
    story = Story([OK, *flow(1, 100)], [BadStatus(503)], [OK, *flow(13, 100)])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(4)
        story.publish("c")
        await asyncio.sleep(20)
    assert [(attempt.at, attempt.form["track"]) for attempt in story.script.attempts] == [
        (0, "a"),
        (2, "b"),
        (12, "c"),
    ]


async def test_a_failed_connection_is_replaced_at_once_with_the_newest(looptime) -> None:
    """A reconnect takes precedence over a pending restart, carries its predicates, and counts as it."""
    story = Story([OK, line(1), Wait(5), Disconnected("reset")], [OK, line(2), Hang()], debounce=(60, 60))
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(200)
    assert [(attempt.at, attempt.form["track"]) for attempt in story.script.attempts] == [
        (0, "a"),
        (5.25, "b"),
    ]
    assert story.answers()[1] == ["accepted", "applied"]
    assert story.events("predicates.applied")[1].data["without_connection_s"] == 0.25


async def test_a_candidate_takes_over_from_an_active_connection_that_dies(looptime) -> None:
    story = Story([OK, line(1), Wait(3), Disconnected("reset")], [Wait(2), OK, line(2), Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(10)
    assert len(story.script.attempts) == 2, "the old reader does not come back"
    assert story.ids() == [1, 2]
    assert story.answers()[1] == ["accepted", "applied"]
    assert story.events("predicates.applied")[1].data["without_connection_s"] == 1


async def test_a_change_that_is_taken_back_restarts_nothing(looptime) -> None:
    story = Story([OK, line(1), Hang()], debounce=(60, 60))
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("a", "b")
        await asyncio.sleep(1)
        story.publish("a")
        story.publish("a", key="tech/other")
        await asyncio.sleep(200)
    assert len(story.script.attempts) == 1
    assert story.answers() == {
        0: ["accepted", "applied"],
        1: ["accepted", "superseded"],
        2: ["unchanged"],
        3: ["unchanged"],
    }


async def test_a_change_taken_back_during_the_overlap_stops_the_candidate(looptime) -> None:
    story = Story([OK, *flow(1, 100)], [OK, Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(2)
        story.publish("a")
        await asyncio.sleep(5)
        assert story.subscription.phase is Phase.STEADY
        assert story.script.attempts[1].closed_at == 3
    assert story.ids() == list(range(1, len(story.ids()) + 1))


@pytest.mark.parametrize("then", ["lost", "emptied"])
async def test_a_cursor_that_lags_behind_doubles_nothing_however_late_it_is_resumed(then, looptime) -> None:
    """The two never met, so the new one's cursor counts, which is older than what the old one delivered."""
    old = [OK, line(1), Wait(2.1), lines(2, 3, 4), Hang()]
    new = [OK, b"\r\n", Wait(0.3), line(2), Wait(5), Disconnected("reset") if then == "lost" else Hang()]
    late = [[BadStatus(429)], [BadStatus(429)]] if then == "lost" else []
    story = Story(old, new, *late, [OK, lines(3, 4, 5), Hang()], override=RESUMABLE)
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        if then == "emptied":
            await asyncio.sleep(3)
            story.publish()
            await asyncio.sleep(100)
            story.publish("b")
        await asyncio.sleep(300)
    assert story.script.attempts[-1].form["since_seq"] == "2"
    assert story.ids() == [1, 2, 3, 4, 5]


async def test_a_removal_alone_is_a_change_like_any_other(looptime) -> None:
    """Whether a publisher asks for less or goes: the rest is asked for when it is due, without a gap."""
    story = Story([OK, *flow(1, 600)], [OK, *flow(122, 600)], [OK, *flow(243, 600)], debounce=(120, 120))
    async with story.running():
        story.publish("a", "b", key="tech/x")
        story.publish("c", key="tech/y")
        await asyncio.sleep(10)
        story.publish("a", key="tech/x")
        await asyncio.sleep(120)
        story.publish(key="tech/y")
        await asyncio.sleep(130)
    assert [(one.at, one.form["track"]) for one in story.script.attempts] == [
        *[(0, "a,b,c"), (120, "a,c"), (240, "a")]
    ]
    assert story.ids() == list(range(1, len(story.ids()) + 1))
    assert all(told == ["accepted", "applied"] for told in story.answers().values())


async def test_the_last_predicate_removed_stops_the_stream_at_once(looptime) -> None:
    """And it may start again at once, but never twice within min_s."""
    story = Story([OK, *flow(1, 100)], [OK, *flow(1, 100)], [OK, line(1), Hang()], debounce=(10, 60))
    async with story.running():
        story.publish("a")
        await asyncio.sleep(4)
        story.publish()
        await asyncio.sleep(1)
        assert story.script.attempts[0].closed_at == 4
        assert story.subscription.is_live, "nothing is asked for, so nothing is missing"
        story.publish("b")
        await asyncio.sleep(30)
        story.publish()
        await asyncio.sleep(20)
        story.publish("c")
        await asyncio.sleep(1)
    assert [attempt.at for attempt in story.script.attempts] == [0, 10, 55]
    assert all(told == ["accepted", "applied"] for told in story.answers().values())


@pytest.mark.parametrize("override", [LINES, RESUMABLE], ids=["not resumable", "resumable"])
async def test_a_candidate_lost_during_the_drain_loses_and_doubles_nothing(override, looptime) -> None:
    """What it had brought is delivered, or comes again where the upstream can resume."""
    candidate = [OK, lines(50, 51), Disconnected("reset")]
    again = [OK, lines(50, 51, 52), Hang()] if override is RESUMABLE else [OK, line(52), Hang()]
    story = Story([OK, *flow(1, 20, 0.4)], candidate, again, override=override)
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(8)
    assert sorted(set(story.ids())) == sorted(story.ids())
    assert {50, 51, 52} <= set(story.ids())
    assert story.answers()[1] == ["accepted", "applied"]


@pytest.mark.parametrize("end", ["stop", "loss of the old connection"])
async def test_what_a_candidate_brought_before_it_was_lost_goes_out_whatever_follows(end, looptime) -> None:
    old = [OK, *flow(1, 6, 0.4), Disconnected("reset") if end != "stop" else Hang()]
    story = Story(old, [OK, lines(50, 51), Disconnected("reset")], [Wait(100)])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(8)
    assert sorted(story.ids()) == [*range(1, 7), 50, 51]


async def test_positions_follow_the_old_connection_until_the_switch(looptime) -> None:
    """So a crash in between resumes as if there had been no overlap; also one in the middle of a chunk."""
    old = [OK, *flow(1, 6, 0.4), lines(7, 8), Hang()]
    story = Story(old, [OK, lines(8, 9), Hang()], override=RESUMABLE, debounce=(2.1, 2.1))
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(5)
    assert story.script.attempts[1].form["since_seq"] == "6", "resumes after what was delivered"
    assert [entry.cursor for entry in story.entries() if entry.statuses] == [
        "1",
        "2",
        "3",
        "4",
        "5",
        "6",
        "7",
        "9",
    ]
    assert story.ids() == list(range(1, 10))


async def test_a_candidate_that_takes_over_repeats_nothing_of_the_dead_connection(looptime) -> None:
    """It resumes from where the dead one was when it asked, and the dead one went on meanwhile."""
    story = Story(
        [OK, *flow(1, 4), Disconnected("reset")],
        [Wait(3), OK, lines(3, 4, 5), Hang()],
        override=RESUMABLE,
        debounce=(1.5, 1.5),
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(9)
    assert story.script.attempts[1].form["since_seq"] == "2"
    assert story.ids() == [1, 2, 3, 4, 5]


async def test_a_full_outbox_stops_reading_until_there_is_room(looptime) -> None:
    script: list[Step] = [OK, *[line(number) for number in range(1, 100)], Hang()]
    story = Story(script, capacity=3000)
    async with story.running():
        story.publish("a")
        await asyncio.sleep(5)
        stopped_at = len(story.ids())
        assert stopped_at < 10
        taken = story.entries()
        await asyncio.sleep(5)
        assert len(story.ids()) == stopped_at, "taken is not written yet"
        story.outbox.settle(taken)
        await asyncio.sleep(5)
        assert len(story.ids()) > stopped_at


async def test_stopping_in_the_middle_of_an_overlap_keeps_what_was_read(looptime) -> None:
    story = Story([OK, line(1), Wait(2.2), line(2), Hang()], [OK, line(7), Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(1.3)
        assert story.subscription.phase is Phase.DRAINING
    assert story.ids() == [1, 2, 7]


async def test_a_paused_reader_is_not_taken_for_a_silent_upstream(looptime) -> None:
    old = [
        OK,
        line(1),
        Wait(2.25),
        line(2),
        Wait(0.3),
        line(3),
        line(4),
        Hang(),
    ]  # 3 and 4 come when it reads
    story = Story(old, [OK, Wait(0.5), line(5), Hang()], capacity=9000)
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")  # Kafka is away: 2, at 2.25 s, fills the outbox; the candidate lives at 2.5 s
        await asyncio.sleep(3)
        story.outbox.settle(story.entries().copy())  # and back
        await asyncio.sleep(5)
        assert story.script.attempts[0].closed_at == pytest.approx(4 + 0.3 + 0.5), "its silence counts again"
    assert story.ids() == [1, 2, 3, 4, 5]


async def test_taken_back_after_a_candidate_was_lost_while_draining(looptime) -> None:
    story = Story(
        [OK, line(1), Wait(3.4), lines(2, 3), Hang()], [OK, Wait(1), lines(2, 3), Wait(0.1)], [Hang()]
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(2.2)
        story.publish("a")
        await asyncio.sleep(5)
    assert story.ids() == [1, 2, 3]


async def test_a_refused_candidate_costs_no_memory(looptime) -> None:
    flow = [step for n in range(2000) for step in (Wait(1), line(n))]
    story = Story([OK, *flow, Hang()], *[[BadStatus(406)]] * 40, capacity=1 << 30)
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(1990)
        window = story.subscription.outlet.window
        remembered = sum(map(len, window._marks)) // MARK_BYTES
    assert not window.is_watching, "the last attempt was minutes ago"
    assert remembered == 0


async def test_who_waits_for_an_answer_is_noted_until_he_has_it(looptime) -> None:
    """Who was told `unchanged` never waits, and whom a newer record of his supersedes waits no more."""
    story = Story([OK, line(1), Hang()], [OK, line(2), Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("a", "b")
        story.publish("b", key="tech/other")
        await asyncio.sleep(5)
    assert story.answers()[2] == ["unchanged"]
    notes = [note for entry in story.entries() for note in entry.notes]
    assert [(note.key, note.value is None) for note in notes] == [
        *[("waiting/tech/0", False), ("waiting/tech/0", True)],
        *[("waiting/tech/1", False), ("waiting/tech/1", True)],
    ]
