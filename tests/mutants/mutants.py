"""Puts bugs into the connector on purpose, one at a time, and demands that the tests named for each go red.

    python tests/mutants/mutants.py [--only NAME,NAME] [--jobs N] [--list]

A mutant is a table of `mutants.toml`. Each gets a copy of the working tree; nothing is changed here. First
all the named tests have to be green without any. The exit code is 1 if one survives, or no longer applies.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from shutil import copy2
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parents[2]
MUTANTS = Path(__file__).with_name("mutants.toml")
BOOTSTRAP = "CONNECTOR_TEST_BOOTSTRAP"
INTEGRATION = "tests/integration/"

TIMEOUT_S = 300.0
"""How long a mutant's tests may take, unless it says otherwise: far longer than without it."""

BASELINE_TIMEOUT_S = 1800.0

_GRACE_S = 10.0
"""How long tests that are interrupted may take to end what they started."""

_TESTS_FAILED = 1
"""pytest's exit code; any other one but 0 says that the tests were not run as they should."""

_PLUGIN = "mutant_guard"
_GUARD = '''
"""Holds that the code under test is the copy with the mutant in it."""

import importlib
import pathlib

HERE = pathlib.Path(__file__).parent


def pytest_sessionstart(session):
    module = importlib.import_module({module!r})
    path = pathlib.Path(module.__file__)
    assert path.is_relative_to(HERE), f"not the copy: {{path}}"
    assert {new!r} in path.read_text()
'''


class Fate(StrEnum):
    """What became of a mutant."""

    CAUGHT = "caught"  # each test named for it failed
    SURVIVED = "survived"  # one of them did not
    HUNG = "hung"  # they did not end; counts as caught only where the mutant says that it must be so
    BROKEN = "broken"  # it does not apply, or the tests could not be run


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One deliberate bug.

    Attributes:
        name: of its table.
        breaks: the step of the protocol that it takes away.
        file: where, from the root of the project.
        old: the text that it replaces; stands there exactly once.
        new: what it puts in its place.
        tests: pytest's names of what has to go red; each of them.
        timeout_s: how long they may take.
        hangs: why they cannot end by themselves, if that is so: to hang is to be caught then.
    """

    name: str
    breaks: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    timeout_s: float = TIMEOUT_S
    hangs: str | None = None

    @property
    def module(self) -> str:
        """What Python calls its file."""
        return self.file.removesuffix(".py").replace("/", ".")

    def applied(self, text: str) -> str:
        """Return *text* with the bug in it.

        Raises:
            ValueError: the old text is not there exactly once.
        """
        if (count := text.count(self.old)) != 1:
            raise ValueError(
                f"{self.name}: its old text stands {count} times in {self.file}, not once. The code has "
                f"changed: mend the mutant in {MUTANTS.relative_to(ROOT)} so that it breaks the same step"
            )
        return text.replace(self.old, self.new)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a mutant.

    Attributes:
        detail: which tests failed, or why it counts as it does.
    """

    mutant: Mutant
    fate: Fate
    seconds: float
    detail: str

    @property
    def is_caught(self) -> bool:
        """Whether the tests did what they are there for."""
        return self.fate is Fate.CAUGHT or (self.fate is Fate.HUNG and self.mutant.hangs is not None)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of pytest.

    Attributes:
        code: its exit code; None if it did not end in time.
        failed: what failed, with the reason.
        skipped: what was skipped.
        tail: its last lines.
    """

    code: int | None
    failed: Mapping[str, str]
    skipped: Sequence[str]
    tail: str


def load() -> list[Mutant]:
    """Return all mutants."""
    tables = tomllib.loads(MUTANTS.read_text())
    return [Mutant(name=name, **{**its, "tests": tuple(its["tests"])}) for name, its in tables.items()]


@contextlib.contextmanager
def copied() -> Iterator[Path]:
    """Yield a copy of what git tracks, as it is in the working tree; it is gone afterwards."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        for name in listed.stdout.split("\0"):
            source, target = ROOT / name, Path(folder, "tree", name)
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                copy2(source, target)
        yield Path(folder, "tree")


