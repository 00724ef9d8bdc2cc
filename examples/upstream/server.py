"""The HTTP face of the sample upstream."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Literal

from aiohttp import web

from . import problems
from .admission import Account, ConnectLimit
from .clock import Clock
from .deletes import Deletes
from .ledger import Connection, Ledger, owed, owed_deletes, sent, sent_deletes
from .posts import Posts
from .rule_requests import change_rules, list_rules
from .rules import Rulebook
from .statuses import status
from .streaming import ADMIN_LOGOUT, SERVER_STOPPED, Feed, Publisher
from .subscription import Refused, Subscription

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FILTER = "/1.1/statuses/filter.json"
SEARCH = "/2/tweets/search/stream"
RULES = SEARCH + "/rules"

TooMany = Literal["refuse", "evict"]

_LINES_AT_ONCE = 256
_MAX_REQUEST_BYTES = 2**24  # all rules at once, escaped


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
        max_connections: open v1.1 connections per user and share.
        too_many: what one more does: it is refused, or ends the oldest.
        max_rules: v2 rules in force at once.
        connects: connection attempts per user within the window, refused ones included.
        connects_window_s: length of that window.
        keep_alive_s: silence after which a keep-alive is written.
        deletes_every: one v1.1 status of so many is deleted; 0 for none.
    """

    rate: float = 200.0
    seed: int = 1
    status_bytes: int = 0
    user: str = "demo"
    password: str = "demo"  # noqa: S105 (nothing is protected by it)
    token: str = "demo-token"  # noqa: S105 (nor by this)
    max_connections: int = 2
    too_many: TooMany = "evict"
    max_rules: int = 1_000
    connects: int = 60
    connects_window_s: float = 60.0
    keep_alive_s: float = 1.0
    deletes_every: int = 0


