"""The endless reader: connections one after another, their messages and changes in one stream."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from random import Random

from connector.errors import BadStatus, Disconnected
from connector.model import PredicateSet
from connector.stream.backoff import Backoff
from connector.stream.connection import Connect, Opened, Target
from connector.stream.dialect import Dialect
from connector.stream.messages import Decoder, Messages

_RATE_LIMITED = frozenset({420, 429})


@dataclass(frozen=True, slots=True)
class Ask:
    """What one connection asks for: the predicates, and the cursor to go on after."""

    predicates: PredicateSet
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Connected:
    """The upstream answered 200. It has not proven to be alive yet."""


@dataclass(frozen=True, slots=True)
class Live:
    """The first bytes of a connection arrived: the proof of life."""


@dataclass(frozen=True, slots=True)
class Received:
    """One chunk's worth.

    Attributes:
        messages: what it held; may be nothing but a keep-alive.
        wire_bytes: its size.
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
        retry_in_s: when the next attempt comes.
        cut_bytes: bytes of an unfinished frame that were dropped with it.
    """

    reason: str
    retry_in_s: float
    cut_bytes: int = 0


ReaderEvent = Connected | Live | Received | Lost


@dataclass(slots=True)
class _Delays:
    """The three back-off rules, each going on from its own last delay until bytes arrive."""

    network: Iterator[float]
    http: Iterator[float]
    rate_limited: Iterator[float]

    def after(self, error: Disconnected) -> float:
        match error:
            case BadStatus(status=status) if status in _RATE_LIMITED:
                return next(self.rate_limited)
            case BadStatus():
                return next(self.http)
            case _:
                return next(self.network)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Reads one stream over as many connections as it takes.

    Attributes:
        ask: says what to ask for; called at every attempt, so that a reconnect always carries the
            newest predicates.
    """

    connect: Connect
    target: Target
    dialect: Dialect
    ask: Callable[[], Ask]
    rng: Random

    async def events(self) -> AsyncGenerator[ReaderEvent, None]:
        """Yield messages and connection changes, in order, for ever.

        Close it with `contextlib.aclosing`; that closes the connection.
        """
        decoder = Decoder(self.dialect)
        delays = self._delays()
        while True:
            framer = self.dialect.framing.framer()
            live = False
            error = Disconnected("the server ended the stream")
            try:
                asked = self.ask()
                form = self.dialect.form(asked.predicates, asked.cursor)
                async with aclosing(self.connect(self.target, form)) as chunks:
                    async for chunk in chunks:
                        if isinstance(chunk, Opened):
                            yield Connected()
                            continue
                        if not live:
                            live = True
                            delays = self._delays()  # bytes arrived; a 200 alone proves nothing
                            yield Live()
                        frames = framer.feed(chunk)
                        messages = decoder.decode(frames)
                        discarded, framer.discarded = framer.discarded, Counter()
                        yield Received(messages, len(chunk), discarded)
                        if messages.disconnect is not None:
                            error = Disconnected(f"the server said {messages.disconnect}")
                            break
            except Disconnected as raised:
                error = raised
            retry_in_s = delays.after(error)
            yield Lost(str(error), retry_in_s, framer.held_bytes)
            await asyncio.sleep(retry_in_s)

    def _delays(self) -> _Delays:
        rules = self.dialect.backoff
        return _Delays(
            _start(rules.network.backoff(), self.rng),
            _start(rules.http.backoff(), self.rng),
            _start(rules.rate_limited.backoff(), self.rng),
        )


def _start(backoff: Backoff, rng: Random) -> Iterator[float]:
    return backoff.delays(rng)
