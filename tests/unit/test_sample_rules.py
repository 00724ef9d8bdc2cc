"""The sample upstream's filtered stream: rules change under an open connection, and the books hold."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_sample_upstream import (
    BEARER,
    EVERYTHING,
    SEED,
    Served,
    basic,
    matching,
    read_by_crlf,
    read_line,
    serving,
)
from upstream.posts import Posts, post
from upstream.rule_requests import change_rules, list_rules
from upstream.rules import CapExceeded, Draft, Rulebook
from upstream.statuses import TOPICS, status

if TYPE_CHECKING:
    from aiohttp import ClientResponse

SEARCH = "/2/tweets/search/stream"
RULES = SEARCH + "/rules"
PROBLEMS = "https://api.twitter.com/2/problems/"
SENT = "2017-07-14T02:40:01.000Z"
KAFKA, RUST = {"value": "kafka", "tag": "streams"}, {"value": "rust"}


def rulebook(*values: str, max_rules: int = 1_000) -> Rulebook:
    book = Rulebook(max_rules)
    book.add([Draft(value) for value in values], published=0)
    return book


def matched(book: Rulebook, words: str, seq: int = 1) -> list[str]:
    this = replace(status(SEED, 1), seq=seq, words=frozenset(words.split()))
    return [rule.id for rule in book.matching(this)]


def change(book: Rulebook, request: object, published: int = 0) -> tuple[int, dict]:
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    return change_rules(book, body, published, SENT)


@dataclass
class Client:
    """A client of the filtered stream."""

    served: Served

    async def open(self) -> ClientResponse:
        return await self.served.client.get(SEARCH, headers=BEARER)

    async def post(self, request: object) -> tuple[int, dict]:
        body = BytesIO(json.dumps(request).encode())
        response = await self.served.client.post(RULES, data=body, headers=BEARER)
        return response.status, await response.json()

    async def add(self, *rules: dict) -> list[str]:
        code, answer = await self.post({"add": rules})
        assert code == 201
        return [rule["id"] for rule in answer["data"]]

    async def delete(self, *ids: str) -> None:
        code, answer = await self.post({"delete": {"ids": ids}})
        assert (code, answer["meta"]["summary"]["not_deleted"]) == (200, 0)


def posts(track: str, first: int, last: int, *rules: tuple[str, str]) -> list[bytes]:
    """What a connection gets while these rules, each a word and a tag, are all there are."""
    book = rulebook()
    for id_, (value, tag) in enumerate(rules, start=1):
        assert book.add([Draft(value, tag)], 0)[0][0].id == str(id_)
    return [post(status(SEED, n), book.matching(status(SEED, n))) for n in matching(track, first, last)]


def seqs(messages: list[bytes]) -> list[int]:
    return [json.loads(message)["data"]["seq"] for message in messages]


# --- which rule matches what, and when


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("kafka", True),
        ("KAFKA", True),
        ("streams kafka", True),
        ("  streams\tKafka ", True),
        ("kaf", False),
        ("kafka rust", False),
        ("(kafka streams)", True),
        ('"kafka streams"', True),
        ('(kafka "streams") rust', False),
    ],
)
def test_all_words_of_a_rule_must_be_there(value: str, expected: bool):
    assert matched(rulebook(value), "kafka streams on") == ["1"] * expected


def test_every_rule_that_matches_is_named_in_order():
    book = rulebook(*(f"w{k}" for k in range(9)), "kafka", "streams kafka", "rust")
    assert matched(book, "w8 kafka streams") == ["9", "10", "11"]


def test_a_rule_is_in_force_from_the_next_status_to_the_newest_at_its_deletion():
    book = rulebook()
    book.add([Draft("kafka")], published=10)
    assert book.delete(["1"], published=20) == []
    assert [n for n in range(1, 40) if matched(book, "kafka", n)] == list(range(11, 21))
    book.add([Draft("kafka")], published=30)
    assert [n for n in range(1, 40) if matched(book, "kafka", n) == ["2"]] == list(range(31, 40))
    assert [rule.id for rule in book.in_force()] == ["2"]


def test_a_rule_deleted_before_anything_was_published_was_never_in_force():
    book = rulebook("kafka")
    book.delete(["1"], published=0)
    assert not any(matched(book, "kafka", n) for n in range(5))


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(TOPICS[:4]), st.booleans()), max_size=30))
def test_the_books_agree_with_a_list_of_rules_kept_by_hand(steps: list[tuple[int, str, bool]]):
    book, by_hand, published = rulebook(), {}, 0
    expected: dict[int, list[str]] = {}

    def publish(count: int) -> None:
        nonlocal published
        for _ in range(count):
            published += 1
            words = status(SEED, published).words
            expected[published] = [id_ for value, id_ in by_hand.items() if value in words]

    for count, value, is_addition in steps:
        publish(count)
        if is_addition:
            created, _ = book.add([Draft(value)], published)
            by_hand |= {rule.value: rule.id for rule in created}
        elif value in by_hand:
            book.delete([by_hand.pop(value)], published)
    publish(3)
    assert {n: [r.id for r in book.matching(status(SEED, n))] for n in expected} == expected


# --- what is created


@pytest.mark.parametrize(
    "value",
    [
        *("", " \t", "()", '""', "(kafka", "kafka)", ")kafka(", '"kafka', 'kafka"', '"(" (kafka'),
        *("x" * 1_025, "a " * 600),
    ],
)
def test_what_cannot_be_parsed_is_not_created_and_the_rest_is(value: str):
    book = rulebook()
    code, answer = change(book, {"add": [{"value": value}, RUST]})
    assert (code, answer["data"]) == (201, [{"id": "1", "value": "rust"}])
    assert answer["meta"]["summary"] == {"created": 1, "not_created": 1, "valid": 1, "invalid": 1}
    (error,) = answer["errors"]
    assert error.pop("details")
    assert error == {"value": value, "title": "UnprocessableEntity", "type": PROBLEMS + "invalid-rules"}


@pytest.mark.parametrize("value", ["x" * 1_024, "(a (b) c)", '"a" "b"', '"(" kafka', "((a))"])
def test_what_can_be_parsed_is_created(value: str):
    assert change(rulebook(), {"add": [{"value": value}]})[0] == 201


def test_nothing_created_is_an_error_if_a_rule_makes_no_sense():
    code, answer = change(rulebook("kafka"), {"add": [{"value": "("}, KAFKA]})
    assert (code, "data" in answer) == (400, False)
    assert [error["title"] for error in answer["errors"]] == ["UnprocessableEntity", "DuplicateRule"]


def test_what_exists_is_not_created_again():
    book = rulebook("kafka")
    code, answer = change(book, {"add": [KAFKA]})
    assert code == 201
    assert answer == {
        "meta": {"sent": SENT, "summary": {"created": 0, "not_created": 1, "valid": 0, "invalid": 1}},
        "errors": [
            {
                "value": "kafka",
                "id": "1",
                "title": "DuplicateRule",
                "type": PROBLEMS + "duplicate-rules",
            }
        ],
    }
    _, answer = change(book, {"add": [RUST, RUST]})
    assert ([rule["id"] for rule in answer["data"]], answer["errors"][0]["id"]) == (["2"], "2")


def test_too_many_rules_are_refused_altogether():
    book = rulebook("kafka", max_rules=2)
    code, answer = change(book, {"add": [RUST, {"value": "flink"}]})
    assert (code, answer["title"], answer["type"]) == (422, "RulesCapExceeded", PROBLEMS + "rule-cap")
    assert [rule.value for rule in book.in_force()] == ["kafka"]
    assert change(book, {"add": [RUST, KAFKA]})[0] == 201  # what is not created takes no room
    book.delete(["1"], 0)
    assert [rule.id for rule in book.add([Draft("flink")], 0)[0]] == ["3"]
    with pytest.raises(CapExceeded):
        book.add([Draft("trino")], 0)


def test_deleting_counts_what_was_not_there():
    book = rulebook("kafka", "rust")
    code, answer = change(book, {"delete": {"ids": ["2", "7", "2"]}})
    assert code == 200
    assert answer["meta"] == {"sent": SENT, "summary": {"deleted": 1, "not_deleted": 2}}
    assert [error["errors"][0]["parameters"]["ids"] for error in answer["errors"]] == [["7"], ["2"]]
    assert list_rules(book, SENT) == {
        "data": [{"id": "1", "value": "kafka"}],
        "meta": {"sent": SENT, "result_count": 1},
    }


@pytest.mark.parametrize(
    "request_",
    [
        *(b"", b"{", b"\xff", b"[" * 100_000, b'{"add":[{"value":"\\ud800"}]}'),
        *([], {}, {"add": []}, {"add": KAFKA}, {"add": ["kafka"]}, {"add": [{"tag": "streams"}]}),
        *({"add": [KAFKA, {"value": 1}]}, {"add": [{"value": "kafka", "tag": 1}]}),
        *({"delete": {"ids": []}}, {"delete": {"ids": [1]}}, {"delete": ["1"]}),
        *({"delete": {"values": ["kafka"]}}, {"add": [RUST], "delete": {"ids": ["1"]}}),
    ],
)
def test_a_request_that_makes_no_sense_changes_nothing(request_: object):
    book = rulebook("kafka")
    code, answer = change(book, request_)
    assert (code, answer["title"]) == (400, "Invalid Request")
    assert [rule.value for rule in book.in_force()] == ["kafka"]


# --- what is sent


def test_a_post_shows_its_status_and_its_rules():
    book = rulebook()
    book.add([Draft(topic, f"about {topic}\u2028\r\n") for topic in TOPICS[1:]] + [Draft("kafka")], 0)
    for n in range(1, 500):
        this = status(SEED, n, 1_000)
        body = Posts(book).body(this)
        assert b"\r" not in body
        assert (b"\n" in body) == (b"\n" in this.body)
        assert len(body) > 1_000
        old, new = json.loads(this.body), json.loads(body)
        assert new["data"] == {
            "id": old["id_str"],
            "text": old["text"],
            "edit_history_tweet_ids": [old["id_str"]],
            "author_id": old["user"]["id_str"],
            "created_at": f"2017-07-14T{old['created_at'][11:19]}.000Z",
            "lang": old["lang"],
            "seq": n,
            "padding": old["padding"],
        }
        tags = {"" if topic == "kafka" else f"about {topic}\u2028\r\n" for topic in this.words & set(TOPICS)}
        assert {rule["tag"] for rule in new["matching_rules"]} == tags


def test_a_status_that_matches_no_rule_is_not_sent():
    assert Posts(rulebook("nobody says this")).body(status(SEED, 1)) is None


# --- over sockets


async def test_rules_are_listed_as_they_were_created():
    async with serving() as served:
        client = Client(served)
        empty = await (await served.client.get(RULES, headers=BEARER)).json()
        assert empty.keys() == {"meta"}
        assert empty["meta"]["result_count"] == 0
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", empty["meta"]["sent"])

        code, answer = await client.post({"add": [KAFKA, RUST]})
        created = [{"id": "1", **KAFKA}, {"id": "2", **RUST}]
        assert (code, answer["data"]) == (201, created)
        assert answer["meta"]["summary"] == {"created": 2, "not_created": 0, "valid": 2, "invalid": 0}
        assert "errors" not in answer

        password = {"Authorization": basic("demo:demo")}  # the same user, hence the same rules
        listed = await (await served.client.get(RULES, headers=password)).json()
        assert (listed["data"], listed["meta"]["result_count"]) == (created, 2)

        dry = await served.client.post(RULES + "?dry_run=true", json={"add": [RUST]}, headers=BEARER)
        assert dry.status == 400


async def test_as_many_long_rules_as_there_may_be_fit_into_one_request():
    async with serving(max_rules=1_000) as served:
        rules = [{"value": f"{k:04}" + "\N{HIRAGANA LETTER KA}" * 1_020} for k in range(1_000)]
        assert len(await Client(served).add(*rules)) == 1_000
        assert (await Client(served).post({"add": [RUST]}))[0] == 422


async def test_posts_come_in_the_exact_bytes_that_the_books_tell():
    """None is deleted: the v2 stream knows no deletes."""
    async with serving(deletes_every=2) as served:
        client = Client(served)
        await client.add(KAFKA)
        response = await client.open()
        assert (response.status, response.headers["Content-Type"]) == (200, "application/json")
        served.hand.at = 300
        expected = posts("kafka", 1, 300, ("kafka", "streams"))
        assert any(b"\n" in body for body in expected)
        assert await read_by_crlf(response, len(expected)) == expected
        await served.connection(1, last_seq=300, endpoint=SEARCH, since_seq=None)
        for path in ("/owed", "/sent", "/owed?connection=1"):
            lines = await served.lines(path)
            assert [line["body"].encode() for line in lines] == expected
            assert [line["seq"] for line in lines] == seqs(expected)
            assert [line["id"] for line in lines] == [json.loads(body)["data"]["id"] for body in expected]


async def test_silence_is_filled_with_keep_alives():
    async with serving(keep_alive_s=1.0) as served:
        response = await Client(served).open()
        served.hand.at = 1
        assert await read_line(response) == b""


async def test_rules_change_under_an_open_connection():
    async with serving() as served:
        client = Client(served)
        response = await client.open()  # without any rule
        served.hand.at = 100
        await served.connection(1, last_seq=100)
        (kafka,) = await client.add(KAFKA)
        served.hand.at = 200
        await served.connection(1, last_seq=200)
        await client.add(RUST)
        served.hand.at = 300
        await served.connection(1, last_seq=300)
        await client.delete(kafka)
        served.hand.at = 400
        await served.connection(1, last_seq=400)

        expected = [*matching("kafka", 101, 200), *matching("kafka,rust", 201, 300)]
        expected += matching("rust", 301, 400)
        received = await read_by_crlf(response, len(expected))
        assert seqs(received) == expected
        for body in received:
            message = json.loads(body)
            words, seq = status(SEED, message["data"]["seq"]).words, message["data"]["seq"]
            assert message["matching_rules"] == [
                *([{"id": "1", "tag": "streams"}] if "kafka" in words and seq <= 300 else []),
                *([{"id": "2", "tag": ""}] if "rust" in words and seq > 200 else []),
            ]
        assert [line["body"].encode() for line in await served.lines("/owed")] == received
        told = (await served.get("/ledger"))["rules"]
        assert told == [
            {"id": "1", **KAFKA, "first_seq": 101, "last_seq": 300},
            {"id": "2", **RUST, "tag": None, "first_seq": 201, "last_seq": None},
        ]


async def test_a_connection_that_lags_behind_a_change_is_sent_what_matched_before_it():
    async with serving() as served:
        client = Client(served)
        (kafka,) = await client.add(KAFKA)
        response = await client.open()
        served.hand.at = 20_000
        await client.delete(kafka)
        await client.add(RUST)
        assert (await served.connection(1))["last_seq"] < 20_000, "too fast to lag"
        served.hand.at = 20_100
        expected = [*matching("kafka", 1, 20_000), *matching("rust", 20_001, 20_100)]
        received = await read_by_crlf(response, len(expected))
        assert seqs(received) == expected
        assert [line["body"].encode() for line in await served.lines("/owed")] == received


async def test_only_what_matched_while_a_connection_was_open_is_owed():
    async with serving() as served:
        client = Client(served)
        await client.add(KAFKA)
        served.hand.at = 100
        first = await client.open()
        served.hand.at = 200
        await served.connection(1, last_seq=200)
        first.close()
        await served.connection(1, close_reason="client gone")
        served.hand.at = 300
        await client.open()
        served.hand.at = 400
        await served.connection(2, last_seq=400)
        owed = [(line["seq"], line["connection"]) for line in await served.lines("/owed")]
        assert owed == [
            *((n, 1) for n in matching("kafka", 101, 200)),
            *((n, 2) for n in matching("kafka", 301, 400)),
        ]


async def test_a_second_connection_is_refused_while_the_first_is_open():
    async with serving(max_connections=5) as served:
        client = Client(served)
        first = await client.open()
        refused = await client.open()
        assert refused.status == 429
        assert await refused.json() == {
            "title": "ConnectionException",
            "detail": "This stream is currently at the maximum allowed connection limit.",
            "connection_issue": "TooManyConnections",
            "type": PROBLEMS + "streaming-connection",
        }
        first.close()
        await served.connection(1, close_reason="client gone")
        assert (await client.open()).status == 200
        assert len((await served.get("/ledger"))["connections"]) == 2


async def test_strangers_see_no_rules_and_no_posts():
    async with serving() as served:
        for request in (served.client.get(SEARCH), served.client.get(RULES), served.client.post(RULES)):
            response = await request
            assert (response.status, (await response.json())["title"]) == (401, "Unauthorized")


async def test_too_many_attempts_are_refused_apart_from_those_of_the_other_endpoint():
    async with serving(connects=2) as served:
        client = Client(served)
        assert [(await client.open()).status for _ in range(2)] == [200, 429]
        refused = await client.open()
        assert (refused.status, (await refused.json())["title"]) == (429, "Too Many Requests")
        assert (await served.connect(EVERYTHING)).status == 200


async def test_the_two_endpoints_neither_count_nor_hide_nor_evict_each_other():
    async with serving(max_connections=1) as served:
        client = Client(served)
        await client.add(KAFKA)
        await client.open()
        filtered = await served.connect({"track": "rust"})
        assert filtered.status == 200
        served.hand.at = 200
        await served.connection(1, last_seq=200)
        await served.connection(2, last_seq=200, closed_at=None)
        lines = await served.lines("/owed")
        assert lines == await served.lines("/sent")
        of_posts = [line for line in lines if line["connection"] == 1]
        of_statuses = [line for line in lines if line["connection"] == 2]
        assert [x["body"].encode() for x in of_posts] == posts("kafka", 1, 200, ("kafka", "streams"))
        assert [x["body"].encode() for x in of_statuses] == [
            status(SEED, n).body for n in matching("rust", 1, 200)
        ]
        assert set(matching("kafka rust", 1, 200)) <= {x["seq"] for x in of_posts}
        assert len(lines) == len(of_posts) + len(of_statuses)
