"""A position is read back as it was written, and what is not ours is refused."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.delivery.positions import advance, decode, encode
from connector.model import Position

text = st.text(st.characters(codec="utf-8"))
positions = st.builds(
    Position,
    seq=st.integers(0, 2**64 - 1),
    cursor=st.none() | text,
    predicates=st.none() | text,
    attempts=st.lists(st.floats(0, 4e9), max_size=3).map(tuple),
    heard_at=st.none() | st.floats(0, 4e9),
)


@given(positions)
def test_a_position_is_read_back_as_it_was_written(position):
    assert decode(encode(position)) == position


def test_a_position_is_json_for_whoever_looks_at_the_topic():
    assert json.loads(encode(Position(7, "c-7", "4f53cda18c2b"))) == {
        "seq": 7,
        "cursor": "c-7",
        "predicates": "4f53cda18c2b",
    }
    assert json.loads(encode(Position(seq=7))) == {"seq": 7}
    assert json.loads(encode(Position(seq=7, heard_at=1.5))) == {"seq": 7, "heard_at": 1.5}


def test_members_of_a_later_release_are_passed_over():
    assert decode(b'{"seq": 7, "colour": {"of": ["the", "day"]}}') == Position(seq=7)


@pytest.mark.parametrize(
    "value",
    [
        b"", b"null", b"7", b"[]", b"{}", b'{"seq":null}', b'{"seq":"7"}', b'{"seq":1.5}', b'{"seq":7',
        b'{"seq":7,"cursor":7}', b'{"seq":7,"attempts":null}',
        b'{"seq":7,"heard_at":"now"}', b'{"seq":7}{"seq":8}', b"\xff", b"not json",
    ],
)  # fmt: skip
def test_what_is_not_ours_is_refused(value):
    with pytest.raises(msgspec.DecodeError):
        decode(value)


START = Position(seq=5, cursor="c-5", predicates="old")


def test_statuses_are_counted():
    assert advance(START, 4, cursor="c-9") == Position(9, "c-9", "old")


def test_what_is_not_known_stays_as_it_is():
    assert advance(START, 0) == START


def test_a_new_predicate_set_is_noted():
    assert advance(START, 0, version="new") == Position(5, "c-5", "new")


def test_attempts_are_noted():
    """None leaves them; an empty list says that all of them are long ago."""
    later = advance(START, 0, attempts=(1.5, 2.5))
    assert decode(encode(later)).attempts == (1.5, 2.5)
    assert advance(later, 1).attempts == (1.5, 2.5)
    assert advance(later, 1, attempts=()).attempts == ()


def test_when_the_upstream_was_heard_is_noted():
    later = advance(START, 0, heard_at=0.0)
    assert later.heard_at == 0.0
    assert advance(later, 1).heard_at == 0.0
    assert advance(later, 1, heard_at=2.5).heard_at == 2.5


def test_a_cursor_may_be_reset():
    assert advance(START, 0, cursor="").cursor == ""


@given(positions, st.integers(0, 1000))
def test_a_position_never_goes_back(position, statuses):
    assert advance(position, statuses).seq == position.seq + statuses
