"""What is promised follows from how it is written and how the upstream goes on; the manual says it too."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from connector.delivery.promise import promise
from connector.settings import StreamSettings

GUARANTEES = (Path(__file__).parents[2] / "docs" / "guarantees.md").read_text("utf-8")
CURSOR = {"parameter": "since_seq", "cursor": "/seq"}
TIME = {"parameter": "backfill_minutes", "since": "minutes_ago", "reaches_back_s": 300}


@pytest.mark.parametrize(
    ("resume", "name"),
    [(CURSOR, "exactly_once"), (TIME, "exactly_once_within_window"), (None, "exactly_once_while_running")],
)
def test_a_streams_promise_is_the_manuals(resume, name):
    stream = StreamSettings.model_validate({"url": "http://upstream/", "override": {"resume": resume}})
    assert stream.promise("exactly_once").name == name
    assert f"| `{name}` |" in GUARANTEES


def test_each_promise_differs_from_all_others():
    ways = itertools.product(("exactly_once", "at_least_once"), ("by_cursor", "by_time", "not_at_all"))
    promises = [promise(mode, resumes, None) for mode, resumes in ways]
    assert len({one.name for one in promises}) == 6
    for one in promises:
        once, never = ("exactly once", "at least once")[:: -1 if one.name.startswith("at_least") else 1]
        assert once in one.restart
        assert never not in one.restart + one.outage


def test_how_far_back_the_upstream_reaches_is_said():
    assert "300 s" in promise("exactly_once", "by_time", 300).outage
    assert "a crash loses" in promise("exactly_once", "not_at_all", None).restart
