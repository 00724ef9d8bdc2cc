"""What an upstream's answer is, by its head: a redirect, a stream, or a status that says no."""

from __future__ import annotations

import asyncio
import time

import aiohttp
import httpx

from connector.errors import BadStatus, WrongContent
from connector.stream.dialect import Response
from connector.stream.policy import reset_in_s, retry_after_s

_ERROR_BODY_BYTES = 200
"""How much of an error's body is worth reading: it may be a whole web page."""

_ERROR_BODY_TIMEOUT_S = 5.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REDIRECTS_KEEPING_POST = frozenset({307, 308})


def redirected(response: httpx.Response, method: str, origin: httpx.URL) -> httpx.URL | None:
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


def check_content(headers: httpx.Headers, expected: Response) -> None:
    """Check that a body is of a media type and a coding that was asked for.

    Raises:
        WrongContent: it is not.
    """
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


async def bad_status(response: httpx.Response) -> BadStatus:
    """Return what an answer says that brings nothing; reads the beginning of its body."""
    now = time.time()
    return BadStatus(
        response.status_code,
        await _beginning(response),
        retry_after_s=retry_after_s(response.headers.get("retry-after", ""), now),
        reset_in_s=reset_in_s(response.headers.get("x-rate-limit-reset", ""), now),
    )


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
