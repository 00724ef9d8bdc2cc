"""Run the sample upstream as a process: options in, its URL out."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import threading
from contextlib import suppress
from dataclasses import fields
from typing import get_args

from aiohttp import web

from .server import Options, TooMany, Upstream

# Connections end by themselves at once; only one whose client reads nothing is cut short.
_SHUTDOWN_TIMEOUT_S = 0.2


def main() -> None:
    """Serve until told to stop."""
    arguments = _parser().parse_args()
    options = Options(**{field.name: getattr(arguments, field.name) for field in fields(Options)})
    asyncio.run(_serve(options, arguments.host, arguments.port, arguments.exit_with_stdin))


def _parser() -> argparse.ArgumentParser:
    defaults = Options()
    parser = argparse.ArgumentParser(
        prog="upstream",
        description="A sample status stream in the manners of Twitter v1.1 and X API v2.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=0, help="port to listen on; 0 takes a free one")
    add("--rate", type=float, default=defaults.rate, help="statuses per second")
    add("--seed", type=int, default=defaults.seed, help="which statuses")
    add("--status-bytes", type=int, default=defaults.status_bytes, help="pad statuses to this size")
    add("--user", default=defaults.user, help="the one user")
    add("--password", default=defaults.password, help="for Basic authentication")
    add("--token", default=defaults.token, help="for Bearer authentication")
    add(
        "--max-connections",
        type=int,
        default=defaults.max_connections,
        help="open v1.1 connections per user",
    )
    add(
        "--too-many",
        choices=get_args(TooMany),
        default=defaults.too_many,
        help="what one more does: it is refused, or evicts the oldest",
    )
    add("--max-rules", type=int, default=defaults.max_rules, help="v2 rules in force at once")
    add("--connects", type=int, default=defaults.connects, help="connection attempts per window")
    add(
        "--connects-window-s",
        type=float,
        default=defaults.connects_window_s,
        help="length of that window in seconds",
    )
    add(
        "--keep-alive-s",
        type=float,
        default=defaults.keep_alive_s,
        help="seconds of silence before a keep-alive",
    )
    add(
        "--deletes-every",
        type=int,
        default=defaults.deletes_every,
        help="delete one v1.1 status of so many; 0 for none",
    )
    add("--exit-with-stdin", action="store_true", help="stop at the end of stdin")
    return parser


async def _serve(options: Options, host: str, port: int, exit_with_stdin: bool) -> None:  # noqa: FBT001
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    runner = web.AppRunner(Upstream(options).app(), access_log=None, shutdown_timeout=_SHUTDOWN_TIMEOUT_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        bound_host, bound_port = runner.addresses[0][:2]
        print(json.dumps({"url": f"http://{bound_host}:{bound_port}"}), flush=True)
        if exit_with_stdin:
            threading.Thread(target=_watch_stdin, args=(loop, stop), daemon=True).start()
        await stop.wait()
    finally:
        await runner.cleanup()


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    # A thread, because an event loop can wait for a pipe but not for a file or /dev/null; and
    # no sys.stdin, because the lock of its buffer would be held while the interpreter exits.
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    with suppress(RuntimeError):  # the loop is closed: stopped by then
        loop.call_soon_threadsafe(stop.set)


if __name__ == "__main__":
    main()
