"""What is told about a stream's connections: events for the topic, lines for operators, metrics.

The same trouble is told once, not at every attempt; what a platform takes ill, and what needs somebody to
act, is told every time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from connector.model import Event, StreamId
from connector.ops.metrics import Metrics
from connector.side import Side, Withheld
from connector.stream.dialect import Resume
from connector.stream.messages import Notice
from connector.stream.policy import Outcome
from connector.stream.reader import Lost, Received

log = structlog.get_logger("connector.lifecycle")

_ALWAYS_TOLD = frozenset({Outcome.RATE_LIMITED, Outcome.CROWDED, Outcome.REFUSED})

WITHHELD_EVERY_S = 10.0
"""How often it is told that an upstream withholds statuses: some say so with every one."""

_NEVER_TOLD = frozenset({"other_event"})
"""Reasons for which bytes are dropped because the dialect says so; counted all the same."""


@dataclass(frozen=True, slots=True)
class _Dark:
    """The time without a live connection.

    Attributes:
        since: when the last one was lost, on the loop's clock.
        heard_at: when its last byte came, on the same.
        wall: the same, on the wall's.
    """

    since: float
    heard_at: float
    wall: float
    reason: str | None


@dataclass(slots=True, kw_only=True)
class Lifecycle:
    """Tells one stream's story.

    Attributes:
        resume: how the upstream can send what was missed; None if it cannot.
        wall: reads the wall clock, in seconds since the epoch.
    """

    stream: StreamId
    metrics: Metrics
    resume: Resume | None
    wall: Callable[[], float]
    _dark: _Dark | None = field(default=None, init=False)

    def deferred(self, side: Side, wait_s: float) -> list[Event]:
        """Tell that the connect budget is spent."""
        data = {"until": self._until(wait_s), "wait_s": round(wait_s, 3)}
        log.warning("connection.deferred", stream=self.stream, connection=side.number, **data)
        return [self._event("connection.deferred", side, data)]

    def connecting(self, side: Side) -> list[Event]:
        """Tell that an attempt begins."""
        return self._once("connection.connecting", side)

    def connected(self, side: Side) -> list[Event]:
        """Tell that the upstream answered 200."""
        return self._once("connection.connected", side)

    def live(self, side: Side) -> list[Event]:
        """Tell that the first bytes arrived."""
        self.metrics.connected(self.stream)
        side.told.clear()
        side.withheld.told_at = self.wall()
        return [self._event("connection.live", side)]

    def received(self, side: Side, received: Received) -> list[Event]:
        """Tell of notices, and of bytes that cannot be used: once per connection and reason."""
        self.metrics.received(self.stream, received.wire_bytes, received.discarded)
        events = [self._noticed(side, notice) for notice in received.messages.notices]
        if (count := received.messages.withheld) is not None:
            events += self.withheld(side, count)
        told = side.discarded | _NEVER_TOLD
        new = {reason: size for reason, size in received.discarded.items() if reason not in told}
        if new:
            side.discarded |= new.keys()
            log.warning("bytes.discarded", stream=self.stream, connection=side.number, **new)
            events.append(self._event("bytes.discarded", side, {"bytes": new}))
        return events

    def handed_over(self) -> None:
        """Count a restart by overlap."""
        self.metrics.handed_over(self.stream)

    def state(self, *, is_live: bool, is_refused: bool) -> None:
        """Say whether the stream's connection lives, and whether the upstream refuses one."""
        self.metrics.live(self.stream, is_live=is_live)
        self.metrics.refused(self.stream, is_refused=is_refused)

    def lost(self, side: Side, lost: Lost, *, is_expected: bool = False) -> list[Event]:
        """Tell that a connection, or an attempt at one, is over; *is_expected* while a newer takes over."""
        kind = "stalled" if lost.is_stall else "replaced" if is_expected else "disconnected"
        data: dict[str, object] = {"reason": lost.reason, "retry_in_s": round(lost.retry_in_s, 3)}
        if lost.code is not None:
            data["code"] = lost.code
        if lost.outcome in _ALWAYS_TOLD:
            kind = lost.outcome.value
            data["until"] = self._until(lost.retry_in_s)
        self.metrics.lost(self.stream, kind, lost.discarded)
        untold = self.withheld(side)
        side.withheld = Withheld()
        if not (side.live or lost.outcome in _ALWAYS_TOLD or lost.reason != side.trouble):
            return untold
        told = f"connection.{kind}"
        (log.info if is_expected else log.warning)(told, stream=self.stream, connection=side.number, **data)
        return [*untold, self._event(told, side, data)]

    def not_amended(self, side: Side, lost: Lost) -> list[Event]:
        """Tell that the upstream's rules could not be changed; the connection there is goes on."""
        if lost.reason == side.trouble and lost.outcome not in _ALWAYS_TOLD:
            return []
        data = {"reason": lost.reason, "retry_in_s": round(lost.retry_in_s, 3)}
        log.warning("rules.failed", stream=self.stream, **data)
        return [Event("rules.failed", self.stream, data)]

    def fell_back(self, lost: Lost) -> list[Event]:
        """Tell that the upstream allows one connection, so that restarts break before they make."""
        data = {"strategy": "break", "reason": lost.reason, "until": self._until(lost.retry_in_s)}
        log.warning("handover.fell_back", stream=self.stream, **data)
        return [Event("handover.fell_back", self.stream, data)]

    # The time without a live connection

    def restarted(self, now: float, heard_at: float) -> None:
        """Take note that nothing was read since *heard_at* on the wall's clock: no process had the stream."""
        since = now - max(0.0, self.wall() - heard_at)
        self._dark = _Dark(since, since, heard_at, "not read, or not committed, by the process before")

    def dark(self, now: float, reason: str | None, silent_s: float = 0.0) -> None:
        """Take note that no connection lives any more, *silent_s* seconds after its last byte."""
        if self._dark is None:
            self._dark = _Dark(now, now - silent_s, self.wall() - silent_s, reason)

    def forget_dark(self) -> None:
        """Take note that no connection is wanted."""
        self._dark = None

    def in_force(
        self, now: float, side: Side, details: Mapping[str, object]
    ) -> tuple[dict[str, object], list[Event]]:
        """Tell that what *side* asked for is in force.

        Returns:
            *details* with the connection and how long none lived, and the gap if there was one.
        """
        dark, self._dark = self._dark, None
        if dark is not None and side.connected_at is not None and side.connected_at < dark.heard_at:
            dark = None  # it was connected before the other one fell silent: it has had all since
        dark_s = 0.0 if dark is None else round(now - dark.since, 3)
        told = {"connection": side.number, "without_connection_s": dark_s, **details}
        version = side.asked.predicates.version
        log.info("connection.live", stream=self.stream, predicates=version, changes=len(side.carried), **told)
        if dark is None:
            return told, []
        end = self.wall()
        if side.asked.resumes:
            assert self.resume is not None
            reaches_back_s = self.resume.reaches_back_s
            if reaches_back_s is None or end - reaches_back_s <= dark.wall:
                return told, []  # the upstream sends what was missed
            end -= reaches_back_s
        return told, [self._gap(side, dark.wall, end, dark.reason)]

    def withheld(self, side: Side, count: int | None = None) -> list[Event]:
        """Tell what the upstream did not send because of its own limits, every `WITHHELD_EVERY_S` at most.

        Args:
            side: whose connection it is.
            count: how many since the connection opened, as it says itself; None to tell what is untold.
        """
        now = self.wall()
        last = side.withheld
        if count is not None:
            last.seen = max(last.seen, count)
            if now - last.told_at < WITHHELD_EVERY_S:
                return []
        if (more := last.seen - last.told) <= 0:
            return []
        since, last.told, last.told_at = last.told_at or now, last.seen, now
        return [self._gap(side, since, now, "withheld by the upstream, which limits its rate", count=more)]

    def _gap(self, side: Side, begin: float, end: float, reason: str | None, **more: int) -> Event:
        gap = {"from": _iso(begin), "to": _iso(end), "reason": reason, **more}
        log.warning("stream.gap", stream=self.stream, connection=side.number, **gap)
        return self._event("stream.gap", side, gap)

    def _once(self, kind: str, side: Side) -> list[Event]:
        """Tell it once until a connection lives, and not at every attempt."""
        if kind in side.told:
            return []
        side.told.add(kind)
        return [self._event(kind, side)]

    def _noticed(self, side: Side, notice: Notice) -> Event:
        return self._event("notice.received", side, {"notice": notice.kind, "message": notice.message})

    def _until(self, wait_s: float) -> str:
        return _iso(self.wall() + wait_s)

    def _event(self, kind: str, side: Side, more: Mapping[str, object] | None = None) -> Event:
        version = side.asked.predicates.version
        return Event(kind, self.stream, {"connection": side.number, "predicates": version, **(more or {})})


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
