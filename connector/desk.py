"""Where a stream's publishers ask, and are told what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from connector.control.answers import Change, Told
from connector.control.demand import Demand, Verdict
from connector.lifecycle import Lifecycle
from connector.model import Event, Note, PredicateSet
from connector.outlet import Outlet
from connector.side import Side
from connector.stream.reader import Ask, Lost


@dataclass(slots=True)
class Desk:
    """Passes on between publishers, the upstream and the log; `Demand` decides."""

    demand: Demand
    outlet: Outlet
    lifecycle: Lifecycle

    def load(self, target: PredicateSet, waiting: Sequence[Change], in_force: PredicateSet | None) -> None:
        """Start from the log; see `Demand.load`."""
        self.demand.load(target, waiting, in_force)
        if target.is_empty and waiting:
            self.emptied()

    def change(
        self,
        target: PredicateSet,
        change: Change,
        note: Note | None,
        coming: Side | None,
        now: float,
        *,
        idle: bool,
    ) -> Verdict:
        """Take a changed union, answer its publisher, and say what it means; see `Demand.change`."""
        asked = None if coming is None else coming.asked.predicates
        verdict, told = self.demand.change(target, change, coming=asked, now=now, idle=idle)
        self.outlet.answer(told, change.offset, note)
        return verdict

    def emptied(self) -> None:
        """Tell all who wait that nothing is asked for any more."""
        self._applied(self.demand.newest, self.demand.waiting, {})

    def cancelled(self, coming: Side) -> None:
        """Tell all who wait that *coming* asks for what they want already, if it lives; else it will tell."""
        if coming.live:
            self._applied(coming.asked.predicates, coming.carried, {})

    def ask(self, side: Side, now: float, *, must_live: bool, may_retry: bool) -> Ask:
        """Say what the next connection of *side* asks for: always the newest.

        Unless the upstream refused just that, and it *must_live*: what was in force goes on then, and the
        newest is due again if it *may_retry*.
        """
        demand, side.proof = self.demand, side.reader.target.fingerprint()
        asked = demand.ask(side.proof, must_live=must_live)
        resume = self.lifecycle.resume
        if resume is not None and resume.since is not None:
            side.asked = Ask(asked, since=self.outlet.heard_at)
        else:
            side.asked = Ask(asked, self.outlet.cursor)
        side.carried = demand.waiting if asked == demand.newest else ()
        demand.debounce.restarted(now)
        if asked != demand.newest and may_retry:
            demand.debounce.put()
        return side.asked

    def refused(self, side: Side, event: Lost) -> bool:
        """Tell those who wait for *side* that the upstream refuses; return what `Demand.refused` does."""
        details = {"reason": event.reason, "retry_in_s": round(event.retry_in_s, 3)}
        asked, carried = side.asked.predicates, side.carried
        if asked == self.demand.newest:
            carried = self.demand.waiting
        if side.reader.target.fingerprint() != side.proof:
            carried = ()  # it refused a secret that has been replaced since: the next attempt will tell
        goes_on, told = self.demand.refused(asked, side.proof, carried, details)
        self.outlet.settle(told)
        return goes_on

    def now_in_force(self, side: Side, now: float, details: Mapping[str, object]) -> None:
        """Record that what *side* asked for is in force, and tell those who wait for it."""
        told, gap = self.lifecycle.in_force(now, side, details)
        self._applied(side.asked.predicates, side.carried, told, gap)

    def _applied(
        self,
        predicates: PredicateSet,
        changes: Sequence[Change],
        details: Mapping[str, object],
        gap: Sequence[Event] = (),
    ) -> None:
        told = Told(gap) + self.demand.applied(predicates, changes, details)
        self.outlet.settle(told, predicates.version)
