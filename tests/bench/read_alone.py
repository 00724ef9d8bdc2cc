"""Reading alone, split on CRLF: ``python read_alone.py URL SECONDS``."""

from __future__ import annotations

import os
import sys

import httpx
import httpx_aiohttp.transport
import uvloop
from httpx_aiohttp import AiohttpTransport
from window import Window


async def main(url: str, seconds: str) -> None:
    """Read until the time is over."""
    httpx_aiohttp.transport.AiohttpResponseStream.CHUNK_SIZE = 1 << 18
    window, rest, count = Window(float(seconds)), b"", 0
    async with (
        httpx.AsyncClient(transport=AiohttpTransport(), timeout=30) as client,
        client.stream("GET", url) as response,
    ):
        async for chunk in response.aiter_raw():
            frames = (rest + chunk).split(b"\r\n")
            rest = frames.pop()
            count += len(frames)
            if window.is_over(count):
                break


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
    os._exit(0)
