"""Rules over real sockets: changed, refused, and against servers that fail in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import orjson
import pytest
import trustme
from aiohttp import web
from fault_server import FaultServer, answer, hangs, says
from reading import PATIENCE_S
from test_reader_faults import ca_file, serving

from connector.errors import (
    BadStatus,
    Disconnected,
    RulesRefused,
    Stalled,
    Unreachable,
    Unsendable,
    WrongContent,
)
from connector.stream.call import Call
from connector.stream.connection import HttpConnect, Opened, Target
from connector.stream.credentials import Bearer
from connector.stream.dialect import Liveness
from connector.stream.rules import MAX_BODY_BYTES
from connector.stream.transport import Tls

SOON = Liveness(connect_timeout_s=0.2, headers_timeout_s=0.3, stall_timeout_s=20)
PATIENT = Liveness(connect_timeout_s=20, headers_timeout_s=20, stall_timeout_s=20)
STREAM = Call("GET", "expansions=author_id", {}, rules=["b", "c"])


class Credentials(Bearer):
    """A token, and how often it was rejected."""

    rejections = 0

    def rejected(self) -> None:
        Credentials.rejections += 1


@pytest.fixture(autouse=True)
def _no_rejections() -> None:
    Credentials.rejections = 0


def target(url: str, liveness: Liveness = PATIENT, **more) -> Target:
    more = {"credentials": Credentials(lambda: "secret"), "rules_path": "/rules", "max_rules": 10, **more}
    return Target(url=url, liveness=liveness, **more)


async def amend(where: Target, *rules: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await HttpConnect().amend(where, rules)


async def read(where: Target, *_: str) -> list[Opened | bytes]:
    async with asyncio.timeout(PATIENCE_S), aclosing(HttpConnect()(where, STREAM)) as chunks:
        return [chunk async for chunk in chunks]


class Platform:
    """Rules and a stream, as X has them.

    Attributes:
        requests: what was asked: method, path with query, and body.
    """

    def __init__(self, *values: str, bad: Sequence[str] = ()) -> None:
        self.rules = {str(number): value for number, value in enumerate(values, 100)}
        self.bad = bad
        self.requests: list[tuple[str, str, object]] = []
        self.headers: list[dict[str, str]] = []

    async def serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append((request.method, request.path_qs, orjson.loads(body) if body else None))
        self.headers.append({name.lower(): text for name, text in request.headers.items()})
        if not request.path.endswith("/rules"):
            return web.Response(body=b'{"data":{"id":"1"}}\r\n', content_type="application/json")
        if request.method == "GET":
            data = [{"id": one, "value": value} for one, value in self.rules.items()]
            return web.json_response({"data": data, "meta": {}})
        asked = orjson.loads(body)
        if refused := [one["value"] for one in asked.get("add", ()) if one["value"] in self.bad]:
            errors = [{"value": one, "details": ["bad syntax"], "title": "Unprocessable"} for one in refused]
            return web.json_response({"errors": errors}, status=422)
        created = []
        for rule in asked.get("add", ()):
            created.append({"id": str(200 + len(self.rules)), **rule})
            self.rules[created[-1]["id"]] = rule["value"]
        for one in asked.get("delete", {}).get("ids", ()):
            del self.rules[one]
        return web.json_response({"data": created, "meta": {}}, status=201 if created else 200)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", self.serve)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/2/search/stream?tweet.fields=lang"
        finally:
            await runner.cleanup()


async def test_rules_are_amended_where_the_stream_is() -> None:
    platform = Platform("a", "b")
    async with platform.running() as url:
        await amend(target(url), "b", "ünicode \N{SNOWMAN}")
    path = "/2/search/stream/rules"
    added = {"add": [{"value": "ünicode ☃", "tag": "ünicode ☃"}]}
    assert platform.requests == [
        ("GET", path, None),
        ("POST", path, added),
        ("POST", path, {"delete": {"ids": ["100"]}}),
    ]
    assert sorted(platform.rules.values()) == ["b", "ünicode ☃"]
    assert {headers["authorization"] for headers in platform.headers} == {"Bearer secret"}
    assert {headers["accept-encoding"] for headers in platform.headers} == {"identity"}
    assert [headers.get("content-type") for headers in platform.headers] == [None, *["application/json"] * 2]


async def test_rules_are_in_force_before_the_stream_is_asked_for() -> None:
    platform = Platform("a", "b")
    async with platform.running() as url:
        got = await read(target(url))
    assert got == [Opened(), b'{"data":{"id":"1"}}\r\n']
    assert [method for method, _, _ in platform.requests] == ["GET", "POST", "POST", "GET"]
    assert platform.requests[-1] == (
        "GET",
        "/2/search/stream?tweet.fields=lang&expansions=author_id",
        None,
    )


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
async def test_a_thousand_long_rules_fit_into_one_call() -> None:
    """Two megabytes: nothing that holds up the loop, as aiohttp warns."""
    platform = Platform()
    rules = [f"{number:04}" + "x" * 1020 for number in range(1000)]
    async with platform.running() as url:
        await amend(target(url, max_rules=1000), *rules)
        await amend(target(url, max_rules=1000), *rules)
    assert [method for method, _, _ in platform.requests] == ["GET", "POST", "GET"]


async def test_a_refused_rule_keeps_the_stream_from_being_asked_for() -> None:
    platform = Platform("a", bad=["c"])
    async with platform.running() as url:
        with pytest.raises(RulesRefused, match="'c': bad syntax"):
            await read(target(url))
    assert all(path.endswith("/rules") for _, path, _ in platform.requests)
    assert list(platform.rules.values()) == ["a"]


async def test_no_rules_at_all_are_rules_too() -> None:
    platform = Platform("a", "b")
    async with platform.running() as url:
        await amend(target(url))
    assert platform.rules == {}


# Servers that fail


@pytest.mark.parametrize(("status", "rejections"), [(401, 1), (403, 0), (503, 0), (204, 0)])
async def test_a_status_is_as_bad_as_for_a_stream(status: int, rejections: int) -> None:
    for ask in (amend, read):
        async with FaultServer.of(says(answer(status))) as server:
            with pytest.raises(BadStatus) as caught:
                await ask(target(server.url), "a")
            assert caught.value.status == status
            await server.connections[0].gone()
    assert Credentials.rejections == 2 * rejections


async def test_a_rate_limit_says_how_long_it_takes() -> None:
    limited = answer(429, "Retry-After: 7", "x-rate-limit-reset: 4000000000")
    async with FaultServer.of(says(limited)) as server:
        with pytest.raises(BadStatus) as caught:
            await amend(target(server.url), "a")
    assert caught.value.retry_after_s == 7
    assert caught.value.reset_in_s is not None
    assert caught.value.reset_in_s > 1e9


def body(content: bytes, *headers: str, status: int = 200, length: int | None = None) -> bytes:
    head = [f"HTTP/1.1 {status} X", f"Content-Length: {len(content) if length is None else length}", *headers]
    return "".join(f"{line}\r\n" for line in (*head, "")).encode() + content


@pytest.mark.parametrize(
    "sent",
    [
        body(b"garbage"),
        body(b'{"data":[', length=100),
        body(b"{}", "Content-Type: text/html"),
        body(b"{}", "Content-Encoding: gzip"),
        body(b"\xff\xfe" * 1000),
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"",
    ],
    ids=["garbage", "cut", "html", "gzip", "binary", "no http", "hangs up"],
)
async def test_garbage_is_a_reason_to_try_again(sent: bytes) -> None:
    async with FaultServer.of(says(sent, then_hang=False)) as server:
        with pytest.raises(Disconnected) as caught:
            await amend(target(server.url), "a")
        assert len(server.connections) == 1
    assert type(caught.value) in {Disconnected, WrongContent}
    assert str(caught.value).isprintable()


async def test_an_answer_without_end_is_not_read_to_it() -> None:
    parts = [b"HTTP/1.1 200 OK\r\n\r\n", *[b" " * (1 << 20)] * 64]
    async with FaultServer.of(says(*parts)) as server:
        with pytest.raises(WrongContent, match="more than rules"):
            await amend(target(server.url), "a")
        await server.connections[0].gone()
    assert len(parts) << 20 > MAX_BODY_BYTES


@pytest.mark.parametrize(
    "sent", [b"", b"HTTP/1.1 200 OK\r\n", body(b'{"data":[', length=99)], ids=["nothing", "head", "body"]
)
async def test_a_server_that_hangs_is_given_up(sent: bytes) -> None:
    async with FaultServer.of(says(sent)) as server:
        with pytest.raises(Stalled, match=r"within 0\.5 s"):
            await amend(target(server.url, SOON), "a")
        await server.connections[0].gone()


async def test_a_server_that_hangs_half_way_is_given_up() -> None:
    async with FaultServer.of(says(body(b'{"meta":{}}')), hangs) as server:
        with pytest.raises(Stalled):
            await amend(target(server.url, SOON), "a")
        assert b'{"add":[{"value":"a","tag":"a"}]}' in server.requests[1]


async def test_nobody_there_is_unreachable_until_it_has_answered() -> None:
    """Which is what gives an attempt back to the budget."""
    async with FaultServer.of(says(body(b"{}"))) as server:
        gone = server.url
    for where in (target(gone), target("http://127.0.0.1:1/", proxy=gone)):
        with pytest.raises(Unreachable):
            await amend(where, "a")
    once = FaultServer.of()

    async def last(connection) -> None:
        await connection.read_request()
        once._server.close()
        await connection.send(body(b'{"data":[{"id":"1","value":"a"}]}'))

    once.scripts.append(last)
    async with once as server:
        with pytest.raises(Disconnected) as caught:
            await read(target(server.url))
    assert type(caught.value) is Disconnected


async def test_a_metadata_address_is_not_asked() -> None:
    with pytest.raises(Unsendable, match="link-local"):
        await amend(target("http://169.254.169.254/latest"), "a")


async def test_rules_and_credentials_never_follow_a_redirect(tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = serving(authority.issue_cert("127.0.0.1"))
    mine = Tls(ca_file=ca_file(authority, tmp_path))
    async with FaultServer.of(tls=tls) as other:
        there = says(answer(307, f"Location: {other.url}"))
        async with FaultServer.of(there, says(answer(302, "Location: /v3/rules")), tls=tls) as server:
            with pytest.raises(BadStatus, match="is not followed"):
                await amend(target(server.url, tls=mine), "a")
            with pytest.raises(Stalled):  # within the origin it is followed
                await amend(target(server.url, SOON, tls=mine), "a")
            assert server.requests[2].startswith(b"GET /v3/rules ")
        assert other.connections == []
