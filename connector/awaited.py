"""The answers to one control record, until the last of them.

A record for a stream with shares is dealt to them, and each answers: it takes all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_IN_FORCE = frozenset({"predicates.applied", "predicates.unchanged"})
_NOT_IN_FORCE = frozenset({"predicates.rejected", "predicates.refused", "predicates.superseded"})


class Awaited:
    """What becomes of the record that a publisher put to a place.

    Attributes:
        is_over: nothing more will be told.
        is_in_force: nobody said that it is not.
    """

    def __init__(self, partition: int, offset: int) -> None:
        """Wait for what is told of that place."""
        self._place = partition, offset
        self._shares: set[str] | None = None  # that have not told yet
        self.is_over = False
        self.is_in_force = True

    def take(self, answer: Mapping[str, Any]) -> bool:
        """Take an event of the events topic; return whether it is about the record."""
        data, kind = answer["data"], answer["type"]
        if (data.get("partition"), data.get("offset")) != self._place:
            return False
        if kind == "predicates.dealt":
            self._shares = set(data["shares"])
        elif kind in _IN_FORCE | _NOT_IN_FORCE:
            self.is_in_force = self.is_in_force and kind in _IN_FORCE
            if self._shares is not None:
                self._shares.discard(answer.get("subject", ""))
            self.is_over = not self._shares
        return True


def awaited(
    answers: Iterable[Mapping[str, Any] | None],
    partition: int,
    offset: int,
    timeout_s: float | None,
    tell: Callable[[Mapping[str, Any]], None],
) -> bool | None:
    """Wait until nothing more will be told of the record at a place, and say whether it is in force.

    Args:
        answers: all that are given; None now and then, to look at the clock.
        partition: where the record is.
        offset: where it is there.
        timeout_s: how long to wait; None for ever.
        tell: what to do with each answer to the record.

    Returns:
        None if the time is over before.
    """
    record = Awaited(partition, offset)
    give_up_at = math.inf if timeout_s is None else time.monotonic() + timeout_s
    for answer in answers:
        if answer is not None and record.take(answer):
            tell(answer)
            if record.is_over:
                return record.is_in_force
        if time.monotonic() > give_up_at:
            break
    return None
