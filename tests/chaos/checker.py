"""What must hold of a run, decided on evidence alone. Pure: nothing of the connector's is imported.

Each function takes what was found and returns what is wrong with it, by name and with the ids that show it.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

NAMED = 8
"""How many ids a violation names; how many there are it says too."""


class Violation(NamedTuple):
    """Something that must not be."""

    invariant: str
    detail: str


class Visible(NamedTuple):
    """A record of the statuses topic, as a reader of committed records sees it.

    Attributes:
        number: the upstream's own number of the status.
        seq: the connector's.
    """

    stream: str
    key: str
    number: int
    seq: int
    partition: int
    offset: int


class Span(NamedTuple):
    """Some time, in seconds since the epoch."""

    begin: float
    end: float

    def meets(self, other: Span, slack_s: float = 0.0) -> bool:
        """Whether both have a moment in common, or nearly so."""
        return self.begin <= other.end + slack_s and other.begin <= self.end + slack_s


class Gap(NamedTuple):
    """What an event says about missing statuses."""

    stream: str
    span: Span


class Fault(NamedTuple):
    """What the run did, and to whom: all streams, if none is named."""

    kind: str
    span: Span
    streams: frozenset[str] = frozenset()


def lost(owed: Mapping[str, Collection[int]], visible: Iterable[Visible]) -> list[Violation]:
    """Find what is owed and not visible.

    Args:
        owed: the upstream's numbers by stream.
        visible: all that is visible in the end.
    """
    there = _by_stream(visible)
    return [
        Violation("nothing is lost", f"{stream}: {_some(missing)}")
        for stream, numbers in owed.items()
        if (missing := sorted(set(numbers) - {one.number for one in there.get(stream, ())}))
    ]


def doubled(visible: Iterable[Visible]) -> list[Violation]:
    """Find keys, and numbers, that are there more than once within a stream."""
    found = []
    for stream, its in _by_stream(visible).items():
        for what in ("key", "seq"):
            counts = Counter(getattr(one, what) for one in its)
            if twice := sorted(one for one, count in counts.items() if count > 1):
                found.append(Violation(f"no {what} is doubled", f"{stream}: {_some(twice)}"))
    return found


def holes(visible: Iterable[Visible]) -> list[Violation]:
    """Find what lacks in ``seq``, which counts from 1."""
    return [
        Violation("seq counts without a hole", f"{stream}: {_some(missing)}")
        for stream, its in _by_stream(visible).items()
        if (missing := sorted(set(range(1, max(one.seq for one in its) + 1)) - {one.seq for one in its}))
    ]


def disordered(visible: Iterable[Visible], core: Mapping[str, Collection[int]]) -> list[Violation]:
    """Find what stands after what came later, in a stream and partition, by ``seq`` or by the upstream.

    Args:
        visible: in any order.
        core: the upstream's numbers that were asked for throughout, by stream. What is asked for for a while
            only may come from a connection of its own, which nothing keeps in step with the older one.
    """
    return [
        Violation(f"order of {what}", f"{stream} in partition {partition}: {_some(pairs)}")
        for stream, partition, what, pairs in inversions(visible, core)
    ]


def inversions(
    visible: Iterable[Visible], core: Mapping[str, Collection[int]]
) -> Iterator[tuple[str, int, str, list[tuple[int, int]]]]:
    """Yield neighbours in the wrong order: stream, partition, by what, and the pairs."""
    for (stream, partition), its in _by_place(visible).items():
        seqs = [one.seq for one in its]
        numbers = [one.number for one in its if one.number in core.get(stream, ())]
        for what, row in (("seq", seqs), ("upstream", numbers)):
            if inverted := [(one, two) for one, two in pairwise(row) if one > two]:
                yield stream, partition, what, inverted


def altered(bodies: Iterable[tuple[Visible, bytes, bytes]]) -> list[Violation]:
    """Find what has other bytes than the upstream's; each comes with those found and those meant."""
    return [Violation("a status keeps its bytes", str(one)) for one, found, meant in bodies if found != meant]


