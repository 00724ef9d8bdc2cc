"""When pending predicate updates become a restart. Pure: the caller owns the clock."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(slots=True)
class Debounce:
    """Restart the sooner the more updates are pending, but never twice within `min_s`.

    With *n* updates pending the distance to the last restart is ``int(60 - 5 * sqrt(n)) * max_s / 60``
    seconds, and never below ``min_s``. For ``max_s=600, min_s=120`` and n = 0, 10, 20 ... 90 that is
    600 440 370 320 280 240 210 180 150 120. The first restart of all is immediate.

    All times are readings of one monotonic clock, in seconds.

    Attributes:
        min_s: shortest distance between two restarts.
        max_s: longest time a lone update may wait after a restart.
    """

    min_s: float
    max_s: float
    _pending: int = field(default=0, init=False)
    _restarted_at: float = field(default=-math.inf, init=False)
    _not_before: float = field(default=-math.inf, init=False)

    def put(self) -> None:
        """Count one more update that would change what is asked for."""
        self._pending += 1

    def clear(self) -> None:
        """Forget the pending updates: they cancelled each other out."""
        self._pending = 0

    def postpone(self, until: float) -> None:
        """Let nothing be due before *until*, whatever restarts come sooner by themselves."""
        self._not_before = until

    def restarted(self, now: float) -> None:
        """Take note that a connection with the newest predicates was asked for at *now*."""
        self._pending = 0
        self._restarted_at = now

    def deadline(self, *, idle: bool = False) -> float | None:
        """When the pending updates are due, or None if there are none. May lie in the past.

        Args:
            idle: nothing is connected, so nothing is gained by waiting for more updates.
        """
        if not self._pending:
            return None
        due_at = self._restarted_at + (self.min_s if idle else self.distance_s(self._pending))
        return max(due_at, self._not_before)

    def distance_s(self, pending: int) -> float:
        """How long after the last restart *pending* updates are due."""
        return max(self.min_s, int(60 - 5 * math.sqrt(pending)) * self.max_s / 60)
