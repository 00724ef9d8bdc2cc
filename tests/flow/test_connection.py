"""One HTTP response, over `httpx.MockTransport`: what is sent, and what each failure becomes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from urllib.parse import parse_qs

import aiohttp
import httpx
import pytest

from connector import __version__
from connector.errors import BadStatus, Disconnected
from connector.stream.connection import HttpConnect, Opened, Target

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


async def read(
    upstream: Upstream,
    authorization: Callable[[], str | None] = lambda: None,
    attempts: int = 1,
) -> list[Opened | bytes]:
    """Read the last of so many connections to its end."""
    connect = HttpConnect(httpx.MockTransport(upstream))
    target = Target(
        url="http://upstream/filter.json",
        authorization=authorization,
        connect_timeout_s=3,
        stall_timeout_s=90,
    )
    chunks: list[Opened | bytes] = []
    try:
        for _ in range(attempts):
            chunks.clear()
            async with aclosing(
                connect(target, {"track": "käfer,kafka & co", "delimited": "length"})
            ) as body:
                async for chunk in body:
                    chunks.append(chunk)  # noqa: PERF401 (what came before an error counts)
    finally:
        await connect.aclose()
    return chunks


# What is sent


async def test_the_request_is_a_form_and_names_its_client() -> None:
    upstream = Upstream(httpx.Response(200, stream=Body()))

    await read(upstream)

    (request,) = upstream.requests
    assert request.method == "POST"
    assert request.url == "http://upstream/filter.json"
    assert parse_qs(request.content.decode()) == {"track": ["käfer,kafka & co"], "delimited": ["length"]}
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert request.headers["user-agent"] == f"kafka-stream-connector/{__version__}"
    assert request.headers["accept-encoding"] == "identity"
    assert "authorization" not in request.headers


async def test_the_silence_allowed_differs_from_the_time_to_connect() -> None:
    upstream = Upstream(httpx.Response(200, stream=Body()))

    await read(upstream)

    assert upstream.requests[0].extensions["timeout"] == {"connect": 3, "read": 90, "write": 90, "pool": 90}


async def test_credentials_are_asked_for_at_every_attempt() -> None:
    """A rotated secret is used without a restart."""
    upstream = Upstream(*[httpx.Response(200, stream=Body()) for _ in range(3)])
    secrets: Iterator[str | None] = iter(["Bearer one", "Bearer two", None])

    await read(upstream, lambda: next(secrets), attempts=3)

    headers = [request.headers.get("authorization") for request in upstream.requests]
    assert headers == ["Bearer one", "Bearer two", None]


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone"), ValueError("control characters")])
async def test_credentials_that_cannot_be_read_are_asked_for_again_later(error: Exception) -> None:
    upstream = Upstream()

    def unreadable() -> str:
        raise error

    with pytest.raises(Disconnected, match="no credentials"):
        await read(upstream, unreadable)
    assert upstream.requests == []


# What comes back


async def test_chunks_come_as_they_are() -> None:
    upstream = Upstream(httpx.Response(200, stream=Body(b"5\r\n", b"\x00\xff\r\n")))

    assert await read(upstream) == [Opened(), b"5\r\n", b"\x00\xff\r\n"]


async def test_compressed_bodies_are_not_touched() -> None:
    """We ask for none; whoever compresses all the same sends frames that are malformed."""
    upstream = Upstream(httpx.Response(200, headers={"content-encoding": "gzip"}, stream=Body(b"raw")))

    assert await read(upstream) == [Opened(), b"raw"]


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


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(status: int) -> None:
    """A redirect to elsewhere would carry the credentials with it."""
    upstream = Upstream(httpx.Response(status, headers={"location": "http://elsewhere/"}, stream=Body()))

    with pytest.raises(BadStatus, match=f"^HTTP {status}$"):
        await read(upstream, lambda: "Bearer secret")
    assert len(upstream.requests) == 1


FAILURES = [
    (httpx.ReadTimeout(""), "stalled: silent for 90 s"),
    (httpx.ConnectTimeout(""), "ConnectTimeout"),
    (httpx.ConnectError("refused"), "refused"),
    (httpx.ReadError("reset"), "reset"),
    (httpx.RemoteProtocolError("half a chunk"), "half a chunk"),
    (aiohttp.ClientPayloadError("bad size"), "bad size"),
    (aiohttp.ClientError(), "ClientError"),
    (OSError("x" * 1000), "x" * 300),
]


@pytest.mark.parametrize(("error", "reason"), FAILURES)
async def test_what_fails_before_the_headers_is_a_disconnect(error: Exception, reason: str) -> None:
    with pytest.raises(Disconnected) as caught:
        await read(Upstream(error))
    assert (type(caught.value), str(caught.value)) == (Disconnected, reason)


@pytest.mark.parametrize(("error", "reason"), FAILURES)
async def test_what_fails_within_the_body_is_a_disconnect(error: Exception, reason: str) -> None:
    body = Body(b"1", then=error)
    with pytest.raises(Disconnected) as caught:
        await read(Upstream(httpx.Response(200, stream=body)))
    assert (type(caught.value), str(caught.value)) == (Disconnected, reason)
    assert body.closed


# Closing


@pytest.mark.parametrize("count", [1, 2])
async def test_a_generator_closed_early_closes_the_response(count: int, looptime) -> None:
    body = Body(b"1", b"2", hang=True)
    connect = HttpConnect(httpx.MockTransport(Upstream(httpx.Response(200, stream=body))))
    target = Target(url="http://u/", authorization=lambda: None, connect_timeout_s=3, stall_timeout_s=90)
    chunks = connect(target, {})
    for _ in range(count):
        await anext(chunks)
    assert not body.closed

    await chunks.aclose()

    assert body.closed
    assert looptime == 0
    await connect.aclose()


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
    with pytest.raises(Disconnected):
        await read(Upstream(httpx.Response(200, stream=Body())), lambda: "Bearer t\u00f6ken")


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
