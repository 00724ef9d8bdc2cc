"""Leases come and go, records are answered once, and only what is owned runs."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from confluent_kafka import KafkaError, KafkaException
from script import RESUMABLE, Hang, Script, Step, Wait, lines
from story import restored

from connector.control.answers import Answers, Change
from connector.control.home import home
from connector.control.ownership import Assigned, CaughtUp, Failed, LeaseEvent, Lost, Read, Revoked
from connector.delivery.dedupe import Window
from connector.delivery.deletions import Deletions
from connector.delivery.outbox import Entry, Outbox
from connector.delivery.restore import Restored
from connector.errors import BadStatus
from connector.model import ControlRecord, Event, Position, PredicateSet, Status, Tenure
from connector.ops.metrics import Metrics
from connector.settings import StreamSettings
from connector.stream.connection import Opened
from connector.supervisor import Supervisor

pytestmark = pytest.mark.looptime(idle_timeout=1)

PARTITIONS = 6
HOME = home("tech", PARTITIONS)
ELSEWHERE = next(number for number in range(PARTITIONS) if number not in {HOME, home("news", PARTITIONS)})
FIRST, SECOND = Tenure(HOME, 1), Tenure(HOME, 2)

KAFKA = PredicateSet.of({"track": ["kafka"]})
LIVE: list[Step] = [Opened(), b"\r\n", Hang()]


class ScriptedLease:
    """A lease that a test grants and takes."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[LeaseEvent | None] = asyncio.Queue()

    async def tell(self, *events: LeaseEvent) -> None:
        """Tell what happened, and wait until all of its consequences of this moment are there."""
        for event in events:
            self._events.put_nowait(event)
        await asyncio.sleep(0.001)

    def end(self) -> None:
        self._events.put_nowait(None)

    async def events(self) -> AsyncGenerator[LeaseEvent, None]:
        while (event := await self._events.get()) is not None:
            yield event


class Sink:
    """The far end of the outbox: keeps each entry, and settles it.

    Attributes:
        going: cleared, the log is unreachable and entries stay in the outbox.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.entries: list[Entry] = []
        self.going = asyncio.Event()
        self.going.set()

    async def run(self) -> None:
        while await self._outbox.filled():
            await self.going.wait()
            taken = self._outbox.take(1 << 30)
            self.entries += taken
            self._outbox.settle(taken)

    @property
    def ids(self) -> list[int]:
        return [int(status.id) for entry in self.entries for status in entry.statuses]

    def events(self, kind: str) -> list[Event]:
        return [event for entry in self.entries for event in entry.events if event.type.startswith(kind)]

    def answers(self) -> dict[str, list[str]]:
        """Return what each control record was answered, in order; ``key@offset`` names it."""
        told: dict[str, list[str]] = {}
        for event in self.events("predicates."):
            told.setdefault(f"{event.data['key']}@{event.data['offset']}", []).append(
                event.type.split(".")[1]
            )
        return told


class Ledger:
    """Stands in for the writer: notes what it may write, and what it may no longer."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Tenure]] = []
        self.adopted: dict[Tenure, Restored] = {}

    def adopt(self, tenure: Tenure, restored: Restored) -> None:
        self.calls.append(("adopt", tenure))
        self.adopted[tenure] = restored

    def abandon(self, tenure: Tenure) -> None:
        self.calls.append(("abandon", tenure))


@dataclass
class Restore:
    """What the log says about each partition; the first attempts may fail, and `gate` may hold one up."""

    content: dict[int, Restored] = field(default_factory=dict)
    failures: int = 0
    asked: list[int] = field(default_factory=list)
    gate: threading.Event | None = None

    def __call__(self, partition: int) -> Restored:
        self.asked.append(partition)
        if self.gate is not None:
            assert self.gate.wait(5)
        if len(self.asked) <= self.failures:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return self.content.get(partition, Restored())


class Replica:
    """A supervisor between a scripted lease, a scripted upstream and a sink."""

    def __init__(
        self,
        scripts: Sequence[Sequence[Step]],
        restore: Restore,
        streams: Sequence[str],
        shared: Mapping[str, int],
    ) -> None:
        self.script = Script(scripts)
        self.lease = ScriptedLease()
        self.outbox = Outbox(1 << 20)
        self.sink = Sink(self.outbox)
        self.ledger = Ledger()
        self.restore = restore
        self.supervisor = Supervisor(
            streams={name: settings(name) for name in streams},
            partitions=PARTITIONS,
            lease=self.lease,
            outbox=self.outbox,
            writer=self.ledger,
            restore=restore,
            connect=self.script,
            metrics=Metrics(),
            topic="predicates",
            shared=shared,
            rng=Random(1),
        )

    async def own(self, *records: ControlRecord, tenure: Tenure = FIRST) -> None:
        """Grant a partition that holds these records."""
        await self.lease.tell(Assigned(frozenset({tenure})), Read(list(records)), CaughtUp(tenure.partition))

    @property
    def entries(self) -> list[tuple[str, int | None]]:
        """What was put: events with the next control offset."""
        return [
            (" ".join(event.type for event in entry.events), entry.handled)
            for entry in self.sink.entries
            if entry.handled is not None
        ]

    @property
    def closed_at(self) -> list[float | None]:
        return [None if one.closed_at is None else round(one.closed_at, 2) for one in self.script.attempts]


