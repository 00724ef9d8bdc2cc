"""The endless reader: connections one after another, their messages and changes in one stream."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from random import Random

from connector.errors import BadStatus, Disconnected, EndedByServer, Stalled, Unreachable
from connector.model import PredicateSet
from connector.stream.budget import Budget
from connector.stream.call import call, since
from connector.stream.connection import Connect, Opened, Target
from connector.stream.dialect import Dialect
from connector.stream.intake import Intake
from connector.stream.messages import Decoder, Messages
from connector.stream.policy import Outcome, Pace, asked_s, classify

_LOOK_S = 5.0
"""How often a refused reader looks whether its credentials have changed."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What one connection asks for.

    Attributes:
        cursor: the status to go on after, or None.
        since: the time to go on from, in seconds since the epoch, or None.
    """

    predicates: PredicateSet
    cursor: str | None = None
    since: float | None = None

    @property
    def resumes(self) -> bool:
        """Whether it asks for what was sent before."""
        return bool(self.cursor) or self.since is not None


@dataclass(frozen=True, slots=True)
class Deferred:
    """The next attempt has to wait until the connect budget allows it."""

    wait_s: float


@dataclass(frozen=True, slots=True)
class Connecting:
    """An attempt begins."""


@dataclass(frozen=True, slots=True)
class Connected:
    """The upstream answered 200. It has not proven to be alive yet."""


@dataclass(frozen=True, slots=True)
class Live:
    """The first bytes of a connection arrived: the proof of life."""


@dataclass(frozen=True, slots=True)
class Received:
    """One piece of a stream.

    Attributes:
        messages: what it held; may be nothing but a keep-alive.
        wire_bytes: its size; 0 for what one chunk brought beyond its first piece.
        discarded: bytes that could not be used, by reason.
    """

    messages: Messages
    wire_bytes: int
    discarded: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection, or the attempt at one, is over.

    Attributes:
        reason: why, for people.
        outcome: its class.
        retry_in_s: when the next attempt comes; after a refusal sooner if something changes.
        code: HTTP status, or the kind of the server's announcement.
        is_stall: silence was the reason.
        silent_s: for how long nothing had come on a live connection by then, as far as is known.
        discarded: bytes dropped with it, by reason.
    """

    reason: str
    outcome: Outcome
    retry_in_s: float
    code: str | None = None
    is_stall: bool = False
    silent_s: float = 0.0
    discarded: Counter[str] = field(default_factory=Counter)


ReaderEvent = Deferred | Connecting | Connected | Live | Received | Lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Reads one stream over as many connections as it takes.

    Attributes:
        ask: says what to ask for; called at every attempt, so that a reconnect always carries the
            newest predicates.
        budget: shared by all readers of the stream.
        wall: reads the wall clock, in seconds since the epoch.
        changed: set when there is something new to ask for; it ends the wait after a refusal.
    """

    connect: Connect
    target: Target
    dialect: Dialect
    ask: Callable[[], Ask]
    budget: Budget
    wall: Callable[[], float]
    rng: Random
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def events(self) -> AsyncGenerator[ReaderEvent, None]:
        """Yield messages and connection changes, in order, for ever.

        Close it with `contextlib.aclosing`; that closes the connection.
        """
        decoder = Decoder(self.dialect)
        pace = Pace(self.dialect, self.rng)
        clock = asyncio.get_running_loop().time
        while True:
            while (wait_s := self.budget.wait_s(self.wall())) > 0:
                yield Deferred(wait_s)
                await asyncio.sleep(wait_s)
            spent_at = self.wall()
            self.budget.spend(spent_at)
            self.changed.clear()
            proof = self.target.fingerprint()
            asked = self.ask()
            yield Connecting()
            live_at: float | None = None
            opened_at: float | None = None
            intake: Intake | None = None
            error = Disconnected("the server ended the stream")
            try:
                request = call(self.dialect, asked.predicates, _resumption(self.dialect, asked, spent_at))
                async with aclosing(self.connect(self.target, request)) as chunks:
                    async for chunk in chunks:
                        if isinstance(chunk, Opened):
                            opened_at = clock()
                            intake = Intake(self.dialect, decoder, chunk.coding)
                            yield Connected()
                            continue
                        assert intake is not None
                        if live_at is None:
                            live_at = clock()
                            yield Live()
                        wire_bytes = len(chunk)
                        ended = None
                        for piece in intake.feed(chunk):
                            yield Received(piece.messages, wire_bytes, piece.discarded)
                            wire_bytes = 0
                            ended = piece.messages.disconnect or ended
                        if ended is not None:
                            error = ended
                            break
                if intake is not None and not intake.is_whole and not isinstance(error, EndedByServer):
                    error = Disconnected("the server ended the stream within a compressed message")
            except Disconnected as raised:
                error = raised
                if isinstance(error, Unreachable):
                    self.budget.refund(spent_at)
            outcome = classify(error, self.dialect)
            was_healthy = self._was_healthy(clock(), opened_at, live_at)
            delay_s = pace.after(
                outcome,
                was_healthy=was_healthy,
                asked_s=asked_s(error, outcome),
                floor_s=intake.retry_s if intake else 0.0,
            )
            yield Lost(
                str(error),
                outcome,
                max(delay_s, self.budget.wait_s(self.wall())),
                code=code_of(error),
                is_stall=isinstance(error, Stalled),
                silent_s=error.silent_s if isinstance(error, Stalled) else 0.0,
                discarded=intake.end() if intake else Counter(),
            )
            await wait(outcome, delay_s, self.target, proof, self.changed)

    def _was_healthy(self, now: float, opened_at: float | None, live_at: float | None) -> bool:
        liveness = self.dialect.liveness
        if live_at is None and opened_at is not None and liveness.grace_s is not None:
            live_at = opened_at + liveness.grace_s
        return live_at is not None and now - live_at >= liveness.healthy_after_s


async def wait(
    outcome: Outcome, delay_s: float, target: Target, proof: object, changed: asyncio.Event
) -> None:
    """Wait for *delay_s*; after a refusal only until there is something else to ask for, or to prove.

    Args:
        outcome: of the last attempt.
        delay_s: until the next one.
        target: whose credentials may change.
        proof: of identity, as of the last attempt.
        changed: says that there is something else to ask for.
    """
    if outcome is not Outcome.REFUSED:
        await asyncio.sleep(delay_s)
        return
    clock = asyncio.get_running_loop().time
    until = clock() + delay_s
    while (now := clock()) < until and target.fingerprint() == proof:
        with suppress(TimeoutError):
            async with asyncio.timeout_at(min(until, now + _LOOK_S)):
                await changed.wait()
                return


def _resumption(dialect: Dialect, asked: Ask, now: float) -> str | None:
    if dialect.resume is None or asked.since is None:
        return asked.cursor
    return since(dialect.resume, asked.since, now)


def code_of(error: Disconnected) -> str | None:
    """Return the HTTP status, or the kind of the server's announcement."""
    match error:
        case BadStatus(status=status):
            return str(status)
        case EndedByServer(code=code):
            return code
        case _:
            return None
