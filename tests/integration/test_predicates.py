"""How predicates change, over real sockets and a real broker: what it costs, and who is told what."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, NewTopic
from harness import (
    PARTITIONS,
    PATIENCE_S,
    STREAM,
    Connector,
    Kafka,
    Upstream,
    await_complete,
    eventually,
    pace,
    stream,
)
from kafka import fetch
from upstream.statuses import TOPICS, Status, status

RESUME = {"resume": {"parameter": "since_seq", "cursor": "/seq"}}
LAST_ANSWERS = {"applied", "refused", "superseded", "unchanged", "rejected"}
SEED = 1  # the sample upstream's, unless it is told another


def told(kafka: Kafka) -> dict[tuple[str, int, int], list[str]]:
    """Return all answers by the record's key, partition and offset, in order."""
    answers = defaultdict(list)
    for event in kafka.events("predicates."):
        answers[event["key"], event["partition"], event["offset"]].append(event["type"].partition(".")[2])
    return dict(answers)


def at_least(count: int, kafka: Kafka, kind: str) -> Callable[[], bool]:
    """Return a question: are there so many events of a kind?"""
    return lambda: len(kafka.events(kind)) >= count


def asked(connection: Mapping[str, Any]) -> set[str]:
    """Return the words that a connection of the ledger asked for."""
    return set(connection["track"].split(","))


def published(first: int, last: int) -> Iterable[Status]:
    """Yield the statuses that the upstream published, whether it wrote them to anybody or not."""
    return (status(SEED, number) for number in range(first, last + 1))


def numbers(bodies: Iterable[bytes]) -> set[int]:
    """Return the upstream's numbers of the statuses that it wrote."""
    return {json.loads(body)["seq"] for body in bodies}


def wanted_throughout(connections: list[dict[str, Any]], last: int) -> set[int]:
    """Return the numbers of the statuses that two connections in a row both asked for.

    Whether any connection was open when one was published makes no difference. By this it differs from
    what the ledger calls owed: a restart that breaks before it makes is owed nothing for the time between.
    """
    found = set()
    until = [connection["live_seq"] - 1 for connection in connections[2:]] + [last]
    for old, new, until_seq in zip(connections, connections[1:], until, strict=False):
        both = asked(old) & asked(new)
        found |= {one.seq for one in published(old["live_seq"], until_seq) if one.words & both}
    return found