def settings(name: str, **override: object) -> StreamSettings:
    debounce = {"min_s": 120, "max_s": 600}
    return StreamSettings.model_validate(
        {"url": f"http://upstream/{name}", "override": {**RESUMABLE, **override}, "debounce": debounce}
    )


@asynccontextmanager
async def running(
    *scripts: Sequence[Step],
    restore: Restore | None = None,
    streams: Sequence[str] = ("tech",),
    shared: Mapping[str, int] | None = None,
) -> AsyncIterator[Replica]:
    """Run a supervisor over these connections; drain it at the end, as the process does."""
    replica = Replica(scripts, restore or Restore(), streams, shared or {})
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(replica.supervisor.run())
        tasks.create_task(replica.sink.run())
        yield replica
        if not running.done():
            await replica.supervisor.drain()
        replica.lease.end()
        replica.outbox.close()
    assert all(one.closed_at is not None for one in replica.script.attempts), "a connection leaked"


def record(offset: int, key: str | bytes | None, *track: str, partition: int = HOME) -> ControlRecord:
    """Return a control record; without terms it removes its key's contribution."""
    encoded = key.encode() if isinstance(key, str) else key
    value = json.dumps({"track": track}).encode() if track else None
    return ControlRecord(partition, offset, encoded, value)


# A partition's beginning


async def test_records_that_nobody_handled_are_answered_once_it_is_loaded() -> None:
    async with running(LIVE) as replica:
        await replica.lease.tell(Assigned(frozenset({FIRST})), Read([record(0, "tech", "kafka")]))
        await asyncio.sleep(5)
        assert replica.sink.entries == []  # the partition may hold more
        assert list(replica.supervisor.troubles()) == [f"partition {HOME}: loading"]
        await replica.lease.tell(Read([record(1, "tech/ops", "flink")]), CaughtUp(HOME))
        await asyncio.sleep(5)
        assert list(replica.supervisor.troubles()) == []

    assert replica.sink.answers() == {
        "tech@0": ["accepted", "applied"],
        "tech/ops@1": ["accepted", "applied"],
    }
    assert [one.form["track"] for one in replica.script.attempts] == ["flink,kafka"]
    assert replica.ledger.calls == [("adopt", FIRST), ("abandon", FIRST)]
    assert {entry.tenure for entry in replica.sink.entries} == {FIRST}


async def test_records_that_were_handled_are_known_and_not_answered_again() -> None:
    restored = Restored(2, {"tech": Position(41, "41", PredicateSet.of({"track": ["a", "b"]}).version)})
    async with running([Opened(), lines(42), Hang()], restore=Restore({HOME: restored})) as replica:
        await replica.own(record(0, "tech/x", "a"), record(1, "tech/y", "b"))
        await asyncio.sleep(5)

    assert replica.sink.answers() == {}
    assert [dict(one.form) for one in replica.script.attempts] == [
        {"track": "a,b", "since_seq": "41", "stall_warnings": "true"}
    ]
    assert replica.sink.ids == [42]


async def test_records_below_and_above_what_was_handled_are_told_apart() -> None:
    restored = Restored(1, {"tech": Position(41, None, KAFKA.version)})
    async with running(LIVE, restore=Restore({HOME: restored})) as replica:
        await replica.own(
            record(0, "tech", "kafka"), record(1, "tech/ops", "flink"), record(2, "tech/x", "flink")
        )
        await asyncio.sleep(5)

    assert replica.sink.answers() == {"tech/ops@1": ["accepted", "applied"], "tech/x@2": ["unchanged"]}
    assert replica.script.attempts[0].form["track"] == "flink,kafka"


async def test_accepted_changes_are_answered_after_a_crash_when_they_are_in_force() -> None:
    """Whoever waits has a note; those that were answered for good have none."""
    notes = {
        note.key: note.value
        for change in (Change("tech/ops", HOME, 3, (ELSEWHERE, 7)), Change("tech/old", HOME, 4))
        for note in Answers("tech").accepted(change, "", 0.0).notes
    }
    restored = Restored(5, {"tech": Position(9, "9", KAFKA.version)}, notes)
    records = [
        record(0, "tech/old", "b"),
        record(1, "tech", "kafka"),
        record(2, "tech/ops", "flink"),
        record(3, "tech/ops", "spark"),
        record(4, "tech/old"),
    ]
    async with running([Wait(3), *LIVE], restore=Restore({HOME: restored})) as replica:
        await replica.own(*records)
        await asyncio.sleep(2)
        assert replica.sink.answers() == {}
        await asyncio.sleep(2)

    assert replica.sink.answers() == {"tech/ops@7": ["applied"], "tech/old@4": ["applied"]}
    gone = [note for entry in replica.sink.entries for note in entry.notes]
    assert gone == [("waiting/tech/3", None), ("waiting/tech/4", None)]


