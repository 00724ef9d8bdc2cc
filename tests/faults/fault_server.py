"""A server over real sockets that does what no server should, one script per connection."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"  # its body ends with the connection


def ok(*headers: str) -> bytes:
    """Return the head of a 200 whose body ends with the connection."""
    return "".join(f"{line}\r\n" for line in ("HTTP/1.1 200 OK", *headers, "")).encode()


def answer(status: int, *headers: str) -> bytes:
    """Return a whole answer without a body."""
    return "".join(
        f"{line}\r\n" for line in (f"HTTP/1.1 {status} X", "Content-Length: 0", *headers, "")
    ).encode()


def chunk(body: bytes) -> bytes:
    """Return *body* as one HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(body), body)


def status(number: int) -> bytes:
    """Return one status, as a line."""
    return b'{"id":%d}\n' % number


@dataclass
class Connection:
    """One connection, as the server has it.

    Attributes:
        request: what the client sent, head and body.
        closed: set when the client is gone.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    request: bytes = b""
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def read_request(self) -> None:
        self.request = await self.reader.readuntil(b"\r\n\r\n")
        for line in self.request.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                self.request += await self.reader.readexactly(int(line.partition(b":")[2]))

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        made = self.writer.get_extra_info("socket")
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Wait until the client is gone, for a minute at most."""
        async with asyncio.timeout(60):
            await self.closed.wait()

    async def until_closed(self) -> None:
        """Wait until the client is gone."""
        with suppress(ConnectionError, ssl.SSLError):
            while await self.reader.read(65536):
                pass
        self.closed.set()


Script = Callable[[Connection], Awaitable[None]]


def says(*parts: bytes, then_hang: bool = True) -> Script:
    """Return a script that reads the request, sends *parts*, and then waits for the client to leave."""

    async def script(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(*parts)
        if then_hang:
            await connection.until_closed()

    return script


async def hangs(connection: Connection) -> None:
    """Take the request, and say nothing."""
    await connection.read_request()
    await connection.until_closed()


@dataclass
class FaultServer:
    """Runs the scripts, one per connection; beyond the last each connection hangs."""

    scripts: list[Script]
    tls: ssl.SSLContext | None = None
    connections: list[Connection] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @classmethod
    def of(cls, *scripts: Script, tls: ssl.SSLContext | None = None) -> Self:
        return cls(list(scripts), tls)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/stream"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def requests(self) -> list[bytes]:
        return [one.request for one in self.connections]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        connection = Connection(reader, writer)
        self.connections.append(connection)
        number = len(self.connections) - 1
        script = self.scripts[number] if number < len(self.scripts) else hangs
        try:
            await script(connection)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass  # the client left, which is what many scripts are about
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            connection.closed.set()
            self._tasks.discard(task)
            writer.transport.abort() if writer.is_closing() else writer.close()
