"""One connection's life: write what is published and matches until somebody ends it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from aiohttp import ClientError, web

from . import framing
from .deletes import What
from .statuses import status

if TYPE_CHECKING:
    from collections.abc import Callable

    from .clock import Clock
    from .deletes import Deletes
    from .ledger import Connection
    from .statuses import Status

TICK_S = 0.005
# Long replays are cut into batches, so that other connections get their turn in between.
BATCH_STATUSES = 256

ADMIN_LOGOUT = "admin logout"
CLIENT_GONE = "client gone"
SERVER_STOPPED = "server stopped"


class Feed(Protocol):
    """What a connection gets, and in which form."""

    def body(self, status: Status) -> bytes | None:
        """Return the message about a status, None if there is none; always the same."""

    @property
    def frame(self) -> Callable[[bytes], bytes]:
        """What lays a message out."""


@dataclass(frozen=True, slots=True)
class Publisher:
    """What all connections share: the statuses and when they come.

    Attributes:
        min_bytes: size that a status is padded to.
        keep_alive_s: silence after which a keep-alive is written, by the clock.
    """

    clock: Clock
    seed: int
    min_bytes: int
    keep_alive_s: float

    async def serve(
        self, request: web.Request, feed: Feed, deletes: Deletes, connection: Connection
    ) -> web.StreamResponse:
        """Answer a request until its connection is closed in the ledger or the client is gone.

        Returns with the connection closed in the ledger, in any case.
        """
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        response.force_close()
        try:
            await response.prepare(request)
            await self._publish(request, response, feed, deletes, connection)
            if connection.close_reason == ADMIN_LOGOUT:
                notice = framing.disconnect(f"{connection.user}-statuses{connection.id}")
                await response.write(feed.frame(notice))
        except (OSError, ClientError):
            pass  # the client is gone, and nobody left to tell
        finally:
            # Whoever else ends a connection closes it in the ledger first.
            connection.close(self.clock.elapsed_s(), CLIENT_GONE)
        return response

    async def _publish(
        self,
        request: web.Request,
        response: web.StreamResponse,
        feed: Feed,
        deletes: Deletes,
        connection: Connection,
    ) -> None:
        wrote_at = self.clock.elapsed_s()
        while connection.closed_at is None:
            # From here to the write nothing is awaited: what the ledger calls sent has been
            # handed to a living transport, and nothing has been handed over that it omits.
            if request.transport is None or request.transport.is_closing():
                raise ConnectionResetError
            now, published = self.clock.elapsed_s(), self.clock.published()
            data = self._next_batch(feed, deletes, connection, published)
            if not data and now - wrote_at >= self.keep_alive_s:
                data = framing.KEEP_ALIVE
            if data:
                wrote_at = now
                await response.write(data)  # waits for a slow client, which just lags
            await asyncio.sleep(0 if connection.last_seq < published else TICK_S)

    def _next_batch(self, feed: Feed, deletes: Deletes, connection: Connection, published: int) -> bytes:
        messages = []
        first = connection.last_seq + 1
        for n in range(first, min(published + 1, first + BATCH_STATUSES)):
            for what, seq in deletes.at(n):
                this = status(self.seed, seq, self.min_bytes)
                body = feed.body(this)
                if body is not None:
                    if what is What.DELETE:
                        body = framing.deletion(this.id, this.user_id)
                    messages.append(feed.frame(body))
                    connection.book(n, what, seq)
            connection.last_seq = n
        return b"".join(messages)
