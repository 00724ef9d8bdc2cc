"""Several replicas of one connector: what one leaves behind the next one mends, and harms none that lives."""

from __future__ import annotations

from pathlib import Path

from crash_runner import Point
from harness import STREAM, Connector, Kafka, Upstream, await_complete, eventually, stream

from connector.delivery.transactions import fence

RUNNER = str(Path(__file__).with_name("crash_runner.py"))
RESUME = {"resume": {"parameter": "since_seq", "cursor": "/seq"}}


def test_a_successor_ends_the_transaction_that_its_predecessor_died_in(kafka: Kafka, tmp_path: Path) -> None:
    """As soon as the lease is its own, and goes on from the last one that was committed."""
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    with Upstream("--rate", "200", "--connects", "1000") as upstream:
        streams = {STREAM: stream(upstream.url, override=RESUME)}
        with (
            Connector(folders[0], kafka, streams, replica="a") as dying,
            Connector(folders[1], kafka, streams, replica="b") as successor,
        ):
            dying.create_topics()
            kafka.publish(STREAM, {"track": ["kafka"]})
            topics = (kafka.topics.of("statuses"), kafka.topics.of("positions"))
            dying.start(RUNNER, Point.BEFORE_COMMIT, "8", str(tmp_path / "marker"), *topics)
            assert dying.ended() == -9
            assert kafka.holds_up_readers("positions")
            successor.start()
            (fenced,) = eventually(lambda: successor.logged("predecessor.fenced"), "the transaction is ended")
            assert fenced["transactional_id"] == f"{dying.group}-a"
            await_complete(kafka, upstream)
            assert successor.stop()[0] == 0


def test_a_living_replica_that_is_fenced_goes_on(kafka: Kafka, tmp_path: Path) -> None:
    """A successor may take it for dead; with another epoch it writes what it has, once."""
    with (
        Upstream("--rate", "1000", "--connects", "1000") as upstream,
        Connector(tmp_path, kafka, {STREAM: stream(upstream.url, override=RESUME)}) as connector,
    ):
        connector.create_topics().start()
        kafka.publish(STREAM, {"track": ["kafka"]})
        for least in (100, 200, 300):
            eventually(lambda least=least: len(kafka.delivered()) > least, "a flow")
            before = len(kafka.delivered())
            fence({"bootstrap.servers": kafka.bootstrap, "log_level": 0}, f"{connector.group}-test")
            eventually(lambda before=before: len(kafka.delivered()) > before + 50, "the flow goes on")
        assert 'verdict="fenced"' in connector.ops("/metrics")[1]
        await_complete(kafka, upstream)
        assert len(upstream.connections()) == 1, "the stream is read on meanwhile"
        assert connector.stop()[0] == 0
