"""The floor: httpx, split on CRLF, id by msgspec, produce with two headers, in transactions in a second thread.

    python floor.py URL BOOTSTRAP TOPIC SECONDS

Nothing is promised here: no reconnects, no positions, no framing but the split, no metrics.
"""

from __future__ import annotations

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import httpx_aiohttp.transport
import msgspec
import uvloop
from confluent_kafka import Producer
from httpx_aiohttp import AiohttpTransport
from window import Window


class Shape(msgspec.Struct):
    """The one member that is looked at."""

    id_str: str


async def main(url: str, bootstrap: str, topic: str, seconds: str) -> None:
    """Move statuses until the time is over."""
    httpx_aiohttp.transport.AiohttpResponseStream.CHUNK_SIZE = 1 << 18
    window, decode = Window(float(seconds)), msgspec.json.Decoder(Shape).decode
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "transactional.id": f"{topic}-floor",
            "linger.ms": 5,
            "batch.size": 1_000_000,
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": 1 << 20,
            "partitioner": "murmur2_random",
        }
    )
    producer.init_transactions()
    headers = [("content-type", b"application/json"), ("source", b"default")]

    def write(batch: list[tuple[str, bytes]]) -> int:
        producer.begin_transaction()
        produce = producer.produce
        for key, value in batch:
            while True:
                try:
                    produce(topic, value, key, headers=headers)
                    break
                except BufferError:
                    producer.poll(0.01)
        producer.commit_transaction(30)
        return len(batch)

    loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1)
    rest, batch, committed = b"", [], 0
    writing: asyncio.Future[int] | None = None
    async with (
        httpx.AsyncClient(transport=AiohttpTransport(), timeout=30) as client,
        client.stream("GET", url) as response,
    ):
        async for chunk in response.aiter_raw():
            frames = (rest + chunk).split(b"\r\n")
            rest = frames.pop()
            batch += [(decode(frame).id_str, frame) for frame in frames if frame]
            if writing is None or writing.done():
                if writing is not None:
                    committed += writing.result()
                    writing = None
                    if window.is_over(committed):
                        break
                if len(batch) >= 2000:
                    writing = loop.run_in_executor(thread, write, batch)
                    batch = []
            elif len(batch) > 20_000:
                await writing


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
    os._exit(0)