async def test_a_restart_with_nothing_pending_tells_nobody_anything() -> None:
    """All records had their answers."""
    restored = Restored(3, {"tech": Position(9, "9", KAFKA.version)})
    async with running(LIVE, restore=Restore({HOME: restored})) as replica:
        await replica.own(
            record(0, "tech", "kafka"), record(1, "tech/x", "kafka"), record(2, "tech/y", "kafka")
        )
        await asyncio.sleep(5)

    assert replica.sink.answers() == {}


async def test_changes_that_wait_while_nothing_is_asked_for_are_applied() -> None:
    """The crash came between the answer and the stop."""
    (note,) = Answers("tech").accepted(Change("tech", HOME, 1), "", 0.0).notes
    restored = Restored(2, {"tech": Position(9, "9", KAFKA.version)}, {note.key: note.value})
    async with running(restore=Restore({HOME: restored})) as replica:
        await replica.own(record(0, "tech", "kafka"), record(1, "tech"))
        await asyncio.sleep(5)
    assert replica.sink.answers() == {"tech@1": ["applied"]}


# What publishers ask for


def value_of(offset: int, key: str, value: bytes) -> ControlRecord:
    return ControlRecord(HOME, offset, key.encode(), value)


async def test_what_is_paused_is_asked_for_again_when_its_publisher_says_so() -> None:
    async with running(LIVE, LIVE, LIVE) as replica:
        await replica.own(record(0, "tech/a", "kafka"), record(1, "tech/b", "flink"))
        await asyncio.sleep(1)
        await replica.lease.tell(Read([value_of(2, "tech/b", b'{"track": ["flink"], "paused": true}')]))
        await asyncio.sleep(1000)
        await replica.lease.tell(Read([record(3, "tech/b", "flink")]))
        await asyncio.sleep(1000)
    assert [one.form["track"] for one in replica.script.attempts] == ["flink,kafka", "kafka", "flink,kafka"]
    assert all(told == ["accepted", "applied"] for told in replica.sink.answers().values())


async def test_a_stream_all_of_whose_publishers_pause_or_go_stops() -> None:
    async with running(LIVE, LIVE) as replica:
        await replica.own(record(0, "tech/a", "kafka"), record(1, "tech/b", "flink"))
        await asyncio.sleep(1)
        await replica.lease.tell(Read([record(2, "tech/a"), value_of(3, "tech/b", b'{"paused": true}')]))
        await asyncio.sleep(1)
        assert replica.closed_at == [1.0]
        assert list(replica.supervisor.troubles()) == []
        await replica.lease.tell(Read([record(4, "tech/b", "flink")]))
        await asyncio.sleep(200)
    assert [one.form["track"] for one in replica.script.attempts] == ["flink,kafka", "flink"]
    assert replica.sink.answers()["tech/a@2"] == ["accepted", "applied"]
    assert replica.sink.answers()["tech/b@3"] == ["accepted", "applied"]


async def test_a_rejected_record_is_noted_with_what_stays_in_its_place() -> None:
    async with running(LIVE, LIVE) as replica:
        await replica.own(record(0, "tech/a", "kafka"), value_of(1, "tech/a", b"rubbish"))
        await asyncio.sleep(1)
        notes = {note.key: note.value for entry in replica.sink.entries for note in entry.notes}
        assert notes["kept/tech/a"] == b'1 {"track":["kafka"]}'
        await replica.lease.tell(Read([record(2, "tech/a", "flink")]))
        await asyncio.sleep(1000)
        notes = {note.key: note.value for entry in replica.sink.entries for note in entry.notes}
        assert notes["kept/tech/a"] is None


async def test_a_restart_finds_what_a_rejected_record_left() -> None:
    """Compaction has taken the last good record of its key away."""
    restored = Restored(2, {}, {"kept/tech/a": b'1 {"track":["kafka"]}'})
    async with running(LIVE, restore=Restore({HOME: restored})) as replica:
        await replica.own(value_of(1, "tech/a", b"rubbish"))
        await asyncio.sleep(5)
    assert [one.form["track"] for one in replica.script.attempts] == ["kafka"]
    assert replica.sink.answers() == {}


async def test_a_restart_goes_on_with_what_the_upstream_took_before() -> None:
    restored = Restored(2, {}, {"in-force/tech/0": b'{"track":["kafka"]}'})
    scripts = [[BadStatus(406)], LIVE, [BadStatus(406)]]
    async with running(*scripts, restore=Restore({HOME: restored})) as replica:
        await replica.own(record(0, "tech", "kafka"), record(1, "tech", "nonsense"))
        await asyncio.sleep(5)
        assert list(replica.supervisor.troubles()) == []
    assert [one.form["track"] for one in replica.script.attempts] == ["nonsense", "kafka"]


