"""Rules become the wanted ones in few calls, new ones first; and X's dialect."""

from __future__ import annotations

import re
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qs

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.errors import BadStatus, Disconnected, RulesRefused, Stalled, WrongContent
from connector.model import PredicateSet
from connector.stream import dialect
from connector.stream.call import call
from connector.stream.messages import Decoder
from connector.stream.policy import Outcome, classify
from connector.stream.rules import Diff, Rule, diff, read_added, read_list, sync

VALUES = st.lists(st.sampled_from("abcdefgh"), max_size=8)


def there(*values: str) -> list[Rule]:
    return [Rule(str(number), value) for number, value in enumerate(values, 100)]


# The difference


@given(VALUES, VALUES)
def test_what_the_difference_leads_to_is_what_is_wanted(values: list[str], wanted: list[str]):
    found = there(*values)
    add, delete = diff(found, wanted)
    assert sorted([*(rule.value for rule in found if rule.id not in delete), *add]) == sorted(set(wanted))
    assert not set(add) & set(values), "nothing is added anew that is there"
    assert list(add) == sorted(add)
    assert list(delete) == sorted(set(delete))


def test_of_doubles_the_first_id_stays():
    assert diff(there("a", "a", "b", "a"), ["a", "b"]) == Diff([], ["101", "103"])


def test_a_rule_that_differs_by_case_is_another_rule():
    assert diff(there("Cat"), ["cat"]) == Diff(["cat"], ["100"])


# The calls


@dataclass
class Api:
    """X's rules, in memory.

    Attributes:
        bad: values that are no rules.
        same: equal for the upstream, however they are spelled: spelling to spelling.
        most: how many rules it takes.
        page: how many rules a page of the list has.
        strict: adding is all or nothing, deleting too.
    """

    rules: dict[str, str]
    bad: Sequence[str] = ()
    same: dict[str, str] = field(default_factory=dict)
    most: int = 1000
    page: int = 1000
    strict: bool = False
    calls: list[str] = field(default_factory=list)
    flowing: list[set[str]] = field(default_factory=list)

    @classmethod
    def of(cls, *values: str, **more) -> Api:
        return cls({rule.id: rule.value for rule in there(*values)}, **more)

    async def __call__(self, method: str, query: str, body: bytes) -> tuple[int, bytes]:
        if method == "GET":
            assert body == b""
            self.calls.append("list")
            return 200, orjson.dumps(self._page(query))
        asked = orjson.loads(body)
        assert query == ""
        (kind,) = asked
        self.calls.append(kind)
        status, answer = self._add(asked["add"]) if kind == "add" else self._delete(asked["delete"])
        self.flowing.append(set(self.rules.values()))
        return status, orjson.dumps(answer)

    def _page(self, query: str) -> dict:
        first = int(parse_qs(query)["pagination_token"][0]) if query else 0
        data = [{"id": one, "value": value, "tag": value} for one, value in self.rules.items()]
        meta = {"sent": "2026-11-24T12:00:00.000Z", "result_count": len(data)}
        if first + self.page < len(data):
            meta["next_token"] = str(first + self.page)
        return {"meta": meta, **({"data": data[first : first + self.page]} if data else {})}

    def _add(self, rules: list[dict]) -> tuple[int, dict]:
        created, errors = [], []
        for rule in rules:
            assert rule["tag"] == rule["value"], "what a post names of the rules it matched"
            value = self.same.get(rule["value"], rule["value"])
            double = next((one for one, other in self.rules.items() if other == value), None)
            if value in self.bad:
                errors.append(
                    {"value": value, "details": ["no viable alternative"], "title": "UnprocessableEntity"}
                )
            elif double is not None:
                errors.append({"value": value, "id": double, "title": "DuplicateRule"})
            elif len(self.rules) >= self.most:
                errors.append({"title": "RulesCapExceeded", "detail": "too many rules"})
            else:
                created.append({"id": str(200 + len(self.rules)), "value": value, "tag": value})
                self.rules[created[-1]["id"]] = value
        if self.strict and errors:
            for one in created:
                del self.rules[one["id"]]
            return 400, {"errors": errors, "title": "Invalid Request"}
        return 201, {"data": created, **({"errors": errors} if errors else {}), "meta": {}}

    def _delete(self, asked: dict) -> tuple[int, dict]:
        gone = [one for one in asked["ids"] if one not in self.rules]
        if gone and self.strict:
            return 400, {"errors": [{"message": "Rule does not exist"}]}
        for one in asked["ids"]:
            self.rules.pop(one, None)
        errors = {"errors": [{"message": "Rule does not exist"}]} if gone else {}
        return 200, {"meta": {"summary": {"not_deleted": len(gone)}}, **errors}


def run(work: Coroutine[object, object, None]) -> None:
    """Run what waits for nothing but the API in memory."""
    with pytest.raises(StopIteration):
        work.send(None)


