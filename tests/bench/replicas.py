"""Several replicas: a thousand idle streams over three of them, and what one, two and three can carry."""

from __future__ import annotations

import contextlib
import json
import signal
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import harness
import rig
from confluent_kafka import Producer
from rig import Measured
from scenarios import BIG, IDLE_S, KEEP_ALIVE_S, Bench, Row

STREAMS = 1000
REPLICAS = ("one", "two", "three")

_PATIENCE_S = 120.0


class _Idle(NamedTuple):
    """What a replica costs while nothing but keep-alives comes.

    Attributes:
        streams: how many live there.
        answers_ms: how long ``/metrics`` and ``/readyz`` take.
    """

    streams: int
    resident_kb: int
    cpu_share: float
    answers_ms: dict[str, float]


class _Group:
    """Replicas that share topics and a group; each is a process of its own."""

    def __init__(
        self, folder: Path, bootstrap: str, url: str, query: str, streams: int, replicas: tuple[str, ...]
    ) -> None:
        self._streams = [f"stream-{number}" for number in range(streams)]
        self._kafka = harness.Kafka(bootstrap)
        self._url = url
        declared = {
            name: {
                "url": f"{url}/?{query}&name={name}",
                "dialect": "ndjson",
                "override": {"budget": None, **rig.MANNERS},
            }
            for name in self._streams
        }
        self.replicas: dict[str, harness.Connector] = {}
        for replica in replicas:
            its = folder / replica
            its.mkdir()
            self.replicas[replica] = harness.Connector(its, self._kafka, declared, replica=replica)

    def begin(self) -> None:
        """Create the topics, ask something of every stream, and start all replicas."""
        first, *_ = self.replicas.values()
        first.create_topics()
        producer = Producer({"bootstrap.servers": self._kafka.bootstrap, "partitioner": "murmur2_random"})
        for name in self._streams:
            producer.produce(self._kafka.topics.of("predicates"), b'{"track":["bench"]}', name)
        assert producer.flush(_PATIENCE_S) == 0
        for replica in self.replicas.values():
            replica.start()

    def live(self) -> dict[str, int]:
        """Return how many streams live in each replica that runs."""
        return {
            name: rig.total(one.ops("/metrics")[1], "stream_live")
            for name, one in self.replicas.items()
            if one.process is not None
        }

    def settled_s(self, since: float) -> float:
        """Return when all streams live again, each replica with a share of them, in seconds after *since*."""

        def is_settled() -> bool:
            live = self.live()
            return all(live.values()) and sum(live.values()) == len(self._streams)

        harness.eventually(is_settled, "all live", _PATIENCE_S)
        return time.monotonic() - since

    def longest_pause_s(self) -> float:
        """Return for how long a stream had no connection at most, since this was asked last."""
        with urllib.request.urlopen(f"{self._url}/pauses", timeout=10) as answer:
            pauses: list[float] = json.loads(answer.read())
        return max(pauses, default=0.0)

    def measure(self, seconds: float) -> Measured:
        """Return what all replicas together do in *seconds*."""
        running = list(self.replicas.values())
        pids = [one.process.pid for one in running if one.process is not None]
        before, cpu_before, began_at = self._committed(), sum(map(rig.cpu_s, pids)), time.monotonic()
        harness.pace(seconds)
        lasted_s, cpu_now = time.monotonic() - began_at, sum(map(rig.cpu_s, pids))
        return Measured(self._committed() - before, lasted_s, cpu_now - cpu_before)

    def _committed(self) -> int:
        running = self.replicas.values()
        return sum(rig.total(one.ops("/metrics")[1], "statuses_committed_total") for one in running)

    def idle(self, seconds: float) -> list[_Idle]:
        """Return what each replica costs in the next *seconds*; nobody asks it anything meanwhile."""
        running = list(self.replicas.values())
        pids = [one.process.pid for one in running if one.process is not None]
        before, began_at = list(map(rig.cpu_s, pids)), time.monotonic()
        harness.pace(seconds)
        lasted_s = time.monotonic() - began_at
        shares = [(rig.cpu_s(pid) - used) / lasted_s for pid, used in zip(pids, before, strict=True)]
        resident = list(map(rig.resident_kb, pids))
        live = self.live().values()
        answers = [{path: _answer_ms(one, path) for path in ("/metrics", "/readyz")} for one in running]
        return list(map(_Idle, live, resident, shares, answers))


