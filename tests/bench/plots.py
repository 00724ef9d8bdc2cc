"""Plots of what was measured; matplotlib comes with the extra ``bench``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt


def draw(folder: Path, found: Mapping[str, Any]) -> None:
    """Draw what is there to *folder*."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "bench"  # the same figures, the same file
    if "sizes" in found:
        sizes = {int(size): one["per_s"] for size, one in found["sizes"].items()}
        megabytes = [size * per_s / 1e6 for size, per_s in sizes.items()]
        _curves(folder / "sizes.svg", {"MB/s": (list(sizes), megabytes)}, "bytes per status", "MB/s")
    if "streams" in found:
        counts = {int(count): one["per_s"] for count, one in found["streams"].items()}
        curve = (list(counts), list(counts.values()))
        _curves(folder / "streams.svg", {"statuses/s": curve}, "streams", "statuses/s")
    if "latency, CDF" in found:
        curves = {
            name: (times, [100 * at / len(times) for at in range(len(times))])
            for name, times in found["latency, CDF"].items()
        }
        _curves(folder / "latency.svg", curves, "ms from the upstream's write to the consumer", "% seen")


def _curves(file: Path, curves: Mapping[str, tuple[list[Any], list[Any]]], across: str, up: str) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for name, (places, values) in curves.items():
        axes.plot(places, values, label=name, marker="o" if len(places) < 20 else None)
    axes.set(xscale="log", xlabel=across, ylabel=up)
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    if len(curves) > 1:
        axes.legend()
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
