"""An upstream that outruns every reader; a process of its own, which prints its URL and ends with its input.

    GET /?size=2200              statuses of so many bytes, as fast as they are read, one in each HTTP chunk
    GET /?size=2200&coding=gzip  the same, compressed at the start: `--gzip` says how many there are
    GET /?rate=1000              so many each second, each with the moment at which it was written
    GET /?heartbeat=20           nothing but a keep-alive, at once and then every so many seconds
    GET /?heartbeat=20&name=x    the same; for how long there was no connection of this name is remembered
    GET /pauses                  how long these pauses were, in seconds, since this was asked last

No status is ever sent twice. A connection that has brought all it had stays open.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from urllib.parse import parse_qs, urlsplit

import uvloop

SIZES = (90, 2200)
"""A small status, and one like those of a platform: a user, a quotation, entities, some text."""

SENT_AT = b'"sent_ns":"'
"""What stands before the 20 digits of the moment at which a paced status was written, in nanoseconds of the
monotonic clock, which all processes of a machine share."""

_BLOCK_BYTES = 256 << 10
_MARKER = b"@@@@@@@@"  # a block's number goes there
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%bTransfer-Encoding: chunked\r\n\r\n"
_LAPSE_S = 0.001


def _text(chance: random.Random, characters: int) -> str:
    return "".join(chance.choice("abcdefghij klmnop qrstuv é😀") for _ in range(characters))


def _word(chance: random.Random, characters: int) -> str:
    return "".join(chance.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=characters))


def _post(number: int, chance: random.Random) -> dict[str, object]:
    """Return a status of about 2,200 bytes, as Twitter's were; it compresses no better than theirs did."""
    word = partial(_word, chance)
    user = {
        "id": chance.getrandbits(60),
        "id_str": str(chance.getrandbits(60)),
        "name": word(12),
        "screen_name": word(10),
        "location": "Somewhere",
        "description": word(120),
        "followers_count": 10,
        "friends_count": 20,
        "created_at": "Thu Apr 06 15:24:15 +0000 2017",
        "profile_image_url": "http://x/" + word(60),
        "profile_banner_url": "http://x/" + word(60),
        "verified": False,
        "lang": "en",
    }
    text = _text(chance, 140)
    quoted = {"id": number, "id_str": str(number), "text": text, "user": user}
    entities = {
        "hashtags": [{"text": word(8), "indices": [1, 2]}],
        "urls": [{"url": word(23), "expanded_url": word(60), "display_url": word(20), "indices": [1, 2]}],
        "user_mentions": [{"screen_name": word(8), "name": word(8), "id": 1, "indices": [0, 9]}],
    }
    return {
        "created_at": "Thu Apr 06 15:24:15 +0000 2017",
        "id_str": _identity(number),
        "text": text,
        "source": "<a>web</a>",
        "truncated": False,
        "user": user,
        "entities": entities,
        "quoted_status": {**quoted, "entities": {"hashtags": [], "urls": []}},
        "lang": "en",
        "timestamp_ms": "1491492255000",
    }


def _identity(number: int) -> str:
    return f"85{_MARKER.decode()}{number:06}"