async def test_publishers_together_cannot_ask_for_more_than_the_upstream_takes() -> None:
    many = json.dumps({"track": [f"w{number}" for number in range(399)]}).encode()
    async with running(LIVE, LIVE) as replica:
        await replica.own(value_of(0, "tech/a", many))
        await asyncio.sleep(1)
        await replica.lease.tell(Read([record(1, "tech/b", "x", "y")]))
        await asyncio.sleep(1)
    (rejected,) = replica.sink.events("predicates.rejected")
    assert (rejected.data["reason"], rejected.data["pointer"]) == ("quota_exceeded", "/track")
    assert "400" in rejected.data["detail"]


async def test_restoring_is_tried_again_while_the_partition_is_ours() -> None:
    async with running(LIVE, restore=Restore(failures=2)) as replica:
        await replica.own(record(0, "tech", "kafka"))
        await asyncio.sleep(1.5)
        assert replica.restore.asked == [HOME] * 2
        assert replica.sink.entries == []
        await asyncio.sleep(3)

    assert replica.restore.asked == [HOME] * 3
    assert replica.script.attempts[0].at == pytest.approx(2, abs=0.1)
    assert replica.sink.answers() == {"tech@0": ["accepted", "applied"]}


async def test_restoring_ends_with_the_lease() -> None:
    async with running(restore=Restore(failures=99)) as replica:
        await replica.own(record(0, "tech", "kafka"))
        await asyncio.sleep(2.5)
        await replica.lease.tell(Lost(frozenset({FIRST})))
        await asyncio.sleep(60)

    assert replica.restore.asked == [HOME] * 3
    assert replica.sink.entries == []


async def test_what_restores_too_late_belongs_to_nobody() -> None:
    """Lost and granted again while the first look at the log still fails: only the second one counts."""
    async with running(LIVE, restore=Restore(failures=1)) as replica:
        await replica.own(record(0, "tech", "kafka"))
        await replica.lease.tell(Lost(frozenset({FIRST})))
        await replica.own(record(0, "tech", "kafka"), tenure=SECOND)
        await asyncio.sleep(10)

    assert {entry.tenure for entry in replica.sink.entries} == {SECOND}
    assert replica.ledger.calls == [("abandon", FIRST), ("adopt", SECOND), ("abandon", SECOND)]
    assert replica.restore.asked == [HOME] * 2
    assert len(replica.script.attempts) == 1


async def test_a_look_at_the_log_that_outlives_its_lease_starts_nothing() -> None:
    restore = Restore(gate=threading.Event())
    async with running(restore=restore) as replica:
        await replica.own(record(0, "tech", "kafka"))
        assert restore.asked == [HOME]
        await replica.lease.tell(Lost(frozenset({FIRST})))
        restore.gate.set()
        await asyncio.sleep(0.1)  # passes when the thread is done

    assert replica.sink.entries == []
    assert replica.ledger.calls == [("abandon", FIRST)]


async def test_only_streams_at_home_run() -> None:
    assert home("news", PARTITIONS) != HOME
    async with running(LIVE, streams=["tech", "news"]) as replica:
        await replica.own(record(0, "tech", "kafka"))
        await asyncio.sleep(5)
        assert list(replica.supervisor._owned[HOME].subscriptions) == ["tech"]


# Records


async def test_records_that_cannot_be_used_are_answered_and_kept() -> None:
    records = [
        record(0, "sport", "football"),
        ControlRecord(HOME, 1, b"tech", b'{"track": "kafka"}'),
        ControlRecord(HOME, 2, b"tech/x", b"{"),
        ControlRecord(HOME, 3, b"\xff", b"{}"),
        record(4, "tech", "kafka"),
    ]
    async with running(LIVE) as replica:
        await replica.own(*records[:2])
        await replica.lease.tell(Read(records[2:]))
        await asyncio.sleep(5)

    assert replica.entries == [
        *[("predicates.rejected", n) for n in (1, 2, 3, 4)],
        ("predicates.accepted", 5),
    ]
    rejected = replica.sink.events("predicates.rejected")
    assert [(one.data["offset"], one.data["reason"], one.data["pointer"]) for one in rejected] == [
        (0, "unknown_stream", ""),
        (1, "not_a_list", "/track"),
        (2, "not_json", ""),
        (3, "key_not_utf8", ""),
    ]
    letters = [letter for entry in replica.sink.entries for letter in entry.dead_letters]
    assert [(one.reason, one.origin, one.key, one.value) for one in letters] == [
        (answer.data["reason"], f"predicates/{HOME}/{one.offset}", one.key, one.value)
        for answer, one in zip(rejected, records, strict=False)
    ]


