"""Who plays: a broker that can be killed, replicas that can be hurt, upstreams that fail on demand."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml
from harness import ROOT, clean_environment, eventually, pace
from kafka import Broker
from upstream.statuses import TOPICS

from chaos.leash import Leash
from chaos.links import Link, Links

HERE = Path(__file__).parent
SESSION_TIMEOUT_S = 6.0
SECRET = "planted-secret-that-nobody-may-log"


class Cluster:
    """A broker with a listener behind each link."""

    def __init__(self, folder: Path, links: Links, leash: Leash) -> None:
        self._folder, self._leash = folder, leash
        reserved = [socket.create_server(("127.0.0.1", 0)) for _ in range(len(links.links) + 1)]
        own, *ports = (one.getsockname()[1] for one in reserved)
        for one in reserved:
            one.close()
        heard, told, kinds = (
            [f"BROKER://127.0.0.1:{own}"],
            [f"BROKER://127.0.0.1:{own}"],
            ["BROKER:PLAINTEXT"],
        )
        for number, (link, port) in enumerate(zip(links.links, ports, strict=True)):
            link.to_port = port
            heard.append(f"LINK{number}://127.0.0.1:{port}")
            told.append(f"LINK{number}://127.0.0.1:{link.port}")
            kinds.append(f"LINK{number}:PLAINTEXT")
        self._own, self._lines = own, (heard, told, kinds)
        self._broker: Broker | None = None

    @property
    def bootstrap(self) -> str:
        """The address of the listener that no link stands before."""
        return f"127.0.0.1:{self._own}"

    def start(self) -> None:
        """Start it, on what it had stored."""
        heard, told, kinds = self._lines
        controller = socket.create_server(("127.0.0.1", 0))
        port = controller.getsockname()[1]
        controller.close()
        # The later of two lines counts.
        more = (
            f"\ncontroller.quorum.voters=1@127.0.0.1:{port}"
            f"\nlisteners={','.join([*heard, f'CONTROLLER://127.0.0.1:{port}'])}"
            f"\nadvertised.listeners={','.join(told)}"
            f"\nlistener.security.protocol.map={','.join([*kinds, 'CONTROLLER:PLAINTEXT'])}"
            "\noffsets.topic.num.partitions=2\ntransaction.state.log.num.partitions=4\n"
        )
        self._broker = Broker(self._folder, self._own, more)
        self._leash.hold(self._broker.process)

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        if self._broker is not None:
            self._leash.let_go(self._broker.process)


@dataclass(frozen=True, slots=True)
class Stream:
    """One upstream stream.

    Attributes:
        core: the words that its first publisher asks for, from the first to the last.
        others: words that others ask for now and then.
    """

    name: str
    seed: int
    rate: float
    resumes: bool
    core: tuple[str, ...]
    others: tuple[str, ...]


def streams(count: int, rate: float, rng: Random) -> list[Stream]:
    """Return so many; each fourth cannot resume."""
    made = []
    for number in range(count):
        words = rng.sample(TOPICS, 6)
        made.append(
            Stream(
                name=f"s{number:02}",
                seed=rng.randrange(1, 1 << 30),
                rate=round(rate * rng.uniform(0.5, 1.5), 1),
                resumes=number % 4 != 3,
                core=tuple(words[:2]),
                others=tuple(words[2:]),
            )
        )
    return made


class Upstreams:
    """One process with some of the upstreams."""

    def __init__(self, mine: list[Stream], leash: Leash) -> None:
        self.streams = mine
        options = {
            one.name: {
                "seed": one.seed,
                "rate": one.rate,
                "token": SECRET,
                "connects": 1_000_000,
                "max_connections": 4,
            }
            for one in mine
        }
        self._leash = leash
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "upstreams.py"), json.dumps(options)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "examples")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        leash.hold(self.process)
        assert self.process.stdout is not None
        self.url = json.loads(self.process.stdout.readline())["url"]

    def ask(self, path: str, *, post: bool = False) -> Any:
        """Ask one of them, or who stands before it."""
        request = urllib.request.Request(self.url + path, method="POST" if post else "GET")
        with urllib.request.urlopen(request, timeout=60) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def pause(self) -> None:
        """Let none of them say a word."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let them say what they missed to say."""
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """Kill it."""
        self._leash.let_go(self.process)