def put_by_java(kafka: Kafka, key: str, value: object) -> None:
    """Publish by Kafka's own console producer, as the documentation does."""
    done = subprocess.run(
        [
            *("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", f"{fetch()}/*"),
            "org.apache.kafka.tools.ConsoleProducer",
            *("--bootstrap-server", kafka.bootstrap, "--topic", kafka.topics.of("predicates")),
            *("--reader-property", "parse.key=true", "--reader-property", "key.separator=="),
        ],
        input=f"{key}={json.dumps(value)}\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("java") is None, reason="one of the three publishers is Java")
def test_three_clients_partitioners_and_a_kill_while_changes_wait(kafka: Kafka, tmp_path: Path) -> None:
    """All are asked for together, and each is answered once, by the place that its publisher knows."""
    # Keys for which the three partitioners choose three partitions, none of them the stream's home.
    keys = by_crc32, by_fnv1a, by_murmur2 = [f"{STREAM}/{name}" for name in ("team-a", "team-b", "java")]
    # Beside a connection that lives, a change waits for minutes: only another process will apply it.
    settings = {"override": RESUME, "debounce": {"min_s": 300, "max_s": 600}}
    with (
        Upstream("--rate", "100") as upstream,
        Connector(tmp_path, kafka, {STREAM: stream(upstream.url, **settings)}) as connector,
    ):
        connector.create_topics().start()
        kafka.publish(by_crc32, {"track": ["kafka"]}, partitioner="consistent_random")
        eventually(at_least(1, kafka, "predicates.applied"), "the first one, which waits for nothing")
        kafka.publish(by_fnv1a, {"track": ["python"]}, partitioner="fnv1a_random")
        put_by_java(kafka, by_murmur2, {"track": ["rust"]})
        eventually(at_least(3, kafka, "predicates.accepted"), "the others, which wait")
        connector.stop(signal.SIGKILL)
        assert len(kafka.events("predicates.applied")) == 1
        connector.start()
        eventually(at_least(3, kafka, "predicates.applied"), "what waited is in force")
        await_complete(kafka, upstream)
        assert connector.stop()[0] == 0

        assert [asked(one) for one in upstream.connections()] == [{"kafka"}, {"kafka", "python", "rust"}]
        (home,) = {event["to_partition"] for event in kafka.events("predicates.rerouted")}
        places = defaultdict(list)
        for record in kafka.records("predicates"):
            places[record.key().decode()].append(record.partition())
        origins = {key: next(one for one in places[key] if one != home) for key in keys}
        assert len(set(origins.values())) == 3, "the partitioners agree: other keys are needed"
        moved_once = {key: sorted([home, origin]) for key, origin in origins.items()}
        assert {key: sorted(found) for key, found in places.items()} == moved_once
        answers = ["rerouted", "accepted", "applied"]
        assert told(kafka) == {(key, origin, 0): answers for key, origin in origins.items()}


def test_forty_changes_under_a_heavy_flow_lose_and_double_nothing(kafka: Kafka, tmp_path: Path) -> None:
    """Twenty one after another and twenty in a hurry, at 2,000 statuses a second that nothing brings back."""
    # Half of the upstream's words each, by which three of four statuses match, and all of them but one stay.
    windows = [[TOPICS[(at + k) % len(TOPICS)] for k in range(8)] for at in range(21)]
    others = [word for word in TOPICS if word not in windows[-1]]
    with (
        Upstream("--rate", "2000", "--connects", "1000") as upstream,
        Connector(
            tmp_path, kafka, {STREAM: stream(upstream.url, debounce={"min_s": 0.1, "max_s": 0.2})}
        ) as connector,
    ):
        connector.create_topics().start()
        for count, window in enumerate(windows, 1):
            kafka.publish(STREAM, {"track": window})
            eventually(at_least(count, kafka, "predicates.applied"), f"change {count} applied")
        for count in range(20):  # at this pace some meet each stage of a restart
            kafka.publish(f"{STREAM}/{count % 4}", {"track": [others[count % len(others)]]})
            pace(0.07)

        def are_answered() -> bool:
            answers = told(kafka).values()
            return len(answers) == 41 and all(one[-1] in LAST_ANSWERS for one in answers)

        eventually(are_answered, "each change has its last answer")
        delivered = await_complete(kafka, upstream)
        assert connector.stop()[0] == 0

        connections = upstream.connections()
        throughout = wanted_throughout(connections, connections[-1]["last_seq"])
        missing = throughout - numbers(one.value for one in delivered)
        assert not missing, f"{len(missing)} of {len(throughout)}"
        on_both = [{*old["sent"]} & {*new["sent"]} for old, new in pairwise(connections)]
        assert any(on_both), "there was nothing to double"
        assert {one["without_connection_s"] for one in kafka.events("predicates.applied")} == {0}
        assert not kafka.events("stream.gap")
        slow, hurried = [], []
        for (key, *_), answers in told(kafka).items():
            (slow if key == STREAM else hurried).append([one for one in answers if one != "rerouted"])
        assert slow == [["accepted", "applied"]] * len(windows)
        possible = (["accepted", "applied"], ["accepted", "superseded"], ["unchanged"])
        assert all(answers in possible for answers in hurried), hurried


def test_what_a_key_said_before_its_rejected_record_outlives_compaction(kafka: Kafka, tmp_path: Path) -> None:
    """Of a key the topic keeps the newest record, be it a rejected one; the good one goes on all the same."""
    key, control = f"{STREAM}/team-a", kafka.topics.of("predicates")
    at_once = {
        "cleanup.policy": "compact",
        "segment.ms": "1",
        "min.cleanable.dirty.ratio": "0.01",
        "max.compaction.lag.ms": "1",
        "delete.retention.ms": "0",
    }
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    admin.create_topics([NewTopic(control, PARTITIONS, config=at_once)])[control].result()
    with (
        Upstream("--rate", "100") as upstream,
        Connector(tmp_path, kafka, {STREAM: stream(upstream.url)}) as connector,
    ):
        connector.create_topics().start()
        nothing = kafka.publish(STREAM, None)
        home, _ = nothing
        good = kafka.publish(key, {"track": ["kafka"]}, partition=home)
        eventually(at_least(1, kafka, "predicates.applied"), "the good record applied")
        bad = kafka.publish(key, b"rubbish", partition=home)
        eventually(at_least(1, kafka, "predicates.rejected"), "the bad record rejected")
        assert connector.stop()[0] == 0
        last = kafka.publish(STREAM, None)  # since the newest segment is never compacted

        def is_forgotten() -> bool:
            there = {(one.partition(), one.offset()) for one in kafka.records("predicates")}
            assert {bad, last} <= there
            return good not in there

        eventually(is_forgotten, "the good record is compacted away")
        connector.start()
        eventually(at_least(2, kafka, "predicates.unchanged"), "the topic read to its end")
        eventually(lambda: len(upstream.connections()) == 2, "connected again")
        await_complete(kafka, upstream, connection=2)
        assert asked(upstream.connections()[1]) == {"kafka"}

        newer = kafka.publish(key, {"track": ["rust"]}, partition=home)
        eventually(at_least(2, kafka, "predicates.applied"), "the next good record takes its place")
        assert asked(upstream.connections()[-1]) == {"rust"}
        assert connector.stop()[0] == 0
        assert told(kafka) == {
            (STREAM, *nothing): ["unchanged"],
            (key, *good): ["accepted", "applied"],
            (key, *bad): ["rejected"],
            (STREAM, *last): ["unchanged"],
            (key, *newer): ["accepted", "applied"],
        }
        assert [letter.value() for letter in kafka.records("dlq")] == [b"rubbish"]


def test_where_one_connection_is_allowed_only_the_time_between_two_is_lost(
    kafka: Kafka, tmp_path: Path
) -> None:
    """A change falls back to breaking before making, when the upstream may be asked again and not sooner."""
    delay_s = 2
    override = {"backoff": {"rate_limited": {"first_s": delay_s}}}
    refusing = ("--max-connections", "1", "--too-many", "refuse", "--connects", "1000")
    with (
        Upstream("--rate", "300", *refusing) as upstream,
        Connector(tmp_path, kafka, {STREAM: stream(upstream.url, override=override)}) as connector,
    ):
        connector.create_topics().start()
        for count, word in enumerate(("python", "rust", "flink"), 1):
            kafka.publish(STREAM, {"track": ["kafka", word]})
            eventually(at_least(count, kafka, "predicates.applied"), f"{word} applied")
            seen = len(kafka.delivered())
            eventually(lambda least=seen + 20: len(kafka.delivered()) > least, f"a flow with {word}")
        # Nothing doubled, all in order, and all there that the newest connection brought.
        delivered = await_complete(kafka, upstream, connection=3)
        assert connector.stop()[0] == 0

        connections = upstream.connections()
        assert [asked(one) - {"kafka"} for one in connections] == [{"python"}, {"rust"}, {"flink"}]
        came = numbers(one.value for one in delivered)
        dark = set[int]()
        for old, new in pairwise(connections):
            assert old["closed_at"] <= new["opened_at"]
            dark |= set(range(max(came & {*old["sent"]}) + 1, new["live_seq"]))
        assert numbers(upstream.owed().values()) - came <= dark
        assert wanted_throughout(connections, connections[-1]["last_seq"]) - came <= dark

        first, *others = kafka.events("predicates.applied")
        assert first["without_connection_s"] == 0
        assert all(one["without_connection_s"] > 0 for one in others)
        (fell_back,) = kafka.events("handover.fell_back")
        assert fell_back["strategy"] == "break"
        gaps = kafka.events("stream.gap")
        assert len(gaps) == 2
        # The old connection lived on until then; the two clocks may be read some time apart.
        until, broken_at = (datetime.fromisoformat(at) for at in (fell_back["until"], gaps[0]["from"]))
        assert (until - broken_at).total_seconds() < delay_s / 4
        assert list(told(kafka).values()) == [["accepted", "applied"]] * 3


def test_rules_change_beside_the_open_connection(kafka: Kafka, tmp_path: Path) -> None:
    """It brings what each rule matched while that was in force; a rule that is refused stops nothing."""
    with Upstream("--rate", "300") as upstream:
        settings = {
            **stream(upstream.url, dialect="x-v2"),
            "url": f"{upstream.url}/2/tweets/search/stream",
        }
        with Connector(tmp_path, kafka, {STREAM: settings}) as connector:
            connector.create_topics().start()
            # Partition 0 is the stream's home.
            changes = [
                (STREAM, ["kafka"], "applied"),
                (f"{STREAM}/a", ["python", "rust spark"], "applied"),
                (STREAM, ["flink"], "applied"),
                (f"{STREAM}/b", ["(redpanda"], "refused"),
                (f"{STREAM}/b", ["(redpanda)"], "applied"),
            ]
            answers = {}
            for key, rules, answer in changes:
                place = (key, *kafka.publish(key, {"rule": rules}, partition=0))
                answers[place] = ["accepted", answer]
                eventually(lambda: told(kafka) == answers, f"{rules} {answer}")
                seen = len(kafka.delivered())
                eventually(lambda least=seen + 20: len(kafka.delivered()) > least, f"a flow after {rules}")
            delivered = await_complete(kafka, upstream)
            (connection,) = upstream.connections()
            assert connector.stop()[0] == 0
        history = upstream.rules()
        assert connection["closed_at"] is None
        assert told(kafka) == answers
        assert {one["without_connection_s"] for one in kafka.events("predicates.applied")} == {0}
        assert "Parentheses must be balanced" in kafka.events("predicates.refused")[0]["reason"]

        assert "(redpanda" not in {rule["value"] for rule in history}
        in_force = {rule["value"] for rule in history if rule["last_seq"] is None}
        assert in_force == {"python", "rust spark", "flink", "(redpanda)"}
        matched = {
            one.seq
            for one in published(connection["live_seq"], connection["last_seq"])
            for rule in history
            if rule["first_seq"] <= one.seq <= (rule["last_seq"] or one.seq)
            and {*rule["value"].strip("()").split()} <= one.words
        }
        assert {json.loads(one.value)["data"]["seq"] for one in delivered} == matched
        assert all(json.loads(one.value)["data"]["id"] == one.key for one in delivered)
        for record in kafka.records("statuses"):
            assert dict(record.headers())["rules"] in record.value().partition(b'"matching_rules":')[2]
