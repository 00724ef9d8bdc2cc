"""Modules are small, say what they are, and are named after it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "connector").rglob("*.py"))
MOST_LINES = 450
SAYS_NOTHING = {"utils", "util", "helpers", "helper", "manager", "base", "common", "misc"}


def each_module(function):
    return pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))(function)


def test_there_are_modules_to_look_at():
    assert ROOT / "connector" / "stream" / "framing.py" in MODULES


@each_module
def test_a_module_is_short_enough_to_read(path):
    assert len(path.read_text("utf-8").splitlines()) < MOST_LINES


@each_module
def test_a_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text("utf-8")))


@each_module
def test_a_modules_name_says_what_it_is(path):
    assert not SAYS_NOTHING & set(path.relative_to(ROOT).with_suffix("").parts)
