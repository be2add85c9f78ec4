"""A step of the accelerator as a picture: the DRAM's data bus above the units and what they run."""

from __future__ import annotations

from typing import Any

import numpy as np
from tokenfabric.sim.account import CAUSES, ONE, Bar, Trace

__all__ = ["draw"]

BINS = 600  # stretches of time in which the shares of the bus are added up

# Reading, writing, and the reasons for an idle bus, in groups that the eye can tell apart.
LAYERS = {
    "weights": ("#4477aa", ("weights",)),
    "K and V": ("#66ccee", ("K and V", "K scales")),
    "other data": ("#228833", ("embedding", "RoPE", "program and job")),
    "writes": ("#ccbb44", ("K and V written", "results written")),
    "refresh, rows, turnaround": ("#ee6677", ("refresh", "rows", "turnaround", "ports full")),
    "fabric full": ("#aa3377", ("fabric full",)),
    "latency": ("#999999", ("latency",)),
    "not requested": ("#eeeeee", ("not requested",)),
}
COLOURS = {"matmul": "#99bbdd", "load": "#556677", "norm": "#ddaa77", "rope": "#88bb88",
           "append": "#cccc77", "swiglu": "#cc99bb", "attend": "#ddbbdd"}  # fmt: skip
ROWS = ("array", "attention", "softmax", "vector")


def draw(path: str, trace: Trace, span: tuple[int, int], title: str) -> None:
    """The cycles of ``span`` of a trace to a PNG or SVG file, above one of its layers enlarged."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    panels = [(span, f"{title}: {span[1] - span[0]:,} cycles")]
    attends = [bar.begin for bar in trace.bars["attention"] if span[0] <= bar.begin < span[1]]
    if len(attends) > 2:
        middle = len(attends) // 2
        panels.append(((attends[middle - 1], attends[middle]), "of these, one layer"))
    figure, grid = pyplot.subplots(
        2 * len(panels), 1, figsize=(15, 4.4 * len(panels)), layout="constrained",
        gridspec_kw={"height_ratios": [2, 2.2] * len(panels)},
    )  # fmt: skip
    for number, (inside, text) in enumerate(panels):
        bus, units = grid[2 * number : 2 * number + 2]
        bus.set_title(text, loc="left", fontsize=11)
        _bus(bus, trace, inside)
        _units(units, trace, inside, span[0])
    handles = [Patch(color=colour, label=name) for name, (colour, _) in LAYERS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _shares(trace: Trace, edges: np.ndarray) -> np.ndarray:
    """Share of each cause in CAUSES between two edges (in cycles)."""
    lasts = np.diff(trace.edges)
    shares = []
    for cause in range(len(CAUSES)):
        until = np.concatenate([[0], np.cumsum(np.where(trace.cause == cause, lasts, 0))])
        shares.append(np.diff(np.interp(edges * ONE, trace.edges, until)))
    return np.array(shares) / (np.diff(edges) * ONE)


def _bus(axes: Any, trace: Trace, inside: tuple[int, int]) -> None:
    edges = np.linspace(*inside, min(BINS, inside[1] - inside[0]) + 1)
    shares = _shares(trace, edges)
    below = np.zeros(len(edges) - 1)
    for colour, causes in LAYERS.values():
        above = below + sum(shares[CAUSES.index(cause)] for cause in causes)
        axes.stairs(above, edges, baseline=below, fill=True, color=colour)
        below = above
    axes.set(xlim=inside, ylim=(0, 1), yticks=[0, 0.5, 1], yticklabels=["0", "50 %", "100 %"])
    axes.set_ylabel("DRAM")
    axes.set_xticks([])


def _units(axes: Any, trace: Trace, inside: tuple[int, int], zero: int) -> None:
    from matplotlib.ticker import FuncFormatter

    for row, unit in enumerate(ROWS):
        bars = [b for b in trace.bars[unit] if b.begin < inside[1] and b.end > inside[0]]
        for bar in bars:
            _bar(axes, row, unit, bar, inside)
    axes.set(xlim=inside, ylim=(len(ROWS) - 0.5, -0.5), yticks=range(len(ROWS)), yticklabels=ROWS)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x - zero:,.0f}"))
    axes.set_xlabel("cycles since the start of the step", fontsize=9)


def _bar(axes: Any, row: int, unit: str, bar: Bar, inside: tuple[int, int]) -> None:
    begin, end = max(bar.begin, inside[0]), min(bar.end, inside[1])
    label = "" if unit == "softmax" or (unit == "array" and bar.label == "attend") else bar.label
    axes.barh(
        row, end - begin, left=begin, height=0.8, linewidth=0.3, edgecolor="white",
        color=COLOURS[bar.label],
    )  # fmt: skip
    share = (end - begin) / (inside[1] - inside[0])
    wide, tall = share > 0.009 * len(label), share > 0.011  # room for the text, lying or standing
    if label and (wide or tall):
        axes.text(
            (begin + end) / 2, row, label, ha="center", va="center", fontsize=8, clip_on=True,
            rotation=0 if wide else 90,
        )  # fmt: skip
