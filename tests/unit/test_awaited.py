"""Who waits for a record's last answer waits for all shares that it was dealt to."""

from __future__ import annotations

import pytest

from connector.awaited import Awaited, awaited

PLACE = {"partition": 1, "offset": 2}


def answer(kind: str, subject: str = "tech", **data: object) -> dict[str, object]:
    return {"type": f"predicates.{kind}", "subject": subject, "data": {**PLACE, **data}}


@pytest.mark.parametrize(
    ("kind", "is_in_force"),
    [
        ("applied", True),
        ("unchanged", True),
        ("rejected", False),
        ("refused", False),
        ("superseded", False),
    ],
)
def test_one_last_answer_suffices_where_nothing_was_dealt(kind, is_in_force):
    told = []
    answers = [None, answer("rerouted"), answer("accepted"), answer(kind), answer("applied")]
    assert awaited(answers, 1, 2, None, told.append) is is_in_force
    kinds = [one["type"].removeprefix("predicates.") for one in told]
    assert kinds == ["rerouted", "accepted", kind]


def test_each_share_has_a_last_word_and_one_no_suffices():
    record = Awaited(1, 2)
    for kind, subject in (("dealt", "tech"), ("accepted", "a"), ("refused", "a"), ("accepted", "b")):
        assert record.take(answer(kind, subject, shares=["a", "b"]))
        assert not record.is_over
    assert record.take(answer("applied", "b"))
    assert record.is_over
    assert not record.is_in_force


def test_answers_to_other_records_are_none_of_its_business():
    record = Awaited(1, 2)
    assert not record.take(answer("applied", offset=3))
    assert not record.is_over


def test_no_one_waits_for_ever_who_gave_a_time():
    assert awaited([None, answer("accepted")], 1, 2, 0.0, lambda _: None) is None
