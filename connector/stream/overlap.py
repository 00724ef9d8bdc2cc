"""Two connections' statuses joined into one sequence, none lost. Pure: no clock is read.

While both connections are open, the upstream writes what both ask for to both, in one order. So the
moment the old connection brings a status that the new one has brought already, the old one has nothing to
add: all before it was delivered from it, and the new one has it and all that follows. There the sequence
switches. Until then what the new connection brings is held back, so a crash in between resumes from the old
connection's cursor as if there had been no overlap. What both brought goes out once: whoever takes the
sequence knows what it has had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from connector.model import Status


@dataclass(slots=True)
class Overlap:
    """The join, from the candidate's request to the switch.

    All times are readings of one monotonic clock, in seconds.

    Attributes:
        live_at: when the new connection brought its first byte.
        heard_at: when the old one brought its last status, or could have brought one.
    """

    live_at: float = 0.0
    heard_at: float = 0.0
    _held: list[Status] = field(default_factory=list)
    _among_held: set[Status] = field(default_factory=set)
    _held_bytes: int = 0

    @property
    def held_bytes(self) -> int:
        """Size of what is held back."""
        return self._held_bytes

    def begin(self, now: float) -> None:
        """Take note that both connections live."""
        self.live_at = self.heard_at = now

    def paused(self, since: float, now: float) -> None:
        """Take note that the old connection was not read: what it brought meanwhile is still to come."""
        self.heard_at = now
        self.live_at += now - max(since, self.live_at)

    def drained_at(self, quiet_s: float, max_s: float) -> float:
        """When the old connection has nothing more to give, by its silence or by the time it had."""
        return min(self.heard_at + quiet_s, self.live_at + max_s)

    def old(self, statuses: Sequence[Status]) -> int | None:
        """Return how many of the old connection's come before the two meet; None if they do not."""
        if not self._held:
            return None
        return next((at for at, status in enumerate(statuses) if status in self._among_held), None)

    def hold(self, statuses: Sequence[Status]) -> None:
        """Take what the new connection brought while the old one is being drained."""
        self._held += statuses
        self._among_held.update(statuses)
        self._held_bytes += sum(len(status.body or b"") for status in statuses)

    def release(self) -> Sequence[Status]:
        """Return what was held back."""
        held = self._held
        self.discard()
        return held

    def discard(self) -> None:
        """Forget what was held back: it comes again."""
        self._held, self._among_held, self._held_bytes = [], set(), 0