def settings(stream: Stream, url: str) -> dict[str, Any]:
    """Return a stream's configuration: as impatient as a short run needs it."""
    short = {"first_s": 0.2, "add_s": 0.2, "cap_s": 2}
    override: dict[str, Any] = {
        "budget": None,
        "backoff": {"network": short, "http": short, "rate_limited": short},
        "liveness": {"stall_timeout_s": 6, "patience_s": 4},
    }
    if stream.resumes:
        override["resume"] = {"parameter": "since_seq", "cursor": "/seq"}
    return {
        "url": f"{url}/{stream.name}/1.1/statuses/filter.json",
        "auth": {"kind": "bearer", "token": SECRET},
        "debounce": {"min_s": 0.5, "max_s": 1.5},
        "override": override,
    }


class Replica:
    """One replica, started as often as one likes."""

    def __init__(self, name: str, folder: Path, link: Link, content: dict[str, Any], leash: Leash) -> None:
        self.name, self.link = name, link
        self.log = folder / f"{name}.log"
        self._config = folder / f"{name}.yaml"
        self._leash = leash
        self._began = 0  # where in the log the last start did
        self.process: subprocess.Popen[bytes] | None = None
        content = {**content, "replica": name, "ops": {"port": 0}}
        content["kafka"] = {**content["kafka"], "bootstrap_servers": f"127.0.0.1:{link.port}"}
        self._config.write_text(yaml.safe_dump(content))

    @property
    def runs(self) -> bool:
        """Whether it has been started, and did not end by itself."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it; the log goes on where it was."""
        assert self.process is None
        self._began = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "replica.py"), "run", "--config", str(self._config)],
                env={**clean_environment(), "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        self._leash.hold(self.process)

    def command(self, *words: str) -> str:
        """Run another of its commands; return what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "connector", *words, "--config", str(self._config)],
            env={**clean_environment(), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def signal(self, signum: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(signum)

    def hang(self, thread: str, seconds: float) -> None:
        """Let its thread *lease* or *loop* hang."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(f"{thread} {seconds}\n".encode())
        self.process.stdin.flush()

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        assert self.process is not None
        self._leash.let_go(self.process)
        self._forget()

    def ask_to_end(self) -> None:
        """Send it SIGTERM: once, since a second one kills whoever has taken down its handler."""
        self.signal(signal.SIGTERM)

    def stop(self, within_s: float = 60, *, is_asked: bool = False) -> int | None:
        """Ask it to end, unless it *is_asked*; return the exit code, or None if it had to be killed."""
        assert self.process is not None
        if not is_asked:
            self.ask_to_end()
        give_up_at = time.monotonic() + within_s
        while self.process.poll() is None and time.monotonic() < give_up_at:
            pace(0.05)
        code = self.process.poll()
        self._leash.let_go(self.process)
        self._forget()
        return code

    def ended(self) -> int | None:
        """Return the exit code if it ended by itself, and forget that it ran."""
        if self.process is None or (code := self.process.poll()) is None:
            return None
        self._leash.let_go(self.process)
        self._forget()
        return code

    def ops(self, path: str) -> str | None:
        """Ask the ops port of the last start; None if it does not answer."""
        with self.log.open("rb") as log:
            log.seek(self._began)
            found = re.findall(rb'"ops_port": ?(\d+)', log.read())
        if not found:
            return None
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{int(found[-1])}{path}", timeout=2) as answer:
                body: bytes = answer.read()
                return body.decode()
        except (OSError, urllib.error.HTTPError):
            return None

    def is_ready(self) -> bool:
        """Whether ``/readyz`` says so."""
        return self.ops("/readyz") is not None

    def _forget(self) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process = None


def await_ready(replicas: list[Replica]) -> None:
    """Wait until all that run are ready."""
    for one in replicas:
        eventually(one.is_ready, f"{one.name} is ready")
