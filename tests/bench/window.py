"""What a loop of the bench says of itself: how many statuses it moved, over which time, at which cost."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field

WARM_S = 1.0
"""Left out at the beginning: caches are cold, connections are new."""


@dataclass(slots=True)
class Window:
    """Measures from `WARM_S` after its first count, for *seconds*."""

    seconds: float
    _first_at: float = 0.0
    _began: tuple[float, float, int] | None = field(default=None, init=False)

    def is_over(self, count: int) -> bool:
        """Take note of how many statuses were moved so far; once the time is over print what was measured."""
        now = time.monotonic()
        if self._began is None:
            self._first_at = self._first_at or now
            if now - self._first_at >= WARM_S:
                self._began = now, time.process_time(), count
            return False
        began_at, cpu_s, before = self._began
        if now - began_at < self.seconds:
            return False
        measured = {
            "statuses": count - before,
            "seconds": now - began_at,
            "cpu_s": time.process_time() - cpu_s,
        }
        print(json.dumps(measured), flush=True)
        return True
