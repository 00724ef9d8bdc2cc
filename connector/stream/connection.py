"""One HTTP response, as chunks of bytes. With `transport`, all that speaks HTTP to upstreams.

Every connection has a client of its own, so it has its own socket, its address is looked up anew, and
certificates that were rotated are read anew. Closing it closes the socket.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import aiohttp
import httpx

from connector import __version__
from connector.errors import (
    BadStatus,
    Disconnected,
    Stalled,
    Unreachable,
    Unsendable,
    WrongContent,
)
from connector.stream.call import Call
from connector.stream.credentials import Credentials, Outgoing
from connector.stream.dialect import Liveness, Response
from connector.stream.policy import reset_in_s, retry_after_s
from connector.stream.sockets import Sockets
from connector.stream.transport import Tls, is_unreachable, network, said

_ERROR_BODY_BYTES = 200
"""How much of an error's body is worth reading: it may be a whole web page."""

_ERROR_BODY_TIMEOUT_S = 5.0
_MAX_REDIRECTS = 5
_TOKEN_BYTES = 1 << 20
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REDIRECTS_KEEPING_POST = frozenset({307, 308})


@dataclass(frozen=True, slots=True)
class Opened:
    """The upstream answered 200; the body follows. Proves nothing yet: bytes do.

    Attributes:
        coding: the body's content coding.
    """

    coding: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a stream is requested, by whom, and what its answers must be like.

    Attributes:
        credentials: asked at every attempt, so that a rotated secret is used without a restart.
        proxy: URL of an HTTP proxy.
        allow_link_local: whether the upstream may live at a link-local or metadata address.
    """

    url: str
    credentials: Credentials
    liveness: Liveness
    response: Response = field(default_factory=Response)
    tls: Tls = field(default_factory=Tls)
    proxy: str | None = None
    allow_link_local: bool = False

    def fingerprint(self) -> object:
        """Return what is equal as long as trying again would prove the same identity."""
        return self.credentials.fingerprint(), self.tls.fingerprint()


class Connect(Protocol):
    """Opens connections; `HttpConnect` does, and scripted tests do."""

    def __call__(self, target: Target, call: Call) -> AsyncGenerator[Opened | bytes, None]:
        """Yield `Opened` and then chunks, until the server ends the body.

        Closing the generator closes the socket.

        Raises:
            Disconnected: in one of its kinds.
        """
        ...


class HttpConnect:
    """Opens connections over httpx, with aiohttp's transport underneath."""

    def __init__(self, transport: Callable[[], httpx.AsyncBaseTransport] | None = None) -> None:
        """Prepare to open connections.

        Args:
            transport: in place of the network, for tests.
        """
        self._transport = transport

    async def __call__(self, target: Target, call: Call) -> AsyncGenerator[Opened | bytes, None]:
        """Open one connection; see `Connect`."""
        sockets = Sockets(allow_link_local=target.allow_link_local or target.proxy is not None)
        try:
            async with self._client(target, sockets) as client:
                response = await _answer(client, target, call)
                async with aclosing(response):
                    yield Opened(response.headers.get("content-encoding", ""))
                    # Raw: httpx would stop silently after the first member of a gzip body.
                    chunks = response.aiter_raw()
                    while (chunk := await _next(chunks, target.liveness.stall_timeout_s)) is not None:
                        yield chunk
        except (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, OSError, ValueError) as error:
            # Bad chunk sizes and oversize headers pass the transport's own mapping by; and what no header,
            # no host name and no UTF-8 can be is a ValueError somewhere below.
            if not is_unreachable(error):
                raise Disconnected(said(error)) from error
            if sockets.refused is None:
                raise Unreachable(said(error)) from error
            raise Unsendable(
                f"{sockets.refused} is a link-local or metadata address; allow_link_local permits it"
            ) from error

    @asynccontextmanager
    async def _client(self, target: Target, sockets: Sockets) -> AsyncIterator[httpx.AsyncClient]:
        if self._transport is not None:
            transport = self._transport()
        else:
            transport = await network(target.tls, target.proxy, sockets)
        connect_s = target.liveness.connect_timeout_s
        async with httpx.AsyncClient(
            transport=transport,
            headers={
                "User-Agent": f"kafka-stream-connector/{__version__}",
                "Accept-Encoding": ", ".join(target.response.compression) or "identity",
            },
            # For aiohttp the pool's time covers the look-up of the name, which connect's does not.
            timeout=httpx.Timeout(None, connect=connect_s, pool=connect_s),
            follow_redirects=False,
            trust_env=False,
        ) as client:
            yield client


async def _next(chunks: AsyncIterator[bytes], stall_timeout_s: float) -> bytes | None:
    """Return the next chunk; None at the end.

    The timer is our own: aiohttp's falls silent with the stream where a chunk's size is no number.
    """
    try:
        async with asyncio.timeout(stall_timeout_s):
            return await anext(chunks, None)
    except TimeoutError:
        raise Stalled(f"stalled: silent for {stall_timeout_s:g} s", stall_timeout_s) from None


