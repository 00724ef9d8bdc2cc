"""The marks that a log holds after any prefix of transactions are those of its statuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.delivery import journal
from connector.delivery.dedupe import MARK_BYTES
from connector.delivery.journal import PAGE_BYTES, Page
from connector.delivery.restore import Restored

PER_PAGE = PAGE_BYTES // MARK_BYTES


def marks(begin: int, count: int) -> bytes:
    return b"".join(number.to_bytes(MARK_BYTES, "big") for number in range(begin, begin + count))


def compacted(batches: list[int], page: Page | None = None) -> tuple[dict[str, bytes], Page]:
    """Return the newest record of each key after *batches* of so many marks, and where to go on."""
    log: dict[str, bytes] = {}
    page, written = page or Page(), 0
    for count in batches:
        pages = journal.append(page, marks(written, count))
        for one in pages:
            key, value = journal.note("tech", one)
            log[key] = value
        page = journal.next_page(pages[-1])
        written += count
    return log, page


def restored(log: dict[str, bytes]) -> list[Page]:
    state = Restored()
    for key, value in log.items():
        state.take(key, value)
    return state.journals()["tech"]


@given(st.lists(st.integers(1, 3 * PER_PAGE), min_size=1, max_size=8))
def test_it_is_read_back_as_it_was_written(batches):
    log, page = compacted(batches)
    pages = restored(log)
    assert b"".join(one.marks for one in pages) == marks(0, sum(batches))
    assert journal.next_page(pages[-1]) == page, "and goes on where it was"


@given(st.lists(st.integers(1, 3 * PER_PAGE), min_size=1, max_size=12))
def test_pages_repeat_like_a_ring_and_the_newest_stay(batches):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "PAGES", 4)
        log, _ = compacted(batches)
        assert len(log) <= 4
        found = b"".join(one.marks for one in restored(log))
    whole = marks(0, sum(batches))
    assert whole.endswith(found)
    assert len(found) >= min(len(whole), 3 * PAGE_BYTES)


def test_pages_of_an_older_round_are_not_taken_for_newer_ones():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "PAGES", 4)
        values = [journal.note("tech", Page(number, marks(number, 1))).value for number in (9, 2, 7, 8)]
        assert [page.number for page in journal.read(values)] == [7, 8, 9]


@pytest.mark.parametrize("value", [b"", b"short", bytes(8), bytes(8) + b"odd", bytes(8 + PAGE_BYTES + 8)])
def test_what_is_no_page_is_passed_over(value):
    good = journal.note("tech", Page(3, marks(0, 2))).value
    assert journal.read([value, good]) == [Page(3, marks(0, 2))]
    assert journal.read([value]) == []


def test_positions_notes_and_pages_are_told_apart():
    state = Restored()
    key, value = journal.note("tech", Page(0, marks(0, 1)))
    state.take("tech", b'{"seq":4}')
    state.take(key, value)
    state.take("waiting/tech/1", b"{}")
    state.take("deleted/tech/a/b", b"7")
    assert state.positions["tech"].seq == 4
    assert state.notes == {"waiting/tech/1": b"{}", "deleted/tech/a/b": b"7"}
    assert state.journals() == {"tech": [Page(0, marks(0, 1))]}