def test_equal_sets_cost_one_look():
    api = Api.of("a", "b")
    run(sync(api, ["b", "a", "a"], 1000))
    assert api.calls == ["list"]


def test_new_rules_come_before_old_ones_go():
    api = Api.of("a", "b")
    run(sync(api, ["b", "c"], 1000))
    assert api.calls == ["list", "add", "delete"]
    assert api.flowing == [{"a", "b", "c"}, {"b", "c"}]


@pytest.mark.parametrize(("wanted", "calls"), [([], ["list", "delete"]), (["a", "b", "c"], ["list", "add"])])
def test_a_change_that_is_one_call_is_one_call(wanted, calls):
    api = Api.of("a", "b")
    run(sync(api, wanted, None))
    assert (api.calls, sorted(api.rules.values())) == (calls, wanted)


@pytest.mark.parametrize(
    ("most", "calls"),
    [(3, ["list", "add", "delete"]), (2, ["list", "delete", "add"]), (None, ["list", "add", "delete"])],
)
def test_old_rules_go_first_only_where_there_is_no_room(most, calls):
    api = Api.of("a", "b", most=most or 1000)
    run(sync(api, ["b", "c"], most))
    assert api.calls == calls
    assert sorted(api.rules.values()) == ["b", "c"]
    assert all("b" in flowing for flowing in api.flowing), "what both sets match keeps flowing"


@given(VALUES, VALUES, st.integers(8, 20) | st.none())
def test_the_wanted_rules_are_the_upstreams_in_three_calls_at_most(values, wanted, most):
    api = Api.of(*values, most=most or 1000)
    run(sync(api, wanted, most))
    assert sorted(api.rules.values()) == sorted(set(wanted))
    assert len(api.calls) <= 3


def test_every_page_of_the_list_counts():
    api = Api.of(*"abcdefg", page=3)
    run(sync(api, list("abcdefg"), 1000))
    assert api.calls == ["list"] * 3


def test_a_list_without_end_is_given_up():
    async def endless(*_: object) -> tuple[int, bytes]:
        return 200, b'{"data":[{"id":"1","value":"a"}],"meta":{"next_token":"again"}}'

    with pytest.raises(WrongContent, match="pages"):
        run(sync(endless, ["a"], 1000))


@pytest.mark.parametrize("status", [200, 201, 400])
def test_a_double_is_as_good_as_created(status):
    """Somebody was faster, or the same request arrived twice."""
    error = {"value": "b", "id": "9", "title": "DuplicateRule"}
    added = read_added(status, orjson.dumps({"errors": [error], "meta": {}}))
    assert (added.refused, added.created, added.doubles) == (None, [], ["9"])


def test_a_rule_that_the_upstream_spells_otherwise_is_not_deleted():
    """It would be the wanted one."""
    api = Api.of("a b", "c", same={"a  b": "a b"})
    for _ in range(2):
        run(sync(api, ["a  b"], 1000))
        assert list(api.rules.values()) == ["a b"]


def test_a_refused_rule_is_named_and_what_came_with_it_is_gone_again():
    api = Api.of("a", bad=["(("])
    with pytest.raises(RulesRefused, match=r"refuses the rule '\(\(': no viable alternative") as caught:
        run(sync(api, ["((", "b", "c"], 1000))
    assert caught.value.value == "(("
    assert api.calls == ["list", "add", "delete"]
    assert list(api.rules.values()) == ["a"], "the old ones go on"


def test_a_refusal_of_all_of_them_leaves_nothing_to_roll_back():
    api = Api.of("a", bad=["(("], strict=True)
    with pytest.raises(RulesRefused):
        run(sync(api, ["((", "b"], 1000))
    assert api.calls == ["list", "add"]


def test_a_refusal_stands_whatever_becomes_of_the_roll_back():
    api = Api.of("a", bad=["(("])

    async def fails(method: str, query: str, body: bytes) -> tuple[int, bytes]:
        if body.startswith(b'{"delete"'):
            raise Stalled("no answer")
        return await api(method, query, body)

    with pytest.raises(RulesRefused):
        run(sync(fails, ["((", "b"], 1000))
    run(sync(api, ["a"], 1000))
    assert list(api.rules.values()) == ["a"]


def test_a_refusals_words_are_bounded_and_in_one_line():
    refused = read_added(
        400, orjson.dumps({"errors": [{"value": "x" * 1024, "details": ["y\n" * 999]}]})
    ).refused
    assert len(str(refused)) == 300
    assert str(refused).isprintable()
    assert "y y" in str(refused)
    for words in ({"detail": "d"}, {"message": "d"}, {"title": "d"}):
        assert str(read_added(422, orjson.dumps({"errors": [words]})).refused).endswith("refuses a rule: d")


