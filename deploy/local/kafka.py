"""Run a real Apache Kafka (KRaft, one node) on this machine, without Docker.

Stands alone on the standard library, so that `make`, the tests and `connector demo` start it the same way:

    kafka.py fetch            download Kafka by Maven, once
    kafka.py run              foreground; prints {"bootstrap": ...} when it serves, stops at SIGTERM
                              or when its standard input closes, and removes its data
    kafka.py start | stop     leave a broker running on 127.0.0.1:9092 for hand work

Exit code 3 says that Java or Maven is missing and could not be installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from string import Template
from types import FrameType

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kafka-stream-connector"
STARTED = CACHE / "started.json"
JAVA_AT_LEAST = 17
EXIT_TOOLS_MISSING = 3
START_TIMEOUT_S = 90.0
SMALL = ("-Xms256m", "-Xmx512m", "-XX:+UseSerialGC")


class ToolsMissing(Exception):
    """Java or Maven is not there; the message says what to install."""


def version() -> str:
    """Return the Kafka version that the pom names."""
    found = re.search(r"<artifactId>kafka</artifactId>\s*<version>([^<]+)</version>", _pom())
    assert found, "pom.xml lost its version"
    return found.group(1)


def fetch() -> Path:
    """Return the folder with Kafka's jars, downloading them the first time.

    Raises:
        ToolsMissing: no Java or Maven, and no way to install them here.
    """
    libs = CACHE / f"kafka-{version()}" / "libs"
    _need_java()
    if libs.exists():
        return libs
    _need("mvn", "maven")
    print(f"Fetching Apache Kafka {version()} with Maven ...", file=sys.stderr, flush=True)
    libs.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=libs.parent) as unfinished:
        # The pom is copied because Maven writes beside it, and a wheel may be read-only.
        shutil.copy(HERE / "pom.xml", unfinished)
        target = Path(unfinished) / "libs"
        subprocess.run(
            ["mvn", "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={target}"],
            cwd=unfinished,
            check=True,
            stdout=sys.stderr,
        )
        if not libs.exists():  # another run may have been faster
            target.rename(libs)
    return libs


class Broker:
    """One Kafka process and its data folder."""

    def __init__(self, data: Path, port: int = 0, more: str = "", java: Sequence[str] = SMALL) -> None:
        """Format *data* and start a broker on it.

        Args:
            data: folder for logs; kept when it already holds a formatted broker.
            port: port of the listener on 127.0.0.1; 0 picks a free one.
            more: further lines for its properties.
            java: options of its virtual machine.
        """
        libs = fetch()
        data.mkdir(parents=True, exist_ok=True)
        properties = data / "server.properties"
        if not properties.exists():
            port = port or _free_port()
            template = Template((HERE / "server.properties").read_text())
            filled = template.substitute(
                port=port, controller_port=_free_port(), data=(data / "logs").as_posix()
            )
            properties.write_text(filled + more)
            self._java(libs, "kafka.tools.StorageTool", "format", "--cluster-id",
                       "bG9jYWwtY29ubmVjdG9yLQ", "--config", str(properties))  # fmt: skip
        found = re.search(r"advertised\.listeners=BROKER://(\S+)", properties.read_text())
        assert found, "server.properties lost its listener"
        self.bootstrap = found.group(1)
        self.log = data / "broker.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["java", *java, "-cp", f"{libs}/*", "kafka.Kafka", str(properties)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is ours to translate
            )
        self._wait_until_serving()

    def stop(self) -> None:
        """End the process, politely first."""
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _wait_until_serving(self) -> None:
        host, port = self.bootstrap.split(":")
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < give_up_at:
            if self.process.poll() is not None:
                break
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        self.stop()
        tail = "".join(self.log.read_text(errors="replace").splitlines(keepends=True)[-15:])
        sys.exit(f"Kafka did not start; the end of {self.log}:\n{tail}")

    @staticmethod
    def _java(libs: Path, *command: str) -> None:
        done = subprocess.run(
            ["java", "-XX:TieredStopAtLevel=1", "-cp", f"{libs}/*", *command],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def run(port: int) -> None:
    """Serve until SIGTERM, SIGINT, SIGHUP or the end of standard input, then leave nothing behind."""
    stop = threading.Event()

    def on_signal(_signum: int, _frame: FrameType | None) -> None:
        stop.set()

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # the last where a terminal is closed
        signal.signal(signum, on_signal)
    threading.Thread(target=_wait_for_parent, args=(stop,), daemon=True).start()
    with tempfile.TemporaryDirectory(prefix="kafka-", ignore_cleanup_errors=True) as folder:
        broker = Broker(Path(folder), port)
        print(json.dumps({"bootstrap": broker.bootstrap, "pid": broker.process.pid}), flush=True)
        try:
            while not stop.wait(0.5):
                if broker.process.poll() is not None:
                    sys.exit(f"Kafka ended by itself with code {broker.process.returncode}")
        finally:
            broker.stop()


def _wait_for_parent(stop: threading.Event) -> None:
    """Set *stop* when standard input ends: the parent holds its other end, however it dies."""
    while os.read(0, 4096):
        pass
    stop.set()


def start(port: int) -> None:
    """Leave a broker running; a second call finds the first."""
    if running := _started():
        print(f"Kafka is already running on {running['bootstrap']}")
        return
    data = Path(tempfile.mkdtemp(prefix="kafka-"))
    broker = Broker(data, port)
    CACHE.mkdir(parents=True, exist_ok=True)
    STARTED.write_text(
        json.dumps({"pid": broker.process.pid, "bootstrap": broker.bootstrap, "data": str(data)})
    )
    print(f"Kafka {version()} is running on {broker.bootstrap}; make kafka-stop ends it")


def stop() -> None:
    """End the broker that `start` left, and remove its data."""
    running = _started()
    if running is None:
        print("No broker of ours is running")
        return
    pid = int(running["pid"])
    os.kill(pid, signal.SIGTERM)
    give_up_at = time.monotonic() + 20
    while _started() and time.monotonic() < give_up_at:
        time.sleep(0.1)
    if _started():
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(running["data"], ignore_errors=True)
    STARTED.unlink(missing_ok=True)
    print("Kafka stopped")


def _started() -> dict[str, str] | None:
    """Return what `start` wrote down, if that very process still lives."""
    try:
        running: dict[str, str] = json.loads(STARTED.read_text())
        seen = subprocess.run(
            ["ps", "-o", "args=", "-p", str(running["pid"])],
            capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip
    except (OSError, ValueError):
        return None
    return running if running["data"] in seen else None  # a reused pid is somebody else's


def _need_java() -> None:
    _need("java", f"openjdk-{JAVA_AT_LEAST}-jre-headless")
    told = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(?:1\.)?(\d+)', told)
    if found is None or int(found.group(1)) < JAVA_AT_LEAST:
        raise ToolsMissing(
            f"Apache Kafka needs Java {JAVA_AT_LEAST} or newer, but `java -version` says: "
            f"{told.splitlines()[0] if told else 'nothing'}. Install openjdk-{JAVA_AT_LEAST}-jre-headless."
        )


def _need(program: str, package: str) -> None:
    """Make sure *program* is on the path, by apt-get where that is possible."""
    if shutil.which(program):
        return
    if shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        print(f"Installing {package} with apt-get ...", file=sys.stderr, flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (
            ["update", "-qq"],
            ["install", "-y", "-qq", "--no-install-recommends", package],
        ):
            subprocess.run(["apt-get", *command], env=environment, stdout=sys.stderr, check=False)
        if shutil.which(program):
            return
    raise ToolsMissing(
        f"Apache Kafka needs Java {JAVA_AT_LEAST} or newer and Maven, and `{program}` is not here: "
        f"install {package}, or name a broker of your own with CONNECTOR_TEST_BOOTSTRAP."
    )


def _pom() -> str:
    return (HERE / "pom.xml").read_text()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(description="Run a real Apache Kafka on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="download Kafka by Maven, once")
    commands.add_parser("run", help="serve until SIGTERM or end of input").add_argument(
        "--port", type=int, default=0
    )
    commands.add_parser("start", help="leave a broker running").add_argument("--port", type=int, default=9092)
    commands.add_parser("stop", help="end the broker that start left")
    arguments = parser.parse_args()
    try:
        match arguments.command:
            case "fetch":
                fetch()
            case "run":
                run(arguments.port)
            case "start":
                start(arguments.port)
            case "stop":
                stop()
    except ToolsMissing as missing:
        print(missing, file=sys.stderr)
        sys.exit(EXIT_TOOLS_MISSING)


if __name__ == "__main__":
    main()