async def test_a_rejected_record_changes_nothing() -> None:
    async with running(LIVE) as replica:
        await replica.own(record(0, "tech", "kafka"), ControlRecord(HOME, 1, b"tech", b'{"nope": ["x"]}'))
        await asyncio.sleep(2000)

    assert replica.sink.answers() == {"tech@0": ["accepted", "applied"], "tech@1": ["rejected"]}
    assert [one.form["track"] for one in replica.script.attempts] == ["kafka"]


async def test_a_record_in_a_foreign_partition_is_moved_home() -> None:
    foreign = record(7, "tech/ops", "kafka", partition=ELSEWHERE)
    async with running(restore=Restore({ELSEWHERE: Restored(7)})) as replica:
        await replica.own(record(6, "tech", "x", partition=ELSEWHERE), foreign, tenure=Tenure(ELSEWHERE, 1))
        await asyncio.sleep(5)

    (entry,) = replica.sink.entries  # the one before was moved before
    assert entry.moves == [(foreign, HOME)]
    assert entry.handled == 8
    assert [(event.type, event.stream, event.data["to_partition"]) for event in entry.events] == [
        ("predicates.rerouted", "tech", HOME)
    ]


async def test_a_moved_record_is_answered_where_it_was_published() -> None:
    moved = record(4, "tech/ops", "kafka")._replace(published=(ELSEWHERE, 7))
    async with running(LIVE) as replica:
        await replica.own(moved)
        await asyncio.sleep(5)
    places = {(one.data["partition"], one.data["offset"]) for one in replica.sink.events("predicates.")}
    assert places == {(ELSEWHERE, 7)}
    handled = [entry.handled for entry in replica.sink.entries if entry.handled is not None]
    assert handled == [5], "what counts for the group is where it is"


async def test_records_of_partitions_that_are_not_ours_are_left_alone() -> None:
    async with running() as replica:
        await replica.lease.tell(Read([record(0, "tech", "kafka")]), CaughtUp(HOME))
        await asyncio.sleep(5)
    assert replica.sink.entries == []


# A partition's end


async def test_a_planned_end_drains_commits_and_then_gives_back() -> None:
    async with running([Opened(), lines(1), Wait(4), lines(2), Hang()]) as replica:
        await replica.own(record(0, "tech", "kafka"))
        await asyncio.sleep(1)
        replica.sink.going.clear()
        await asyncio.sleep(4)
        revoked = Revoked(frozenset({FIRST}))
        await replica.lease.tell(revoked)
        assert replica.closed_at == [pytest.approx(5, abs=0.1)]
        await asyncio.sleep(2)
        assert not revoked.released.is_set()  # what was read is not in the log yet
        assert replica.ledger.calls == [("adopt", FIRST)]
        replica.sink.going.set()
        await asyncio.sleep(0.1)
        assert revoked.released.is_set()
        assert replica.ledger.calls == [("adopt", FIRST), ("abandon", FIRST)]
        assert list(replica.supervisor.troubles()) == []
        await replica.lease.tell(Read([record(1, "tech", "flink")]))  # on its way when the lease ended

    assert replica.sink.ids == [1, 2]
    assert replica.sink.answers() == {"tech@0": ["accepted", "applied"]}


async def test_a_partition_that_was_never_loaded_is_given_back_at_once() -> None:
    async with running(restore=Restore(failures=99)) as replica:
        await replica.own(record(0, "tech", "kafka"))
        revoked = Revoked(frozenset({FIRST}))
        await replica.lease.tell(revoked)
        assert revoked.released.is_set()


async def test_a_lost_lease_drops_what_waits_and_closes_its_connections() -> None:
    async with running([Opened(), lines(1), Wait(4), lines(2), Hang()]) as replica:
        await replica.own(record(0, "tech", "kafka"))
        await asyncio.sleep(1)
        replica.sink.going.clear()
        await asyncio.sleep(4)
        assert replica.outbox.size_bytes > 0
        await replica.lease.tell(Lost(frozenset({FIRST})))
        assert replica.closed_at == [pytest.approx(5, abs=0.1)]
        assert replica.outbox.size_bytes == 0
        assert replica.ledger.calls == [("adopt", FIRST), ("abandon", FIRST)]
        replica.sink.going.set()
        await asyncio.sleep(5)

    assert replica.sink.ids == [1]


async def test_a_lost_lease_takes_nothing_of_another_partition() -> None:
    other = Tenure(home("news", PARTITIONS), 1)
    async with running(LIVE, [Opened(), lines(7), Hang()], streams=["tech", "news"]) as replica:
        await replica.own(record(0, "tech", "kafka"))
        replica.sink.going.clear()
        await replica.own(record(0, "news", "kafka", partition=other.partition), tenure=other)
        await replica.lease.tell(Lost(frozenset({FIRST})))
        await asyncio.sleep(5)
        assert [at is None for at in replica.closed_at] == [False, True]
        replica.sink.going.set()

    assert replica.sink.ids == [7]


