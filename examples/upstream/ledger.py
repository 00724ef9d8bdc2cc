"""What was written to whom, and what a client must therefore have received. Pure.

A status is *owed* to the client, once, if one of these holds:

1. It was written live on a connection, and that connection was the newest of its user's
   connections to its endpoint that were open for the status. Once a newer connection with new
   predicates is up, what only the older one gets is no longer asked for; what both get counts
   once.
2. It was replayed on a connection that resumed with ``since_seq``.

A connection is open for a status from the one published next after its registration (its
``live_seq``, or later if it resumes later) to the last one it considered, or without end while
the connection lives. What it replays is older and hides nothing.

That a status is deleted is owed by the same rules, at the place where it was said.

Written is not received: a client that dies leaves behind what was on its way to it. That is
owed nevertheless, since a client that must not lose it resumes with ``since_seq``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from .deletes import What

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

WHOLE = (0, 1)
"""The share of a connection that shares with no other."""


@dataclass(slots=True, kw_only=True)
class Connection:
    """One accepted request and everything written in answer to it.

    Instants are seconds since the server started.

    Attributes:
        id: counted from 1 over all users; a newer connection has a larger one.
        endpoint: the path that was asked for.
        track: the phrases, as the request spelled them; empty where rules decide.
        follow: the users, as the request spelled them; empty where rules decide.
        since_seq: the exclusive cursor it resumed from, None for live only.
        share: which part of what matches, counted from 0, and of how many.
        first_seq: the first status that could have been sent on it.
        live_seq: the status published next when it was registered.
        last_seq: the last status that was considered, whether it matched or not.
        closed_at: None while it is open.
        sent: the statuses written, rising.
        copies: the statuses written later than their number says; nobody owes them.
        deleted: where it was said, rising, of which status that it is deleted.
    """

    id: int
    user: str
    endpoint: str
    track: str
    follow: str
    since_seq: int | None
    share: tuple[int, int] = WHOLE
    first_seq: int
    live_seq: int
    last_seq: int
    opened_at: float
    closed_at: float | None = None
    close_reason: str | None = None
    sent: list[int] = field(default_factory=list)
    copies: list[int] = field(default_factory=list)
    deleted: list[tuple[int, int]] = field(default_factory=list)

    def close(self, now: float, reason: str) -> None:
        """End the connection; of several reasons the first is kept."""
        if self.closed_at is None:
            self.closed_at, self.close_reason = now, reason

    def book(self, place: int, what: What, seq: int) -> None:
        """Take note of what is written about a status."""
        match what:
            case What.STATUS:
                self.sent.append(seq)
            case What.COPY:
                self.copies.append(seq)
            case What.DELETE:
                self.deleted.append((place, seq))

    def is_open_for(self, seq: int) -> bool:
        """Say whether a status, live, falls into the life of the connection."""
        return max(self.first_seq, self.live_seq) <= seq and (self.closed_at is None or seq <= self.last_seq)


@dataclass(slots=True)
class Ledger:
    """All connections there ever were, oldest first."""

    connections: list[Connection] = field(default_factory=list)

    def register(
        self,
        *,
        user: str,
        endpoint: str,
        track: str = "",
        follow: str = "",
        since_seq: int | None = None,
        share: tuple[int, int] = WHOLE,
        published: int,
        now: float,
    ) -> Connection:
        """Open a connection that is sent what comes after since_seq, or after this moment."""
        first_seq = 1 + (published if since_seq is None else since_seq)
        connection = Connection(
            id=len(self.connections) + 1,
            user=user,
            endpoint=endpoint,
            track=track,
            follow=follow,
            since_seq=since_seq,
            share=share,
            first_seq=first_seq,
            live_seq=published + 1,
            last_seq=first_seq - 1,
            opened_at=now,
        )
        self.connections.append(connection)
        return connection

    def open_connections(self, user: str, endpoint: str, share: tuple[int, int] = WHOLE) -> list[Connection]:
        """Return the connections of a user to a share of an endpoint that are not closed, oldest first."""
        asked = user, endpoint, share
        return [c for c in self.connections if (c.user, c.endpoint, c.share) == asked and c.closed_at is None]

    def by_stream(self) -> list[list[Connection]]:
        """Return the connections to each share of an endpoint: streams of their own, which owe separately."""
        streams = dict.fromkeys((c.endpoint, c.share) for c in self.connections)
        return [[c for c in self.connections if (c.endpoint, c.share) == stream] for stream in streams]

    def as_json(self) -> list[dict[str, object]]:
        """Return the connections as plain objects."""
        return [{f.name: getattr(c, f.name) for f in fields(c)} for c in self.connections]


def owed(connections: Iterable[Connection]) -> dict[int, int]:
    """Map what a client must have received to the newest connection that owes it, by rising seq.

    Args:
        connections: those to one share of an endpoint.
    """
    return _owed(connections, lambda connection: ((seq, seq) for seq in connection.sent))


def owed_deletes(connections: Iterable[Connection]) -> dict[int, int]:
    """Map what a client must know to be deleted to the newest connection that owes it, by rising seq.

    Args:
        connections: those to one share of an endpoint.
    """
    return _owed(connections, lambda connection: connection.deleted)


def sent(connections: Iterable[Connection]) -> dict[int, int]:
    """Map what a client may have received to the newest connection it was sent on.

    Args:
        connections: those to one share of an endpoint.
    """
    by_age = sorted(connections, key=lambda c: c.id)
    return dict(sorted((seq, c.id) for c in by_age for seq in (*c.sent, *c.copies)))


def sent_deletes(connections: Iterable[Connection]) -> dict[int, int]:
    """Map what a client may know to be deleted to the newest connection it was said on.

    Args:
        connections: those to one share of an endpoint.
    """
    by_age = sorted(connections, key=lambda c: c.id)
    return dict(sorted((seq, c.id) for c in by_age for _, seq in c.deleted))


def _owed(
    connections: Iterable[Connection], written: Callable[[Connection], Iterable[tuple[int, int]]]
) -> dict[int, int]:
    """Map what is *written*, as (place, seq), to the newest connection that owes it."""
    by_age = sorted(connections, key=lambda c: c.id)
    owing: dict[int, int] = {}
    for k, connection in enumerate(by_age):
        newer = [
            other
            for other in by_age[k + 1 :]
            if other.user == connection.user and _overlap(connection, other)
        ]
        for place, seq in written(connection):
            replayed = place < connection.live_seq
            if replayed or not any(other.is_open_for(place) for other in newer):
                owing[seq] = connection.id
    return dict(sorted(owing.items()))


def _overlap(older: Connection, newer: Connection) -> bool:
    # Spares the loop over statuses the many connections that came long after.
    return newer.live_seq <= older.last_seq
