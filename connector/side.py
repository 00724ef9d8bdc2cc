"""One reader of a subscription, and what it was last asked: the active side, or the candidate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import InitVar, dataclass, field

from connector.control.answers import Change
from connector.delivery.outbox import Outbox
from connector.model import PredicateSet, StreamId
from connector.stream.amender import Amended, Amender
from connector.stream.policy import Outcome
from connector.stream.reader import Ask, Lost, Reader, ReaderEvent


@dataclass(frozen=True, slots=True)
class Resumed:
    """Reading goes on after the outbox was full since *paused_at*."""

    paused_at: float


@dataclass(slots=True)
class Withheld:
    """How many statuses an upstream says it did not send over one connection.

    Attributes:
        told_at: when that was told last, or the connection came to life, in seconds since the epoch.
    """

    seen: int = 0
    told: int = 0
    told_at: float = 0.0


@dataclass(slots=True, eq=False)
class Side:
    """One reader and what it was last asked."""

    number: int
    make: InitVar[Callable[[Side], Reader | Amender]]
    reader: Reader | Amender = field(init=False)
    asked: Ask = field(default_factory=lambda: Ask(PredicateSet(), None))
    carried: Sequence[Change] = ()
    live: bool = False
    stopped: bool = False
    is_paused: bool = False  # waits for room in the outbox: its silence says nothing
    held_cursor: str | None = None  # after what it sent while the other side was drained
    trouble: str | None = None  # why it was lost last
    told: set[str] = field(default_factory=set)  # events of attempts since it lived last
    discarded: set[str] = field(default_factory=set)  # reasons told on this connection
    withheld: Withheld = field(default_factory=Withheld)
    proof: object = None  # of identity, by which it asked
    is_refused: bool = False  # waits for something else to ask for
    connected_at: float | None = None  # on the loop's clock
    task: asyncio.Task[None] | None = None

    def __post_init__(self, make: Callable[[Side], Reader | Amender]) -> None:
        self.reader = make(self)

    def proven_at(self, grace_s: float | None) -> float | None:
        """When a silent connection counts as live; None without one, or if bytes alone are the proof."""
        if grace_s is None or self.connected_at is None or self.live:
            return None
        return self.connected_at + grace_s

    def wake(self) -> None:
        """End the wait after a refusal: there is something else to ask for."""
        self.is_refused = False
        self.reader.changed.set()

    async def events(
        self, outbox: Outbox, stream: StreamId, patience_s: float, former: Sequence[asyncio.Task[None]]
    ) -> AsyncGenerator[ReaderEvent | Amended | Resumed, None]:
        """Yield what the reader brings, until the side is stopped; pause while *outbox* is full.

        Args:
            outbox: is full when statuses come faster than Kafka takes them; the upstream feels the pause.
            stream: whose share of the outbox it is.
            patience_s: after a longer pause the connection is closed, and another one made when there is
                room: an upstream that is not read drops statuses, or the connection, and says neither.
            former: sides to wait for first: their end closes their sockets, and so frees the slots.
        """
        clock = asyncio.get_running_loop().time
        if former:
            await asyncio.wait(former)
        while True:
            async with aclosing(self.reader.events()) as events:
                async for event in events:
                    if self.stopped:  # a cancelled task runs on until it has to wait for something
                        return
                    yield event
                    if isinstance(event, Lost):
                        await outbox.room(stream)  # what the failure asks to wait is waited after that
                    elif self.connected_at is not None and outbox.is_full(stream):
                        paused_at = clock()
                        self.is_paused = True
                        with suppress(TimeoutError):
                            async with asyncio.timeout(patience_s):
                                await outbox.room(stream)
                        self.is_paused = False
                        if outbox.is_full(stream):
                            break
                        yield Resumed(paused_at)
                else:
                    return
            reason = f"Kafka has not taken what was read for {patience_s:g} s: closed on purpose"
            yield Lost(reason, Outcome.NETWORK, 0.0, silent_s=clock() - paused_at)
            await outbox.room(stream)


def stop(side: Side) -> None:
    """Let go of a side; nothing it still brings counts."""
    if side.task is not None:
        side.stopped = True
        side.task.cancel()


@dataclass(slots=True)
class Readers:
    """Starts sides, each once the sockets of those stopped before it are closed: upstreams count them.

    Attributes:
        stream: whose they are.
        outbox: where what they bring goes; they pause while it is full.
        patience_s: how long they pause before they close their connection.
        hear: takes what they bring.
        tasks: they run in it.
    """

    stream: StreamId
    outbox: Outbox
    patience_s: float
    hear: Callable[[Side, ReaderEvent | Amended | Resumed], None]
    tasks: asyncio.TaskGroup = field(default_factory=asyncio.TaskGroup)
    _count: int = 0
    _started: list[tuple[Side, asyncio.Task[None]]] = field(default_factory=list)

    def start(self, make: Callable[[Side], Reader | Amender]) -> Side:
        """Start a side with the reader that *make* makes for it."""
        self._count += 1
        side = Side(self._count, make)
        self._started = [(one, task) for one, task in self._started if not task.done()]
        former = [task for one, task in self._started if one.stopped]
        side.task = self.tasks.create_task(self._pump(side, former), name=f"{self.stream}#{side.number}")
        self._started.append((side, side.task))
        return side

    async def _pump(self, side: Side, former: Sequence[asyncio.Task[None]]) -> None:
        async with aclosing(side.events(self.outbox, self.stream, self.patience_s, former)) as events:
            async for event in events:
                self.hear(side, event)
