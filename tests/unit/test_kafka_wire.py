"""The fault proxy's reading and writing of Kafka's protocol, byte by byte."""

from __future__ import annotations

import pytest
from kafka_wire import Api, Request

END_TXN = bytes.fromhex("001a0001 00000007 0002 6d65 0002 7478 0000000000000005 0003 01")
"""Version 1, of the client "me": transaction "tx", producer 5 in epoch 3, commit."""

OFFSETS = bytes.fromhex(
    "001c0003 00000009 0002 6d65 00"  # the client's name is never compact
    "03 7478 02 67 0000000000000005 0003 00000002 02 6d 00"  # tx, g, 5, 3, 2, m, no instance
    "02 03 7470 03 00000000 0000000000000011 ffffffff 03 6964 00"  # two partitions of tp
    "00000004 0000000000000012 ffffffff 00 01 05 02 aabb 00 00"  # the second has a tagged field
)
"""Version 3, which is flexible."""


def test_a_request_is_read() -> None:
    request = Request.of(END_TXN)
    assert (request.api, request.version, request.correlation) == (Api.END_TXN, 1, 7)
    assert request.fields == {"transactional_id": "tx", "producer_id": 5, "epoch": 3, "committed": True}
    assert Request.of(END_TXN[:-1] + b"\0").fields["committed"] is False


def test_a_flexible_request_is_read() -> None:
    request = Request.of(OFFSETS)
    assert request.topics == {"tp"}
    fields = request.fields
    assert (fields["group"], fields["generation"], fields["member"], fields["instance"]) == (
        "g",
        2,
        "m",
        None,
    )
    assert fields["topics"][0]["partitions"] == [
        {"partition": 0, "offset": 0x11, "leader_epoch": -1, "metadata": "id"},
        {"partition": 4, "offset": 0x12, "leader_epoch": -1, "metadata": None},
    ]


@pytest.mark.parametrize(
    ("frame", "refusal"),
    [
        (END_TXN, "00000007 00000000 0030"),
        (OFFSETS, "00000009 00 00000000 02 03 7470 03 00000000 0030 00 00000004 0030 00 00 00"),
    ],
    ids=["plain", "flexible"],
)
def test_a_refusal_answers_the_request_and_each_of_its_partitions(frame: bytes, refusal: str) -> None:
    request = Request.of(frame)
    assert request.refusal(48) == bytes.fromhex(refusal)
    assert request.error_in(bytes.fromhex(refusal)) == 48
    assert request.error_in(request.refusal(0)) == 0


def test_an_error_of_a_single_partition_is_found() -> None:
    answer = bytes.fromhex("00000009 00 00000000 02 03 7470 03 00000000 0000 00 00000004 0016 00 00 00")
    assert Request.of(OFFSETS).error_in(answer) == 22


def test_a_version_that_is_not_described_is_not_guessed_at() -> None:
    with pytest.raises(ValueError, match="END_TXN version 5"):
        _ = Request.of(END_TXN.replace(b"\0\x1a\0\1", b"\0\x1a\0\5")).fields


def test_a_message_cut_short_is_not_read() -> None:
    with pytest.raises(ValueError, match="too soon"):
        _ = Request.of(OFFSETS[:-1]).fields
