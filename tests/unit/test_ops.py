"""Health is said once per change; metrics count what happened."""

from __future__ import annotations

from collections import Counter

from structlog.testing import capture_logs

from connector.ops.health import Health
from connector.ops.metrics import Metrics


def test_health_is_said_once_per_change() -> None:
    health = Health()
    with capture_logs() as logs:
        for trouble in (None, "gone", "gone", "gone", "refused", None, None):
            health.report("kafka", trouble)
    assert [(line["event"], line.get("trouble")) for line in logs] == [
        ("health.degraded", "gone"),
        ("health.degraded", "refused"),
        ("health.recovered", None),
    ]


def test_readiness_collects_reports_and_checks() -> None:
    health = Health()
    assert health.troubles() == []
    health.report("kafka", "gone")
    health.check(lambda: ["stream tech: no live connection"])
    assert health.troubles() == ["kafka: gone", "stream tech: no live connection"]


def test_metrics_are_named_by_noun_and_unit() -> None:
    metrics = Metrics()
    metrics.gauge("outbox_bytes", "Waiting.", lambda: 7.0)
    metrics.received("tech", 100, Counter(oversize=3))
    metrics.connected("tech")
    metrics.live("tech", is_live=True)
    metrics.lost("tech", 5)
    metrics.handed_over("tech", 2)
    metrics.committed(Counter(tech=4), Counter(not_json=1), 0.02)
    metrics.failed("_TIMED_OUT")
    told = metrics.exposition().decode()
    for line in (
        "connector_outbox_bytes 7.0",
        'connector_upstream_bytes_total{stream="tech"} 100.0',
        'connector_discarded_bytes_total{reason="oversize",stream="tech"} 3.0',
        'connector_discarded_bytes_total{reason="cut",stream="tech"} 5.0',
        'connector_connections_total{stream="tech"} 1.0',
        'connector_stream_live{stream="tech"} 1.0',
        'connector_connections_lost_total{stream="tech"} 1.0',
        'connector_handovers_total{stream="tech"} 1.0',
        'connector_duplicates_suppressed_total{stream="tech"} 2.0',
        'connector_statuses_committed_total{stream="tech"} 4.0',
        'connector_dead_letters_total{reason="not_json"} 1.0',
        'connector_transactions_failed_total{code="_TIMED_OUT"} 1.0',
        "connector_transaction_seconds_count 1.0",
    ):
        assert line in told.splitlines()
