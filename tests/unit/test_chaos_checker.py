"""Each check of the chaos suite can fail: it names a fabricated violation, and nothing where all is well."""

from __future__ import annotations

import json

import pytest
from chaos import checker
from chaos.checker import Fault, Gap, Span, Violation, Visible
from chaos.table import table


def seen(*numbers: int, stream: str = "s", partition: int = 0) -> list[Visible]:
    """Return records one after another; the upstream's numbers are given, all else counts."""
    return [Visible(stream, f"k{number}", number, at + 1, partition, at) for at, number in enumerate(numbers)]


WELL = seen(3, 4, 7)
CORE = {"s": {3, 4, 7}}


def only(found: list[Violation], *details: str) -> None:
    """Assert that there is one violation, which names the ids."""
    assert len(found) == 1, found
    for detail in details:
        assert detail in found[0].detail


def test_what_is_owed_and_not_there_is_named() -> None:
    assert checker.lost(CORE, WELL) == []
    only(checker.lost({"s": {3, 4, 5, 7}}, WELL), "s: 1: 5")
    only(checker.lost({"t": {1}}, WELL), "t: 1: 1")


def test_another_streams_status_makes_up_for_nothing() -> None:
    only(checker.lost({"s": {3}, "t": {3}}, seen(3, stream="t")), "s: 1: 3")


def test_a_key_that_is_there_twice_is_named() -> None:
    again = WELL[0]._replace(seq=4, offset=9)
    assert checker.doubled(WELL) == []
    only(checker.doubled([*WELL, again]), "s: 1: k3")


def test_a_seq_that_is_there_twice_is_named() -> None:
    other = Visible("s", "k9", 9, 3, 1, 0)
    only(checker.doubled([*WELL, other]), "s: 1: 3")


def test_two_streams_may_have_the_same_keys() -> None:
    assert checker.doubled([*WELL, *seen(3, 4, stream="t")]) == []


@pytest.mark.parametrize(("gone", "named"), [(0, "1"), (1, "2")])
def test_a_hole_in_seq_is_named(gone: int, named: str) -> None:
    assert checker.holes(WELL) == []
    only(checker.holes([one for at, one in enumerate(WELL) if at != gone]), f"s: 1: {named}")


def test_an_inversion_by_seq_is_named() -> None:
    swapped = [WELL[0]._replace(seq=2), WELL[1]._replace(seq=1)]
    assert checker.disordered(WELL, CORE) == []
    (found,) = checker.disordered(swapped, {})
    assert found == Violation("order of seq", "s in partition 0: 1: (2, 1)")


def test_an_inversion_by_the_upstream_is_named() -> None:
    (found,) = checker.disordered(seen(4, 3), CORE)
    assert found == Violation("order of upstream", "s in partition 0: 1: (4, 3)")


def test_order_is_a_partitions_and_that_of_what_was_asked_for_throughout() -> None:
    elsewhere = Visible("s", "k1", 1, 9, 1, 0)
    assert checker.disordered([*WELL, elsewhere], {"s": {1, *CORE["s"]}}) == []
    assert checker.disordered(seen(4, 3), {"s": {4}}) == []


def test_what_no_upstream_sent_is_named() -> None:
    assert checker.unknown(WELL, {"s": {1, 3, 4, 7}}) == []
    only(checker.unknown(WELL, {"s": {3, 7}}), "s: 1: 4")


def test_other_bytes_are_named() -> None:
    assert checker.altered([(WELL[0], b"a", b"a")]) == []
    only(checker.altered([(WELL[0], b"a", b"b")]), "number=3")


@pytest.mark.parametrize("positions", [{"s": 2}, {"s": 4}, {}, {"s": 3, "t": 1}])
def test_a_position_that_counts_something_else_is_named(positions: dict[str, int]) -> None:
    assert checker.misplaced(WELL, {"s": 3}) == []
    only(checker.misplaced(WELL, positions))


def test_a_reader_that_goes_back_is_told() -> None:
    assert checker.unstable(WELL, WELL) == []
    found = checker.unstable([WELL[1], WELL[0]], WELL)
    assert {one.invariant for one in found} == {"a reader never goes backwards"}


def test_what_was_seen_and_is_gone_or_another_is_told() -> None:
    for final in (WELL[:2], [*WELL[:2], WELL[2]._replace(key="other")]):
        only(checker.unstable(WELL, final), "k7")


def test_what_appears_behind_a_reader_is_told() -> None:
    (found,) = checker.unstable([WELL[0], WELL[2]], WELL)
    assert found.invariant == "nothing appears behind a reader"
    assert checker.unstable(WELL[:1], WELL) == [], "it has not come that far"


def test_missing_statuses_without_an_event_are_named() -> None:
    missing = {"s": {5: Span(100, 100), 6: Span(200, 200)}}
    first, second = Gap("s", Span(90, 110)), Gap("s", Span(202, 210))
    assert checker.untold(missing, [first, second], slack_s=3) == []
    only(checker.untold(missing, [first, second], slack_s=1), "s: 1: 6")
    only(checker.untold(missing, [first], slack_s=3), "s: 1: 6")
    only(checker.untold(missing, [first, second._replace(stream="t")], slack_s=3), "s: 1: 6")


