"""The house as its documentation says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MODULES = sorted(
    path
    for path in (ROOT / "connector").rglob("*.py")
    if path.name != "__init__.py" and not {"upstream", "local"} & set(path.parts[-3:-1])
)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_one_idea_and_has_a_place_on_the_map(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400, "two ideas: split it"
    assert ast.get_docstring(ast.parse(text)), "says nothing about itself"
    assert path.stem not in {"utils", "helpers", "manager", "base", "common"}
    assert f"`{path.relative_to(ROOT).as_posix()}`" in (ROOT / "docs/architecture.md").read_text()


def test_the_map_names_no_module_that_is_gone() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    named = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `connector/")}
    assert named == {path.relative_to(ROOT).as_posix() for path in MODULES}


def test_no_test_sleeps() -> None:
    """A sleep hides a race or waits for luck."""
    for path in (ROOT / "tests").rglob("*.py"):
        tree = ast.parse(path.read_text())
        calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert "time.sleep" not in calls, path
