"""What happens to the cast: three lanes side by side, each drawn from the seed."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient
from harness import pace

from chaos.cast import SESSION_TIMEOUT_S, Cluster, Replica, Stream, Upstreams
from chaos.checker import Fault, Span
from chaos.links import Links

QUIET_EVERY = 3
"""After so many faults comes a time without any."""

BAD_VALUES = (b"rubbish", b"[]", b'{"track": "kafka"}', b'{"nonsense": ["kafka"]}', b'{"track": [""]}')


@dataclass(slots=True, kw_only=True)
class Stage:
    """Who can be hurt, and what was done to them.

    Attributes:
        usual: the replicas that run outside of storms.
        spare: those that come and go in storms.
        deaths: when a replica was killed, and which control partitions were its own then.
        trouble: what ended a lane before its time.
    """

    cluster: Cluster
    links: Links
    usual: list[Replica]
    spare: list[Replica]
    upstreams: list[Upstreams]
    group: str
    control: str
    stop: threading.Event = field(default_factory=threading.Event)
    faults: list[Fault] = field(default_factory=list)
    deaths: list[tuple[float, str, set[int]]] = field(default_factory=list)
    unasked: list[tuple[str, int]] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)

    @property
    def replicas(self) -> list[Replica]:
        """All of them."""
        return [*self.usual, *self.spare]

    @property
    def kinds(self) -> dict[str, int]:
        """How many faults of each kind there were."""
        return dict(sorted(Counter(one.kind for one in self.faults).items()))

    @contextmanager
    def fault(self, kind: str, streams: frozenset[str] = frozenset()) -> Iterator[None]:
        """Note a fault while it lasts."""
        begin = time.time()
        print(json.dumps({"at": round(begin, 1), "fault": kind, "streams": sorted(streams)}), flush=True)
        try:
            yield
        finally:
            self.faults.append(Fault(kind, Span(begin, time.time()), streams))

    def owners(self) -> dict[str, set[int]]:
        """Return which control partitions are whose, by replica, as the group has it."""
        admin = AdminClient({"bootstrap.servers": self.cluster.bootstrap, "log_level": 0})
        asked = admin.describe_consumer_groups([self.group], request_timeout=10)[self.group]
        try:
            group = asked.result(15)
        except KafkaException:  # it has no coordinator just now
            return {}
        owned: dict[str, set[int]] = {}
        for member in group.members:
            parts = {one.partition for one in member.assignment.topic_partitions}
            owned.setdefault(member.client_id.removeprefix("connector-"), set()).update(parts)
        return owned

    def restart_ended(self) -> None:
        """Start again who ended by itself, as whatever runs it would."""
        for one in self.usual:
            if (code := one.ended()) is not None:
                self.unasked.append((one.name, code))
            if one.process is None and not self.stop.is_set():
                one.start()


def lane(stage: Stage, play: Callable[[], None]) -> threading.Thread:
    """Run a lane; what it dies of is noted."""

    def run() -> None:
        try:
            play()
        except Exception as error:  # noqa: BLE001 (a thread's only way to be heard)
            stage.trouble.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@dataclass(slots=True)
class Violence:
    """What happens to replicas, to their network and to the broker: one thing at a time, each in turn."""

    stage: Stage
    rng: Random
    end_at: float

    def play(self) -> None:
        """Go on until the time is over."""
        kinds = {
            "replica killed": self._kill,
            "replica frozen": self._freeze,
            "poll thread stuck": lambda: self._hang("lease"),
            "event loop stuck": lambda: self._hang("loop"),
            "broker killed": self._kill_broker,
            "network cut": self._cut,
            "network slow": self._slow,
            "rebalance storm": self._storm,
        }
        bag: list[str] = []
        count = 0
        while time.monotonic() < self.end_at:
            if not bag:
                bag = self.rng.sample(sorted(kinds), len(kinds))
            kinds[bag.pop()]()
            count += 1
            self.stage.restart_ended()
            is_long = count % QUIET_EVERY == 0
            pace(self.rng.uniform(8, 14) if is_long else self.rng.uniform(1, 5))

    def _one(self) -> Replica:
        self.stage.restart_ended()
        return self.rng.choice(self.stage.usual)

    def _kill(self) -> None:
        one, wait_s = self._one(), self.rng.uniform(0.5, 9)
        owned = self.stage.owners().get(one.name, set())
        with self.stage.fault("replica killed"):
            one.kill()
            self.stage.deaths.append((time.time(), one.name, owned))
            pace(wait_s)
            one.start()
            pace(1)

    def _freeze(self) -> None:
        one, wait_s = self._one(), SESSION_TIMEOUT_S + self.rng.uniform(1, 7)
        with self.stage.fault("replica frozen"):
            one.signal(signal.SIGSTOP)
            pace(wait_s)
            one.signal(signal.SIGCONT)

    def _hang(self, thread: str) -> None:
        one, wait_s = self._one(), SESSION_TIMEOUT_S * self.rng.uniform(1.2, 3.5)
        with self.stage.fault("poll thread stuck" if thread == "lease" else "event loop stuck"):
            one.hang(thread, wait_s)
            pace(wait_s)

    def _kill_broker(self) -> None:
        wait_s = self.rng.choice([self.rng.uniform(0, 2), self.rng.uniform(4, 9)])
        with self.stage.fault("broker killed"):
            self.stage.cluster.kill()
            pace(wait_s)
            self.stage.cluster.start()
            pace(2)

    def _cut(self) -> None:
        one, wait_s = self._one(), self.rng.choice([self.rng.uniform(1, 4), self.rng.uniform(8, 14)])
        with self.stage.fault("network cut"):
            self.stage.links.cut(one.link)
            pace(wait_s)
            self.stage.links.mend(one.link)

    def _slow(self) -> None:
        one, wait_s, delay_s = self._one(), self.rng.uniform(4, 10), self.rng.choice([0.05, 0.2, 0.6])
        with self.stage.fault("network slow"):
            one.link.delay_s = delay_s
            pace(wait_s)
            self.stage.links.mend(one.link)

    def _storm(self) -> None:
        with self.stage.fault("rebalance storm"):
            for _ in range(self.rng.randrange(2, 4)):
                one, wait_s = self.rng.choice(self.stage.replicas), self.rng.uniform(1, 4)
                one.ended()
                if one.process is None:
                    one.start()
                else:
                    one.stop()
                pace(wait_s)
            for one in self.stage.spare:
                if one.runs:
                    one.stop()
            self.stage.restart_ended()


@dataclass(slots=True)
class Trouble:
    """What happens to the upstreams."""

    stage: Stage
    rng: Random
    end_at: float

    def play(self) -> None:
        """Go on until the time is over."""
        while time.monotonic() < self.end_at:
            pace(self.rng.uniform(3, 9))
            host = self.rng.choice(self.stage.upstreams)
            match self.rng.choice(["upstream refuses", "upstream resets", "upstream stalls"]):
                case "upstream stalls" as kind:
                    wait_s = self.rng.uniform(1, 10)
                    with self.stage.fault(kind, frozenset(one.name for one in host.streams)):
                        host.pause()
                        pace(wait_s)
                        host.go_on()
                case kind:
                    some = self.rng.sample(host.streams, min(len(host.streams), self.rng.randrange(1, 4)))
                    wait_s = self.rng.uniform(1, 6)
                    with self.stage.fault(kind, frozenset(one.name for one in some)):
                        for one in some:
                            if kind == "upstream refuses":
                                host.ask(f"/{one.name}/refuse?for_s={wait_s}", post=True)
                            host.ask(f"/{one.name}/reset", post=True)
                        pace(wait_s if kind == "upstream refuses" else 0.5)


@dataclass(slots=True)
class Publishers:
    """Whoever wants something else than before, all the time; and those who make mistakes.

    Each key has one publisher, and one partition that its hash chooses: with the connector's own, or not.
    """

    stage: Stage
    streams: list[Stream]
    rng: Random
    end_at: float
    producers: dict[str, Producer] = field(default_factory=dict)

    def play(self) -> None:
        """Go on until the time is over."""
        while time.monotonic() < self.end_at:
            pace(self.rng.uniform(0.2, 1.2))
            stream = self.rng.choice(self.streams)
            name = self.rng.choice(["a", "b"])
            key = f"{stream.name}/{name}"
            match self.rng.randrange(10):
                case 0:
                    key = self.rng.choice([key, stream.name, "nobody/a"])
                    self.publish(key, self.rng.choice(BAD_VALUES))
                case 1 | 2:
                    self.publish(key, None)
                case _:
                    words = self.rng.sample(stream.others, self.rng.randrange(1, 3))
                    self.publish(key, json.dumps({"track": words}).encode())
        self.flush()

    def publish(self, key: str, value: bytes | None) -> None:
        """Publish a record; it is there when `flush` returns."""
        partitioner = "consistent_random" if key.endswith("/b") else "murmur2_random"
        if partitioner not in self.producers:
            config: dict[str, Any] = {
                "bootstrap.servers": self.stage.cluster.bootstrap,
                "partitioner": partitioner,
                "enable.idempotence": True,
                "reconnect.backoff.max.ms": 500,
                "log_level": 0,
            }
            self.producers[partitioner] = Producer(config)
        self.producers[partitioner].produce(self.stage.control, value, key)
        self.producers[partitioner].poll(0)

    def flush(self) -> None:
        """Wait until all is published."""
        for producer in self.producers.values():
            assert producer.flush(60) == 0
