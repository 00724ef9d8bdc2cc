"""What is promised of a handover, whatever publishers and the upstream do: random stories in virtual time.

Everything is real but the network, the clock and the log. At every moment:

1. no more connections are open than the strategy allows, refused attempts counted;
2. with an overlap, the connection in force is closed only once another has proven to live, or when nothing is
   asked for any more, or after the upstream refused a second one;
3. once the upstream behaves, the newest predicates come into force;
4. each accepted change ends in exactly one of applied, superseded and refused, and each answer is true;
5. no status is delivered twice, each connection's statuses keep their order, and none is lost that was read,
   or that both predicates of a handover match; with a cursor, nor over faults and restarts;
6. the notes in the log are the changes that still wait.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any, ClassVar

import looptime
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from script import LINES, RESUMABLE, TARGET, manners
from story import outlet
from upstream_model import MAX_LAG_S, Status, Upstream, disconnect

from connector.control.answers import Change, noted_waiting
from connector.control.debounce import Debounce
from connector.control.demand import Demand, noted_in_force
from connector.delivery.dedupe import LINGER_S
from connector.delivery.outbox import Entry, Outbox
from connector.errors import Disconnected
from connector.lifecycle import Lifecycle
from connector.model import Event, PredicateSet
from connector.ops.metrics import Metrics
from connector.side import Side
from connector.stream.amender import Amender
from connector.stream.budget import Budget
from connector.stream.reader import Ask, Connecting, Reader
from connector.subscription import Subscription

ROOM = 1 << 30
MAX_PAUSE_S = 20.0
LAST = frozenset({"applied", "superseded", "refused"})
FINAL = LAST | {"unchanged", "rejected"}


def predicates(words: frozenset[str]) -> PredicateSet:
    return PredicateSet.of({"track": words})


class Log(Outbox):
    """The outbox with its writer, who writes at once, or stands still; and what is in the log by then.

    Attributes:
        heard: is told each event as it is put.
    """

    def __init__(self, heard: Callable[[Event], None]) -> None:
        super().__init__(ROOM)
        self.heard = heard
        self.stands_still_since: float | None = None
        self.by = 0  # the connection that brings what is put
        self._brought: dict[int, int] = {}
        self.delivered: list[tuple[int, int]] = []  # (status, connection)
        self.cursor: str | None = None
        self.marks = b""
        self.handled = 0
        self.notes: dict[str, bytes] = {}
        self.told: dict[int, list[str]] = defaultdict(list)

    def put(self, entry: Entry) -> None:
        super().put(entry)
        self._brought[id(entry)] = self.by
        for event in entry.events:
            self.heard(event)
        if self.stands_still_since is None:
            self.write()

    def write(self) -> None:
        entries = self.take(ROOM)
        for entry in entries:
            by = self._brought.pop(id(entry))
            self.delivered += [(int(status.id), by) for status in entry.statuses]
            self.cursor = entry.cursor or self.cursor
            self.marks += entry.marks
            self.handled = max(self.handled, entry.handled or 0)
            self._note(self.notes, entry)
            for event in entry.events:
                room, _, answer = event.type.partition(".")
                if room == "predicates":
                    self.told[event.data["offset"]].append(answer)
        self.settle(entries)

    def stand_still(self, now: float) -> None:
        self.stands_still_since, self.capacity_bytes = now, 0

    def go_on(self) -> None:
        self.stands_still_since, self.capacity_bytes = None, ROOM
        self.write()

    def noted(self) -> set[str]:
        """Return the notes of waiting changes, once all that was put is written."""
        notes = dict(self.notes)
        for entry in self._entries:
            self._note(notes, entry)
        return {key for key in notes if key.startswith("waiting/")}

    @staticmethod
    def _note(notes: dict[str, bytes], entry: Entry) -> None:
        for note in entry.notes:
            if note.value is None:
                notes.pop(note.key, None)
            else:
                notes[note.key] = note.value


class Watched(Subscription):
    """Tells the log which connection brings what is put."""

    numbers = itertools.count(1)
    connections: ClassVar[dict[Side, int]] = {}

    def _heard(self, side: Side, event: Any) -> None:
        if isinstance(event, Connecting):
            self.connections[side] = next(self.numbers)
        super()._heard(side, event)

    def _deliver(self, side: Side, *what: Any) -> None:
        self.outlet.outbox.by = self.connections[side]
        super()._deliver(side, *what)


class Handover(RuleBasedStateMachine):
    """One stream, its publishers, its upstream and its log."""

    override: ClassVar[Mapping[str, object]] = LINES
    strategy = "overlap"
    is_resumable = False
    keep_alive_s: float | None = 30.0
    closing_s = 0.0  # how long it takes to close a connection

    def __init__(self) -> None:
        super().__init__()
        # Ticks that are sums of powers of two: no deadline lies a rounding error after the time it is met at.
        self.loop = looptime.new_event_loop(noop_cycles=1, resolution=2**-20)
        self.dialect = manners({**self.override, "handover": {"strategy": self.strategy}})
        self.log = Log(self._heard)
        self.records: list[tuple[str, frozenset[str]]] = []
        self.versions: list[str] = []  # of the union, after each record
        self.lost_with_process: set[int] = set()
        self.has_fallen_back = self.is_stopped = False
        self.upstream = Upstream(
            grace_s=self.dialect.liveness.grace_s,
            keep_alive_s=self.keep_alive_s,
            is_wanted=lambda: not self.is_stopped and not self.subscription.demand.newest.is_empty,
            may_replace=lambda: self.strategy == "break" or self.loop.time() >= self.may_replace_at,
            has_cursor=lambda: self.log.cursor is not None,
            has_refused=self._refused,
            most_open=2 if self.strategy == "overlap" else 1,
            keeps_rules=self.strategy == "rules",
        )
        self.upstream.closing_s, self.upstream.refused = self.closing_s, frozenset("d")
        self.loop.run_until_complete(self._begin())

    # The process

    async def _begin(self) -> None:
        """Start as the supervisor does: from what the log says."""
        log, upstream, budget, clock = self.log, self.upstream, Budget(), self.loop.time
        target = replace(TARGET, liveness=self.dialect.liveness)
        common = {
            "connect": upstream,
            "target": target,
            "dialect": self.dialect,
        }

        def reader(ask: Callable[[], Ask]) -> Reader:
            return Reader(**common, ask=ask, budget=budget, wall=clock, rng=Random(1))

        self.has_fallen_back = self.is_stopped = False
        self.may_replace_at, self.must_be_told = math.inf, frozenset[int]()
        self.subscription = Watched(
            stream="tech",
            outlet=outlet(log, self.dialect, clock, marks=log.marks, cursor=log.cursor),
            reader=reader,
            amender=lambda ask: Amender(**common, ask=ask, rng=Random(1)),
            dialect=self.dialect,
            demand=Demand(stream="tech", debounce=Debounce(1, 3)),
            budget=budget,
            lifecycle=Lifecycle(stream="tech", metrics=Metrics(), resume=self.dialect.resume, wall=clock),
        )
        self.upstream.most_open = 2 if self.strategy == "overlap" else 1
        in_force = noted_in_force("tech", log.notes, self.dialect.request.predicates)
        self.subscription.load(self._union(log.handled), noted_waiting("tech", log.notes), in_force)
        self.running = asyncio.create_task(self.subscription.run())
        for offset in range(log.handled, len(self.records)):
            self._change(offset)

    def _union(self, count: int) -> PredicateSet:
        parts = dict(self.records[:count])
        return PredicateSet.union(map(predicates, parts.values()))

    def _change(self, offset: int) -> None:
        key = self.records[offset][0]
        self.subscription.change(self._union(offset + 1), Change(key, 0, offset))

    async def _stop(self) -> None:
        self.is_stopped = True
        self.subscription.stop()

    def _end(self) -> None:
        self.loop.run_until_complete(self._stop())
        self._pass(0.01)
        self._pass(self.upstream.closing_s)
        assert self.running.done()
        self.running.result()
        assert not any(one.is_open for one in self.upstream.connections)

    def _pass(self, seconds: float) -> None:
        """Let time pass; lags and pauses end in time."""
        end_at = self.loop.time() + seconds
        while (now := self.loop.time()) < end_at:
            until = [end_at]
            if self.log.stands_still_since is not None:
                until.append(self.log.stands_still_since + MAX_PAUSE_S)
            self.loop.run_until_complete(asyncio.sleep(max(0.001, min(until) - now)))
            now = self.loop.time()
            since = self.log.stands_still_since
            if since is not None and now >= since + MAX_PAUSE_S:
                self.log.go_on()

    # What is told must be true

    def _heard(self, event: Event) -> None:
        data, wrong = event.data, self.upstream.wrong
        if event.type == "handover.fell_back":
            self.has_fallen_back, self.upstream.most_open = True, 1
            self.may_replace_at = self.loop.time() + 60 - 1e-3  # the upstream asked for peace
        if event.type in {"predicates.applied", "predicates.refused"}:
            asked = data["predicates"]
            if asked not in self.versions[data["offset"] :]:
                wrong.append(f"{event.type} for {data['offset']} by predicates without it")
            refused = {predicates(words).version for words in self.upstream.refusals}
            if event.type == "predicates.refused" and asked not in refused:
                wrong.append(f"{data['offset']} told refused, but nobody did")
            is_empty = asked == PredicateSet().version
            lives = {predicates(words).version for words in self.upstream.brings()}
            if event.type == "predicates.applied" and not is_empty and asked not in lives:
                wrong.append(f"{data['offset']} told applied, but nothing lives that asks so")
        if event.type == "predicates.superseded" and (
            data["by"] <= data["offset"] or self.records[data["by"]][0] != data["key"]
        ):
            wrong.append(f"{data['offset']} superseded by {data['by']}")

    def _refused(self, words: frozenset[str]) -> None:
        """Take note who has to be told: whoever waited when just the newest was asked for."""
        if predicates(words) == self.subscription.demand.newest:
            self.must_be_told |= {change.offset for change in self.subscription.demand.waiting}

    @invariant()
    def refusals_are_told(self) -> None:
        is_closing = any(one.is_open and one.after is None for one in self.upstream.connections)
        if self.log.stands_still_since is None and not is_closing:
            waiting = {change.offset for change in self.subscription.demand.waiting}
            assert not waiting & self.must_be_told, waiting

    @invariant()
    def nothing_is_wrong(self) -> None:
        self._pass(0.001)
        if self.running.done():
            self.running.result()
        assert self.upstream.wrong == [], tuple(self.upstream.wrong)

    @invariant()
    def notes_are_what_waits(self) -> None:
        waiting = {f"waiting/tech/{change.offset}" for change in self.subscription.demand.waiting}
        assert self.log.noted() == waiting

    @invariant()
    def each_change_has_one_last_answer(self) -> None:
        for offset, told in self.log.told.items():
            first, *more = told
            assert first in {"accepted", "unchanged"}, (offset, told)
            assert len(more) <= (first == "accepted"), (offset, told)
            assert set(more) <= LAST, (offset, told)
        waits = {offset for offset, told in self.log.told.items() if told == ["accepted"]}
        if self.log.stands_still_since is None:
            assert waits == {change.offset for change in self.subscription.demand.waiting}

    @invariant()
    def nothing_is_doubled_or_out_of_order(self) -> None:
        numbers = Counter(number for number, _ in self.log.delivered)
        assert [one for one, count in numbers.items() if count > 1] == []
        by_connection: dict[int, int] = {}
        for number, by in self.log.delivered:
            assert number > by_connection.get(by, 0), f"{number} of connection {by}"
            by_connection[by] = number

    def nothing_is_lost(self) -> None:
        delivered = {number for number, _ in self.log.delivered}
        for status in self.upstream.statuses:
            if status.number not in delivered:
                must = self._must_resumed(status) if self.is_resumable else self._must(status)
                assert not must, f"{status.number} is lost: {must}"

    def _must(self, status: Status) -> str:
        number = status.number
        if number in self.lost_with_process:
            return ""
        for one in self.upstream.connections:
            if number not in one.offered:
                continue
            if number in one.taken:
                if all(newer.words & status.words for newer in one.taken[number]):
                    return f"read on connection {one.number}"
            elif one.fate == "handover" and not one.is_dead and one.successor is not None:
                assert one.successor.after is not None
                if number <= one.successor.after:
                    return f"published before the successor of connection {one.number} was there"
        return ""

    def _must_resumed(self, status: Status) -> str:
        since = min(status.open_at, default=None)
        concerned = [
            one
            for one in self.upstream.connections
            if one.after is not None
            and one.is_proven
            and (one.number in status.open_at or one.after >= status.number)
        ]
        if any(one.cursor is None and one.after >= status.number for one in concerned):
            return ""  # asked before the stream had a cursor, and accepted after the status
        if status.cursor_known and concerned and all(one.words & status.words for one in concerned):
            return f"all connections from {since} on match it"
        return ""

    # What may happen

    @initialize(
        words=st.frozensets(st.sampled_from("abc"), min_size=1, max_size=2),
        closing_s=st.sampled_from([0.0, 0.0, 0.2]),
    )
    def begin(self, words: frozenset[str], closing_s: float) -> None:
        """Start where most happens: with a connection."""
        self.upstream.closing_s = closing_s
        self.publish("x", words)
        self._pass(3)

    @rule(
        key=st.sampled_from("xyz"),
        words=st.frozensets(st.sampled_from("abc"), max_size=2) | st.just(frozenset("d")),
    )
    def publish(self, key: str, words: frozenset[str]) -> None:
        self.records.append((key, words))
        self.versions.append(self._union(len(self.records)).version)
        self.loop.run_until_complete(self._published())

    async def _published(self) -> None:
        self._change(len(self.records) - 1)

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.3, 0.6, 1, 2, 2, 5, 5, 12, 12, 35, 70, 200, 700]))
    def wait(self, seconds: float) -> None:
        self._pass(seconds)

    @rule(
        those=st.lists(
            st.frozensets(st.sampled_from("abcd"), min_size=1, max_size=3), min_size=1, max_size=3
        ),
        every_s=st.sampled_from([0, 0.2, 0.4]),
    )
    def statuses(self, those: list[frozenset[str]], every_s: float) -> None:
        for words in those:
            self.loop.run_until_complete(self._publish(words, every_s))

    @precondition(lambda self: self.upstream.healthy)
    @rule(
        key=st.sampled_from("xyz"),
        words=st.frozensets(st.sampled_from("abc"), min_size=1, max_size=2),
        those=st.lists(st.frozensets(st.sampled_from("abc"), min_size=1, max_size=2), min_size=1, max_size=4),
        every_s=st.sampled_from([0.15, 0.35, 0.45, 0.7]),
        answer=st.sampled_from(["accepted", "lagging", "lagging", "slow", "silent", "crowded"]),
        then_at=st.integers(0, 13),
        then=st.sampled_from(["nothing", "lag", "fill", "break", "flush", "restart", "stop", "back"]),
        which=st.integers(0, 1),
    )
    def change_under_a_flow(
        self,
        key: str,
        words: frozenset[str],
        those: list[frozenset[str]],
        every_s: float,
        answer: str,
        then_at: int,
        then: str,
        which: int,
    ) -> None:
        """Change predicates while statuses come; one thing may go wrong meanwhile."""
        former = dict(self.records).get(key, frozenset())
        self.publish(key, words)
        if self.strategy == "rules":
            badly = {"lagging": "reset", "slow": "late", "silent": "unanswered"}
            self.upstream.amendings.append(badly.get(answer, "taken"))
        elif not self.upstream.answers:
            self.upstream.answers.append(answer)
        for number in range(14):
            if number == then_at:
                self._meanwhile(then, which, key, former)
            self.loop.run_until_complete(self._publish(those[number % len(those)], every_s))

    @precondition(lambda self: self.upstream.healthy)
    @rule(
        key=st.sampled_from("xyz"),
        words=st.frozensets(st.sampled_from("abc"), min_size=1, max_size=2),
        those=st.lists(st.frozensets(st.sampled_from("abc"), min_size=1, max_size=2), min_size=1, max_size=4),
        every_s=st.sampled_from([0.15, 0.35, 0.45, 0.7]),
        answer=st.sampled_from(["accepted", "lagging", "lagging", "silent", "slow"]),
        then_at=st.integers(0, 13),
        then=st.sampled_from(["nothing", "lag", "fill", "break", "flush", "restart", "stop", "back"]),
        which=st.integers(0, 1),
    )
    def change_in_peace(self, answer: str, **how: Any) -> None:
        """Do the same while the upstream has no other grudge, and the change is due at once."""
        self.upstream.answers.clear()
        self.upstream.only_one = None
        self._pass(3)
        if self.upstream.healthy:
            self.change_under_a_flow(answer=answer, **how)

    def _meanwhile(self, then: str, which: int, key: str, former: frozenset[str]) -> None:
        match then:
            case "lag" if self.upstream.healthy:
                self.lag(which, True)
            case "break" | "flush" if self.upstream.healthy:
                self.break_off(which, Disconnected("reset"), then == "flush")
            case "fill" if self.log.stands_still_since is None and self.loop.time() > self.may_fill_at:
                self.fill()
            case "restart":
                self.restart(crash=False)
            case "stop":
                self.publish(key, frozenset())
            case "back":
                self.publish(key, former)

    async def _publish(self, words: frozenset[str], every_s: float) -> None:
        self.upstream.publish(words)
        await asyncio.sleep(every_s)

    @precondition(lambda self: self.upstream.healthy)
    @rule(which=st.integers(0, 1), talks=st.booleans())
    def lag(self, which: int, talks: bool) -> None:
        one = self.upstream.healthy[which % len(self.upstream.healthy)]
        one.lags, one.talks = True, talks

    @precondition(lambda self: any(one.backlog or one.lags for one in self.upstream.healthy))
    @rule(which=st.integers(0, 1), count=st.integers(1, 4))
    def catch_up(self, which: int, count: int) -> None:
        one = self.upstream.healthy[which % len(self.upstream.healthy)]
        one.catch_up(count)
        one.lags, one.talks = bool(one.backlog), True
        one.stirred.set()

    @precondition(lambda self: self.upstream.healthy)
    @rule(
        which=st.integers(0, 1),
        how=st.sampled_from([Disconnected("reset"), None, disconnect(7), disconnect(1)]),
        flush=st.booleans(),
    )
    def break_off(self, which: int, how: Exception | bytes | None, flush: bool) -> None:
        self.upstream.healthy[which % len(self.upstream.healthy)].end(how, flush=flush)

    @rule(
        answers=st.lists(
            st.sampled_from(
                ["unreachable", "503", "429", "crowded", "silent", "lagging", "dead", "closed", "slow"]
            ),
            min_size=1,
            max_size=3,
        )
    )
    def fail_next(self, answers: list[str]) -> None:
        self.upstream.answers.extend(answers[: 4 - len(self.upstream.answers)])

    @precondition(lambda self: self.strategy == "rules")
    @rule(answers=st.lists(st.sampled_from(["503", "reset", "late", "unanswered"]), min_size=1, max_size=3))
    def amend_badly(self, answers: list[str]) -> None:
        self.upstream.amendings.extend(answers[: 4 - len(self.upstream.amendings)])

    @rule(words=st.sampled_from([frozenset(), frozenset("d")]))
    def refuse(self, words: frozenset[str]) -> None:
        self.upstream.refused = words

    @rule(what=st.sampled_from([None, "refuse", "evict"]))
    def allow_one(self, what: str | None) -> None:
        self.upstream.only_one = what

    @precondition(lambda self: self.log.stands_still_since is None and self.loop.time() > self.may_fill_at)
    @rule()
    def fill(self) -> None:
        self.log.stand_still(self.loop.time())
        self.may_fill_at = self.loop.time() + MAX_PAUSE_S + LINGER_S + MAX_LAG_S

    may_fill_at = 0.0
    connections_before = 0

    @precondition(lambda self: self.log.stands_still_since is not None)
    @rule()
    def make_room(self) -> None:
        self.log.go_on()

    @precondition(lambda self: len(self.upstream.connections) > self.connections_before)
    @rule(crash=st.booleans())
    def restart(self, crash: bool) -> None:
        self.connections_before = len(self.upstream.connections)
        if crash and self.log.stands_still_since is None:
            self.log.stands_still_since = self.loop.time()
        self._end()
        if crash:
            gone = self.log.take(ROOM)
            self.lost_with_process |= {int(one.id) for entry in gone for one in entry.statuses}
            self.log.settle(gone)
        self.log.go_on()
        self.loop.run_until_complete(self._begin())

    # The end

    def teardown(self) -> None:
        try:
            self._finale()
        finally:
            left = self.loop.run_until_complete(self._leave())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()
        assert left == 0

    @staticmethod
    async def _leave() -> int:
        """Cancel whatever runs still; return how many tasks that were."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return len(tasks)

    def _finale(self) -> None:
        self.upstream.behave()
        self.log.go_on()
        if self.must_be_told and self.subscription._waiting_refused is not None:
            self.publish("finale", frozenset("f"))  # ends the wait after a refusal
            self._pass(90)  # the upstream may have asked for a minute of peace
            self._newest_is_in_force()
        self._pass(1200)
        self._check()
        refused = {predicates(words).version for words in self.upstream.refusals}
        may_wait = self.strategy == "break" or self.has_fallen_back
        if not (may_wait and self.subscription.demand.newest.version in refused):
            self._newest_is_in_force()
        self.publish("finale", frozenset("e"))
        self._pass(60)
        self._newest_is_in_force()
        self._check()
        self.nothing_is_lost()
        self._end()
        self._check()

    def _check(self) -> None:
        self.nothing_is_wrong()
        self.notes_are_what_waits()
        self.each_change_has_one_last_answer()
        self.nothing_is_doubled_or_out_of_order()

    def _newest_is_in_force(self) -> None:
        newest = self._union(len(self.records))
        assert self.subscription.demand.newest == newest
        assert self.subscription.demand.waiting == ()
        assert set(self.log.told) == set(range(len(self.records)))
        assert all(told[-1] in FINAL for told in self.log.told.values())
        asked = [predicates(one.words) for one in self.upstream.open]
        assert asked == ([] if newest.is_empty else [newest])
        assert self.subscription.is_live


