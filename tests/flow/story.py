"""One stream's subscription over scripted connections, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from random import Random

from script import LINES, TARGET, Script, Step, Wait, line, manners

from connector.control.answers import Change, noted_waiting
from connector.control.debounce import Debounce
from connector.control.demand import Demand, noted_in_force
from connector.delivery.batch import Ledger, form
from connector.delivery.dedupe import Window
from connector.delivery.deletions import Deletions
from connector.delivery.outbox import Entry, Outbox
from connector.delivery.restore import Restored
from connector.lifecycle import Lifecycle
from connector.model import Position, PredicateSet, Tenure, Topics
from connector.ops.metrics import Metrics
from connector.outlet import Outlet
from connector.stream.amender import Amender
from connector.stream.budget import Budget
from connector.stream.connection import Opened
from connector.stream.dialect import Dialect
from connector.stream.handover import Phase
from connector.stream.reader import Ask, Reader
from connector.subscription import Subscription

OK = Opened()
TOPICS = Topics(
    predicates="predicates", statuses="statuses", positions="positions", events="events", dlq="dlq"
)


def outlet(
    outbox: Outbox,
    dialect: Dialect,
    wall: Callable[[], float],
    *,
    marks: bytes = b"",
    notes: Mapping[str, bytes] | None = None,
    cursor: str | None = None,
    heard_at: float | None = None,
    version: str | None = None,
) -> Outlet:
    """Return a stream's outlet, going on from what the log says."""
    return Outlet(
        stream="tech",
        tenure=Tenure(0, 1),
        outbox=outbox,
        metrics=Metrics(),
        wall=wall,
        window=Window(marks, keeps=dialect.resume is not None),
        deletions=Deletions("tech", notes or {}),
        cursor=cursor,
        heard_at=heard_at,
        version=version,
    )


def restored(log: Sequence[Entry]) -> Restored:
    """Return what a restart reads, once the entries of *log* are written."""
    tenure = Tenure(0, 1)
    batch = form(log, {tenure: Ledger(0, {}, {})}, b"", "mark", 0.0)
    found = Restored()
    for record in batch.state(TOPICS):
        assert isinstance(record.key, str)
        found.take(record.key, record.value)
    return found


class Story:
    """One subscription over scripted connections, and what it put into the outbox.

    Where there is a *log*, what it says is where the subscription begins; `load` follows.
    """

    def __init__(
        self,
        *connections: list[Step],
        override=LINES,
        debounce=(2, 2),
        capacity=1 << 20,
        log: Sequence[Entry] = (),
    ) -> None:
        self.script = Script(connections)
        self.restored = restored(log)
        position = self.restored.positions.get("tech", Position())
        self.outbox = Outbox(capacity)
        dialect = manners(override)
        limit = dialect.budget
        budget = Budget() if limit is None else Budget(limit.attempts, limit.window_s)
        budget.restore(position.attempts)
        wall = asyncio.get_running_loop().time

        def reader(ask: Callable[[], Ask]) -> Reader:
            return Reader(
                connect=self.script,
                target=TARGET,
                dialect=dialect,
                ask=ask,
                budget=budget,
                wall=wall,
                rng=Random(1),
            )

        self.subscription = Subscription(
            stream="tech",
            outlet=outlet(
                self.outbox,
                dialect,
                wall,
                marks=b"".join(page.marks for page in self.restored.journals().get("tech", ())),
                notes=self.restored.notes,
                cursor=position.cursor,
                heard_at=position.heard_at,
                version=position.predicates,
            ),
            reader=reader,
            amender=lambda ask: Amender(
                connect=self.script, target=TARGET, dialect=dialect, ask=ask, rng=Random(1)
            ),
            dialect=dialect,
            demand=Demand(stream="tech", debounce=Debounce(*debounce)),
            budget=budget,
            lifecycle=Lifecycle(stream="tech", metrics=Metrics(), resume=dialect.resume, wall=wall),
        )
        self._offset = 0
        self._parts: dict[str, PredicateSet] = {}
        self._taken = []

    def publish(self, *track: str, key: str = "tech") -> None:
        """Publish a record under *key*; without terms it is removed."""
        self._parts[key] = PredicateSet.of({"track": track})
        self.subscription.change(PredicateSet.union(self._parts.values()), Change(key, 0, self._offset))
        self._offset += 1

    def load(self, *track: str) -> None:
        """Start from the log, with a record that was answered before the restart."""
        self._parts["tech"] = PredicateSet.of({"track": track})
        notes, known = self.restored.notes, self.subscription.dialect.request.predicates
        self.subscription.load(
            self._parts["tech"], noted_waiting("tech", notes), noted_in_force("tech", notes, known)
        )

    def entries(self) -> list:
        self._taken += self.outbox.take(1 << 30)
        return self._taken

    def ids(self) -> list[int]:
        return [int(status.id) for entry in self.entries() for status in entry.statuses]

    def answers(self) -> dict[int, list[str]]:
        """Return what was answered, by offset of the record."""
        told: dict[int, list[str]] = {}
        for event in self.events("predicates."):
            told.setdefault(event.data["offset"], []).append(event.type.partition(".")[2])
        return told

    def events(self, kind: str) -> list:
        return [event for one in self.entries() for event in one.events if event.type.startswith(kind)]

    def asked(self) -> list[str]:
        return [attempt.form["track"] for attempt in self.script.attempts]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        running = asyncio.create_task(self.subscription.run())
        yield
        self.subscription.stop()
        await running
        assert self.subscription.phase is Phase.CLOSED
        assert all(attempt.closed_at is not None for attempt in self.script.attempts)


def flow(first: int, last: int, every_s: float = 1.0) -> list[Step]:
    """One status each second."""
    return [step for number in range(first, last + 1) for step in (line(number), Wait(every_s))]
