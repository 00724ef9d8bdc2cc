"""Prints the table of docs/chaos.md from the figures of several runs.

python -m chaos.table results.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_COLUMNS = (
    *("seed", "duration_s", "replicas", "streams", "faults", "visible", "lost", "doubled", "inversions"),
    *("gaps", "takeovers", "takeover_median_s", "takeover_worst_s", "recovered_s", "violated"),
)


def table(lines: list[str]) -> str:
    """Return the table of so many runs, by seed."""
    runs = sorted((json.loads(line) for line in lines if line.strip()), key=lambda run: run["seed"])
    heads = [column.removesuffix("_s").replace("_", " ") for column in _COLUMNS]
    rows = [heads, ["---"] * len(heads), *([_cell(run[column]) for column in _COLUMNS] for run in runs)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(value: Any) -> str:
    match value:
        case dict():
            return str(sum(value.values()))
        case list():
            return "; ".join(value) or "nothing"
        case None:
            return "none"
        case float():
            return f"{value:g}"
        case int():
            return f"{value:,}"
        case _:
            return str(value)


if __name__ == "__main__":
    print(table(Path(sys.argv[1]).read_text().splitlines()), end="")
