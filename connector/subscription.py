"""One stream's life: predicates come in, connections follow, statuses go out.

Everything is decided on the event loop, synchronously; what the phases allow stands in `stream.handover`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

import structlog

from connector.control.answers import Answers, Change
from connector.control.debounce import Debounce
from connector.control.wanted import Wanted
from connector.lifecycle import Lifecycle
from connector.model import PredicateSet, Status, StreamId
from connector.outlet import Outlet
from connector.side import Resumed, Side, stop
from connector.stream.budget import Budget
from connector.stream.dialect import Handover
from connector.stream.handover import MAY_RESTART, Action, Phase, Signal, step
from connector.stream.overlap import Overlap
from connector.stream.policy import Outcome
from connector.stream.reader import (
    Ask,
    Connected,
    Connecting,
    Deferred,
    Live,
    Lost,
    Reader,
    ReaderEvent,
    Received,
)

log = structlog.get_logger("connector.subscription")

HELD_BYTES = 8 << 20
"""What a candidate may send while the old connection is drained; more ends the draining."""


@dataclass(slots=True, kw_only=True)
class Subscription:
    """A stream from its lease to the end of it.

    Attributes:
        stream: its name.
        outlet: takes what goes out, under the ownership of the stream's home.
        reader: makes a reader from what it shall ask for.
        handover: how a restart goes.
        budget: counts this stream's attempts; the readers share it.
        lifecycle: tells what happens to the connections.
    """

    stream: StreamId
    outlet: Outlet
    reader: Callable[[Callable[[], Ask]], Reader]
    handover: Handover
    debounce: Debounce
    budget: Budget
    lifecycle: Lifecycle
    phase: Phase = field(default=Phase.IDLE, init=False)
    _wanted: Wanted = field(default_factory=Wanted, init=False)
    _answers: Answers = field(init=False)
    _active: Side | None = field(default=None, init=False)
    _candidate: Side | None = field(default=None, init=False)
    _overlap: Overlap | None = field(default=None, init=False)
    _connections: int = field(default=0, init=False)
    _wake: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _readers: asyncio.TaskGroup = field(default_factory=asyncio.TaskGroup, init=False)

    def __post_init__(self) -> None:
        self._answers = Answers(self.stream)

    @property
    def is_live(self) -> bool:
        """Whether statuses arrive, or nothing is asked for."""
        return self.phase is Phase.IDLE or (self._active is not None and self._active.live)

    @property
    def trouble(self) -> str | None:
        """Why no connection lives, where that is known."""
        return None if self._active is None else self._active.trouble

    def load(self, target: PredicateSet, unapplied: Sequence[Change]) -> None:
        """Start from the control topic's content, as it was when the lease began.

        Args:
            target: what all contributions together ask for.
            unapplied: accepted records whose effect nobody has seen yet.
        """
        self._wanted.change(target)
        self._answers.load(unapplied)
        if not target.is_empty:
            self.debounce.put()
        elif unapplied:
            self._apply(unapplied, {}, target)
        self._wake.set()

    def change(self, target: PredicateSet, change: Change) -> None:
        """Take a changed union, and answer its publisher."""
        answers = self._answers
        if target == self._wanted.newest:
            # Only where nobody waits: an older record must still be answered after a restart.
            applied = None if answers.waiting else change.offset
            self.outlet.answer([answers.unchanged(change, target.version)], change.offset, applied)
            return
        self._wanted.change(target)
        events = answers.superseded(by=change)
        coming = self._coming
        if target.is_empty:
            events.append(answers.accepted(change, target.version, 0.0))
            self.outlet.answer(events, change.offset)
            self.debounce.clear()
            self._signal(Signal.EMPTIED)
            self._apply(answers.waiting, {}, target)
        elif coming is not None and target == coming.asked.predicates:
            # It takes back what was pending: there is nothing left to do, and whoever still waits
            # waits for the connection there is.
            self.debounce.clear()
            events.append(answers.unchanged(change, target.version))
            self.outlet.answer(events, change.offset)
            self._signal(Signal.CANCELLED)
            coming.carried = tuple(answers.waiting)
            if coming.live:
                self._apply(coming.carried, {}, target)
        else:
            self.debounce.put()
            due_in_s = max(0.0, (self._due_at() or 0.0) - self._now())
            events.append(answers.accepted(change, target.version, due_in_s))
            self.outlet.answer(events, change.offset)
            self._wake.set()

    async def run(self) -> None:
        """Keep deadlines until cancelled or stopped."""
        async with self._readers:
            while self.phase is not Phase.CLOSED:
                self._wake.clear()
                self._meet_deadlines()
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(self._next_deadline()):
                        await self._wake.wait()

    def stop(self) -> None:
        """Stop reading; everything read so far is in the outbox then."""
        self._signal(Signal.STOP)
        self._wake.set()

    # Deadlines

    def _due_at(self) -> float | None:
        return self.debounce.deadline(idle=self.phase is Phase.IDLE)

    def _next_deadline(self) -> float | None:
        deadlines = [self._drained_at(), None if self._overlap is None else self._overlap.forget_at]
        if self.phase in MAY_RESTART or self._waiting_refused is not None:
            deadlines.append(self._due_at())
        return min((at for at in deadlines if at is not None), default=None)

    def _drained_at(self) -> float | None:
        active, overlap = self._active, self._overlap
        if self.phase is not Phase.DRAINING or active is None or active.is_paused or overlap is None:
            return None
        return overlap.drained_at(self.handover.drain_quiet_s, self.handover.drain_max_s)

    def _meet_deadlines(self) -> None:
        now, overlap = self._now(), self._overlap
        if overlap is not None and overlap.forget_at is not None and now >= overlap.forget_at:
            self._overlap = None
        if (drained_at := self._drained_at()) is not None and now >= drained_at:
            self._switch_unmet()
        due_at = self._due_at()
        if due_at is None or now < due_at:
            return
        if self.phase is Phase.STEADY and self.handover.strategy == "break":
            self._signal(Signal.DUE_ALONE)
        elif self.phase in MAY_RESTART:
            self._signal(Signal.DUE)
        elif (refused := self._waiting_refused) is not None:
            refused.wake()

    @property
    def _waiting_refused(self) -> Side | None:
        """The side that the upstream refused, and that waits for something else to ask for."""
        waiting = {Phase.CONNECTING: self._active, Phase.OVERLAP: self._candidate}.get(self.phase)
        return waiting if waiting is not None and waiting.is_refused else None

    # The state machine's shell

    def _signal(self, signal: Signal) -> None:
        before = self.phase
        self.phase, actions = step(before, signal)
        for action in actions:
            self._act(action)
        self._tell_state()
        if self.phase is not before:
            log.debug("handover.moved", stream=self.stream, signal=signal.name, to=self.phase.name)
            self._wake.set()

    def _act(self, action: Action) -> None:
        match action:
            case Action.START_ACTIVE:
                self._active = self._start()
            case Action.START_CANDIDATE:
                self._overlap = Overlap() if self._overlap is None else self._overlap.after()
                self._candidate = self._start()
            case Action.STOP_CANDIDATE:
                stop(self._candidate)
                self._candidate = None
                if self._overlap is not None:  # what it delivered may still come over the other one
                    self._overlap.discard()
                    self._overlap.linger(self._now())
            case Action.RELEASE:
                self._release()
            case Action.PROMOTE:
                stop(self._active)
                self._active, self._candidate = self._candidate, None
                if self._overlap is not None and self._overlap.forget_at is None:
                    self._overlap = None
            case Action.REPLACE:
                old = self._active
                stop(old)
                if old is not None and old.live:
                    self.lifecycle.dark(self._now(), "one connection allowed: closed for changed predicates")
                self._active = self._start(after=old)
            case Action.STOP_ALL:
                stop(self._active)
                stop(self._candidate)
                self._active = self._candidate = self._overlap = self._wanted.in_force = None
                self.lifecycle.forget_dark()

    def _tell_state(self) -> None:
        sides = [side for side in (self._active, self._candidate) if side is not None]
        is_live = self._active is not None and self._active.live
        self.lifecycle.state(is_live=is_live, is_refused=any(side.is_refused for side in sides))

    def _start(self, after: Side | None = None) -> Side:
        self._connections += 1
        side = Side(self._connections, self.reader(lambda: self._ask(side)))
        pump = self._pump(side, None if after is None else after.task)
        side.task = self._readers.create_task(pump, name=f"{self.stream}#{side.number}")
        return side

    async def _pump(self, side: Side, former: asyncio.Task[None] | None) -> None:
        async with aclosing(side.events(self.outlet.outbox, former)) as events:
            async for event in events:
                self._heard(side, event)

    def _ask(self, side: Side) -> Ask:
        """Say what the next connection of *side* asks for: always the newest.

        Unless the upstream refused just that: what was in force goes on then, and the newest is due again,
        where another attempt does not cost a connection that lives.
        """
        side.proof, newest = side.reader.target.fingerprint(), self._wanted.newest
        asked = self._wanted.ask(side.proof) if side is self._active else newest
        side.asked = Ask(asked, self.outlet.cursor)
        side.carried = tuple(self._answers.waiting) if asked == newest else ()
        self.debounce.restarted(self._now())
        if asked != newest and self.handover.strategy == "overlap":
            self.debounce.put()
        if side is self._candidate and self._overlap is not None:
            self._overlap.asked()
        return side.asked

    # What readers bring

    def _heard(self, side: Side, event: ReaderEvent | Resumed) -> None:
        is_candidate = side is self._candidate
        match event:
            case Deferred(wait_s):
                self.outlet.tell(self.lifecycle.deferred(side, wait_s))
            case Connecting():
                side.is_refused = False
                side.discarded.clear()
                spent = self.budget.spent(self.lifecycle.wall()) or None
                self.outlet.tell(self.lifecycle.connecting(side), attempts=spent)
            case Connected():
                self.outlet.tell(self.lifecycle.connected(side))
                self._signal(Signal.CANDIDATE_CONNECTED if is_candidate else Signal.ACTIVE_CONNECTED)
            case Live():
                side.live = True
                self._tell_state()
                self.outlet.tell(self.lifecycle.live(side))
                if is_candidate and self._overlap is not None:
                    self._overlap.begin(self._now())
                    self._signal(Signal.CANDIDATE_LIVE)
                else:
                    self._in_force_now(side, {})
            case Received():
                self._received(side, event, is_candidate=is_candidate)
            case Lost():
                self._lost(side, event, is_candidate=is_candidate)
            case Resumed(paused_at) if side is self._active and self._overlap is not None:
                self._overlap.paused(paused_at, self._now())
                self._wake.set()

    def _received(self, side: Side, event: Received, *, is_candidate: bool) -> None:
        messages = event.messages
        self.outlet.tell(self.lifecycle.received(side, event))
        self.outlet.dead_letters(messages.malformed)
        cursor = messages.cursor_after(len(messages.statuses))
        if not messages.statuses:  # a keep-alive that may carry a cursor; it says nothing to an overlap
            if is_candidate:
                side.held_cursor = side.held_cursor if cursor is None else cursor
            else:
                self._deliver(side, (), cursor)
            return
        overlap = self._overlap
        if overlap is None:
            self._deliver(side, messages.statuses, cursor)
        elif is_candidate:
            overlap.hold(messages.statuses)
            side.held_cursor = cursor
            if overlap.held_bytes > HELD_BYTES:
                self._switch_unmet()
        elif self._candidate is None:  # after an overlap in which the two never met
            self._deliver(side, overlap.fresh(messages.statuses), cursor)
        else:
            fresh, met = overlap.old(messages.statuses)
            self._deliver(side, fresh, messages.cursor_after(len(fresh)) if met else cursor)
            overlap.heard_at = self._now()
            if met:
                self._signal(Signal.DRAINED)

    def _switch_unmet(self) -> None:
        """End the overlap although the two connections never met: the new one may lag behind."""
        assert self._overlap is not None
        self._overlap.linger(self._now())
        self._signal(Signal.DRAINED)

    def _lost(self, side: Side, event: Lost, *, is_candidate: bool) -> None:
        self.outlet.tell(self.lifecycle.lost(side, event))
        side.is_refused = event.outcome is Outcome.REFUSED
        was_live, side.live, side.trouble = side.live, False, event.reason
        if side.is_refused and self._wanted.refused(side.asked.predicates, side.proof) and not is_candidate:
            side.wake()  # what was in force before is asked for again
        self._wake.set()
        if is_candidate:
            self._signal(Signal.CANDIDATE_LOST)
            side.held_cursor = None
            if self._overlap is not None:
                self._overlap.lost()
            return
        if self.phase is Phase.OVERLAP and self._candidate is not None and self._candidate.is_refused:
            self._signal(Signal.CANCELLED)  # or its long wait would become the stream's
        if self._overlap is not None and self._candidate is not None:
            self._overlap.linger(self._now())  # the candidate may bring some of it again
        self._signal(Signal.ACTIVE_LOST)
        if was_live and not self.is_live:
            self.lifecycle.dark(self._now(), event.reason, event.silent_s)

    def _release(self) -> None:
        """Deliver what the candidate sent so far: from here on its predicates are in force."""
        side, overlap = self._candidate, self._overlap
        assert side is not None
        assert overlap is not None
        if side.live:
            held = overlap.release()
            overlap_s = round(self._now() - overlap.live_at, 3)
            self._in_force_now(side, {"overlap_s": overlap_s, "duplicates_suppressed": overlap.suppressed})
            self.lifecycle.handed_over(overlap.suppressed)
            self._deliver(side, held, side.held_cursor)
        elif side.held_cursor is None:  # lost again while the old one was drained, which goes on
            self._deliver(side, overlap.release(), None)
        else:
            overlap.discard()  # the next attempt resumes from the old one's cursor

    # What goes out

    def _in_force_now(self, side: Side, details: Mapping[str, object]) -> None:
        """Record that what *side* asked for is in force, and tell those who wait for it."""
        self._wanted.in_force = side.asked.predicates
        told, gap = self.lifecycle.in_force(self._now(), side, details)
        self.outlet.tell(gap)
        self._apply(side.carried, told, side.asked.predicates)

    def _apply(
        self, changes: Sequence[Change], details: Mapping[str, object], predicates: PredicateSet
    ) -> None:
        """Put the answers to *changes*: what they ask for is in force."""
        events, applied = self._answers.applied(changes, {"predicates": predicates.version, **details})
        self.outlet.in_force(events, predicates.version, applied)

    def _deliver(self, side: Side, statuses: Sequence[Status], cursor: str | None) -> None:
        self.outlet.deliver(statuses, cursor, side.asked.predicates.version)

    @property
    def _coming(self) -> Side | None:
        """The side whose predicates are in force, or are about to be."""
        return self._candidate if self.phase is Phase.DRAINING else self._active

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
