"""Kafka is away for a while under load: memory stays flat, and nothing is lost that need not be."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from contextlib import ExitStack
from datetime import datetime
from itertools import accumulate, pairwise, takewhile
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import pytest
from harness import STREAM, Connector, Kafka, Upstream, await_complete, eventually, pace, stream
from kafka import Broker
from upstream.statuses import TOPICS

OUTAGE_S = float(os.environ.get("CONNECTOR_TEST_OUTAGE_S", "8"))

LOOSE = "loose"
LIVENESS = {"liveness": {"patience_s": 3}}  # longer than Kafka is slow where the machine is busy
RESUME = {"resume": {"parameter": "since_seq", "cursor": "/seq"}, **LIVENESS}

RATE = 250
STATUS_BYTES = 2000
OUTBOX_BYTES = 1 << 20
ON_ITS_WAY_BYTES = 2 * (64 << 10)
"""What is read and not yet in the outbox, at most: what comes off a socket at once, twice."""

SLACK_S = 5.0
"""How far the time at which a status is received may be from its publication, on a machine that is busy."""


class Look(NamedTuple):
    """What one look at a connector told."""

    rss_bytes: int
    outbox_bytes: float
    loose_wire_bytes: float
    is_ready: bool


class Party:
    """A connector with a stream that can resume and one that cannot, and their upstreams."""

    def __init__(self, folder: Path, bootstrap: str, session_timeout_s: float) -> None:
        folder.mkdir()
        self.kafka = Kafka(bootstrap)
        self.looks: list[Look] = []
        self._stack = ExitStack()
        options = ("--rate", str(RATE), "--status-bytes", str(STATUS_BYTES), "--connects", "1000")
        self.steady, self.loose = (self._stack.enter_context(Upstream(*options)) for _ in range(2))
        streams = {
            STREAM: stream(self.steady.url, override=RESUME),
            LOOSE: stream(self.loose.url, override=LIVENESS),
        }
        delivery = {"outbox_bytes": OUTBOX_BYTES}
        self.connector = Connector(folder, self.kafka, streams, session_timeout_s, delivery=delivery)

    def __enter__(self) -> Self:
        self._stack.enter_context(self.connector)
        self.connector.create_topics().start()
        for name in (STREAM, LOOSE):
            self.kafka.publish(name, {"track": list(TOPICS)})  # that is every status
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, failure, trace)

    def look(self) -> Look:
        """Take note of how the connector is."""
        assert self.connector.process is not None
        told = Path(f"/proc/{self.connector.process.pid}/status").read_text()
        look = Look(
            rss_bytes=int(told.partition("VmRSS:")[2].split()[0]) * 1024,
            outbox_bytes=self._metric("connector_outbox_bytes"),
            loose_wire_bytes=self._metric(f'connector_upstream_bytes_total{{stream="{LOOSE}"}}'),
            is_ready=self.connector.is_ready(),
        )
        self.looks.append(look)
        return look

    def flows(self) -> bool:
        """Whether a good deal of both streams is on the topic."""
        return all(len(self.kafka.delivered(name)) > 2 * RATE for name in (STREAM, LOOSE))

    def misses_kafka(self) -> bool:
        """Whether the connector says that Kafka is gone; a look is taken on the way."""
        return not self.look().is_ready and "kafka: unreachable" in self.connector.ops("/readyz")[1]

    def flows_again(self) -> bool:
        """Whether the upstreams have a connection that is not the first, and have sent something over it."""
        newest = [upstream.connections()[-1] for upstream in (self.steady, self.loose)]
        return all(one["id"] > 1 and one["sent"] and one["closed_at"] is None for one in newest)

    def freeze(self) -> None:
        """Let the upstreams publish nothing more."""
        self.steady.freeze()
        self.loose_published, self.frozen_at = self.loose.freeze(), time.time()

    def loose_published_at(self, number: int) -> float:
        """Return when the upstream published a status, in seconds since the epoch."""
        return self.frozen_at - (self.loose_published - number) / RATE

    @property
    def has_lost_its_lease(self) -> bool:
        """Whether the group took it for dead."""
        return bool(self.connector.logged("lease.lost"))

    @property
    def has_begun_anew(self) -> bool:
        """Whether what was in its outbox is gone: with its lease, or as Kafka undid what it confirmed."""
        return self.has_lost_its_lease or bool(self.connector.logged("writer.undone"))

    def gaps(self) -> list[dict[str, Any]]:
        """Return the events that tell of gaps."""
        events = [json.loads(message.value()) for message in self.kafka.records("events")]
        return [event for event in events if event["type"] == "stream.gap"]

    def _metric(self, name: str) -> float:
        lines = self.connector.ops("/metrics")[1].splitlines()
        return next(float(line.removeprefix(name)) for line in lines if line.startswith(f"{name} "))


@pytest.mark.skipif(
    shutil.which("java") is None, reason="stops and starts a broker of its own, which needs Java"
)
def test_an_outage_of_kafka_under_load_costs_no_memory_and_nothing_that_can_be_had_again(
    tmp_path: Path,
) -> None:
    """Two connectors: the outage outlives the lease of one, unless CONNECTOR_TEST_OUTAGE_S outlives both.

    Each reads a stream that resumes, of which nothing is missing then, and one that does not, of which
    what was read before the pause is there as long as the lease is, and an event bounds the rest.
    """
    broker = Broker(tmp_path / "kafka")
    port = int(broker.bootstrap.partition(":")[2])
    try:
        with (
            Party(tmp_path / "patient", broker.bootstrap, session_timeout_s=30) as patient,
            Party(tmp_path / "hasty", broker.bootstrap, session_timeout_s=5) as hasty,
        ):
            parties = (hasty, patient)
            for party in parties:
                eventually(party.flows, "a flow")
                eventually(party.connector.is_ready, "ready")
            usual = [party.look() for party in parties]
            committed = [len(party.kafka.delivered(LOOSE)) for party in parties]
            broker.stop()
            stopped_at = time.monotonic()
            for party in parties:
                party.looks.clear()
            for party in parties:
                eventually(party.misses_kafka, "not ready without Kafka")
            while time.monotonic() < stopped_at + OUTAGE_S:
                pace(0.5)
                for party in parties:
                    assert not party.look().is_ready
            full = [max(party.looks, key=lambda look: look.outbox_bytes) for party in parties]
            broker = Broker(tmp_path / "kafka", port)
            for party, before in zip(parties, usual, strict=True):
                eventually(lambda its=party: its.look().is_ready, "ready again")
                _judge_resources(party, before)
                eventually(party.flows_again, "a flow again")
                party.freeze()
            assert hasty.has_lost_its_lease
            for party, at_least, paused in zip(parties, committed, full, strict=True):
                await_complete(party.kafka, party.steady, stream=STREAM)
                _judge_loose(party, at_least, paused)
                assert party.connector.stop()[0] == 0
    finally:
        broker.stop()


def _judge_resources(party: Party, usual: Look) -> None:
    """Hold memory against what it was before the outage."""
    sizes = [look.rss_bytes for look in party.looks]
    told = f"RSS {usual.rss_bytes >> 10} kB, then {min(sizes) >> 10} to {max(sizes) >> 10} kB"
    logging.getLogger(__name__).info(told)
    assert all(0.8 * usual.rss_bytes < size < 1.2 * usual.rss_bytes for size in sizes), told
    fullest = max(look.outbox_bytes for look in party.looks)
    assert fullest < 2 * OUTBOX_BYTES
    assert fullest > OUTBOX_BYTES or party.has_begun_anew


def _judge_loose(party: Party, committed: int, paused: Look) -> None:
    """Hold the stream that cannot resume against its ledger: one piece is missing, with its bounds told.

    Args:
        committed: how many statuses were on the topic before the outage.
        paused: the look at which the outbox was full.
    """

    def spoken() -> list[dict[str, Any]]:
        return [one for one in party.loose.connections() if one["sent"]]

    def is_there() -> bool:
        newest = spoken()[-1]
        return newest["last_seq"] == party.loose_published and newest["sent"][-1] in _numbers(party)

    eventually(is_there, "the newest")
    sent = [one["sent"] for one in spoken()]
    numbers = _numbers(party)
    pieces = [[number for number in numbers if number in set(its)] for its in sent]
    assert numbers == [number for piece in pieces for number in piece]
    assert [piece == its[: len(piece)] for piece, its in zip(pieces, sent, strict=True)] == [True] * len(sent)
    assert pieces[-1] == sent[-1]
    kept = len(pieces[0])
    assert kept >= committed or party.connector.logged("writer.undone")
    if not party.has_begun_anew:
        assert kept >= _read(party, paused.loose_wire_bytes - ON_ITS_WAY_BYTES) > committed

    told = [
        [datetime.fromisoformat(gap["data"][bound]).timestamp() for bound in ("from", "to")]
        for gap in party.gaps()
        if gap["subject"] == LOOSE
    ]
    for piece, its in pairwise(piece for piece in pieces if piece):
        begin, end = party.loose_published_at(piece[-1]), party.loose_published_at(its[0])
        assert any(abs(one - begin) < SLACK_S and abs(other - end) < SLACK_S for one, other in told)


def _numbers(party: Party) -> list[int]:
    """Return the upstream's numbers of what is on the topic, in order; each is there as it was sent."""
    delivered = sorted(party.kafka.delivered(LOOSE), key=lambda one: one.seq)
    sent = party.loose.sent()
    assert all(sent[one.key] == one.value for one in delivered)
    assert [one.seq for one in delivered] == list(range(1, len(delivered) + 1))
    return [json.loads(one.value)["seq"] for one in delivered]


def _read(party: Party, wire_bytes: float) -> int:
    """Return how many statuses the first *wire_bytes* of the upstream were, each led by its length."""
    lengths = (len(body) + len("\r\n") for body in party.loose.sent().values())
    ends = accumulate(len(f"{length}\r\n") + length for length in lengths)
    return sum(1 for _ in takewhile(lambda end: end <= wire_bytes, ends))
