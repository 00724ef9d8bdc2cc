"""The process among its neighbours: brokers and upstreams that are gone, topics that are wrong, signals."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic
from harness import (
    PATIENCE_S,
    ROOT,
    STREAM,
    Connector,
    Kafka,
    ScriptedUpstream,
    Upstream,
    await_complete,
    clean_environment,
    eventually,
    stream,
)
from kafka import Broker

RESUME = {"resume": {"parameter": "since_seq", "cursor": "/seq"}}
SECRET = "s3cret-that-must-not-show"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_run_refuses_missing_topics_and_names_the_command_that_mends_it(kafka: Kafka, tmp_path: Path) -> None:
    """And `topics --create` does, with the settings that the design asks for."""
    connector = Connector(tmp_path, kafka, {STREAM: stream("http://127.0.0.1:1")})
    refused = connector.command("run")
    assert refused.returncode == 3
    for purpose in ("predicates", "statuses", "positions", "events", "dlq"):
        assert f"'{kafka.topics.of(purpose)}' is missing" in refused.stderr
    assert f"connector topics --create --config {connector.config}" in refused.stderr
    assert connector.command("topics").returncode == 3
    connector.create_topics()
    assert connector.command("topics").returncode == 0
    assert connector.command("topics", "--create").returncode == 0


def test_run_refuses_topics_that_do_not_fit(kafka: Kafka, tmp_path: Path) -> None:
    """Positions must mirror the control topic, be compacted, and statuses must fit the output topic."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    topics = kafka.topics
    new = [
        NewTopic(topics.of("predicates"), 3, config={"cleanup.policy": "compact"}),
        NewTopic(topics.of("positions"), 2),
        NewTopic(topics.of("statuses"), 1, config={"max.message.bytes": "5000"}),
        NewTopic(topics.of("events"), 1),
        NewTopic(topics.of("dlq"), 1),
    ]
    for future in admin.create_topics(new).values():
        future.result()
    refused = Connector(tmp_path, kafka, {STREAM: stream("http://127.0.0.1:1")}).command("run")
    assert refused.returncode == 3
    assert "2 partitions, but must have 3" in refused.stderr
    assert "cleanup.policy=delete, must be compact" in refused.stderr
    assert "max.message.bytes=5000" in refused.stderr


@pytest.mark.skipif(
    shutil.which("java") is None, reason="stops and starts a broker of its own, which needs Java"
)
def test_kafka_may_come_late_and_go_away_in_between(tmp_path: Path) -> None:
    """Not ready meanwhile, said once, recovered by itself, and nothing of a resumable stream lost."""
    port = _free_port()
    kafka = Kafka(f"127.0.0.1:{port}")
    data = tmp_path / "kafka"
    with (
        Upstream("--rate", "200", "--connects", "1000") as upstream,
        Connector(tmp_path, kafka, {STREAM: stream(upstream.url, override=RESUME)}) as connector,
    ):
        connector.start()
        eventually(lambda: "kafka: unreachable" in connector.ops("/readyz")[1], "not ready without Kafka")
        assert connector.ops("/livez")[0] == 200
        broker = Broker(data, port)
        try:
            # The topics are missing at first: a start that finds the broker says so and ends.
            eventually(lambda: connector.process is not None and connector.process.poll() == 3, "refused")
            connector.process = None
            connector.create_topics().start()
            kafka.publish(STREAM, {"track": ["kafka"]})
            eventually(lambda: len(kafka.delivered()) > 50, "a flow")
            # Killed between the decision to commit and its markers, a broker that is alone forgets the
            # markers when it starts again, and whoever reads committed records waits for ever; see gotchas.
            await_complete(kafka, upstream)
            broker.process.kill()
            broker.process.wait()
            upstream.thaw()
            eventually(lambda: connector.ops("/readyz")[0] == 503, "not ready")
            assert connector.ops("/livez")[0] == 200
            broker = Broker(data, port)
            eventually(connector.is_ready, "ready again")
            await_complete(kafka, upstream)
            assert connector.stop()[0] == 0
            # Each change of state is one line, however long it lasts.
            changes = [line for line in connector.logged("health.") if line["part"] == "kafka"]
            assert len(changes) <= 8
        finally:
            broker.stop()


