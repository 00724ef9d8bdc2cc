"""What the scenarios stand on: a real broker, processes, and what the kernel says of them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import harness
import yaml
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from kafka import Broker

HERE = Path(__file__).parent
_TICKS = os.sysconf("SC_CLK_TCK")
_POLL_S = 0.25
_PATIENCE_S = 120.0

# At full load ten minutes are a hundred gigabytes.
_BROKER = """
log.segment.bytes=268435456
log.retention.bytes=1073741824
log.retention.check.interval.ms=5000
log.segment.delete.delay.ms=1000
log.flush.interval.messages=9223372036854775807
"""

# As Kafka's documentation recommends ("Java Version"). A heap of 1 GB stopped all for 40 ms at a time, every 7 s.
_JAVA = (
    "-Xms6g",
    "-Xmx6g",
    "-XX:MetaspaceSize=96m",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:G1HeapRegionSize=16M",
    "-XX:MinMetaspaceFreeRatio=50",
    "-XX:MaxMetaspaceFreeRatio=80",
    "-XX:+ExplicitGCInvokesConcurrent",
)

MANNERS = {
    "framing": {"kind": "lines", "delimiter": "\r\n"},
    "messages": {"id": "/id_str"},
    "resume": {"parameter": "after", "cursor": "/id_str"},
}
"""The upstream's: it resumes by cursor, so the whole promise is kept, and all of it costs."""


@dataclass(frozen=True, slots=True)
class Measured:
    """So many statuses in so much time, at so much CPU time of one process."""

    statuses: int
    seconds: float
    cpu_s: float

    @property
    def per_s(self) -> float:
        """Statuses each second."""
        return self.statuses / self.seconds

    @property
    def cpu_per_million(self) -> float:
        """CPU-seconds for a million statuses."""
        return self.cpu_s / self.statuses * 1e6


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process with all its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def cpu_share(pid: int, seconds: float) -> float:
    """Return how much of a core a process takes in the next *seconds*."""
    before, began_at = cpu_s(pid), time.monotonic()
    harness.pace(seconds)
    return (cpu_s(pid) - before) / (time.monotonic() - began_at)


def resident_kb(pid: int) -> int:
    """Return the memory that a process holds."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@contextlib.contextmanager
def broker() -> Iterator[str]:
    """Run a broker of the bench's own and yield its address."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        running = Broker(Path(folder), more=_BROKER, java=_JAVA)
        try:
            yield running.bootstrap
        finally:
            running.stop()


@contextlib.contextmanager
def upstream(*options: str) -> Iterator[str]:
    """Run the upstream and yield its URL."""
    with subprocess.Popen(
        [sys.executable, str(HERE / "upstream.py"), *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.kill()


@contextlib.contextmanager
def topic(bootstrap: str, partitions: int = 6) -> Iterator[str]:
    """Yield a fresh topic's name; it is deleted in the end, as a run fills the disk quickly."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    name = f"bench-{time.monotonic_ns()}"
    for made in admin.create_topics([NewTopic(name, partitions, 1)]).values():
        made.result(_PATIENCE_S)
    try:
        yield name
    finally:
        for gone in admin.delete_topics([name]).values():
            gone.result(_PATIENCE_S)


def script(name: str, *arguments: str) -> Measured:
    """Run one of the scripts beside this file and return what it measured."""
    done = subprocess.run(
        [sys.executable, str(HERE / name), *arguments],
        stdout=subprocess.PIPE,
        check=True,
        timeout=_PATIENCE_S,
    )
    return Measured(**json.loads(done.stdout))


def total(exposition: str, name: str) -> int:
    """Return a metric of all streams together."""
    lines = (line for line in exposition.splitlines() if line.startswith(f"connector_{name}{{"))
    return int(sum(float(line.split()[-1]) for line in lines))


class Connector:
    """The connector as a whole process, with topics of its own, reading the streams of one URL."""

    def __init__(
        self,
        bootstrap: str,
        url: str,
        *,
        streams: int = 1,
        manners: dict[str, Any] | None = None,
        without: str = "",
        client: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self._stack = contextlib.ExitStack()
        self._kafka = harness.Kafka(bootstrap)
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        one = {
            "url": url,
            "dialect": "ndjson",
            "override": {"budget": None, **MANNERS, **(manners or {})},
            "debounce": {"min_s": 0.3, "max_s": 0.5},
        }
        names = [harness.STREAM] if streams == 1 else [f"stream-{number}" for number in range(streams)]
        self._connector = harness.Connector(folder, self._kafka, dict.fromkeys(names, one), **settings)
        if client is not None:
            content = yaml.safe_load(self._connector.config.read_text())
            content["kafka"]["client"] = client
            self._connector.config.write_text(yaml.safe_dump(content))
        self._names = names
        self._program = (str(HERE / "stripped.py"), without) if without else ()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._connector)
        self._stack.callback(self._delete_topics)
        self._connector.create_topics()
        producer = Producer({"bootstrap.servers": self._kafka.bootstrap, "partitioner": "murmur2_random"})
        for name in self._names:
            producer.produce(self._kafka.topics.of("predicates"), b'{"track":["bench"]}', name)
        assert producer.flush(_PATIENCE_S) == 0
        self._connector.start(*self._program)
        return self

    def __exit__(self, *_: object) -> None:
        self._connector.stop(9)
        self._stack.close()

    def _delete_topics(self) -> None:
        admin = AdminClient({"bootstrap.servers": self._kafka.bootstrap, "log_level": 0})
        for gone in admin.delete_topics(list(self._kafka.topics.as_dict().values())).values():
            gone.result(_PATIENCE_S)

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._connector.process is not None
        return self._connector.process.pid

    @property
    def statuses(self) -> str:
        """The topic that it writes to."""
        return self._kafka.topics.of("statuses")

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return what it logged."""
        return self._connector.logged(event)

    def wait_until_live(self) -> None:
        """Return when all its streams' connections are live."""
        harness.eventually(lambda: self._total("stream_live") == len(self._names), "all live", _PATIENCE_S)

    def committed(self) -> int:
        """Return how many statuses are on the topic."""
        return self._total("statuses_committed_total")

    def _total(self, name: str) -> int:
        return total(self._connector.ops("/metrics")[1], name)

    def measure(self, seconds: float, warm_s: float = 1.0, total: int | None = None) -> Measured:
        """Return what it does in *seconds* once it is warm, or until it has committed *total*."""
        harness.eventually(self.committed, "something is committed", _PATIENCE_S)
        harness.pace(warm_s)
        before, cpu_before, began_at = self.committed(), cpu_s(self.pid), time.monotonic()
        while True:
            harness.pace(_POLL_S)
            now, cpu_now, count = time.monotonic(), cpu_s(self.pid), self.committed()
            if now - began_at >= seconds or count == total:
                return Measured(count - before, now - began_at, cpu_now - cpu_before)
