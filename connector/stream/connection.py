"""One HTTP response, as chunks of bytes. The only module that speaks HTTP to upstreams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from connector import __version__
from connector.errors import BadStatus, Disconnected

_ERROR_BODY_CHARS = 200
"""How much of an error's body is worth reading: it may be a whole web page."""

_ERROR_BODY_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Opened:
    """The upstream answered 200; the body follows. Proves nothing yet: bytes do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where and how a stream is requested.

    Attributes:
        authorization: returns the Authorization header, or None; asked at every attempt, so that a
            rotated secret is used without a restart.
        connect_timeout_s: for the TCP and TLS handshakes.
        stall_timeout_s: longest silence, before the headers and within the body.
    """

    url: str
    authorization: Callable[[], str | None]
    connect_timeout_s: float
    stall_timeout_s: float


class Connect(Protocol):
    """Opens connections; `HttpConnect` does, and scripted tests do."""

    def __call__(self, target: Target, form: Mapping[str, str]) -> AsyncGenerator[Opened | bytes, None]:
        """Yield `Opened` and then chunks, until the server ends the body.

        Closing the generator closes the socket.

        Raises:
            BadStatus: the answer is no 200.
            Disconnected: no connection, a broken one, or silence for too long.
        """
        ...


class HttpConnect:
    """Opens connections with one shared client, each on a socket of its own."""

    def __init__(self, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """Prepare a client.

        Args:
            transport: in place of the network, for tests.
        """
        self._client = httpx.AsyncClient(
            # The aiohttp transport has a parser in C: three times as many chunks per second.
            transport=transport
            or AiohttpTransport(
                limits=httpx.Limits(max_connections=None, keepalive_expiry=0), trust_env=False
            ),
            headers={
                "user-agent": f"kafka-stream-connector/{__version__}",
                "accept-encoding": "identity",
            },
            follow_redirects=False,
            trust_env=False,
        )

    async def aclose(self) -> None:
        """Close the client and what it still holds open."""
        await self._client.aclose()

    async def __call__(self, target: Target, form: Mapping[str, str]) -> AsyncGenerator[Opened | bytes, None]:
        """Open one connection; see `Connect`."""
        try:
            authorization = target.authorization()
            request = self._client.build_request(
                "POST",
                target.url,
                data=form,
                headers={} if authorization is None else {"authorization": authorization},
                timeout=httpx.Timeout(target.stall_timeout_s, connect=target.connect_timeout_s),
            )
        except UnicodeEncodeError:  # its own words would quote the secret
            raise Disconnected("no credentials: they hold characters that no header can") from None
        except (OSError, ValueError) as error:  # a secret's file that is being rotated, say
            raise Disconnected(f"no credentials: {error}") from error
        try:
            response = await self._client.send(request, stream=True)
            async with aclosing(response):
                if response.status_code != httpx.codes.OK:
                    raise BadStatus(response.status_code, await _beginning(response))
                yield Opened()
                # Raw: httpx would stop silently after the first member of a gzip body.
                async for chunk in response.aiter_raw():
                    yield chunk
        except httpx.ReadTimeout:
            raise Disconnected(f"stalled: silent for {target.stall_timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, OSError) as error:
            # Bad chunk sizes and oversize headers pass the transport's own mapping by.
            raise Disconnected((str(error) or type(error).__name__)[:300]) from error


async def _beginning(response: httpx.Response) -> str:
    try:
        async with asyncio.timeout(_ERROR_BODY_TIMEOUT_S):
            async for text in response.aiter_text():
                return " ".join(text[:_ERROR_BODY_CHARS].split())
    except (httpx.HTTPError, aiohttp.ClientError, OSError):
        pass  # the status says how to go on, whatever becomes of its explanation
    return ""