def test_the_upstream_may_come_late_and_go_away_in_between(kafka: Kafka, tmp_path: Path) -> None:
    """Not ready meanwhile, said once, recovered by itself."""
    port = _free_port()
    with Connector(tmp_path, kafka, {STREAM: stream(f"http://127.0.0.1:{port}")}) as connector:
        connector.create_topics().start()
        kafka.publish(STREAM, {"track": ["kafka"]})
        eventually(lambda: "no live connection" in connector.ops("/readyz")[1], "not ready")
        for _ in range(2):
            with Upstream("--port", str(port), "--rate", "100"):
                eventually(connector.is_ready, "ready")
            eventually(lambda: not connector.is_ready(), "not ready again")
        lost = connector.logged("connection.disconnected")
        assert len(lost) <= 6, "said at every attempt"
        assert connector.stop()[0] == 0
        assert {event["type"] for event in kafka.events("connection.")} == {
            "connection.connecting",
            "connection.connected",
            "connection.live",
            "connection.disconnected",
        }
        assert len(kafka.events("stream.gap")) == 1


def test_no_secret_shows_in_logs_metrics_or_events(kafka: Kafka, tmp_path: Path) -> None:
    """Neither a token in the configuration nor one in a file, also when the upstream refuses it."""
    token_file = tmp_path / "token"
    token_file.write_text(SECRET + "\n")
    with Upstream("--rate", "100") as upstream:
        refused = stream(upstream.url, auth={"kind": "basic", "username": "demo", "password": SECRET})
        by_file = stream(upstream.url, auth={"kind": "bearer", "token_file": str(token_file)})
        with Connector(tmp_path, kafka, {STREAM: by_file, "refused": refused}) as connector:
            connector.create_topics().start()
            kafka.publish(STREAM, {"track": ["kafka"]})
            kafka.publish("refused", {"track": ["kafka"]})
            eventually(lambda: len(kafka.events("connection.refused")) >= 2, "both refused")
            assert {one["code"] for one in kafka.events("connection.refused")} == {"401"}
            assert "HTTP 401" in connector.ops("/readyz")[1]
            metrics = connector.ops("/metrics")[1]
            assert 'connector_stream_refused{stream="refused"} 1.0' in metrics
            # A token that is rotated in its file is used without a restart, and without a long wait.
            token_file.write_text("demo-token\n")
            eventually(kafka.delivered, "the right token")
            assert connector.stop()[0] == 0
        assert SECRET not in connector.log.read_text()
        assert SECRET not in metrics
        assert SECRET not in str(kafka.events())


def test_sigterm_while_kafka_is_gone_ends_within_ten_seconds(tmp_path: Path) -> None:
    """There is nothing to wait for then."""
    connector = Connector(
        tmp_path, Kafka(f"127.0.0.1:{_free_port()}"), {STREAM: stream("http://127.0.0.1:1")}
    )
    with connector.start():
        eventually(lambda: "kafka: unreachable" in connector.ops("/readyz")[1], "not ready")
        code, seconds = connector.stop()
        assert code == 0
        assert seconds < 10


def _processes(environment: Mapping[str, str]) -> set[int]:
    """Return the ids of the processes that live in a marked environment."""
    mark, found = f"STARTED_BY={environment['STARTED_BY']}".encode(), set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile, or is none of ours
                if mark in (folder / "environ").read_bytes():
                    found.add(int(folder.name))
    return found


