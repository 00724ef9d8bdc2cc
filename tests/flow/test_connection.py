"""One HTTP response, over `httpx.MockTransport`: what is sent, and what each failure becomes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import ClassVar

import aiohttp
import httpx
import pytest

from connector import __version__
from connector.errors import BadStatus, Disconnected, Stalled, Unreachable, Unsendable, WrongContent
from connector.stream.call import Call
from connector.stream.connection import HttpConnect, Opened, Target
from connector.stream.credentials import Bearer, NoCredentials, OAuth2ClientCredentials
from connector.stream.dialect import Liveness, Response

pytestmark = pytest.mark.looptime(idle_timeout=1)


class Body(httpx.AsyncByteStream):
    """A body of these chunks, which then ends, fails or hangs for ever."""

    def __init__(self, *chunks: bytes, then: Exception | None = None, hang: bool = False) -> None:
        self._chunks, self._then, self._hang = chunks, then, hang
        self.closed = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk
        if self._hang:
            await asyncio.get_running_loop().create_future()
        if self._then is not None:
            raise self._then

    async def aclose(self) -> None:
        self.closed += 1


class Upstream:
    """Answers each request with the next of *answers*, or raises it."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self._answers: Iterator[httpx.Response | Exception] = iter(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


LIVENESS = Liveness(connect_timeout_s=3, headers_timeout_s=30, stall_timeout_s=90)
POST = Call("POST", "", {"Content-Type": "application/x-www-form-urlencoded"}, b"track=k%C3%A4fer", form=True)


def target(
    token: Callable[[], str] | None = None, url: str = "http://upstream/filter.json", **more
) -> Target:
    credentials = NoCredentials() if token is None else Bearer(token)
    return Target(url=url, credentials=credentials, liveness=LIVENESS, **more)


async def read(
    upstream: Upstream, where: Target | None = None, call: Call = POST, attempts: int = 1
) -> list[Opened | bytes]:
    """Read the last of so many connections to its end."""
    connect = HttpConnect(lambda: httpx.MockTransport(upstream))
    chunks: list[Opened | bytes] = []
    for _ in range(attempts):
        chunks.clear()
        async with aclosing(connect(where or target(), call)) as body:
            async for chunk in body:
                chunks.append(chunk)  # noqa: PERF401 (what came before an error counts)
    return chunks


# What is sent


async def test_a_request_carries_its_body_and_names_its_client() -> None:
    upstream = Upstream(httpx.Response(200, stream=Body()))

    await read(upstream)

    (request,) = upstream.requests
    assert request.method == "POST"
    assert request.url == "http://upstream/filter.json"
    assert request.content == b"track=k%C3%A4fer"
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert request.headers["user-agent"] == f"kafka-stream-connector/{__version__}"
    assert request.headers["accept-encoding"] == "identity"
    assert "authorization" not in request.headers


async def test_a_query_is_added_to_the_addresss_own() -> None:
    upstream = Upstream(httpx.Response(200, stream=Body()))

    await read(upstream, target(url="http://upstream/s?lang=en"), Call("GET", "track=k%C3%A4fer&track=b", {}))

    assert upstream.requests[0].method == "GET"
    assert str(upstream.requests[0].url) == "http://upstream/s?lang=en&track=k%C3%A4fer&track=b"
    assert upstream.requests[0].content == b""


async def test_a_query_longer_than_any_server_takes_is_not_sent() -> None:
    """Waiting does not shorten it: only other predicates do."""
    upstream = Upstream()
    with pytest.raises(Unsendable, match="too long"):
        await read(upstream, call=Call("GET", "track=" + "x" * 100_000, {}))
    assert upstream.requests == []


async def test_no_error_quotes_the_addresss_query() -> None:
    """It holds predicates, and at times a key."""
    with pytest.raises(Disconnected) as caught:
        await read(Upstream(httpx.ReadError("bad answer from https://upstream/s?api_key=hunter2&x=1 today")))
    assert str(caught.value) == "bad answer from https://upstream/s?… today"


