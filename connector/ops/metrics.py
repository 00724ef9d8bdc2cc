"""Metrics, named ``connector_<noun>_<unit>``. Counted per chunk and per transaction, never per status."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from connector.model import StreamId

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """All of one process's metrics, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series per counter, which nobody asks for
        self._registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"connector_{name}", text, labels, registry=self._registry)

        self._wire = counter("upstream_bytes", "Bytes received from the upstream.", "stream")
        self._discarded = counter("discarded_bytes", "Bytes that could not be used.", "stream", "reason")
        self._connections = counter("connections", "Connections that brought their first byte.", "stream")
        self._losses = counter("connections_lost", "Connections and attempts lost.", "stream", "kind")
        self._handovers = counter("handovers", "Restarts without a gap.", "stream")
        self._suppressed = counter(
            "duplicates_suppressed", "Statuses that came again, and were dropped.", "stream"
        )
        self._live = Gauge(
            "connector_stream_live",
            "1 while the stream runs here and its connection lives.",
            ["stream"],
            registry=self._registry,
        )
        self._refused = Gauge(
            "connector_stream_refused",
            "1 while the upstream refuses the stream: somebody has to act.",
            ["stream"],
            registry=self._registry,
        )
        self._statuses = counter("statuses_committed", "Statuses visible on the topic.", "stream")
        self._dead_letters = counter("dead_letters", "Records on the dead-letter topic.", "reason")
        self._failures = counter("transactions_failed", "Transactions not committed.", "code", "verdict")
        self._promise = Gauge(
            "connector_promise",
            "1 for what is promised of the stream; docs/guarantees.md says what it means.",
            ["stream", "promise"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "connector_transaction_seconds",
            "From the beginning of a transaction to the commit's answer.",
            buckets=_SECONDS,
            registry=self._registry,
        )

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a gauge that is read when somebody scrapes."""
        Gauge(f"connector_{name}", text, registry=self._registry).set_function(read)

    def received(self, stream: StreamId, wire_bytes: int, discarded: Count[str]) -> None:
        """Count one chunk."""
        self._wire.labels(stream).inc(wire_bytes)
        self._discard(stream, discarded)

    def connected(self, stream: StreamId) -> None:
        """Count a connection that came to life."""
        self._connections.labels(stream).inc()

    def live(self, stream: StreamId, *, is_live: bool) -> None:
        """Say whether the stream's connection lives."""
        self._live.labels(stream).set(is_live)

    def refused(self, stream: StreamId, *, is_refused: bool) -> None:
        """Say whether the upstream refuses the stream."""
        self._refused.labels(stream).set(is_refused)

    def lost(self, stream: StreamId, kind: str, discarded: Count[str]) -> None:
        """Count a lost connection or attempt, and the bytes that went with it."""
        self._losses.labels(stream, kind).inc()
        self._discard(stream, discarded)

    def handed_over(self, stream: StreamId) -> None:
        """Count a restart by overlap."""
        self._handovers.labels(stream).inc()

    def suppressed(self, stream: StreamId, count: int) -> None:
        """Count statuses that came again."""
        self._suppressed.labels(stream).inc(count)

    def committed(self, statuses: Count[StreamId], dead_letters: Count[str], seconds: float) -> None:
        """Count one transaction."""
        self._seconds.observe(seconds)
        for stream, count in statuses.items():
            self._statuses.labels(stream).inc(count)
        for reason, count in dead_letters.items():
            self._dead_letters.labels(reason).inc(count)

    def failed(self, code: str, verdict: str) -> None:
        """Count a transaction that did not commit."""
        self._failures.labels(code, verdict).inc()

    def promised(self, stream: StreamId, promise: str) -> None:
        """Say what is promised of a stream."""
        self._promise.labels(stream, promise).set(1)

    def _discard(self, stream: StreamId, discarded: Count[str]) -> None:
        for reason, size in discarded.items():
            self._discarded.labels(stream, reason).inc(size)

    def exposition(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)
