"""The network under a connection: sockets, TLS and aiohttp, as httpx takes them."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import httpx
from aiohttp.connector import Connection
from httpx_aiohttp import AiohttpTransport
from httpx_aiohttp.transport import AiohttpResponseStream, map_aiohttp_exceptions

from connector.errors import Unreachable
from connector.stream.sockets import Sockets

_BUFFER_BYTES = 128 << 10
"""What aiohttp keeps of a body before it pauses the connection, half of it: smaller pieces cost more each,
larger ones make hundreds of busy streams heavy, as a stream that waits for room holds three of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How TLS peers prove themselves; files that have changed are read anew by the next connection.

    Attributes:
        ca_file: certificates that vouch for the upstream, in place of the public ones.
        certificate_file: the client's own certificate.
        key_file: its key, where that is a file of its own.
    """

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Return a context for connections that begin now.

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


class Contexts:
    """The TLS contexts of a process: one for all connections that prove themselves alike.

    The public authorities alone take two thirds of a megabyte, and a tenth of a second to parse.
    """

    def __init__(self) -> None:
        self._kept: dict[Tls, tuple[object, ssl.SSLContext]] = {}
        self._loading = asyncio.Lock()  # else a thousand streams that start at once load one each

    async def of(self, tls: Tls) -> ssl.SSLContext:
        """Return the context for a connection that begins now.

        Raises:
            Unreachable: certificates cannot be read.
        """
        async with self._loading:
            # Looked at before the files are read: what changes meanwhile is read again the next time.
            fingerprint = tls.fingerprint()
            kept_by, context = self._kept.get(tls, (None, None))
            if context is None or kept_by != fingerprint:
                try:
                    # Hundreds of certificates are parsed: not on the loop that reads other streams.
                    context = await asyncio.to_thread(tls.context)
                except OSError as error:
                    raise Unreachable(f"no TLS: {error}") from error
                self._kept[tls] = fingerprint, context
            return context


def network(context: ssl.SSLContext, proxy: str | None, sockets: Sockets) -> httpx.AsyncBaseTransport:
    """Return what carries one connection, and is closed with it; the *context* may be others' too."""
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            ssl=context, use_dns_cache=False, force_close=True, socket_factory=sockets
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers={"User-Agent", "Accept", "Content-Type"},
        response_class=_Answer,
        read_bufsize=_BUFFER_BYTES,
    )
    # It would repeat a GET whose server hangs up, unseen by every back-off and budget.
    session._retry_connection = False  # noqa: SLF001 (there is no public switch)
    # Its parser is in C: several times as many chunks per second as httpx's own.
    return _Transport(
        verify=context,
        trust_env=False,
        proxy=None if proxy is None else httpx.Proxy(proxy),
        client=session,
    )


class _Answer(aiohttp.ClientResponse):
    """An answer without its reason phrase: httpx-aiohttp fails on one that is no UTF-8."""

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        await super().start(connection)
        self.reason = None
        if type(self.content) is aiohttp.StreamReader:  # the parser makes it, and asks nobody of which kind
            self.content.__class__ = _Content
        return self


class _Content(aiohttp.StreamReader):
    """A body as its bytes come: where HTTP's chunks end means nothing to a stream.

    aiohttp's own reader notes it all the same and hands out chunk by chunk, which is half of what reading
    costs where each chunk is a message. Besides it forgets what came and nobody has read yet as soon as the
    connection fails: whole statuses, where the outbox was full for a moment.
    """

    __slots__ = ()

    def feed_data(self, data: bytes, _size: int = 0) -> bool:
        if not data:
            return False
        self._buffer.append(data)
        self._size += len(data)
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if self._size > self._high_water or len(self._buffer) > self._high_water_chunks:
            self._protocol.pause_reading()
        return False

    def begin_http_chunk_receiving(self) -> None:
        pass

    def end_http_chunk_receiving(self) -> None:
        pass

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield all that came, up to where the body ends or what ended the connection is raised."""
        while True:
            if self._buffer:
                piece = b"".join(self._buffer)
                self._buffer.clear()
                self._size = 0
                self._protocol.resume_reading()
                yield piece
            elif self._exception is not None:
                raise self._exception
            elif self._eof:
                return
            elif not self._protocol.connected:  # closed for what no body can be, while nobody was waiting
                raise aiohttp.ClientPayloadError("the body broke off")
            else:
                await self._wait("pieces")


class _Transport(AiohttpTransport):
    """aiohttp underneath, with bodies that are handed out to the last byte that came."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        assert isinstance(response.stream, AiohttpResponseStream)
        response.stream = _Body(response.stream)
        return response


class _Body(httpx.AsyncByteStream):
    """A body in the largest pieces there are, whose socket is closed at once."""

    def __init__(self, stream: AiohttpResponseStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        content = self._stream._aiohttp_response.content  # noqa: SLF001 (there is no public way to it)
        if isinstance(content, _Content):  # else it has none
            with map_aiohttp_exceptions():
                async for piece in content.pieces():
                    yield piece

    async def aclose(self) -> None:
        connection = self._stream._aiohttp_response.connection  # noqa: SLF001 (as above)
        if connection is not None and connection.transport is not None:
            # TLS would wait for the server's goodbye first, for half a minute where the server hangs; the
            # slot stays taken meanwhile, and the next connection may be the one too many.
            connection.transport.abort()
        await self._stream.aclose()
        await asyncio.sleep(0)  # the loop closes the socket in its next turn


def said(error: Exception) -> str:
    """Return what an error says, in one line, without the predicates or secrets of an address's query."""
    text = f"{error.status} {error.message}" if isinstance(error, aiohttp.ClientResponseError) else str(error)
    return " ".join(re.sub(r"\?\S*", "?…", text).split())[:300] or type(error).__name__


def is_unreachable(error: Exception) -> bool:
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
