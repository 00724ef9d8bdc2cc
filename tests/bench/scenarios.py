"""What is measured: each scenario runs by itself and returns its figures and the rows of the table."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import guard
import harness
import rig
from confluent_kafka import Consumer, KafkaException, TopicPartition
from rig import Connector, Measured
from upstream import SENT_AT

BIG, SMALL = 2200, 90
RATE = 1000

WARM_S = 30.0
KEEP_ALIVE_S = 20.0
IDLE_S = 2 * KEEP_ALIVE_S
"""How long idle streams are measured: at every second keep-alive the log is told that they are heard (`outlet`)."""
SETTLE_S = 4.0
"""How long the paced streams run before their latency counts."""


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        value: in *unit*; a ratio has none.
        target: the bound.
        at_most: whether the bound is the largest good value, or else the smallest.
        spread: smallest and largest of the single values whose median *value* is.
    """

    what: str
    value: float
    target: float
    unit: str = "×"
    at_most: bool = False
    spread: tuple[float, float] | None = None

    @property
    def is_met(self) -> bool:
        """Whether the target is met."""
        return self.value <= self.target if self.at_most else self.value >= self.target


@dataclass(slots=True, kw_only=True)
class Bench:
    """What the scenarios share.

    Attributes:
        bootstrap: the broker.
        url: the upstream.
        seconds: how long each measurement is.
        rounds: how many pairs are measured.
        memory_s: how long memory is watched at full load.
        figures: what was measured, for the JSON.
    """

    bootstrap: str
    url: str
    seconds: float
    rounds: int
    memory_s: float
    figures: dict[str, Any] = field(default_factory=dict)

    def of_size(self, size: int) -> str:
        """Return the URL of an endless stream."""
        return f"{self.url}/?size={size}"

    def floor(self, size: int) -> Measured:
        """Measure the floor."""
        with rig.topic(self.bootstrap) as topic:
            return rig.script("floor.py", self.of_size(size), self.bootstrap, topic, str(self.seconds))

    def reading(self, size: int) -> Measured:
        """Measure reading alone."""
        return rig.script("read_alone.py", self.of_size(size), str(self.seconds))

    def producing(self, size: int) -> Measured:
        """Measure producing alone."""
        with rig.topic(self.bootstrap) as topic:
            return rig.script("produce_alone.py", self.bootstrap, topic, str(size), str(self.seconds))

    def connector(self, url: str, total: int | None = None, **options: Any) -> Measured:
        """Measure the connector."""
        with Connector(self.bootstrap, url, **options) as connector:
            return connector.measure(self.seconds, total=total)

    def interleaved(self, name: str, sides: dict[str, Callable[[], Measured]]) -> dict[str, list[Measured]]:
        """Measure all *sides* in turn, as often as there are rounds: what disturbs one disturbs the others."""
        measured: dict[str, list[Measured]] = {side: [] for side in sides}
        for _ in range(self.rounds):
            for side, measure in sides.items():
                measured[side].append(measure())
        self.record(name, measured)
        return measured

    def record(self, name: str, measured: dict[str, list[Measured]]) -> None:
        """Keep what was measured of each side, for the JSON."""
        self.figures[name] = {
            side: [
                {"per_s": round(one.per_s), "cpu_s_per_million": round(one.cpu_per_million, 2)}
                for one in all_
            ]
            for side, all_ in measured.items()
        }

    def warm(self) -> None:
        """Let the broker's compiler see the work: whoever came first would pay for it.

        It takes as much of a core as the connector itself in the first half minute.
        """
        with Connector(self.bootstrap, self.of_size(BIG)) as connector:
            connector.measure(WARM_S)


