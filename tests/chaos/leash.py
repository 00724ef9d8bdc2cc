"""Ends the processes that it was told of when whoever told it is gone, however that happened.

python leash.py        reads "+PID" and "-PID", one a line, until its standard input ends
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


class Leash:
    """A process that outlives this one by a moment."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__))], stdin=subprocess.PIPE, start_new_session=True
        )

    def hold(self, process: subprocess.Popen[Any]) -> None:
        """End *process* too."""
        self._say(f"+{process.pid}")

    def let_go(self, process: subprocess.Popen[Any]) -> None:
        """Kill *process*, wait for it, and forget it: its number may become another's."""
        process.kill()
        process.wait()
        self._say(f"-{process.pid}")

    def close(self) -> None:
        """End all that are still held."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()


def main() -> None:
    """Read until the end, then kill."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    held = set[int]()
    for line in sys.stdin:
        (held.add if line[0] == "+" else held.discard)(int(line[1:]))
    for pid in held:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
