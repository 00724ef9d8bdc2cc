"""The connector is killed at named points of a transaction's life, and goes on as if nothing had happened.

`crash_runner` does the killing from inside the process. What the broker holds afterwards, before the next
process mends anything, shows that the point was the one that its name says.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from crash_runner import HALF, Point
from harness import STREAM, Connector, Delivered, Kafka, Upstream, await_complete, eventually, stream

RUNNER = str(Path(__file__).with_name("crash_runner.py"))
RESUME = {"resume": {"parameter": "since_seq", "cursor": "/seq"}}
NTH = 8
"""Which transaction is hit, of those that carry statuses: the stream flows, nothing is special any more."""

HOLD_UP_S = 10
"""Less than it takes the broker to end a transaction that nobody else ends."""

UNWRITTEN = {Point.BEFORE_BEGIN, Point.AFTER_BEGIN, Point.DURING_INIT, Point.DURING_RESTORE}
"""Nothing of the transaction exists."""

OPEN = {Point.HALFWAY, Point.BEFORE_POSITION, Point.AFTER_FLUSH, Point.BEFORE_COMMIT}
"""What the transaction wrote is in the log, and nobody who reads committed records sees it."""

COMMITTED = {Point.DURING_COMMIT, Point.AFTER_COMMIT, Point.RECOVERING, Point.RECOVERED, Point.REPEATED}
"""The transaction is visible, though its writer never knew."""

ONCE = [point for point in Point if point not in {Point.DURING_INIT, Point.DURING_RESTORE}]
TWICE = [
    (Point.BEFORE_COMMIT, Point.DURING_INIT),  # it was about to end the first one's transaction
    (Point.BEFORE_COMMIT, Point.DURING_RESTORE),
    (Point.DURING_COMMIT, Point.DURING_RESTORE),
    (Point.BEFORE_COMMIT, Point.BEFORE_COMMIT),  # the second writes what the first wrote
]


@pytest.mark.parametrize(
    "points",
    [*((point,) for point in ONCE), *TWICE],
    ids="_then_".join,
)
def test_killed_it_loses_and_doubles_nothing(points: tuple[Point, ...], kafka: Kafka, tmp_path: Path) -> None:
    """The topic equals the ledger, `seq` has no hole, and the position says how far the topic goes."""
    with (
        Upstream("--rate", "400", "--connects", "1000") as upstream,
        Connector(
            tmp_path,
            kafka,
            {STREAM: stream(upstream.url, override=RESUME)},
            session_timeout_s=30,  # a slow machine shall not add a lost lease to the story
            delivery={"commit_interval_s": 0.1},  # several statuses each
        ) as connector,
    ):
        connector.create_topics()
        kafka.publish(STREAM, {"track": ["kafka", "python"]})
        for number, point in enumerate(points):
            # A second process need not get far: its first statuses are the ones sent again.
            killed(connector, kafka, point, nth=1 if number else NTH, marker=tmp_path / f"marker-{number}")
        before = len(upstream.connections())
        connector.start()
        eventually(lambda: flows_again(upstream, before), "caught up, and a flow again")
        delivered = await_complete(kafka, upstream)
        assert connector.stop()[0] == 0
        assert kafka.position()["seq"] == len(delivered)
        first, *others = [one["since_seq"] for one in upstream.connections()]
        assert first is None
        assert others
        assert None not in others
        assert list(kafka.answers().values()) == [["accepted", "applied"]]


def flows_again(upstream: Upstream, before: int) -> bool:
    """Whether a connection newer than the first *before* has brought what was missed, and then some."""
    newest = upstream.connections()[-1]
    return newest["id"] > before and newest["last_seq"] > newest["live_seq"] + 50


def killed(connector: Connector, kafka: Kafka, point: Point, nth: int, marker: Path) -> None:
    """Start the connector, let it die at *point*, and look at what it left behind."""
    topics = (kafka.topics.of("statuses"), kafka.topics.of("positions"))
    connector.start(RUNNER, point, str(nth), str(marker), *topics)
    assert connector.ended() == -9
    kafka.bury(connector.group)
    last_words = json.loads(marker.read_text())
    assert last_words["point"] == point
    keys = set(last_words["keys"])
    # A commit is answered before all partitions have its marker, so what it wrote shows up bit by bit.
    delivered = eventually(
        lambda: settled(kafka, keys if point in COMMITTED else set()),
        "a topic without a hole, and a position that counts it",
        HOLD_UP_S,
    )
    visible = {one.key for one in delivered}
    hidden = {one.key().decode() for one in kafka.records("statuses", "read_uncommitted")} - visible
    assert len(delivered) >= nth - 1
    if point in UNWRITTEN:
        assert not keys
    elif point in COMMITTED:
        assert keys
    else:
        assert keys
        assert not keys & visible
    if point in OPEN:
        assert keys <= hidden
        assert kafka.holds_up_readers("statuses")
    elif point is not Point.BEFORE_FLUSH:  # which may have sent some, or nothing
        eventually(lambda: not kafka.holds_up_readers("statuses"), "nothing is left open", HOLD_UP_S)
    if point is Point.HALFWAY:
        assert len(keys) == HALF


def settled(kafka: Kafka, keys: set[str]) -> list[Delivered]:
    """Return the topic once it has *keys*, without a hole, and the position counts it; else nothing."""
    position = kafka.position().get("seq", 0)
    delivered = kafka.delivered()
    is_whole = sorted(one.seq for one in delivered) == list(range(1, position + 1))
    return delivered if is_whole and keys <= {one.key for one in delivered} else []
