"""What an upstream sends again after a restart, and what it deletes: the topic is right in the end."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from harness import (
    OK_HEADERS,
    STREAM,
    Connector,
    Kafka,
    ScriptedUpstream,
    Upstream,
    announced,
    eventually,
    stream,
)

BACKFILL = {"resume": {"parameter": "backfill_minutes", "since": "minutes_ago", "reaches_back_s": 600}}
RESUME = {"resume": {"parameter": "since_seq", "cursor": "/seq"}}
STATUSES = 12_000
"""Ten minutes of twenty a second."""

COMPACTED_AT_ONCE = {
    "cleanup.policy": "compact",
    "segment.ms": "1",
    "min.cleanable.dirty.ratio": "0.01",
    "max.compaction.lag.ms": "1",
    "delete.retention.ms": "0",
}


def status(number: int) -> bytes:
    return b'{"id_str":"%d","text":"%s"}' % (number, b"x" * 200)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL], ids=lambda one: one.name)
def test_ten_minutes_that_are_sent_again_after_a_restart_are_known(
    signum: signal.Signals, kafka: Kafka, tmp_path: Path
) -> None:
    """The upstream sends all of them anew, whatever it is asked for, then what is new; one was edited."""
    half = threading.Event()
    first = [OK_HEADERS, *map(announced, map(status, range(STATUSES // 2))), half]
    first += map(announced, map(status, range(STATUSES // 2, STATUSES)))
    edited = b'{"id_str":"7","text":"edited"}'
    again = [OK_HEADERS, *map(announced, map(status, range(STATUSES))), announced(edited)]
    again += map(announced, map(status, range(STATUSES, STATUSES + 100)))
    with (
        ScriptedUpstream(first, again) as upstream,
        Connector(tmp_path, kafka, {STREAM: stream(upstream.url, override=BACKFILL)}) as connector,
    ):
        connector.create_topics().start()
        kafka.publish(STREAM, {"track": ["kafka"]})
        eventually(lambda: len(kafka.delivered()) >= STATUSES // 2, "half of them")
        half.set()  # some of the other half is under way when the process ends
        connector.stop(signum)
        connector.start()
        eventually(lambda: len(kafka.delivered()) >= STATUSES + 101, "what is new, and what is not known yet")
        assert connector.stop()[0] == 0
    asked = [_asked(one, "backfill_minutes") for one in upstream.requests]
    assert asked[0] is None, "nothing was heard yet"
    assert 1 <= int(asked[1] or 0) <= 10, "as much as it was away, not more"
    delivered = sorted(kafka.delivered(), key=lambda one: one.seq)
    wanted = [*map(status, range(STATUSES)), edited, *map(status, range(STATUSES, STATUSES + 100))]
    assert [one.value for one in delivered] == wanted
    assert [one.seq for one in delivered] == list(range(1, len(wanted) + 1))
    assert not kafka.events("stream.gap")


def test_deleted_statuses_are_gone_in_the_end_and_no_other(kafka: Kafka, tmp_path: Path) -> None:
    """Deleted before, after and between their copies; over a change and a SIGKILL; compacted at last."""
    topic = kafka.topics.of("statuses")
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap, "log_level": 0})
    admin.create_topics([NewTopic(topic, 1, config=COMPACTED_AT_ONCE)])[topic].result()
    options = ("--rate", "300", "--connects", "1000", "--deletes-every", "10")
    with (
        Upstream(*options) as upstream,
        Connector(tmp_path, kafka, {STREAM: stream(upstream.url, override=RESUME)}) as connector,
    ):
        connector.create_topics().start()
        kafka.publish(STREAM, {"track": ["kafka", "python"]})
        eventually(lambda: _newest_seq(kafka) > 300, "a flow")
        connector.stop(signal.SIGKILL)
        connector.start()
        kafka.publish(STREAM, {"track": ["kafka", "python", "rust"]})
        eventually(lambda: len(kafka.events("predicates.applied")) == 2, "the change applied")
        eventually(lambda: _newest_seq(kafka) > 1500, "a flow")
        published = upstream.freeze()
        eventually(lambda: upstream.connections()[-1]["last_seq"] == published, "all of it sent")
        assert connector.stop()[0] == 0  # all that was received is committed
        deleted, owed, sent = upstream.deleted(), upstream.owed(), upstream.sent()
    must_go = {key for key, is_owed in deleted.items() if is_owed}
    state = {message.key().decode(): message.value() for message in kafka.records("statuses")}
    assert len(must_go & sent.keys()) > 20
    assert {key for key in must_go if state.get(key) is not None} == set(), "deleted ones that are there"
    there = {key for key, body in state.items() if body is not None}
    assert owed.keys() - deleted.keys() <= there, "missing, or gone and not deleted"
    assert all(state[key] == sent[key] for key in state if state[key] is not None)

    def is_compacted() -> bool:
        # The newest segment is never compacted: what follows it makes it an older one.
        producer.produce(topic, b"", "end")
        producer.flush()
        keys = [message.key().decode() for message in kafka.records("statuses")]
        kept = [key for key in keys if key != "end"]
        return not must_go & set(kept) and len(set(kept)) == len(kept)

    producer = Producer({"bootstrap.servers": kafka.bootstrap, "log_level": 0})
    eventually(is_compacted, "compaction leaves each status once, and no deleted one")
    left = {message.key().decode(): message.value() for message in kafka.records("statuses")}
    assert {key: state[key] for key in there}.items() <= left.items()


def _asked(request: bytes, name: str) -> str | None:
    form = parse_qs(request.partition(b"\r\n\r\n")[2].decode())
    return form.get(name, [None])[0]


def _newest_seq(kafka: Kafka) -> int:
    return max((int(dict(message.headers())["seq"]) for message in kafka.records("statuses")), default=0)
