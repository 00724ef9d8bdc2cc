"""The ops port: read-only, for kubelets and Prometheus."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import orjson
from aiohttp import web

from connector.ops.health import Health
from connector.ops.metrics import Metrics


@asynccontextmanager
async def serve(
    host: str, port: int, health: Health, metrics: Metrics, is_alive: Callable[[], bool]
) -> AsyncGenerator[int, None]:
    """Serve ``/livez``, ``/readyz``, ``/metrics`` and ``/status`` while the block runs.

    Args:
        host: address to bind.
        port: 0 picks a free one.
        health: says why not ready.
        metrics: says how much of what.
        is_alive: False when only a restart helps.

    Yields:
        The port.

    Raises:
        OSError: the address is taken or not ours.
    """

    async def livez(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n") if is_alive() else web.Response(status=503, text="stuck\n")

    async def readyz(_request: web.Request) -> web.Response:
        if troubles := health.troubles():
            return web.Response(status=503, text="\n".join(troubles) + "\n")
        return web.Response(text="ok\n")

    async def status(_request: web.Request) -> web.Response:
        return web.json_response(body=orjson.dumps(health.status()))

    async def exposition(_request: web.Request) -> web.Response:
        return web.Response(
            body=metrics.exposition(),
            headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    app = web.Application()
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", exposition)
    app.router.add_get("/status", status)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
