"""A stream's shares: streams of their own, one per partition of the upstream, with one control key. Pure.

A share's name tells how many there are: a share of three has other statuses than one of two, so it must
never go on from the other's position.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import orjson

from connector.control.home import home
from connector.control.predicates import Contribution
from connector.model import NOWHERE, ControlRecord, Note, StreamId

MAX_SHARES = 99

SUFFIX_BYTES = len(".99-of-99")
"""So much longer the keys of shares may be than those of their streams."""

_NOTED = "shares/{}/0"
_SHARE = re.compile(r"(.+)\.[1-9][0-9]?-of-[1-9][0-9]?")

Moves = list[tuple[ControlRecord, int]]
"""Control records, each with the partition it is to be written to."""


def names(stream: StreamId, count: int) -> Sequence[StreamId]:
    """Return the names of a stream's shares; none where it has but one, which is itself."""
    return () if count == 1 else tuple(f"{stream}.{number}-of-{count}" for number in range(1, count + 1))


def whole(stream: StreamId) -> StreamId:
    """Return which stream *stream* is a share of, by its name: itself, if of none."""
    match = _SHARE.fullmatch(stream)
    return stream if match is None else match[1]


def check_names(counts: Mapping[StreamId, int]) -> None:
    """Check that no stream is called like a share of another.

    Args:
        counts: how many shares each stream has.

    Raises:
        ValueError: one is.
    """
    for stream, count in counts.items():
        if taken := sorted(counts.keys() & set(names(stream, count))):
            raise ValueError(f"{taken[0]!r} is the name of a share of {stream!r}")


def dealt(record: ControlRecord, stream: StreamId, count: int, partitions: int) -> Moves:
    """Return *record* once for each share of *stream*."""
    publisher = (record.key or b"").removeprefix(stream.encode())
    return [
        (record._replace(key=share.encode() + publisher, is_dealt=True), home(share, partitions))
        for share in names(stream, count)
    ]


def dealt_anew(
    stream: StreamId, contributions: Mapping[bytes, Contribution], was: int, count: int, partitions: int
) -> Moves:
    """Return what takes a stream's contributions from *was* shares, and gives them to *count*."""
    at = home(stream, partitions)
    moves: Moves = []
    for key, contribution in contributions.items():
        # No publisher waits for these: they come from no place.
        moves += dealt(ControlRecord(at, NOWHERE, key, None), stream, was, partitions)
        value = orjson.dumps(contribution.as_dict())
        moves += dealt(ControlRecord(at, NOWHERE, key, value), stream, count, partitions)
    return moves


def note(stream: StreamId, count: int) -> Note:
    """Return the note that *stream* has so many shares."""
    return Note(_NOTED.format(stream), None if count == 1 else b"%d" % count)


def is_of_shares(key: str) -> bool:
    """Whether a note of that key says how many shares a stream has."""
    return key.startswith("shares/")


def noted(stream: StreamId, notes: Mapping[str, bytes]) -> int:
    """Return how many shares *stream* had last."""
    return int(notes.get(_NOTED.format(stream), b"1"))