async def test_a_partition_lost_while_it_drains_holds_nobody_up() -> None:
    async with running([Opened(), lines(1), Hang()]) as replica:
        replica.sink.going.clear()
        await replica.own(record(0, "tech", "kafka"))
        await asyncio.sleep(1)
        revoked = Revoked(frozenset({FIRST}))
        await replica.lease.tell(revoked)
        assert not revoked.released.is_set()
        await replica.lease.tell(Lost(frozenset({FIRST})))
        assert revoked.released.is_set()
        assert replica.outbox.size_bytes == 0
        replica.sink.going.set()


async def test_a_partition_that_comes_back_runs_under_its_new_tenure() -> None:
    async with running(LIVE, LIVE) as replica:
        await replica.own(record(0, "tech", "kafka"))
        await replica.lease.tell(Lost(frozenset({FIRST})))
        await replica.own(record(0, "tech", "kafka"), tenure=SECOND)
        await replica.lease.tell(Lost(frozenset({FIRST})))  # old news
        await asyncio.sleep(5)
        assert [at is None for at in replica.closed_at] == [False, True]

    assert [entry.tenure.term for entry in replica.sink.entries] == [1] * 6 + [2] * 6


async def test_a_stream_that_can_resume_has_no_gap() -> None:
    async with running([Opened(), lines(1), Wait(40)], [Opened(), lines(2), Hang()]) as replica:
        await replica.own(record(0, "tech", "kafka"))
        await asyncio.sleep(60)
    assert [status.id for entry in replica.sink.entries for status in entry.statuses] == ["1", "2"]
    assert not replica.sink.events("stream.gap")


async def test_a_stream_goes_on_from_what_the_log_says_of_it() -> None:
    """After its cursor, without what its journal has; and there is nothing to be missed."""
    went_out = [Status(str(number), lines(number).strip()) for number in (1, 2, 3)]
    statuses, marks = Window(keeps=True).fresh(went_out, 0.0)
    log = Entry(
        tenure=FIRST, stream="tech", statuses=statuses, marks=marks, cursor="1", version="v", heard_at=5.0
    )
    restore = Restore({HOME: replace(restored([log]), handled=1)})
    async with running([Opened(), lines(2, 3, 4), Hang()], restore=restore) as replica:
        await replica.own(record(0, "tech", "kafka"))
        await asyncio.sleep(5)
    assert replica.ledger.adopted == {FIRST: restore.content[HOME]}
    assert replica.script.attempts[0].form["since_seq"] == "1"
    assert replica.sink.ids == [4]
    assert replica.sink.events("stream.gap") == []


async def test_what_was_deleted_before_a_restart_stays_deleted() -> None:
    _, notes = Deletions("tech", {}).take([Status("2", None)], time.time())
    log = Entry(tenure=FIRST, stream="tech", version="v", notes=notes)
    restore = Restore({HOME: replace(restored([log]), handled=1)})
    async with running([Opened(), lines(1, 2, 3), Hang()], restore=restore) as replica:
        await replica.own(record(0, "tech", "kafka"))
        await asyncio.sleep(5)
    assert replica.sink.ids == [1, 3]


async def test_the_attempts_of_the_process_before_count() -> None:
    now = time.time()
    log = Entry(tenure=FIRST, stream="tech", version="v", attempts=(now, now))
    restore = Restore({HOME: replace(restored([log]), handled=1)})
    async with running(LIVE, restore=restore) as replica:
        replica.supervisor.streams = {"tech": settings("tech", budget={"attempts": 2, "window_s": 900})}
        replica.supervisor.wall = lambda: now + 100
        await replica.own(record(0, "tech", "kafka"))
        await asyncio.sleep(5)
    (deferred,) = replica.sink.events("connection.deferred")
    assert deferred.data["wait_s"] == 800
    assert replica.script.attempts == []


@pytest.mark.parametrize("was_wanted", [True, False])
async def test_what_the_process_before_did_not_read_is_a_gap_if_it_was_wanted(was_wanted) -> None:
    version = KAFKA.version if was_wanted else PredicateSet().version
    heard_at = 1_700_000_000.0
    log = Entry(tenure=FIRST, stream="tech", version=version, heard_at=heard_at)
    restore = Restore({HOME: replace(restored([log]), handled=1)})
    async with running([Opened(), lines(1), Hang()], restore=restore) as replica:
        await replica.own(record(0, "tech", "kafka"))
        await asyncio.sleep(5)
    gaps = [gap.data["from"] for gap in replica.sink.events("stream.gap")]
    assert gaps == (["2023-11-14T22:13:20.000Z"] if was_wanted else [])


