"""What is told about a stream's connections, how often, and what it counts."""

from __future__ import annotations

from collections import Counter

import pytest
from prometheus_client.parser import text_string_to_metric_families

from connector.lifecycle import Lifecycle
from connector.model import PredicateSet
from connector.ops.metrics import Metrics
from connector.side import Side
from connector.stream.dialect import Resume
from connector.stream.messages import Messages, Notice
from connector.stream.policy import Outcome
from connector.stream.reader import Ask, Lost, Received

WALL = 1_800_000_000.0


class Told:
    """A lifecycle on a clock that stands still, and one side of it."""

    def __init__(self, resume: Resume | None = None, cursor: str | None = None) -> None:
        self.metrics = Metrics()
        self.wall = WALL
        self.lifecycle = Lifecycle(stream="tech", metrics=self.metrics, resume=resume, wall=lambda: self.wall)
        self.side = Side(3, lambda _: None, asked=Ask(PredicateSet.of({"track": ["kafka"]}), cursor))

    def lose(self, outcome: Outcome = Outcome.NETWORK, reason: str = "reset", **more) -> list[str]:
        """Return the types of what is told; the side is in trouble then."""
        events = self.lifecycle.lost(self.side, Lost(reason, outcome, 2.5, **more))
        self.side.live, self.side.trouble = False, reason
        return [event.type for event in events]

    def counted(self, name: str, **labels: str) -> float:
        families = text_string_to_metric_families(self.metrics.exposition().decode())
        found = [
            one.value
            for family in families
            for one in family.samples
            if one.name == name and one.labels == labels
        ]
        return sum(found)


@pytest.fixture
def told() -> Told:
    return Told()


def test_the_same_trouble_is_told_once(told):
    assert told.lose() == ["connection.disconnected"]
    assert told.lose() == []
    assert told.lose(reason="refused") == ["connection.disconnected"]
    assert told.counted("connector_connections_lost_total", stream="tech", kind="disconnected") == 3


def test_what_was_live_is_told_again_whatever_the_reason(told):
    told.lose()
    told.side.live = True
    assert told.lose() == ["connection.disconnected"]


@pytest.mark.parametrize("outcome", [Outcome.RATE_LIMITED, Outcome.REFUSED])
def test_what_somebody_has_to_know_is_told_every_time(told, outcome):
    kind = f"connection.{outcome.value}"
    assert [told.lose(outcome, code="4xx") for _ in range(2)] == [[kind], [kind]]
    (event,) = told.lifecycle.lost(told.side, Lost("why", outcome, 60, code="4xx"))
    assert event.data["until"] == "2027-01-15T08:01:00.000Z"
    assert (event.data["code"], event.data["reason"], event.data["connection"]) == ("4xx", "why", 3)


def test_a_stall_has_a_name_of_its_own(told):
    assert told.lose(is_stall=True) == ["connection.stalled"]
    assert told.counted("connector_connections_lost_total", stream="tech", kind="stalled") == 1


def test_attempts_are_told_once_until_a_connection_lives(told):
    def attempt() -> list[str]:
        events = [*told.lifecycle.connecting(told.side), *told.lifecycle.connected(told.side)]
        return [event.type for event in events]

    both = ["connection.connecting", "connection.connected"]
    assert [attempt(), attempt()] == [both, []]
    assert [event.type for event in told.lifecycle.live(told.side)] == ["connection.live"]
    assert [attempt(), attempt()] == [both, []]


def test_the_state_is_shown(told):
    told.lifecycle.state(is_live=True, is_refused=True)
    assert told.counted("connector_stream_refused", stream="tech") == 1
    assert told.counted("connector_stream_live", stream="tech") == 1
    told.lifecycle.state(is_live=False, is_refused=False)
    assert told.counted("connector_stream_refused", stream="tech") == 0
    assert told.counted("connector_stream_live", stream="tech") == 0


def test_a_gap_begins_with_the_last_byte_of_the_connection_lost_first(told):
    told.lifecycle.dark(100.0, "stalled", 90.0)
    told.wall += 5
    told.lifecycle.dark(105.0, "another reason")
    details, (gap,) = told.lifecycle.in_force(105.0, told.side, {})
    assert details["without_connection_s"] == 5
    assert (gap.data["from"], gap.data["reason"]) == ("2027-01-15T07:58:30.000Z", "stalled")


