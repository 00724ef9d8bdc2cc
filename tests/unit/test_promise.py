"""What is promised of a stream never is more than its upstream and its way of writing can keep."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest

from connector.delivery.dedupe import WINDOW
from connector.delivery.promise import Mode, Resumes, promise


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("resumes", get_args(Resumes))
@pytest.mark.parametrize("reaches_back_s", [None, 300.0])
def test_exactly_once_is_said_where_it_is_kept_alone(mode, resumes, reaches_back_s):
    made = promise(mode, resumes, reaches_back_s)
    said = f"{made.restart} {made.outage}"
    assert ("exactly once" in said) == (mode == "exactly_once")
    assert made.name.startswith(mode)
    assert ("300 s" in made.outage) == (reaches_back_s is not None and resumes != "not_at_all")


@pytest.mark.parametrize("mode", get_args(Mode))
def test_a_cursor_loses_nothing_whatever_happens_to_the_process(mode):
    made = promise(mode, "by_cursor", None)
    assert made.name == mode
    assert "loses" not in made.restart
    assert "gap" in made.outage, "beyond what the upstream keeps"


def test_what_comes_again_by_time_is_recognised_within_the_window():
    made = promise("exactly_once", "by_time", 300.0)
    assert str(WINDOW) in made.restart
    assert "recognised" in made.outage


@pytest.mark.parametrize("mode", get_args(Mode))
def test_who_cannot_resume_is_told_what_is_lost(mode):
    made = promise(mode, "not_at_all", None)
    assert "a crash loses" in made.restart
    assert "lost" in made.outage
    assert all("stream.gap" in words for words in (made.restart, made.outage))


def test_each_has_a_name_of_its_own():
    names = {
        promise(mode, resumes, None).name for mode, resumes in product(get_args(Mode), get_args(Resumes))
    }
    assert len(names) == len(get_args(Mode)) * len(get_args(Resumes))
