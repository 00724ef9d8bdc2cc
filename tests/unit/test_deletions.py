"""A deleted status stays deleted, over late copies, restarts and any cut of the stream; for a day."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from upstream.deletes import Deletes, What
from upstream.framing import deletion, frame_by_length
from upstream.statuses import status

from connector.delivery.deletions import FORGET_AT_ONCE, KEEP_S, Deletions
from connector.model import Note, Status
from connector.stream import dialect
from connector.stream.intake import Intake
from connector.stream.messages import Decoder

NOW = 1_800_000_000.5
DAY = KEEP_S


def a_status(number: object, body: bytes = b"{}") -> Status:
    return Status(str(number), body)


def a_delete(number: object) -> Status:
    return Status(str(number), None)


def noted(number: object, at: float = NOW) -> Note:
    return Note(f"deleted/tech/{number}", b"%d" % at)


def unnoted(number: object) -> Note:
    return Note(f"deleted/tech/{number}", None)


def deletions(max_ids: int = 10, **notes: bytes) -> Deletions:
    return Deletions(
        "tech", {f"deleted/tech/{identity}": value for identity, value in notes.items()}, max_ids
    )


def test_where_nothing_is_deleted_statuses_pass_as_they_are():
    some = [a_status(1), a_status(1), a_status(2)]
    fresh, notes = deletions().take(some, NOW)
    assert fresh is some
    assert notes == ()


def test_a_status_without_bytes_is_no_delete():
    assert deletions().take([a_status(1, b"")], NOW) == ([a_status(1, b"")], [])


def test_a_delete_goes_out_and_is_noted():
    assert deletions().take([a_delete(1)], NOW) == ([a_delete(1)], [noted(1)])


@pytest.mark.parametrize(
    ("came", "went", "late"),
    [
        ([a_delete(1), a_status(1)], [a_delete(1)], 1),
        ([a_status(1), a_delete(1)], [a_status(1), a_delete(1)], 0),
        ([a_status(1), a_delete(1), a_status(1)], [a_status(1), a_delete(1)], 1),
        ([a_delete(1), a_status(1), a_delete(1), a_status(1, b"edited")], [a_delete(1)], 2),
        ([a_delete(1), a_delete(1)], [a_delete(1)], 0),
        ([a_delete(1), a_status(2), a_delete(3)], [a_delete(1), a_status(2), a_delete(3)], 0),
    ],
)
def test_a_delete_wins_before_after_and_between_copies(came, went, late):
    for size in (1, len(came)):
        some, fresh = deletions(), []
        for at in range(0, len(came), size):
            fresh += some.take(came[at : at + size], NOW)[0]
        assert fresh == went
        assert some.late == late


def test_a_repeated_delete_is_not_noted_again():
    some = deletions()
    some.take([a_delete(1)], NOW)
    assert some.take([a_delete(1)], NOW + 60) == ([], [])


def test_a_restart_knows_what_was_deleted_by_its_stream_alone():
    notes = {
        "deleted/tech/1": b"%d" % NOW,
        "deleted/tech/a/2": b"%d" % NOW,
        "deleted/technology/3": b"%d" % NOW,
        "deleted/other/4": b"%d" % NOW,
        "waiting/tech/5": b"",
        "kept/tech/6": b"1 ",
    }
    some = Deletions("tech", notes)
    came = [a_status(one) for one in ("1", "a/2", "3", "4", "5", "6", "tech/1", "2")]
    assert some.take(came, NOW) == (came[2:], [])
    assert some.late == 2


def test_what_is_noted_can_be_read_again():
    identity = "é/" * 1024
    (note,) = deletions().take([a_delete(identity)], NOW)[1]
    again = Deletions("tech", {note.key: note.value})
    assert again.take([a_status(identity)], NOW) == ([], [])


def test_a_day_later_a_deleted_status_is_forgotten_and_its_note_taken_back():
    some = deletions()
    some.take([a_delete(1)], NOW)
    some.take([a_delete(2)], NOW + 1)
    assert some.take([a_status(1)], NOW + DAY - 0.1) == ([], [])
    assert some.take([a_status(2)], NOW + DAY) == ([], [unnoted(1)])
    assert some.take([a_status(1), a_status(2)], NOW + DAY + 1) == ([a_status(1), a_status(2)], [unnoted(2)])
    came = [a_status(1)]
    assert some.take(came, NOW + DAY + 1)[0] is came, "nothing is left to look up"


def test_what_is_out_of_date_goes_with_the_next_piece_even_if_that_is_empty():
    some = deletions()
    some.take([a_delete(1)], NOW)
    assert some.take([], NOW + DAY) == ([], [unnoted(1)])


def test_a_status_deleted_anew_a_day_later_is_a_tombstone_anew():
    some = deletions()
    some.take([a_delete(1), a_delete(2)], NOW)
    fresh, notes = some.take([a_status(1), a_delete(1), a_status(1)], NOW + DAY)
    assert fresh == [a_status(1), a_delete(1)]
    assert notes == [noted(1, NOW + DAY), unnoted(2)]
    assert some.take([a_status(1)], NOW + 2 * DAY - 1) == ([], [])


def test_the_oldest_ids_are_forgotten_first_where_there_are_too_many():
    some = deletions(max_ids=2)
    assert some.take([a_delete(1), a_delete(2)], NOW)[1] == [noted(1), noted(2)]
    assert some.take([a_delete(1), a_delete(3)], NOW)[1] == [noted(3), unnoted(1)]
    assert some.take([a_status(1), a_status(2), a_status(3)], NOW)[0] == [a_status(1)]
    fresh, notes = some.take([a_delete(number) for number in range(4, 9)], NOW)
    assert len(fresh) == 5
    assert notes == [*(noted(number) for number in range(4, 9)), *(unnoted(one) for one in (2, 3, 4, 5, 6))]


def test_a_restart_finds_the_oldest_by_their_times():
    some = deletions(max_ids=2, b=b"20", a=b"30", c=b"10")
    assert some.take([a_delete("d")], 40)[1] == [noted("d", 40), unnoted("c"), unnoted("b")]


@pytest.mark.parametrize("value", [b"", b"x", b"-1", b"1.5", b"9" * 5000, "٣".encode(), b"nan"])
def test_a_note_that_is_not_ours_counts_as_old(value):
    some = deletions(a=value)
    assert some.take([a_status("a")], NOW) == ([a_status("a")], [unnoted("a")])


def test_of_very_many_old_notes_some_are_taken_back_at_a_time():
    count = 2 * FORGET_AT_ONCE + 1
    some = deletions(count, **{str(number): b"%d" % NOW for number in range(count)})
    late = NOW + DAY
    came = [a_status(count - 1), a_delete(count - 1)]
    fresh, notes = some.take(came, late)
    assert fresh == came, "what is too old does not count, whether its note is still there or not"
    assert len(notes) == 1 + FORGET_AT_ONCE
    assert [len(some.take([], late)[1]) for _ in range(3)] == [FORGET_AT_ONCE, 0, 0]


def test_a_clock_set_back_forgets_nothing():
    some = deletions()
    some.take([a_delete(1)], NOW)
    assert some.take([a_status(1)], NOW - 10 * DAY) == ([], [])


# Against a model that keeps everything


@dataclass
class Model:
    """All deletes there ever were, and what the log says of each id."""

    deleted_at: dict[str, int] = field(default_factory=dict)
    log: dict[str, bytes | None] = field(default_factory=dict)

    def take(self, status: Status, now: int) -> bool:
        at = self.deleted_at.get(status.id)
        if at is not None and now - at < DAY:
            return False
        self.log[status.id] = status.body
        if status.body is None:
            self.deleted_at[status.id] = now
        return True


piece = st.tuples(
    st.integers(0, int(DAY * 0.7)),
    st.lists(
        st.builds(Status, st.integers(0, 4).map(str), st.none() | st.sampled_from([b"1", b"2"])), max_size=6
    ),
    st.booleans(),
)


@given(st.lists(piece, max_size=12))
def test_no_cut_and_no_restart_makes_a_difference(pieces):
    some, model, log, notes, now = deletions(), Model(), {}, {}, int(NOW)
    for passed, statuses, is_restarted in pieces:
        now += passed
        if is_restarted:
            some = Deletions("tech", notes)
        fresh, changed = some.take(statuses, now)
        assert [*fresh] == [status for status in statuses if model.take(status, now)]
        log.update(fresh and {status.id: status.body for status in fresh})
        for note in changed:
            notes.pop(note.key, None) if note.value is None else notes.update([note])
        assert log == model.log
        young = {f"deleted/tech/{one}" for one, at in model.deleted_at.items() if now - at < DAY}
        assert notes.keys() == young, "a note stands in the log as long as it counts"


@pytest.mark.parametrize("chunk_bytes", [700, 1 << 20])
def test_of_a_stream_with_deletes_what_is_deleted_is_gone_and_all_else_is_there(chunk_bytes):
    stream, expected = b"", {}
    for place in range(1, 1_500):
        for what, n in Deletes(every=5).at(place):
            this = status(1, n)
            is_delete = what is What.DELETE
            stream += frame_by_length(deletion(this.id, this.user_id) if is_delete else this.body)
            if expected.get(str(this.id), b"") is not None:
                expected[str(this.id)] = None if is_delete else this.body
    manners = dialect.load("twitter-v1", {})
    intake, some, log = Intake(manners, Decoder(manners), ""), deletions(max_ids=1_000), {}
    for at in range(0, len(stream), chunk_bytes):
        for piece in intake.feed(stream[at : at + chunk_bytes]):
            assert not piece.messages.malformed
            assert not piece.messages.notices
            assert not piece.discarded
            log.update((one.id, one.body) for one in some.take(piece.messages.statuses, NOW)[0])
    assert log == expected
    assert list(log.values()).count(None) > 200
    assert some.late > 100
