"""Everything counted can be scraped, under the names that dashboards use."""

from __future__ import annotations

from collections import Counter

import pytest
from prometheus_client.parser import text_string_to_metric_families

from connector.ops.metrics import Metrics

COUNTERS = {
    "connector_upstream_bytes": {"stream"},
    "connector_discarded_bytes": {"stream", "reason"},
    "connector_connections": {"stream"},
    "connector_connections_lost": {"stream", "kind"},
    "connector_handovers": {"stream"},
    "connector_duplicates_suppressed": {"stream"},
    "connector_statuses_committed": {"stream"},
    "connector_dead_letters": {"reason"},
    "connector_transactions_failed": {"code", "verdict"},
}
GAUGES = {"connector_promise", "connector_stream_live", "connector_stream_refused"}


def scraped(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return what a scrape tells: (name, label value, …) to value."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
    }


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    metrics.received("tech", 100, Counter({"oversize": 7, "no_length": 3}))
    metrics.received("tech", 50, Counter())
    metrics.connected("tech")
    metrics.live("tech", is_live=True)
    metrics.refused("tech", is_refused=True)
    metrics.lost("tech", "stalled", Counter(cut=20))
    metrics.lost("tech", "disconnected", Counter())
    metrics.handed_over("tech")
    metrics.suppressed("tech", 4)
    metrics.promised("tech", "exactly_once")
    metrics.committed(Counter({"tech": 5, "news": 6}), Counter({"not_json": 2}), 0.03)
    metrics.failed("_TIMED_OUT", "unknown")
    return metrics


def test_every_metric_has_its_name_type_labels_and_help(metrics):
    families = {
        family.name: family for family in text_string_to_metric_families(metrics.exposition().decode())
    }
    assert families.keys() == {*COUNTERS, *GAUGES, "connector_transaction_seconds"}
    for name, labels in COUNTERS.items():
        assert families[name].type == "counter"
        assert families[name].documentation
        for sample in families[name].samples:
            assert sample.name == f"{name}_total", "no second series per counter"
            assert sample.labels.keys() == labels
    assert all(families[name].type == "gauge" for name in GAUGES)
    assert families["connector_transaction_seconds"].type == "histogram"


def test_every_count_adds_up(metrics):
    counted = scraped(metrics)
    assert counted["connector_upstream_bytes_total", "tech"] == 150
    assert counted["connector_discarded_bytes_total", "oversize", "tech"] == 7
    assert counted["connector_discarded_bytes_total", "no_length", "tech"] == 3
    assert counted["connector_discarded_bytes_total", "cut", "tech"] == 20
    assert counted["connector_connections_total", "tech"] == 1
    assert counted["connector_connections_lost_total", "stalled", "tech"] == 1
    assert counted["connector_connections_lost_total", "disconnected", "tech"] == 1
    assert counted["connector_handovers_total", "tech"] == 1
    assert counted["connector_duplicates_suppressed_total", "tech"] == 4
    assert counted["connector_statuses_committed_total", "tech"] == 5
    assert counted["connector_statuses_committed_total", "news"] == 6
    assert counted["connector_dead_letters_total", "not_json"] == 2
    assert counted["connector_transactions_failed_total", "_TIMED_OUT", "unknown"] == 1
    assert counted["connector_promise", "exactly_once", "tech"] == 1
    assert counted["connector_transaction_seconds_count",] == 1
    assert counted["connector_transaction_seconds_sum",] == 0.03


def test_a_stream_is_live_until_it_is_not(metrics):
    assert scraped(metrics)["connector_stream_live", "tech"] == 1
    metrics.live("tech", is_live=False)
    assert scraped(metrics)["connector_stream_live", "tech"] == 0


def test_a_stream_is_refused_until_it_is_not(metrics):
    assert scraped(metrics)["connector_stream_refused", "tech"] == 1
    metrics.refused("tech", is_refused=False)
    assert scraped(metrics)["connector_stream_refused", "tech"] == 0


def test_a_gauge_is_read_at_every_scrape():
    metrics, level = Metrics(), [1.0]
    metrics.gauge("outbox_bytes", "What waits to be written.", lambda: level[0])
    assert scraped(metrics)["connector_outbox_bytes",] == 1
    level[0] = 2.5
    assert scraped(metrics)["connector_outbox_bytes",] == 2.5


def test_two_registries_share_nothing(metrics):
    assert ("connector_connections_total", "tech") in scraped(metrics)
    assert ("connector_connections_total", "tech") not in scraped(Metrics())