async def test_a_token_is_asked_for_in_plain(looptime) -> None:
    """Whatever the stream is compressed by; and the token there is serves while the endpoint hangs."""

    class Endpoint(httpx.AsyncBaseTransport):
        requests: ClassVar[list[httpx.Request]] = []

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self.requests.append(request)
            if request.url.host == "id" and len(self.requests) > 1:
                await asyncio.sleep(10_000)
            body = b'{"access_token": "fresh", "token_type": "bearer", "expires_in": 3600}'
            return httpx.Response(200, stream=Body(body), request=request)

    now = 0.0
    oauth = OAuth2ClientCredentials("https://id/token", "me", lambda: "secret")
    where = Target(
        url="https://upstream/", credentials=oauth, liveness=LIVENESS, response=Response(compression=["gzip"])
    )
    connect = HttpConnect(Endpoint)
    for _ in range(2):
        async with aclosing(connect(where, POST)) as chunks:
            assert isinstance(await anext(chunks), Opened)
        assert oauth._token is not None
        oauth._token = replace(oauth._token, renew_at=now)  # it is due for renewal
    assert Endpoint.requests[0].headers["accept-encoding"] == "identity"
    asked = [
        request.headers.get("authorization") for request in Endpoint.requests if request.url.host != "id"
    ]
    assert asked == ["Bearer fresh"] * 2
    assert looptime < 33


async def test_a_redirect_that_then_cannot_be_reached_was_a_request(looptime) -> None:
    """So the budget keeps it."""
    upstream = Upstream(
        httpx.Response(307, headers={"location": "/v2"}, stream=Body()), httpx.ConnectError("refused")
    )
    with pytest.raises(Disconnected) as caught:
        await read(upstream, target(url="https://upstream/"))
    assert type(caught.value) is Disconnected


async def test_a_cursor_in_a_header_may_be_any_text() -> None:
    upstream = Upstream(httpx.Response(200, stream=Body()))

    await read(upstream, call=Call("GET", "", {"Last-Event-ID": "käfer-7"}))

    assert upstream.requests[0].headers.raw[-1] == (b"Last-Event-ID", "käfer-7".encode())


async def test_compression_is_asked_for_where_the_dialect_says_so() -> None:
    upstream = Upstream(httpx.Response(200, headers={"content-encoding": "gzip"}, stream=Body(b"raw")))

    chunks = await read(upstream, target(response=Response(compression=["zstd", "gzip"])))

    assert upstream.requests[0].headers["accept-encoding"] == "zstd, gzip"
    assert chunks == [Opened("gzip"), b"raw"]


async def test_silence_within_the_body_has_a_limit_of_its_own(looptime) -> None:
    upstream = Upstream(httpx.Response(200, stream=Body(b"1", hang=True)))

    with pytest.raises(Stalled, match=r"^stalled: silent for 90 s$"):
        await read(upstream)

    assert looptime == 90
    assert upstream.requests[0].extensions["timeout"]["connect"] == 3


async def test_what_is_not_read_does_not_count_as_silence(looptime) -> None:
    """A reader that is paused, as the outbox is full, has not asked for the next chunk yet."""
    upstream = Upstream(httpx.Response(200, stream=Body(b"1", b"2")))
    connect = HttpConnect(lambda: httpx.MockTransport(upstream))
    async with aclosing(connect(target(), POST)) as chunks:
        assert isinstance(await anext(chunks), Opened)
        assert await anext(chunks) == b"1"
        await asyncio.sleep(1000)
        assert await anext(chunks) == b"2"


async def test_credentials_are_asked_for_at_every_attempt() -> None:
    """A rotated secret is used without a restart."""
    upstream = Upstream(*[httpx.Response(200, stream=Body()) for _ in range(2)])
    secrets = iter(["one", "two"])

    await read(upstream, target(lambda: next(secrets)), attempts=2)

    headers = [request.headers.get("authorization") for request in upstream.requests]
    assert headers == ["Bearer one", "Bearer two"]


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone"), ValueError("control characters")])
async def test_credentials_that_cannot_be_read_are_asked_for_again_later(error: Exception) -> None:
    upstream = Upstream()

    def unreadable() -> str:
        raise error

    with pytest.raises(Unreachable, match="no credentials"):
        await read(upstream, target(unreadable))
    assert upstream.requests == []


async def test_a_token_is_fetched_where_the_credentials_need_one() -> None:
    upstream = Upstream(
        httpx.Response(
            200, stream=Body(b'{"access_token": "fresh", "token_type": "bearer", "expires_in": 3600}')
        ),
        httpx.Response(200, stream=Body()),
    )
    oauth = OAuth2ClientCredentials("https://id/token", "me", lambda: "secret")

    await read(upstream, Target(url="https://upstream/", credentials=oauth, liveness=LIVENESS))

    asked, opened = upstream.requests
    assert str(asked.url) == "https://id/token"
    assert asked.content == b"grant_type=client_credentials"
    assert opened.headers["authorization"] == "Bearer fresh"


