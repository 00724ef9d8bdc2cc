"""The HTTP face of the sample upstream."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from aiohttp import web

from .admission import Account, ConnectLimit
from .clock import Clock
from .ledger import Connection, Ledger, owed, sent
from .statuses import status
from .streaming import ADMIN_LOGOUT, SERVER_STOPPED, Publisher
from .subscription import Refused, Subscription

if TYPE_CHECKING:
    from collections.abc import Mapping

_LINES_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the upstream behaves; the defaults make a lively demo on any machine.

    Attributes:
        rate: statuses per second, all of them, matching or not.
        seed: which statuses; the same seed always gives the same ones.
        status_bytes: size that a status is padded to.
        user: the one user there is.
        password: proves the user by Basic authentication.
        token: proves the user as a Bearer.
        max_connections: open connections per user; one more ends the oldest.
        connects: connection attempts per user within the window, refused ones included.
        connects_window_s: length of that window.
        keep_alive_s: silence after which a keep-alive is written.
    """

    rate: float = 200.0
    seed: int = 1
    status_bytes: int = 0
    user: str = "demo"
    password: str = "demo"  # noqa: S105 (nothing is protected by it)
    token: str = "demo-token"  # noqa: S105 (nor by this)
    max_connections: int = 2
    connects: int = 60
    connects_window_s: float = 60.0
    keep_alive_s: float = 1.0


class Upstream:
    """Serves the stream and its ledger."""

    def __init__(self, options: Options, clock: Clock | None = None) -> None:
        """Start the clock, unless one is given."""
        self.options = options
        self.clock = clock or Clock(options.rate)
        self.ledger = Ledger()
        self._account = Account(options.user, options.password, options.token)
        self._limit = ConnectLimit(options.connects, options.connects_window_s)
        self._publisher = Publisher(self.clock, options.seed, options.status_bytes, options.keep_alive_s)

    def app(self) -> web.Application:
        """Return the application to run; shutting it down ends the open connections."""
        app = web.Application()
        app.router.add_post("/1.1/statuses/filter.json", self._filter)
        app.router.add_post("/freeze", self._freeze)
        app.router.add_post("/thaw", self._thaw)
        app.router.add_get("/ledger", self._ledger)
        app.router.add_get("/owed", self._owed)
        app.router.add_get("/sent", self._sent)
        app.on_shutdown.append(self._stop)
        return app

    async def _filter(self, request: web.Request) -> web.StreamResponse:
        user = self._account.authenticate(request.headers.get("Authorization", ""))
        if user is None:
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": 'Basic realm="statuses"'})
        if not self._limit.admit(user, self.clock.elapsed_s()):
            return web.Response(status=420, reason="Enhance Your Calm", text="Too many connects.\n")
        parameters = dict(request.query)
        parameters |= {k: v for k, v in (await request.post()).items() if isinstance(v, str)}
        try:
            subscription = Subscription.parse(parameters)
        except Refused as refused:
            return web.Response(status=refused.status, text=f"{refused}\n")
        connection = self._register(user, subscription)
        return await self._publisher.serve(request, subscription, connection)

    def _register(self, user: str, subscription: Subscription) -> Connection:
        now = self.clock.elapsed_s()
        connection = self.ledger.register(
            user=user,
            track=subscription.track,
            follow=subscription.follow,
            since_seq=subscription.since_seq,
            published=self.clock.published(),
            now=now,
        )
        for oldest in self.ledger.open_connections(user)[: -self.options.max_connections]:
            oldest.close(now, ADMIN_LOGOUT)
        return connection

    async def _freeze(self, _: web.Request) -> web.Response:
        return web.json_response({"published": self.clock.freeze()})

    async def _thaw(self, _: web.Request) -> web.Response:
        return web.json_response({"published": self.clock.thaw()})

    async def _ledger(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "seed": self.options.seed,
                "published": self.clock.published(),
                "connections": self.ledger.as_json(),
            }
        )

    async def _owed(self, request: web.Request) -> web.StreamResponse:
        return await self._lines(request, owed(self.ledger.connections))

    async def _sent(self, request: web.Request) -> web.StreamResponse:
        return await self._lines(request, sent(self.ledger.connections))

    async def _lines(self, request: web.Request, connection_of: Mapping[int, int]) -> web.StreamResponse:
        wanted = request.query.get("connection")
        pairs = (
            (seq, connection)
            for seq, connection in connection_of.items()
            if wanted is None or str(connection) == wanted
        )
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        while lines := [self._line(*pair) for pair in islice(pairs, _LINES_AT_ONCE)]:
            await response.write(b"".join(lines))
            await asyncio.sleep(0)  # statuses are due meanwhile
        return response

    def _line(self, seq: int, connection: int) -> bytes:
        this = status(self.options.seed, seq, self.options.status_bytes)
        line = {
            "seq": seq,
            "id": str(this.id),
            "connection": connection,
            "body": this.body.decode(),
        }
        # ASCII only, so that no reader cuts a line at U+2028.
        return json.dumps(line).encode() + b"\n"

    async def _stop(self, _: web.Application) -> None:
        for connection in self.ledger.connections:
            connection.close(self.clock.elapsed_s(), SERVER_STOPPED)