def replicas(bench: Bench, streams: int = STREAMS) -> Iterator[Row]:
    """What a thousand idle streams cost three replicas, and how long they take to share them out anew."""
    idle = f"heartbeat={KEEP_ALIVE_S:g}"
    with _group(bench, idle, 1, REPLICAS[:1]) as alone:
        alone.settled_s(time.monotonic())
        harness.pace(3)
        (one,) = alone.idle(IDLE_S)
    with _group(bench, idle, streams, REPLICAS) as group:
        started_s = group.settled_s(time.monotonic())
        harness.pace(5)
        all_ = group.idle(IDLE_S)
        group.longest_pause_s()
        leaving = group.replicas[REPLICAS[-1]]
        began_at = time.monotonic()
        assert leaving.stop(signal.SIGTERM)[0] == 0
        left_s, left_pause_s = group.settled_s(began_at), group.longest_pause_s()
        harness.pace(5)
        began_at = time.monotonic()
        leaving.start()
        joined_s, joined_pause_s = group.settled_s(began_at), group.longest_pause_s()
    bench.figures["replicas"] = {
        "one stream": one._asdict(),
        "each replica": [each._asdict() for each in all_],
        "start, s": started_s,
        "one leaves, s": {"all live": left_s, "longest pause": left_pause_s},
        "one joins, s": {"all live": joined_s, "longest pause": joined_pause_s},
    }
    what = f"{streams} streams, {len(REPLICAS)} replicas"
    more_kb = [(each.resident_kb - one.resident_kb) / each.streams for each in all_]
    resident = [each.resident_kb / 1e3 for each in all_]
    shares = [100 * each.cpu_share for each in all_]
    metrics = [each.answers_ms["/metrics"] for each in all_]
    yield _row(f"{what}: memory of a replica", resident, 200, "MB")
    yield _row(f"{what}: memory per idle stream, beyond a replica with one", more_kb, 100, "kB")
    yield _row(f"{what}: CPU of a replica", shares, 5, "% of a core")
    yield _row(f"{what}: answer to /metrics", metrics, 100, "ms")
    yield Row(f"{what}: from the start until all live", started_s, 30, "s", at_most=True)
    yield Row(f"{what}: one is stopped, until all live on the others", left_s, 10, "s", at_most=True)
    yield Row(f"{what}: one is stopped, longest pause of a stream", left_pause_s, 10, "s", at_most=True)
    yield Row(f"{what}: it joins again, until all live on three", joined_s, 15, "s", at_most=True)
    yield Row(f"{what}: it joins again, longest pause of a stream", joined_pause_s, 10, "s", at_most=True)


def scaling(bench: Bench, streams: int = 12) -> Iterator[Row]:
    """What one, two and three replicas write together; no row, as machines have other numbers of cores."""
    found: dict[int, list[Measured]] = {count: [] for count in range(1, len(REPLICAS) + 1)}
    for _ in range(bench.rounds):
        for count, measured in found.items():
            with _group(bench, f"size={BIG}", streams, REPLICAS[:count]) as group:
                group.settled_s(time.monotonic())
                harness.pace(3)
                measured.append(group.measure(bench.seconds))
    bench.record("replicas at full load", {str(count): measured for count, measured in found.items()})
    yield from ()


@contextlib.contextmanager
def _group(bench: Bench, query: str, streams: int, names: tuple[str, ...]) -> Iterator[_Group]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, contextlib.ExitStack() as stack:
        group = _Group(Path(folder), bench.bootstrap, bench.url, query, streams, names)
        for replica in group.replicas.values():
            stack.enter_context(replica)
        group.begin()
        yield group


def _answer_ms(replica: harness.Connector, path: str) -> float:
    """Return how long an answer takes in the middle of five."""
    took = []
    for _ in range(5):
        began_at = time.monotonic()
        assert replica.ops(path)[0] == 200
        took.append(1e3 * (time.monotonic() - began_at))
    return statistics.median(took)


def _row(what: str, values: list[float], target: float, unit: str) -> Row:
    return Row(what, statistics.median(values), target, unit, True, (min(values), max(values)))