@pytest.fixture
def marked() -> Iterator[dict[str, str]]:
    """Yield an environment that marks a process and all that it starts; none of them outlives the test."""
    environment = {**clean_environment(), "STARTED_BY": uuid.uuid4().hex}
    yield environment
    for process in _processes(environment):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def test_the_demo_ends_well_and_leaves_no_process_behind(marked: dict[str, str]) -> None:
    """Its exit code says that nothing was lost; every process it started is gone."""
    done = subprocess.run(
        [sys.executable, "-m", "connector", "demo", "--seconds", "9"],
        env=marked,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "predicate changes applied        2 of 2" in done.stdout
    assert "time without a live connection   0 s" in done.stdout
    assert "lost                             0" in done.stdout
    eventually(lambda: not _processes(marked), "all processes gone")


def test_the_demo_dies_with_its_terminal_and_takes_its_processes_along(marked: dict[str, str]) -> None:
    """Even when it is killed and cannot clean up."""
    demo = subprocess.Popen(
        [sys.executable, "-m", "connector", "demo"],
        env=marked,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert demo.stdout is not None
    eventually(lambda: b"seq 3 " in demo.stdout.readline(), "statuses")
    assert len(_processes(marked)) > 3, "the demo, Kafka, the upstream and the connector"
    demo.kill()
    demo.wait()
    demo.stdout.close()
    eventually(lambda: not _processes(marked), "all processes gone")


def test_the_demo_falls_back_to_embedded_brokers_without_java(tmp_path: Path) -> None:
    """And says so."""
    done = subprocess.run(
        [sys.executable, "-m", "connector", "demo", "--seconds", "6"],
        env={**clean_environment(), "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S * 2,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "brokers embedded in librdkafka" in done.stdout
    assert "openjdk-17" in done.stderr


@pytest.mark.skipif(shutil.which("java") is None, reason="starts a broker of its own, which needs Java")
def test_a_closed_terminal_ends_a_broker_that_was_started_in_it(marked: dict[str, str]) -> None:
    """It is told by a signal; Kafka itself, in a session of its own, is not."""
    command = [sys.executable, str(ROOT / "deploy/local/kafka.py"), "run"]
    with subprocess.Popen(command, env=marked, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as local:
        assert local.stdout is not None
        assert "bootstrap" in json.loads(local.stdout.readline())
        local.send_signal(signal.SIGHUP)
        assert local.wait(PATIENCE_S) == 0
    eventually(lambda: not _processes(marked), "all processes gone")


def test_a_publisher_puts_waits_looks_and_takes_back(kafka: Kafka, tmp_path: Path) -> None:
    """From the command line, with the answers as they come."""

    def predicates(*words: str) -> subprocess.CompletedProcess[str]:
        return connector.command("predicates", *words)

    with (
        Upstream("--rate", "100") as upstream,
        Connector(tmp_path, kafka, {STREAM: stream(upstream.url)}) as connector,
    ):
        connector.create_topics()
        unanswered = predicates("put", STREAM, "track=kafka", "--as", "a", "--wait", "--timeout", "0.5")
        assert unanswered.returncode == 1
        assert "no final answer within 0.5 s" in unanswered.stderr
        connector.start()
        eventually(kafka.delivered, "a flow")
        put = predicates("put", STREAM, "track=kafka", "track=rust", "--as", "b", "--wait")
        assert put.returncode == 0
        assert [line.split()[1] for line in put.stdout.splitlines()[1:]] == ["accepted", "applied"]
        same = predicates("put", STREAM, "track=rust", "--as", "c", "--wait")
        assert (same.returncode, same.stdout.splitlines()[-1].split()[1]) == (0, "unchanged")
        got = json.loads(predicates("get", STREAM).stdout)
        assert got["union"] == {"track": ["kafka", "rust"]}
        assert got["by_key"] == {
            f"{STREAM}/a": {"track": ["kafka"]},
            f"{STREAM}/b": {"track": ["kafka", "rust"]},
            f"{STREAM}/c": {"track": ["rust"]},
        }
        for publisher in ("a", "b", "c"):
            assert predicates("remove", STREAM, "--as", publisher, "--wait").returncode == 0
        eventually(lambda: upstream.connections()[-1]["closed_at"], "the stream stopped")
        assert json.loads(predicates("get", STREAM).stdout)["by_key"] == {}
        assert connector.stop()[0] == 0


def test_sigterm_during_a_long_wait_ends_at_once(kafka: Kafka, tmp_path: Path) -> None:
    """An upstream may ask to wait for minutes; nobody else has to."""
    busy = b"HTTP/1.1 503 Busy\r\nRetry-After: 320\r\nContent-Length: 0\r\n\r\n"
    with (
        ScriptedUpstream([busy]) as upstream,
        Connector(tmp_path, kafka, {STREAM: stream(upstream.url)}) as connector,
    ):
        connector.create_topics().start()
        kafka.publish(STREAM, {"track": ["kafka"]})
        (lost,) = eventually(lambda: kafka.events("connection.disconnected"), "told to wait")
        assert (lost["code"], lost["retry_in_s"]) == ("503", 320)
        code, seconds = connector.stop()
        assert code == 0
        assert seconds < 10
        assert len(upstream.requests) == 1
