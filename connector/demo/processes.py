"""The demo's processes: started on a leash, so that none outlives it, and told apart by name."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

_PACKAGE = Path(__file__).parent
_CHECKOUT = _PACKAGE.parent.parent

EXIT_TOOLS_MISSING = 3
"""What `kafka.py` says when there is no Java or Maven."""

_LEASH = """
import os, signal, subprocess, sys, threading
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
signal.signal(signal.SIGTERM, lambda *_: child.terminate())
def watch():
    while os.read(0, 4096):
        pass
    child.terminate()
threading.Thread(target=watch, daemon=True).start()
sys.exit(child.wait())
"""


class Unstarted(Exception):
    """A process ended before it was ready.

    Attributes:
        code: its exit code.
    """

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name} ended with code {code} before it was ready")
        self.code = code


class Processes:
    """What the demo started, ended in reverse order."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start *command*; its standard input closes when the demo dies, however it dies."""
        errors = self._stack.enter_context((self._logs / f"{name}.log").open("w"))
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**_clean_environment(), **(environment or {})},
            text=True,
            start_new_session=True,  # Ctrl-C is ours to translate into an orderly end
        )
        self._stack.callback(end, process)
        return process

    def start_kafka(self) -> str:
        """Start a real broker and return its address.

        Raises:
            Unstarted: with `EXIT_TOOLS_MISSING` where Java or Maven is missing.
        """
        script = _asset("local", "deploy/local") / "kafka.py"
        process = self.start("kafka", [sys.executable, str(script), "run"])
        return str(_first_line("kafka", process)["bootstrap"])

    def start_upstream(self, *options: str) -> str:
        """Start the sample upstream and return its URL."""
        folder = _asset("upstream", "examples/upstream").parent
        process = self.start(
            "upstream",
            [sys.executable, "-m", "upstream", "--exit-with-stdin", *options],
            environment={"PYTHONPATH": str(folder)},
        )
        return str(_first_line("upstream", process)["url"])

    def start_connector(self, config: Path) -> subprocess.Popen[str]:
        """Start the connector."""
        command = [sys.executable, "-m", "connector", "run", "--config", str(config)]
        return self.start("connector", [sys.executable, "-c", _LEASH, *command])

    def log_of(self, name: str) -> str:
        """Return what a process wrote on its standard error."""
        return (self._logs / f"{name}.log").read_text(errors="replace")


def end(process: subprocess.Popen[str]) -> int:
    """End *process*, politely first, and return its exit code."""
    process.terminate()
    try:
        code = process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    return code


def create_topics(config: Path) -> None:
    """Run ``connector topics --create``."""
    subprocess.run(
        [sys.executable, "-m", "connector", "topics", "--create", "--config", str(config)],
        env=_clean_environment(),
        stdout=subprocess.DEVNULL,
        check=True,
    )


def _first_line(name: str, process: subprocess.Popen[str]) -> Mapping[str, object]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise Unstarted(name, process.wait())
    parsed: Mapping[str, object] = json.loads(line)
    return parsed


def _asset(packaged: str, in_checkout: str) -> Path:
    """Return a folder that a wheel carries in this package and a checkout elsewhere."""
    folder = _PACKAGE / packaged
    return folder if folder.exists() else _CHECKOUT / in_checkout


def _clean_environment() -> dict[str, str]:
    """The demo's configuration is its own: no variable of another connector may change it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CONNECTOR_")}


@contextlib.contextmanager
def embedded_kafka() -> Iterator[str]:
    """Yield the address of the brokers embedded in librdkafka: nothing to install, no isolation."""
    from confluent_kafka import Producer  # noqa: PLC0415 (only where the real thing is missing)

    owner = Producer({"test.mock.num.brokers": 3, "bootstrap.servers": "127.0.0.1:1", "log_level": 0})
    brokers = owner.list_topics(timeout=10).brokers.values()
    yield ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
