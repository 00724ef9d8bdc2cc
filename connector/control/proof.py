"""What a lease rests on: a generation that fences, a coordinator that answers, an event loop that runs.

The client library tells none of them in time. It ends a session when that is over, and another replica may
run the streams by then; and it sends heartbeats for a process whose event loop has been stuck for hours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import msgspec


class _Broker(msgspec.Struct):
    rxidle: int = -1  # microseconds since it sent something over this connection


class _Group(msgspec.Struct):
    state: str = ""
    join_state: str = ""


class _Statistics(msgspec.Struct):
    brokers: dict[str, _Broker] = {}
    cgrp: _Group | None = None


_decode = msgspec.json.Decoder(_Statistics).decode


def has_generation(metadata: bytes | None) -> bool:
    """Whether serialised group metadata names a generation.

    Without one (``-1``) the broker takes the offsets of anybody, so such metadata fences nothing.
    librdkafka writes ``CGMDv2:`` and the generation as an int32 in the machine's byte order
    (`rd_kafka_consumer_group_metadata_write`).
    """
    if metadata is None or not metadata.startswith(b"CGMDv2:"):
        return False
    return int.from_bytes(metadata[7:11], sys.byteorder, signed=True) >= 0


class Standing:
    """What librdkafka's statistics say about a membership.

    Attributes:
        heard_at: when the coordinator was heard last. Between rebalances it answers every heartbeat. In one
            its silence says nothing: it keeps a request to join until all have come, and until then nobody
            else is given anything.
        astray: how many statistics in a row had no coordinator, or no attempt to join. A client may have
            forgotten every broker in an outage, or which of them coordinates the group, and then it stays so
            (seen with librdkafka 2.16, whatever its ``metadata.recovery.strategy``).
    """

    def __init__(self) -> None:
        """Know nothing."""
        self.heard_at = 0.0
        self.astray = 0

    def take(self, statistics: str | bytes, now: float) -> None:
        """Take note of what librdkafka hands to `stats_cb` (its STATISTICS.md).

        Args:
            statistics: as they are.
            now: when they were made, on the clock of `heard_at`.
        """
        told = _decode(statistics)
        group = told.cgrp or _Group()
        self.astray = self.astray + 1 if group.state != "up" or group.join_state == "init" else 0
        if group.join_state != "steady":
            self.heard_at = now
            return
        coordinator = told.brokers.get("GroupCoordinator")
        if coordinator is not None and coordinator.rxidle >= 0:
            self.heard_at = now - coordinator.rxidle / 1e6


class Pulse:
    """How long the event loop has left a question unanswered, counted in polls of another thread.

    Polls, as a process that was stopped as a whole finds its clock far ahead when it goes on, and its loop as
    alive as before.
    """

    def __init__(self, longest_s: float) -> None:
        """Take the loop for alive.

        Args:
            longest_s: more than this between two polls is not the loop's fault.
        """
        self._longest_s = longest_s
        self._polled_at: float | None = None
        self._is_asked = False
        self.silent_s = 0.0

    def poll(self, now: float, ask: Callable[[Callable[[], None]], None]) -> None:
        """Count the time since the last poll, if the loop owes an answer, and ask it if not.

        Args:
            now: in seconds, on any clock that never goes back.
            ask: lets the loop call what it is given.
        """
        if self._is_asked and self._polled_at is not None:
            self.silent_s += min(now - self._polled_at, self._longest_s)
        self._polled_at = now
        if not self._is_asked:
            self._is_asked = True
            ask(self._answer)

    def _answer(self) -> None:
        self.silent_s = 0.0
        self._is_asked = False
