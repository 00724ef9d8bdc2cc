"""Topics that somebody deletes under a running connector, and creates again."""

from __future__ import annotations

from pathlib import Path

from confluent_kafka.admin import AdminClient
from harness import STREAM, Connector, Kafka, Upstream, await_complete, eventually, stream

RESUME = {"resume": {"parameter": "since_seq", "cursor": "/seq"}}
DELETED = ("statuses", "events", "dlq")


def test_what_cannot_be_written_waits_until_the_topics_are_there_again(kafka: Kafka, tmp_path: Path) -> None:
    """Not ready meanwhile, with the topics' names; nothing that came after the deletion is missing."""
    with (
        Upstream("--rate", "200", "--connects", "1000") as upstream,
        Connector(tmp_path, kafka, {STREAM: stream(upstream.url, override=RESUME)}) as connector,
    ):
        connector.create_topics().start()
        kafka.publish(STREAM, {"track": ["kafka"]})
        eventually(lambda: len(kafka.delivered()) > 100, "a flow")
        before = await_complete(kafka, upstream)
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap, "log_level": 0})
        names = [kafka.topics.of(purpose) for purpose in DELETED]
        for future in admin.delete_topics(names).values():
            future.result()
        upstream.thaw()
        change = kafka.publish(STREAM, {"track": ["kafka", "python"]})
        bad = kafka.publish(STREAM, b"{")
        told = f"topics: {'; '.join(f'{name}: Broker: Unknown topic or partition' for name in names)}"
        eventually(lambda: told in connector.ops("/readyz")[1], "not ready, with the names")
        eventually(lambda: "writer: " in connector.ops("/readyz")[1], "an attempt to write")
        assert connector.ops("/livez")[0] == 200
        connector.create_topics()
        eventually(connector.is_ready, "ready again")
        eventually(lambda: len(upstream.connections()) == 2, "the change applied")

        published = upstream.freeze()
        gone = {one.key for one in before}

        def is_there() -> bool:
            newest = upstream.connections()[-1]
            there = {one.key for one in kafka.delivered()}
            return newest["last_seq"] == published and upstream.owed().keys() <= there | gone

        eventually(is_there, "everything owed since")
        delivered = kafka.delivered()
        assert sorted(one.seq for one in delivered) == [len(before) + 1 + at for at in range(len(delivered))]
        sent = upstream.sent()
        assert all(sent[one.key] == one.value for one in delivered)
        assert len({one.key for one in delivered} - gone) == len(delivered), "duplicates"
        answers = kafka.answers()
        assert answers[STREAM, change[1]] == ["accepted", "applied"]
        assert answers[STREAM, bad[1]] == ["rejected"]
        assert [letter.value() for letter in kafka.records("dlq")] == [b"{"]
        assert connector.stop()[0] == 0
        lines = [line for line in connector.logged("health.degraded") if line["part"] == "topics"]
        assert len(lines) == 1