@pytest.mark.parametrize(
    "answer", [httpx.Response(503, stream=Body()), httpx.ConnectError("refused"), httpx.ReadTimeout("")]
)
async def test_a_token_that_cannot_be_fetched_is_asked_for_again_later(answer) -> None:
    oauth = OAuth2ClientCredentials("https://id/token", "me", lambda: "secret")
    with pytest.raises(Unreachable, match="no credentials: the token endpoint"):
        await read(Upstream(answer), Target(url="https://upstream/", credentials=oauth, liveness=LIVENESS))


async def test_a_401_is_told_to_the_credentials() -> None:
    class Told(NoCredentials):
        times = 0

        def rejected(self) -> None:
            Told.times += 1

    for status in (401, 403):
        with pytest.raises(BadStatus):
            await read(
                Upstream(httpx.Response(status, stream=Body())),
                Target(url="http://u/", credentials=Told(), liveness=LIVENESS),
            )
    assert Told.times == 1


# What comes back


async def test_chunks_come_as_they_are() -> None:
    upstream = Upstream(httpx.Response(200, stream=Body(b"5\r\n", b"\x00\xff\r\n")))

    assert await read(upstream) == [Opened(), b"5\r\n", b"\x00\xff\r\n"]


@pytest.mark.parametrize(
    ("headers", "response", "reason", "is_declared"),
    [
        ({"content-encoding": "br"}, Response(compression=["gzip"]), "answered in 'br'", False),
        ({"content-encoding": "gzip"}, Response(), "answered in 'gzip'", False),
        (
            {"content-encoding": "gzip, gzip"},
            Response(compression=["gzip"]),
            "answered in 'gzip, gzip'",
            False,
        ),
        ({"content-type": "text/html; charset=utf-8"}, Response(), "answered an HTML page", False),
        ({"content-type": "application/json"}, Response(media_types=["text/event-stream"]), "json", True),
        ({}, Response(media_types=["text/event-stream"]), "answered no media type", True),
    ],
)
async def test_content_that_is_no_stream_of_the_dialect(headers, response, reason, is_declared) -> None:
    body = Body(b"x")
    with pytest.raises(WrongContent, match=reason) as caught:
        await read(Upstream(httpx.Response(200, headers=headers, stream=body)), target(response=response))
    assert caught.value.is_declared is is_declared
    assert body.closed


@pytest.mark.parametrize("media_type", ["text/event-stream", "Text/Event-Stream;charset=UTF-8"])
async def test_a_media_type_counts_without_its_parameters(media_type: str) -> None:
    upstream = Upstream(httpx.Response(200, headers={"content-type": media_type}, stream=Body()))
    assert await read(upstream, target(response=Response(media_types=["text/event-stream"]))) == [Opened()]


@pytest.mark.parametrize("status", [201, 204, 400, 401, 406, 420, 429, 500, 503])
async def test_every_status_but_200_is_bad(status: int) -> None:
    body = Body(b"Easy\r\n  there,\t" + b"x" * 5000, then=AssertionError("read on"))

    with pytest.raises(BadStatus) as caught:
        await read(Upstream(httpx.Response(status, stream=body)))

    assert caught.value.status == status
    assert str(caught.value).startswith(f"HTTP {status}: Easy there, xxx")
    assert len(str(caught.value)) < 220
    assert body.closed


async def test_a_bad_status_needs_no_body() -> None:
    with pytest.raises(BadStatus, match=r"^HTTP 503$"):
        await read(Upstream(httpx.Response(503, stream=Body())))


@pytest.mark.parametrize(
    "location",
    [
        "https://elsewhere/",
        "http://upstream/",
        "https://upstream:8443/",
        "https://user@elsewhere/",
        "//elsewhere",
    ],
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_to_elsewhere_are_not_followed(status: int, location: str) -> None:
    """They would carry the credentials with them."""
    upstream = Upstream(httpx.Response(status, headers={"location": location}, stream=Body()))

    with pytest.raises(BadStatus, match="is not followed") as caught:
        await read(upstream, target(lambda: "secret", url="https://upstream/"))
    assert "://" in str(caught.value), "what to put into url, if it is right"
    assert caught.value.status == status
    assert "user" not in str(caught.value)
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("method", "status", "is_followed"),
    [("POST", 307, True), ("POST", 308, True), ("POST", 302, False), ("GET", 302, True), ("GET", 308, True)],
)
async def test_redirects_within_the_origin_keep_method_and_body(method, status, is_followed) -> None:
    upstream = Upstream(
        httpx.Response(status, headers={"location": "/v2?x=1"}, stream=Body()),
        httpx.Response(200, stream=Body()),
    )
    call = POST if method == "POST" else Call("GET", "track=a", {})
    try:
        await read(upstream, target(lambda: "secret", url="https://upstream/v1"), call)
    except BadStatus:
        assert not is_followed
        return
    assert is_followed
    again = upstream.requests[1]
    assert str(again.url) == "https://upstream/v2?x=1"
    assert (again.method, again.content) == (method, call.body)
    assert again.headers["authorization"] == "Bearer secret"