async def test_a_stream_that_fills_the_outbox_keeps_no_other_out() -> None:
    """Kafka is away. Each has its half; and when it is back, all of it gets there."""
    flood = [step for number in range(1, 200) for step in (lines(number), Wait(0.01))]
    drops = [step for number in range(1001, 1007) for step in (lines(number), Wait(10))]
    news = Tenure(home("news", PARTITIONS), 1)
    async with running(
        [Opened(), *flood, Hang()], [Opened(), *drops, Hang()], streams=["tech", "news"]
    ) as it:
        it.outbox.capacity_bytes = 40_000
        it.sink.going.clear()
        await it.own(record(0, "tech", "kafka"))
        await it.own(record(0, "news", "kafka", partition=news.partition), tenure=news)
        await asyncio.sleep(55)
        waiting = Counter(entry.stream for entry in it.outbox._entries for _ in entry.statuses)
        assert 20 < waiting["tech"] < 60, "it waits for room"
        assert waiting["news"] == 6
        assert it.outbox.size_bytes > it.outbox.capacity_bytes
        it.sink.going.set()
        await asyncio.sleep(5)
        assert sorted(it.sink.ids) == [*range(1, 200), *range(1001, 1007)]


async def test_draining_stops_everything_and_takes_on_nothing_more() -> None:
    async with running([Opened(), lines(1), Hang()]) as replica:
        await replica.own(record(0, "tech", "kafka"))
        await asyncio.sleep(5)
        await replica.supervisor.drain()
        await replica.own(record(0, "tech", "kafka"), tenure=SECOND)
        assert replica.closed_at == [pytest.approx(5, abs=0.1)]
        await asyncio.sleep(5)

    assert replica.sink.ids == [1]
    assert len(replica.script.attempts) == 1
    assert replica.ledger.calls == [("adopt", FIRST), ("abandon", FIRST)]


async def test_a_group_that_refuses_us_ends_the_process() -> None:
    error = KafkaException(KafkaError(KafkaError._FATAL))
    replica = Replica([LIVE], Restore(), ["tech"], {})
    task = asyncio.create_task(replica.supervisor.run())
    await replica.own(record(0, "tech", "kafka"))
    await replica.lease.tell(Failed(error))

    with pytest.raises(ExceptionGroup) as caught:
        await task
    assert caught.value.exceptions == (error,)
    assert replica.script.attempts[0].closed_at is not None


async def test_a_lease_that_comes_back_in_the_same_breath() -> None:
    async with running(LIVE, LIVE) as replica:
        await replica.own(record(0, "tech", "kafka"))
        revoked = Revoked(frozenset({FIRST}))
        await replica.lease.tell(
            revoked, Assigned(frozenset({SECOND})), Read([record(0, "tech", "kafka")]), CaughtUp(HOME)
        )
        await asyncio.sleep(1)
        assert replica.closed_at[0] is not None
        assert replica.closed_at[1] is None


async def test_a_record_without_a_key_is_about_no_stream() -> None:
    async with running() as replica:
        await replica.own(record(0, None, "x"))
        await asyncio.sleep(1)
    assert [one.stream for one in replica.sink.events("predicates.")] == [None]


# Shares

THREE = ("tech.1-of-3", "tech.2-of-3", "tech.3-of-3")
SHARE_HOMES = [home(share, PARTITIONS) for share in THREE]


def three() -> Restored:
    """Return the state of a home whose stream has three shares."""
    return Restored(0, notes={"shares/tech/0": b"3"})


def keys(moves: Sequence[tuple[ControlRecord, int]]) -> list[tuple[str, int, bool]]:
    """Return what is moved where, and whether it asks for anything."""
    return [((one.key or b"").decode(), to, one.value is not None) for one, to in moves]


async def test_a_record_goes_to_all_shares_in_the_entry_that_counts_it_as_handled() -> None:
    async with running(streams=THREE, shared={"tech": 3}, restore=Restore({HOME: three()})) as replica:
        await replica.own(record(0, "tech/a", "kafka"), record(1, "tech/a"))
        await asyncio.sleep(5)

    put, removed = replica.sink.entries
    for entry, handled, asks in ((put, 1, True), (removed, 2, False)):
        expected = [(f"{share}/a", to, asks) for share, to in zip(THREE, SHARE_HOMES, strict=True)]
        assert keys(entry.moves) == expected
        assert all(one.is_dealt for one, _ in entry.moves)
        assert entry.handled == handled
        (event,) = entry.events
        assert (event.type, event.stream, event.data["shares"]) == ("predicates.dealt", "tech", THREE)


async def test_a_bad_record_is_rejected_once_and_goes_to_no_share() -> None:
    async with running(streams=THREE, shared={"tech": 3}, restore=Restore({HOME: three()})) as replica:
        await replica.own(ControlRecord(HOME, 0, b"tech", b'{"nope": ["x"]}'))
        await asyncio.sleep(5)

    (entry,) = replica.sink.entries
    assert [event.data["reason"] for event in entry.events] == ["unknown_predicate"]
    assert entry.moves == ()