def throughput(bench: Bench) -> Iterator[Row]:
    """Exactly once against the floor, at two sizes."""
    measured = bench.interleaved(
        "2.2 kB",
        {
            "floor": lambda: bench.floor(BIG),
            "connector": lambda: bench.connector(bench.of_size(BIG)),
            "reading alone": lambda: bench.reading(BIG),
            "produce() alone": lambda: bench.producing(BIG),
        },
    )
    floor, ours = measured["floor"], measured["connector"]
    alone = [
        read.cpu_per_million + write.cpu_per_million
        for read, write in zip(measured["reading alone"], measured["produce() alone"], strict=True)
    ]
    yield _ratio("2.2 kB: throughput / the floor's", _rates(ours), _rates(floor), 1.0)
    yield _ratio("2.2 kB: CPU / (reading alone + produce() alone)", _costs(ours), alone, 1.4, at_most=True)
    measured = bench.interleaved(
        "90 B",
        {"floor": lambda: bench.floor(SMALL), "connector": lambda: bench.connector(bench.of_size(SMALL))},
    )
    floor, ours = measured["floor"], measured["connector"]
    yield _ratio("90 B: throughput / the floor's", _rates(ours), _rates(floor), 0.8)
    yield _ratio("90 B: CPU / the floor's", _costs(ours), _costs(floor), 1.25, at_most=True)


def parts(bench: Bench) -> Iterator[Row]:
    """What dedupe, headers, metrics and seq cost: each is left out, and all of them."""
    names = ["dedupe,headers,metrics", "dedupe", "headers", "metrics", "seq"]
    url = bench.of_size(BIG)
    sides: dict[str, Callable[[], Measured]] = {"nothing left out": lambda: bench.connector(url)}
    sides |= {name: (lambda name=name: bench.connector(url, without=name)) for name in names}
    measured = bench.interleaved("left out", sides)
    whole = _costs(measured["nothing left out"])
    for name in names:
        saved = [1 - without / all_ for without, all_ in zip(_costs(measured[name]), whole, strict=True)]
        is_all = name == names[0]
        what = "dedupe, headers, metrics, seq together" if is_all else f"{name} alone"
        yield _row(f"share of CPU: {what}", [100 * one for one in saved], 15, "%", at_most=True)


def gzip(bench: Bench) -> Iterator[Row]:
    """A compressed stream against the same one as it is."""
    count = int(30_000 * (bench.seconds + 2))
    with rig.upstream("--gzip", str(count)) as url:
        measured = bench.interleaved(
            "gzip",
            {
                "identity": lambda: bench.connector(f"{url}/?size={BIG}"),
                "gzip": lambda: bench.connector(
                    f"{url}/?size={BIG}&coding=gzip",
                    total=count,
                    manners={"response": {"compression": ["gzip"]}},
                ),
            },
        )
    packed, plain = _rates(measured["gzip"]), _rates(measured["identity"])
    yield _ratio("gzip: throughput / identity's", packed, plain, 0.6)


def compression(bench: Bench) -> Iterator[Row]:
    """What it costs to compress what is written; no row, as it is a choice and no target."""
    url = bench.of_size(BIG)
    sides = {
        name: (lambda name=name: bench.connector(url, client={"compression.type": name}))
        for name in ("none", "lz4", "zstd")
    }
    bench.interleaved("compression", sides)
    yield from ()


def latency(bench: Bench) -> Iterator[Row]:
    """From the upstream's write to a consumer that polls, at a thousand statuses a second."""
    url = f"{bench.url}/?rate={RATE}"
    bare, *modes = "bare transactions", "exactly_once", "at_least_once"
    rounds: dict[str, list[list[float]]] = {bare: [], **{mode: [] for mode in modes}}
    for _ in range(bench.rounds):
        with rig.topic(bench.bootstrap) as topic, _running("bare_transactions.py", bench.bootstrap, topic):
            rounds[bare].append(_latencies_ms(bench, topic))
        for mode in modes:
            with Connector(bench.bootstrap, url, delivery={"mode": mode}) as connector:
                harness.eventually(connector.committed, "something is committed")
                rounds[mode].append(_latencies_ms(bench, connector.statuses))
    bench.figures["latency, ms"] = {name: list(map(_quantiles, each)) for name, each in rounds.items()}
    bench.figures["latency, CDF"] = {
        name: [round(_at(found, place / 200), 2) for place in range(200)]
        for name, found in ((name, sorted(itertools.chain(*each))) for name, each in rounds.items())
    }

    def of(name: str, share: float) -> list[float]:
        return [_at(found, share) for found in rounds[name]]

    once, least = modes
    yield _row("latency, exactly once: median", of(once, 0.5), 12, "ms", at_most=True)
    yield _row("latency, exactly once: 99 of 100", of(once, 0.99), 40, "ms", at_most=True)
    yield _ratio(
        "latency, exactly once: 99 of 100 / bare transactions'",
        of(once, 0.99),
        of(bare, 0.99),
        2.5,
        at_most=True,
    )
    yield _row("latency, at least once: median", of(least, 0.5), 4, "ms", at_most=True)