@pytest.mark.parametrize(
    ("reaches_back_s", "cursor", "end"),
    [(None, None, "12.345"), (None, "", "12.345"), (None, "7", None), (13, "7", None), (5, "7", "07.345")],
)
def test_a_gap_says_from_when_to_when_nothing_can_be_had(reaches_back_s, cursor, end):
    told = Told(Resume(parameter="since", cursor="/id", reaches_back_s=reaches_back_s), cursor)
    told.lifecycle.dark(100.0, "reset")
    told.wall += 12.3456
    details, gaps = told.lifecycle.in_force(112.3456, told.side, {"overlap_s": 1})
    assert details == {"connection": 3, "without_connection_s": 12.346, "overlap_s": 1}
    assert [(gap.data["from"], gap.data["to"]) for gap in gaps] == (
        [] if end is None else [("2027-01-15T08:00:00.000Z", f"2027-01-15T08:00:{end}Z")]
    )


def test_what_the_upstream_withholds_is_a_gap_with_a_count_told_now_and_then(told):
    told.lifecycle.live(told.side)
    counts = []
    for seconds, withheld in [(1, 3), (5, 7), (4, 8), (1, 8), (20, 8), (1, 11)]:
        told.wall += seconds
        counts.append([gap.data["count"] for gap in told.lifecycle.withheld(told.side, withheld)])
    assert counts == [[], [], [8], [], [], [3]]
    told.wall += 1
    assert not told.lifecycle.withheld(told.side, 12)
    assert told.lose() == ["stream.gap", "connection.disconnected"], "the rest of it with the loss"
    assert not told.lifecycle.withheld(told.side), "the next connection counts anew"


def test_what_a_process_before_did_not_commit_is_a_gap(told):
    told.lifecycle.restarted(1000.0, heard_at=WALL - 60)
    _, (gap,) = told.lifecycle.in_force(1003.0, told.side, {})
    assert gap.data["from"] == "2027-01-15T07:59:00.000Z"


def test_a_gap_is_told_once(told):
    told.lifecycle.dark(100.0, "reset")
    _, (gap,) = told.lifecycle.in_force(112.0, told.side, {})
    assert (gap.type, gap.data["reason"]) == ("stream.gap", "reset")
    details, gaps = told.lifecycle.in_force(113.0, told.side, {})
    assert (details["without_connection_s"], gaps) == (0.0, [])


def test_no_gap_where_no_connection_was_wanted(told):
    told.lifecycle.dark(100.0, "reset")
    told.lifecycle.forget_dark()
    assert told.lifecycle.in_force(200.0, told.side, {})[1] == []


def test_useless_bytes_are_told_once_per_reason_and_counted_always(told):
    def receive(**discarded: int) -> list[dict[str, object]]:
        events = told.lifecycle.received(told.side, Received(Messages(), 10, Counter(discarded)))
        return [event.data["bytes"] for event in events]

    assert receive(oversize=5) == [{"oversize": 5}]
    assert receive(oversize=6) == []
    assert receive(oversize=7, no_length=1) == [{"no_length": 1}]
    assert told.counted("connector_discarded_bytes_total", stream="tech", reason="oversize") == 18
    assert told.counted("connector_upstream_bytes_total", stream="tech") == 30


def test_what_the_dialect_drops_on_purpose_is_counted_and_not_told(told):
    assert told.lifecycle.received(told.side, Received(Messages(), 10, Counter(other_event=9))) == []
    assert told.counted("connector_discarded_bytes_total", stream="tech", reason="other_event") == 9


def test_notices_are_passed_on(told):
    notices = [Notice("limit", {"track": 1}), Notice("warning", "text")]
    events = told.lifecycle.received(told.side, Received(Messages(notices=notices), 10))
    assert [(event.data["notice"], event.data["message"]) for event in events] == [
        ("limit", {"track": 1}),
        ("warning", "text"),
    ]


def test_a_spent_budget_is_told_with_its_end(told):
    (event,) = told.lifecycle.deferred(told.side, 30.0)
    assert (event.type, event.data["until"]) == ("connection.deferred", "2027-01-15T08:00:30.000Z")
