"""The deliberate bugs still fit the code; whether they are caught, `make mutants` says."""

from __future__ import annotations

import ast

import pytest
from mutants.mutants import MUTANTS, ROOT, Mutant, load


@pytest.mark.parametrize("mutant", load(), ids=lambda mutant: mutant.name)
def test_each_mutant_applies_to_the_code_as_it_is(mutant: Mutant) -> None:
    """Exactly once, and what comes of it is Python."""
    text = (ROOT / mutant.file).read_text()
    mutated = mutant.applied(text)
    assert ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(text))
    assert mutant.tests, f"{mutant.name}: nothing is there to catch it"


@pytest.mark.parametrize("mutant", load(), ids=lambda mutant: mutant.name)
def test_the_tests_that_are_to_catch_a_mutant_exist(mutant: Mutant) -> None:
    for test in mutant.tests:
        path, _, name = test.partition("::")
        defined = {
            node.name
            for node in ast.parse((ROOT / path).read_text()).body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert not name or name.partition("[")[0] in defined, f"{test}: mend it in {MUTANTS.name}"


def test_a_mutant_that_fits_no_more_says_what_to_do() -> None:
    mutant = load()[0]
    with pytest.raises(ValueError, match=f"{mutant.name}: its old text stands 0 times .* mend the mutant"):
        mutant.applied("")
    with pytest.raises(ValueError, match="stands 2 times"):
        mutant.applied(2 * mutant.old)
