"""Deleted statuses stay deleted: what comes of one later goes nowhere. Pure: no clock is read.

Upstreams say that a status is deleted before it comes, after it, and between its copies: over another
connection, or sent again after a reconnect, it comes late. The ids of deleted statuses are notes, written in
the transaction of their tombstones, so a restart knows them too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from operator import attrgetter

from connector.model import Note, Status, StreamId

KEEP_S = 86_400.0
"""How long a deleted status stays deleted whatever comes: longer than upstreams look back."""

MAX_IDS = 100_000
"""How many ids are remembered for a stream; the oldest are forgotten first."""

FORGET_AT_ONCE = 1000
"""How many notes are taken back at once: after a long pause all are due, and a transaction has its limits."""

_PREFIX = "deleted/"
_body = attrgetter("body")


class Deletions:
    """The statuses of one stream that were deleted lately. All times are in seconds since the epoch.

    Attributes:
        late: how many copies of deleted statuses were dropped.
    """

    def __init__(self, stream: StreamId, notes: Mapping[str, bytes], max_ids: int = MAX_IDS) -> None:
        """Go on from what the log says.

        Args:
            stream: whose statuses.
            notes: those of its partition.
            max_ids: how many ids are remembered.
        """
        self.late = 0
        self._prefix = f"{_PREFIX}{stream}/"
        self._max_ids = max_ids
        noted = [
            (_time(value), key.removeprefix(self._prefix))
            for key, value in notes.items()
            if key.startswith(self._prefix)
        ]
        self._deleted_at = OrderedDict((identity, at) for at, identity in sorted(noted))  # oldest first

    def take(self, statuses: Sequence[Status], now: float) -> tuple[Sequence[Status], Sequence[Note]]:
        """Take what the stream brought, in order.

        Returns:
            What of it to write, and the notes that go with it.
        """
        if not self._deleted_at and all(map(_body, statuses)):
            return statuses, ()
        fresh: list[Status] = []
        notes: list[Note] = []
        for status in statuses:
            if self._is_deleted(status.id, now):
                self.late += status.body is not None
                continue
            fresh.append(status)
            if status.body is None:
                self._deleted_at[status.id] = now
                self._deleted_at.move_to_end(status.id)
                notes.append(Note(self._prefix + status.id, b"%d" % now))
        return fresh, notes + self._forget(now)

    def _is_deleted(self, identity: str, now: float) -> bool:
        at = self._deleted_at.get(identity)
        return at is not None and now - at < KEEP_S

    def _forget(self, now: float) -> list[Note]:
        """Take back the notes that are too old, or too many."""
        forgotten: list[Note] = []
        surplus = len(self._deleted_at) - self._max_ids
        for _ in range(min(len(self._deleted_at), max(surplus, FORGET_AT_ONCE))):
            oldest = next(iter(self._deleted_at))
            if len(forgotten) >= surplus and self._is_deleted(oldest, now):
                break
            del self._deleted_at[oldest]
            forgotten.append(Note(self._prefix + oldest, None))
        return forgotten


def _time(note: bytes) -> float:
    """Return when a status was deleted; long ago where the note is not ours."""
    return int(note) if note.isdigit() and len(note) < 16 else 0.0
