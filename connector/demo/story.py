"""The demo: predicates change twice under a flow of statuses, and the ledger says what became of each.

The upstream's ledger is the judge. It names every status that had to arrive; what the output topic holds
is compared with it, byte for byte.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Self

import httpx
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition

from connector.demo import processes
from connector.demo.processes import EXIT_TOOLS_MISSING, Processes, Unstarted
from connector.settings import TopicSettings

STREAM = "tech"
TOPICS = TopicSettings().names()

CONFIG = """\
replica: demo
kafka:
  bootstrap_servers: {bootstrap}
  session_timeout_s: 6
  control_partitions: 4  # what librdkafka's embedded brokers give a topic
ops: {{port: 0}}
streams:
  {stream}:
    url: {url}/1.1/statuses/filter.json
    dialect: twitter-v1
    auth: {{kind: bearer, token: demo-token}}
    debounce: {{min_s: 1, max_s: 3}}
"""

PUBLISHED = (
    (STREAM, {"track": ["kafka"]}),
    (STREAM, {"track": ["kafka", "python"]}),
    (f"{STREAM}/analytics", {"track": ["rust"], "follow": ["783214"]}),
)
"""What is published, and under which key: two publishers, whose sets are united."""

CHANGES = len(PUBLISHED) - 1
_PAUSE_S = 8.0
_SETTLE_S = 20.0


@dataclass(slots=True)
class Delivered:
    """What the output and events topics held so far."""

    statuses: list[tuple[bytes, bytes, int]] = field(default_factory=list)  # key, value, seq
    applied: list[dict[str, object]] = field(default_factory=list)

    def take(self, message: Message) -> str | None:
        """Take one record in and return the line to show for it."""
        value = message.value() or b""
        if message.topic() == TOPICS.events:
            return self._event(json.loads(value))
        headers = dict(message.headers() or [])
        seq = int(headers["seq"] or b"0")
        self.statuses.append((message.key() or b"", value, seq))
        text = " ".join(json.loads(value)["text"].split())[:60]
        return f"  {(message.key() or b'').decode()}  seq {seq:<6} {text}"

    def _event(self, event: dict[str, object]) -> str | None:
        data = event["data"]
        assert isinstance(data, dict)
        match event["type"]:
            case "predicates.accepted":
                return f"▸ accepted  {data['key']} at offset {data['offset']}, due in {data['due_in_s']} s"
            case "predicates.applied":
                self.applied.append(data)
                return (
                    f"▸ applied   {data['key']} at offset {data['offset']}, "
                    f"time without a live connection = {data['without_connection_s']:g} s"
                )
            case _:
                return None


def tell(seconds: float | None) -> int:
    """Run the demo and return its exit code: 0 if nothing was lost or doubled.

    Args:
        seconds: how long statuses flow; None until Ctrl-C.
    """
    stop = threading.Event()

    def on_signal(_signum: int, _frame: FrameType | None) -> None:
        stop.set()

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, on_signal)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="connector-demo-")))
        started = stack.enter_context(Processes(folder))
        try:
            return _tell(started, folder, stack, seconds, stop)
        except (Unstarted, KafkaException, httpx.HTTPError, TimeoutError) as error:
            print(f"The demo cannot go on: {error}", file=sys.stderr)
            for name in ("kafka", "upstream", "connector"):
                if (folder / f"{name}.log").exists():
                    print(f"--- {name}\n{started.log_of(name)[-2000:]}", file=sys.stderr)
            return 1


def _tell(
    started: Processes, folder: Path, stack: ExitStack, seconds: float | None, stop: threading.Event
) -> int:
    bootstrap, is_real = _kafka(started, stack)
    url = started.start_upstream("--rate", "40", "--seed", "7")
    print(f"Sample upstream at {url}")
    config = folder / "connector.yaml"
    config.write_text(CONFIG.format(bootstrap=bootstrap, url=url, stream=STREAM))
    if is_real:
        processes.create_topics(config)
    else:
        _touch_topics(bootstrap)
    connector = started.start_connector(config)
    print("Connector started; statuses follow as they arrive on the output topic\n")

    delivered = Delivered()
    consumer = stack.enter_context(_Reading(bootstrap))
    began_at = time.monotonic()
    pause_s = _PAUSE_S if seconds is None else seconds / len(PUBLISHED)
    published = 0

    def show_until(enough: Callable[[], bool], within_s: float | None) -> None:
        give_up_at = None if within_s is None else time.monotonic() + within_s
        while not enough():
            if give_up_at is not None and time.monotonic() > give_up_at:
                return
            if connector.poll() is not None:
                raise Unstarted("connector", connector.returncode)
            for line in map(delivered.take, consumer.read()):
                if line:
                    print(line, flush=True)

    def is_next_due() -> bool:
        is_time = time.monotonic() >= began_at + published * pause_s
        return is_time and len(delivered.applied) >= published

    for key, value in PUBLISHED:
        if stop.is_set():
            break
        _publish(bootstrap, key, value)
        print(f"\n▸ published {key} = {json.dumps(value)}", flush=True)
        published += 1
        show_until(lambda: stop.is_set() or is_next_due(), _SETTLE_S + pause_s)
    if seconds is None:
        show_until(stop.is_set, None)

    # No more statuses; what was sent so far must all arrive.
    httpx.post(f"{url}/freeze").raise_for_status()
    owed = _bodies(f"{url}/owed")

    def is_settled() -> bool:
        is_answered = len(delivered.applied) >= published
        return is_answered and owed.keys() <= {key for key, _, _ in delivered.statuses}

    show_until(is_settled, _SETTLE_S)
    code = processes.end(connector)
    for message in consumer.rest():
        delivered.take(message)
    return _summary(owed, _bodies(f"{url}/sent"), delivered, code, published)


def _kafka(started: Processes, stack: ExitStack) -> tuple[str, bool]:
    """Return a cluster's address, and whether it is a real one."""
    print("Starting Apache Kafka (the first time it is downloaded) ...", flush=True)
    try:
        bootstrap = started.start_kafka()
    except Unstarted as unstarted:
        if unstarted.code != EXIT_TOOLS_MISSING:
            raise
        print(started.log_of("kafka").strip(), file=sys.stderr)
        print("Going on with the brokers embedded in librdkafka, which know no isolation levels.")
        return stack.enter_context(processes.embedded_kafka()), False
    print(f"Apache Kafka at {bootstrap}")
    return bootstrap, True