def memory(bench: Bench) -> Iterator[Row]:
    """Resident memory: idle, at full load, and whether it grows there."""
    with Connector(bench.bootstrap, f"{bench.url}/?heartbeat=5") as connector:
        connector.wait_until_live()
        harness.pace(3)
        idle = rig.resident_kb(connector.pid) / 1e3
    loaded: list[float] = []
    with Connector(bench.bootstrap, bench.of_size(BIG)) as connector:
        harness.eventually(connector.committed, "something is committed")
        ends_at = time.monotonic() + bench.memory_s
        while time.monotonic() < ends_at:
            harness.pace(min(1.0, bench.memory_s / 20))
            loaded.append(rig.resident_kb(connector.pid) / 1e3)
    third = max(1, len(loaded) // 3)
    growth = statistics.median(loaded[-third:]) - statistics.median(loaded[third : 2 * third])
    bench.figures["memory, MB"] = {"idle": idle, "at full load": loaded}
    yield Row("memory, idle with one stream", idle, 90, "MB", at_most=True)
    yield Row("memory at full load, largest", max(loaded), 200, "MB", at_most=True)
    yield Row(
        f"memory at full load, growth in the last of {bench.memory_s:g} s", growth, 10, "MB", at_most=True
    )


def idle_streams(bench: Bench, streams: int = 500) -> Iterator[Row]:
    """What a stream costs that brings nothing but keep-alives."""
    resident: list[int] = []
    shares: list[list[float]] = []
    for count in (1, streams + 1):
        url = f"{bench.url}/?heartbeat={KEEP_ALIVE_S:g}"
        with Connector(bench.bootstrap, url, streams=count) as connector:
            connector.wait_until_live()
            harness.pace(3)
            shares.append([100 * rig.cpu_share(connector.pid, IDLE_S) for _ in range(bench.rounds)])
            resident.append(rig.resident_kb(connector.pid))
    bench.figures["idle streams"] = {
        str(count): {"kB": kb, "core %": each}
        for count, kb, each in zip((1, streams + 1), resident, shares, strict=True)
    }
    more = [(all_ - one) / streams for one, all_ in zip(*shares, strict=True)]
    yield Row("memory per idle stream", (resident[1] - resident[0]) / streams, 100, "kB", at_most=True)
    yield _row("CPU per idle stream", more, 0.01, "% of a core", at_most=True)


def growth(bench: Bench, counts: Iterable[int] = (1, 10, 100, 500)) -> Iterator[Row]:
    """How the cost of a status grows with streams, and that of a byte with sizes."""
    by_count: dict[int, Measured] = {}
    for count in counts:
        with Connector(bench.bootstrap, bench.of_size(BIG), streams=count) as connector:
            connector.wait_until_live()
            by_count[count] = connector.measure(bench.seconds, warm_s=2.0)
    bench.figures["streams"] = _by(by_count)
    first, *more = (one.cpu_per_million for one in by_count.values())
    yield Row(f"CPU per status: {max(by_count)} streams / 1", max(more) / first, 1.25, at_most=True)
    sizes = (100, 1000, 10_000, 100_000)
    by_size = {size: bench.connector(bench.of_size(size)) for size in sizes}
    bench.figures["sizes"] = _by(by_size)
    per_byte = [by_size[size].cpu_per_million / size for size in sizes]
    yield Row("CPU per byte: 10 kB / 1 kB", per_byte[2] / per_byte[1], 1.0, at_most=True)
    yield Row("CPU per byte: 100 kB / 10 kB", per_byte[3] / per_byte[2], 1.25, at_most=True)


def start(bench: Bench) -> Iterator[Row]:
    """From the lease to the first status, and how soon the command line answers."""
    took: list[float] = []
    for _ in range(bench.rounds):
        with Connector(bench.bootstrap, f"{bench.url}/?rate={RATE}") as connector:
            consumer = _consumer(bench.bootstrap)
            with _closing(consumer):
                _assign(consumer, connector.statuses)
                first = harness.eventually(lambda: consumer.poll(0.05), "a status")
                assert first.error() is None
                seen_at = time.time()
            took.append(seen_at - min(_logged_at(line) for line in connector.logged("lease.assigned")))
    helps: list[float] = []
    for _ in range(max(3, bench.rounds)):
        began_at = time.monotonic()
        subprocess.run([sys.executable, "-m", "connector", "--help"], check=True, stdout=subprocess.DEVNULL)
        helps.append(time.monotonic() - began_at)
    bench.figures["start, s"] = {"first status after the lease": took, "--help": helps}
    yield _row("from the lease to the first status", took, 2.0, "s", at_most=True)
    yield _row("connector --help", helps, 0.3, "s", at_most=True)


def instructions(bench: Bench) -> Iterator[Row]:
    """How many instructions of Python's a status costs on its way: the same in each run."""
    for what, found, bound in guard.counted():
        bench.figures.setdefault("Python instructions per status", {})[what] = found
        yield Row(f"Python instructions per status, {what}", found, bound, "", at_most=True)


ALL: dict[str, Callable[[Bench], Iterator[Row]]] = {
    one.__name__: one
    for one in (
        instructions,
        throughput,
        parts,
        gzip,
        compression,
        latency,
        memory,
        idle_streams,
        growth,
        start,
    )
}


def _ratio(what: str, ours: list[float], theirs: list[float], target: float, *, at_most: bool = False) -> Row:
    return _row(
        what, [one / other for one, other in zip(ours, theirs, strict=True)], target, "×", at_most=at_most
    )


def _row(what: str, values: list[float], target: float, unit: str, *, at_most: bool) -> Row:
    return Row(what, statistics.median(values), target, unit, at_most, (min(values), max(values)))


def _rates(measured: list[Measured]) -> list[float]:
    return [one.per_s for one in measured]


def _costs(measured: list[Measured]) -> list[float]:
    return [one.cpu_per_million for one in measured]


def _by(measured: dict[int, Measured]) -> dict[str, dict[str, float]]:
    return {
        str(count): {"per_s": round(one.per_s), "cpu_s_per_million": round(one.cpu_per_million, 2)}
        for count, one in measured.items()
    }


def _logged_at(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["timestamp"]).timestamp()


@contextmanager
def _running(name: str, *arguments: str) -> Iterator[None]:
    with subprocess.Popen([sys.executable, str(rig.HERE / name), *arguments]) as process:
        try:
            yield
        finally:
            process.kill()


@contextmanager
def _closing(consumer: Consumer) -> Iterator[None]:
    try:
        yield
    finally:
        consumer.close()


def _consumer(bootstrap: str) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "bench",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "log_level": 0,
        }
    )


