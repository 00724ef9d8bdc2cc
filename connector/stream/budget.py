"""How often an upstream may be asked. Pure: the caller owns the clock."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Budget:
    """At most so many attempts in any window, whatever they are for.

    Failures, predicate restarts and process restarts share it, because the upstream counts them alike.
    All times are wall-clock seconds, since they outlive the process in the stream's position.

    Attributes:
        attempts: how many; None is no limit.
        window_s: the window's length in seconds.
    """

    attempts: int | None = None
    window_s: float = 0.0
    _spent_at: list[float] = field(default_factory=list, init=False)

    def restore(self, spent_at: Iterable[float]) -> None:
        """Take over the attempts of a former process."""
        self._spent_at = sorted(spent_at)

    def wait_s(self, now: float) -> float:
        """How long until the next attempt is allowed, in whole milliseconds, as seconds; 0 if it is now.

        Rounded up: who waits for so long does not come a rounding error too early.
        """
        recent = self._recent(now)
        if self.attempts is None or len(recent) < self.attempts:
            return 0.0
        return math.ceil((recent[-self.attempts] + self.window_s - now) * 1000) / 1000

    def spend(self, now: float) -> None:
        """Count an attempt."""
        self._spent_at = [*self._recent(now), now]

    def refund(self, spent_at: float) -> None:
        """Take back an attempt that never reached the upstream."""
        if spent_at in self._spent_at:
            self._spent_at.remove(spent_at)

    def spent(self, now: float) -> tuple[float, ...]:
        """Return the attempts that still count, oldest first."""
        return tuple(self._recent(now))

    def _recent(self, now: float) -> list[float]:
        if self.attempts is None:
            return []
        # Clocks are set back at times: what seems to lie ahead happened no later than now.
        self._spent_at = [min(at, now) for at in self._spent_at if at + self.window_s > now]
        return self._spent_at
