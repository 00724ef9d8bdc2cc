"""Delays between connection attempts. Pure: no clock, no sleep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """One rule for linear and exponential delays: ``next = min(cap, add + factor * delay)``.

    Jitter is taken from each delay after the cap, so that a fleet does not reconnect in step and
    never waits longer than the platform asks for.

    Attributes:
        first_s: the first delay, in seconds.
        add_s: what each further delay adds, in seconds.
        factor: what each further delay is multiplied by; 1 makes the rule linear.
        cap_s: largest delay of all, in seconds.
        jitter: random share taken off a delay; 0 is none, 1 is all of it.
    """

    first_s: float
    add_s: float
    factor: float
    cap_s: float
    jitter: float

    def delays(self, rng: Random) -> Iterator[float]:
        """Yield one delay in seconds per failed attempt, without end."""
        delay_s = self.first_s
        while True:
            delay_s = min(self.cap_s, delay_s)
            yield delay_s * (1 - self.jitter * rng.random())
            delay_s = self.add_s + self.factor * delay_s
