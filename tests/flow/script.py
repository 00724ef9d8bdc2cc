"""Connections that follow a script in virtual time, and fail the test beyond its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from connector.stream import dialect
from connector.stream.call import Call
from connector.stream.connection import Opened, Target
from connector.stream.credentials import NoCredentials
from connector.stream.dialect import Dialect

NO_JITTER = {rule: {"jitter": 0} for rule in ("network", "http", "rate_limited")}
LINES = {
    "framing": {"kind": "lines"},
    "request": {"parameters": {"delimited": None}},
    "backoff": NO_JITTER,
    "budget": None,
}
RESUMABLE = {**LINES, "resume": {"parameter": "since_seq", "cursor": "/seq"}}


def manners(override: Mapping[str, object] = LINES) -> Dialect:
    """Return the dialect twitter-v1 in lines, without jitter."""
    return dialect.load("twitter-v1", override)


TARGET = Target(url="http://upstream", credentials=NoCredentials(), liveness=manners().liveness)


def line(number: int) -> bytes:
    """Return one status as the upstream writes it."""
    return b'{"id_str":"%d","seq":%d}\r\n' % (number, number)


def lines(*numbers: int) -> bytes:
    """Return several."""
    return b"".join(map(line, numbers))


@dataclass(frozen=True)
class Wait:
    """Nothing comes for so long."""

    seconds: float


@dataclass(frozen=True)
class Hang:
    """Nothing comes any more, but the connection stays open."""


Step = bytes | Opened | Wait | Hang | Exception


@dataclass
class Attempt:
    """One connection, as the upstream saw it."""

    form: Mapping[str, str]
    at: float
    headers: Mapping[str, str] = field(default_factory=dict)
    rules: Sequence[str] | None = None
    closed_at: float | None = None


@dataclass
class Script:
    """What each connection brings, in order; implements `Connect`.

    Attributes:
        closing_s: how long it takes to close one, as TLS may.
        amending: what becomes of each change of the rules, in order: nothing bad, an error, or a delay;
            beyond its end nothing bad.
        amendments: the rules of each change, and when it began.
    """

    connections: Sequence[Sequence[Step]]
    closing_s: float = 0.0
    attempts: list[Attempt] = field(default_factory=list)
    most_open: int = 0
    amending: Sequence[Exception | Wait | None] = ()
    amendments: list[tuple[list[str], float]] = field(default_factory=list)

    async def amend(self, target: Target, rules: Sequence[str]) -> None:
        number = len(self.amendments)
        self.amendments.append((list(rules), asyncio.get_running_loop().time()))
        match self.amending[number] if number < len(self.amending) else None:
            case Wait(seconds):
                await asyncio.sleep(seconds)
            case Exception() as error:
                raise error

    async def __call__(self, target: Target, call: Call) -> AsyncGenerator[Opened | bytes, None]:
        clock = asyncio.get_running_loop().time
        number = len(self.attempts)
        assert number < len(self.connections), f"connection {number + 1} is not in the script"
        attempt = Attempt(
            dict(parse_qsl(call.body.decode() or call.query)), clock(), call.headers, call.rules
        )
        self.attempts.append(attempt)
        self.most_open = max(self.most_open, sum(one.closed_at is None for one in self.attempts))
        try:
            for step in self.connections[number]:
                match step:
                    case Wait(seconds):
                        await asyncio.sleep(seconds)
                    case Hang():
                        await asyncio.Event().wait()
                    case Exception():
                        raise step
                    case _:
                        yield step
        finally:
            if self.closing_s:
                await asyncio.sleep(self.closing_s)
            attempt.closed_at = clock()
