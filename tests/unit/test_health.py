"""What is wrong is known at any time, and said once per change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from connector.ops.health import Health


@pytest.fixture
def said() -> Iterator[list[Any]]:
    with capture_logs() as logs:
        yield logs


DEGRADED = {"event": "health.degraded", "log_level": "warning", "part": "kafka", "trouble": "no broker"}
RECOVERED = {"event": "health.recovered", "log_level": "info", "part": "kafka"}


def test_nothing_is_wrong_at_first(said):
    health = Health()
    health.report("kafka", None)
    assert health.troubles() == []
    assert said == []


def test_a_trouble_is_said_once_however_often_it_is_reported(said):
    health = Health()
    for _ in range(3):
        health.report("kafka", "no broker")
        assert health.troubles() == ["kafka: no broker"]
    assert said == [DEGRADED]


def test_a_recovery_is_said_once(said):
    health = Health()
    health.report("kafka", "no broker")
    for _ in range(3):
        health.report("kafka", None)
        assert health.troubles() == []
    assert said == [DEGRADED, RECOVERED]


def test_a_trouble_that_returns_is_said_again(said):
    health = Health()
    for trouble in ("no broker", None, "no broker"):
        health.report("kafka", trouble)
    assert said == [DEGRADED, RECOVERED, DEGRADED]


def test_another_trouble_of_the_same_part_takes_its_place(said):
    health = Health()
    health.report("kafka", "no broker")
    health.report("kafka", "fenced")
    assert health.troubles() == ["kafka: fenced"]
    assert said == [DEGRADED, {**DEGRADED, "trouble": "fenced"}]


def test_parts_are_troubled_by_themselves(said):
    health = Health()
    health.report("kafka", "no broker")
    health.report("lease", "not assigned")
    health.report("kafka", None)
    assert health.troubles() == ["lease: not assigned"]
    assert len(said) == 3


def test_checks_are_asked_anew_each_time_and_not_logged(said):
    health, found = Health(), list[str]()
    health.check(lambda: found)
    health.check(lambda: iter(["always"]))
    assert health.troubles() == ["always"]
    found.append("stream tech: not live")
    health.report("kafka", "no broker")
    assert health.troubles() == ["kafka: no broker", "stream tech: not live", "always"]
    assert said == [DEGRADED]
