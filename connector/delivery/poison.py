"""What becomes of a record that Kafka does not take: too large, invalid, or against a policy. Pure."""

from __future__ import annotations

from dataclasses import replace

from connector.delivery.outbox import Entry
from connector.model import ControlRecord, DeadLetter

REASON = "refused_by_kafka"

COPY_BYTES = 64 * 1024
"""Longest copy kept of such a record: the dead-letter topic may be as strict as the one that refused it."""


def condemned(entry: Entry, detail: str) -> Entry | None:
    """Return what to write in place of *entry*, which has one status at most and is refused on its own.

    First a dead letter with a copy; where that is refused too, one without; and then nothing of it but the
    state that goes with it. None where that was refused: what is wrong then is the topic.

    Args:
        entry: the refused one.
        detail: what Kafka said.
    """
    if entry.statuses or entry.moves:
        letters = [
            DeadLetter(REASON, detail, entry.stream, "upstream", one.id.encode(), one.body, COPY_BYTES)
            for one in entry.statuses
        ]
        letters += [_letter(record, detail) for record, _ in entry.moves]
        return replace(entry, statuses=(), moves=(), dead_letters=[*entry.dead_letters, *letters])
    if any(letter.copy_bytes for letter in entry.dead_letters):
        return replace(entry, dead_letters=[replace(one, copy_bytes=0) for one in entry.dead_letters])
    if entry.events or entry.dead_letters or entry.notes:
        return replace(entry, events=(), dead_letters=(), notes=())
    return None


def _letter(record: ControlRecord, detail: str) -> DeadLetter:
    origin = f"control/{record.partition}/{record.offset}"
    return DeadLetter(REASON, detail, None, origin, record.key, record.value, COPY_BYTES)
