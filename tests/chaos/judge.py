"""Gathers the evidence of a run and lets the checker decide on it."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from confluent_kafka import Consumer, Message, TopicPartition
from harness import PATIENCE_S, Kafka, pace
from upstream.statuses import status

from chaos import checker
from chaos.cast import SECRET, SESSION_TIMEOUT_S, Stream, Upstreams
from chaos.checker import Gap, Span, Violation
from chaos.plot import Stage
from chaos.reader import Watcher, visible

RECOVERY_S = 120.0
"""How long all may take to be well again once nothing is done to them any more."""

SLACK_S = 3.0
"""How far two clock readings may be apart, on a machine that is busy."""

FELT_S = SESSION_TIMEOUT_S + 2 * SLACK_S
"""How long a fault is felt after its end: a session runs out, and others take over."""


@dataclass(slots=True)
class Judge:
    """Sees to the end of a run.

    Attributes:
        count: how many partitions the control topic has.
    """

    stage: Stage
    kafka: Kafka
    watcher: Watcher
    streams: list[Stream]
    count: int

    def judge(self) -> tuple[dict[str, Any], list[Violation]]:
        """Wait for recovery, end the run, and return its figures and all that was wrong."""
        found = [Violation("the run itself works", one) for one in self.stage.trouble]
        found += [
            Violation("nobody ends unasked", f"{name}: code {code}") for name, code in self.stage.unasked
        ]
        ended_at = time.monotonic()
        self._recover(self._unwell)
        recovered_s = time.monotonic() - ended_at
        found += self._unwell()
        clocks = {one.name: self._of(one).ask(f"/{one.name}/clock") for one in self.streams}
        published = {
            one.name: self._of(one).ask(f"/{one.name}/freeze", post=True)["published"] for one in self.streams
        }
        self._recover(lambda: self._unseen(published))
        texts = {
            f"{one.name} {path}": one.ops(path) or ""
            for one in self.stage.usual
            for path in ("/status", "/metrics")
        }
        found += checker.badly_ended(self._end())
        pace(1.0)  # the watcher reads on for a moment
        self.watcher.close()

        messages = self.kafka.records("statuses")
        final = [visible(one) for one in messages]
        meant = {one.name: one for one in self.streams}
        there: dict[str, set[int]] = {one.name: set() for one in self.streams}
        for one in final:
            there[one.stream].add(one.number)
        core = {
            one.name: _core(one, min(there[one.name], default=published[one.name] + 1), published[one.name])
            for one in self.streams
        }
        owed = {one.name: core[one.name] for one in self.streams if one.resumes}
        newest = {name: {max(numbers)} for name, numbers in core.items() if name not in owed and numbers}
        missing = {
            one.name: {
                number: self._on_its_way(one, clocks[one.name]["started_at"] + number / one.rate)
                for number in core[one.name] - there[one.name]
            }
            for one in self.streams
            if not one.resumes
        }
        ledgers = {one.name: self._of(one).ask(f"/{one.name}/ledger")["connections"] for one in self.streams}
        sent = {name: {number for one in its for number in one["sent"]} for name, its in ledgers.items()}
        events = self.kafka.records("events")
        gaps = [gap for one in events if (gap := _gap(one)) is not None]
        placed = {
            one.key().decode(): one for one in self.kafka.records("positions") if one.key().decode() in meant
        }
        letters = self.kafka.records("dlq")
        logs = [one.log for one in self.stage.replicas if one.log.exists()]
        texts |= {log.name: log.read_text(errors="replace") for log in logs}
        texts |= {
            "events": str([one.value() for one in events]),
            "dlq": str([one.value() for one in letters]),
        }

        found += checker.lost(owed | newest, final)
        found += checker.doubled(final)
        found += checker.doubled(self.watcher.seen)
        found += checker.holes(final)
        found += checker.disordered(final, core)
        found += checker.unknown(final, sent)
        found += checker.altered(
            (seen, one.value(), status(meant[seen.stream].seed, seen.number).body)
            for seen, one in zip(final, messages, strict=True)
        )
        found += checker.misplaced(
            final, {name: json.loads(one.value())["seq"] for name, one in placed.items()}
        )
        found += checker.unstable(self.watcher.seen, final)
        found += checker.untold(missing, gaps, SLACK_S)
        found += checker.causeless(gaps, self.stage.faults, FELT_S)
        found += checker.misfiled(self._bad(), [dict(one.headers())["origin"].decode() for one in letters])
        found += checker.leaked(SECRET, texts)
        found += checker.left_open(self._ends())
        slow, takeovers = self._takeovers({name: one.partition() for name, one in placed.items()})
        found += slow
        figures = {
            "visible": len(final),
            "lost": sum(len(numbers - there[name]) for name, numbers in owed.items()),
            "doubled": len(final) - len({(one.stream, one.key) for one in final}),
            "inversions": sum(len(pairs) for *_, pairs in checker.inversions(final, core)),
            "gaps": len(gaps),
            "missing_without_resumption": sum(map(len, missing.values())),
            "control_records": len(self.kafka.records("predicates")),
            "dead_letters": len(letters),
            "recovered_s": round(recovered_s, 1),
            "takeovers": len(takeovers),
            "takeover_median_s": round(statistics.median(takeovers), 2) if takeovers else None,
            "takeover_worst_s": round(max(takeovers), 2) if takeovers else None,
        }
        return figures, found

    def _of(self, stream: Stream) -> Upstreams:
        return next(one for one in self.stage.upstreams if stream in one.streams)

    def _recover(self, wrong: Callable[[], list[Violation]]) -> None:
        """Wait until nothing is *wrong*, but not for ever."""
        give_up_at = time.monotonic() + RECOVERY_S
        while wrong() and time.monotonic() < give_up_at:
            self.stage.restart_ended()
            pace(0.5)

    def _unwell(self) -> list[Violation]:
        """Return what is not as it must be after recovery."""
        control = [one for one in self.kafka.records("predicates") if not _is_moved(one)]
        names = {one.name for one in self.streams}
        wanted = checker.union(((one.key(), one.value()) for one in control), names)
        asked = {}
        for one in self.streams:
            connections = self._of(one).ask(f"/{one.name}/ledger")["connections"]
            is_open = [its for its in connections if its["closed_at"] is None]
            asked[one.name] = is_open[-1]["track"].split(",") if is_open else []
        return [
            *(
                Violation("all are ready after recovery", f"{one.name}: {one.ops('/status')}")
                for one in self.stage.usual
                if not one.is_ready()
            ),
            *checker.wrongly_owned(self.stage.owners(), self.count),
            *checker.lagging(self._committed(), self._last()),
            *checker.not_in_force(asked, wanted),
        ]

    def _unseen(self, published: dict[str, int]) -> list[Violation]:
        """Return what must still come, of all that was published."""
        return [
            Violation("", one.name)
            for one in self.streams
            if (seen := self.watcher.numbers(one.name))
            and (owed := _core(one, min(seen), published[one.name]))
            and not (owed if one.resumes else {max(owed)}) <= seen
        ]

    def _end(self) -> dict[str, int | None]:
        for one in self.stage.usual:
            if one.process is not None:
                one.ask_to_end()
        return {one.name: one.stop(is_asked=True) for one in self.stage.usual if one.process is not None}

    def _on_its_way(self, stream: Stream, at: float) -> Span:
        """Return when a status was published that was due *at*, or held up: to when it may have been sent."""
        stalls = [
            one.span
            for one in self.stage.faults
            if one.kind == "upstream stalls" and stream.name in one.streams and one.span.meets(Span(at, at))
        ]
        return Span(at, max([at, *(one.end for one in stalls)]))

    def _takeovers(self, homes: dict[str, int]) -> tuple[list[Violation], list[float]]:
        """Return how long each stream of a replica that was killed was silent."""
        found, took = [], []
        for at, name, owned in self.stage.deaths:
            for one in self.streams:
                if homes.get(one.name) in owned:
                    seconds = checker.first_after(at, self.watcher.arrivals(one.name))
                    if seconds is None or seconds > RECOVERY_S:
                        found.append(Violation("who dies is replaced", f"{one.name} of {name}: {seconds}"))
                    else:
                        took.append(seconds)
        return found, took

    # What the broker says

    def _bad(self) -> set[str]:
        names = {one.name for one in self.streams}
        return {
            f"{one.topic()}/{one.partition()}/{one.offset()}"
            for one in self.kafka.records("predicates")
            if not checker.is_good(one.key(), one.value(), names)
        }

    def _last(self) -> dict[int, int]:
        last: dict[int, int] = {}
        for one in self.kafka.records("predicates"):
            last[one.partition()] = max(one.offset(), last.get(one.partition(), -1))
        return last

    def _committed(self) -> dict[int, int]:
        with contextlib.closing(
            _consumer(self.kafka.bootstrap, self.stage.group, "read_committed")
        ) as consumer:
            places = [TopicPartition(self.stage.control, number) for number in range(self.count)]
            return {one.partition: one.offset for one in consumer.committed(places, timeout=PATIENCE_S)}

    def _ends(self) -> dict[str, tuple[int, int]]:
        ends: dict[str, list[int]] = {}
        for isolation in ("read_committed", "read_uncommitted"):
            with contextlib.closing(_consumer(self.kafka.bootstrap, "unused", isolation)) as consumer:
                for topic in self.kafka.topics.as_dict().values():
                    for number in consumer.list_topics(topic, timeout=PATIENCE_S).topics[topic].partitions:
                        place = TopicPartition(topic, number)
                        end = consumer.get_watermark_offsets(place, PATIENCE_S)[1]
                        ends.setdefault(f"{topic}/{number}", []).append(end)
        return {place: (committed, written) for place, (committed, written) in ends.items()}


def _core(stream: Stream, first: int, last: int) -> set[int]:
    """Return the numbers of what was asked for throughout."""
    words = set(stream.core)
    return {number for number in range(first, last + 1) if words & status(stream.seed, number).words}


def _gap(message: Message) -> Gap | None:
    event = json.loads(message.value())
    if event["type"] != "stream.gap":
        return None
    begin, end = (datetime.fromisoformat(event["data"][one]).timestamp() for one in ("from", "to"))
    return Gap(event["subject"], Span(begin, end))


def _is_moved(message: Message) -> bool:
    return "moved-from" in dict(message.headers() or ())


def _consumer(bootstrap: str, group: str, isolation: str) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "isolation.level": isolation,
            "enable.auto.commit": False,
            "log_level": 0,
        }
    )
