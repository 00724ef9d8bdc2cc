"""One stream's life: predicates come in, connections follow, statuses go out.

Everything here is decided on the event loop, synchronously; what the phases allow stands in
`stream.handover`. Reader tasks feed events in, the outbox takes entries out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial

import structlog

from connector.control.answers import Answers, Change
from connector.control.debounce import Debounce
from connector.delivery.outbox import Entry, Outbox
from connector.model import DeadLetter, Event, PredicateSet, Status, StreamId, Tenure
from connector.ops.metrics import Metrics
from connector.side import Side, stop
from connector.stream.dialect import Handover
from connector.stream.handover import MAY_RESTART, Action, Phase, Signal, step
from connector.stream.overlap import Overlap
from connector.stream.reader import Ask, Connected, Live, Lost, Reader, ReaderEvent, Received

log = structlog.get_logger("connector.subscription")

HELD_BYTES = 8 << 20
"""What a candidate may send while the old connection is drained; more ends the draining."""

LINGER_S = 60.0
"""How long ids of a closed connection are remembered when the two never met."""


@dataclass(slots=True, kw_only=True)
class Subscription:
    """A stream from its lease to the end of it.

    Attributes:
        stream: its name.
        tenure: the ownership of its home, under which it runs.
        reader: makes a reader from what it shall ask for.
        drain: when an old connection has nothing more to give.
        cursor: after which status the upstream shall resume, where it can.
    """

    stream: StreamId
    tenure: Tenure
    reader: Callable[[Callable[[], Ask]], Reader]
    drain: Handover
    debounce: Debounce
    outbox: Outbox
    metrics: Metrics
    cursor: str | None
    phase: Phase = field(default=Phase.IDLE, init=False)
    _target: PredicateSet = field(default_factory=PredicateSet, init=False)
    _answers: Answers = field(init=False)
    _entry: partial[Entry] = field(init=False)
    _active: Side | None = field(default=None, init=False)
    _candidate: Side | None = field(default=None, init=False)
    _overlap: Overlap | None = field(default=None, init=False)
    _overlap_since: float = field(default=0.0, init=False)
    _forget_at: float | None = field(default=None, init=False)  # when late ids stop mattering
    _old_heard_at: float = field(default=0.0, init=False)
    _dark_since: float | None = field(default=None, init=False)  # no live connection since then
    _connections: int = field(default=0, init=False)
    _last_offset: int | None = field(default=None, init=False)  # of the control records seen
    _wake: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _readers: asyncio.TaskGroup = field(default_factory=asyncio.TaskGroup, init=False)

    def __post_init__(self) -> None:
        self._answers = Answers(self.stream)
        self._entry = partial(Entry, tenure=self.tenure, stream=self.stream)

    @property
    def is_live(self) -> bool:
        """Whether statuses arrive, or nothing is asked for."""
        return self.phase is Phase.IDLE or (self._active is not None and self._active.live)

    def load(self, target: PredicateSet, unapplied: Sequence[Change]) -> None:
        """Start from the control topic's content, as it was when the lease began.

        Args:
            target: what all contributions together ask for.
            unapplied: accepted records whose effect nobody has seen yet.
        """
        self._target = target
        self._answers.waiting = list(unapplied)
        self._last_offset = max((one.offset for one in unapplied), default=None)
        if not target.is_empty:
            self.debounce.put()
        elif unapplied:
            self._apply(unapplied, {}, target)
        self._wake.set()

    def change(self, target: PredicateSet, change: Change) -> None:
        """Take a changed union, and answer its publisher."""
        answers = self._answers
        self._last_offset = change.offset
        if target == self._target:
            # Only where nobody waits: an older record must still be answered after a restart.
            applied = None if answers.waiting else change.offset
            events = [answers.unchanged(change, target.version)]
            self.outbox.put(self._entry(events=events, handled=change.offset + 1, applied=applied))
            return
        self._target = target
        events = answers.superseded(by=change)
        coming = self._coming
        if target.is_empty:
            events.append(answers.accepted(change, target.version, 0.0))
            self.outbox.put(self._entry(events=events, handled=change.offset + 1))
            self.debounce.clear()
            self._signal(Signal.EMPTIED)
            self._apply(answers.waiting, {}, target)
        elif coming is not None and target == coming.asked.predicates:
            # It takes back what was pending: there is nothing left to do, and whoever still waits
            # waits for the connection there is.
            self.debounce.clear()
            events.append(answers.unchanged(change, target.version))
            self.outbox.put(self._entry(events=events, handled=change.offset + 1))
            self._signal(Signal.CANCELLED)
            coming.carried = tuple(answers.waiting)
            if coming.live:
                self._apply(coming.carried, {}, target)
        else:
            self.debounce.put()
            due_in_s = max(0.0, (self._due_at() or 0.0) - self._now())
            events.append(answers.accepted(change, target.version, due_in_s))
            self.outbox.put(self._entry(events=events, handled=change.offset + 1))
            self._wake.set()

    async def run(self) -> None:
        """Keep deadlines until cancelled or stopped."""
        async with self._readers:
            while self.phase is not Phase.CLOSED:
                self._wake.clear()
                self._meet_deadlines()
                try:
                    async with asyncio.timeout_at(self._next_deadline()):
                        await self._wake.wait()
                except TimeoutError:
                    continue

    def stop(self) -> None:
        """Stop reading; everything read so far is in the outbox then."""
        self._signal(Signal.STOP)
        self._wake.set()

    # Deadlines

    def _due_at(self) -> float | None:
        return self.debounce.deadline(idle=self.phase is Phase.IDLE)

    def _next_deadline(self) -> float | None:
        deadlines = [self._forget_at]
        if self.phase in MAY_RESTART:
            deadlines.append(self._due_at())
        if (drained_at := self._drained_at()) is not None:
            deadlines.append(drained_at)
        return min((at for at in deadlines if at is not None), default=None)

    def _drained_at(self) -> float | None:
        if self.phase is not Phase.DRAINING or self._active is None or self._active.is_paused:
            return None
        quiet_at = self._old_heard_at + self.drain.drain_quiet_s
        return min(quiet_at, self._overlap_since + self.drain.drain_max_s)

    def _meet_deadlines(self) -> None:
        now = self._now()
        if self._forget_at is not None and now >= self._forget_at:
            self._overlap, self._forget_at = None, None
        if (drained_at := self._drained_at()) is not None and now >= drained_at:
            self._switch_unmet()
        due_at = self._due_at()
        if due_at is not None and now >= due_at and self.phase in MAY_RESTART:
            self._signal(Signal.DUE)

    # The state machine's shell

    def _signal(self, signal: Signal) -> None:
        before = self.phase
        self.phase, actions = step(before, signal)
        for action in actions:
            self._act(action)
        if self.phase is not before:
            self._tell_live()
            log.debug("handover.moved", stream=self.stream, signal=signal.name, to=self.phase.name)
            self._wake.set()

    def _act(self, action: Action) -> None:
        match action:
            case Action.START_ACTIVE:
                self._active = self._start()
            case Action.START_CANDIDATE:
                self._overlap = Overlap() if self._overlap is None else self._overlap.after()
                self._forget_at = None
                self._candidate = self._start()
            case Action.STOP_CANDIDATE:
                stop(self._candidate)
                self._candidate = None
                if self._overlap is not None:  # what it delivered may still come over the other one
                    self._overlap.discard()
                    self._forget_at = self._now() + LINGER_S
            case Action.RELEASE:
                self._release()
            case Action.PROMOTE:
                stop(self._active)
                self._active, self._candidate = self._candidate, None
                if self._forget_at is None:
                    self._overlap = None
            case Action.STOP_ALL:
                stop(self._active)
                stop(self._candidate)
                self._active = self._candidate = self._overlap = self._forget_at = None
                self._dark_since = None

    def _tell_live(self) -> None:
        self.metrics.live(self.stream, is_live=self._active is not None and self._active.live)

    def _start(self) -> Side:
        self._connections += 1
        side = Side(self._connections)
        reader = self.reader(lambda: self._ask(side))
        side.task = self._readers.create_task(self._pump(side, reader), name=f"{self.stream}#{side.number}")
        return side

    async def _pump(self, side: Side, reader: Reader) -> None:
        async with aclosing(reader.events()) as events:
            async for event in events:
                if side.stopped:  # a cancelled task runs on until it has to wait for something
                    return
                self._heard(side, event)
                if self.outbox.is_full:
                    await self._pause(side)

    async def _pause(self, side: Side) -> None:
        """Stop reading while the outbox is full: the upstream feels it."""
        side.is_paused, paused_at = True, self._now()
        await self.outbox.room()
        side.is_paused = False
        if side is self._active:  # what it wrote meanwhile is still to come, so the drain starts anew
            self._old_heard_at = self._now()
            self._overlap_since += self._now() - max(paused_at, self._overlap_since)
            self._wake.set()

    def _ask(self, side: Side) -> Ask:
        """Say what the next connection of *side* asks for: always the newest."""
        side.asked = Ask(self._target, self.cursor)
        side.carried = tuple(self._answers.waiting)
        self.debounce.restarted(self._now())
        if side is self._candidate and self._overlap is not None:
            self._overlap.asked()
        return side.asked

    # What readers bring

    def _heard(self, side: Side, event: ReaderEvent) -> None:
        is_candidate = side is self._candidate
        match event:
            case Connected():
                self._signal(Signal.CANDIDATE_CONNECTED if is_candidate else Signal.ACTIVE_CONNECTED)
            case Live():
                side.live = True
                self._tell_live()
                self.metrics.connected(self.stream)
                self.outbox.put(self._entry(events=[self._event("connection.live", side)]))
                if is_candidate:
                    self._overlap_since = self._old_heard_at = self._now()
                    self._signal(Signal.CANDIDATE_LIVE)
                else:
                    self._in_force_now(side, {})
            case Received():
                self._received(side, event, is_candidate=is_candidate)
            case Lost():
                self._lost(side, event, is_candidate=is_candidate)

    def _received(self, side: Side, event: Received, *, is_candidate: bool) -> None:
        messages = event.messages
        self.metrics.received(self.stream, event.wire_bytes, event.discarded)
        if messages.malformed:
            letters = [
                DeadLetter(bad.reason, bad.detail, self.stream, "upstream", None, bad.frame)
                for bad in messages.malformed
            ]
            self.outbox.put(self._entry(dead_letters=letters))
        if not messages.statuses:
            return
        cursor = messages.cursor_after(len(messages.statuses))
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
            self._old_heard_at = self._now()
            if met:
                self._signal(Signal.DRAINED)

    def _switch_unmet(self) -> None:
        """End the overlap although the two connections never met: the new one may lag behind."""
        self._forget_at = self._now() + LINGER_S
        self._signal(Signal.DRAINED)

    def _lost(self, side: Side, event: Lost, *, is_candidate: bool) -> None:
        self.metrics.lost(self.stream, event.cut_bytes)
        if side.live or event.reason != side.trouble:  # said once, not at every attempt
            data = {"reason": event.reason, "retry_in_s": round(event.retry_in_s, 3)}
            log.warning("connection.lost", stream=self.stream, connection=side.number, **data)
            self.outbox.put(self._entry(events=[self._event("connection.lost", side, data)]))
        was_live, side.live, side.trouble = side.live, False, event.reason
        if is_candidate:
            self._signal(Signal.CANDIDATE_LOST)
            return
        if self._candidate is not None:
            self._forget_at = self._now() + LINGER_S  # the candidate may bring some of it again
        self._signal(Signal.ACTIVE_LOST)
        if was_live and not self.is_live:
            self._dark_since = self._now()

    def _release(self) -> None:
        """Deliver what the candidate sent so far: from here on its predicates are in force."""
        side, overlap = self._candidate, self._overlap
        assert side is not None
        assert overlap is not None
        if side.live:
            held = overlap.release()
            overlap_s = round(self._now() - self._overlap_since, 3)
            joined: dict[str, object] = {"overlap_s": overlap_s, "duplicates_suppressed": overlap.suppressed}
            self._in_force_now(side, joined)
            self.metrics.handed_over(self.stream, overlap.suppressed)
            self._deliver(side, held, side.held_cursor)
        elif side.held_cursor is None:  # lost again while the old one was drained, which goes on
            self._deliver(side, overlap.release(), None)
        else:
            overlap.discard()  # the next attempt resumes from the old one's cursor

    # What goes out

    def _in_force_now(self, side: Side, details: dict[str, object]) -> None:
        """Record that what *side* asked for is in force, and tell those who wait for it."""
        dark_s = None if self._dark_since is None else round(self._now() - self._dark_since, 3)
        self._dark_since = None
        details = {
            "connection": side.number,
            "without_connection_s": dark_s or 0.0,
            **details,
        }
        log.info(
            "connection.live",
            stream=self.stream,
            predicates=side.asked.predicates.version,
            changes=len(side.carried),
            **details,
        )
        self._apply(side.carried, details, side.asked.predicates)

    def _apply(
        self, changes: Sequence[Change], details: Mapping[str, object], predicates: PredicateSet
    ) -> None:
        """Put the answers to *changes*: what they ask for is in force."""
        data = {"predicates": predicates.version, **details}
        events = self._answers.applied(changes, data)
        applied = max((one.offset for one in changes), default=None)
        if not self._answers.waiting:  # all records up to the last are answered for good
            applied = self._last_offset
        self.outbox.put(self._entry(events=events, version=predicates.version, applied=applied))

    def _deliver(self, side: Side, statuses: Sequence[Status], cursor: str | None) -> None:
        if statuses:
            self.cursor = cursor or self.cursor
            self.outbox.put(
                self._entry(statuses=statuses, cursor=cursor, version=side.asked.predicates.version)
            )

    def _event(self, kind: str, side: Side, more: dict[str, object] | None = None) -> Event:
        version = side.asked.predicates.version
        data = {"connection": side.number, "predicates": version, **(more or {})}
        return Event(kind, self.stream, data)

    @property
    def _coming(self) -> Side | None:
        """The side whose predicates are in force, or are about to be."""
        return self._candidate if self.phase is Phase.DRAINING else self._active

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