class Upstream:
    """Serves the stream and its ledger."""

    def __init__(self, options: Options, clock: Clock | None = None) -> None:
        """Start the clock, unless one is given."""
        self.options = options
        self.clock = clock or Clock(options.rate)
        self.ledger = Ledger()
        self._account = Account(options.user, options.password, options.token)
        # One user, hence one set of rules; each endpoint counts its own attempts.
        self._posts = Posts(Rulebook(options.max_rules))
        self._limits = {
            endpoint: ConnectLimit(options.connects, options.connects_window_s)
            for endpoint in (FILTER, SEARCH)
        }
        self._feeds: dict[int, Feed] = {}  # by the id of the connection
        self._publisher = Publisher(self.clock, options.seed, options.status_bytes, options.keep_alive_s)

    def app(self) -> web.Application:
        """Return the application to run; shutting it down ends the open connections."""
        app = web.Application(client_max_size=_MAX_REQUEST_BYTES)
        app.router.add_post(FILTER, self._filter)
        app.router.add_get(SEARCH, self._search, allow_head=False)
        app.router.add_get(RULES, self._rules)
        app.router.add_post(RULES, self._change_rules)
        app.router.add_post("/freeze", self._freeze)
        app.router.add_post("/thaw", self._thaw)
        app.router.add_get("/ledger", self._ledger)
        app.router.add_get("/owed", self._owed)
        app.router.add_get("/sent", self._sent)
        app.router.add_get("/deleted", self._deleted)
        app.on_shutdown.append(self._stop)
        return app

    async def _filter(self, request: web.Request) -> web.StreamResponse:
        user = self._user(request)
        if user is None:
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": 'Basic realm="statuses"'})
        if not self._limits[FILTER].admit(user, self.clock.elapsed_s()):
            return _enhance_your_calm("Too many connects.\n")
        parameters = dict(request.query)
        parameters |= {k: v for k, v in (await request.post()).items() if isinstance(v, str)}
        try:
            subscription = Subscription.parse(parameters)
        except Refused as refused:
            return web.Response(status=refused.status, text=f"{refused}\n")
        share = subscription.share
        is_open = self.ledger.open_connections(user, FILTER, share)
        if self.options.too_many == "refuse" and len(is_open) >= self.options.max_connections:
            return _enhance_your_calm("Exceeded connection limit for user\n")
        now = self.clock.elapsed_s()
        connection = self.ledger.register(
            user=user,
            endpoint=FILTER,
            track=subscription.track,
            follow=subscription.follow,
            since_seq=subscription.since_seq,
            share=share,
            published=self.clock.published(),
            now=now,
        )
        for oldest in self.ledger.open_connections(user, FILTER, share)[: -self.options.max_connections]:
            oldest.close(now, ADMIN_LOGOUT)
        return await self._serve(request, subscription, Deletes(self.options.deletes_every), connection)

    async def _search(self, request: web.Request) -> web.StreamResponse:
        user = self._user(request)
        if user is None:
            return web.json_response(problems.UNAUTHORIZED, status=401)
        now = self.clock.elapsed_s()
        if not self._limits[SEARCH].admit(user, now):
            return web.json_response(problems.TOO_MANY_REQUESTS, status=429)
        if self.ledger.open_connections(user, SEARCH):
            return web.json_response(problems.TOO_MANY_CONNECTIONS, status=429)
        connection = self.ledger.register(
            user=user, endpoint=SEARCH, published=self.clock.published(), now=now
        )
        return await self._serve(request, self._posts, Deletes(), connection)

    async def _serve(
        self, request: web.Request, feed: Feed, deletes: Deletes, connection: Connection
    ) -> web.StreamResponse:
        self._feeds[connection.id] = feed
        return await self._publisher.serve(request, feed, deletes, connection)

    async def _rules(self, request: web.Request) -> web.Response:
        if self._user(request) is None:
            return web.json_response(problems.UNAUTHORIZED, status=401)
        return web.json_response(list_rules(self._posts.rulebook, _time_of_day()))

    async def _change_rules(self, request: web.Request) -> web.Response:
        if self._user(request) is None:
            return web.json_response(problems.UNAUTHORIZED, status=401)
        if request.query:  # a dry run must not turn out wet
            return web.json_response(problems.invalid_request("No query parameter is known."), status=400)
        body = await request.read()
        published = self.clock.published()
        code, answer = change_rules(self._posts.rulebook, body, published, _time_of_day())
        return web.json_response(answer, status=code)

    def _user(self, request: web.Request) -> str | None:
        return self._account.authenticate(request.headers.get("Authorization", ""))

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
                "rules": self._posts.rulebook.as_json(),
            }
        )

    async def _owed(self, request: web.Request) -> web.StreamResponse:
        return await self._lines(request, owed, self._status_line)

    async def _sent(self, request: web.Request) -> web.StreamResponse:
        return await self._lines(request, sent, self._status_line)

    async def _deleted(self, request: web.Request) -> web.StreamResponse:
        must_know = set[tuple[int, int]]()
        for connections in self.ledger.by_stream():
            must_know |= owed_deletes(connections).items()

        def tell(connections: Iterable[Connection]) -> dict[int, int]:
            return sent_deletes(connections) | owed_deletes(connections)

        return await self._lines(request, tell, lambda *pair: self._line(*pair, owed=pair in must_know))

    async def _lines(
        self,
        request: web.Request,
        tell: Callable[[Iterable[Connection]], dict[int, int]],
        line: Callable[[int, int], bytes],
    ) -> web.StreamResponse:
        wanted = request.query.get("connection")
        told = [tell(connections).items() for connections in self.ledger.by_stream()]
        pairs = (
            (seq, connection)
            for stream in told
            for seq, connection in stream
            if wanted is None or str(connection) == wanted
        )
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        while lines := [line(*pair) for pair in islice(pairs, _LINES_AT_ONCE)]:
            await response.write(b"".join(lines))
            await asyncio.sleep(0)  # statuses are due meanwhile
        return response

    def _status_line(self, seq: int, connection: int) -> bytes:
        body = self._feeds[connection].body(status(self.options.seed, seq, self.options.status_bytes))
        assert body is not None, "it was sent once"
        return self._line(seq, connection, body=body.decode())

    def _line(self, seq: int, connection: int, **more: object) -> bytes:
        line = {"seq": seq, "id": str(status(self.options.seed, seq).id), "connection": connection, **more}
        # ASCII only, so that no reader cuts a line at U+2028.
        return json.dumps(line).encode() + b"\n"

    async def _stop(self, _: web.Application) -> None:
        for connection in self.ledger.connections:
            connection.close(self.clock.elapsed_s(), SERVER_STOPPED)


def _enhance_your_calm(text: str) -> web.Response:
    return web.Response(status=420, reason="Enhance Your Calm", text=text)


def _time_of_day() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
