"""What was measured as a table, as JSON, as plots, and in the documentation."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import harness
import kafka
from scenarios import Row

DOCUMENT = harness.ROOT / "docs/benchmarks.md"
_BEGIN, _END = "<!-- measured: written by make bench -->", "<!-- measured: end -->"


def machine() -> str:
    """Return what it ran on, in a line."""
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    libraries = ", ".join(
        f"{name} {version(name)}" for name in ("confluent-kafka", "aiohttp", "msgspec", "uvloop")
    )
    return (
        f"{os.cpu_count()} cores shared with broker and upstream, {memory_gb:.0f} GB of memory, "
        f"{platform.system()}, Python {platform.python_version()}, {libraries}, Apache Kafka {kafka.version()}"
    )


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table in Markdown."""
    lines = ["| what | measured | of single runs | target | met |", "|---|---|---|---|---|"]
    for row in rows:
        spread = "" if row.spread is None else f"{_number(row.spread[0])}–{_number(row.spread[1])}"
        bound = f"{'≤' if row.at_most else '≥'} {row.target:g} {row.unit}".strip()
        measured = f"{_number(row.value)} {row.unit}".strip()
        lines.append(
            f"| {row.what} | {measured} | {spread} | {bound} | {'yes' if row.is_met else '**no**'} |"
        )
    return "\n".join(lines)


def figures(found: Mapping[str, Any]) -> str:
    """Return what stands behind the ratios as a table in Markdown."""
    lines = ["| scenario | side | statuses/s | CPU-s per million |", "|---|---|---|---|"]
    for scenario, sides in found.items():
        if not isinstance(sides, Mapping):
            continue
        for side, runs in sides.items():
            each = runs if isinstance(runs, list) else [runs]
            if not all(isinstance(one, Mapping) and "per_s" in one for one in each):
                continue
            rates, costs = ([one[key] for one in each] for key in ("per_s", "cpu_s_per_million"))
            lines.append(f"| {scenario} | {side} | {_several(rates)} | {_several(costs)} |")
    return "\n".join(lines)


def write(folder: Path, rows: Sequence[Row], found: Mapping[str, Any]) -> None:
    """Write ``bench.json`` and, where matplotlib is there, the plots to *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "rows": [{**row._asdict(), "met": row.is_met} for row in rows],
        "figures": found,
    }
    (folder / "bench.json").write_text(json.dumps(content, indent=1, ensure_ascii=False))
    try:
        import plots
    except ImportError:
        print("no plots: matplotlib is not there")
    else:
        plots.draw(folder, found)


def document(rows: Sequence[Row], found: Mapping[str, Any]) -> None:
    """Write what was measured into the documentation."""
    today = datetime.now(UTC).date().isoformat()
    measured = (
        f"Measured on {today}: {machine()}.\n\n{table(rows)}\n\n## Behind the ratios\n\n{figures(found)}"
    )
    text = DOCUMENT.read_text("utf-8")
    between = f"{_BEGIN}\n{measured}\n{_END}"
    DOCUMENT.write_text(re.sub(f"{_BEGIN}.*{_END}", lambda _: between, text, flags=re.DOTALL), "utf-8")


def _several(values: Sequence[float]) -> str:
    return " ".join(f"{value:,.0f}" if value >= 1000 else _number(value) for value in values)


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
