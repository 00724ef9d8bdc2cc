"""Rights that are taken away from a running connector, and given back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from harness import STREAM, Connector, Kafka, Upstream, await_complete, eventually, stream
from kafka import Broker

RESUME = {"resume": {"parameter": "since_seq", "cursor": "/seq"}}

AUTHORIZED = """
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=true
"""


@pytest.mark.skipif(shutil.which("java") is None, reason="starts a broker of its own, which needs Java")
def test_a_right_that_is_given_back_lets_the_flow_go_on(tmp_path: Path) -> None:
    """Without a restart, and with nothing lost; meanwhile not ready, with what Kafka says."""
    broker = Broker(tmp_path / "kafka", more=AUTHORIZED)
    kafka = Kafka(broker.bootstrap)
    prefix = kafka.topics.prefix
    rights = {
        "TOPIC_AUTHORIZATION_FAILED": (ResourceType.TOPIC, kafka.topics.of("statuses"), AclOperation.WRITE),
        "TRANSACTIONAL_ID_AUTHORIZATION_FAILED": (
            ResourceType.TRANSACTIONAL_ID,
            f"{prefix}-connector-test",
            AclOperation.WRITE,
        ),
        "GROUP_AUTHORIZATION_FAILED": (ResourceType.GROUP, f"{prefix}-connector", AclOperation.READ),
    }
    try:
        with (
            Upstream("--rate", "200", "--connects", "1000") as upstream,
            Connector(tmp_path, kafka, {STREAM: stream(upstream.url, override=RESUME)}) as connector,
        ):
            connector.create_topics().start()
            kafka.publish(STREAM, {"track": ["kafka"]})
            eventually(lambda: len(kafka.delivered()) > 50, "a flow")
            for code, (kind, name, operation) in rights.items():
                with _denied(kafka, kind, name, operation):
                    told = f"writer: fatal: {code}"
                    eventually(lambda text=told: text in connector.ops("/readyz")[1], told)
                    if kind is ResourceType.GROUP:
                        told = f"lease: {code}"
                        eventually(lambda text=told: text in connector.ops("/readyz")[1], told)
                    if kind is ResourceType.TOPIC:  # further attempts fail in another way
                        attempts = len(connector.logged("writer.recovered"))
                        eventually(
                            lambda least=attempts + 3: len(connector.logged("writer.recovered")) >= least,
                            "three more attempts",
                        )
                        assert told in connector.ops("/readyz")[1]
                eventually(connector.is_ready, f"ready again after {code}")
            await_complete(kafka, upstream)
            assert connector.stop()[0] == 0
            # What lasts is said once, in few words of its own, and never without the reason.
            said = [
                line["trouble"] for line in connector.logged("health.degraded") if line["part"] == "writer"
            ]
            assert len(said) < 10
            assert not any("_INCONSISTENT" in trouble for trouble in said)
            assert len(connector.logged("lease.poll_failed")) == 1
    finally:
        broker.stop()


@contextmanager
def _denied(kafka: Kafka, kind: ResourceType, name: str, operation: AclOperation) -> Iterator[None]:
    """Take a right away from everybody while the block runs."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap, "log_level": 0})
    place = (kind, name, ResourcePatternType.LITERAL)
    denial = AclBinding(*place, "User:ANONYMOUS", "*", operation, AclPermissionType.DENY)
    for future in admin.create_acls([denial]).values():
        future.result()
    yield
    anything = AclBindingFilter(*place, None, None, AclOperation.ANY, AclPermissionType.ANY)
    for future in admin.delete_acls([anything]).values():
        assert len(list(future.result())) == 1