def test_a_gap_without_a_fault_is_named() -> None:
    gap = Gap("s", Span(100, 110))
    near, early, late = (Fault("killed", Span(*span)) for span in [(80, 95), (10, 20), (120, 130)])
    assert checker.causeless([gap], [near], after_s=10) == []
    only(checker.causeless([gap], [early, late], after_s=10), "begin=100")
    only(checker.causeless([gap], [], after_s=10))


def test_a_fault_of_another_streams_upstream_is_no_cause() -> None:
    gap = Gap("s", Span(100, 110))
    assert checker.causeless([gap], [Fault("resets", Span(100, 101), frozenset({"s"}))], 10) == []
    only(checker.causeless([gap], [Fault("resets", Span(100, 101), frozenset({"t"}))], 10))


def test_a_partition_with_no_owner_or_two_is_named() -> None:
    assert checker.wrongly_owned({"a": {0}, "b": {1}}, 2) == []
    only(checker.wrongly_owned({"a": {0}, "b": set()}, 2), "partition 1 has 0")
    only(checker.wrongly_owned({"a": {0, 1}, "b": {1}}, 2), "partition 1 has 2")


def test_records_that_nobody_handled_are_named() -> None:
    assert checker.lagging({0: 5, 1: 0}, {0: 4}) == []
    only(checker.lagging({0: 4}, {0: 4}), "partition 0: 4 of 5")
    only(checker.lagging({}, {0: 0}), "partition 0: 0 of 1")


@pytest.mark.parametrize("asked", [{}, {"s": ["a"]}, {"s": ["a", "b", "c"]}])
def test_other_predicates_than_the_union_are_named(asked: dict[str, list[str]]) -> None:
    assert checker.not_in_force({"s": ["b", "a"]}, {"s": {"a", "b"}}) == []
    only(checker.not_in_force(asked, {"s": {"a", "b"}}))


def test_the_union_is_of_the_last_good_record_of_each_key() -> None:
    records = [
        (b"s", b'{"track": ["a"]}'),
        (b"s/1", b'{"track": ["b"]}'),
        (b"s/2", b'{"track": ["c"]}'),
        (b"s/2", None),
        (b"s/1", b'{"track": ["d"]}'),
        *((b"s", bad) for bad in (b"rubbish", b"[]", b'{"track": "a"}', b'{"x": []}', b'{"track": [""]}')),
        *((bad, b'{"track": ["e"]}') for bad in (None, b"\xff", b"nobody")),
    ]
    assert checker.union(records, {"s", "t"}) == {"s": {"a", "d"}, "t": set()}
    assert sum(not checker.is_good(*record, {"s", "t"}) for record in records) == 8


@pytest.mark.parametrize("letters", [[], ["c/0/1", "c/0/1"], ["c/0/1", "c/0/2"]])
def test_bad_records_without_a_dead_letter_of_their_own_are_named(letters: list[str]) -> None:
    assert checker.misfiled({"c/0/1"}, ["c/0/1"]) == []
    only(checker.misfiled({"c/0/1"}, letters))


def test_a_secret_is_named_by_its_place() -> None:
    assert checker.leaked("hush", {"log": "nothing"}) == []
    only(checker.leaked("hush", {"log": "a hush here"}), "log")


def test_an_open_transaction_is_named_by_its_place() -> None:
    assert checker.left_open({"t/0": (5, 5)}) == []
    only(checker.left_open({"t/0": (4, 5)}), "t/0: 4 of 5")


def test_who_does_not_end_in_peace_is_named() -> None:
    assert checker.badly_ended({"a": 0}) == []
    only(checker.badly_ended({"a": 1}), "a: code 1")
    only(checker.badly_ended({"a": None}), "a: killed")


def test_a_takeover_lasts_until_what_was_made_after_it_is_seen() -> None:
    arrivals = [(9.0, 12.0), (11.0, 13.0), (12.0, 14.0)]
    assert checker.first_after(10.0, arrivals) == 3.0
    assert checker.first_after(12.5, arrivals) is None


def test_of_many_ids_some_are_named_and_all_are_counted() -> None:
    only(checker.lost({"s": set(range(100, 120))}, WELL), "20: 100, 101", "107 and 12 more")


def test_the_table_has_a_row_for_each_run() -> None:
    run = dict.fromkeys(
        ["seed", "duration_s", "replicas", "streams", "visible", "lost", "doubled", "inversions", "gaps"], 1
    )
    more = {"takeovers": 2, "takeover_median_s": 6.25, "takeover_worst_s": None, "recovered_s": 1.5}
    line = json.dumps({**run, **more, "faults": {"a": 1, "b": 2}, "violated": []})
    *_, row = table([line, ""]).splitlines()
    assert row == "| 1 | 1 | 1 | 1 | 3 | 1 | 1 | 1 | 1 | 1 | 2 | 6.25 | none | 1.5 | nothing |"
