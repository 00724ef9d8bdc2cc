"""After outages and restarts, in virtual time: what is asked for, what goes out, and which gaps are told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from script import LINES, RESUMABLE, Hang, Step, Wait, line, lines
from story import OK, Story, flow

from connector.delivery.outbox import Entry
from connector.errors import BadStatus, Disconnected, Stalled
from connector.model import Status
from connector.outlet import HEARD_EVERY_S
from connector.stream.dialect import Dialect

pytestmark = pytest.mark.looptime

KEEP_ALIVE = b"\r\n"
BY_TIME = {**LINES, "resume": {"parameter": "since", "since": "rfc3339"}}
BY_BACKFILL = {**LINES, "resume": {"parameter": "backfill_minutes", "since": "minutes_ago"}}


def reaching(back_s: float, override=RESUMABLE):
    return {**override, "resume": {**override["resume"], "reaches_back_s": back_s}}


def written(at: float) -> str:
    """Return a moment as requests and events have it."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def gaps(story: Story) -> list[tuple[str, str]]:
    return [(gap.data["from"], gap.data["to"]) for gap in story.events("stream.gap")]


def resumed(story: Story, name: str) -> list[str | None]:
    """Return what each connection resumed from."""
    return [attempt.form.get(name) for attempt in story.script.attempts]


def committed(log: Sequence[Entry]) -> list[int]:
    return [int(status.id) for entry in log for status in entry.statuses]


# --- The journal --------------------------------------------------------------------------------


async def test_a_restart_from_an_older_cursor_repeats_nothing(looptime) -> None:
    """A connection that lags behind took the cursor back: what it had yet to bring comes once more."""
    before = Story(
        [OK, line(1), Wait(2.1), lines(2, 3, 4), Hang()],
        [OK, KEEP_ALIVE, Wait(0.3), line(2), Hang()],
        override=RESUMABLE,
    )
    async with before.running():
        before.publish("a")
        await asyncio.sleep(1)
        before.publish("b")
        await asyncio.sleep(1.5)
    assert [entry.cursor for entry in before.entries() if entry.cursor] == ["1", "4", "2"]
    after = Story([OK, lines(3, 4, 5), Hang()], override=RESUMABLE, log=before.entries())
    async with after.running():
        after.load("b")
        await asyncio.sleep(1)
    assert resumed(after, "since_seq") == ["2"]
    assert (before.ids(), after.ids()) == ([1, 2, 3, 4], [5])
    assert gaps(after) == []


async def test_wherever_a_crash_comes_each_status_is_committed_once(looptime) -> None:
    """Of what was put, the log has a beginning; the upstream sends all after the cursor that is in it."""
    before = Story(
        [OK, line(1), Wait(2.1), lines(2, 3), lines(4), Hang()],
        [OK, KEEP_ALIVE, Wait(0.3), lines(2, 3), Wait(1), lines(4, 5), Hang()],
        override=RESUMABLE,
    )
    async with before.running():
        before.publish("a")
        await asyncio.sleep(1)
        before.publish("b")
        await asyncio.sleep(5)
    entries = before.entries()
    for count in range(len(entries) + 1):
        log = entries[:count]
        after = Story(override=RESUMABLE, log=log)
        cursor = int(after.subscription.outlet.cursor or 0)
        after.script.connections = [[OK, lines(*range(cursor + 1, 8)), Hang()]]
        async with after.running():
            after.load("b")
            await asyncio.sleep(1)
        assert committed([*log, *after.entries()]) == list(range(1, 8)), f"{count} of {len(entries)}"
        assert gaps(after) == []


async def test_an_update_that_comes_after_a_restart_goes_out(looptime) -> None:
    before = Story([OK, lines(1, 2), Hang()], override=RESUMABLE)
    async with before.running():
        before.publish("a")
        await asyncio.sleep(1)
    update = b'{"id_str":"2","seq":2,"likes":7}\r\n'
    after = Story([OK, line(2), update, update, Hang()], override=RESUMABLE, log=before.entries())
    async with after.running():
        after.load("a")
        await asyncio.sleep(1)
    sent = [status for entry in after.entries() for status in entry.statuses]
    assert sent == [Status("2", update.strip())]


async def test_dead_letters_that_come_again_are_none(looptime) -> None:
    bad = b"no json\r\n"
    before = Story([OK, line(1), bad, Hang()], override=RESUMABLE)
    async with before.running():
        before.publish("a")
        await asyncio.sleep(1)
    after = Story([OK, bad, b"other\r\n", Hang()], override=RESUMABLE, log=before.entries())
    async with after.running():
        after.load("a")
        await asyncio.sleep(1)
    frames = [
        [one.value for entry in story.entries() for one in entry.dead_letters] for story in (before, after)
    ]
    assert frames == [[b"no json"], [b"other"]]


