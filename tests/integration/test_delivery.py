"""The promise, over real sockets and a real broker: nothing lost, nothing doubled, every change answered."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

from harness import (
    OK_HEADERS,
    STREAM,
    Connector,
    Kafka,
    ScriptedUpstream,
    Upstream,
    announced,
    await_complete,
    chunk,
    eventually,
    stream,
)

LINES = {"framing": {"kind": "lines"}, "request": {"parameters": {"delimited": None}}}
RESUME = {"resume": {"parameter": "since_seq", "cursor": "/seq"}}


def words(body: bytes) -> set[str]:
    """Return the words that the sample upstream matches."""
    return set(re.findall(r"\w+", json.loads(body)["text"].casefold()))


def test_predicate_changes_under_a_flow_lose_nothing(kafka: Kafka, tmp_path: Path) -> None:
    """Two changes at 400 statuses a second: the topic equals the ledger, each change is answered."""
    with (
        Upstream("--rate", "400") as upstream,
        Connector(tmp_path, kafka, {STREAM: stream(upstream.url, override=LINES)}) as connector,
    ):
        connector.create_topics().start()
        kafka.publish(STREAM, {"track": ["kafka"]})
        eventually(lambda: len(kafka.delivered()) > 100, "a flow")
        kafka.publish(STREAM, {"track": ["kafka", "python"]})
        eventually(lambda: len(kafka.events("predicates.applied")) == 2, "the first change applied")
        kafka.publish(f"{STREAM}/other", {"track": ["rust"], "follow": ["783214"]})
        eventually(lambda: len(kafka.events("predicates.applied")) == 3, "the second change applied")
        delivered = await_complete(kafka, upstream)
        code, _ = connector.stop()
        assert code == 0

        first, second, third = upstream.connections()
        assert [first["track"], second["track"], third["track"]] == [
            "kafka",
            "kafka,python",
            "kafka,python,rust",
        ]
        assert third["follow"] == "783214"
        # Versions in the order of their connections, and no status under a version whose
        # connection did not bring it.
        versions = list(dict.fromkeys(one.version for one in sorted(delivered, key=lambda one: one.seq)))
        assert len(versions) == 3
        for version, connection in zip(versions, (first, second, third), strict=True):
            brought = set(connection["sent"])
            assert all(json.loads(one.value)["seq"] in brought for one in delivered if one.version == version)
            assert any(one.version == version for one in delivered)
        # What is delivered beyond what is owed came over an old connection while it was drained.
        extra = {one.key for one in delivered} - upstream.owed().keys()
        assert len(extra) < 50

        assert list(kafka.answers().values()) == [["accepted", "applied"]] * 3
        applied = kafka.events("predicates.applied")
        assert [one["without_connection_s"] for one in applied] == [0, 0, 0]
        assert [one["connection"] for one in applied] == [1, 2, 3]
        assert [one["predicates"] for one in applied] == versions


def test_kill_minus_nine_loses_and_doubles_nothing_of_a_resumable_stream(
    kafka: Kafka, tmp_path: Path
) -> None:
    """SIGKILL in the middle, three times, once while a change is being applied."""
    with (
        Upstream("--rate", "300", "--connects", "1000") as upstream,
        Connector(tmp_path, kafka, {STREAM: stream(upstream.url, override=RESUME)}) as connector,
    ):
        connector.create_topics()
        kafka.publish(STREAM, {"track": ["kafka", "python"]})
        for number, count in ((1, 100), (2, 400), (3, 800)):
            connector.start()
            # First that: what is there may be enough already, from the process before.
            eventually(lambda least=number: len(upstream.connections()) == least, "a connection")
            eventually(lambda least=count: len(kafka.delivered()) > least, "a flow")
            if number < 3:
                connector.stop(signal.SIGKILL)
        kafka.publish(STREAM, {"track": ["kafka", "python", "rust"]})
        eventually(lambda: len(upstream.connections()) == 4, "a candidate")
        connector.stop(signal.SIGKILL)
        connector.start()
        eventually(lambda: len(kafka.events("predicates.applied")) == 2, "the change applied after all")
        # What the killed candidate was sent for the new predicates alone was asked for by nobody yet: the
        # change was not in force, and the next connection goes on from the old one's cursor.
        early = {
            key for key, body in upstream.owed(connection=4).items() if not words(body) & {"kafka", "python"}
        }
        await_complete(kafka, upstream, but=early)
        assert connector.stop()[0] == 0
        assert [one["since_seq"] is None for one in upstream.connections()][:2] == [True, False]
        assert list(kafka.answers().values()) == [["accepted", "applied"]] * 2


def test_a_planned_restart_resumes_where_it_stopped(kafka: Kafka, tmp_path: Path) -> None:
    """SIGTERM exits 0 within ten seconds; the next start goes on without loss or repetition."""
    with (
        Upstream("--rate", "300") as upstream,
        Connector(tmp_path, kafka, {STREAM: stream(upstream.url, override=RESUME)}) as connector,
    ):
        connector.create_topics().start()
        kafka.publish(STREAM, {"track": ["kafka"]})
        for signum, count in ((signal.SIGTERM, 50), (signal.SIGINT, 200)):
            eventually(lambda least=count: len(kafka.delivered()) > least, "a flow")
            code, seconds = connector.stop(signum)
            assert code == 0
            assert seconds < 10
            eventually(lambda: upstream.connections()[-1]["closed_at"], "the upstream's slot is free")
            connector.start()
        await_complete(kafka, upstream)
        assert connector.stop()[0] == 0
        assert kafka.answers() == {(STREAM, 0): ["accepted", "applied"]}


def test_what_was_read_is_committed_before_the_end(kafka: Kafka, tmp_path: Path) -> None:
    """Of a stream that cannot resume, at a pace at which all of it still waits when the process is told."""
    bodies = [b'{"id_str":"%d","text":"x"}' % number for number in range(500)]
    with (
        ScriptedUpstream([OK_HEADERS, *map(announced, bodies)]) as upstream,
        Connector(
            tmp_path, kafka, {STREAM: stream(upstream.url)}, delivery={"commit_interval_s": 4}
        ) as connector,
    ):
        connector.create_topics().start()
        kafka.publish(STREAM, {"track": ["kafka"]})
        size = sum(len(b"%d\r\n%s\r\n" % (len(body) + 2, body)) for body in bodies)
        read = f'connector_upstream_bytes_total{{stream="{STREAM}"}} {float(size)}'
        eventually(lambda: read in connector.ops("/metrics")[1], "all of it is read")
        assert connector.stop()[0] == 0
    assert [one.value for one in sorted(kafka.delivered(), key=lambda one: one.seq)] == bodies


def test_removing_the_last_predicate_stops_the_stream(kafka: Kafka, tmp_path: Path) -> None:
    """A tombstone takes a contribution back; without any, no connection is held."""
    with (
        Upstream("--rate", "100") as upstream,
        Connector(tmp_path, kafka, {STREAM: stream(upstream.url)}) as connector,
    ):
        connector.create_topics().start()
        kafka.publish(f"{STREAM}/a", {"track": ["kafka"]})
        eventually(kafka.delivered, "a flow")
        kafka.publish(f"{STREAM}/a", None)
        eventually(lambda: upstream.connections()[-1]["closed_at"], "the connection closed")
        eventually(connector.is_ready, "nothing to do is ready")
        kafka.publish(f"{STREAM}/b", {"track": ["python"]})
        eventually(lambda: len(upstream.connections()) == 2, "started again")
        # What was on its way when nothing was asked for any more is owed to nobody.
        await_complete(kafka, upstream, connection=2)
        # The last answer comes with the connection's first byte: nothing above waits for that.
        told = [["accepted", "applied"]] * 3
        eventually(lambda: list(kafka.answers().values()) == told, "each change answered")


def test_bad_control_records_change_nothing_and_are_reported_once(kafka: Kafka, tmp_path: Path) -> None:
    """Each is answered with a reason and copied to the dead-letter topic, over a restart too."""
    bad = {
        "not_json": (f"{STREAM}/x", b'{"track": [kafka]}'),
        "unknown_predicate": (f"{STREAM}/x", b'{"trak": ["kafka"]}'),
        "duplicate_member": (f"{STREAM}/x", b'{"track": ["a"], "track": ["b"]}'),
        "unknown_stream": ("elsewhere", b'{"track": ["kafka"]}'),
        "key_missing": (b"", b'{"track": ["kafka"]}'),
        "key_not_utf8": (b"\xff\xfe", b'{"track": ["kafka"]}'),
    }
    with (
        Upstream("--rate", "100") as upstream,
        Connector(tmp_path, kafka, {STREAM: stream(upstream.url, override=RESUME)}) as connector,
    ):
        connector.create_topics().start()
        kafka.publish(f"{STREAM}/x", {"track": ["kafka"]})
        eventually(kafka.delivered, "a flow")
        for key, value in bad.values():
            kafka.publish(key, value)
        eventually(lambda: len(kafka.events("predicates.rejected")) == len(bad), "all answered")
        assert connector.stop()[0] == 0
        connector.start()
        await_complete(kafka, upstream)
        assert connector.stop()[0] == 0

        rejected = kafka.events("predicates.rejected")
        assert sorted(one["reason"] for one in rejected) == sorted(bad)
        assert next(one["pointer"] for one in rejected if one["reason"] == "unknown_predicate") == "/trak"
        letters = {dict(one.headers())["reason"].decode(): one for one in kafka.records("dlq")}
        assert len(kafka.records("dlq")) == len(bad)
        for reason, (key, value) in bad.items():
            assert letters[reason].value() == value
            assert letters[reason].key() == (key.encode() if isinstance(key, str) else key)
            assert dict(letters[reason].headers())["origin"].startswith(
                kafka.topics.of("predicates").encode()
            )
        assert {one["track"] for one in upstream.connections()} == {"kafka"}


def test_a_malformed_status_goes_to_the_dead_letter_topic_and_the_stream_goes_on(
    kafka: Kafka, tmp_path: Path
) -> None:
    """With its raw bytes and a reason; its neighbours are delivered."""
    bad = [b'{"id_str": "2", "text": ', b'{"text": "no id"}', b'{"id_str": "3", "t": "\xff"}', b"\x00\xff"]
    good = [b'{"id_str":"%d","text":"x"}' % number for number in (10, 11, 12)]
    script = [OK_HEADERS, chunk(b"\r\n"), announced(good[0]), *map(announced, bad), *map(announced, good[1:])]
    with (
        ScriptedUpstream(script) as upstream,
        Connector(tmp_path, kafka, {STREAM: stream(upstream.url)}) as connector,
    ):
        connector.create_topics().start()
        kafka.publish(STREAM, {"track": ["kafka"]})
        eventually(lambda: len(kafka.delivered()) == 3, "the good ones")
        assert [one.value for one in sorted(kafka.delivered(), key=lambda one: one.seq)] == good
        letters = kafka.records("dlq")
        assert [letter.value() for letter in letters] == bad
        assert [dict(letter.headers())["reason"] for letter in letters] == [
            b"not_json",
            b"no_id",
            b"not_json",
            b"not_json",
        ]
        assert all(dict(letter.headers())["stream"] == STREAM.encode() for letter in letters)


def test_other_clients_partitioners_reach_the_stream_all_the_same(kafka: Kafka, tmp_path: Path) -> None:
    """A record elsewhere than at its home is moved there, once; its answers name where it was published."""
    with (
        Upstream("--rate", "100") as upstream,
        Connector(tmp_path, kafka, {STREAM: stream(upstream.url, override=RESUME)}) as connector,
    ):
        connector.create_topics().start()
        for partition in range(6):
            kafka.publish(
                f"{STREAM}/p{partition}", {"track": ["kafka", f"word{partition}"]}, partition=partition
            )
        eventually(
            lambda: sum(told[-1] == "applied" for told in kafka.answers().values()) == 6, "all six applied"
        )
        assert connector.stop()[0] == 0
        connector.start()
        eventually(lambda: upstream.connections()[-1]["closed_at"] is None, "connected again")
        await_complete(kafka, upstream)
        assert len(kafka.events("predicates.rerouted")) == 5
        applied = {
            (one["key"], one["partition"], one["offset"]) for one in kafka.events("predicates.applied")
        }
        assert applied == {(f"{STREAM}/p{partition}", partition, 0) for partition in range(6)}
        # What was moved is still where it was published, and means nothing there.
        assert connector.command("predicates", "remove", STREAM, "--as", "p0", "--wait").returncode == 0
        told = json.loads(connector.command("predicates", "get", STREAM).stdout)
        assert told["by_key"].keys() == {f"{STREAM}/p{partition}" for partition in range(1, 6)}
        eventually(lambda: "word0" not in upstream.connections()[-1]["track"], "without it")
        expected = ",".join(sorted(["kafka", *(f"word{partition}" for partition in range(1, 6))]))
        assert upstream.connections()[-1]["track"] == expected


def test_another_replica_takes_over_where_its_owner_stopped(kafka: Kafka, tmp_path: Path) -> None:
    """After SIGTERM at once, after SIGKILL when its session ends, after SIGSTOP although it comes back."""
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    with Upstream("--rate", "200", "--connects", "1000", "--max-connections", "4") as upstream:
        streams = {STREAM: stream(upstream.url, override=RESUME)}
        with (
            Connector(folders[0], kafka, streams, replica="a") as first,
            Connector(folders[1], kafka, streams, replica="b") as second,
        ):
            first.create_topics().start()
            second.start()
            kafka.publish(STREAM, {"track": ["kafka", "python"]})
            owner, standby = first, second
            for signum in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):
                eventually(lambda: any(one.owns_live_stream() for one in (first, second)), "an owner")
                owner, standby = (first, second) if first.owns_live_stream() else (second, first)
                eventually(standby.is_ready, "a standby is ready")
                seen = len(kafka.delivered())
                eventually(lambda least=seen + 50: len(kafka.delivered()) > least, "a flow")
                if signum is signal.SIGSTOP:
                    owner.pause()
                else:
                    owner.stop(signum)
                eventually(standby.owns_live_stream, "the standby took over")
                seen = len(kafka.delivered())
                eventually(lambda least=seen + 50: len(kafka.delivered()) > least, "a flow after takeover")
                if signum is signal.SIGSTOP:
                    owner.go_on()
                else:
                    owner.start()
            eventually(lambda: first.is_ready() and second.is_ready(), "both are well")
            await_complete(kafka, upstream)
            assert first.stop()[0] == 0
            assert second.stop()[0] == 0
            assert list(kafka.answers().values()) == [["accepted", "applied"]]
            revoked = first.logged("lease.revoked") + second.logged("lease.revoked")
            assert revoked, "a joining replica takes partitions over from a living one"
            assert all(one["drained"] for one in revoked)


def test_a_crash_loop_stays_within_the_upstreams_budget(kafka: Kafka, tmp_path: Path) -> None:
    """The attempts of the process before count: they are kept with the position."""
    override = {**RESUME, "budget": {"attempts": 2, "window_s": 20}}
    with (
        Upstream("--rate", "100") as upstream,
        Connector(tmp_path, kafka, {STREAM: stream(upstream.url, override=override)}) as connector,
    ):
        connector.create_topics()
        kafka.publish(STREAM, {"track": ["kafka"]})
        for number in (1, 2):
            connector.start()
            eventually(lambda least=number: len(upstream.connections()) == least, "a connection")
            eventually(lambda least=20 * number: len(kafka.delivered()) > least, "a flow")
            connector.stop(signal.SIGKILL)
        connector.start()
        (deferred,) = eventually(lambda: kafka.events("connection.deferred"), "the budget is spent")
        assert 0 < deferred["wait_s"] <= 20
        assert len(upstream.connections()) == 2
        eventually(lambda: len(upstream.connections()) == 3, "the window has passed")
        opened = [one["opened_at"] for one in upstream.connections()]
        assert opened[2] - opened[0] > 19
        await_complete(kafka, upstream)
        assert connector.stop()[0] == 0


def test_server_sent_events_are_resumed_after_a_restart(kafka: Kafka, tmp_path: Path) -> None:
    """By the id of the last one, also where that came without data."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    first = [head, b'id: a\ndata: {"id":1}\n\n', b'id: b\ndata: {"id":"2"}\n\nid: c\n\n']
    with ScriptedUpstream(first, [head, b'id: d\ndata: {"id":3}\n\n']) as upstream:
        settings = stream(upstream.url, override={}, dialect="sse")
        with Connector(tmp_path, kafka, {STREAM: settings}) as connector:
            connector.create_topics().start()
            kafka.publish(STREAM, {"track": ["kafka"]})
            eventually(lambda: len(kafka.delivered()) == 2, "both")
            connector.stop()
            connector.start()
            eventually(lambda: len(kafka.delivered()) == 3, "what came after them")
            connector.stop(signal.SIGKILL)
    delivered = sorted(kafka.delivered(), key=lambda one: one.seq)
    assert [(one.key, one.value) for one in delivered] == [
        ("1", b'{"id":1}'),
        ("2", b'{"id":"2"}'),
        ("3", b'{"id":3}'),
    ]
    assert b"GET /1.1/statuses/filter.json?track=kafka HTTP/1.1" in upstream.requests[0]
    assert b"last-event-id" not in upstream.requests[0].lower()
    assert b"\r\nlast-event-id: c\r\n" in upstream.requests[1].lower()
