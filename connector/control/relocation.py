"""What a control partition holds, for another topic with another number of partitions. Pure.

Offsets mean nothing there, so nothing that names one is taken along as it is. What a key contributes becomes
its record, whatever the newest one on the old topic says, so no note has to say what was kept; and who waits
for an answer gets the new place of his record, and is told by the old one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from connector.control.answers import Change, is_of_waiting, note_waiting, noted_waiting
from connector.control.predicates import stream_of
from connector.control.table import is_of_kept, noted_kept
from connector.errors import PredicatesRejected
from connector.model import ControlRecord, Note, StreamId


class Answered(NamedTuple):
    """What a key contributes, as a record; and the change of it that waits for its last answer, if any."""

    record: ControlRecord
    waiting: Change | None

    @property
    def stream(self) -> StreamId:
        """Whose key it is."""
        return stream_of(self.record.key)

    def note(self, partition: int, offset: int) -> Note | None:
        """Return the note that its change still waits, now that its record is at that place."""
        if self.waiting is None:
            return None
        published = self.waiting.published or (self.waiting.partition, self.waiting.offset)
        return note_waiting(self.stream, Change(self.waiting.key, partition, offset, published))


@dataclass(frozen=True, slots=True)
class Content:
    """What of one control partition goes on elsewhere.

    Attributes:
        answered: what counts, in an order in which changes may wait.
        fresh: records that nobody has answered yet, in order.
        notes: those that name no offset, by key.
    """

    answered: Sequence[Answered]
    fresh: Sequence[ControlRecord]
    notes: Mapping[str, bytes]


def content(
    partition: int,
    records: Iterable[ControlRecord],
    handled: int,
    notes: Mapping[str, bytes],
    is_home: Callable[[StreamId], bool],
) -> Content:
    """Return what of a partition goes on elsewhere.

    Args:
        partition: which one.
        records: what it holds, in order.
        handled: the first offset that is not answered yet.
        notes: those of the partition.
        is_home: whether it is home to a stream. What else was answered there was moved home, or rejected.
    """
    notes = {key: note for key, note in notes.items() if is_home(stream_of_note(key))}
    counts: dict[bytes, ControlRecord] = {}
    fresh: list[ControlRecord] = []
    for record in records:
        if record.offset >= handled:
            fresh.append(record)
        elif (stream := stream_or_none(record)) is not None and is_home(stream):
            counts[record.key or b""] = record
    for key, kept in noted_kept(notes).items():
        # As if dealt: it is not what a publisher put under a share's key that is kept.
        counts[key] = ControlRecord(partition, kept.offset, key, kept.value, is_dealt=True)
    waiting = {change.key.encode(): change for change in noted_waiting(None, notes)}
    for key, change in waiting.items():  # a key has one at most, and need not be on the topic for it
        counts.setdefault(key, ControlRecord(change.partition, change.offset, key, None, change.published))
    answered = [
        Answered(record, waiting.get(key))
        for key, record in counts.items()
        if record.value is not None or key in waiting
    ]
    answered.sort(key=lambda one: one.record.offset if one.waiting is None else one.waiting.offset)
    stay = {key: note for key, note in notes.items() if not (is_of_kept(key) or is_of_waiting(key))}
    return Content(answered, fresh, stay)


def stream_or_none(record: ControlRecord) -> StreamId | None:
    """Return the stream that a record's key names, if any."""
    try:
        return stream_of(record.key)
    except PredicatesRejected:
        return None


def stream_of_note(key: str) -> StreamId:
    """Return which stream a note of that key is about."""
    return key.split("/")[1]
