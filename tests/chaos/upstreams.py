"""Many sample upstreams in one process, which answer for themselves, and fail on demand.

    python upstreams.py '{"tech": {"seed": 1, "rate": 15, ...}, ...}'

Each is served below ``/<name>``. ``POST /<name>/refuse?for_s=5`` lets it answer 503 for so long, and
``POST /<name>/reset`` breaks its connections off; ``GET /<name>/clock`` tells how much it published.
The process ends with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from typing import Any

from aiohttp import web
from upstream import streaming
from upstream.server import FILTER, Options, Upstream

# A tick per connection and this long is plenty for a few statuses a second, and dozens share a core.
streaming.TICK_S = 0.05


class Failing:
    """What stands before one upstream."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self._refused_until = 0.0
        self._open: list[web.Request] = []  # they have no hash

    async def serve(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Answer a request to the upstream, or to this."""
        tail = request.path.split("/", 2)[2]
        now = time.monotonic()
        if tail == "refuse":
            self._refused_until = now + float(request.query["for_s"])
            return web.Response()
        if tail == "reset":
            for one in self._open:
                if one.transport is not None:
                    one.transport.abort()
            return web.Response()
        if tail == "clock":
            clock = self.upstream.clock
            return web.json_response(
                {"published": clock.published(), "started_at": time.time() - clock.elapsed_s()}
            )
        if f"/{tail}" != FILTER:
            return await handler(request)
        if now < self._refused_until:
            return web.Response(status=503, text="Over capacity\n")
        self._open.append(request)
        try:
            return await handler(request)
        finally:
            self._open.remove(request)


async def _serve(options: dict[str, dict[str, Any]]) -> None:
    names = {name: Failing(Upstream(Options(**its))) for name, its in options.items()}

    @web.middleware
    async def failing(request: web.Request, handler: Any) -> web.StreamResponse:
        return await names[request.path.split("/")[1]].serve(request, handler)

    app = web.Application(middlewares=[failing])
    for name, its in names.items():
        app.add_subapp(f"/{name}", its.upstream.app())
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    print(json.dumps({"url": f"http://{host}:{port}"}), flush=True)
    ended, loop = asyncio.Event(), asyncio.get_running_loop()

    def watch() -> None:
        while os.read(0, 4096):
            pass
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=watch, daemon=True).start()
    await ended.wait()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(sys.argv[1])))
