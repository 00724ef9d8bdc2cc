"""Changes an upstream's rules beside the open connection: attempts one after another, until one succeeds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from random import Random

from connector.errors import Disconnected
from connector.stream.call import call
from connector.stream.connection import Connect, Target
from connector.stream.dialect import Dialect
from connector.stream.policy import Pace, asked_s, classify
from connector.stream.reader import Ask, Lost, code_of, wait


@dataclass(frozen=True, slots=True)
class Amended:
    """The upstream confirmed that its rules are those that were asked for last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Amender:
    """Makes an upstream's rules the wanted ones; `Reader` does so itself before it connects.

    Attributes:
        ask: says what to ask for; called at every attempt.
        changed: set when there is something new to ask for; it ends the wait after a refusal.
    """

    connect: Connect
    target: Target
    dialect: Dialect
    ask: Callable[[], Ask]
    rng: Random
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def events(self) -> AsyncGenerator[Amended | Lost, None]:
        """Yield each failure, with when the next attempt comes, and success at the end."""
        pace = Pace(self.dialect, self.rng)
        while True:
            self.changed.clear()
            proof = self.target.fingerprint()
            asked = call(self.dialect, self.ask().predicates, None)
            try:
                await self.connect.amend(self.target, asked.rules or ())
            except Disconnected as error:
                outcome = classify(error, self.dialect)
                delay_s = pace.after(outcome, was_healthy=False, asked_s=asked_s(error, outcome))
                yield Lost(str(error), outcome, delay_s, code=code_of(error))
                await wait(outcome, delay_s, self.target, proof, self.changed)
            else:
                yield Amended()
                return
