"""Which statuses are deleted, and when that is said: a pure function of their numbers.

One of so many is, in one of three ways, which take turns:

1. the status, later its delete;
2. its delete, later the status;
3. the status, later its delete, and as much later the status again.

How much later is counted in statuses, and takes turns, too. Everything has its place in the stream: a
connection is told at that place if the status is one that it asks for, and a replay tells it again there.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

GAPS = (1, 5, 50, 500)


class What(Enum):
    """What is written about a status."""

    STATUS = auto()
    DELETE = auto()
    COPY = auto()  # the status, later than its number says


_WAYS = (
    (What.STATUS, What.DELETE),
    (What.DELETE, What.COPY),
    (What.STATUS, What.DELETE, What.COPY),
)


@dataclass(frozen=True, slots=True)
class Deletes:
    """When something is said of which status.

    Attributes:
        every: one status of so many is deleted; 0 for none.
    """

    every: int = 0

    def at(self, place: int) -> list[tuple[What, int]]:
        """Return what is written at a place, and the number of the status that it is about, in order."""
        if not self.every:
            return [(What.STATUS, place)]
        written = [(self._way(place)[0], place)]
        for gap in GAPS:
            for step in (1, 2):
                n = place - step * gap
                if self.is_deleted(n) and self._gap(n) == gap and step < len(self._way(n)):
                    written.append((self._way(n)[step], n))
        return written

    def is_deleted(self, n: int) -> bool:
        """Say whether the n-th status is deleted, sooner or later."""
        return self.every > 0 and n > 0 and n % self.every == 0

    def _way(self, n: int) -> tuple[What, ...]:
        return _WAYS[n // self.every % len(_WAYS)] if self.is_deleted(n) else (What.STATUS,)

    def _gap(self, n: int) -> int:
        return GAPS[n // self.every // len(_WAYS) % len(GAPS)]
