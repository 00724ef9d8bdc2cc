"""The sample upstream publishes what its seed says, frames it as asked and books it rightly.

Time stands still unless a test moves it: at one status a second, the hand of the clock points
at the number of published statuses.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import strategies as st
from upstream.admission import Account, ConnectLimit
from upstream.clock import Clock
from upstream.deletes import GAPS, Deletes, What
from upstream.ledger import Connection, Ledger, owed, owed_deletes, sent, sent_deletes
from upstream.predicates import Predicates
from upstream.server import Options, Upstream
from upstream.statuses import TOPICS, USER_IDS, status
from upstream.subscription import Refused, Subscription

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import ClientResponse

SEED = 7
FILTER = "/1.1/statuses/filter.json"
BEARER = {"Authorization": "Bearer demo-token"}
EVERYTHING = {"follow": ",".join(USER_IDS)}
KAFKA = {"track": "kafka"}


@dataclass
class Hand:
    """The hand of a clock that only a test moves."""

    at: float = 0.0

    def __call__(self) -> float:
        return self.at


@dataclass
class Served:
    client: TestClient
    hand: Hand

    async def connect(self, form: dict[str, str], **query: str) -> ClientResponse:
        return await self.client.post(FILTER, data=form, params=query, headers=BEARER)

    async def get(self, path: str) -> dict:
        return await (await self.client.get(path)).json()

    async def lines(self, path: str) -> list[dict]:
        return [json.loads(x) for x in (await (await self.client.get(path)).read()).splitlines()]

    async def connection(self, id_: int, **expected: object) -> dict:
        """Return a connection of the ledger as soon as it looks as expected."""
        while True:
            found = (await self.get("/ledger"))["connections"][id_ - 1]
            if expected.items() <= found.items():
                return found


@asynccontextmanager
async def serving(published: int = 0, **options: object) -> AsyncIterator[Served]:
    hand = Hand()
    upstream = Upstream(Options(seed=SEED, **options), Clock(rate=1.0, monotonic=hand))
    hand.at = published
    async with asyncio.timeout(10), TestClient(TestServer(upstream.app())) as client:
        yield Served(client, hand)


async def read_line(response: ClientResponse) -> bytes:
    line = await response.content.readuntil(b"\r\n")
    assert line.endswith(b"\r\n"), "the stream ended"
    return line[:-2]


async def read_by_crlf(response: ClientResponse, count: int) -> list[bytes]:
    bodies: list[bytes] = []
    while len(bodies) < count:
        if body := await read_line(response):
            bodies.append(body)
    return bodies


async def read_by_length(response: ClientResponse, count: int) -> list[bytes]:
    bodies: list[bytes] = []
    while len(bodies) < count:
        if length := await read_line(response):
            message = await response.content.readexactly(int(length))
            assert message.endswith(b"\r\n")
            bodies.append(message[:-2])
    return bodies


def bodies(first: int, last: int) -> list[bytes]:
    return [status(SEED, n).body for n in range(first, last + 1)]


def matching(track: str, first: int, last: int) -> list[int]:
    predicates = Predicates.parse(track, "")
    return [n for n in range(first, last + 1) if predicates.match(status(SEED, n))]


# --- statuses


async def test_another_process_makes_the_same_statuses():
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from upstream.statuses import status\n"
        "for n in range(1, 200): print(status(7, n).body.hex())"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, *sys.path), stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    assert [bytes.fromhex(line) for line in printed.decode().split()] == bodies(1, 199)


@given(st.integers(), st.integers(1, 10**9), st.integers(0, 5_000))
def test_a_status_is_json_that_never_holds_crlf(seed: int, n: int, min_bytes: int):
    this = status(seed, n, min_bytes)
    read = json.loads(this.body)
    assert (read["seq"], read["id"], read["id_str"]) == (n, this.id, str(this.id))
    assert read["user"] == {
        "id": int(this.user_id),
        "id_str": this.user_id,
        "screen_name": f"user_{this.user_id}",
    }
    assert this.user_id in USER_IDS
    assert this.id > 2**53
    assert b"\r" not in this.body
    assert min_bytes <= len(this.body) <= max(min_bytes + 16, 600)
    assert 1 <= len(this.words & set(TOPICS)) <= 4


def test_statuses_differ_by_number_and_by_seed():
    assert len({status(SEED, n).id for n in range(1, 2_000)}) == 1_999
    assert status(1, 5).body != status(2, 5).body


def test_ids_rise_with_the_number():
    ids = [status(SEED, n).id for n in range(1, 2_000)]
    assert ids == sorted(ids)


@pytest.mark.parametrize("trap", ["\n", "\u2028", "\x85", '\\"', "\\\\", "\\r\\n", "\U0001f680"])
def test_every_trap_for_a_client_occurs_now_and_then(trap: str):
    trapped = sum(trap in status(SEED, n).body.decode() for n in range(1, 1_001))
    assert 0 < trapped < 300


# --- predicates


@pytest.mark.parametrize(
    ("track", "follow", "expected"),
    [
        ("kafka", "", True),
        ("KAFKA", "", True),
        ("kaf", "", False),
        ("rust,kafka", "", True),
        ("streams kafka", "", True),
        ("kafka rust", "", False),
        ("kafka rust, Streams  KAFKA ", "", True),
        ("", "42", True),
        ("", "7, 42", True),
        ("", "4", False),
        ("rust", "42", True),
        ("", "", False),
        (" , ", ",", False),
    ],
)
def test_phrases_and_users_are_or_ed_and_the_words_of_a_phrase_and_ed(
    track: str, follow: str, expected: bool
):
    this = replace(status(SEED, 1), words=frozenset({"kafka", "streams"}), user_id="42")
    assert Predicates.parse(track, follow).match(this) is expected


def test_words_in_capitals_and_beside_quotes_are_found():
    for n in range(1, 1_000):
        text = json.loads(status(SEED, n).body)["text"].lower()
        assert Predicates.parse("kafka,quoted", "").match(status(SEED, n)) == (
            "kafka" in text or '"quoted"' in text
        )


# --- clock


def test_the_clock_publishes_at_its_rate():
    hand = Hand(at=100.0)
    clock = Clock(rate=200.0, monotonic=hand)
    assert clock.published() == 0
    hand.at += 0.012
    assert clock.published() == 2
    assert clock.elapsed_s() == pytest.approx(0.012)


@given(st.floats(0.1, 10_000), st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_freezing_stops_the_count_and_thawing_resumes_it_without_a_jump(rate: float, waits_s: list[float]):
    hand = Hand(at=12_345.678)
    clock = Clock(rate=rate, monotonic=hand)
    for wait_s in waits_s:
        hand.at += wait_s
        frozen = clock.freeze()
        hand.at += wait_s
        assert clock.freeze() == clock.published() == clock.thaw() == frozen
        hand.at += wait_s
        clock.thaw()  # running already
    assert clock.published() == pytest.approx(2 * rate * sum(waits_s), abs=1.01)


# --- admission


def basic(proof: str) -> str:
    return "Basic " + base64.b64encode(proof.encode()).decode()


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        ("Bearer secret", "ann"),
        ("bearer secret", "ann"),
        (basic("ann:pw"), "ann"),
        (basic("ann:px"), None),
        (basic("bob:pw"), None),
        ("Bearer wrong", None),
        ("Bearer \u00e9", None),
        ("Basic secret", None),
        ("Digest secret", None),
        ("Bearer", None),
        ("", None),
    ],
)
def test_only_the_password_or_the_token_proves_the_user(authorization: str, expected: str | None):
    assert Account("ann", "pw", "secret").authenticate(authorization) == expected


def test_refused_attempts_count_and_old_ones_are_forgotten():
    limit = ConnectLimit(connects=2, window_s=10.0)
    assert [limit.admit("ann", t) for t in (0.0, 1.0, 2.0)] == [True, True, False]
    assert limit.admit("bob", 2.0)
    assert not limit.admit("ann", 10.0)  # 1, 2 and 10
    assert not limit.admit("ann", 11.5)  # 2, 10 and 11.5
    assert limit.admit("ann", 20.0)  # 11.5 and 20


# --- ledger


def entry(id_: int, live: int, last: int | None, sent_: list[int], **fields: object) -> Connection:
    """A connection that was live from one status to another; None: it still is."""
    first = fields.get("first_seq", live)
    return Connection(
        **{
            "id": id_,
            "user": "ann",
            "endpoint": FILTER,
            "track": "",
            "follow": "",
            "since_seq": None if first == live else first - 1,
            "first_seq": first,
            "live_seq": live,
            "last_seq": max([live - 1, *sent_]) if last is None else last,
            "opened_at": 0.0,
            "closed_at": None if last is None else 1.0,
            "sent": sent_,
            **fields,
        }
    )


def test_all_that_a_lonely_connection_was_sent_is_owed():
    assert owed([entry(1, 1, 9, [2, 4, 9])]) == {2: 1, 4: 1, 9: 1}


def test_what_two_connections_got_is_owed_once_by_the_newer():
    assert owed([entry(1, 1, None, [2, 6, 7]), entry(2, 5, None, [6, 7])]) == {2: 1, 6: 2, 7: 2}


def test_what_only_the_older_got_while_a_newer_was_open_is_not_owed():
    assert owed([entry(1, 1, None, [4, 5, 6, 7]), entry(2, 5, 6, [])]) == {4: 1, 7: 1}


def test_an_open_connection_that_lags_hides_what_it_has_still_to_consider():
    older = entry(1, 1, None, [8])
    assert owed([older, entry(2, 5, None, [], last_seq=6)]) == {}
    assert owed([older, entry(2, 5, 6, [])]) == {8: 1}


def test_a_newer_connection_that_considered_nothing_hides_nothing():
    assert owed([entry(1, 1, 9, [5, 9]), entry(2, 5, 4, [])]) == {5: 1, 9: 1}


def test_connections_of_other_users_hide_nothing():
    assert owed([entry(1, 1, 9, [5]), entry(2, 1, 9, [6], user="bob")]) == {5: 1, 6: 2}


def test_a_replay_is_owed_but_hides_nothing_before_its_live_start():
    older = entry(1, 1, 20, [3, 7, 12])
    resumed = entry(2, 11, 20, [4, 15], first_seq=2)
    assert owed([older, resumed]) == {3: 1, 4: 2, 7: 1, 15: 2}


def test_what_was_sent_and_is_replayed_is_owed_by_the_replay():
    assert owed([entry(1, 1, 9, [3, 7]), entry(2, 11, 20, [7], first_seq=5)]) == {3: 1, 7: 2}


def test_a_replay_is_owed_even_below_a_newer_connection():
    resumed = entry(1, 11, 30, [4, 12], first_seq=2)
    assert owed([resumed, entry(2, 3, 20, [])]) == {4: 1}


def test_a_cursor_ahead_of_the_stream_hides_nothing_before_it():
    assert owed([entry(1, 1, 30, [15, 25]), entry(2, 11, 30, [], first_seq=20)]) == {15: 1}


def test_sent_lists_all_once_by_the_newest_in_order():
    assert list(sent([entry(2, 5, 9, [6, 8]), entry(1, 1, 9, [2, 6, 9])]).items()) == [
        *((2, 1), (6, 2)),
        *((8, 2), (9, 1)),
    ]


@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.integers(0, 30), st.sets(st.integers(1, 30)), st.booleans()),
        max_size=6,
    )
)
def test_owed_is_a_part_of_sent_and_follows_its_definition(drawn: list):
    books = [
        entry(id_, live, None if is_open else live - 1 + length, sorted(n for n in sent_ if n >= live))
        for id_, (live, length, sent_, is_open) in enumerate(drawn, start=1)
    ]
    books = [c for c in books if c.closed_at is None or not c.sent or c.sent[-1] <= c.last_seq]
    expected = {}
    for n in range(1, 31):
        newest = max((c for c in books if c.is_open_for(n)), key=lambda c: c.id, default=None)
        if newest is not None and n in newest.sent:
            expected[n] = newest.id
    assert owed(books) == expected
    assert owed(books).keys() <= sent(books).keys()


def test_a_copy_may_have_been_received_and_is_owed_by_nobody():
    books = [entry(1, 1, 9, [2], copies=[4])]
    assert (owed(books), sent(books)) == ({2: 1}, {2: 1, 4: 1})


def test_a_delete_is_owed_where_it_was_said_whatever_its_status_is():
    older = entry(1, 1, None, [3, 4], last_seq=9, deleted=[(6, 3), (7, 4)])
    newer = entry(2, 7, None, [], last_seq=9)
    assert owed([older, newer]) == {3: 1, 4: 1}
    assert owed_deletes([older, newer]) == {3: 1}
    assert sent_deletes([older, newer]) == {3: 1, 4: 1}


def test_a_delete_that_is_told_again_is_owed_by_the_replay():
    books = [entry(1, 1, 9, [3], deleted=[(6, 3)]), entry(2, 11, 20, [], first_seq=5, deleted=[(6, 3)])]
    assert owed_deletes(books) == sent_deletes(books) == {3: 2}


# --- deletes


def test_without_deletes_each_status_has_its_place():
    assert [Deletes().at(n) for n in (1, 500)] == [[(What.STATUS, 1)], [(What.STATUS, 500)]]


def said(every: int, places: int) -> dict[int, list[tuple[int, What]]]:
    """Return what is said of each status, and where."""
    found: dict[int, list[tuple[int, What]]] = {}
    for place in range(1, places + 1):
        for what, n in Deletes(every).at(place):
            found.setdefault(n, []).append((place, what))
    return found


@pytest.mark.parametrize("every", [1, 2, 7, 50])
def test_one_status_of_so_many_is_deleted_in_ways_and_gaps_that_take_turns(every: int):
    last = 60 * every
    by_status = said(every, last + 2 * max(GAPS))
    ways = set()
    for n in range(1, last + 1):
        places, what = zip(*by_status[n], strict=True)
        assert places[0] == n
        if n % every:
            assert what == (What.STATUS,)
        else:
            gap = places[1] - places[0]
            assert [place - n for place in places] == [gap * step for step in range(len(places))]
            ways.add((what, gap))
    assert ways == {
        (way, gap)
        for gap in GAPS
        for way in [
            (What.STATUS, What.DELETE),
            (What.DELETE, What.COPY),
            (What.STATUS, What.DELETE, What.COPY),
        ]
    }


# --- the server


@pytest.mark.parametrize(("form", "read"), [({}, read_by_crlf), ({"delimited": "length"}, read_by_length)])
async def test_both_framings_carry_the_exact_bodies(form: dict[str, str], read):
    async with serving(status_bytes=0) as served:
        response = await served.connect(EVERYTHING | form)
        assert response.status == 200
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["Transfer-Encoding"] == "chunked"
        served.hand.at = 300
        assert await read(response, 300) == bodies(1, 300)
        assert any(b"\n" in body for body in bodies(1, 300))


async def test_statuses_are_padded_on_the_wire_and_in_the_books():
    async with serving(status_bytes=2_000) as served:
        response = await served.connect(EVERYTHING)
        served.hand.at = 1
        assert await read_by_crlf(response, 1) == [status(SEED, 1, 2_000).body]
        assert len((await served.lines("/owed"))[0]["body"].encode()) >= 2_000


async def test_headers_come_at_once_and_then_only_keep_alives():
    async with serving(published=50, keep_alive_s=30.0) as served:
        response = await served.connect({"track": "nobody says this"})
        served.hand.at += 29.9
        await served.connection(1, last_seq=79)
        assert response.content.total_bytes == 0
        served.hand.at += 0.1
        assert await response.content.readany() == b"\r\n"


async def test_only_what_matches_is_sent_and_all_is_considered():
    async with serving() as served:
        response = await served.connect(KAFKA)
        served.hand.at = 500
        expected = matching("kafka", 1, 500)
        assert await read_by_crlf(response, len(expected)) == [status(SEED, n).body for n in expected]
        found = await served.connection(1, last_seq=500)
        assert found["sent"] == expected


async def test_a_connection_without_a_cursor_starts_with_the_next_status():
    async with serving(published=20) as served:
        response = await served.connect(EVERYTHING)
        served.hand.at = 22
        assert await read_by_crlf(response, 2) == bodies(21, 22)
        found = await served.connection(1)
        assert (found["since_seq"], found["first_seq"], found["live_seq"]) == (None, 21, 21)


@pytest.mark.parametrize("place", ["form", "query"])
async def test_a_cursor_is_exclusive_and_the_replay_runs_over_into_live(place: str):
    async with serving(published=1_000) as served:
        cursor = {"since_seq": "3"}
        if place == "form":
            response = await served.connect(EVERYTHING | cursor)
        else:
            response = await served.connect(EVERYTHING, **cursor)
        assert await read_by_crlf(response, 997) == bodies(4, 1_000)
        served.hand.at = 1_001
        assert await read_by_crlf(response, 1) == bodies(1_001, 1_001)
        found = await served.connection(1)
        assert (found["since_seq"], found["first_seq"], found["live_seq"]) == (3, 4, 1_001)


async def test_a_cursor_ahead_of_the_stream_waits_for_it():
    async with serving(published=10) as served:
        response = await served.connect(EVERYTHING | {"since_seq": "15"})
        served.hand.at = 16
        assert await read_by_crlf(response, 1) == bodies(16, 16)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({}, 406),
        ({"track": " ,", "follow": ""}, 406),
        ({"track": ",".join(f"w{k}" for k in range(401))}, 413),
        ({"track": ",".join(f"w{k}" for k in range(400))}, 200),
        ({"follow": ",".join(map(str, range(5_001)))}, 413),
        ({"follow": ",".join(map(str, range(5_000)))}, 200),
        (KAFKA | {"since_seq": "soon"}, 400),
        (KAFKA | {"since_seq": "-1"}, 400),
        (KAFKA | {"since_seq": ""}, 400),
        (KAFKA | {"since_seq": "9" * 5_000}, 400),
        (KAFKA | {"since_seq": "0"}, 200),
    ],
)
async def test_what_cannot_be_served_is_refused(form: dict[str, str], expected: int):
    async with serving() as served:
        assert (await served.connect(form)).status == expected
        assert len((await served.get("/ledger"))["connections"]) == (expected == 200)


async def test_strangers_are_refused_and_count_for_nobody():
    async with serving(connects=1) as served:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            response = await served.client.post(FILTER, data=KAFKA, headers=headers)
            assert response.status == 401
        both = {"Authorization": basic("demo:demo")}
        assert (await served.client.post(FILTER, data=KAFKA, headers=both)).status == 200
        assert (await served.connection(1))["user"] == "demo"


async def test_too_many_connects_are_refused_until_the_window_has_passed():
    async with serving(connects=2, connects_window_s=60.0) as served:
        assert [(await served.connect(KAFKA)).status for _ in range(3)] == [200, 200, 420]
        served.hand.at = 59
        assert (await served.connect(KAFKA)).status == 420
        served.hand.at = 119.5
        assert (await served.connect(KAFKA)).status == 200


@pytest.mark.parametrize(("form", "read"), [({}, read_by_crlf), ({"delimited": "length"}, read_by_length)])
async def test_one_connection_too_many_ends_the_oldest_with_a_message(form: dict, read):
    async with serving(max_connections=2) as served:
        oldest, older, _ = [await served.connect(EVERYTHING | form) for _ in range(3)]
        message = json.loads((await read(oldest, 1))[0])["disconnect"]
        assert (message["code"], message["reason"]) == (7, "admin logout")
        assert message["stream_name"]
        assert await oldest.content.read() == b""  # a proper end, or this would raise
        served.hand.at = 1
        assert await read(older, 1) == bodies(1, 1)
        found = await served.connection(1, close_reason="admin logout", closed_at=0.0)
        assert (found["sent"], found["last_seq"]) == ([], 0)
        await served.connection(3, last_seq=1)
        assert {line["connection"] for line in await served.lines("/owed")} == {3}


async def test_one_connection_too_many_may_be_refused_instead():
    async with serving(max_connections=2, too_many="refuse") as served:
        first, second = [await served.connect(EVERYTHING) for _ in range(2)]
        refused = await served.connect(EVERYTHING)
        assert (refused.status, refused.reason) == (420, "Enhance Your Calm")
        assert await refused.text() == "Exceeded connection limit for user\n"
        served.hand.at = 1
        assert await read_by_crlf(first, 1) == await read_by_crlf(second, 1) == bodies(1, 1)
        assert len((await served.get("/ledger"))["connections"]) == 2
        first.close()
        await served.connection(1, close_reason="client gone")
        assert (await served.connect(EVERYTHING)).status == 200


async def test_a_client_that_disappears_is_closed_in_the_ledger():
    async with serving() as served:
        response = await served.connect(EVERYTHING)
        served.hand.at = 2
        await read_by_crlf(response, 2)
        response.close()
        await served.connection(1, close_reason="client gone", closed_at=2.0)
        served.hand.at = 9
        assert (await served.connect(EVERYTHING)).status == 200
        assert (await served.connection(2, first_seq=10))["closed_at"] is None
        assert (await served.connection(1))["last_seq"] == 2


async def test_a_client_that_does_not_read_lags_and_delays_nobody():
    async with serving(published=60_000, status_bytes=4_000) as served:
        await served.connect(EVERYTHING | {"since_seq": "0"})
        response = await served.connect(EVERYTHING | {"since_seq": "59990"})
        await read_by_crlf(response, 10)
        slow = await served.connection(1, closed_at=None)
        while (now := await served.connection(1))["last_seq"] != slow["last_seq"]:
            slow = now
        assert slow["last_seq"] < 60_000


async def test_nothing_is_published_while_frozen_but_keep_alives_go_on():
    async with serving(keep_alive_s=1.0) as served:
        response = await served.connect(EVERYTHING)
        served.hand.at = 5
        await read_by_crlf(response, 5)
        assert await (await served.client.post("/freeze")).json() == {"published": 5}
        for _ in range(3):
            served.hand.at += 1
            assert await read_line(response) == b""
        assert (await served.get("/ledger"))["published"] == 5
        assert await (await served.client.post("/thaw")).json() == {"published": 5}
        served.hand.at += 2
        assert await read_by_crlf(response, 2) == bodies(6, 7)


async def test_owed_and_sent_are_told_with_their_bodies():
    async with serving() as served:
        old = await served.connect(EVERYTHING)
        served.hand.at = 100
        await read_by_crlf(old, 100)
        new = await served.connect(KAFKA)
        served.hand.at = 300
        await read_by_crlf(old, 200)
        overlap = matching("kafka", 101, 300)
        await read_by_crlf(new, len(overlap))
        await served.connection(2, last_seq=300)

        lines = await served.lines("/owed")
        assert [(x["seq"], x["connection"]) for x in lines] == [
            *((n, 1) for n in range(1, 101)),
            *((n, 2) for n in overlap),
        ]
        assert [x["body"].encode() for x in lines[:100]] == bodies(1, 100)
        assert {x["id"] for x in lines[:100]} == {str(status(SEED, n).id) for n in range(1, 101)}
        assert await served.lines("/owed?connection=2") == lines[100:]
        assert [x["seq"] for x in await served.lines("/sent")] == list(range(1, 301))


def messages(every: int, first: int, last: int, track: str = "") -> list[bytes]:
    """Return what is written from one place to another where statuses are deleted."""
    found = []
    for place in range(first, last + 1):
        for what, n in Deletes(every).at(place):
            this = status(SEED, n)
            if track and not Predicates.parse(track, "").match(this):
                continue
            gone = {"id": this.id, "id_str": str(this.id)}
            gone |= {"user_id": int(this.user_id), "user_id_str": this.user_id}
            body = json.dumps({"delete": {"status": gone}}, separators=(",", ":")).encode()
            found.append(body if what is What.DELETE else this.body)
    return found


async def test_deletes_and_late_copies_come_in_their_places_to_who_asks_for_the_status():
    async with serving(deletes_every=5) as served:
        everything, kafka = await served.connect(EVERYTHING), await served.connect(KAFKA)
        served.hand.at = 300
        expected = messages(5, 1, 300)
        assert sum(body.startswith(b'{"delete":') for body in expected) > 30
        assert await read_by_crlf(everything, len(expected)) == expected
        expected = messages(5, 1, 300, "kafka")
        assert await read_by_crlf(kafka, len(expected)) == expected
        lines = await served.lines("/deleted")
        assert {line["id"]: line["connection"] for line in lines if line["owed"]} == {
            json.loads(body)["delete"]["status"]["id_str"]: 2 for body in expected if b'"delete"' in body
        }
        assert {line["connection"] for line in lines if not line["owed"]} == {1}


async def test_a_replay_and_a_later_connection_are_told_of_deletes_too():
    async with serving(published=300, deletes_every=5) as served:
        replay, late = (
            await served.connect(EVERYTHING | {"since_seq": "100"}),
            await served.connect(EVERYTHING),
        )
        expected = messages(5, 101, 300)
        assert await read_by_crlf(replay, len(expected)) == expected
        served.hand.at = 320
        expected = messages(5, 301, 320)
        assert await read_by_crlf(late, len(expected)) == expected


async def test_the_books_say_what_must_be_gone_in_the_end_and_what_must_not():
    """A client that heeds deletes comes out right over two connections that overlap."""
    async with serving(deletes_every=3) as served:
        old = await served.connect(EVERYTHING)
        served.hand.at = 200
        heard = await read_by_crlf(old, len(messages(3, 1, 200)))
        new = await served.connect({"track": "kafka,rust"})
        served.hand.at = 1_500
        heard += await read_by_crlf(new, len(messages(3, 201, 1_500, "kafka,rust")))
        await served.connection(1, last_seq=1_500)
        read = [json.loads(body) for body in heard]
        gone = {one["delete"]["status"]["id_str"] for one in read if "delete" in one}
        there = {one["id_str"] for one in read if "delete" not in one} - gone

        told = await served.lines("/deleted")
        may_be_gone, must_be_gone = {one["id"] for one in told}, {one["id"] for one in told if one["owed"]}
        assert must_be_gone <= gone <= may_be_gone
        assert {one["id"] for one in await served.lines("/owed")} - may_be_gone <= there
        assert there <= {one["id"] for one in await served.lines("/sent")}
        assert there
        assert must_be_gone < may_be_gone, "what only the old one was told does not count"


async def test_stopping_ends_open_connections_properly():
    async with serving() as served:
        response = await served.connect(EVERYTHING)
        served.hand.at = 1
        await read_by_crlf(response, 1)
        await served.client.server.close()
        assert await response.content.read() == b""


async def test_the_process_prints_its_url_and_ends_with_its_stdin():
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "upstream", "--exit-with-stdin"),
        env={"PYTHONPATH": ":".join(sys.path)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        assert process.stdout is not None
        line = await process.stdout.readline()
        assert json.loads(line)["url"].startswith("http://127.0.0.1:")
        rest, _ = await process.communicate(b"")  # closes its stdin
    assert (process.returncode, rest) == (0, b"")


# --- shares


def test_shares_have_all_that_matches_between_them_each_status_once():
    whole = Subscription.parse({"track": "kafka"})
    parts = [Subscription.parse({"track": "kafka", "partition": str(k), "partitions": "3"}) for k in range(3)]
    statuses = [status(1, n) for n in range(1, 300)]
    owners = [[part for part in parts if part.body(one) is not None] for one in statuses]
    assert [len(its) for its in owners] == [int(whole.body(one) is not None) for one in statuses]
    assert {part.share for its in owners for part in its} == {(0, 3), (1, 3), (2, 3)}


@pytest.mark.parametrize(("part", "count"), [("3", "3"), ("-1", "3"), ("0", "0"), ("x", "3"), ("0", "")])
def test_a_share_is_one_of_so_many(part, count):
    with pytest.raises(Refused) as refused:
        Subscription.parse({"track": "kafka", "partition": part, "partitions": count})
    assert refused.value.status == 400


def test_a_share_makes_room_for_no_other_and_owes_for_itself():
    ledger = Ledger()
    for part in (0, 1, 0):
        ledger.register(user="ann", endpoint=FILTER, share=(part, 2), published=0, now=0.0)
    assert [one.id for one in ledger.open_connections("ann", FILTER, (0, 2))] == [1, 3]
    assert [[one.id for one in its] for its in ledger.by_stream()] == [[1, 3], [2]]
