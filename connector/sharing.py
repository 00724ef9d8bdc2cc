"""What runs for streams that have several shares, and what follows when settings give one another number.

Its new shares begin anew then: no position of the old ones says where they could go on.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterator, Mapping

from connector.control import shares
from connector.control.answers import noted_waiting
from connector.control.home import home
from connector.control.table import Table, is_of_kept
from connector.delivery.outbox import Entry
from connector.delivery.restore import Restored
from connector.model import Event, StreamId, Tenure
from connector.settings import StreamSettings


def shared(streams: Mapping[StreamId, StreamSettings]) -> dict[StreamId, int]:
    """Return how many shares each stream has that has several."""
    return {name: its.partitions for name, its in streams.items() if its.partitions > 1}


def running(streams: Mapping[StreamId, StreamSettings]) -> dict[StreamId, StreamSettings]:
    """Return what runs, by name: the streams, with the shares in place of those that have several."""
    runs: dict[StreamId, StreamSettings] = {}
    for name, its in streams.items():
        parts = {
            part: _share(its, number) for number, part in enumerate(shares.names(name, its.partitions), 1)
        }
        runs |= parts or {name: its}
    return runs


def _share(settings: StreamSettings, number: int) -> StreamSettings:
    """Return the settings of one share: its number is a parameter like any other."""
    manners = settings.manners
    assert manners.request.partition is not None
    own = manners.request.partition.parameters(number, settings.partitions)
    request = manners.request.model_copy(
        update={"partition": None, "parameters": {**manners.request.parameters, **own}}
    )
    return settings.model_copy(
        update={"partitions": 1, "manners": manners.model_copy(update={"request": request})}
    )


def entries(tenure: Tenure, table: Table, restored: Restored, runs: Collection[StreamId]) -> Iterator[Entry]:
    """Yield what is to be written about a partition that was loaded; nothing if all is as it was.

    Args:
        tenure: the ownership of it.
        table: what is asked for there.
        restored: its state.
        runs: the streams that run, shares among them.
    """
    configured = {*runs, *table.shared}
    for stream in sorted(configured):
        was, count = shares.noted(stream, restored.notes), table.shared.get(stream, 1)
        if was != count and home(stream, table.partitions) == tenure.partition:
            moves = shares.dealt_anew(stream, table.of(stream).by_key(), was, count, table.partitions)
            event = Event("stream.reshared", stream, {"shares": count, "before": was})
            yield Entry(tenure=tenure, events=[event], moves=moves, notes=[shares.note(stream, count)])
    for stream in sorted(restored.streams().difference(runs)):
        if shares.whole(stream) in configured:
            yield from _burial(tenure, table.shared, restored, stream)


def _burial(
    tenure: Tenure, shared: Mapping[StreamId, int], restored: Restored, stream: StreamId
) -> Iterator[Entry]:
    """Take back all about a stream that gave way to shares, or a share that gave way to others."""
    notes = restored.removal(stream)
    if stream in shared:  # what it is asked for counts as before
        notes = [note for note in notes if not (is_of_kept(note.key) or shares.is_of_shares(note.key))]
    events = [
        Event("predicates.superseded", stream, {**change.as_dict(), "reason": "reshared"})
        for change in noted_waiting(stream, restored.notes)
    ]
    position = restored.positions.get(stream)
    if position is not None and position.heard_at is not None:
        begin = dt.datetime.fromtimestamp(position.heard_at, dt.UTC).isoformat(timespec="milliseconds")
        gap = {"from": begin.replace("+00:00", "Z"), "to": None, "reason": "reshared"}
        events.append(Event("stream.gap", stream, gap))
    if notes:
        yield Entry(tenure=tenure, events=events, notes=notes)
