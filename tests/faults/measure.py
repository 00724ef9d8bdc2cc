"""A reader in a process of its own, which says how its memory grew: ``measure.py URL [CODING]``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from reading import ids, lost, manners, reader, take

from connector.stream.reader import Received


def memory_kib(name: str) -> int:
    """Return what Linux says of this process: ``VmRSS`` now, ``VmHWM`` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


async def main(url: str, coding: str) -> None:
    """Read one connection to its end."""
    source = reader(url, manners(response={"compression": [coding] if coding else []}))
    before_kib = memory_kib("VmRSS")
    statuses = oversize = 0

    def count(seen: list) -> bool:
        nonlocal statuses, oversize
        statuses += len(ids(seen))
        oversize += sum(one.discarded["oversize"] for one in seen if isinstance(one, Received))
        is_over = bool(lost(seen))
        if not is_over:
            seen.clear()  # what is kept here is not the reader's
        return is_over

    seen = await take(source, count)
    print(f"reason={lost(seen)[0].reason}")
    print(f"statuses={statuses}")
    print(f"oversize={oversize}")
    print(f"grown_kib={memory_kib('VmHWM') - before_kib}")


asyncio.run(main(*sys.argv[1:3]))
