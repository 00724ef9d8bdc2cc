"""A broker for the session, and fresh topics for each test."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from harness import ROOT, Kafka

THERE = "CONNECTOR_TEST_BOOTSTRAP"
"""The variable that names a broker which is there already."""


@contextlib.contextmanager
def _broker() -> Iterator[str]:
    """Run a broker until the end, or until this process is gone, and yield its address."""
    with subprocess.Popen(
        [sys.executable, str(ROOT / "deploy/local/kafka.py"), "run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "Kafka did not start; its messages are above"
        yield json.loads(line)["bootstrap"]
        process.terminate()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Start one broker for all workers, who find its address in their environment; it outlives them."""
    if THERE not in os.environ:
        running = contextlib.ExitStack()
        os.environ[THERE] = running.enter_context(_broker())
        config.add_cleanup(running.close)


@pytest.fixture(scope="session")
def bootstrap() -> Iterator[str]:
    """Yield a real broker's address."""
    with contextlib.nullcontext(os.environ[THERE]) if THERE in os.environ else _broker() as address:
        yield address


@pytest.fixture
def kafka(bootstrap: str) -> Kafka:
    """Return the broker with topics of this test's own."""
    return Kafka(bootstrap)