async def test_a_share_asks_for_what_was_dealt_to_it_and_for_nothing_that_others_put() -> None:
    number = SHARE_HOMES[0]
    dealt = record(0, f"{THREE[0]}/a", "kafka", partition=number)._replace(is_dealt=True)
    theirs = record(1, f"{THREE[0]}/a", "x", partition=number)
    async with running(LIVE, streams=THREE, shared={"tech": 3}) as replica:
        await replica.own(dealt, theirs, tenure=Tenure(number, 1))
        await asyncio.sleep(2000)

    assert [one.form["track"] for one in replica.script.attempts] == ["kafka"]
    (rejected,) = replica.sink.events("predicates.rejected")
    assert rejected.data["reason"] == "share_key"


async def test_another_number_of_shares_is_followed_when_the_home_is_loaded() -> None:
    two = tuple(f"tech.{number}-of-2" for number in (1, 2))
    restored = replace(three(), handled=2)
    asked = [record(0, "tech/a", "kafka"), record(1, "tech/b", "rust"), record(2, "tech/b")]
    async with running(streams=two, shared={"tech": 2}, restore=Restore({HOME: restored})) as replica:
        await replica.own(*asked)
        await asyncio.sleep(5)

    changed, late = replica.sink.entries
    assert [key for key, _, asks in keys(changed.moves) if not asks] == [
        f"{share}/{publisher}" for publisher in "ab" for share in THREE
    ]
    assert [key for key, _, asks in keys(changed.moves) if asks] == [
        f"{share}/{publisher}" for publisher in "ab" for share in two
    ]
    assert [(note.key, note.value) for note in changed.notes] == [("shares/tech/0", b"2")]
    assert changed.handled is None
    assert [key for key, _, _ in keys(late.moves)] == [f"{share}/b" for share in two]


async def test_a_stream_that_has_shares_no_more_goes_on_by_itself() -> None:
    async with running(LIVE, restore=Restore({HOME: replace(three(), handled=1)})) as replica:
        await replica.own(record(0, "tech", "kafka"))
        await asyncio.sleep(5)

    first = replica.sink.entries[0]
    assert keys(first.moves) == [(share, to, False) for share, to in zip(THREE, SHARE_HOMES, strict=True)]
    assert [(note.key, note.value) for note in first.notes] == [("shares/tech/0", None)]
    assert [one.form["track"] for one in replica.script.attempts] == ["kafka"]


async def test_the_same_number_of_shares_moves_nothing() -> None:
    state = Restore({HOME: replace(three(), handled=1)})
    async with running(streams=THREE, shared={"tech": 3}, restore=state) as replica:
        await replica.own(record(0, "tech", "kafka"))
        await asyncio.sleep(5)
    assert replica.sink.entries == []


@pytest.mark.parametrize(
    ("streams", "shared"), [(("tech",), {}), (("tech.1-of-2", "tech.2-of-2"), {"tech": 2})]
)
async def test_nothing_stays_of_a_share_that_is_gone_and_whoever_waits_is_told(streams, shared) -> None:
    share, number = THREE[0], SHARE_HOMES[0]
    waits = Answers(share).accepted(Change(f"{share}/a", number, 3, (HOME, 9)), "", 0.0).notes
    state = Restored(4, {share: Position(7, "c", heard_at=0.0)}, {note.key: note.value for note in waits})
    state.take(f"seen/{share}/0", b"x")
    state.take("other.1-of-3", b'{"seq":1}')  # of no configured stream: it may come back
    gone = record(4, f"{share}/a", partition=number)._replace(is_dealt=True)
    async with running(streams=streams, shared=shared, restore=Restore({number: state})) as replica:
        await replica.own(gone, tenure=Tenure(number, 1))
        await asyncio.sleep(5)

    burial, passed = replica.sink.entries
    assert {note.key for note in burial.notes} == {share, f"waiting/{share}/3", f"seen/{share}/0"}
    assert {note.value for note in burial.notes} == {None}
    superseded, gap = burial.events
    assert superseded.data == {"key": f"{share}/a", "partition": HOME, "offset": 9, "reason": "reshared"}
    assert gap.type == "stream.gap"
    assert gap.data == {"from": "1970-01-01T00:00:00.000Z", "to": None, "reason": "reshared"}
    assert (passed.handled, passed.events, passed.dead_letters) == (5, (), ())


async def test_what_a_stream_is_asked_for_stays_when_it_gives_way_to_shares() -> None:
    kept = {"kept/tech/a": b"0 " + b'{"track":["kafka"]}'}
    state = Restored(1, {"tech": Position(7)}, kept)
    async with running(streams=THREE, shared={"tech": 3}, restore=Restore({HOME: state})) as replica:
        await replica.own(record(0, "tech/a", "rejected"))
        await asyncio.sleep(5)

    dealt, burial = replica.sink.entries
    assert [json.loads(one.value or b"") for one, _ in dealt.moves] == 3 * [{"track": ["kafka"]}]
    assert [(note.key, note.value) for note in burial.notes] == [("tech", None)]