def _assign(consumer: Consumer, topic: str) -> None:
    """Read the topic on from where it ends now."""
    partitions = [
        TopicPartition(topic, number) for number in consumer.list_topics(topic).topics[topic].partitions
    ]
    for one in partitions:
        harness.eventually(lambda: _is_led(consumer, one), "the topic's partitions have leaders")
        one.offset = consumer.get_watermark_offsets(one)[1]
    consumer.assign(partitions)


def _is_led(consumer: Consumer, partition: TopicPartition) -> bool:
    try:
        consumer.get_watermark_offsets(partition)
    except KafkaException:  # the topic is new
        return False
    return True


def _latencies_ms(bench: Bench, topic: str) -> list[float]:
    """Return how old statuses are when a consumer that polls sees them, sorted."""
    found: list[float] = []
    consumer = _consumer(bench.bootstrap)
    with _closing(consumer):
        _assign(consumer, topic)
        counts_from = time.monotonic() + SETTLE_S
        ends_at = counts_from + 2 * bench.seconds
        while (now := time.monotonic()) < ends_at:
            message = consumer.poll(0.1)
            if message is None or message.error() is not None or now < counts_from:
                continue
            value = message.value()
            at = value.index(SENT_AT) + len(SENT_AT)
            found.append((time.monotonic_ns() - int(value[at : at + 20])) / 1e6)
    assert found, "nothing came"
    return sorted(found)


def _at(found: list[float], share: float) -> float:
    return found[int(len(found) * share)]


def _quantiles(found: list[float]) -> dict[str, float]:
    return {f"p{share:g}": round(_at(found, share / 100), 2) for share in (50, 90, 99, 99.9)}
