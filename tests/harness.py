"""What integration tests start and how they judge it: real processes, real sockets, a real broker.

Nothing here is the connector's own code: a reader of the output topic that shared a fault with the
writer could not see it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import yaml
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from connector.auth import Auth
from connector.stream.credentials import Outgoing

ROOT = Path(__file__).parent.parent
STREAM = "tech"
PARTITIONS = 6

PATIENCE_S = 60.0
"""How long anything may take before a test gives up: far longer than it ever does."""

_SHOWN_LINES = 80

_PACE = threading.Event()  # never set: waiting on it paces a poll of something that cannot call back


def pace(seconds: float) -> None:
    """Wait, for something that has a pace of its own; nothing that is judged may hang on it."""
    _PACE.wait(seconds)


def eventually(attempt: Callable[[], Any], what: str, within_s: float = PATIENCE_S) -> Any:
    """Repeat *attempt* until it returns something true, and return that."""
    give_up_at = time.monotonic() + within_s
    while time.monotonic() < give_up_at:
        if result := attempt():
            return result
        _PACE.wait(0.05)
    raise AssertionError(f"not within {within_s:g} s: {what}")


class Delivered(NamedTuple):
    """A record of the output topic."""

    key: str
    value: bytes
    seq: int
    version: str
    partition: int


@dataclass(slots=True, kw_only=True)
class Topics:
    """One test's topics: a broker serves many tests."""

    prefix: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    def of(self, purpose: str) -> str:
        """Return the topic's name."""
        return f"{self.prefix}-{purpose}"

    def as_dict(self) -> dict[str, str]:
        """Return them as the configuration has them."""
        purposes = ("predicates", "statuses", "positions", "events", "dlq")
        return {purpose: self.of(purpose) for purpose in purposes}


