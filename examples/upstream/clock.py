"""When statuses are published: at a fixed rate, unless frozen."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(slots=True)
class Clock:
    """Turns a monotonic clock into a number of published statuses.

    Attributes:
        rate: statuses per second.
        monotonic: reads the underlying clock, in seconds.
    """

    rate: float
    monotonic: Callable[[], float] = time.monotonic
    _started_at: float = field(init=False)
    _resumed_at: float | None = field(init=False)  # None: frozen
    _ran_s: float = field(default=0.0, init=False)  # before _resumed_at, without the freezes

    def __post_init__(self) -> None:
        self._started_at = self._resumed_at = self.monotonic()

    def elapsed_s(self) -> float:
        """Return the seconds since the start, freezes included."""
        return self.monotonic() - self._started_at

    def published(self) -> int:
        """Return the sequence number of the newest published status; it never falls."""
        return int(self.rate * self._running_s())

    def freeze(self) -> int:
        """Publish nothing more until `thaw`, and return what is published by now."""
        self._ran_s = self._running_s()
        self._resumed_at = None
        return self.published()

    def thaw(self) -> int:
        """Publish on from where `freeze` stopped, and return where that is."""
        if self._resumed_at is None:
            self._resumed_at = self.monotonic()
        return self.published()

    def _running_s(self) -> float:
        if self._resumed_at is None:
            return self._ran_s
        return self._ran_s + (self.monotonic() - self._resumed_at)
