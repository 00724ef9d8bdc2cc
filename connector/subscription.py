"""One stream's life: predicates come in, connections follow, statuses go out.

Everything here is decided on the event loop, synchronously; what the phases allow stands in
`stream.handover`. Reader tasks feed events in, the outbox takes entries out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import NamedTuple

import structlog

from connector.control.debounce import Debounce
from connector.delivery.outbox import Entry, Outbox
from connector.model import DeadLetter, Event, PredicateSet, Status, StreamId
from connector.ops.metrics import Metrics
from connector.stream.dialect import Handover
from connector.stream.handover import MAY_RESTART, Action, Phase, Signal, step
from connector.stream.overlap import Overlap
from connector.stream.reader import Ask, Connected, Live, Lost, Reader, ReaderEvent, Received

log = structlog.get_logger("connector.subscription")

HELD_BYTES = 8 << 20
"""What a candidate may send while the old connection is drained; more ends the draining."""

LINGER_S = 60.0
"""How long ids of a closed connection are remembered when the two never met."""


class Change(NamedTuple):
    """A control record that was accepted and waits to be applied."""

    key: str
    partition: int
    offset: int

    def as_dict(self) -> dict[str, object]:
        """Return it in the shape that events carry."""
        return {"key": self.key, "partition": self.partition, "offset": self.offset}


@dataclass(slots=True, eq=False)
class _Side:
    """One reader and what it was last asked."""

    number: int
    asked: Ask = field(default_factory=lambda: Ask(PredicateSet(), None))
    carried: Sequence[Change] = ()
    asked_at: float = 0.0
    live: bool = False
    held_cursor: str | None = None  # after what it sent while the other side was drained
    trouble: str | None = None  # why it was lost last
    task: asyncio.Task[None] | None = None


@dataclass(slots=True, kw_only=True)
class Subscription:
    """A stream from its lease to the end of it.

    Attributes:
        stream: its name.
        partition: its home, under whose lease it runs.
        reader: makes a reader from what it shall ask for.
        drain: when an old connection has nothing more to give.
        cursor: after which status the upstream shall resume, where it can.
    """

    stream: StreamId
    partition: int
    reader: Callable[[Callable[[], Ask]], Reader]
    drain: Handover
    debounce: Debounce
    outbox: Outbox
    metrics: Metrics
    cursor: str | None
    phase: Phase = field(default=Phase.IDLE, init=False)
    _target: PredicateSet = field(default_factory=PredicateSet, init=False)
    _pending: list[Change] = field(default_factory=list, init=False)
    _active: _Side | None = field(default=None, init=False)
    _candidate: _Side | None = field(default=None, init=False)
    _overlap: Overlap | None = field(default=None, init=False)
    _overlap_since: float = field(default=0.0, init=False)
    _forget_at: float | None = field(default=None, init=False)  # when late ids stop mattering
    _old_heard_at: float = field(default=0.0, init=False)
    _dark_since: float | None = field(default=None, init=False)  # no live connection since then
    _connections: int = field(default=0, init=False)
    _wake: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _readers: asyncio.TaskGroup = field(default_factory=asyncio.TaskGroup, init=False)

    @property
    def is_live(self) -> bool:
        """Whether statuses arrive, or nothing is asked for."""
        return self.phase is Phase.IDLE or (self._active is not None and self._active.live)

    @property
    def predicates(self) -> PredicateSet:
        """The newest predicate set, in force or about to be."""
        return self._target

    def load(self, target: PredicateSet, unapplied: Sequence[Change]) -> None:
        """Start from the control topic's content, as it was when the lease began.

        Args:
            target: what all contributions together ask for.
            unapplied: accepted records whose effect nobody has seen yet.
        """
        self._target = target
        self._pending = list(unapplied)
        if not target.is_empty or unapplied:
            self.debounce.put()
        self._wake.set()

    def change(self, target: PredicateSet, change: Change) -> None:
        """Take a changed union, and answer its publisher."""
        data: dict[str, object] = {**change.as_dict(), "predicates": target.version}
        events = []
        if target == self._target:
            events.append(Event("predicates.unchanged", self.stream, data))
            # Only where nobody waits: an older record must still be answered after a restart.
            self._put(events=events, handled=change, applied=None if self._pending else change.offset)
            return
        for one in self._pending:
            if one.key == change.key:
                superseded = {**one.as_dict(), "by": change.offset}
                events.append(Event("predicates.superseded", self.stream, superseded))
        self._pending = [one for one in self._pending if one.key != change.key]
        self._target = target
        side = self._coming
        if target == (PredicateSet() if side is None else side.asked.predicates):
            # It takes back what was pending: there is nothing left to do.
            self.debounce.clear()
            events.append(Event("predicates.unchanged", self.stream, data))
            self._put(events=events, handled=change)
            self._signal(Signal.CANCELLED)
            if side is not None:
                side.carried = tuple(self._pending)
            if side is None or side.live:
                self._apply(self._pending, {})
            return
        self._pending.append(change)
        self.debounce.put()
        due_in_s = max(0.0, (self._due_at() or 0.0) - self._now())
        accepted = {**data, "due_in_s": round(due_in_s, 3)}
        events.append(Event("predicates.accepted", self.stream, accepted))
        self._put(events=events, handled=change)
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
        """When pending changes may be asked for; an idle stream need not wait."""
        due_at = self.debounce.deadline()
        return self._now() if due_at is not None and self.phase is Phase.IDLE else due_at

    def _next_deadline(self) -> float | None:
        deadlines = [self._forget_at]
        if self.phase in MAY_RESTART or self._target.is_empty:
            deadlines.append(self.debounce.deadline())
        if self.phase is Phase.DRAINING:
            deadlines.append(self._drained_at())
        return min((at for at in deadlines if at is not None), default=None)

    def _drained_at(self) -> float:
        quiet_at = self._old_heard_at + self.drain.drain_quiet_s
        return min(quiet_at, self._overlap_since + self.drain.drain_max_s)

    def _meet_deadlines(self) -> None:
        now = self._now()
        if self._forget_at is not None and now >= self._forget_at:
            self._overlap, self._forget_at = None, None
        if self.phase is Phase.DRAINING and now >= self._drained_at():
            self._switch_unmet()
        due_at = self._due_at()
        if due_at is None or now < due_at:
            return
        if self._target.is_empty:
            self.debounce.restarted(now)
            self._signal(Signal.EMPTIED)
            self._apply(self._pending, {}, self._target)
        elif self.phase in MAY_RESTART:
            self._signal(Signal.DUE)

    # The state machine's shell

    def _signal(self, signal: Signal) -> None:
        before = self.phase
        self.phase, actions = step(before, signal)
        for action in actions:
            self._act(action)
        if self.phase is not before:
            log.debug("handover.moved", stream=self.stream, signal=signal.name, to=self.phase.name)
            self._wake.set()

    def _act(self, action: Action) -> None:
        match action:
            case Action.START_ACTIVE:
                self._active = self._start()
            case Action.START_CANDIDATE:
                self._overlap, self._forget_at = Overlap(), None
                self._candidate = self._start()
            case Action.STOP_CANDIDATE:
                _stop(self._candidate)
                self._candidate, self._overlap = None, None
            case Action.RELEASE:
                self._release()
            case Action.PROMOTE:
                _stop(self._active)
                self._active, self._candidate = self._candidate, None
                if self._forget_at is None:
                    self._overlap = None
            case Action.STOP_ALL:
                _stop(self._active)
                _stop(self._candidate)
                self._active = self._candidate = self._overlap = self._forget_at = None
                self._dark_since = None

    def _start(self) -> _Side:
        self._connections += 1
        side = _Side(self._connections)
        reader = self.reader(lambda: self._ask(side))
        side.task = self._readers.create_task(self._pump(side, reader), name=f"{self.stream}#{side.number}")
        return side

    async def _pump(self, side: _Side, reader: Reader) -> None:
        async with aclosing(reader.events()) as events:
            async for event in events:
                self._heard(side, event)
                await self.outbox.room()  # a full outbox stops reading: the upstream feels it

    def _ask(self, side: _Side) -> Ask:
        """Say what the next connection of *side* asks for: always the newest."""
        side.asked = Ask(self._target, self.cursor)
        side.carried = tuple(self._pending)
        side.asked_at = self._now()
        self.debounce.restarted(side.asked_at)
        return side.asked

    # What readers bring

    def _heard(self, side: _Side, event: ReaderEvent) -> None:
        is_candidate = side is self._candidate
        match event:
            case Connected():
                self._signal(Signal.CANDIDATE_CONNECTED if is_candidate else Signal.ACTIVE_CONNECTED)
            case Live():
                side.live = True
                self.metrics.connected(self.stream)
                self._put(events=[self._event("connection.live", side)])
                if is_candidate:
                    self._overlap_since = self._old_heard_at = self._now()
                    self._signal(Signal.CANDIDATE_LIVE)
                else:
                    self._in_force_now(side, {})
            case Received():
                self._received(side, event, is_candidate=is_candidate)
            case Lost():
                self._lost(side, event, is_candidate=is_candidate)

    def _received(self, side: _Side, event: Received, *, is_candidate: bool) -> None:
        messages = event.messages
        self.metrics.received(self.stream, event.wire_bytes, event.discarded)
        if messages.malformed:
            letters = [
                DeadLetter(bad.reason, bad.detail, self.stream, "upstream", None, bad.frame)
                for bad in messages.malformed
            ]
            self._put(dead_letters=letters)
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

    def _lost(self, side: _Side, event: Lost, *, is_candidate: bool) -> None:
        self.metrics.lost(self.stream, event.cut_bytes)
        if side.live or event.reason != side.trouble:  # said once, not at every attempt
            data = {"reason": event.reason, "retry_in_s": round(event.retry_in_s, 3)}
            log.warning("connection.lost", stream=self.stream, connection=side.number, **data)
            self._put(events=[self._event("connection.lost", side, data)])
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

    def _in_force_now(self, side: _Side, details: dict[str, object]) -> None:
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
        self,
        changes: Sequence[Change],
        details: dict[str, object],
        predicates: PredicateSet | None = None,
    ) -> None:
        """Answer those of *changes* that still wait: what they ask for is in force."""
        predicates = self._target if predicates is None else predicates
        applied = [one for one in self._pending if one in changes]
        self._pending = [one for one in self._pending if one not in changes]
        data = {"predicates": predicates.version, **details}
        self._put(
            events=[Event("predicates.applied", self.stream, {**one.as_dict(), **data}) for one in applied],
            version=predicates.version,
            applied=max((one.offset for one in applied), default=None),
        )

    def _deliver(self, side: _Side, statuses: Sequence[Status], cursor: str | None) -> None:
        if statuses:
            self.cursor = cursor or self.cursor
            self._put(statuses=statuses, cursor=cursor, version=side.asked.predicates.version)

    def _put(
        self,
        *,
        statuses: Sequence[Status] = (),
        cursor: str | None = None,
        version: str | None = None,
        applied: int | None = None,
        handled: Change | None = None,
        events: Sequence[Event] = (),
        dead_letters: Sequence[DeadLetter] = (),
    ) -> None:
        self.outbox.put(
            Entry(
                partition=self.partition,
                stream=self.stream,
                statuses=statuses,
                cursor=cursor,
                version=version,
                applied=applied,
                handled=None if handled is None else handled.offset + 1,
                events=events,
                dead_letters=dead_letters,
            )
        )

    def _event(self, kind: str, side: _Side, more: dict[str, object] | None = None) -> Event:
        version = side.asked.predicates.version
        data = {"connection": side.number, "predicates": version, **(more or {})}
        return Event(kind, self.stream, data)

    @property
    def _coming(self) -> _Side | None:
        """The side whose predicates are in force, or are about to be."""
        return self._candidate if self.phase is Phase.DRAINING else self._active

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _stop(side: _Side | None) -> None:
    if side is not None and side.task is not None:
        side.task.cancel()