class Kafka:
    """A broker as its other users see it: publishers and readers that are not the connector."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self.topics = Topics()

    def create_topics(self, partitions: int) -> None:
        """Create all of them, for a test that does not leave it to the connector."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        wanted = [NewTopic(name, partitions, 1) for name in self.topics.as_dict().values()]
        for created in admin.create_topics(wanted).values():
            created.result(PATIENCE_S)

    def publish(
        self, key: str | bytes | None, value: object, partitioner: str = "murmur2_random", partition: int = -1
    ) -> tuple[int, int]:
        """Publish a predicate change, and return its place; bytes go out as they are, None removes."""
        producer = Producer({"bootstrap.servers": self.bootstrap, "partitioner": partitioner, "log_level": 0})
        encoded = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
        delivered: list[tuple[object, Message]] = []
        producer.produce(
            self.topics.of("predicates"),
            encoded,
            key,
            partition,
            on_delivery=lambda error, message: delivered.append((error, message)),
        )
        assert producer.flush(PATIENCE_S) == 0
        ((error, message),) = delivered
        assert error is None
        return message.partition(), message.offset()

    def records(self, purpose: str, isolation: str = "read_committed") -> list[Message]:
        """Return everything on a topic, up to its end at the time of the call.

        Args:
            purpose: which topic.
            isolation: ``read_uncommitted`` tells what open and aborted transactions wrote, too.
        """
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": f"reader-{uuid.uuid4()}",
                "isolation.level": isolation,
                "enable.partition.eof": True,
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 10,  # the end is there, or it is not: nothing to wait for
                "log_level": 0,
            }
        )
        topic = self.topics.of(purpose)
        try:
            partitions = list(consumer.list_topics(topic, timeout=PATIENCE_S).topics[topic].partitions)
            consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
            found: list[Message] = []
            at_end: set[int] = set()
            give_up_at = time.monotonic() + PATIENCE_S
            while len(at_end) < len(partitions):
                assert time.monotonic() < give_up_at, f"{topic} does not come to an end"
                for message in consumer.consume(10_000, 0.05):
                    if message.error() is None:
                        found.append(message)
                    else:
                        at_end.add(message.partition())
            return found
        finally:
            consumer.close()

    def holds_up_readers(self, purpose: str) -> bool:
        """Whether an open transaction keeps readers of committed records from the end of a topic."""
        topic = self.topics.of(purpose)
        ends: list[list[int]] = []
        for isolation in ("read_committed", "read_uncommitted"):
            consumer = Consumer(
                {
                    "bootstrap.servers": self.bootstrap,
                    "group.id": "unused",
                    "isolation.level": isolation,
                    "log_level": 0,
                }
            )
            try:
                partitions = consumer.list_topics(topic, timeout=PATIENCE_S).topics[topic].partitions
                places = [TopicPartition(topic, partition) for partition in partitions]
                ends.append([consumer.get_watermark_offsets(one, PATIENCE_S)[1] for one in places])
            finally:
                consumer.close()
        committed, written = ends
        return committed != written

    def delivered(self, stream: str | None = None) -> list[Delivered]:
        """Return the output topic, read_committed: one stream's part; or all, which is `STREAM`'s then."""
        found = [
            (dict(message.headers())["stream"].decode(), message) for message in self.records("statuses")
        ]
        assert stream is not None or {name for name, _ in found} <= {STREAM}
        return [_delivered(message) for name, message in found if name == (stream or STREAM)]

    def position(self) -> dict[str, Any]:
        """Return the stream's newest position; empty before the first."""
        written = [one for one in self.records("positions") if one.key() == STREAM.encode()]
        assert len({one.partition() for one in written}) <= 1, "a stream has one home"
        newest: dict[str, Any] = json.loads(written[-1].value()) if written else {}
        return newest

    def bury(self, group: str) -> None:
        """Take members out of a group that died in it, as the broker does once their sessions are over."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        (asked,) = admin.describe_consumer_groups([group]).values()
        found = asked.result(PATIENCE_S)
        with socket.create_connection((found.coordinator.host, found.coordinator.port), PATIENCE_S) as link:
            for member in found.members:
                names = (one.encode() for one in (group, member.member_id))
                words = b"".join(struct.pack(">h", len(name)) + name for name in names)
                # LeaveGroup, version 1; no client in the library asks for it in another's name.
                request = struct.pack(">hhih", 13, 1, 0, -1) + words
                link.sendall(struct.pack(">i", len(request)) + request)
                answer = link.recv(14, socket.MSG_WAITALL)
                assert struct.unpack(">iiih", answer) == (10, 0, 0, 0)

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """Return the data of events whose type begins with *kind*, each with its type."""
        events = [json.loads(message.value()) for message in self.records("events")]
        assert all(event["specversion"] == "1.0" for event in events)
        return [{"type": one["type"], **one["data"]} for one in events if one["type"].startswith(kind)]

    def answers(self) -> dict[tuple[str, int], list[str]]:
        """Return what publishers were told: answers by control key and offset, in order."""
        told: dict[tuple[str, int], list[str]] = {}
        for event in self.events("predicates."):
            if event["type"] == "predicates.rerouted":
                continue  # the record at its new place is answered
            told.setdefault((event["key"], event["offset"]), []).append(event["type"].partition(".")[2])
        return told


class Upstream:
    """The sample upstream, in a process of its own."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "upstream", "--exit-with-stdin", *options],
            env={**os.environ, "PYTHONPATH": str(ROOT / "examples")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.url = json.loads(self.process.stdout.readline())["url"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _end(self.process)

    def freeze(self) -> int:
        """Publish no further statuses; return the number of the last."""
        request = urllib.request.Request(f"{self.url}/freeze", method="POST")
        published: int = json.loads(urllib.request.urlopen(request, timeout=10).read())["published"]
        return published

    def thaw(self) -> None:
        """Publish on from where it stopped."""
        request = urllib.request.Request(f"{self.url}/thaw", method="POST")
        urllib.request.urlopen(request, timeout=10).read()

    def owed(self, connection: int | None = None) -> dict[str, bytes]:
        """Return what had to arrive, by id."""
        query = "" if connection is None else f"?connection={connection}"
        return self._bodies(f"/owed{query}")

    def sent(self) -> dict[str, bytes]:
        """Return what may have arrived, by id."""
        return self._bodies("/sent")

    def deleted(self) -> dict[str, bool]:
        """Return the ids of what may be gone, and whether it must be."""
        lines = (json.loads(line) for line in self._get("/deleted").split(b"\n") if line)
        return {line["id"]: line["owed"] for line in lines}

    def connections(self) -> list[dict[str, Any]]:
        """Return the ledger's connections."""
        found: list[dict[str, Any]] = json.loads(self._get("/ledger"))["connections"]
        return found

    def rules(self) -> list[dict[str, Any]]:
        """Return all rules that the upstream ever kept, and for which statuses each was in force."""
        found: list[dict[str, Any]] = json.loads(self._get("/ledger"))["rules"]
        return found

    def _bodies(self, path: str) -> dict[str, bytes]:
        lines = (json.loads(line) for line in self._get(path).split(b"\n") if line)
        return {line["id"]: line["body"].encode() for line in lines}

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            content: bytes = answer.read()
            return content


class Connector:
    """The connector, in a process of its own, started as often as a test likes.

    A test that fails within the block shows what it logged last, and what stands against its readiness.
    """

    def __init__(
        self,
        folder: Path,
        kafka: Kafka,
        streams: dict[str, Any],
        session_timeout_s: float = 6,
        control_partitions: int = PARTITIONS,
        **settings: Any,
    ) -> None:
        self.folder = folder
        self.config = folder / "connector.yaml"
        self.log = folder / "connector.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.group = f"{kafka.topics.prefix}-connector"
        content = {
            "replica": "test",
            "kafka": {
                "bootstrap_servers": kafka.bootstrap,
                "group": self.group,
                "session_timeout_s": session_timeout_s,
                "topics": kafka.topics.as_dict(),
                "control_partitions": control_partitions,
            },
            "ops": {"port": 0},
            "streams": streams,
            **settings,
        }
        self.config.write_text(yaml.safe_dump(content))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if failed:
            lines = self.log.read_text().splitlines() if self.log.exists() else []
            print(self.log, *lines[-_SHOWN_LINES:], sep="\n")
            if self.process is not None and self.logged("connector.started"):
                print(f"exit code {self.process.poll()}, ready: {self.ops('/readyz')}")
        if self.process is not None:
            _end(self.process)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run another command on the same configuration."""
        return subprocess.run(
            [sys.executable, "-m", "connector", *words, "--config", str(self.config)],
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )

    def create_topics(self) -> Self:
        """Run ``topics --create``."""
        done = self.command("topics", "--create")
        assert done.returncode == 0, done.stderr
        return self

    def start(self, *program: str) -> Self:
        """Start it; the log goes on where it was.

        Args:
            program: Python's arguments that run the connector's command line, if not the usual ones.
        """
        assert self.process is None
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *(program or ("-m", "connector")), "run", "--config", str(self.config)],
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    def stop(self, signum: int = signal.SIGTERM) -> tuple[int, float]:
        """Send a signal; return the exit code and how long it took."""
        assert self.process is not None
        at = time.monotonic()
        self.process.send_signal(signum)
        code = self.process.wait(PATIENCE_S)
        self.process = None
        return code, time.monotonic() - at

    def ended(self) -> int:
        """Wait until it ends by itself; return the exit code."""
        process = self.process
        assert process is not None
        eventually(lambda: process.poll() is not None, "it ends by itself")
        self.process = None
        return process.wait()

    def pause(self) -> None:
        """Freeze it, as a machine does that swaps or is suspended."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Wake it up again."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def logged(self, event: str = "") -> list[dict[str, Any]]:
        """Return what was logged, by all starts."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        parsed = [json.loads(line) for line in lines if line.startswith("{")]
        return [line for line in parsed if line["event"].startswith(event)]

    def ops(self, path: str) -> tuple[int, str]:
        """Ask the ops port of the last start."""
        port = eventually(lambda: self.logged("connector.started"), "an ops port")[-1]["ops_port"]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()
        except (urllib.error.URLError, ConnectionError):
            return 0, ""

    def owns_live_stream(self) -> bool:
        """Whether the stream is this replica's, and flowing."""
        return f'connector_stream_live{{stream="{STREAM}"}} 1.0' in self.ops("/metrics")[1]

    def is_ready(self) -> bool:
        """Whether ``/readyz`` says so."""
        return self.ops("/readyz")[0] == 200


class ScriptedUpstream:
    """A server that answers each connection with the next script, byte for byte, and then waits.

    A script's parts are written one after another; a part may be an event to wait for instead. The
    connection stays open after the last until the client leaves or the test ends. Connections beyond the
    last script get it again.
    """

    def __init__(self, *scripts: Iterable[bytes | threading.Event]) -> None:
        self._scripts = [list(script) for script in scripts]
        self._server = socket.create_server(("127.0.0.1", 0))
        self._ended = threading.Event()
        self.requests: list[bytes] = []
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            script = self._scripts[min(len(self.requests), len(self._scripts) - 1)]
            self.requests.append(connection.recv(65536))
            threading.Thread(target=self._serve, args=(connection, script), daemon=True).start()

    def _serve(self, connection: socket.socket, script: list[bytes | threading.Event]) -> None:
        with connection:
            try:
                for part in script:
                    if isinstance(part, bytes):
                        connection.sendall(part)
                    else:
                        part.wait(PATIENCE_S)
            except OSError:  # the client left while there was more to write
                return
            while not self._ended.is_set():
                connection.settimeout(0.2)
                try:
                    if not connection.recv(4096):
                        return
                except TimeoutError:
                    continue
                except OSError:
                    return


OK_HEADERS = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(body: bytes) -> bytes:
    """Return *body* as one HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(body), body)


def announced(body: bytes) -> bytes:
    """Return *body* as a length-delimited message in a chunk of its own."""
    return chunk(b"%d\r\n%s\r\n" % (len(body) + 2, body))


def stream(url: str, override: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """Return a stream's configuration with restarts soon enough, and often enough, for a test."""
    return {
        "url": f"{url}/1.1/statuses/filter.json",
        "auth": {"kind": "bearer", "token": "demo-token"},
        "debounce": {"min_s": 0.3, "max_s": 0.5},
        "override": {"budget": None, **(override or {})},
        **settings,
    }


def assert_complete(
    kafka: Kafka,
    upstream: Upstream,
    connection: int | None = None,
    but: Collection[str] = (),
    stream: str | None = None,
) -> list[Delivered]:
    """Hold the output topic against the upstream's ledger, or one connection's; return the former.

    Args:
        but: ids of statuses that may be missing.
        stream: which, where several are on the topic.
    """
    delivered = kafka.delivered(stream)
    bodies = {one.key: one.value for one in delivered}
    owed, sent = upstream.owed(connection), upstream.sent()
    missing = {key for key, body in owed.items() if bodies.get(key) != body and key not in but}
    assert not missing, f"{len(missing)} of {len(owed)} owed statuses are missing or differ"
    assert all(sent.get(key) == body for key, body in bodies.items()), "something was never sent"
    assert len(bodies) == len(delivered), "duplicates"
    assert sorted(one.seq for one in delivered) == list(range(1, len(delivered) + 1))
    for partition in {one.partition for one in delivered}:
        seqs = [one.seq for one in delivered if one.partition == partition]
        assert seqs == sorted(seqs), "order within a partition"
    return delivered


def await_complete(
    kafka: Kafka,
    upstream: Upstream,
    connection: int | None = None,
    but: Collection[str] = (),
    stream: str | None = None,
) -> list[Delivered]:
    """Stop the upstream's clock, wait for what is owed, and hold the topic against the ledger."""
    published = upstream.freeze()

    def is_there() -> bool:
        newest = upstream.connections()[-1]
        if newest["closed_at"] is not None or newest["last_seq"] < published:
            return False  # a connector that is still starting will be owed what it missed
        keys = {one.key for one in kafka.delivered(stream)} | set(but)
        return upstream.owed(connection).keys() <= keys

    eventually(is_there, "everything owed is on the output topic")
    return assert_complete(kafka, upstream, connection, but, stream)


def authorization(auth: Auth) -> str:
    """Return the Authorization header that these settings lead to."""

    async def headers() -> dict[str, str]:
        return await auth.credentials().headers(Outgoing("POST", "http://upstream/", None), _no_fetch, 0.0)

    return asyncio.run(headers())["authorization"]


async def _no_fetch(*_: object) -> tuple[int, bytes]:
    raise AssertionError("asked for a token")


def clean_environment() -> dict[str, str]:
    """Return the environment without variables that would configure a connector."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CONNECTOR_")}


def _delivered(message: Message) -> Delivered:
    headers = dict(message.headers())
    return Delivered(
        key=message.key().decode(),
        value=message.value(),
        seq=int(headers["seq"]),
        version=headers["predicates"].decode(),
        partition=message.partition(),
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
