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


def test_every_reason_for_a_rejection_is_explained():
    source = "".join(path.read_text("utf-8") for path in (DOCS.parent / "connector").rglob("*.py"))
    reasons = set(re.findall(r'PredicatesRejected\("(\w+)"', source))
    assert len(reasons) > 10
    explained = (DOCS / "predicates.md").read_text("utf-8")
    assert {reason for reason in reasons if f"`{reason}`" not in explained} == set()


def test_every_answer_is_explained():
    source = (DOCS.parent / "connector" / "control" / "answers.py").read_text("utf-8")
    source += (DOCS.parent / "connector" / "supervisor.py").read_text("utf-8")
    source += (DOCS.parent / "connector" / "control" / "demand.py").read_text("utf-8")
    answers = set(re.findall(r'(?:_event|settled)\("(\w+)"', source)) | set(
        re.findall(r'"predicates\.(\w+)"', source)
    )
    explained = (DOCS / "predicates.md").read_text("utf-8")
    assert answers >= {"accepted", "applied", "refused", "rejected"}
    assert {one for one in answers if f"`predicates.{one}`" not in explained} == set()


def test_every_invariant_names_a_test_that_is_there():
    guarantees = (DOCS / "guarantees.md").read_text("utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", guarantees)
    assert len(named) > 10
    for path, name in named:
        source = (DOCS.parent / path).read_text("utf-8")
        assert not name or re.search(rf"^(async )?(def|class) {name}\b", source, re.MULTILINE), name
