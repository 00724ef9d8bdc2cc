"""Readers over real sockets, without patience, and what they bring."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import aclosing

from connector.model import PredicateSet
from connector.stream import dialect
from connector.stream.budget import Budget
from connector.stream.connection import HttpConnect, Target
from connector.stream.credentials import NoCredentials
from connector.stream.reader import Ask, Lost, Reader, ReaderEvent, Received

PATIENCE_S = 60
SOON = {"first_s": 0.01, "add_s": 0, "factor": 1, "cap_s": 0.01, "jitter": 0}
QUICK = {
    "backoff": {"network": SOON, "http": SOON, "rate_limited": SOON},
    "liveness": {"connect_timeout_s": 20, "headers_timeout_s": 20, "stall_timeout_s": 20},
}
TRACK = PredicateSet.of({"track": ["kafka"]})


def manners(name: str = "ndjson", **override: object) -> dialect.Dialect:
    merged = {**QUICK, **override}
    if "liveness" in override:
        merged["liveness"] = {**QUICK["liveness"], **override["liveness"]}
    return dialect.load(name, merged)


def reader(
    url: str, its: dialect.Dialect | None = None, cursor: Callable[[], str | None] = lambda: None, **target
) -> Reader:
    its = its or manners()
    where = {"credentials": NoCredentials(), **target}
    return Reader(
        connect=HttpConnect(),
        target=Target(url=url, liveness=its.liveness, response=its.response, **where),
        dialect=its,
        ask=lambda: Ask(TRACK, cursor()),
        budget=Budget(),
        wall=lambda: 0.0,
        rng=random.Random(1),
    )


async def take(source: Reader, enough: Callable[[list[ReaderEvent]], bool]) -> list[ReaderEvent]:
    """Return the reader's events until they are enough."""
    seen: list[ReaderEvent] = []
    async with asyncio.timeout(PATIENCE_S), aclosing(source.events()) as events:
        async for event in events:
            seen.append(event)
            if enough(seen):
                return seen
    raise AssertionError


def ids(seen: Sequence[ReaderEvent]) -> list[str]:
    return [one.id for event in seen if isinstance(event, Received) for one in event.messages.statuses]


def lost(seen: Sequence[ReaderEvent]) -> list[Lost]:
    return [event for event in seen if isinstance(event, Lost)]


async def first_loss(source: Reader) -> Lost:
    return lost(await take(source, lost))[0]


def until(count: int) -> Callable[[list[ReaderEvent]], bool]:
    return lambda seen: len(ids(seen)) >= count
