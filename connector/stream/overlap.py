"""Two connections' statuses joined into one sequence, none lost, none doubled. Pure: no clock is read.

While both connections are open, the upstream writes what both ask for to both, in one order. So the
moment the old connection brings an id that the new one has brought already, the old one has nothing to
add: all before that id was delivered from it, and the new one has that id and all that follows. There the
sequence switches. Until then what the new connection brings is held back, so a crash in between resumes
from the old connection's cursor as if there had been no overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from connector.model import Status

LINGER_S = 60.0
"""How long ids of a closed connection are remembered when the two never met."""


@dataclass(slots=True)
class Overlap:
    """The join, from the candidate's request to the switch, and for a while beyond it; nothing before.

    All times are readings of one monotonic clock, in seconds.

    Attributes:
        suppressed: statuses that came twice and went out once.
        live_at: when the new connection brought its first byte.
        heard_at: when the old one brought its last status, or could have brought one.
        forget_at: when the ids stop mattering; None before the switch.
    """

    suppressed: int = 0
    live_at: float = 0.0
    heard_at: float = 0.0
    forget_at: float | None = None
    _from_old: set[str] = field(default_factory=set)
    _from_new: set[str] = field(default_factory=set)
    _held: list[Status] = field(default_factory=list)
    _held_ids: set[str] = field(default_factory=set)
    _held_bytes: int = 0
    _is_asked: bool = False  # a request is under way, or a connection open, that may bring ids again

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

    def linger(self, now: float) -> None:
        """Remember the ids for a while: the new connection may lag behind, and bring them again."""
        self.forget_at = now + LINGER_S

    def old(self, statuses: Sequence[Status]) -> tuple[Sequence[Status], bool]:
        """Take what the old connection brought.

        Returns:
            What of it to deliver, always a beginning of *statuses* unless the new connection was lost
            before, and whether the two have met.
        """
        for at, status in enumerate(statuses):
            if status.id in self._held_ids:
                return self._unseen(statuses[:at], self._from_new), True
            if self._is_asked:
                self._from_old.add(status.id)
        return self._unseen(statuses, self._from_new), False

    def hold(self, statuses: Sequence[Status]) -> None:
        """Take what the new connection brought while the old one is being drained."""
        self._held += statuses
        self._held_ids.update(status.id for status in statuses)
        self._held_bytes += sum(len(status.body) for status in statuses)

    def asked(self) -> None:
        """The new connection asks (again): nothing the old one brought before can come over it."""
        self._from_old.clear()
        self._is_asked = True

    def lost(self) -> None:
        """The new connection is gone: what the old one brings until it asks again cannot come over it."""
        self._from_old.clear()
        self._is_asked = False

    def after(self) -> Overlap:
        """Return the overlap that follows: this one's ids may still matter."""
        return Overlap(_from_new=self._from_old | self._from_new)

    def release(self) -> Sequence[Status]:
        """Return what was held back and has not been delivered yet."""
        fresh = self.fresh(self._held)
        self._from_new |= self._held_ids
        self.discard()
        return fresh

    def discard(self) -> None:
        """Forget what was held back: it comes again."""
        self._held, self._held_ids, self._held_bytes = [], set(), 0

    def fresh(self, statuses: Sequence[Status]) -> Sequence[Status]:
        """Return those of the new connection's *statuses* that have not been delivered.

        Needed for a while after a switch without a meeting: the new connection may lag behind.
        """
        return self._unseen(self._unseen(statuses, self._from_old), self._from_new)

    def _unseen(self, statuses: Sequence[Status], seen: set[str]) -> Sequence[Status]:
        if not seen:
            return statuses
        kept = [status for status in statuses if status.id not in seen]
        self.suppressed += len(statuses) - len(kept)
        return kept