def guard(tree: Path, module: str, new: str) -> None:
    """Make sure that Python takes *module* from *tree*, with *new* in it: here, and in child processes.

    Raises:
        ValueError: it does not, or cannot.
    """
    (tree / f"{_PLUGIN}.py").write_text(_GUARD.format(module=module, new=new))
    told = subprocess.run(
        [sys.executable, "-c", f"import {module}; print({module}.__file__)"],
        cwd=tree.parent,
        env=environment(tree),
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode:
        raise ValueError(f"cannot be imported: {told.stderr.strip().splitlines()[-1]}")
    if not Path(told.stdout.strip()).is_relative_to(tree):
        raise ValueError(f"is not what Python imports, which is {told.stdout.strip()}")


def environment(tree: Path) -> dict[str, str]:
    """Return the environment in which *tree* is the project."""
    return {**os.environ, "PYTHONPATH": str(tree)}


def pytest(tree: Path, tests: Sequence[str], timeout_s: float) -> Run:
    """Run *tests* in *tree*; when it returns, no process of theirs is left."""
    report, output = tree.parent / "report.xml", tree.parent / "output"
    options = ["-q", "-p", _PLUGIN, "-p", "no:cacheprovider", f"--basetemp={tree.parent / 'temporary'}"]
    options += ["-o", "junit_family=xunit1"]  # which has the files' names
    command = [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", *tests]
    with output.open("wb") as sink:
        process = subprocess.Popen(
            command,
            cwd=tree,
            env=environment(tree),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    failed: dict[str, str] = {}
    skipped: list[str] = []
    if report.exists():
        for case in ET.parse(report).iter("testcase"):
            name = f"{case.get('file')}::{case.get('name')}"
            if (failure := case.find("failure")) is not None:
                failed[name] = failure.get("message") or ""
            if case.find("skipped") is not None:
                skipped.append(name)
    tail = "\n".join(output.read_text(errors="replace").splitlines()[-40:])
    return Run(code, failed, skipped, tail)


def judge(mutant: Mutant) -> Result:
    """Run a mutant's tests against it."""
    began_at = time.monotonic()

    def result(fate: Fate, detail: str) -> Result:
        return Result(mutant, fate, round(time.monotonic() - began_at, 1), detail)

    with copied() as tree:
        try:
            path = tree / mutant.file
            path.write_text(mutant.applied(path.read_text()))
            guard(tree, mutant.module, mutant.new)
        except ValueError as error:
            return result(Fate.BROKEN, str(error))
        run = pytest(tree, mutant.tests, mutant.timeout_s)
    if run.code is None:
        return result(Fate.HUNG, mutant.hangs or f"its tests did not end within {mutant.timeout_s:g} s")
    if run.code not in {0, _TESTS_FAILED}:
        return result(Fate.BROKEN, f"pytest ended with {run.code}:\n{run.tail}")
    if green := [test for test in mutant.tests if not any(covers(test, name) for name in run.failed)]:
        return result(Fate.SURVIVED, f"did not fail: {' '.join(green)}")
    name, why = next(iter(run.failed.items()))
    return result(Fate.CAUGHT, f"{name.partition('::')[2]}: {' '.join(why.split())[:100]}")


def covers(test: str, name: str) -> bool:
    """Whether the case *name* is one that *test* stands for: a file, a function or a single case."""
    return name == test or name.startswith((f"{test}::", f"{test}["))


@contextlib.contextmanager
def broker(mutants: Sequence[Mutant]) -> Iterator[None]:
    """Let there be one broker for all tests that need one, in the environment."""
    is_needed = any(test.startswith(INTEGRATION) for mutant in mutants for test in mutant.tests)
    if BOOTSTRAP in os.environ or not is_needed:
        yield
        return
    command = [sys.executable, str(ROOT / "deploy/local/kafka.py"), "run"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "Kafka did not start; its messages are above"
        os.environ[BOOTSTRAP] = json.loads(line)["bootstrap"]
        try:
            yield
        finally:
            process.terminate()


def baseline(mutants: Sequence[Mutant]) -> str | None:
    """Run all tests named for *mutants* without any of them; return what is wrong, if anything is."""
    tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    with copied() as tree:
        guard(tree, "connector", "")
        run = pytest(tree, tests, BASELINE_TIMEOUT_S)
    if run.code != 0:
        return f"without any mutant pytest ends with {run.code}:\n{run.tail}"
    if run.skipped:
        return f"skipped, so they catch nothing: {' '.join(run.skipped)}"
    return None


def main() -> int:
    """Judge the mutants, and say what became of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=lambda names: set(names.split(",")), help="these alone, by name")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    parser.add_argument("--list", action="store_true", help="say what there is")
    arguments = parser.parse_args()
    mutants = load()
    only = arguments.only or {mutant.name for mutant in mutants}
    if unknown := only - {mutant.name for mutant in mutants}:
        parser.error(f"no such mutant: {' '.join(sorted(unknown))}")
    chosen = [mutant for mutant in mutants if mutant.name in only]
    if arguments.list:
        for mutant in chosen:
            print(f"{mutant.name:40} {mutant.breaks}")
        return 0
    with broker(chosen):
        began_at = time.monotonic()
        if wrong := baseline(chosen):
            print(wrong)
            return 1
        baseline_s = round(time.monotonic() - began_at, 1)
        print(f"green without any mutant: {baseline_s:.0f} s", flush=True)
        results = []
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for done in as_completed([pool.submit(judge, mutant) for mutant in chosen]):
                one = done.result()
                results.append(one)
                print(f"{one.fate:9}{one.seconds:6.1f} s  {one.mutant.name}: {one.detail}", flush=True)
    counts = {fate.value: sum(one.fate is fate for one in results) for fate in Fate}
    at_large = sorted(one.mutant.name for one in results if not one.is_caught)
    seconds = round(time.monotonic() - began_at, 1)
    print(json.dumps({"mutants": len(results), **counts, "not_caught": at_large, "seconds": seconds}))
    return 1 if at_large else 0


if __name__ == "__main__":
    sys.exit(main())
