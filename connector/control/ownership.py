"""What a replica is told about the partitions that it owns."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from connector.model import ControlRecord, Tenure


@dataclass(frozen=True, slots=True)
class Assigned:
    """These partitions are ours from now on; their records follow from the beginning."""

    tenures: frozenset[Tenure]


@dataclass(frozen=True, slots=True)
class Revoked:
    """These partitions are taken away, or may be soon, once `released` is set or the budget ends."""

    tenures: frozenset[Tenure]
    released: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Lost:
    """These partitions may already be another replica's: nothing more can be committed for them."""

    tenures: frozenset[Tenure]


@dataclass(frozen=True, slots=True)
class Read:
    """Control records, in order."""

    records: list[ControlRecord]


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """All that the partition held has been read."""

    partition: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The group cannot go on; the process must end."""

    error: Exception


LeaseEvent = Assigned | Revoked | Lost | Read | CaughtUp | Failed