class Overlap(Handover):
    """The new connection lives before the old one goes."""


class OverlapResumed(Handover):
    override: ClassVar[Mapping[str, object]] = RESUMABLE
    is_resumable = True


class OverlapGrace(Handover):
    """The upstream is silent until something matches: time is the proof."""

    override: ClassVar[Mapping[str, object]] = {
        **LINES,
        "liveness": {"grace_s": 5, "stall_timeout_s": 86_400},
    }
    keep_alive_s = None


class Break(Handover):
    strategy = "break"


class BreakResumed(Handover):
    strategy = "break"
    override: ClassVar[Mapping[str, object]] = RESUMABLE
    is_resumable = True


class Rules(Handover):
    """The upstream keeps the predicates as rules, which are changed beside the open connection."""

    strategy = "rules"
    override: ClassVar[Mapping[str, object]] = {
        **LINES,
        "request": {
            "parameters": {"delimited": None},
            "predicates": {"follow": None, "locations": None, "track": {"max_values": 9}},
        },
        "rules": {"predicate": "track"},
    }


MANY = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)

TestOverlap = Overlap.TestCase
TestOverlapResumed = OverlapResumed.TestCase
TestOverlapGrace = OverlapGrace.TestCase
TestBreak = Break.TestCase
TestBreakResumed = BreakResumed.TestCase
TestRules = Rules.TestCase

for _case in (TestOverlap, TestOverlapResumed, TestOverlapGrace, TestBreak, TestBreakResumed, TestRules):
    _case.settings = MANY
del _case  # or it would be collected once more