async def test_a_stream_that_cannot_resume_keeps_no_journal(looptime) -> None:
    story = Story([OK, *flow(1, 5), Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(10)
    assert story.ids() == [1, 2, 3, 4, 5]
    assert not any(entry.marks for entry in story.entries())


async def test_repetitions_are_looked_for_only_while_they_may_come(looptime) -> None:
    """Long after, an upstream that says the same twice means it."""
    story = Story(
        [OK, line(1), Wait(40), Disconnected("x")],
        [OK, lines(1, 2), Wait(59), lines(2, 3), Wait(59), lines(3, 4), Wait(61), lines(4, 5), Hang()],
        override=RESUMABLE,
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(300)
    assert story.ids() == [1, 2, 3, 4, 4, 5]
    assert resumed(story, "since_seq") == [None, "1"]
    assert story.subscription.outlet.window.suppressed == 3


# --- By time ------------------------------------------------------------------------------------


def outage(*after: Step) -> Story:
    """Return connections with an outage of 90 seconds between them, of which the last one brings *after*."""
    return [
        [OK, line(1), Wait(20), line(2), Wait(15), KEEP_ALIVE, Wait(5), Disconnected("x")],
        [Wait(20), BadStatus(429)],
        [Wait(10), Disconnected("y")],
        [OK, *after],
    ]


BEGAN_AT = 10_000.0
HEARD_AT = BEGAN_AT + 35
LOST_AT = BEGAN_AT + 40


async def test_an_upstream_that_resumes_by_time_is_asked_from_when_it_was_heard_last(looptime) -> None:
    await asyncio.sleep(BEGAN_AT)
    story = Story(*outage(lines(1, 2, 3), line(4), Hang()), override=BY_TIME)
    async with story.running():
        story.publish("a")
        await asyncio.sleep(200)
    assert [attempt.at - LOST_AT for attempt in story.script.attempts] == [-40, 0, 80, 90.25]
    assert resumed(story, "since") == [None, *[written(HEARD_AT - 10)] * 3]
    assert story.ids() == [1, 2, 3, 4], "what comes again by the margin is dropped"
    assert gaps(story) == []


@pytest.mark.parametrize("margin_s", [0, 30, 120])
async def test_clocks_may_differ_as_much_as_the_dialect_says(margin_s, looptime) -> None:
    await asyncio.sleep(BEGAN_AT)
    override = {**BY_TIME, "resume": {**BY_TIME["resume"], "margin_s": margin_s}}
    story = Story(*outage(line(3), Hang()), override=override)
    async with story.running():
        story.publish("a")
        await asyncio.sleep(200)
    assert resumed(story, "since")[-1] == written(HEARD_AT - margin_s)


async def test_an_upstream_with_a_backfill_is_asked_for_as_many_minutes_as_it_takes(looptime) -> None:
    """Rounded up, each attempt for more: 5 s and the margin, 85 s and it, 95.25 s and it."""
    await asyncio.sleep(BEGAN_AT)
    story = Story(*outage(lines(2, 3), Hang()), override=BY_BACKFILL)
    async with story.running():
        story.publish("a")
        await asyncio.sleep(200)
    assert resumed(story, "backfill_minutes") == [None, "1", "2", "2"]
    assert story.ids() == [1, 2, 3]


@pytest.mark.parametrize(
    ("override", "name", "asked"),
    [(BY_TIME, "since", written(HEARD_AT - 10)), (BY_BACKFILL, "backfill_minutes", "17")],
)
async def test_after_a_restart_it_is_asked_from_when_the_process_before_heard_it(
    override, name, asked, looptime
) -> None:
    await asyncio.sleep(BEGAN_AT)
    before = Story([OK, line(1), Wait(20), lines(2, 3), Wait(15), KEEP_ALIVE, Hang()], override=override)
    async with before.running():
        before.publish("a")
        await asyncio.sleep(50)
    await asyncio.sleep(HEARD_AT + 1000 - (BEGAN_AT + 50))
    after = Story([OK, lines(2, 3, 4), Hang()], override=override, log=before.entries())
    async with after.running():
        after.load("a")
        await asyncio.sleep(1)
    assert resumed(after, name) == [asked]
    assert (before.ids(), after.ids()) == ([1, 2, 3], [4])
    assert gaps(after) == []


async def test_wherever_a_crash_comes_it_is_asked_from_early_enough(looptime) -> None:
    """What is asked for begins before the first status that is not in the log."""
    override = {**BY_TIME, "resume": {**BY_TIME["resume"], "margin_s": 0}}
    await asyncio.sleep(BEGAN_AT)
    came_at = {number: BEGAN_AT + 7 * number for number in range(20)}
    before = Story([OK, *flow(0, 19, 7), Hang()], override=override)
    async with before.running():
        before.publish("a")
        await asyncio.sleep(150)
    entries = before.entries()
    for count in range(len(entries) + 1):
        log = entries[:count]
        first = len(committed(log))
        after = Story([OK, Hang()], override=override, log=log)
        async with after.running():
            after.load("a")
            await asyncio.sleep(1)
        (since,) = resumed(after, "since")
        assert since is None if first == 0 else since <= written(came_at[min(first, 19)])


async def test_while_an_overlap_drains_what_is_held_back_does_not_count_as_heard(looptime) -> None:
    """A crash then loses it: the next process has to ask for it."""
    await asyncio.sleep(BEGAN_AT)
    story = Story(
        [OK, line(1), Wait(2), *flow(100, 130, 0.4)], [Wait(1), OK, *flow(2, 30, 0.5)], override=BY_TIME
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(5)
        outlet = story.subscription.outlet
        assert story.subscription.phase.name == "DRAINING"
        assert outlet.heard_at == pytest.approx(BEGAN_AT + 2.8, abs=0.3), "when the new one came to life"
        await asyncio.sleep(5)
        assert outlet.heard_at == pytest.approx(BEGAN_AT + 11, abs=1)


# --- A cursor that the upstream has forgotten ---------------------------------------------------


async def test_a_forgotten_cursor_is_let_go_at_once_and_the_gap_is_told(looptime) -> None:
    story = Story(
        [OK, line(1), Wait(40), Disconnected("x")],
        [Wait(3), BadStatus(410)],
        [Wait(4), OK, line(9), Hang()],
        override=RESUMABLE,
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(60)
    assert [attempt.at for attempt in story.script.attempts] == [0, 40, 43]
    assert resumed(story, "since_seq") == [None, "1", None]
    assert gaps(story) == [(written(40), written(47))]
    assert story.answers() == {0: ["accepted", "applied"]}
    assert story.ids() == [1, 9]
    assert [entry.cursor for entry in story.entries() if entry.cursor is not None] == ["1", "", "9"]


async def test_a_forgotten_cursor_stays_forgotten_over_a_restart(looptime) -> None:
    before = Story([OK, line(1), Wait(40), Disconnected("x")], [BadStatus(410)], [Hang()], override=RESUMABLE)
    async with before.running():
        before.publish("a")
        await asyncio.sleep(50)
    after = Story([OK, line(9), Hang()], override=RESUMABLE, log=before.entries())
    async with after.running():
        after.load("a")
        await asyncio.sleep(10)
    assert resumed(after, "since_seq") == [None]
    assert gaps(after) == [(written(0), written(50))], "from when it was heard last"


async def test_a_cursor_may_be_forgotten_while_no_process_runs(looptime) -> None:
    before = Story([OK, line(1), Hang()], override=RESUMABLE)
    async with before.running():
        before.publish("a")
        await asyncio.sleep(5)
    after = Story([BadStatus(410)], [OK, line(9), Hang()], override=RESUMABLE, log=before.entries())
    async with after.running():
        after.load("a")
        await asyncio.sleep(10)
    assert resumed(after, "since_seq") == ["1", None]
    assert gaps(after) == [(written(0), written(5))]
    assert after.ids() == [9]


async def test_a_time_too_long_ago_is_forgotten_too(looptime) -> None:
    await asyncio.sleep(BEGAN_AT)
    story = Story(
        [OK, line(1), Wait(40), Disconnected("x")], [BadStatus(410)], [OK, line(9), Hang()], override=BY_TIME
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(60)
    assert resumed(story, "since") == [None, written(BEGAN_AT - 10), None]
    assert gaps(story) == [(written(BEGAN_AT + 40), written(BEGAN_AT + 40))]


async def test_a_candidate_whose_cursor_is_forgotten_asks_again_without_it(looptime) -> None:
    """The old connection lives: nothing is missing, and nobody is refused anything."""
    story = Story(
        [OK, *flow(1, 20)], [BadStatus(410)], [OK, lines(*range(3, 20)), Hang()], override=RESUMABLE
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(10)
    assert [attempt.at for attempt in story.script.attempts] == [0, 2, 2]
    assert resumed(story, "since_seq")[1:] == ["3", None]
    assert story.answers() == {0: ["accepted", "applied"], 1: ["accepted", "applied"]}
    assert gaps(story) == []
    assert story.ids() == list(range(1, 20))


async def test_the_same_answer_to_who_asked_without_a_cursor_is_a_refusal(looptime) -> None:
    story = Story([BadStatus(410)], [OK, line(1), Hang()], override=RESUMABLE)
    async with story.running():
        story.publish("a")
        await asyncio.sleep(60)
    assert [attempt.at for attempt in story.script.attempts] == [0]
    assert story.answers() == {0: ["accepted", "refused"]}


async def test_which_answers_mean_it_is_the_dialects(looptime) -> None:
    override = {**RESUMABLE, "resume": {**RESUMABLE["resume"], "forgotten": [416]}}
    story = Story(
        [OK, line(1), Wait(40), Disconnected("x")],
        [BadStatus(416)],
        [OK, line(2), Wait(40), Disconnected("x")],
        [BadStatus(410)],
        override=override,
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(200)
    assert resumed(story, "since_seq") == [None, "1", None, "2"]
    assert len(story.events("connection.refused")) == 2
    assert Dialect.model_validate(story.subscription.dialect).forgets("416")


# --- Gaps ---------------------------------------------------------------------------------------


async def test_a_restart_of_a_stream_that_cannot_resume_is_a_gap(looptime) -> None:
    """From when the process before heard it last to when the connection lives."""
    before = Story([OK, line(1), Wait(5), KEEP_ALIVE, Hang()])
    async with before.running():
        before.publish("a")
        await asyncio.sleep(20)
    await asyncio.sleep(100)
    after = Story([Wait(2), OK, Wait(1), line(2), Hang()], log=before.entries())
    async with after.running():
        after.load("a")
        await asyncio.sleep(10)
    assert gaps(after) == [(written(5), written(123))]
    (gap,) = after.events("stream.gap")
    assert "process before" in gap.data["reason"]


async def test_after_a_crash_the_gap_begins_early_enough_and_not_much_earlier(looptime) -> None:
    """Whatever part of what was put is in the log: what is not there came at the gap's beginning or later."""
    steps = [
        step for number in range(20) for step in (Wait(11), line(number) if number % 5 == 0 else KEEP_ALIVE)
    ]
    before = Story([OK, KEEP_ALIVE, *steps, Hang()])
    heard_at = [11.0 * (number + 1) for number in range(20)]
    async with before.running():
        before.publish("a")
        await asyncio.sleep(230)
        entries = list(before.entries())
    for count in range(len(entries) + 1):
        log = entries[:count]
        position = Story(log=log).restored.positions.get("tech")
        if position is None or position.heard_at is None:
            assert committed(log) == []
            continue
        after = Story([OK, line(99), Hang()], log=log)
        async with after.running():
            after.load("a")
            await asyncio.sleep(1)
        ((begin, _),) = gaps(after)
        unsaid = [5 * at for at in range(4)][len(committed(log)) :]
        assert all(begin <= written(heard_at[number]) for number in unsaid)
    assert begin >= written(max(heard_at) - HEARD_EVERY_S - 11), "with all in the log but the last note"


async def test_a_restart_where_nothing_was_wanted_is_no_gap(looptime) -> None:
    before = Story([OK, line(1), Hang()], debounce=(0, 0))
    async with before.running():
        before.publish("a")
        await asyncio.sleep(20)
        before.publish()
        await asyncio.sleep(20)
    after = Story([OK, line(2), Hang()], log=before.entries())
    async with after.running():
        after.load()
        await asyncio.sleep(50)
        after.publish("b")
        await asyncio.sleep(10)
    assert after.ids() == [2]
    assert gaps(after) == []


async def test_a_restart_is_no_gap_of_the_time_before_anybody_wanted_anything(looptime) -> None:
    """Nothing was asked for until shortly before the restart, and nothing was connected since."""
    before = Story([OK, line(1), Hang()], *[[BadStatus(503)]] * 9, debounce=(0, 0))
    async with before.running():
        before.publish("a")
        await asyncio.sleep(20)
        before.publish()
        await asyncio.sleep(1000)
        before.publish("b")
        await asyncio.sleep(20)
    after = Story([OK, line(2), Hang()], log=before.entries())
    async with after.running():
        after.load("b")
        await asyncio.sleep(10)
    assert gaps(after) == []


async def test_a_stream_that_was_never_heard_has_no_gap(looptime) -> None:
    before = Story([BadStatus(503)], [Hang()])
    async with before.running():
        before.publish("a")
        await asyncio.sleep(20)
    after = Story([OK, line(2), Hang()], log=before.entries())
    async with after.running():
        after.load("a")
        await asyncio.sleep(10)
    assert gaps(after) == []


@pytest.mark.parametrize("reaches_back_s", [60, 100])
async def test_an_outage_longer_than_the_upstream_reaches_back_is_a_gap(reaches_back_s, looptime) -> None:
    """Up to where it reaches: 80 seconds without a byte, and the attempt takes two."""
    story = Story(
        [OK, line(1), Wait(40), Stalled("stalled", 10)],
        [Wait(10), BadStatus(429)],
        [Wait(2), OK, line(9), Hang()],
        override=reaching(reaches_back_s),
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(200)
    assert story.script.attempts[-1].at == 110
    assert resumed(story, "since_seq")[-1] == "1", "what it still has is asked for"
    assert gaps(story) == ([(written(30), written(112 - 60))] if reaches_back_s == 60 else [])


@pytest.mark.parametrize("override", [RESUMABLE, BY_TIME], ids=["by cursor", "by time"])
@pytest.mark.parametrize("away_s", [30, 90])
async def test_a_restart_beyond_what_the_upstream_keeps_is_a_gap(override, away_s, looptime) -> None:
    await asyncio.sleep(BEGAN_AT)
    before = Story([OK, line(1), Hang()], override=reaching(60, override))
    async with before.running():
        before.publish("a")
        await asyncio.sleep(5)
    await asyncio.sleep(away_s - 5)
    after = Story([OK, line(2), Hang()], override=reaching(60, override), log=before.entries())
    async with after.running():
        after.load("a")
        await asyncio.sleep(5)
    assert gaps(after) == ([(written(BEGAN_AT), written(BEGAN_AT + 30))] if away_s == 90 else [])
    if override is BY_TIME:
        asked = BEGAN_AT - 10 if away_s == 30 else BEGAN_AT + 30
        assert resumed(after, "since") == [written(asked)], "no further than it reaches"


async def test_a_restart_by_overlap_is_no_gap(looptime) -> None:
    story = Story([OK, *flow(1, 20)], [Wait(3), OK, Wait(2), lines(*range(7, 30)), Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1)
        story.publish("b")
        await asyncio.sleep(15)
    assert story.answers()[1] == ["accepted", "applied"]
    assert gaps(story) == []


# --- What the upstream withholds ----------------------------------------------------------------


def withheld(story: Story) -> list[tuple[str, str, int]]:
    found = [gap.data for gap in story.events("stream.gap") if "count" in gap.data]
    return [(gap["from"], gap["to"], gap["count"]) for gap in found]


def limit(count: int) -> bytes:
    return b'{"limit":{"track":%d}}\r\n' % count


async def test_what_is_withheld_is_told_now_and_then_and_the_rest_at_the_end(looptime) -> None:
    await asyncio.sleep(BEGAN_AT)
    steps = [step for second in range(1, 26) for step in (Wait(1), limit(2 * second))]
    story = Story([OK, line(1), *steps, Hang()])
    async with story.running():
        story.publish("a")
        await asyncio.sleep(30)
    assert withheld(story) == [
        (written(BEGAN_AT), written(BEGAN_AT + 10), 20),
        (written(BEGAN_AT + 10), written(BEGAN_AT + 20), 20),
        (written(BEGAN_AT + 20), written(BEGAN_AT + 30), 10),
    ]


async def test_each_connection_counts_anew_and_the_loss_tells_the_rest(looptime) -> None:
    story = Story(
        [OK, line(1), Wait(4), limit(7), Wait(36), Disconnected("x")],
        [OK, line(2), Wait(4), limit(5), Hang()],
        override=RESUMABLE,
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(50)
    assert [count for _, _, count in withheld(story)] == [7, 5]


@pytest.mark.parametrize("how", ["overlap", "break", "emptied"])
async def test_a_connection_that_is_let_go_tells_the_rest_too(how, looptime) -> None:
    override = {**RESUMABLE, "handover": {"strategy": "break" if how == "break" else "overlap"}}
    story = Story(
        [OK, line(1), Wait(1), limit(7), Hang()], [OK, line(2), Hang()], override=override, debounce=(2, 2)
    )
    async with story.running():
        story.publish("a")
        await asyncio.sleep(1.5)
        story.publish(*[] if how == "emptied" else ["b"])
        await asyncio.sleep(10)
        assert [count for _, _, count in withheld(story)] == [7]