def test_a_rule_that_vanishes_without_a_word_is_asked_for_again():
    async def forgets(method: str, *_: object) -> tuple[int, bytes]:
        return (200, b'{"meta":{}}') if method == "GET" else (201, b'{"data":[{"id":"1","value":"a"}]}')

    with pytest.raises(WrongContent, match="only 1 of 2 rules"):
        run(sync(forgets, ["a", "b"], 1000))


@pytest.mark.parametrize("strict", [True, False])
def test_rules_that_are_gone_already_are_no_failure(strict):
    api = Api.of("a", "b", "c", strict=strict)

    async def overtaken(method: str, query: str, body: bytes) -> tuple[int, bytes]:
        answer = await api(method, query, body)
        if api.calls == ["list"]:
            del api.rules["100"]
        return answer

    run(sync(overtaken, ["c"], 1000))
    assert list(api.rules.values()) == ["c"]


def test_rules_that_stay_are_no_success():
    api = Api.of("a", "b")

    async def keeps(method: str, query: str, body: bytes) -> tuple[int, bytes]:
        return await api(method, query, body) if method == "GET" else (400, b'{"errors":[{"message":"no"}]}')

    with pytest.raises(WrongContent, match="rules stay: HTTP 400"):
        run(sync(keeps, ["a"], 1000))
    assert api.calls == ["list", "list"]


# What cannot be read

UNREADABLE = [
    b"",
    b"<html>",
    b"[]",
    b"7",
    b'{"data":7}',
    b'{"data":[{"id":1,"value":"a"}]}',
    b'{"data":[{"id":"1"}]}',
    b'{"errors":["no"]}',
    b'{"data":[],"other":"\xff"}',
    b'{"data":[' + b"[" * 100_000,
]


@pytest.mark.parametrize("body", UNREADABLE)
def test_an_unreadable_answer_is_a_reason_to_try_again(body):
    for read in (read_list, read_added):
        with pytest.raises(WrongContent) as caught:
            read(200, body)
        assert classify(caught.value, X) is Outcome.HTTP


@pytest.mark.parametrize("body", [*UNREADABLE, b"{}", b'{"errors":[]}', b'{"data":[]}'])
def test_a_bad_status_without_reasons_is_a_bad_status(body):
    for read in (read_list, read_added):
        with pytest.raises(BadStatus, match="HTTP 400"):
            read(400, body)


def test_errors_in_place_of_the_list_are_not_an_empty_list():
    with pytest.raises(WrongContent, match="no list of rules: later"):
        read_list(200, b'{"errors":[{"title":"later"}]}')
    assert read_list(200, b'{"meta":{"sent":"now"}}') == ([], None)


JSON = st.recursive(
    st.none() | st.text() | st.integers(-9, 9) | st.booleans(),
    lambda below: (
        st.lists(below) | st.dictionaries(st.sampled_from(["id", "value", "title", "details"]), below)
    ),
)
MEMBERS = st.sampled_from(["data", "errors", "meta"])


@given(st.binary() | (JSON | st.dictionaries(MEMBERS, JSON)).map(orjson.dumps))
def test_whatever_comes_is_read_or_a_disconnection(body):
    for status in (200, 201, 400, 422):
        for read in (read_list, read_added):
            with suppress(Disconnected):
                read(status, body)


# X's dialect

X = dialect.load("x-v2", {})


def test_the_request_of_the_dialect_x_v2_carries_no_predicates_but_its_rules():
    predicates = PredicateSet.of({"rule": ["dog lang:de", "cat has:images"]})
    request = call(X, predicates, "7")
    assert (request.method, request.query, request.body) == ("GET", "", b"")
    assert list(request.rules or ()) == ["cat has:images", "dog lang:de"]
    fields = {"request": {"parameters": {"tweet.fields": "created_at,lang"}}}
    assert call(dialect.load("x-v2", fields), predicates, None).query == "tweet.fields=created_at%2Clang"


def test_an_announced_end_is_told_from_a_post_with_errors_of_its_own():
    end = b'{"errors":[{"title":"operational-disconnect","disconnect_type":"UpstreamOperationalDisconnect"}]}'
    post = b'{"data":{"id":"7","text":"a"},"errors":[{"title":"Not Found Error"}]}'
    messages = Decoder(X).decode([end, post])
    assert messages.disconnect is not None
    assert messages.disconnect.code == "operational-disconnect"
    assert [status.id for status in messages.statuses] == ["7"]
    assert messages.malformed == []


def test_the_answers_to_one_connection_too_many_are_known():
    said = (
        '{"title":"ConnectionException","detail":"This stream is currently at the maximum allowed connection '
        'limit.","connection_issue":"TooManyConnections"}'
    )
    assert X.policy.too_many_connections is not None
    assert re.search(X.policy.too_many_connections, said[:200]), "of which the beginning is read"
    assert not re.search(X.policy.too_many_connections, "Too Many Requests")
