"""An upstream that publishes numbered statuses and keeps a ledger of who was offered what, in virtual time.

It implements `Connect`. A connection gets what its words match from the moment it is accepted, in order and
with a lag of its own; what came before only after a cursor. The upstream writes to all open connections what
it has for them before it accepts another, and lags no longer than `MAX_LAG_S` behind itself: that is what an
overlap without a cursor builds on.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from urllib.parse import parse_qsl

from connector.errors import BadStatus, Disconnected, RulesRefused, Stalled, Unreachable
from connector.stream.call import Call
from connector.stream.connection import Opened, Target

MAX_LAG_S = 25.0
KEEP_ALIVE = b"\r\n"

Words = frozenset[str]


@dataclass(frozen=True)
class Status:
    """One status: it matches whoever asks for one of its words."""

    number: int
    words: Words
    cursor_known: bool  # the stream had one when this was published
    open_at: tuple[int, ...]  # the connections that were open then


@dataclass(frozen=True)
class Chunk:
    """What is read at once."""

    content: bytes
    numbers: Sequence[int] = ()


@dataclass(eq=False)
class Connection:
    """One attempt and what became of it, as the upstream sees it.

    Attributes:
        after: the last status that was published before it was accepted; None while it is not.
        pipe: written, and not read yet.
        backlog: numbers that are still to be written, and since when.
        taken: numbers that were read, each with the newer connections that had brought something by then.
        had: the words before, where they were changed.
        is_proven: it brought something, or was silent for the time that counts as proof.
        is_broken: the upstream ended it, or it never was of any use.
        fate: how it ended: `lost`, `withdrawn`, `handover`, `replaced`, or `ended` with the stream.
        successor: what it was handed over to.
    """

    number: int
    words: Words
    cursor: int | None
    after: int | None = None
    accepted_at: float = 0.0
    pipe: deque[Chunk | Exception | None] = field(default_factory=deque)
    backlog: deque[tuple[int, float]] = field(default_factory=deque)
    had: list[Words] = field(default_factory=list)
    offered: set[int] = field(default_factory=set)
    taken: dict[int, tuple[Connection, ...]] = field(default_factory=dict)
    stirred: asyncio.Event = field(default_factory=asyncio.Event)
    is_open: bool = True
    is_proven: bool = False
    is_broken: bool = False
    is_dead: bool = False
    lags: bool = False
    talks: bool = True
    fate: str = ""
    successor: Connection | None = None

    def write(self, *items: Chunk | Exception | None) -> None:
        self.pipe.extend(items)
        self.stirred.set()

    def offer(self, number: int, now: float) -> None:
        self.offered.add(number)
        self.backlog.append((number, now))
        self.stirred.set()

    def catch_up(self, count: int = 1 << 30) -> None:
        """Write so much of the backlog, as one chunk."""
        if self.is_dead or self.is_broken:
            return
        numbers = [self.backlog.popleft()[0] for _ in range(min(count, len(self.backlog)))]
        if numbers:
            self.write(Chunk(b"".join(line(one) for one in numbers), numbers))

    def end(self, how: Exception | bytes | None, *, flush: bool = False) -> None:
        """Let the upstream end it: with an error, an announcement, or just so."""
        if flush:
            self.catch_up()
        self.is_broken = True
        if isinstance(how, bytes):
            self.write(Chunk(how))
            how = None
        self.write(how)


def line(number: int) -> bytes:
    """Return a status as it is written, to all alike."""
    return b'{"id_str":"%d","seq":%d}\r\n' % (number, number)


def disconnect(code: int) -> bytes:
    return b'{"disconnect":{"code":%d,"reason":"as modelled"}}\r\n' % code


@dataclass(eq=False)
class Upstream:
    """The other end of all connections.

    Attributes:
        grace_s: how long a silent connection has to be open to count as proven; None where it never does.
        keep_alive_s: how often it says that it is there; None where it is silent until something matches.
        is_wanted: whether the stream asks for anything.
        may_replace: whether the only connection may be closed before another lives.
        has_cursor: whether the stream has a cursor.
        has_refused: is told what was refused.
        most_open: how many connections there may be.
        answers: what becomes of the next attempts, in order; then they are accepted.
        amendings: what becomes of the next changes of the rules.
        refused: words that are refused.
        only_one: what happens to a second connection: it is refused, or evicts the first; None if nothing.
        wrong: what must not have happened.
    """

    grace_s: float | None
    keep_alive_s: float | None
    is_wanted: Callable[[], bool]
    may_replace: Callable[[], bool]
    has_cursor: Callable[[], bool]
    has_refused: Callable[[Words], None]
    most_open: int
    keeps_rules: bool = False
    closing_s: float = 0.0
    answers: deque[str] = field(default_factory=deque)
    amendings: deque[str] = field(default_factory=deque)
    refused: Words = frozenset()
    only_one: str | None = None
    behaves: bool = False
    rules: Words = frozenset()
    statuses: list[Status] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    refusals: set[Words] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    @property
    def open(self) -> list[Connection]:
        """Those that were accepted and are not closed, oldest first."""
        return [one for one in self.connections if one.is_open and one.after is not None and not one.fate]

    @property
    def healthy(self) -> list[Connection]:
        return [one for one in self.open if not one.is_broken]

    def brings(self) -> list[Words]:
        """What those ask for that have proven to live, or are just being closed."""
        there = [one for one in self.connections if one.is_open and one.after is not None]
        if self.keeps_rules:  # a change may be done and not confirmed yet
            return [words for one in there for words in (one.words, *one.had)]
        return [one.words for one in there if self.has_proven(one)]

    def has_proven(self, one: Connection) -> bool:
        grace_s = self.grace_s
        return one.is_proven or (grace_s is not None and self.now >= one.accepted_at + grace_s - 1e-5)

    def publish(self, words: Words) -> None:
        """Publish a status that matches each of *words*."""
        number = len(self.statuses) + 1
        there = tuple(one.number for one in self.open)
        self.statuses.append(Status(number, words, self.has_cursor(), there))
        for one in self.healthy:
            if one.words & words:
                one.offer(number, self.now)
                if not one.lags:
                    one.catch_up()

    def behave(self) -> None:
        """Be as an upstream should be from now on."""
        self.answers.clear()
        self.amendings.clear()
        self.behaves = True
        self.refused, self.only_one = frozenset(), None
        for one in self.healthy:
            one.lags, one.talks = False, True
            one.catch_up()
            if one.is_dead:
                one.end(Disconnected("gone"))

    # As `Connect`

    async def amend(self, target: Target, rules: Sequence[str]) -> None:
        """Change the rules; when an answer is late, they may be changed or not."""
        answer = self.amendings.popleft() if self.amendings else "taken"
        if not any(one.is_open for one in self.connections):  # it may be dying, which nobody knows yet
            self.wrong.append("rules amended beside no connection")
        if answer == "late":
            await asyncio.sleep(3)
        self._set_rules(frozenset(rules))
        if answer == "unanswered":
            await asyncio.sleep(3)
        if answer == "503":
            raise BadStatus(503)
        if answer == "reset":
            raise Disconnected("reset")
        await asyncio.sleep(0.05)

    def _set_rules(self, rules: Words) -> None:
        self._refuse(rules)
        self.rules = rules
        for one in filter(attrgetter("is_open"), self.connections):
            one.had.append(one.words)
            one.words = rules

    def _refuse(self, words: Words) -> None:
        if bad := words & self.refused:
            self.refusals.add(words)
            self.has_refused(words)
            raise RulesRefused(min(bad), "not that") if self.keeps_rules else BadStatus(406)

    async def __call__(self, target: Target, call: Call) -> AsyncGenerator[Opened | bytes, None]:
        form = dict(parse_qsl(call.body.decode()))
        words = frozenset(form["track"].split(",") if call.rules is None else call.rules)
        cursor = int(form["since_seq"]) if "since_seq" in form else None
        one = Connection(len(self.connections) + 1, words, cursor)
        self.connections.append(one)
        if (there := sum(other.is_open for other in self.connections)) > self.most_open:
            self.wrong.append(f"connection {one.number} makes {there}, at {self.now}")
        try:
            await self._admit(one, by_rules=call.rules is not None)
            yield Opened()
            async for chunk in self._chunks(one, target.liveness.stall_timeout_s):
                yield chunk
        finally:
            if one.after is not None:
                self._closed(one)
            try:
                if self.closing_s:
                    await asyncio.sleep(self.closing_s)
            finally:
                one.is_open = False

    async def _admit(self, one: Connection, *, by_rules: bool) -> None:
        answer = self.answers.popleft() if self.answers else "accepted"
        await asyncio.sleep(3 if answer == "slow" else 0.05)
        if self.behaves:
            answer = "accepted"
        if by_rules:
            self._set_rules(one.words)
        match answer:
            case "unreachable":
                raise Unreachable("no route")
            case "crowded":
                raise BadStatus(420, "Exceeded connection limit for user")
            case "503" | "429":
                raise BadStatus(int(answer))
        if self.only_one == "refuse" and self.healthy:
            raise BadStatus(420, "Exceeded connection limit for user")
        self._refuse(one.words)
        for other in self.healthy:
            if self.only_one == "evict":
                other.end(disconnect(7), flush=True)
            elif one.cursor is None:
                other.catch_up()
        one.after, one.accepted_at = len(self.statuses), self.now
        one.talks, one.lags = answer != "silent", answer in {"silent", "lagging"}
        one.is_dead = answer == "dead"
        for status in self.statuses[one.cursor :] if one.cursor is not None else ():
            if status.words & one.words:
                one.offer(status.number, self.now)
        if answer == "closed":
            one.end(None)
        elif not one.lags:
            one.catch_up()

    async def _chunks(self, one: Connection, stall_s: float) -> AsyncGenerator[bytes, None]:
        heard_at = self.now
        while True:
            while one.pipe:
                item = one.pipe.popleft()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    return
                heard_at, one.is_proven = self.now, True
                newer = tuple(other for other in self.open if other.number > one.number and other.is_proven)
                yield item.content
                heard_at = self.now  # it may have been paused: silence counts from here
                one.taken.update(dict.fromkeys(item.numbers, newer))
            one.stirred.clear()
            keep_alive_s = self.keep_alive_s if one.talks and not one.is_dead else None
            first_s = 1.0 if keep_alive_s and not one.is_proven else keep_alive_s
            quiet_s = stall_s if first_s is None else first_s
            is_late = one.backlog and not one.is_dead and not one.is_broken
            lags_until = one.backlog[0][1] + MAX_LAG_S if is_late else math.inf
            try:
                async with asyncio.timeout_at(min(heard_at + quiet_s, lags_until)):
                    await one.stirred.wait()
            except TimeoutError:
                if self.now >= lags_until:
                    one.catch_up()
                    continue
                if first_s is None:
                    one.is_broken = True
                    raise Stalled(f"silent for {stall_s:g} s", stall_s) from None
                one.write(Chunk(KEEP_ALIVE))

    def _closed(self, one: Connection) -> None:
        """Judge why a connection is closed."""
        there = [other for other in self.connections if other.is_open and other.after is not None]
        others = [other for other in there if other is not one]  # what is being closed counts still
        newer = [other for other in others if other.number > one.number and self.has_proven(other)]
        if one.is_broken:
            one.fate = "lost"
        elif not self.is_wanted():
            one.fate = "ended"
        elif any(other.number < one.number for other in others):
            one.fate = "withdrawn"
        elif newer:
            one.fate, one.successor = "handover", newer[0]
        else:
            one.fate = "replaced"
            if not self.may_replace():
                self.wrong.append(f"connection {one.number} closed while no other lives, at {self.now}")
