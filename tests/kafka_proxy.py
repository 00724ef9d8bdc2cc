"""A proxy before a real Kafka that can do to a single request what a bad network does.

It stops a request of the test's choosing, and the test says what becomes of it: forwarded (late, if the
test takes its time), lost with its connection, carried out but its answer lost, or answered with an error
of the test's choosing. Whatever it stopped can arrive again later, over a connection of its own.

Clients cannot get round it: the addresses that Kafka tells them are replaced by the proxy's own. It speaks
plain text, and no Kafka library's code is in it. It lives in a thread; the tests call it from theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Self

from harness import PATIENCE_S
from kafka_wire import Api, Request

Address = tuple[str, int]


class _Fate(Enum):
    FORWARD = auto()
    CUT = auto()
    SWALLOW = auto()


def _anything(_: Request) -> bool:
    return True


@dataclass(slots=True, eq=False)
class Caught:
    """Requests that the proxy stops; they share a fate, which may be told before they come, or after.

    Attributes:
        api: of which kind.
        passing: how many go by before the first that is stopped.
        remaining: how many are stopped.
        where: which of the kind count.
        requests: those that were stopped.
    """

    api: Api
    passing: int
    remaining: int
    where: Callable[[Request], bool]
    _proxy: Proxy
    requests: list[Request] = field(default_factory=list)
    _broker: Address = ("", 0)
    _came: threading.Event = field(default_factory=threading.Event)
    _fate: Future[_Fate | int] = field(default_factory=Future)

    def wait(self) -> Request:
        """Return the first when it has come."""
        assert self._came.wait(PATIENCE_S), f"no {self.api.name} came"
        return self.requests[0]

    def forward(self) -> None:
        """Let it go on to Kafka."""
        self._fate.set_result(_Fate.FORWARD)

    def cut(self) -> None:
        """Lose it, and its connection: the client does not know whether it arrived."""
        self._fate.set_result(_Fate.CUT)

    def swallow(self) -> None:
        """Let Kafka carry it out, then lose the answer with the connection."""
        self._fate.set_result(_Fate.SWALLOW)

    def answer(self, error: int) -> None:
        """Answer it with *error*, without asking Kafka."""
        self._fate.set_result(error)

    def arrive_late(self) -> int:
        """Let the first arrive (again) over another connection; return Kafka's error code for it."""
        return self._proxy.send(self.wait(), self._broker)

    def _wants(self, request: Request) -> bool:
        """Whether *request* is to be stopped; counts it."""
        if request.api != self.api or self.remaining <= 0 or not self.where(request):
            return False
        if self.passing > 0:
            self.passing -= 1
            return False
        self.remaining -= 1
        return True

    def _take(self, request: Request, broker: Address) -> Future[_Fate | int]:
        if not self.requests:
            self._broker = broker  # that of the request which may arrive late
        self.requests.append(request)
        self._came.set()
        return self._fate


