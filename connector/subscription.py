"""One stream's life: predicates come in, connections follow, statuses go out.

Everything is decided on the event loop, synchronously; what the phases allow stands in `stream.handover`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from connector.control.answers import Change
from connector.control.demand import Demand, Verdict
from connector.desk import Desk
from connector.lifecycle import Lifecycle
from connector.model import Note, PredicateSet, Status, StreamId
from connector.outlet import HEARD_EVERY_S, Outlet
from connector.side import Readers, Resumed, Side, stop
from connector.stream.amender import Amended, Amender
from connector.stream.budget import Budget
from connector.stream.dialect import Dialect
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

_ASKING = frozenset({Phase.CONNECTING, Phase.OVERLAP, Phase.AMENDING})
_DUE = {"overlap": Signal.DUE, "break": Signal.DUE_ALONE, "rules": Signal.DUE_RULES}

HELD_BYTES = 8 << 20
"""What a candidate may send while the old connection is drained; more ends the draining."""


@dataclass(slots=True, kw_only=True)
class Subscription:
    """A stream from its lease to the end of it.

    Attributes:
        stream: its name.
        outlet: takes what goes out, under the ownership of the stream's home.
        reader: makes a reader from what it shall ask for.
        amender: makes what changes the upstream's rules, where it keeps the predicates as such.
        dialect: the upstream's manners: how a restart goes, and what proves that a connection lives.
        demand: what its publishers ask for.
        budget: counts this stream's attempts; the readers share it.
        lifecycle: tells what happens to the connections.
    """

    stream: StreamId
    outlet: Outlet
    reader: Callable[[Callable[[], Ask]], Reader]
    amender: Callable[[Callable[[], Ask]], Amender]
    dialect: Dialect
    demand: Demand
    budget: Budget
    lifecycle: Lifecycle
    phase: Phase = field(default=Phase.IDLE, init=False)
    _active: Side | None = field(default=None, init=False)
    _candidate: Side | None = field(default=None, init=False)
    _amending: Side | None = field(default=None, init=False)
    _overlap: Overlap = field(default_factory=Overlap, init=False)
    _suppressed_before: int = field(default=0, init=False)  # the candidate was started
    _due: Signal = field(init=False)  # what a change that is due means for a steady connection
    _desk: Desk = field(init=False)
    _wake: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _readers: Readers = field(init=False)
    _now: Callable[[], float] = field(init=False)  # kept: until Python 3.12 it costs a system call to ask for

    def __post_init__(self) -> None:
        self._now = asyncio.get_running_loop().time
        self._due = _DUE[self.dialect.handover.strategy]
        patience_s = self.dialect.liveness.patience_s
        self._readers = Readers(self.stream, self.outlet.outbox, patience_s, self._heard)
        self._desk = Desk(self.demand, self.outlet, self.lifecycle)

    @property
    def is_live(self) -> bool:
        """Whether statuses arrive, or nothing is asked for."""
        return self.phase is Phase.IDLE or (self._active is not None and self._active.live)

    @property
    def trouble(self) -> str | None:
        """Why no connection lives, if known."""
        return None if self._active is None else self._active.trouble

    def load(self, target: PredicateSet, waiting: Sequence[Change], in_force: PredicateSet | None) -> None:
        """Start from the control topic's content, as it was when the lease began; see `Demand.load`."""
        if self.outlet.unread_since is not None and not target.is_empty:
            self.lifecycle.restarted(self._now(), self.outlet.unread_since)
        self._desk.load(target, waiting, in_force)
        self._wake.set()

    def change(self, target: PredicateSet, change: Change, note: Note | None = None) -> None:
        """Take a changed union, and answer its publisher; *note* goes with the answer."""
        coming, idle = self._coming, self.phase is Phase.IDLE
        match self._desk.change(target, change, note, coming, self._now(), idle=idle):
            case Verdict.EMPTIED:
                self._signal(Signal.EMPTIED)
                self._desk.emptied()
            case Verdict.CANCELLED:
                assert coming is not None
                self._signal(Signal.CANCELLED)
                self._desk.cancelled(coming)
            case Verdict.PENDING | Verdict.UNCHANGED:
                self._wake.set()

    async def run(self) -> None:
        """Keep deadlines until cancelled or stopped."""
        async with self._readers.tasks:
            while self.phase is not Phase.CLOSED:
                self._wake.clear()
                self._meet_deadlines()
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(self._next_deadline()):
                        await self._wake.wait()

    def stop(self) -> None:
        """Stop reading; everything read so far is in the outbox then."""
        self._signal(Signal.STOP)
        self.outlet.note_heard()
        self._wake.set()

    # Deadlines

    def _due_at(self) -> float | None:
        return self.demand.debounce.deadline(idle=self.phase is Phase.IDLE)

    def _next_deadline(self) -> float | None:
        grace_s = self.dialect.liveness.grace_s
        deadlines = [self._drained_at(), *(one.proven_at(grace_s) for one in self._sides)]
        if self.phase in MAY_RESTART or self._waiting_refused is not None:
            deadlines.append(self._due_at())
        return min((at for at in deadlines if at is not None), default=None)

    def _drained_at(self) -> float | None:
        active, handover = self._active, self.dialect.handover
        if self.phase is not Phase.DRAINING or active is None or active.is_paused:
            return None
        return self._overlap.drained_at(handover.drain_quiet_s, handover.drain_max_s)

    def _meet_deadlines(self) -> None:
        now = self._now()
        for side in self._sides:
            if (proven_at := side.proven_at(self.dialect.liveness.grace_s)) is not None and now >= proven_at:
                self._proven(side)
        if (drained_at := self._drained_at()) is not None and now >= drained_at:
            self._signal(Signal.DRAINED)
        if (due_at := self._due_at()) is None or now < due_at:
            return
        if self.phase is Phase.STEADY:
            self._signal(self._due)
        elif self.phase in MAY_RESTART:
            self._signal(Signal.DUE)
        elif (refused := self._waiting_refused) is not None:
            refused.wake()

    @property
    def _sides(self) -> list[Side]:
        return [side for side in (self._active, self._candidate, self._amending) if side is not None]

    @property
    def _waiting_refused(self) -> Side | None:
        """The side that the upstream refused, and that waits for something else to ask for."""
        newest = self._sides[-1] if self.phase in _ASKING else None
        return newest if newest is not None and newest.is_refused else None

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
                self._active = self._start(self.reader)
            case Action.START_CANDIDATE:
                self._overlap = Overlap()
                self._suppressed_before = self.outlet.window.suppressed
                self._candidate = self._start(self.reader)
            case Action.STOP_CANDIDATE:
                self._let_go(self._candidate)
                self._candidate = None
            case Action.RELEASE:
                self._release()
            case Action.PROMOTE:
                self._let_go(self._active)
                self._active, self._candidate = self._candidate, None
            case Action.REPLACE:
                self._let_go(self._active)
                if self.is_live:
                    self.lifecycle.dark(self._now(), "one connection allowed: closed for changed predicates")
                self._active = self._start(self.reader)
            case Action.START_AMENDING:
                self._amending = self._start(self.amender)
            case Action.STOP_AMENDING:
                self._let_go(self._amending)
                self._amending = None
            case Action.STOP_ALL:
                for side in self._sides:
                    self._let_go(side)
                self._active = self._candidate = self._amending = None
                self.lifecycle.forget_dark()

    def _let_go(self, side: Side | None) -> None:
        if side is not None:
            self.outlet.tell(self.lifecycle.withheld(side))
            stop(side)

    def _tell_state(self) -> None:
        is_live = self._active is not None and self._active.live
        self.lifecycle.state(is_live=is_live, is_refused=any(side.is_refused for side in self._sides))
        if is_live and self.phase is Phase.STEADY:
            self.outlet.window.settle(self._now())

    def _start(self, make: Callable[[Callable[[], Ask]], Reader | Amender]) -> Side:
        return self._readers.start(lambda side: make(lambda: self._ask(side)))

    def _ask(self, side: Side) -> Ask:
        """Say what the next connection of *side* asks for.

        Where what was in force goes on, the newest is tried again if that costs no connection that lives.
        """
        self.outlet.window.watch()
        must_live = side is self._active
        return self._desk.ask(
            side, self._now(), must_live=must_live, may_retry=self._due is not Signal.DUE_ALONE
        )

    # What readers bring

    def _heard(self, side: Side, event: ReaderEvent | Amended | Resumed) -> None:
        is_candidate = side is self._candidate
        match event:
            case Deferred(wait_s):
                self.outlet.tell(self.lifecycle.deferred(side, wait_s))
            case Connecting():
                side.is_refused = False
                side.discarded.clear()
                self._tell_state()
                spent = self.budget.spent(self.lifecycle.wall()) or None
                self.outlet.tell(self.lifecycle.connecting(side), attempts=spent)
            case Connected():
                side.connected_at = self._now()
                self.outlet.tell(self.lifecycle.connected(side))
                self._signal(Signal.CANDIDATE_CONNECTED if is_candidate else Signal.ACTIVE_CONNECTED)
                self._wake.set()
            case Live():
                self._proven(side)
            case Received():
                self._received(side, event, is_candidate=is_candidate)
            case Amended():
                self._amended(side)
            case Lost() if side is self._amending:
                self._not_amended(side, event)
            case Lost():
                self._lost(side, event, is_candidate=is_candidate)
            case Resumed(paused_at) if side is self._active:
                self._overlap.paused(paused_at, self._now())
                self._wake.set()

    def _proven(self, side: Side) -> None:
        """Take note that a connection lives: by its first byte, or by the dialect's grace before that."""
        if side.live:
            return
        side.live = True
        self._tell_state()
        self.outlet.tell(self.lifecycle.live(side))
        if side is self._candidate:
            self._overlap.begin(self._now())
            self._signal(Signal.CANDIDATE_LIVE)
        else:
            self._desk.now_in_force(side, self._now(), {})

    def _received(self, side: Side, event: Received, *, is_candidate: bool) -> None:
        messages = event.messages
        self.outlet.tell(self.lifecycle.received(side, event))
        self.outlet.dead_letters(messages.malformed, self._now())
        if self.phase is not Phase.DRAINING:  # what is held back then is not in the log
            self.outlet.heard()
        statuses = messages.statuses
        cursor = messages.cursor_after(len(statuses))
        overlap = self._overlap
        if is_candidate:
            overlap.hold(statuses)
            side.held_cursor = side.held_cursor if cursor is None else cursor
            if overlap.held_bytes > HELD_BYTES:
                self._signal(Signal.DRAINED)
        elif self._candidate is None or not statuses:  # a keep-alive says nothing to an overlap
            self._deliver(side, statuses, cursor)
        elif (met_at := overlap.old(statuses)) is None:
            self._deliver(side, statuses, cursor)
            overlap.heard_at = self._now()
        else:
            self._deliver(side, statuses[:met_at], messages.cursor_after(met_at))
            self._signal(Signal.DRAINED)
        self.outlet.note_heard(HEARD_EVERY_S)

    def _amended(self, side: Side) -> None:
        """Take note that the connection there is brings what *side* asked for from now on."""
        active = self._active
        assert active is not None
        active.asked, active.carried, active.proof = side.asked, side.carried, side.proof
        self._signal(Signal.AMENDED)
        if active.live:  # else its first byte will tell
            self._desk.now_in_force(active, self._now(), {})

    def _not_amended(self, side: Side, event: Lost) -> None:
        self.outlet.tell(self.lifecycle.not_amended(side, event))
        side.trouble, side.is_refused = event.reason, event.outcome is Outcome.REFUSED
        if side.is_refused:
            self._desk.refused(side, event)
        self._tell_state()
        self._wake.set()

    def _lost(self, side: Side, event: Lost, *, is_candidate: bool) -> None:
        is_expected = event.outcome is Outcome.REPLACED and self._candidate is not None
        self.outlet.tell(self.lifecycle.lost(side, event, is_expected=is_expected))
        was_live, side.live, side.trouble = side.live, False, event.reason
        side.connected_at = None
        if is_forgotten := self.dialect.forgets(event.code) and side.asked.resumes:
            self.outlet.forget_cursor()
            side.wake()
        side.is_refused = event.outcome is Outcome.REFUSED and not is_forgotten
        if side.is_refused and self._desk.refused(side, event) and not is_candidate:
            side.wake()  # what was in force before is asked for again
        self._wake.set()
        if is_candidate:
            self._signal(Signal.CANDIDATE_LOST)
            side.held_cursor = None
            self.outlet.window.settle(self._now())
            if event.outcome is Outcome.CROWDED:
                self._fall_back(event)
            return
        if self.phase is Phase.OVERLAP and self._candidate is not None and self._candidate.is_refused:
            self._signal(Signal.CANCELLED)  # or its long wait would become the stream's
        self._signal(Signal.ACTIVE_LOST)
        if was_live and not self.is_live:
            self.lifecycle.dark(self._now(), event.reason, event.silent_s)

    def _fall_back(self, event: Lost) -> None:
        """Close the old connection first from now on: the upstream allows no second one."""
        self._due = Signal.DUE_ALONE
        self.outlet.tell(self.lifecycle.fell_back(event))
        self._signal(Signal.CANCELLED)
        self.demand.debounce.put()
        self.demand.debounce.postpone(self._now() + event.retry_in_s)

    def _release(self) -> None:
        """Deliver what the candidate sent so far: from here on its predicates are in force."""
        side, overlap = self._candidate, self._overlap
        assert side is not None
        if side.live:
            held = overlap.release()
            overlap_s = round(self._now() - overlap.live_at, 3)
            self._deliver(side, held, side.held_cursor)
            suppressed = self.outlet.window.suppressed - self._suppressed_before
            told = {"overlap_s": overlap_s, "duplicates_suppressed": suppressed}
            self._desk.now_in_force(side, self._now(), told)
            self.lifecycle.handed_over()
        elif side.held_cursor is None:  # lost again while the old one was drained, which goes on
            self._deliver(side, overlap.release(), None)
        else:
            overlap.discard()  # the next attempt resumes from the old one's cursor

    def _deliver(self, side: Side, statuses: Sequence[Status], cursor: str | None) -> None:
        self.outlet.deliver(statuses, cursor, side.asked.predicates.version, self._now())

    @property
    def _coming(self) -> Side | None:
        """The side whose predicates are in force, or are about to be; None where nobody can know."""
        if self.phase is Phase.AMENDING:
            return None
        coming = self._candidate if self.phase is Phase.DRAINING else self._active
        return None if coming is None or coming.is_refused else coming
