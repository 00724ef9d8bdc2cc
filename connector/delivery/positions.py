"""Positions as records of the positions topic. Pure.

A position is written in the transaction of the statuses it counts, so the newest visible one *is* how far
the stream has come.
"""

from __future__ import annotations

from dataclasses import asdict

import msgspec

from connector.model import Position


class _Record(msgspec.Struct, omit_defaults=True):
    seq: int
    cursor: str | None = None
    predicates: str | None = None
    attempts: tuple[float, ...] = ()
    heard_at: float | None = None


def encode(position: Position) -> bytes:
    """Return the record's value."""
    return msgspec.json.encode(_Record(**asdict(position)))


def decode(value: bytes) -> Position:
    """Read a record's value.

    Raises:
        msgspec.DecodeError: it is not ours: somebody else writes to the topic.
    """
    try:
        record = msgspec.json.decode(value, type=_Record)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error
    return Position(**msgspec.structs.asdict(record))


def advance(
    position: Position,
    statuses: int,
    *,
    cursor: str | None = None,
    version: str | None = None,
    attempts: tuple[float, ...] | None = None,
    heard_at: float | None = None,
) -> Position:
    """Return *position* after so many more statuses; None leaves a member as it is."""
    return Position(
        seq=position.seq + statuses,
        cursor=position.cursor if cursor is None else cursor,
        predicates=position.predicates if version is None else version,
        attempts=position.attempts if attempts is None else attempts,
        heard_at=position.heard_at if heard_at is None else heard_at,
    )