def _status(number: int, size: int, chance: random.Random) -> bytes:
    if size < 2200:
        small = {"id_str": _identity(number), "text": "", "user": {"id_str": "1"}}
        bare = len(json.dumps(small, ensure_ascii=False).encode())
        return json.dumps({**small, "text": _word(chance, max(0, size - bare))}).encode()
    post = _post(number, chance)
    more = [_post(number, chance) for _ in range(size // 2200 - 1)]
    if more:
        post["replies"] = more
    body = json.dumps(post, ensure_ascii=False).encode()
    return body[:-1] + b',"rest":"' + b"r" * max(0, size - len(body) - 10) + b'"}'


@cache
def statuses(size: int) -> list[bytes]:
    """Return a block of statuses, each with `_MARKER` where the block's number belongs."""
    chance = random.Random(size)
    return [_status(number, size, chance) for number in range(max(1, _BLOCK_BYTES // size))]


@cache
def _chunks(size: int) -> bytes:
    return b"".join(_chunk(one + b"\r\n") for one in statuses(size))


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


def _compressed(size: int, count: int) -> list[bytes]:
    """Return chunks of a gzip body; as servers do that stream, each status is flushed."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    blocks = itertools.chain.from_iterable(_numbered(size))
    packed = (
        packer.compress(one) + packer.flush(zlib.Z_SYNC_FLUSH) for one in itertools.islice(blocks, count)
    )
    return [b"".join(map(_chunk, group)) for group in _groups(packed, 64)]


def _numbered(size: int) -> Iterator[list[bytes]]:
    for block in itertools.count(50_000_000):
        yield [one.replace(_MARKER, b"%08d" % block) + b"\r\n" for one in statuses(size)]


def _groups(items: Iterator[bytes], count: int) -> Iterator[tuple[bytes, ...]]:
    while group := tuple(itertools.islice(items, count)):
        yield group


class Upstream:
    """Answers each request by its query."""

    def __init__(self, gzipped: list[bytes]) -> None:
        self._gzipped = gzipped
        self._blocks = itertools.count()
        self._open: Counter[str] = Counter()  # connections by name
        self._closed_at: dict[str, float] = {}
        self._pauses: list[float] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, whose body, if any, is short."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:  # who was told to stop before he asked
            writer.close()
            return
        asked = urlsplit(head.split(b" ")[1].decode())
        query = {name: values[0] for name, values in parse_qs(asked.query).items()}
        coding = query.get("coding", "")
        writer.write(_HEAD % (b"Content-Encoding: gzip\r\n" if coding else b""))
        try:
            # A reader that leaves breaks the connection, or the transport is closed already.
            if asked.path == "/pauses":
                writer.write(_chunk(json.dumps(self._pauses).encode()) + b"0\r\n\r\n")
                self._pauses.clear()
            elif "rate" in query:
                await self._paced(writer, int(query["rate"]), int(query.get("size", 2200)))
            elif "heartbeat" in query:
                with self._present(query.get("name", "")):
                    await self._silent(reader, writer, float(query["heartbeat"]))
            elif coding:
                for part in self._gzipped:
                    writer.write(part)
                    await writer.drain()
                await reader.read()
            else:
                await self._endless(writer, int(query.get("size", 2200)))
        except (ConnectionError, RuntimeError):
            pass
        finally:
            writer.close()

    async def _endless(self, writer: asyncio.StreamWriter, size: int) -> None:
        chunks = _chunks(size)
        while True:
            writer.write(chunks.replace(_MARKER, b"%08d" % next(self._blocks)))
            await writer.drain()

    async def _paced(self, writer: asyncio.StreamWriter, rate: int, size: int) -> None:
        began_at = time.monotonic()
        rest = b'","text":"' + b"x" * size + b'"}\r\n'
        rest = rest[: size - 60] + rest[-4:]
        written = 0
        while True:
            while written < int((time.monotonic() - began_at) * rate):
                written += 1
                now = time.monotonic_ns()
                writer.write(_chunk(b'{"id_str":"%018d",%b%020d%b' % (written, SENT_AT, now, rest)))
            await writer.drain()
            await asyncio.sleep(_LAPSE_S)

    async def _silent(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, every_s: float
    ) -> None:
        wait_s = random.random() * every_s
        while not reader.at_eof():
            writer.write(_chunk(b"\r\n"))
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await reader.read()  # until the reader leaves
            wait_s = every_s

    @contextmanager
    def _present(self, name: str) -> Iterator[None]:
        if not self._open[name] and (closed_at := self._closed_at.pop(name, None)) is not None:
            self._pauses.append(time.monotonic() - closed_at)
        self._open[name] += 1
        try:
            yield
        finally:
            self._open[name] -= 1
            self._closed_at[name] = time.monotonic()


async def _main(gzip: int) -> None:
    upstream = Upstream(_compressed(2200, gzip))
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, limit=1 << 20, backlog=1024)
    for size in SIZES:
        _chunks(size)
    print(json.dumps({"url": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"}), flush=True)
    await server.serve_forever()


def _end_with_input() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--gzip", type=int, default=0)
    threading.Thread(target=_end_with_input, daemon=True).start()
    uvloop.run(_main(parser.parse_args().gzip))
