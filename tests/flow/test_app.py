"""What the process reports about its parts."""

from __future__ import annotations

import asyncio

from connector.app import _probe
from connector.delivery.outbox import Entry, Outbox
from connector.model import Tenure
from connector.ops.health import Health


class Cluster:
    """A cluster that answers, and misses some topics."""

    def __init__(self, *missing: str) -> None:
        self._missing = missing

    def missing(self, _needed: object) -> list[str]:
        return [*self._missing]


async def test_a_writers_trouble_ends_with_the_lease_of_what_it_could_not_write() -> None:
    """Else a replica that has nothing more to write would never again be ready."""
    health, outbox, tenure = Health(), Outbox(1 << 20), Tenure(0, 1)
    outbox.put(Entry(tenure=tenure))
    health.report("writer", "abort: _TIMED_OUT")
    assert await _probed(Cluster(), health, outbox) == ["writer: abort: _TIMED_OUT"]
    outbox.drop(tenure)
    assert await _probed(Cluster(), health, outbox) == []


async def test_a_topic_that_is_deleted_is_named() -> None:
    """The writer alone would only say that its records are not taken."""
    health, outbox = Health(), Outbox(1 << 20)
    assert await _probed(Cluster("a: gone", "b: gone"), health, outbox) == ["topics: a: gone; b: gone"]
    assert await _probed(Cluster(), health, outbox) == []


async def _probed(cluster: Cluster, health: Health, outbox: Outbox) -> list[str]:
    probing = asyncio.create_task(_probe(cluster, [], health, outbox))  # type: ignore[arg-type]
    await asyncio.wait([probing], timeout=0.5)
    probing.cancel()
    return health.troubles()
