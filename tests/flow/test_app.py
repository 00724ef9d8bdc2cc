"""What the process reports about its parts."""

from __future__ import annotations

import asyncio

from connector.app import _probe
from connector.delivery.outbox import Entry, Outbox
from connector.model import Tenure
from connector.ops.health import Health


class Reached:
    """A cluster that answers."""

    def partitions(self) -> dict[str, int]:
        return {}


async def test_a_writers_trouble_ends_with_the_lease_of_what_it_could_not_write() -> None:
    """Else a replica that has nothing more to write would never again be ready."""
    health, outbox, tenure = Health(), Outbox(1 << 20), Tenure(0, 1)
    outbox.put(Entry(tenure=tenure))
    health.report("writer", "abort: _TIMED_OUT")
    assert await _probed(health, outbox) == ["writer: abort: _TIMED_OUT"]
    outbox.drop(tenure)
    assert await _probed(health, outbox) == []


async def _probed(health: Health, outbox: Outbox) -> list[str]:
    probing = asyncio.create_task(_probe(Reached(), health, outbox))  # type: ignore[arg-type]
    await asyncio.wait([probing], timeout=0.5)
    probing.cancel()
    return health.troubles()
