"""A stream's window of marks as records of the positions topic, so that it survives a crash. Pure.

The marks are numbered, and kept in pages; a page is a record, written again with each transaction until it is
full. The pages' keys repeat like a ring, so that compaction keeps as many as the window needs, and a page in
the log is in the same transaction as the statuses that it marks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from connector.delivery.dedupe import MARK_BYTES, WINDOW
from connector.model import Note, StreamId

PAGE_BYTES = 256 * MARK_BYTES
PAGES = WINDOW * MARK_BYTES // PAGE_BYTES + 1
PREFIX = "seen/"
_NUMBER_BYTES = 8


class Page(NamedTuple):
    """Some marks in the order in which their statuses went out; the newest page may have room left."""

    number: int = 0
    marks: bytes = b""


def append(page: Page, marks: bytes) -> list[Page]:
    """Return the pages to write, oldest first, once *marks* follow the newest *page*."""
    filled = page.marks + marks
    return [
        Page(page.number + number, filled[at : at + PAGE_BYTES])
        for number, at in enumerate(range(0, len(filled), PAGE_BYTES))
    ]


def note(stream: StreamId, page: Page) -> Note:
    """Return a page's record."""
    key = f"{PREFIX}{stream}/{page.number % PAGES}"
    return Note(key, page.number.to_bytes(_NUMBER_BYTES, "big") + page.marks)


def next_page(page: Page) -> Page:
    """Return where to go on after *page*: there, unless it is full."""
    return page if len(page.marks) < PAGE_BYTES else Page(page.number + 1)


def stream_of(key: str) -> StreamId:
    """Return whose page a record of that key is."""
    return key.removeprefix(PREFIX).partition("/")[0]


def read(values: Iterable[bytes]) -> list[Page]:
    """Return the pages that belong to the window, oldest first, of all that the log still has.

    A value that is no page is passed over: a window with a hole repeats a status, and loses none.
    """
    pages = sorted(_pages(values))
    return [page for page in pages if page.number > pages[-1].number - PAGES]


def _pages(values: Iterable[bytes]) -> Iterator[Page]:
    for value in values:
        number, marks = value[:_NUMBER_BYTES], value[_NUMBER_BYTES:]
        if marks and len(marks) % MARK_BYTES == 0 and len(marks) <= PAGE_BYTES:
            yield Page(int.from_bytes(number, "big"), marks)
