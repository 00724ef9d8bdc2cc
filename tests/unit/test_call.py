"""An upstream that resumes by time is asked for early enough, in its own words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.stream.call import since
from connector.stream.dialect import Resume

NOW = 1_800_000_000.0


def resume(how: str, **more: float) -> Resume:
    return Resume.model_validate({"parameter": "since", "since": how, **more})


@pytest.mark.parametrize(
    ("how", "asked"),
    [
        ("rfc3339", "2027-01-15T07:58:20.250Z"),
        ("seconds", "1799999900"),
        ("milliseconds", "1799999900250"),
        ("minutes_ago", "2"),
    ],
)
def test_a_time_is_written_as_the_upstream_reads_it(how, asked):
    assert since(resume(how), NOW - 89.75, NOW) == asked


moments = st.floats(0, 10 * 86_400)


@given(st.sampled_from(["seconds", "milliseconds", "minutes_ago"]), moments, st.floats(0, 3600), moments)
def test_what_is_asked_for_begins_no_later_than_it_was_heard(how, ago_s, margin_s, now_s):
    now = NOW + now_s
    asked = int(since(resume(how, margin_s=margin_s), now - ago_s, now))
    begins = {"seconds": asked, "milliseconds": asked / 1000, "minutes_ago": now - 60 * asked}[how]
    assert begins <= now - ago_s - margin_s + 1e-6
    assert (
        begins
        >= now - ago_s - margin_s - {"seconds": 1, "milliseconds": 0.001, "minutes_ago": 60}[how] - 1e-6
    )


@given(moments, st.floats(1, 86_400))
def test_nothing_is_asked_for_that_is_not_kept(ago_s, reaches_back_s):
    asked = int(since(resume("milliseconds", reaches_back_s=reaches_back_s), NOW - ago_s, NOW)) / 1000
    assert asked >= NOW - reaches_back_s - 0.0011
    assert asked == pytest.approx(NOW - min(ago_s + 10, reaches_back_s), abs=0.0011)


def test_a_clock_that_went_back_asks_for_no_time_to_come():
    assert since(resume("seconds"), NOW + 1000, NOW) == str(int(NOW) - 10)
    assert since(resume("minutes_ago"), NOW + 1000, NOW) == "1"
