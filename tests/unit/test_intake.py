"""One connection's bytes to messages, for every framing and coding."""

from __future__ import annotations

import gzip
from collections import Counter

import pytest

from connector.errors import FramingLost
from connector.stream import dialect
from connector.stream.intake import Intake
from connector.stream.messages import Decoder

BODIES = [b'{"id":1,"text":"a}b"}', b'{"id":"2","x":[{}]}', b'{"id":3}']
STREAMS = {
    "length": b"".join(b"%d\r\n%b\r\n" % (len(body) + 2, body) for body in BODIES),
    "lines": b"\r\n".join(BODIES) + b"\r\n",
    "sse": b"".join(b"id: %d\ndata: %b\n\n" % (at, body) for at, body in enumerate(BODIES)),
    "json": b"".join(BODIES),
}


def intake(kind: str, coding: str = "", **framing: object) -> Intake:
    name = "sse" if kind == "sse" else "ndjson"
    manners = dialect.load(name, {"framing": {"kind": kind, **framing}})
    return Intake(manners, Decoder(manners), coding)


def fed(one: Intake, *chunks: bytes) -> tuple[list[bytes], Counter[str]]:
    bodies: list[bytes] = []
    discarded: Counter[str] = Counter()
    for chunk in chunks:
        for piece in one.feed(chunk):
            bodies += [status.body for status in piece.messages.statuses]
            discarded += piece.discarded
    return bodies, discarded


@pytest.mark.parametrize("coding", ["", "gzip"])
@pytest.mark.parametrize("kind", STREAMS)
def test_every_framing_in_every_coding_gives_the_same_bytes(kind, coding):
    stream = gzip.compress(STREAMS[kind]) if coding else STREAMS[kind]
    for chunks in ([stream], [stream[at : at + 1] for at in range(len(stream))]):
        one = intake(kind, coding)
        assert fed(one, *chunks) == (BODIES, Counter())
        assert one.end() == Counter()
        assert one.is_whole


def test_lines_may_end_either_way_or_only_one():
    stream = b'{"id":1}\n{"id":2}\r\n'
    assert len(fed(intake("lines"), stream)[0]) == 2
    assert len(fed(intake("lines", delimiter="\n"), stream)[0]) == 2
    assert fed(intake("lines", delimiter="\r\n"), b'{"id":1,\n"x":2}\r\n')[0] == [b'{"id":1,\n"x":2}']


def test_a_large_chunk_comes_in_pieces():
    stream = b"".join(b'{"id":%d,"text":"%b"}\n' % (at, b"x" * 50) for at in range(5000))
    one = intake("lines", "gzip")
    pieces = list(one.feed(gzip.compress(stream)))
    assert len(pieces) > 5
    assert sum(len(piece.messages.statuses) for piece in pieces) == 5000


def test_what_is_dropped_is_counted_once():
    one = intake("lines", max_frame_bytes=20)
    assert fed(one, b"x" * 30 + b'\n{"id":1}\n') == ([b'{"id":1}'], Counter(oversize=30))
    assert fed(one, b'{"id":2') == ([], Counter())
    assert one.end() == Counter(cut=7)


def test_events_of_other_types_are_counted():
    manners = dialect.load("sse", {"messages": {"events": ["update"]}})
    one = Intake(manners, Decoder(manners), "")
    stream = b'event: update\ndata: {"id":1}\n\nevent: other\ndata: undefined\n\n'
    assert fed(one, stream) == ([b'{"id":1}'], Counter(other_event=9))


def test_a_stream_cut_within_a_member_is_not_whole():
    one = intake("lines", "gzip")
    fed(one, gzip.compress(STREAMS["lines"])[:-4])
    assert not one.is_whole


def test_what_came_before_lost_framing_comes_out():
    one = intake("length")
    pieces = list(one.feed(STREAMS["length"] + b"a\nb\nc\n"))
    assert len(pieces[0].messages.statuses) == 3
    with pytest.raises(FramingLost):
        list(one.feed(b"5"))


def test_bytes_that_cannot_be_inflated_are_counted():
    one = intake("lines", "gzip")
    fed(one, gzip.compress(b'{"id":1}\n'))
    with pytest.raises(FramingLost):
        fed(one, b"no gzip")
    assert one.end() == Counter(undecodable=7)


def test_the_streams_own_retry_is_known():
    one = intake("sse")
    assert one.retry_s == 0
    fed(one, b"retry: 2500\n\n")
    assert one.retry_s == 2.5
    assert intake("lines").retry_s == 0


def test_an_unknown_coding_is_refused():
    with pytest.raises(ValueError, match="br"):
        intake("lines", "br")