async def _answer(client: httpx.AsyncClient, target: Target, call: Call) -> httpx.Response:
    """Return the answer whose body is the stream.

    Raises:
        Disconnected: in one of its kinds.
    """
    origin = url = httpx.URL(target.url)
    if call.query:
        query = url.query + b"&" + call.query.encode() if url.query else call.query.encode()
        try:
            url = url.copy_with(query=query)
        except httpx.InvalidURL as error:
            raise Unsendable(f"the predicates make no address: {said(error)}") from error
    for hop in range(_MAX_REDIRECTS + 1):
        try:
            response = await _send(client, target, call, url)
        except (Unreachable, httpx.HTTPError, aiohttp.ClientError, OSError) as error:
            if hop == 0:
                raise
            raise Disconnected(said(error)) from error  # not unreachable: it has answered before
        is_proxys = target.proxy is not None and hop == 0
        if response.status_code == httpx.codes.PROXY_AUTHENTICATION_REQUIRED and is_proxys:
            await response.aclose()
            raise Unreachable("the proxy answered 407: it wants credentials")
        if response.status_code == httpx.codes.OK:
            try:
                _check_content(response.headers, target.response)
            except Disconnected:
                await response.aclose()
                raise
            return response
        try:
            leads_to = _redirected(response, call.method, origin)
            if leads_to is None:
                if response.status_code == httpx.codes.UNAUTHORIZED:
                    target.credentials.rejected()
                now = time.time()
                raise BadStatus(
                    response.status_code,
                    await _beginning(response),
                    retry_after_s=retry_after_s(response.headers.get("retry-after", ""), now),
                    reset_in_s=reset_in_s(response.headers.get("x-rate-limit-reset", ""), now),
                )
            url = leads_to
        finally:
            await response.aclose()
    raise BadStatus(response.status_code, f"more than {_MAX_REDIRECTS} redirects")


async def _send(client: httpx.AsyncClient, target: Target, call: Call, url: httpx.URL) -> httpx.Response:
    liveness = target.liveness
    limit_s = liveness.connect_timeout_s + liveness.headers_timeout_s

    async def fetch(token_url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        """Post a request for a token."""
        plain = {**headers, "Accept-Encoding": "identity"}
        try:
            async with (
                asyncio.timeout(limit_s / 2),  # the token there is may serve where none comes in time
                client.stream("POST", token_url, headers=plain, content=body) as answer,
            ):
                content = bytearray()
                async for chunk in answer.aiter_raw():
                    content += chunk
                    if len(content) > _TOKEN_BYTES:
                        raise ValueError("the token endpoint answered with more than a token")
                return answer.status_code, bytes(content)
        except TimeoutError:
            raise OSError("the token endpoint does not answer") from None
        except (httpx.HTTPError, aiohttp.ClientError) as error:
            raise OSError(f"the token endpoint: {said(error)}") from error

    form = call.body.decode() if call.form else None
    try:
        async with asyncio.timeout(limit_s):
            try:
                proof = await target.credentials.headers(
                    Outgoing(call.method, str(url), form), fetch, time.time()
                )
                request = client.build_request(
                    call.method, url, headers=_encoded({**call.headers, **proof}), content=call.body or None
                )
            except UnicodeError:  # its own words would quote the secret
                raise Unreachable("no credentials: they hold characters that no header can") from None
            except (OSError, ValueError) as error:  # a file that is being rotated, say
                raise Unreachable(f"no credentials: {error}") from error
            return await client.send(request, stream=True)
    except TimeoutError:
        raise Stalled(f"no answer within {limit_s:g} s") from None


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers as bytes: the last event's id is UTF-8, which httpx would refuse."""
    return [(name.encode("ascii"), text.encode()) for name, text in headers.items()]


def _redirected(response: httpx.Response, method: str, origin: httpx.URL) -> httpx.URL | None:
    """Return where the answer leads, None if nowhere.

    Only within one https origin: anything else would hand predicates and credentials to whoever answers
    in the upstream's place.

    Raises:
        BadStatus: it leads somewhere that is not followed.
    """
    location = response.headers.get("location", "")
    if response.status_code not in _REDIRECTS or not location:
        return None
    try:
        url = response.request.url.join(location)
        port = f":{url.port}" if url.port else ""
        where = f"{url.scheme}://{url.host}{port}{url.path}"[:200]
    except (httpx.InvalidURL, ValueError):
        raise BadStatus(response.status_code, "a redirect to nowhere") from None
    same = (url.scheme, url.host, url.port) == (origin.scheme, origin.host, origin.port)
    keeps_method = method == "GET" or response.status_code in _REDIRECTS_KEEPING_POST
    if url.scheme == "https" and same and keeps_method:
        return url
    raise BadStatus(
        response.status_code, f"a redirect to {where} is not followed; if it is right, say so in url"
    )


def _check_content(headers: httpx.Headers, expected: Response) -> None:
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if expected.media_types:
        if media_type not in expected.media_types:
            raise WrongContent(f"answered {media_type or 'no media type'}", is_declared=True)
    elif media_type in {"text/html", "application/xhtml+xml"}:
        raise WrongContent("answered an HTML page", is_declared=False)
    coding = headers.get("content-encoding", "").strip().lower()
    coding = "gzip" if coding == "x-gzip" else coding
    if coding not in {"", "identity", *expected.compression}:
        raise WrongContent(f"answered in {coding[:40]!r}, which was not asked for", is_declared=False)


async def _beginning(response: httpx.Response) -> str:
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        return ""
    try:
        async with asyncio.timeout(_ERROR_BODY_TIMEOUT_S):
            async for chunk in response.aiter_raw():
                return " ".join(chunk[:_ERROR_BODY_BYTES].decode(errors="replace").split())
    except (httpx.HTTPError, aiohttp.ClientError, OSError):
        pass  # the status says how to go on, whatever becomes of its explanation
    return ""
