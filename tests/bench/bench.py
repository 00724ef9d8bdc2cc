"""Measures the connector against what it cannot be faster than: ``make bench``."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE.parent), str(ROOT / "deploy/local")]

import replicas
import report
import rig
import scenarios

ALL = {**scenarios.ALL, "scaling": replicas.scaling, "replicas": replicas.replicas}


def main() -> None:
    """Run what is asked for; exit with 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=ALL, help="scenarios; all if none is named")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each measurement is")
    parser.add_argument("--rounds", type=int, default=3, help="how often the sides of a pair take turns")
    parser.add_argument("--memory-seconds", type=float, default=30.0, help="how long memory is watched")
    parser.add_argument("--folder", type=Path, default=ROOT / "dist/bench", help="for JSON and plots")
    parser.add_argument("--document", action="store_true", help=f"write {report.DOCUMENT.name} anew, too")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the broker ends, too
    rows: list[scenarios.Row] = []
    with rig.broker() as bootstrap, rig.upstream() as url:
        bench = scenarios.Bench(
            bootstrap=bootstrap,
            url=url,
            seconds=asked.seconds,
            rounds=asked.rounds,
            memory_s=asked.memory_seconds,
        )
        bench.warm()
        for name in asked.only or ALL:
            began_at = time.monotonic()
            print(f"{name}: {(ALL[name].__doc__ or '').splitlines()[0]}", flush=True)
            for row in ALL[name](bench):
                print(f"    {row.what}: {row.value:.3g} {row.unit}, target {row.target:g}", flush=True)
                rows.append(row)
            print(f"    ({time.monotonic() - began_at:.0f} s)", flush=True)
    print(f"\n{report.table(rows)}\n\n{report.figures(bench.figures)}\n")
    report.write(asked.folder, rows, bench.figures)
    if asked.document:
        plots = report.DOCUMENT.parent / "benchmarks"
        report.write(plots, rows, bench.figures)
        report.document(rows, bench.figures)
    sys.exit(not all(row.is_met for row in rows))


if __name__ == "__main__":
    main()
