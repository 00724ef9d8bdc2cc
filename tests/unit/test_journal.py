"""A window's marks survive a restart: whatever the log has of them is a window."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.delivery import journal
from connector.delivery.dedupe import MARK_BYTES, WINDOW
from connector.delivery.journal import PAGE_BYTES, PAGES, Page
from connector.model import Note

PAGE = 4
RING = 3


@pytest.fixture(autouse=True, scope="module")
def _small():
    """Make pages and their ring so small that both come to their end all the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "PAGE_BYTES", PAGE * MARK_BYTES)
        patch.setattr(journal, "PAGES", RING)
        yield


def marks(first: int, count: int) -> bytes:
    return b"".join(number.to_bytes(MARK_BYTES, "big") for number in range(first, first + count))


def numbers(pages: list[Page]) -> list[int]:
    whole = b"".join(page.marks for page in pages)
    return [int.from_bytes(whole[at : at + MARK_BYTES], "big") for at in range(0, len(whole), MARK_BYTES)]


class Log:
    """The positions topic, as far as one stream's journal goes."""

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.page = Page()
        self.written = 0

    def write(self, count: int) -> None:
        """Write so many marks in a batch, as the writer does."""
        pages = journal.append(self.page, marks(self.written, count))
        self.page = journal.next_page(pages[-1])
        self.written += count
        self.notes += [journal.note("tech", page) for page in pages]

    def read(self, count: int | None = None, compacted: int = 0) -> list[Page]:
        """Return what a restart finds after so many records, the first of them *compacted*."""
        newest = {note.key: note for note in self.notes[:compacted]}
        there = [note for note in self.notes[:compacted] if note is newest[note.key]]
        there += self.notes[compacted:count]
        return journal.read({note.key: note.value or b"" for note in there}.values())


sizes = st.lists(st.integers(1, 3 * RING * PAGE), min_size=1, max_size=12)


@given(sizes, st.data())
def test_a_crash_at_any_point_leaves_the_last_marks_up_to_there(counts, data):
    """Also within a batch: that takes a crash without transactions."""
    log = Log()
    ends = {0: 0}  # records and marks after each batch
    for count in counts:
        log.write(count)
        ends[len(log.notes)] = log.written
    written = data.draw(st.integers(0, len(log.notes)) | st.sampled_from(sorted(ends)), "records in the log")
    compacted = data.draw(st.integers(0, written), "compacted")
    found = numbers(log.read(written, compacted))
    upto = found[-1] + 1 if found else 0
    assert found == list(range(upto - len(found), upto)), "in order, without a hole"
    assert min(upto, (RING - 1) * PAGE) <= len(found) <= RING * PAGE
    assert upto == ends.get(written, upto)
    assert upto >= max(marks for records, marks in ends.items() if records <= written)


@given(sizes)
def test_a_restart_goes_on_where_the_journal_ends(counts):
    log = Log()
    for count in counts:
        log.write(count)
        assert journal.next_page(log.read()[-1]) == log.page


@given(st.integers(0, 50), st.integers(0, PAGE - 1), st.integers(1, 40))
def test_a_page_is_filled_before_the_next_begins(number, there, count):
    pages = journal.append(Page(number, marks(0, there)), marks(there, count))
    assert [page.number for page in pages] == list(range(number, number + len(pages)))
    assert all(len(page.marks) == PAGE * MARK_BYTES for page in pages[:-1])
    assert 0 < len(pages[-1].marks) <= PAGE * MARK_BYTES
    assert numbers(pages) == list(range(there + count))


@given(sizes)
def test_no_more_keys_are_written_than_the_window_needs(counts):
    log = Log()
    for count in counts:
        log.write(count)
    keys = {note.key for note in log.notes}
    assert len(keys) <= RING
    assert {journal.stream_of(key) for key in keys} == {"tech"}


def test_a_streams_pages_are_its_own():
    assert journal.note("a", Page(5, b"x" * 8)).key == "seen/a/2"
    assert journal.stream_of("seen/a/2") == "a"
    assert journal.stream_of("seen/seen/2") == "seen"


@given(st.lists(st.binary(max_size=PAGE * MARK_BYTES + 20), max_size=6))
def test_what_is_no_page_is_passed_over(values):
    for page in journal.read(values):
        assert 0 < len(page.marks) <= PAGE * MARK_BYTES
        assert len(page.marks) % MARK_BYTES == 0


@pytest.mark.parametrize(
    "value", [b"", b"\x00" * 7, b"\x00" * 8, b"\x00" * 15, b"\x00" * 8 + b"x" * (PAGE * MARK_BYTES + 8)]
)
def test_a_value_that_is_no_page_leaves_the_others(value):
    _, page = journal.note("tech", Page(7, marks(0, 2)))
    assert journal.read([value, page or b""]) == [Page(7, marks(0, 2))]


def test_a_full_page_is_not_written_again():
    assert journal.next_page(Page(5, marks(0, PAGE))) == Page(6)
    assert journal.next_page(Page(5, marks(0, PAGE - 1))) == Page(5, marks(0, PAGE - 1))


def test_nothing_is_read_of_nothing():
    assert journal.read([]) == []


def test_pages_of_a_ring_ago_are_no_part_of_the_window():
    """They are there until compaction, or where a ring was larger once."""
    values = [journal.note("tech", Page(number, marks(number, 1))).value or b"" for number in (9, 1, 7, 6, 8)]
    assert [page.number for page in journal.read(values)] == [7, 8, 9]


def test_at_its_true_size_the_journal_holds_the_window(monkeypatch):
    """While the newest page has room left, too."""
    monkeypatch.setattr(journal, "PAGE_BYTES", PAGE_BYTES)
    monkeypatch.setattr(journal, "PAGES", PAGES)
    log = Log()
    for _ in range(12):
        log.write(50_001)
    found = numbers(log.read())
    assert found == list(range(12 * 50_001 - len(found), 12 * 50_001))
    assert WINDOW <= len(found) < WINDOW + 2 * PAGE_BYTES