class Proxy:
    """A proxy before each broker of a cluster; to be entered, and left when its clients are gone."""

    def __init__(self, bootstrap: str) -> None:
        host, _, port = bootstrap.partition(",")[0].rpartition(":")
        self._first: Address = (host, int(port))
        self._fronts: dict[Address, asyncio.Server] = {}
        self._catches: list[Caught] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="proxy")
        self._serving: Future[str] = Future()
        self.requests: list[Request] = []
        """All that came, in order."""

    def __enter__(self) -> Self:
        self._ended = self._thread.submit(asyncio.run, self._serve())
        self._ended.add_done_callback(self._gave_up)
        self.bootstrap = self._serving.result(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(RuntimeError):  # it ended by itself; why is raised below
            self._loop.call_soon_threadsafe(self._stop.set)
        self._ended.result(PATIENCE_S)
        self._thread.shutdown()

    def catch(
        self, api: Api, nth: int = 1, times: int = 1, where: Callable[[Request], bool] = _anything
    ) -> Caught:
        """Stop the *nth* request of a kind from now on, and those after it, *times* in all.

        A request is stopped once, by the first that wants it; meanwhile, all that follows it on its
        connection waits.
        """
        caught = Caught(api, nth - 1, times, where, self)
        self._catches.append(caught)
        return caught

    def seen(self, api: Api) -> list[Request]:
        """Return all requests of a kind that came."""
        return [request for request in self.requests if request.api == api]

    def send(self, request: Request, broker: Address | None = None) -> int:
        """Send *request* to Kafka over a connection of its own; return the error code of the answer."""
        sent = asyncio.wait_for(self._send(request, broker or self._first), PATIENCE_S)
        return asyncio.run_coroutine_threadsafe(sent, self._loop).result()

    # Below: the proxy's thread.

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._carrying: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as self._connections:
            self._serving.set_result("{}:{}".format(*await self._front(self._first)))
            await self._stop.wait()
            for front in self._fronts.values():
                self._loop.remove_reader(front.sockets[0])
            for task in self._carrying:
                task.cancel()
        # What is being accepted is a task of asyncio's own. Its socket leaks if it is cancelled, or if its
        # server is closed meanwhile.
        while accepting := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(accepting)
        for front in self._fronts.values():
            front.close()

    def _gave_up(self, ended: Future[None]) -> None:
        if not self._serving.done():
            self._serving.set_exception(ended.exception() or RuntimeError("ended before it began"))

    async def _front(self, broker: Address) -> Address:
        """Return the address that stands before *broker*."""
        if broker not in self._fronts:

            def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                if self._stop.is_set():
                    writer.close()
                    return
                task = self._connections.create_task(_Connection(self, broker, reader, writer).run())
                # Closed from here: cancelled before its first step, a task closes nothing.
                task.add_done_callback(lambda _: writer.close())
                task.add_done_callback(self._carrying.discard)
                self._carrying.add(task)

            front = await asyncio.start_server(connected, "127.0.0.1", 0)
            if broker in self._fronts:  # another connection was faster
                front.close()
            else:
                self._fronts[broker] = front
        host, port = self._fronts[broker].sockets[0].getsockname()
        return host, port

    async def _send(self, request: Request, broker: Address) -> int:
        reader, writer = await asyncio.open_connection(*broker)
        with contextlib.closing(writer):
            _write(writer, request.frame)
            return request.error_in(await _read(reader))

    def _stopped(self, request: Request) -> Caught | None:
        self.requests.append(request)
        return next((caught for caught in self._catches if caught._wants(request)), None)


class _Connection:
    """A client's connection and the one to its broker."""

    def __init__(
        self, proxy: Proxy, broker: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._broker = broker
        self._from_client = reader
        self._to_client = writer
        self._with_addresses: dict[int, Request] = {}
        self._swallowed: set[int] = set()

    async def run(self) -> None:
        try:
            self._from_broker, self._to_broker = await asyncio.open_connection(*self._broker)
        except OSError:  # the broker is away, and so is the proxy
            return
        with contextlib.closing(self._to_broker):
            ways = [asyncio.ensure_future(self._ask()), asyncio.ensure_future(self._tell())]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
            for result in await asyncio.gather(*ways, return_exceptions=True):
                if isinstance(result, Exception) and not isinstance(result, (EOFError, OSError)):
                    raise result

    async def _ask(self) -> None:
        """Carry requests to the broker, one after another, until the connection is cut."""
        while True:
            request = Request.of(await _read(self._from_client))
            fate: _Fate | int = _Fate.FORWARD
            if caught := self._proxy._stopped(request):
                # Shielded: the fate is also that of requests on other connections.
                told = asyncio.wrap_future(caught._take(request, self._broker))
                fate = await asyncio.shield(told)
            match fate:
                case _Fate.CUT:
                    return
                case int(error):
                    _write(self._to_client, request.refusal(error))
                    continue
                case _Fate.SWALLOW:
                    self._swallowed.add(request.correlation)
                case _Fate.FORWARD if request.api in (Api.METADATA, Api.FIND_COORDINATOR):
                    self._with_addresses[request.correlation] = request
            _write(self._to_broker, request.frame)
            await self._to_broker.drain()

    async def _tell(self) -> None:
        """Carry answers to the client, until one is swallowed."""
        while True:
            frame = await _read(self._from_broker)
            (correlation,) = struct.unpack_from(">i", frame)
            if correlation in self._swallowed:
                return
            if request := self._with_addresses.pop(correlation, None):
                frame = await self._readdressed(request, frame)
            _write(self._to_client, frame)
            await self._to_client.drain()

    async def _readdressed(self, request: Request, frame: bytes) -> bytes:
        fields, rest = request.read_response(frame)
        for broker in fields.get("brokers", (fields,)):
            if broker["port"] > 0:  # else there is no coordinator
                broker["host"], broker["port"] = await self._proxy._front((broker["host"], broker["port"]))
        return request.response(fields, rest)


async def _read(reader: asyncio.StreamReader) -> bytes:
    (size,) = struct.unpack(">i", await reader.readexactly(4))
    return await reader.readexactly(size)


def _write(writer: asyncio.StreamWriter, frame: bytes) -> None:
    writer.write(struct.pack(">i", len(frame)) + frame)
