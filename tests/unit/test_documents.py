"""Documents come out whole however the bytes were cut, and nothing between them is dropped uncounted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.stream.documents import DocumentFramer, Nesting

LIMIT = 40

Outcome = tuple[list[bytes], Counter[str], int]
"""Documents, bytes discarded, bytes held."""


def cut(data: bytes, at: Iterable[int]) -> Iterator[bytes]:
    places = sorted({min(place, len(data)) for place in at} | {0, len(data)})
    for start, end in pairwise(places):
        yield data[start:end]


def outcome(chunks: Iterable[bytes], limit: int = LIMIT) -> Outcome:
    framer = DocumentFramer(limit)
    documents: list[bytes] = []
    for chunk in chunks:
        documents += framer.feed(chunk)
        assert framer.held_bytes <= limit
    return documents, +framer.discarded, framer.held_bytes


def however_cut(data: bytes, at: Iterable[int] = (), limit: int = LIMIT) -> Outcome:
    """Return what comes of *data*, which must not depend on where they are cut."""
    whole = outcome([data], limit)
    assert outcome(cut(data, range(len(data))), limit) == whole
    assert outcome(cut(data, at), limit) == whole
    return whole


def documents_of(data: bytes) -> Outcome:
    """Return what a framer must make of *data*, looking at every byte: slow, and plainly right."""
    documents, discarded, begun, depth, in_string, escaped = [], Counter[str](), b"", 0, False, False
    for at in range(len(data)):
        byte = data[at : at + 1]
        if not depth and byte not in (b"{", b"["):
            discarded["no_document"] += byte not in (b" ", b"\t", b"\r", b"\n")
            continue
        begun += byte
        if escaped:
            escaped = False
        elif in_string:
            escaped = byte == b"\\"
            in_string = byte != b'"'
        else:
            in_string = byte == b'"'
            depth += (byte in (b"{", b"[")) - (byte in (b"}", b"]"))
        if not depth:
            if len(begun) > LIMIT:
                discarded["oversize"] += len(begun)
            else:
                documents.append(begun)
            begun = b""
    if len(begun) > LIMIT:
        discarded["oversize"] += len(begun)
        begun = b""
    return documents, +discarded, len(begun)


tokens = st.sampled_from(
    [
        b"{",
        b"}",
        b"[",
        b"]",
        b"{}",
        b'"',
        b"\\",
        b'\\"',
        b"\\\\",
        b'"}"',
        b'"\\"]"',
        b"1,",
        b":",
        b"\xff",
        b"\x00",
        b" ",
        b"\t",
        b"\r\n",
        b"\x0b",
        b"\xe2\x80\xa8",
        b"null",
        b"x" * (LIMIT - 2),
        b"x" * (LIMIT + 1),
    ]
)
hostile = (
    st.lists(tokens, max_size=40).map(b"".join)
    | st.binary(max_size=200)
    | st.text('{}[]"\\ x').map(str.encode)
)
places = st.lists(st.integers(0, 300), max_size=20)


@given(hostile, places)
def test_documents_are_the_same_however_cut_and_every_byte_is_accounted_for(data, at):
    assert however_cut(data, at) == documents_of(data)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
documents = st.dictionaries(st.text(max_size=4), values, max_size=4) | st.lists(values, max_size=4)


@given(
    st.lists(st.tuples(documents, st.sampled_from([None, 0, 2]), st.booleans()), max_size=6),
    st.sampled_from([b"", b"\n", b"\r\n", b" \t\n\n", b"\r"]),
    places,
)
def test_json_comes_out_as_it_went_in(values, between, at):
    sent = [json.dumps(one, indent=indent, ensure_ascii=escape).encode() for one, indent, escape in values]
    got = however_cut(between.join([b"", *sent, b""]), at, limit=10_000)
    assert got == (sent, Counter(), 0)


@pytest.mark.parametrize("between", [b"", b"\n", b" ", b"\r\n\r\n", b"\t\r \n"])
def test_documents_may_stand_side_by_side_or_apart(between):
    sent = [b'{"a":1}', b"[]", b"{}", b'["}"]']
    assert however_cut(between.join(sent) + between) == (sent, Counter(), 0)


@pytest.mark.parametrize(
    "document",
    [
        b'{"a":"}"}',
        b'{"a":"\\"}"}',
        b'{"a":"\\\\"}',
        b'{"a":"\\\\\\"}{"}',
        b'["\\u007d",{"b":[[],{}]}]',
        b'{"a":"\xe2\x80\xa8\x85\n\r"}',
        b"{]",
        b'{"a":\xff}',
    ],
)
def test_only_brackets_outside_strings_count(document):
    assert however_cut(document * 2) == ([document, document], Counter(), 0)


@pytest.mark.parametrize(
    "rubbish", [b"x", b"null", b"}", b"]]", b'"a"', b",", b"\xef\xbb\xbf", b"\x1e", b"1 2"]
)
def test_what_is_no_document_is_skipped_and_counted_without_its_white_space(rubbish):
    size = len(rubbish.replace(b" ", b""))
    got = however_cut(b"{}" + rubbish + b"\r\n [1]" + rubbish)
    assert got == ([b"{}", b"[1]"], Counter(no_document=2 * size), 0)


def test_a_document_is_handed_out_with_its_last_byte():
    framer = DocumentFramer(LIMIT)
    assert framer.feed(b'{"a":"\\') == []
    assert framer.feed(b'"}') == []
    assert framer.feed(b'"') == []
    assert framer.held_bytes == 10
    assert framer.feed(b"}") == [b'{"a":"\\"}"}']
    assert framer.held_bytes == 0


@pytest.mark.parametrize("size", [LIMIT + 1, LIMIT + 2, 50 * LIMIT])
def test_an_oversize_document_is_skipped_to_its_end_and_the_next_survives(size):
    long = b'["' + b"]" * (size - 4) + b'"]'
    assert however_cut(b"{}" + long + b"[1]" + long, [3, 30]) == (
        [b"{}", b"[1]"],
        Counter(oversize=2 * size),
        0,
    )


def test_a_document_as_long_as_allowed_is_kept():
    document = b"[" + b"1" * (LIMIT - 2) + b"]"
    assert however_cut(document) == ([document], Counter(), 0)


@pytest.mark.parametrize(
    "chunk", [b"{" * 1000, b'["' + b"x" * 998, b'{"' + b"\\" * 998, b"[]" * 3 + b"[" * 994]
)
def test_a_document_without_end_does_not_pile_up(chunk):
    framer = DocumentFramer(LIMIT)
    documents = []
    for _ in range(500):
        documents += framer.feed(chunk)
        assert framer.held_bytes <= LIMIT
    assert sum(map(len, documents)) + framer.discarded.total() == 500 * len(chunk)


@pytest.mark.parametrize(
    "data", [b"[" * 5000, b'["' + b'\\"' * 5000, b'["' + b"x" * 9999, b'["a' + b'","b' * 2000]
)
def test_every_byte_is_scanned_once(data, monkeypatch):
    scanned = 0
    scan = Nesting.end

    def counted(self, data, at):
        nonlocal scanned
        end = scan(self, data, at)
        scanned += (len(data) if end < 0 else end) - at
        return end

    monkeypatch.setattr(Nesting, "end", counted)
    for chunks in ([data], cut(data, range(len(data))), cut(data, range(0, len(data), 7))):
        scanned = 0
        outcome(chunks, 100_000)
        assert scanned == len(data)


@pytest.mark.parametrize("pattern", [b'{"a":"b"}', b"{[", b"}x", b'"\\', b'\\"', b'""', b"[]"])
def test_eight_times_the_bytes_take_eight_times_the_time(pattern):
    """One run against another, in one piece: work that grows with the square would be 64 times."""
    took_s = []
    for count in (25_000, 200_000):
        data = b"[" + pattern * count
        began = process_time()
        DocumentFramer(1 << 24).feed(data)
        took_s.append(process_time() - began)
    assert took_s[1] < 30 * took_s[0]


def test_eight_times_the_bytes_in_single_bytes_take_eight_times_the_time():
    took_s = []
    for size in (60_000, 480_000):
        framer = DocumentFramer(1 << 24)
        began = process_time()
        framer.feed(b'["')
        for _ in range(size):
            framer.feed(b"x")
        took_s.append(process_time() - began)
        assert framer.held_bytes == size + 2
    assert took_s[1] < 24 * took_s[0]


def test_no_bytes_are_no_document():
    framer = DocumentFramer(LIMIT)
    assert framer.feed(b"") == []
    assert framer.feed(b"[") + framer.feed(b"") + framer.feed(b"]") == [b"[]"]
