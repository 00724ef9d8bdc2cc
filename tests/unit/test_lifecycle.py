"""What is told about a stream's connections, how often, and what it counts."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from itertools import pairwise

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


def written(at: float) -> str:
    """Return a moment as events have it."""
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


class Told:
    """A lifecycle on a clock that stands still, and one side of it."""

    def __init__(self, resume: Resume | None = None, *, cursor: str | None = None, since=None) -> None:
        self.metrics = Metrics()
        self.wall = WALL
        self.lifecycle = Lifecycle(stream="tech", metrics=self.metrics, resume=resume, wall=lambda: self.wall)
        self.side = Side(3, lambda _: None, asked=Ask(PredicateSet.of({"track": ["kafka"]}), cursor, since))

    def gaps(self, at: float) -> list[dict[str, object]]:
        """Return the gaps told when what the side asked for comes into force, without what is in each."""
        _, events = self.lifecycle.in_force(at, self.side, {})
        assert {event.type for event in events} <= {"stream.gap"}
        return [{name: event.data[name] for name in ("from", "to", "reason")} for event in events]

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


BY_CURSOR = Resume(parameter="since_seq", cursor="/seq")
BY_TIME = Resume(parameter="since", since="rfc3339")


@pytest.mark.parametrize(("resume", "cursor"), [(None, None), (BY_CURSOR, None), (BY_CURSOR, "")])
def test_a_gap_says_from_when_to_when_statuses_may_be_missing(resume, cursor):
    """Where the upstream cannot resume, or there was nothing to resume from."""
    told = Told(resume, cursor=cursor)
    told.lifecycle.dark(100.0, "reset")
    told.wall += 12.3456
    details, (gap,) = told.lifecycle.in_force(112.3456, told.side, {"overlap_s": 1})
    assert details == {"connection": 3, "without_connection_s": 12.346, "overlap_s": 1}
    assert gap.type == "stream.gap"
    assert gap.data == {
        "connection": 3,
        "predicates": told.side.asked.predicates.version,
        "from": "2027-01-15T08:00:00.000Z",
        "to": "2027-01-15T08:00:12.345Z",
        "reason": "reset",
    }
    details, gaps = told.lifecycle.in_force(113.0, told.side, {})
    assert (details["without_connection_s"], gaps) == (0.0, []), "told once"


@pytest.mark.parametrize(
    ("resume", "asked"), [(BY_CURSOR, {"cursor": "7"}), (BY_TIME, {"since": WALL}), (BY_TIME, {"since": 0.0})]
)
def test_an_outage_that_the_upstream_makes_good_is_no_gap(resume, asked):
    told = Told(resume, **asked)
    told.lifecycle.dark(100.0, "reset")
    told.wall += 1_000_000
    details, gaps = told.lifecycle.in_force(1_000_100.0, told.side, {})
    assert (details["without_connection_s"], gaps) == (1_000_000, [])
    told.side.asked = Ask(told.side.asked.predicates)
    assert told.gaps(1_000_200.0) == [], "it is over all the same"


@pytest.mark.parametrize("silent_s", [0.0, 20.0])
def test_an_outage_beyond_what_the_upstream_keeps_is_a_gap_up_to_there(silent_s):
    told = Told(BY_CURSOR.model_copy(update={"reaches_back_s": 60.0}), cursor="7")
    told.lifecycle.dark(100.0, "reset", silent_s)
    told.wall += 60 - silent_s
    assert told.gaps(160.0) == [], "just within reach"
    told.wall = WALL
    told.lifecycle.dark(100.0, "reset", silent_s)
    told.wall += 75 - silent_s
    assert told.gaps(175.0) == [
        {"from": written(WALL - silent_s), "to": written(WALL + 15 - silent_s), "reason": "reset"}
    ]


def test_a_side_that_was_connected_before_the_other_fell_silent_has_had_all():
    told = Told()
    told.side.connected_at = 50.0
    told.lifecycle.dark(100.0, "stalled", 49.0)
    assert told.gaps(101.0) == []
    told.lifecycle.dark(100.0, "stalled", 51.0)
    assert told.gaps(101.0) != []


def test_no_gap_where_no_connection_was_wanted(told):
    told.lifecycle.dark(100.0, "reset")
    told.lifecycle.forget_dark()
    assert told.lifecycle.in_force(200.0, told.side, {})[1] == []


# --- After a restart ----------------------------------------------------------------------------


def test_a_restart_is_a_gap_from_when_the_upstream_was_heard_last(told):
    told.lifecycle.restarted(1000.0, WALL - 120)
    told.wall += 3
    details, (gap,) = told.lifecycle.in_force(1003.0, told.side, {})
    assert details["without_connection_s"] == 123
    assert (gap.data["from"], gap.data["to"]) == (written(WALL - 120), written(WALL + 3))


def test_a_restart_is_no_gap_where_the_upstream_makes_it_good():
    told = Told(BY_CURSOR, cursor="7")
    told.lifecycle.restarted(1000.0, WALL - 120)
    assert told.gaps(1003.0) == []


def test_a_restart_beyond_what_the_upstream_keeps_is_a_gap_up_to_there():
    told = Told(BY_TIME.model_copy(update={"reaches_back_s": 60.0}), since=WALL - 120)
    told.lifecycle.restarted(1000.0, WALL - 120)
    told.wall += 3
    ((begin, end),) = ((gap["from"], gap["to"]) for gap in told.gaps(1003.0))
    assert (begin, end) == (written(WALL - 120), written(WALL - 57))


def test_a_clock_that_went_back_makes_no_restart_last_less_than_no_time(told):
    told.lifecycle.restarted(1000.0, WALL + 50)
    assert told.lifecycle.in_force(1000.0, told.side, {})[0]["without_connection_s"] == 0


# --- What the upstream withholds ----------------------------------------------------------------


def test_what_is_withheld_is_told_every_so_often_and_the_counts_add_up(told):
    told.lifecycle.live(told.side)
    counts, gaps = [], []
    for second in range(1, 41):
        told.wall = WALL + second
        for gap in told.lifecycle.received(told.side, Received(Messages(withheld=3 * second), 10)):
            assert (gap.type, gap.data["reason"]) == (
                "stream.gap",
                "withheld by the upstream, which limits its rate",
            )
            counts.append(gap.data["count"])
            gaps.append((gap.data["from"], gap.data["to"]))
    ends = [written(WALL + second) for second in (0, 10, 20, 30, 40)]
    assert counts == [30, 30, 30, 30]
    assert gaps == list(pairwise(ends)), "one follows the other"


def test_what_is_withheld_and_not_told_yet_is_told_when_the_connection_is_lost(told):
    told.lifecycle.live(told.side)
    told.side.live = True
    told.wall += 4
    assert told.lifecycle.withheld(told.side, 7) == []
    told.wall += 1
    gap, lost = told.lifecycle.lost(told.side, Lost("reset", Outcome.NETWORK, 1.0))
    assert (gap.type, lost.type) == ("stream.gap", "connection.disconnected")
    assert (gap.data["from"], gap.data["to"], gap.data["count"]) == (written(WALL), written(WALL + 5), 7)
    assert told.lifecycle.withheld(told.side) == []
    told.lifecycle.live(told.side)
    assert told.lifecycle.withheld(told.side, 2) == []
    (gap,) = told.lifecycle.withheld(told.side)
    assert (gap.data["from"], gap.data["count"]) == (written(WALL + 5), 2), "each connection counts anew"


def test_nothing_withheld_is_no_gap(told):
    told.lifecycle.live(told.side)
    told.wall += 100
    assert told.lifecycle.withheld(told.side, 0) == []
    assert told.lifecycle.withheld(told.side) == []


def test_a_count_that_goes_back_counts_nothing_twice(told):
    """Servers behind one address count each for itself, and their notices overtake one another."""
    told.lifecycle.live(told.side)
    counts = []
    for said in (5, 3, 5, 9, 8):
        told.wall += 20
        counts += [gap.data["count"] for gap in told.lifecycle.withheld(told.side, said)]
    assert counts == [5, 4]
    counts = [
        [gap.data["count"] for gap in told.lifecycle.withheld(told.side, said)] for said in (12, 15, 13, None)
    ]
    assert counts == [[3], [], [], [3]]


# --- Notices and bytes --------------------------------------------------------------------------


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
