"""A stream's home is the partition that Kafka's own producers choose for its name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.control.home import home, murmur2, published
from connector.delivery.records import of_move
from connector.model import ControlRecord

VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}
"""From Kafka's own `org.apache.kafka.common.utils.UtilsTest`, signed as Java has it."""


@pytest.mark.parametrize(("key", "expected"), VECTORS.items(), ids=lambda value: str(value)[:20])
def test_the_hash_is_kafkas(key, expected):
    assert murmur2(key) == expected % 2**32


@pytest.mark.parametrize(("key", "expected"), VECTORS.items(), ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("partitions", [1, 2, 6, 50])
def test_the_partition_is_kafkas(key, expected, partitions):
    """Java's `toPositive` clears the sign; it does not negate."""
    assert home(key.decode(), partitions) == (expected & 0x7FFFFFFF) % partitions


@given(st.binary(max_size=64))
def test_any_key_has_an_unsigned_32_bit_hash(key):
    assert 0 <= murmur2(key) < 2**32
    assert murmur2(key) == murmur2(bytes(bytearray(key)))


@given(st.text(st.characters(codec="utf-8")), st.integers(1, 1000))
def test_every_stream_has_one_home_among_the_partitions(stream, partitions):
    assert home(stream, partitions) in range(partitions)
    assert home(stream, partitions) == home("".join(list(stream)), partitions)


def test_streams_are_spread_over_the_partitions():
    assert {home(f"stream-{number}", 6) for number in range(60)} == set(range(6))


@pytest.mark.parametrize(
    ("headers", "place"),
    [
        ([], None),
        ([("moved-from", b"3/17")], (3, 17)),
        ([("other", b"1/1"), ("moved-from", b"0/0")], (0, 0)),
        ([("moved-from", None)], None),
        ([("moved-from", b"")], None),
        ([("moved-from", b"3")], None),
        ([("moved-from", b"-3/1")], None),
        ([("moved-from", b"3/1 ")], None),
        ([("moved-from", b"3/" + b"9" * 5000)], None),
    ],
)
def test_a_moved_record_says_where_it_was_published(headers, place):
    """Anybody may write such a header: what it says is read, or not, and nothing breaks."""
    assert published(headers) == place


def test_a_record_that_is_moved_twice_says_where_it_was_first():
    """Partitions may be added, and move a stream's home."""
    first = of_move("predicates", ControlRecord(3, 17, b"tech", b"{}"), 0)
    place = published(first.headers)
    again = of_move("predicates", ControlRecord(0, 5, b"tech", b"{}", place), 1)
    assert published(again.headers) == (3, 17)
    assert (again.partition, again.key, again.value) == (1, b"tech", b"{}")
