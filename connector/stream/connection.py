"""One HTTP response, as chunks of bytes. The only module that speaks HTTP to upstreams.

Every connection has a client of its own, so it has its own socket, its address is looked up anew, and
certificates that were rotated are read anew. Closing it closes the socket.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from connector import __version__
from connector.errors import (
    AddressRefused,
    BadStatus,
    Disconnected,
    Stalled,
    Unreachable,
    WrongContent,
)
from connector.stream.credentials import Credentials, Outgoing
from connector.stream.dialect import Call, Liveness, Response
from connector.stream.policy import reset_in_s, retry_after_s
from connector.stream.sockets import Sockets

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
class Tls:
    """How TLS peers prove themselves; files are read anew at each connection.

    Attributes:
        ca_file: certificates that vouch for the upstream, in place of the public ones.
        certificate_file: the client's own certificate.
        key_file: its key, where that is a file of its own.
    """

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Return a context for one connection.

        Raises:
            OSError: a file cannot be read, or holds something else.
        """
        if self.ca_file is None:
            context = httpx.create_ssl_context(trust_env=False)
        else:
            context = ssl.create_default_context(cafile=self.ca_file)
        if self.certificate_file is not None:
            context.load_cert_chain(self.certificate_file, self.key_file)
        return context

    def fingerprint(self) -> object:
        """Return what changes whenever one of the files does."""
        files = (self.ca_file, self.certificate_file, self.key_file)
        return tuple(file and _changed_at(file) for file in files)


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
    tls: Tls = Tls()
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
        except (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, OSError) as error:
            # Bad chunk sizes and oversize headers pass the transport's own mapping by.
            if sockets.refused is not None:
                raise AddressRefused(
                    f"{sockets.refused} is a link-local or metadata address; allow_link_local permits it"
                ) from error
            said = " ".join(str(error).split())[:300] or type(error).__name__
            raise (Unreachable if _is_unreachable(error) else Disconnected)(said) from error

    @asynccontextmanager
    async def _client(self, target: Target, sockets: Sockets) -> AsyncIterator[httpx.AsyncClient]:
        if self._transport is not None:
            transport = self._transport()
        else:
            try:
                # Hundreds of certificates are parsed: not on the loop that reads other streams.
                context = await asyncio.to_thread(target.tls.context)
            except OSError as error:
                raise Unreachable(f"no TLS: {error}") from error
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    ssl=context, use_dns_cache=False, force_close=True, socket_factory=sockets
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers={"User-Agent", "Accept", "Content-Type"},
            )
            # It would repeat a GET whose server hangs up, unseen by every back-off and budget.
            session._retry_connection = False  # noqa: SLF001 (there is no public switch)
            # The aiohttp transport has a parser in C: three times as many chunks per second.
            transport = AiohttpTransport(
                verify=context,
                trust_env=False,
                proxy=None if target.proxy is None else httpx.Proxy(target.proxy),
                client=session,
            )
        async with httpx.AsyncClient(
            transport=transport,
            headers={
                "User-Agent": f"kafka-stream-connector/{__version__}",
                "Accept-Encoding": ", ".join(target.response.compression) or "identity",
            },
            timeout=httpx.Timeout(None, connect=target.liveness.connect_timeout_s),
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
        raise Stalled(f"stalled: silent for {stall_timeout_s:g} s") from None


async def _answer(client: httpx.AsyncClient, target: Target, call: Call) -> httpx.Response:
    """Return the answer whose body is the stream.

    Raises:
        Disconnected: in one of its kinds.
    """
    origin = url = httpx.URL(target.url)
    if call.query:
        query = url.query + b"&" + call.query.encode() if url.query else call.query.encode()
        url = url.copy_with(query=query)
    for _ in range(_MAX_REDIRECTS + 1):
        response = await _send(client, target, call, url)
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
        try:
            async with client.stream("POST", token_url, headers=dict(headers), content=body) as answer:
                content = bytearray()
                async for chunk in answer.aiter_raw():
                    content += chunk
                    if len(content) > _TOKEN_BYTES:
                        raise ValueError("the token endpoint answered with more than a token")
                return answer.status_code, bytes(content)
        except (httpx.HTTPError, aiohttp.ClientError) as error:
            raise OSError(f"the token endpoint: {str(error) or type(error).__name__}") from error

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
    url = response.request.url.join(location)
    same = (url.scheme, url.host, url.port) == (origin.scheme, origin.host, origin.port)
    keeps_method = method == "GET" or response.status_code in _REDIRECTS_KEEPING_POST
    if url.scheme == "https" and same and keeps_method:
        return url
    where = f"{url.scheme}://{url.netloc.decode('ascii')}{url.path}"[:200]
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
    coding = headers.get("content-encoding", "").strip().lower().removeprefix("x-")
    if coding not in {"", "identity", *expected.compression}:
        raise WrongContent(f"answered in {coding[:40]!r}, which was not asked for", is_declared=False)


def _is_unreachable(error: Exception) -> bool:
    """Whether the failure came before the upstream saw a request."""
    cause = error.__cause__ or error  # httpx-aiohttp calls a server that hangs up a ConnectTimeout
    return isinstance(
        cause,
        (
            aiohttp.ClientConnectorError,
            aiohttp.ConnectionTimeoutError,
            aiohttp.ClientHttpProxyError,
            httpx.ConnectError,
            httpx.ConnectTimeout,
            httpx.ProxyError,
        ),
    )


def _changed_at(file: Path) -> object:
    try:
        stat = file.stat()
    except OSError:
        return "unreadable"
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


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
