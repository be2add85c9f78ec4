"""A step of the accelerator as a picture: the DRAM's data bus above the units and what they run."""

from __future__ import annotations

from dataclasses import replace
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
COLOURS = {
    "attend": "#ddbbdd",
    "matmul": "#99bbdd",
    "load": "#556677",
    "write": "#ccbb44",
    "norm": "#dd8844",
    "swiglu": "#bb5599",
    "append": "#aaaa33",
    "rope": "#559955",
}
NARROW = 0.0015  # of the width: a bar that can just be seen
ROWS = ("array", "attention", "softmax", "vector", "writer")
SILENT = ("softmax", "writer")  # what they do is in the name


def draw(path: str, trace: Trace, span: tuple[int, int], title: str) -> None:
    """The cycles of ``span`` of a trace to a PNG or SVG file, above one of its layers enlarged."""
    trace = _since(trace, span[0])
    span = (0, span[1] - span[0])
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    panels = [(span, f"{title}: {span[1]:,} cycles")]
    attends = [bar.begin for bar in trace.bars["attention"] if 0 <= bar.begin < span[1]]
    if len(attends) > 2:
        middle = len(attends) // 2
        panels.append(((attends[middle - 1], attends[middle]), "of these, one layer"))
    figure, grid = pyplot.subplots(
        2 * len(panels), 1, figsize=(15, 5 * len(panels)), layout="constrained",
        gridspec_kw={"height_ratios": [2, 3.2] * len(panels)},
    )  # fmt: skip
    for number, (inside, text) in enumerate(panels):
        bus, units = grid[2 * number : 2 * number + 2]
        bus.set_title(text, loc="left", fontsize=11)
        _bus(bus, trace, inside)
        _units(units, trace, inside)
    bus = [Patch(color=colour, label=name) for name, (colour, _) in LAYERS.items()]
    ran = [Patch(color=colour, label=name) for name, colour in COLOURS.items()]
    both = [patch for column in zip(bus, ran) for patch in column]  # two rows, filled by columns
    figure.legend(handles=both, loc="outside lower center", ncols=len(bus), frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _since(trace: Trace, zero: int) -> Trace:
    """The same with times counted from ``zero``."""
    bars = {
        unit: [replace(bar, begin=bar.begin - zero, end=bar.end - zero) for bar in those]
        for unit, those in trace.bars.items()
    }
    return replace(trace, edges=trace.edges - zero * ONE, bars=bars)


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


def _units(axes: Any, trace: Trace, inside: tuple[int, int]) -> None:
    from matplotlib.ticker import FuncFormatter

    for row, unit in enumerate(ROWS):
        bars = [b for b in trace.bars[unit] if b.begin < inside[1] and b.end > inside[0]]
        for bar in bars:
            _bar(axes, row, unit, bar, inside)
    axes.set(xlim=inside, ylim=(len(ROWS) - 0.5, -0.5), yticks=range(len(ROWS)), yticklabels=ROWS)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.set_xlabel("cycles since the start of the step", fontsize=9)


def _bar(axes: Any, row: int, unit: str, bar: Bar, inside: tuple[int, int]) -> None:
    begin, end = max(bar.begin, inside[0]), min(bar.end, inside[1])
    inner = unit == "array" and bar.label == "attend"
    label = "" if unit in SILENT or inner else bar.label
    whole = inside[1] - inside[0]
    share = (end - begin) / whole
    axes.barh(row, max(share, NARROW) * whole, left=begin, height=0.8, color=COLOURS[bar.label],
              linewidth=0.3 if share > 3 * NARROW else 0, edgecolor="white")  # fmt: skip
    wide, tall = share > 0.009 * len(label), share > 0.011  # room for the text, lying or standing
    if label and (wide or tall):
        axes.text(
            (begin + end) / 2, row, label, ha="center", va="center", fontsize=7, clip_on=True,
            rotation=0 if wide else 90,
        )  # fmt: skip
