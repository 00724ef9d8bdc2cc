"""What to do after a connection failed or ended: which class it falls in, and how long to wait. Pure.

Two questions, answered apart: `classify` says what kind of failure it was, `Pace` how long to wait.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from enum import Enum
from random import Random

from connector.errors import (
    BadStatus,
    Disconnected,
    EndedByServer,
    RulesRefused,
    Unsendable,
    WrongContent,
)
from connector.stream.dialect import Dialect

MAX_WAIT_S = 24 * 3600.0
"""Longest wait that an upstream can ask for: beyond that it is more likely wrong than meant."""


class Outcome(Enum):
    """The classes of failure; each falls in exactly one."""

    NETWORK = "network"  # TCP, TLS, stalls, streams that end or break: the network rule
    HTTP = "http"  # statuses and bodies that say "not now": the HTTP rule
    RATE_LIMITED = "rate_limited"  # too often or too many: its own rule, or what the answer asks for
    ENDED = "ended"  # the server announced that it closes: as a stream that ends
    REPLACED = "replaced"  # the same, because a newer connection took over
    CROWDED = "crowded"  # one connection too many: as a rate limit
    REFUSED = "refused"  # will not work until predicates, credentials or configuration change


_BROKEN = frozenset({Outcome.NETWORK, Outcome.ENDED, Outcome.REPLACED})
_LIMITED = frozenset({Outcome.RATE_LIMITED, Outcome.CROWDED})


def classify(error: Disconnected, dialect: Dialect) -> Outcome:
    """Return the class of *error*."""
    policy, notice = dialect.policy, dialect.messages.disconnect
    crowded = policy.too_many_connections
    match error:
        case BadStatus() if crowded and re.search(crowded, str(error)):
            return Outcome.CROWDED
        case BadStatus(status=status) if status in policy.rate_limited:
            return Outcome.RATE_LIMITED
        case BadStatus(status=status) if status in policy.refused:
            return Outcome.REFUSED
        case EndedByServer(code=code) if notice and code in {str(one) for one in notice.refused}:
            return Outcome.REFUSED
        case EndedByServer(code=code) if notice and code in {str(one) for one in notice.replaced}:
            return Outcome.REPLACED
        case EndedByServer():
            return Outcome.ENDED
        case Unsendable() | RulesRefused() | WrongContent(is_declared=True):
            return Outcome.REFUSED
        case BadStatus() | WrongContent():
            return Outcome.HTTP
        case _:
            return Outcome.NETWORK


@dataclass(slots=True)
class Pace:
    """How long to wait, each rule going on from its own last delay until a connection was healthy.

    Healthy is a connection that brought bytes and lived for the dialect's ``healthy_after_s``: a 200
    that is followed by an end, by an HTML page or by an error message proves nothing.
    """

    dialect: Dialect
    rng: Random
    _delays: Mapping[Outcome, Iterator[float]] = field(init=False)

    def __post_init__(self) -> None:
        self._reset()

    def after(
        self, outcome: Outcome, *, was_healthy: bool, asked_s: float | None = None, floor_s: float = 0.0
    ) -> float:
        """Return the seconds to wait after a failure.

        Args:
            outcome: its class.
            was_healthy: the connection that ended was healthy. After such a one the network rule begins
                with an attempt at once: platforms ask for that, and it is what keeps the gap short.
            asked_s: how long the answer asks to wait.
            floor_s: how long the stream said to wait before each reconnect (``retry`` of SSE).
        """
        if was_healthy:
            self._reset()
        delay_s = 0.0 if was_healthy and outcome in _BROKEN else next(self._delays[outcome])
        if outcome in _BROKEN:
            delay_s = max(delay_s, min(floor_s, self.dialect.backoff.http.cap_s))
        return max(delay_s, min(asked_s or 0.0, MAX_WAIT_S))

    def _reset(self) -> None:
        rules, slow_s = self.dialect.backoff, self.dialect.policy.retry_refused_after_s
        network = rules.network.backoff().delays(self.rng)
        limited = rules.rate_limited.backoff().delays(self.rng)
        self._delays = {
            Outcome.NETWORK: network,
            Outcome.ENDED: network,
            Outcome.REPLACED: network,
            Outcome.HTTP: rules.http.backoff().delays(self.rng),
            Outcome.RATE_LIMITED: limited,
            Outcome.CROWDED: limited,
            Outcome.REFUSED: _always(slow_s),
        }


def asked_s(error: Disconnected, outcome: Outcome) -> float | None:
    """Return how long the upstream asks to wait; None if it does not."""
    if not isinstance(error, BadStatus):
        return None
    resets_s = error.reset_in_s if outcome in _LIMITED else None
    return max((wait_s for wait_s in (error.retry_after_s, resets_s) if wait_s is not None), default=None)


def retry_after_s(text: str, now: float) -> float | None:
    """Read ``Retry-After`` (RFC 9110, section 10.2.3): seconds, or a date; None if it is neither."""
    if (seconds := _number(text)) is not None:
        return max(0.0, seconds)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def reset_in_s(text: str, now: float) -> float | None:
    """Read ``x-rate-limit-reset`` (X, and others after it): an instant in seconds since the epoch."""
    at = _number(text)
    return None if at is None else max(0.0, at - now)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _always(delay_s: float) -> Iterator[float]:
    while True:
        yield delay_s
