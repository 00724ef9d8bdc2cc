"""Records of the positions topic are taken apart: positions, pages of journals, and notes."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.delivery import journal, positions
from connector.delivery.dedupe import MARK_BYTES
from connector.delivery.journal import Page
from connector.delivery.restore import Restored
from connector.model import Position


def taken(*records: tuple[str, bytes | None]) -> Restored:
    restored = Restored()
    for key, value in records:
        restored.take(key, value)
    return restored


def page(stream: str, number: int, mark: bytes = b"m") -> tuple[str, bytes | None]:
    return journal.note(stream, Page(number, mark * MARK_BYTES))


A, B = positions.encode(Position(7, "c")), positions.encode(Position(8, "d"))


def test_each_record_finds_its_place():
    restored = taken(("tech", A), page("tech", 0), ("waiting/tech/0", b"1"), ("news", B), page("news", 4))
    assert restored.positions == {"tech": Position(7, "c"), "news": Position(8, "d")}
    assert restored.notes == {"waiting/tech/0": b"1"}
    assert restored.journals() == {
        "tech": [Page(0, b"m" * MARK_BYTES)],
        "news": [Page(4, b"m" * MARK_BYTES)],
    }


def test_of_each_key_the_newest_record_counts():
    restored = taken(
        *[("tech", A), page("tech", 0, b"1"), ("n/0", b"1")],
        *[("tech", B), page("tech", 0, b"2"), ("n/0", b"2")],
    )
    assert restored.positions == {"tech": Position(8, "d")}
    assert restored.notes == {"n/0": b"2"}
    assert restored.journals() == {"tech": [Page(0, b"2" * MARK_BYTES)]}


@given(st.permutations([page("tech", number, bytes([number])) for number in range(9)]))
def test_a_journal_is_read_in_its_own_order(records):
    assert [one.number for one in taken(*records).journals()["tech"]] == list(range(9))


def test_what_is_taken_back_is_gone():
    restored = taken(("tech", A), page("tech", 0), page("tech", 1), ("n/0", b"1"))
    for key in ("tech", page("tech", 1)[0], "n/0", "never/there"):
        restored.take(key, None)
    assert (restored.positions, restored.notes) == ({}, {})
    assert [one.number for one in restored.journals()["tech"]] == [0]


def test_a_journal_without_a_page_is_no_hindrance():
    assert taken(("seen/tech/0", b"not ours")).journals() == {"tech": []}


def test_a_position_that_is_not_ours_is_refused():
    with pytest.raises(msgspec.DecodeError):
        taken(("tech", b"not ours"))
