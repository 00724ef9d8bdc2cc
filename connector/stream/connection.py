"""One HTTP response, as chunks of bytes. With `transport` and `reply`, all that speaks HTTP to upstreams.

Every connection has a client of its own, so it has its own socket, and its address is looked up anew; what
connections share is the TLS context, until a certificate is rotated. Closing it closes the socket.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
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
from connector.stream.reply import bad_status, check_content, redirected
from connector.stream.rules import MAX_BODY_BYTES, sync
from connector.stream.sockets import Sockets
from connector.stream.transport import Contexts, Tls, is_unreachable, network, said

_MAX_REDIRECTS = 5
_TOKEN_BYTES = 1 << 20
_FOR_RULES = frozenset({200, 201, 400, 422})


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
        rules_path: where its rules are, added to the path of *url*; None where it has none.
        max_rules: how many it takes; None where it does not say.
    """

    url: str
    credentials: Credentials
    liveness: Liveness
    response: Response = field(default_factory=Response)
    tls: Tls = field(default_factory=Tls)
    proxy: str | None = None
    allow_link_local: bool = False
    rules_path: str | None = None
    max_rules: int | None = None

    def fingerprint(self) -> object:
        """Return what is equal as long as trying again would prove the same identity."""
        return self.credentials.fingerprint(), self.tls.fingerprint()


class Connect(Protocol):
    """Opens connections; `HttpConnect` does, and scripted tests do."""

    def __call__(self, target: Target, call: Call) -> AsyncGenerator[Opened | bytes, None]:
        """Yield `Opened` and then chunks, until the server ends the body.

        Closing the generator closes the socket. The call's rules are the upstream's before it is sent.

        Raises:
            Disconnected: in one of its kinds.
        """
        ...

    async def amend(self, target: Target, rules: Sequence[str]) -> None:
        """Make *rules* the upstream's, over connections of its own; whatever stream is open follows them.

        Raises:
            Disconnected: in one of its kinds, as for a stream.
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
        self._contexts = Contexts()

    async def __call__(self, target: Target, call: Call) -> AsyncGenerator[Opened | bytes, None]:
        """Open one connection; see `Connect`."""
        async with self._requests(target) as requests:
            if call.rules is not None:
                await sync(requests.exchange, call.rules, target.max_rules)
            response = await requests.stream(call)
            async with aclosing(response):
                yield Opened(response.headers.get("content-encoding", ""))
                # Raw: httpx would stop silently after the first member of a gzip body.
                chunks = response.aiter_raw()
                while (chunk := await _next(chunks, target.liveness.stall_timeout_s)) is not None:
                    yield chunk

    async def amend(self, target: Target, rules: Sequence[str]) -> None:
        """Make *rules* the upstream's; see `Connect`."""
        async with self._requests(target) as requests:
            await sync(requests.exchange, rules, target.max_rules)

    @asynccontextmanager
    async def _requests(self, target: Target) -> AsyncIterator[_Requests]:
        sockets = Sockets(allow_link_local=target.allow_link_local or target.proxy is not None)
        with _kinds(sockets):
            async with self._client(target, sockets) as client:
                yield _Requests(client, target)

    @asynccontextmanager
    async def _client(self, target: Target, sockets: Sockets) -> AsyncIterator[httpx.AsyncClient]:
        if self._transport is not None:
            transport = self._transport()
        else:
            transport = network(await self._contexts.of(target.tls), target.proxy, sockets)
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


@contextmanager
def _kinds(sockets: Sockets) -> Iterator[None]:
    """Turn whatever the libraries raise into a kind of `Disconnected`."""
    try:
        yield
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


async def _next(chunks: AsyncIterator[bytes], stall_timeout_s: float) -> bytes | None:
    """Return the next chunk; None at the end.

    The timer is our own: aiohttp's falls silent with the stream where a chunk's size is no number.
    """
    clock = asyncio.get_running_loop().time
    since = clock()
    try:
        async with asyncio.timeout(stall_timeout_s):
            return await anext(chunks, None)
    except TimeoutError:
        # Longer than the timer, where the whole process hung; what came meanwhile was never read.
        raise Stalled(f"stalled: silent for {stall_timeout_s:g} s", clock() - since) from None


@dataclass(slots=True)
class _Requests:
    """The requests of one attempt.

    Attributes:
        has_answered: the upstream is not unreachable any more, whatever fails from now on.
    """

    client: httpx.AsyncClient
    target: Target
    has_answered: bool = False

    async def stream(self, call: Call) -> httpx.Response:
        """Return the answer whose body is the stream.

        Raises:
            Disconnected: in one of its kinds.
        """
        url = httpx.URL(self.target.url)
        if call.query:
            query = url.query + b"&" + call.query.encode() if url.query else call.query.encode()
            try:
                url = url.copy_with(query=query)
            except httpx.InvalidURL as error:
                raise Unsendable(f"the predicates make no address: {said(error)}") from error
        response = await self._answer(call, url, frozenset({httpx.codes.OK}))
        try:
            check_content(response.headers, self.target.response)
        except Disconnected:
            await response.aclose()
            raise
        return response

    async def exchange(self, method: str, query: str, body: bytes) -> tuple[int, bytes]:
        """Ask for the rules, or for other ones; see `rules.Exchange`."""
        url = httpx.URL(self.target.url)
        assert self.target.rules_path is not None, "a call has rules where the dialect says where they are"
        path = url.raw_path.partition(b"?")[0].rstrip(b"/") + self.target.rules_path.encode()
        url = url.copy_with(raw_path=path + b"?" + query.encode() if query else path)
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if body:
            headers["Content-Type"] = "application/json"
        liveness = self.target.liveness
        limit_s = liveness.connect_timeout_s + liveness.headers_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                response = await self._answer(Call(method, query, headers, body), url, _FOR_RULES)
                async with aclosing(response):
                    if response.is_success:
                        check_content(response.headers, Response())
                    return response.status_code, await _whole(response)
        except TimeoutError:
            raise Stalled(f"no answer about rules within {limit_s:g} s") from None

    async def _answer(self, call: Call, url: httpx.URL, good: frozenset[int]) -> httpx.Response:
        """Return the answer that comes in the end, with one of the *good* statuses.

        Raises:
            Disconnected: in one of its kinds.
        """
        target, origin = self.target, httpx.URL(self.target.url)
        for _ in range(_MAX_REDIRECTS + 1):
            try:
                response = await _send(self.client, target, call, url)
            except (Unreachable, httpx.HTTPError, aiohttp.ClientError, OSError) as error:
                if not self.has_answered:
                    raise
                raise Disconnected(said(error)) from error
            is_proxys = target.proxy is not None and not self.has_answered
            if response.status_code == httpx.codes.PROXY_AUTHENTICATION_REQUIRED and is_proxys:
                await response.aclose()
                raise Unreachable("the proxy answered 407: it wants credentials")
            self.has_answered = True
            if response.status_code in good:
                return response
            try:
                leads_to = redirected(response, call.method, origin)
                if leads_to is None:
                    if response.status_code == httpx.codes.UNAUTHORIZED:
                        target.credentials.rejected()
                    raise await bad_status(response)
                url = leads_to
            finally:
                await response.aclose()
        raise BadStatus(response.status_code, f"more than {_MAX_REDIRECTS} redirects")


async def _whole(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise WrongContent("answered with more than rules", is_declared=False)
    return bytes(body)


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