def _touch_topics(bootstrap: str) -> None:
    """Make embedded brokers create the topics: they do when somebody asks for one by name."""
    producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0})
    for topic in (TOPICS.predicates, TOPICS.statuses, TOPICS.positions, TOPICS.events, TOPICS.dlq):
        producer.list_topics(topic, timeout=10)


def _publish(bootstrap: str, key: str, value: object) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0})
    producer.produce(TOPICS.predicates, json.dumps(value), key)
    if producer.flush(10):
        raise TimeoutError("Kafka did not take the predicates")


def _bodies(url: str) -> dict[bytes, bytes]:
    """Return the upstream's ledger as bodies by id."""
    lines = httpx.get(url, timeout=30).raise_for_status().text.split("\n")
    parsed = [json.loads(line) for line in lines if line]
    return {one["id"].encode(): one["body"].encode() for one in parsed}


class _Reading:
    """Reads the output and events topics as a user would: from the beginning, committed only."""

    def __init__(self, bootstrap: str) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "demo-reader",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "log_level": 0,
            }
        )

    def __enter__(self) -> Self:
        topics = self._consumer.list_topics(timeout=10).topics
        self._consumer.assign(
            [
                TopicPartition(topic, partition, 0)
                for topic in (TOPICS.statuses, TOPICS.events)
                for partition in topics[topic].partitions
            ]
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def read(self) -> list[Message]:
        """Return what arrives within a moment."""
        return [message for message in self._consumer.consume(100, 0.1) if message.error() is None]

    def rest(self) -> list[Message]:
        """Return all that is left."""
        left: list[Message] = []
        while more := [m for m in self._consumer.consume(1000, 1.0) if m.error() is None]:
            left += more
        return left


def _summary(
    owed: dict[bytes, bytes], sent: dict[bytes, bytes], delivered: Delivered, code: int, published: int
) -> int:
    keys = Counter(key for key, _, _ in delivered.statuses)
    bodies = {key: value for key, value, _ in delivered.statuses}
    lost = sum(bodies.get(key) != body for key, body in owed.items())
    invented = sum(sent.get(key) != body for key, body in bodies.items())
    duplicates = sum(keys.values()) - len(keys)
    seqs = sorted(seq for _, _, seq in delivered.statuses)
    is_contiguous = seqs == list(range(1, len(seqs) + 1))
    dark_s = sum(float(str(one["without_connection_s"])) for one in delivered.applied)
    late = len(bodies.keys() - owed.keys())
    beside = f", and {late} more over old connections while they were drained" if late else ""
    print("\nSummary")
    print(f"  predicate changes applied        {max(0, len(delivered.applied) - 1)} of {CHANGES}")
    print(f"  time without a live connection   {dark_s:g} s")
    print(f"  sent by the upstream             {len(owed)}")
    print(f"  delivered                        {len(bodies) - late}{beside}")
    print(f"  lost                             {lost}")
    print(f"  duplicates                       {duplicates}")
    print(f"  seq contiguous from 1            {'yes' if is_contiguous else 'NO'}")
    print(f"  connector's exit code            {code}")
    is_answered = len(delivered.applied) >= published
    return 0 if is_answered and is_contiguous and not (lost or duplicates or invented or code) else 1
