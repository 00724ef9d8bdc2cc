"""What the lease takes for a proof: of membership, of the coordinator's voice, of a loop that runs."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

import pytest
from confluent_kafka import Consumer

from connector.control.proof import Pulse, Standing, has_generation

NEVER_JOINED = Consumer({"group.id": "group"}).consumer_group_metadata()
"""As librdkafka writes it: its generation is -1."""


def test_metadata_without_a_generation_are_no_proof() -> None:
    """The broker takes offsets that come with them from anybody."""
    assert not has_generation(NEVER_JOINED)


@pytest.mark.parametrize("generation", [0, 1, 255, 2**31 - 1])
def test_metadata_of_any_generation_are_a_proof(generation: int) -> None:
    assert has_generation(NEVER_JOINED.replace(struct.pack("=i", -1), struct.pack("=i", generation), 1))


@pytest.mark.parametrize("metadata", [None, b"", b"CGMDv3:\0\0\0\0group"])
def test_what_is_no_metadata_is_no_proof(metadata: bytes | None) -> None:
    assert not has_generation(metadata)


def statistics(idle_us: int | None, state: str = "steady", group: str = "up") -> str:
    """Return as much of librdkafka's statistics as counts, and some that does not."""
    brokers = {"127.0.0.1:9092/1": {"source": "learned", "rxidle": 5}}
    if idle_us is not None:
        brokers["GroupCoordinator"] = {"source": "logical", "rxidle": idle_us}
    cgrp = {"state": group, "join_state": state, "stateage": 4740}
    return json.dumps({"ts": 5016483047, "brokers": brokers, "cgrp": cgrp})


def test_the_coordinator_was_heard_when_it_last_answered() -> None:
    standing = Standing()
    standing.take(statistics(1_500_000), now=100.0)
    assert standing.heard_at == 98.5


@pytest.mark.parametrize("idle_us", [None, -1])
def test_nobody_knows_when_a_new_connections_other_end_was_heard(idle_us: int | None) -> None:
    standing = Standing()
    standing.take(statistics(1_500_000), now=90.0)
    standing.take(statistics(idle_us), now=100.0)
    assert standing.heard_at == 88.5


@pytest.mark.parametrize("state", ["init", "wait-join", "wait-sync", "wait-unassign-call"])
def test_in_a_rebalance_silence_says_nothing(state: str) -> None:
    standing = Standing()
    standing.take(statistics(9_000_000, state), now=100.0)
    assert standing.heard_at == 100.0


def test_a_client_that_knows_no_coordinator_or_does_not_join_is_astray() -> None:
    standing = Standing()
    for count, now in enumerate(
        [
            statistics(None, "init", "query-coord"),
            statistics(-1, "init", "wait-broker-transport"),
            statistics(5, "init"),
            statistics(9_000_000, "steady", "query-coord"),
        ],
        start=1,
    ):
        standing.take(now, now=100.0)
        assert standing.astray == count
    standing.take(statistics(5, "wait-join"), now=100.0)
    assert standing.astray == 0


class Loop:
    """An event loop that answers when a test wants."""

    def __init__(self) -> None:
        self.asked: list[Callable[[], None]] = []

    def answer(self) -> None:
        for call in self.asked:
            call()
        self.asked.clear()


def test_a_loop_is_silent_for_as_long_as_it_owes_an_answer() -> None:
    """And is asked once, as a loop that is stuck would have thousands of questions waiting."""
    pulse, loop = Pulse(longest_s=0.4), Loop()
    for now in (0.0, 0.25, 0.5, 0.75):
        pulse.poll(now, loop.asked.append)
    assert (pulse.silent_s, len(loop.asked)) == (0.75, 1)
    loop.answer()
    assert pulse.silent_s == 0
    pulse.poll(1.0, loop.asked.append)
    assert (pulse.silent_s, len(loop.asked)) == (0, 1)


def test_a_process_that_was_stopped_as_a_whole_does_not_blame_its_loop() -> None:
    pulse, loop = Pulse(longest_s=0.5), Loop()
    pulse.poll(0.0, loop.asked.append)
    pulse.poll(3600.0, loop.asked.append)
    assert pulse.silent_s == 0.5