def unknown(visible: Iterable[Visible], sent: Mapping[str, Collection[int]]) -> list[Violation]:
    """Find what no upstream ever sent."""
    return [
        Violation("nothing is visible that was not sent", f"{stream}: {_some(found)}")
        for stream, its in _by_stream(visible).items()
        if (found := sorted({one.number for one in its} - set(sent.get(stream, ()))))
    ]


def misplaced(visible: Iterable[Visible], positions: Mapping[str, int]) -> list[Violation]:
    """Find streams whose last position does not count what is visible."""
    highest = {stream: max(one.seq for one in its) for stream, its in _by_stream(visible).items()}
    return [
        Violation(
            "the position is the highest seq",
            f"{stream}: position {positions.get(stream, 0)}, visible {highest.get(stream, 0)}",
        )
        for stream in sorted(highest.keys() | positions.keys())
        if positions.get(stream, 0) != highest.get(stream, 0)
    ]


def unstable(watched: Sequence[Visible], final: Iterable[Visible]) -> list[Violation]:
    """Find what a reader that watched saw differently from one who came at the end.

    Args:
        watched: in the order in which they were seen.
        final: all that is there in the end.
    """
    found = []
    there = {(one.partition, one.offset): one for one in final}
    last: dict[int, int] = {}
    for one in watched:
        if one.offset <= last.get(one.partition, -1):
            found.append(Violation("a reader never goes backwards", f"{one} after {last[one.partition]}"))
        last[one.partition] = max(one.offset, last.get(one.partition, -1))
        if there.get((one.partition, one.offset)) != one:
            found.append(Violation("nothing seen changes or vanishes", str(one)))
    seen = {(one.partition, one.offset) for one in watched}
    found += [
        Violation("nothing appears behind a reader", str(one))
        for place, one in there.items()
        if place not in seen and place[1] <= last.get(place[0], -1)
    ]
    return found


def untold(missing: Mapping[str, Mapping[int, Span]], gaps: Iterable[Gap], slack_s: float) -> list[Violation]:
    """Find missing statuses that no event tells of.

    Args:
        missing: when each was on its way, by stream and the upstream's number.
        gaps: the events.
        slack_s: how far a clock reading may be off.
    """
    told = defaultdict(list)
    for gap in gaps:
        told[gap.stream].append(gap.span)
    return [
        Violation("what is missing is told", f"{stream}: {_some(numbers)}")
        for stream, its in missing.items()
        if (
            numbers := sorted(
                number
                for number, span in its.items()
                if not any(span.meets(other, slack_s) for other in told[stream])
            )
        )
    ]


def causeless(gaps: Iterable[Gap], faults: Sequence[Fault], after_s: float) -> list[Violation]:
    """Find events of gaps that nothing was the cause of.

    Args:
        gaps: the events.
        faults: what the run did.
        after_s: how long after its end a fault is still felt.
    """
    return [
        Violation("no gap is told without a cause", str(gap))
        for gap in gaps
        if not any(
            gap.span.meets(Span(fault.span.begin, fault.span.end + after_s), 1.0)
            for fault in faults
            if not fault.streams or gap.stream in fault.streams
        )
    ]


def wrongly_owned(owners: Mapping[str, Collection[int]], partitions: int) -> list[Violation]:
    """Find partitions of the control topic that have no owner, or several."""
    counts = Counter(number for its in owners.values() for number in its)
    return [
        Violation("each partition has one owner", f"partition {number} has {counts[number]}")
        for number in range(partitions)
        if counts[number] != 1
    ]


def lagging(committed: Mapping[int, int], last: Mapping[int, int]) -> list[Violation]:
    """Find partitions of the control topic with records that nobody handled.

    Args:
        committed: the group's offset by partition.
        last: the offset of the last record by partition, where there is one.
    """
    return [
        Violation("the group's lag goes to 0", f"partition {number}: {committed.get(number, 0)} of {end + 1}")
        for number, end in sorted(last.items())
        if committed.get(number, 0) <= end
    ]


