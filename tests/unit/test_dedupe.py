"""What comes again is dropped while it may come, an update never is, and nothing else is touched."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_digest

from connector.delivery.dedupe import LINGER_S, MARK_BYTES, Window, content
from connector.model import Status


def some(*numbers: int, body: str = "body") -> list[Status]:
    return [Status(str(number), f"{number} {body}".encode()) for number in numbers]


def numbers(statuses) -> list[int]:
    return [int(one.id) for one in statuses]


def test_what_went_out_before_a_restart_does_not_go_out_again():
    _, marks = Window(keeps=True).fresh(some(1, 2, 3), 0)
    assert len(marks) == 3 * MARK_BYTES
    window = Window(marks, keeps=True)
    window.watch()
    fresh, more = window.fresh(some(2, 3, 4), 0)
    assert numbers(fresh) == [4]
    assert more == xxh3_64_digest(b"4 body")
    assert window.suppressed == 2


def test_an_update_goes_out():
    window = Window(keeps=True)
    window.watch()
    window.fresh(some(1), 0)
    assert numbers(window.fresh(some(1, body="changed"), 0)[0]) == [1]
    assert window.suppressed == 0


def test_a_repetition_within_one_piece_is_one_too():
    window = Window(keeps=True)
    window.watch()
    assert numbers(window.fresh(some(1, 1, 2), 0)[0]) == [1, 2]


def test_nothing_is_looked_up_while_nothing_can_come_again():
    window = Window(keeps=True)
    statuses = some(1, 1)
    assert window.fresh(statuses, 0)[0] is statuses
    assert not window.is_watching


def test_a_stream_that_cannot_resume_leaves_no_marks():
    window = Window(keeps=False)
    assert window.fresh(some(1), 0)[1] == b""
    window.watch()
    assert window.fresh(some(2), 0)[1] == b"", "none for the log"
    assert numbers(window.fresh(some(1, 2), 0)[0]) == [1], "known since it is watched"


def test_watching_ends_a_while_after_the_last_repetition():
    window = Window(keeps=True)
    window.fresh(some(1, 2), 0)
    window.watch()
    assert not window.fresh(some(1), 1e9)[0], "for ever, until it is settled"
    window.settle(100)
    window.settle(150)  # once is enough
    assert not window.fresh(some(1), 100 + LINGER_S - 1)[0]
    assert not window.fresh(some(2), 100 + 2 * LINGER_S - 2)[0], "a repetition prolongs it"
    assert window.fresh(some(1), 100 + 3 * LINGER_S - 2)[0]
    assert not window.is_watching
    window.watch()
    assert not window.fresh(some(2), 0)[0], "what it knew it knows again"


def test_a_window_forgets_the_oldest_first_and_stays_bounded():
    window = Window(keeps=True, size=10)
    window.watch()
    for number in range(1000):
        window.fresh(some(number), 0)
        assert len(window._marks) <= 20 * MARK_BYTES
        assert len(window._seen) <= 21
    assert numbers(window.fresh(some(0, 990, 999), 0)[0]) == [0]


def test_a_tombstone_goes_out_once():
    window = Window(keeps=True)
    window.watch()
    window.fresh(some(1), 0, content)
    assert len(window.fresh([Status("1", None)], 0, content)[0]) == 1
    assert len(window.fresh([Status("1", None)], 0, content)[0]) == 0


@given(st.lists(st.lists(st.integers(0, 20), max_size=5), max_size=20), st.booleans())
def test_while_watched_each_goes_out_once_and_in_order(pieces, keeps):
    window = Window(keeps=keeps)
    window.watch()
    out = [number for piece in pieces for number in numbers(window.fresh(some(*piece), 0)[0])]
    assert out == list(dict.fromkeys(number for piece in pieces for number in piece))
    assert window.suppressed == sum(map(len, pieces)) - len(out)
