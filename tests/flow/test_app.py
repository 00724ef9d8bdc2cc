"""What the process reports about its parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from confluent_kafka import KafkaError

from connector import app
from connector.app import _probe, _write
from connector.delivery.outbox import Entry, Outbox
from connector.delivery.verdict import Verdict
from connector.delivery.writer import Failed, Outcome, Unrecovered
from connector.errors import WriteRefused
from connector.model import Tenure
from connector.ops.health import Health
from connector.ops.metrics import Metrics


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


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_refusal_that_lasts_ends_the_process(at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it meets the batch or the producer after a failed one; what passes begins the time anew."""
    error = KafkaError(KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "no right")
    kind = Failed if at_once else Unrecovered
    refused, other = kind(error, Verdict.FATAL), Unrecovered(error, Verdict.RETRY)
    health = Health()
    await _write(Told(refused, refused), Outbox(1 << 20), None, health, Metrics())  # type: ignore[arg-type]
    assert health.troubles() == ["writer: fatal: TRANSACTIONAL_ID_AUTHORIZATION_FAILED: no right"]
    monkeypatch.setattr(app, "HOPELESS_S", 0)
    await _write(Told(refused, other, refused), Outbox(1 << 20), None, health, Metrics())  # type: ignore[arg-type]
    with pytest.raises(WriteRefused, match="TRANSACTIONAL_ID_AUTHORIZATION_FAILED"):
        await _write(Told(refused, refused), Outbox(1 << 20), None, health, Metrics())  # type: ignore[arg-type]


class Told:
    """A writer with these outcomes."""

    def __init__(self, *outcomes: Outcome) -> None:
        self._outcomes = outcomes

    async def run(self, *_: object) -> AsyncGenerator[Outcome, None]:
        for outcome in self._outcomes:
            yield outcome


async def _probed(cluster: Cluster, health: Health, outbox: Outbox) -> list[str]:
    probing = asyncio.create_task(_probe(cluster, [], health, outbox))  # type: ignore[arg-type]
    await asyncio.wait([probing], timeout=0.5)
    probing.cancel()
    return health.troubles()
