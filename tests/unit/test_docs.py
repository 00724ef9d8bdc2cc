"""What the documentation copies from the code is what the code says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import yaml

from connector.settings import StreamSettings
from connector.stream import dialect
from connector.stream.policy import Outcome

DOCS = Path(__file__).parents[2] / "docs"
READER = (DOCS / "reader.md").read_text("utf-8")


def test_the_readers_tables_are_those_of_the_code():
    generated = runpy.run_path(str(DOCS / "generate.py"))["generated"]
    assert generated(READER) == READER, "run make docs"
    assert all(f"`{outcome.value}`" in READER for outcome in Outcome)
    assert generated(READER.replace("| `network` |", "| `nonsense` |")) == READER


def test_every_dialect_is_named():
    assert all(f"`{name}`" in READER for name in dialect.names())


def test_the_example_is_a_configuration(tmp_path):
    example = re.search(r"```yaml\n(.*?)```", READER, re.DOTALL)
    assert example is not None
    secret = tmp_path / "me"
    secret.write_text("secret")
    (settings,) = yaml.safe_load(example.group(1).replace("/run/secrets/me", str(secret)))["streams"].values()
    manners = StreamSettings.model_validate(settings).manners
    assert list(manners.request.predicates) == ["topic"]


@pytest.mark.parametrize("kind", ["none", "bearer", "basic", "api_key", "oauth1", "oauth2"])
def test_every_kind_of_credentials_is_named(kind):
    assert f"| `{kind}` |" in READER