def not_in_force(
    asked: Mapping[str, Collection[str]], wanted: Mapping[str, Collection[str]]
) -> list[Violation]:
    """Find streams that ask for something else than their publishers do together."""
    return [
        Violation(
            "what is in force is the union", f"{stream}: {sorted(asked.get(stream, ()))}, not {sorted(its)}"
        )
        for stream, its in sorted(wanted.items())
        if set(asked.get(stream, ())) != set(its)
    ]


def misfiled(bad: Collection[str], letters: Sequence[str]) -> list[Violation]:
    """Find bad control records without a dead letter, or with two, and letters about good ones.

    Args:
        bad: where each is, as topic/partition/offset.
        letters: what each dead letter is about.
    """
    counts = Counter(letters)
    return [
        Violation("a bad control record has one dead letter", f"{place} has {counts[place]}")
        for place in sorted({*bad, *letters})
        if counts[place] != (1 if place in bad else 0)
    ]


def leaked(secret: str, texts: Mapping[str, str]) -> list[Violation]:
    """Find texts with the secret in them."""
    return [Violation("no secret shows", name) for name, text in texts.items() if secret in text]


def left_open(ends: Mapping[str, tuple[int, int]]) -> list[Violation]:
    """Find topics that end elsewhere for who reads committed records than for who reads all."""
    return [
        Violation("no transaction stays open", f"{place}: {committed} of {written}")
        for place, (committed, written) in ends.items()
        if committed != written
    ]


def badly_ended(codes: Mapping[str, int | None]) -> list[Violation]:
    """Find replicas that did not end in peace when they were asked to."""
    return [
        Violation("who is asked to end does", f"{name}: {'killed' if code is None else f'code {code}'}")
        for name, code in codes.items()
        if code != 0
    ]


def union(
    records: Iterable[tuple[bytes | None, bytes | None]], streams: Collection[str]
) -> dict[str, set[str]]:
    """Return what publishers together ask of each stream, by their control records in order.

    A bad record changes nothing; of a key the last good one counts.
    """
    newest: dict[str, set[str]] = {}
    for key, value in records:
        if is_good(key, value, streams):
            assert key is not None
            newest[key.decode()] = set() if value is None else set(json.loads(value).get("track", ()))
    wanted: dict[str, set[str]] = {stream: set() for stream in streams}
    for name, words in newest.items():
        wanted[name.partition("/")[0]] |= words
    return wanted


def is_good(key: bytes | None, value: bytes | None, streams: Collection[str]) -> bool:
    """Whether a control record is one that counts; knows what this suite publishes, and no more."""
    try:
        if key is None or key.decode().partition("/")[0] not in streams:
            return False
        words = {} if value is None else json.loads(value)
    except ValueError:
        return False
    return (
        isinstance(words, dict)
        and words.keys() <= {"track"}
        and isinstance(words.get("track", []), list)
        and all(isinstance(word, str) and word for word in words.get("track", []))
    )


def first_after(at: float, arrivals: Sequence[tuple[float, float]]) -> float | None:
    """Return how long after *at* the first arrived that was made after it.

    Args:
        at: when.
        arrivals: when each was made, rising, and when it was seen.
    """
    index = bisect_left(arrivals, at, key=lambda one: one[0])
    return arrivals[index][1] - at if index < len(arrivals) else None


def _by_stream(visible: Iterable[Visible]) -> dict[str, list[Visible]]:
    found = defaultdict(list)
    for one in visible:
        found[one.stream].append(one)
    return found


def _by_place(visible: Iterable[Visible]) -> dict[tuple[str, int], list[Visible]]:
    found = defaultdict(list)
    for one in sorted(visible, key=lambda one: (one.partition, one.offset)):
        found[one.stream, one.partition].append(one)
    return found


def _some(ids: Sequence[object]) -> str:
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return f"{len(ids)}: {', '.join(map(str, ids[:NAMED]))}{more}"
