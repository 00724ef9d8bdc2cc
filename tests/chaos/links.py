"""The networks between the replicas and the broker: each can be cut, and each can be slow.

A cut loses nothing by itself: as in a real one, what was sent waits for the network to come back, unless
its sender gives up first. So requests arrive late here, and some of them twice.

The broker has a listener for each link and tells the clients that come by it the link's own address.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Link:
    """One replica's network; plain values and an event, set from any thread through `Links`."""

    port: int = 0
    to_port: int = 0
    delay_s: float = 0.0
    up: asyncio.Event = field(default_factory=asyncio.Event)


class Links:
    """All of them, in a thread of their own."""

    def __init__(self, count: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="links", daemon=True)
        self._thread.start()
        self.links = [Link() for _ in range(count)]
        self._tasks = set[asyncio.Task[None]]()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)

    def close(self) -> None:
        """Cut all connections for good."""

        async def end() -> None:
            for server in self._servers:
                server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self, link: Link) -> None:
        """Let nothing through, and answer nobody."""
        self._loop.call_soon_threadsafe(link.up.clear)

    def mend(self, link: Link) -> None:
        """Let all through again, at once."""
        link.delay_s = 0.0
        self._loop.call_soon_threadsafe(link.up.set)

    async def _open(self) -> None:
        self._servers = []
        for link in self.links:
            link.up.set()

            def connected(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link = link
            ) -> None:
                task = self._loop.create_task(self._carry(link, reader, writer))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

            server = await asyncio.start_server(connected, "127.0.0.1", 0)
            link.port = server.sockets[0].getsockname()[1]
            self._servers.append(server)

    async def _carry(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):
            await link.up.wait()
            broker_reader, broker_writer = await asyncio.open_connection("127.0.0.1", link.to_port)
            with contextlib.closing(broker_writer):
                ways = [
                    asyncio.ensure_future(self._pipe(link, reader, broker_writer)),
                    asyncio.ensure_future(self._pipe(link, broker_reader, writer)),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)

    async def _pipe(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await link.up.wait()
            if link.delay_s:
                await asyncio.sleep(link.delay_s)
            writer.write(data)
            await writer.drain()
        await link.up.wait()
