"""What the lease takes for a proof."""

from __future__ import annotations

import struct

import pytest
from confluent_kafka import Consumer

from connector.control.lease import _has_generation

NEVER_JOINED = Consumer({"group.id": "group"}).consumer_group_metadata()
"""As librdkafka writes it: its generation is -1."""


def test_metadata_without_a_generation_are_no_proof() -> None:
    """The broker takes offsets that come with them from anybody."""
    assert not _has_generation(NEVER_JOINED)


@pytest.mark.parametrize("generation", [0, 1, 255, 2**31 - 1])
def test_metadata_of_any_generation_are_a_proof(generation: int) -> None:
    assert _has_generation(NEVER_JOINED.replace(struct.pack("=i", -1), struct.pack("=i", generation), 1))


@pytest.mark.parametrize("metadata", [None, b"", b"CGMDv3:\0\0\0\0group"])
def test_what_is_no_metadata_is_no_proof(metadata: bytes | None) -> None:
    assert not _has_generation(metadata)
