"""A stream with shares: one control key, several connections, spread over the replicas."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from harness import Connector, Kafka, Upstream, eventually, stream

PARTITION = {"parameter": "partition", "first": 0, "count_parameter": "partitions"}
OVERRIDE = {"request": {"partition": PARTITION}, "resume": {"parameter": "since_seq", "cursor": "/seq"}}
THREE = {f"tech.{number}-of-3" for number in (1, 2, 3)}


def configured(upstream: Upstream, partitions: int) -> dict[str, Any]:
    return {"tech": stream(upstream.url, override=OVERRIDE, partitions=partitions)}


def live(upstream: Upstream) -> set[tuple[int, int, str]]:
    """Return which shares are connected, and what each asks for."""
    return {(*one["share"], one["track"]) for one in upstream.connections() if one["closed_at"] is None}


def owned(*replicas: Connector) -> list[set[str]]:
    """Return which shares each replica has a live connection of."""
    return [{one["stream"] for one in replica.logged("connection.live")} for replica in replicas]


def left(kafka: Kafka) -> set[str]:
    """Return the keys of the control topic and of the positions that have a value."""
    newest = {}
    for purpose in ("predicates", "positions"):
        for one in kafka.records(purpose):
            newest[(purpose, one.key(), one.partition())] = one.value()
    return {key.decode() for (_, key, _), value in newest.items() if value is not None}


def ids(kafka: Kafka) -> list[str]:
    """Return the keys of the output topic, whichever stream they are of."""
    return [one.key().decode() for one in kafka.records("statuses")]


def await_once_each(kafka: Kafka, upstream: Upstream, least: int) -> None:
    """Wait until all that is owed is delivered, and hold the topic against the ledger."""
    eventually(lambda: len(ids(kafka)) > least, "a flow")
    published = upstream.freeze()
    eventually(
        lambda: all(
            one["last_seq"] >= published for one in upstream.connections() if one["closed_at"] is None
        ),
        "all is sent",
    )
    owed = upstream.owed()
    eventually(lambda: owed.keys() <= set(ids(kafka)), "all that is owed is delivered")
    delivered = Counter(ids(kafka))
    assert set(delivered.values()) == {1}, "duplicates"
    assert delivered.keys() == owed.keys()
    upstream.thaw()


def test_shares_are_spread_over_replicas_and_get_each_status_once(kafka: Kafka, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    with Upstream("--rate", "300", "--connects", "1000") as upstream:
        streams = configured(upstream, 3)
        with (
            # Two partitions, each of which is home to a share.
            Connector(folders[0], kafka, streams, replica="a", control_partitions=2) as first,
            Connector(folders[1], kafka, streams, replica="b", control_partitions=2) as second,
        ):
            first.create_topics().start()
            second.start()
            for replica in (first, second):
                eventually(lambda its=replica: its.logged("lease.assigned"), "a partition of its own")
                eventually(replica.is_ready, "ready")
            put = first.command("predicates", "put", "tech", "track=kafka", "--as", "a", "--wait")
            assert put.returncode == 0, put.stderr + put.stdout
            answers = [line.split()[1] for line in put.stdout.splitlines()[1:]]
            assert Counter(answers) == {"dealt": 1, "accepted": 3, "applied": 3}
            assert live(upstream) == {(number, 3, "kafka") for number in range(3)}
            both = owned(first, second)
            assert all(both), "each replica runs some"
            assert set.union(*both) == THREE

            put = first.command("predicates", "put", "tech", "track=rust", "--as", "b", "--wait")
            assert put.returncode == 0, put.stderr + put.stdout
            eventually(
                lambda: live(upstream) == {(number, 3, "kafka,rust") for number in range(3)},
                "the change has reached all shares",
            )
            await_once_each(kafka, upstream, 300)
            for share in THREE:
                numbers = [one.seq for one in kafka.delivered(share)]
                assert sorted(numbers) == list(range(1, len(numbers) + 1))

            refused = first.command("predicates", "put", "tech.1-of-3", "track=x")
            assert refused.returncode == 2
            assert "there are: tech" in refused.stderr
            kafka.publish("tech.1-of-3/b", {"track": ["x"]})
            eventually(lambda: kafka.events("predicates.rejected"), "an answer")
            assert [one["reason"] for one in kafka.events("predicates.rejected")] == ["share_key"]

            for publisher in ("a", "b"):
                removed = first.command("predicates", "remove", "tech", "--as", publisher, "--wait")
                assert removed.returncode == 0, removed.stderr + removed.stdout
            eventually(lambda: live(upstream) == set(), "all shares have stopped")
            assert first.stop()[0] == second.stop()[0] == 0


def test_another_number_of_shares_takes_the_old_ones_place(kafka: Kafka, tmp_path: Path) -> None:
    with Upstream("--rate", "300", "--connects", "1000") as upstream:
        (tmp_path / "three").mkdir()
        with Connector(tmp_path / "three", kafka, configured(upstream, 3)) as three:
            three.create_topics().start()
            for publisher, track in (("a", "kafka"), ("b", "rust"), ("c", "java")):
                kafka.publish(f"tech/{publisher}", {"track": [track]})
            kafka.publish("tech/c", None)
            wanted = {(number, 3, "kafka,rust") for number in range(3)}
            eventually(lambda: live(upstream) == wanted, "three shares")
            await_once_each(kafka, upstream, 100)
            assert three.stop()[0] == 0
        seen = len(upstream.connections())
        for count in (2, 1, 2):
            folder = tmp_path / f"{count}-{seen}"
            folder.mkdir()
            with Connector(folder, kafka, configured(upstream, count)) as changed:
                changed.start()
                wanted = {(number, count, "kafka,rust") for number in range(count)}
                eventually(lambda wanted=wanted: live(upstream) == wanted, f"{count} shares")
                least = len(ids(kafka)) + 50
                eventually(lambda least=least: len(ids(kafka)) > least, "a flow")
                assert changed.stop()[0] == 0
            names = {f"tech.{number}-of-{count}" for number in range(1, count + 1)} if count > 1 else {"tech"}
            parts = {part for key in left(kafka) for part in key.split("/") if part.startswith("tech")}
            assert parts == names | {"tech"}
            fresh = upstream.connections()[seen:]
            seen += len(fresh)
            assert {one["since_seq"] for one in fresh} == {None}, "they begin anew"
