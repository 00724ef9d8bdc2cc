"""A broker for the session, and fresh topics for each test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from harness import ROOT, Kafka


@pytest.fixture(scope="session")
def bootstrap() -> Iterator[str]:
    """Yield a real broker's address; CONNECTOR_TEST_BOOTSTRAP names one that is there already."""
    if there := os.environ.get("CONNECTOR_TEST_BOOTSTRAP"):
        yield there
        return
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


@pytest.fixture
def kafka(bootstrap: str) -> Kafka:
    """Return the broker with topics of this test's own."""
    return Kafka(bootstrap)
