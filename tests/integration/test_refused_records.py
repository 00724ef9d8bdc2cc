"""Records that Kafka refuses for what they are: each becomes a dead letter, and all others arrive."""

from __future__ import annotations

import base64
import hashlib
import threading
import uuid
from pathlib import Path
from random import Random

from confluent_kafka import Producer
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)
from harness import OK_HEADERS, STREAM, Connector, Kafka, ScriptedUpstream, announced, eventually, stream

LIMIT_BYTES = 20_000
COPY_BYTES = 64 * 1024


def status(number: int, size: int = 1000) -> bytes:
    """Return a status of about that size, which compression does not make shorter."""
    text = base64.b64encode(Random(number).randbytes(size * 3 // 4))
    return b'{"id_str":"%d","text":"%s"}' % (number, text)


def test_statuses_above_a_limit_that_was_lowered_become_dead_letters(kafka: Kafka, tmp_path: Path) -> None:
    """While the connector runs; what stood beside them arrives, and once the limit is raised, all does."""
    before = [status(number) for number in range(20)]
    # Together the small ones are above the limit, too: a batch is refused as a record is.
    during = [status(number) for number in range(100, 300)]
    large = {
        place: status(1000 + place, size) for place, size in {0: 30_000, 70: 200_000, 71: 25_000}.items()
    }
    for place, body in large.items():
        during.insert(place, body)
    after = [status(2000, 200_000), status(2001)]
    lowered, raised = threading.Event(), threading.Event()
    with (
        ScriptedUpstream(
            [
                OK_HEADERS,
                *map(announced, before),
                lowered,
                *map(announced, during),
                raised,
                *map(announced, after),
            ]
        ) as upstream,
        Connector(tmp_path, kafka, {STREAM: stream(upstream.url)}) as connector,
    ):
        connector.create_topics().start()
        kafka.publish(STREAM, {"track": ["kafka"]})
        eventually(lambda: len(kafka.delivered()) == len(before), "what is small enough")
        _limit(kafka, LIMIT_BYTES)
        lowered.set()
        small = [body for body in during if body not in large.values()]
        eventually(
            lambda: len(kafka.delivered()) == len(before) + len(small), "what stood beside the large ones"
        )
        eventually(connector.is_ready, "ready")
        _limit(kafka, 1 << 21)
        raised.set()
        eventually(lambda: len(kafka.delivered()) == len(before) + len(small) + len(after), "all again")
        assert 'connector_dead_letters_total{reason="refused_by_kafka"} 3.0' in connector.ops("/metrics")[1]
        assert connector.stop()[0] == 0

    delivered = sorted(kafka.delivered(), key=lambda one: one.seq)
    assert [one.value for one in delivered] == [*before, *small, *after]
    assert [one.seq for one in delivered] == list(range(1, len(delivered) + 1))
    letters = kafka.records("dlq")
    assert [letter.key() for letter in letters] == [b"1000", b"1070", b"1071"]
    for letter, body in zip(letters, large.values(), strict=True):
        headers = dict(letter.headers())
        assert letter.value() == body[:COPY_BYTES]
        assert headers.pop("cut", None) == (b"%d" % len(body) if len(body) > COPY_BYTES else None)
        assert b"MSG_SIZE_TOO_LARGE" in headers.pop("detail")
        assert headers == {
            "reason": b"refused_by_kafka",
            "origin": b"upstream",
            "stream": STREAM.encode(),
            "sha256": hashlib.sha256(body).hexdigest().encode(),
        }


def _limit(kafka: Kafka, limit_bytes: int) -> None:
    """Set the longest batch that the output topic takes, and wait until the broker goes by it."""
    limit = ConfigEntry("max.message.bytes", str(limit_bytes), incremental_operation=AlterConfigOpType.SET)
    topic = ConfigResource(ResourceType.TOPIC, kafka.topics.of("statuses"), incremental_configs=[limit])
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap, "log_level": 0})
    for future in admin.incremental_alter_configs([topic]).values():
        future.result()
    eventually(lambda: _takes(kafka, limit_bytes // 2), "room for what is below")
    eventually(lambda: not _takes(kafka, limit_bytes + 1000), "no room for what is above")


def _takes(kafka: Kafka, size: int) -> bool:
    """Whether the output topic takes a record of that size; it is never committed."""
    producer = Producer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "transactional.id": uuid.uuid4().hex,
            "message.max.bytes": 10_000_000,
            "log_level": 0,
        }
    )
    refused: list[object] = []
    producer.init_transactions()
    producer.begin_transaction()
    producer.produce(
        kafka.topics.of("statuses"),
        bytes(size),
        on_delivery=lambda error, _: refused.append(error),
    )
    producer.flush()
    producer.abort_transaction()
    return all(error is None for error in refused)  # to compare one with None breaks the client
