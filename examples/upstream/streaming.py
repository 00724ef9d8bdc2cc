"""One connection's life: write what is published and matches until somebody ends it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import ClientError, web

from . import framing
from .statuses import status

if TYPE_CHECKING:
    from .clock import Clock
    from .ledger import Connection
    from .subscription import Subscription

TICK_S = 0.005
# Long replays are cut into batches, so that other connections get their turn in between.
BATCH_STATUSES = 256

ADMIN_LOGOUT = "admin logout"
CLIENT_GONE = "client gone"
SERVER_STOPPED = "server stopped"


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
        self, request: web.Request, subscription: Subscription, connection: Connection
    ) -> web.StreamResponse:
        """Answer a request until its connection is closed in the ledger or the client is gone.

        Returns with the connection closed in the ledger, in any case.
        """
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        response.force_close()
        try:
            await response.prepare(request)
            await self._publish(request, response, subscription, connection)
            if connection.close_reason == ADMIN_LOGOUT:
                notice = framing.disconnect(f"{connection.user}-statuses{connection.id}")
                await response.write(subscription.frame(notice))
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
        subscription: Subscription,
        connection: Connection,
    ) -> None:
        wrote_at = self.clock.elapsed_s()
        while connection.closed_at is None:
            # From here to the write nothing is awaited: what the ledger calls sent has been
            # handed to a living transport, and nothing has been handed over that it omits.
            if request.transport is None or request.transport.is_closing():
                raise ConnectionResetError
            now, published = self.clock.elapsed_s(), self.clock.published()
            data = self._next_batch(subscription, connection, published)
            if not data and now - wrote_at >= self.keep_alive_s:
                data = framing.KEEP_ALIVE
            if data:
                wrote_at = now
                await response.write(data)  # waits for a slow client, which just lags
            await asyncio.sleep(0 if connection.last_seq < published else TICK_S)

    def _next_batch(self, subscription: Subscription, connection: Connection, published: int) -> bytes:
        messages = []
        first = connection.last_seq + 1
        for n in range(first, min(published + 1, first + BATCH_STATUSES)):
            candidate = status(self.seed, n, self.min_bytes)
            if subscription.predicates.match(candidate):
                messages.append(subscription.frame(candidate.body))
                connection.sent.append(n)
            connection.last_seq = n
        return b"".join(messages)