async def test_a_plain_http_redirect_is_not_followed_even_to_itself() -> None:
    upstream = Upstream(httpx.Response(307, headers={"location": "/v2"}, stream=Body()))
    with pytest.raises(BadStatus, match="not followed"):
        await read(upstream)


async def test_a_redirect_loop_ends() -> None:
    bodies = [Body() for _ in range(6)]
    upstream = Upstream(*[httpx.Response(307, headers={"location": "/"}, stream=one) for one in bodies])
    with pytest.raises(BadStatus, match="more than 5 redirects"):
        await read(upstream, target(url="https://upstream/"))
    assert all(body.closed for body in bodies)


async def test_what_an_answer_asks_to_wait() -> None:
    headers = {"retry-after": "7", "x-rate-limit-reset": "99999999999"}
    with pytest.raises(BadStatus) as caught:
        await read(Upstream(httpx.Response(429, headers=headers, stream=Body())))
    assert caught.value.retry_after_s == 7
    assert caught.value.reset_in_s > 1e9


async def test_headers_that_never_end_are_given_up(looptime) -> None:
    """However often a byte comes."""

    class Slow(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await asyncio.sleep(10_000)
            raise AssertionError

    with pytest.raises(Stalled, match="no answer within 33 s"):
        async with aclosing(HttpConnect(Slow)(target(), POST)) as chunks:
            await anext(chunks)
    assert looptime == 33


FAILURES = [
    (httpx.ConnectTimeout(""), Unreachable, "ConnectTimeout"),
    (httpx.ConnectError("refused"), Unreachable, "refused"),
    (httpx.ProxyError("407"), Unreachable, "407"),
    (httpx.ReadError("reset"), Disconnected, "reset"),
    (httpx.RemoteProtocolError("half a chunk"), Disconnected, "half a chunk"),
    (aiohttp.ClientPayloadError("bad size"), Disconnected, "bad size"),
    (aiohttp.ClientError(), Disconnected, "ClientError"),
    (OSError("x" * 1000), Disconnected, "x" * 300),
]


@pytest.mark.parametrize(("error", "kind", "reason"), FAILURES)
async def test_what_fails_before_the_headers_is_a_disconnect(error: Exception, kind, reason: str) -> None:
    with pytest.raises(Disconnected) as caught:
        await read(Upstream(error))
    assert (type(caught.value), str(caught.value)) == (kind, reason)


@pytest.mark.parametrize(("error", "kind", "reason"), FAILURES)
async def test_what_fails_within_the_body_is_a_disconnect(error: Exception, kind, reason: str) -> None:
    body = Body(b"1", then=error)
    with pytest.raises(Disconnected) as caught:
        await read(Upstream(httpx.Response(200, stream=body)))
    assert (type(caught.value), str(caught.value)) == (kind, reason)
    assert body.closed


# Closing


@pytest.mark.parametrize("count", [1, 2])
async def test_a_generator_closed_early_closes_the_response(count: int, looptime) -> None:
    body = Body(b"1", b"2", hang=True)
    connect = HttpConnect(lambda: httpx.MockTransport(Upstream(httpx.Response(200, stream=body))))
    chunks = connect(target(), POST)
    for _ in range(count):
        await anext(chunks)
    assert not body.closed

    await chunks.aclose()

    assert body.closed
    assert looptime == 0


async def test_a_cancelled_read_closes_the_response(looptime) -> None:
    body = Body(b"1", hang=True)
    task = asyncio.create_task(read(Upstream(httpx.Response(200, stream=body))))
    await asyncio.sleep(7)
    assert not body.closed
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert body.closed
    assert looptime == 7


async def test_a_token_that_is_not_ascii() -> None:
    with pytest.raises(Unreachable, match="no header can"):
        await read(Upstream(httpx.Response(200, stream=Body())), target(lambda: "t\u00f6ken"))


@pytest.mark.parametrize(
    "answer",
    [
        lambda: httpx.Response(429, stream=Body(then=httpx.ReadError("reset"))),
        lambda: httpx.Response(429, stream=Body(then=httpx.ReadTimeout(""))),
        lambda: httpx.Response(429, headers={"content-encoding": "gzip"}, stream=Body(b"Exceeded")),
    ],
    ids=["cut", "silent", "gzip"],
)
async def test_a_bad_status_stands_whatever_becomes_of_its_body(answer):
    with pytest.raises(BadStatus):
        await read(Upstream(answer()))
