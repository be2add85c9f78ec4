"""The figure of ``tokenfabric explore``: the roofline of the best, and speed over size of all."""

from __future__ import annotations

from typing import Any

from tokenfabric.compiler.explore import Candidate
from tokenfabric.compiler.timing import estimate_prefill
from tokenfabric.core.boards import BoardSpec
from tokenfabric.core.shape import ModelShape
from tokenfabric.core.work import work_of

__all__ = ["draw"]

INK, QUIET, PALE = "#22303c", "#7b8794", "#dfe4e9"
ROOF, BEST, FRONT, PRESET = "#22303c", "#e4572e", "#17807e", "#3d6fd1"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "grid.color": PALE,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


def draw(
    path: str,
    title: str,
    spec: BoardSpec,
    shape: ModelShape,
    found: list[Candidate],
    best: list[Candidate],
    preset: Candidate | None,
) -> None:
    """Write the figure; its kind is that of the file's name. ``found`` and ``best``: best first."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.5, 5.2), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, x=0.01, ha="left", size=15, weight="bold")
        left, right = figure.subplots(1, 2)
        _roofline(left, shape, found[0])
        _sizes(right, found, best, preset)
        figure.savefig(path, dpi=160)


def _points(shape: ModelShape, candidate: Candidate) -> list[tuple[str, float, float]]:
    """(label, MACs per byte, MACs per second) of a decode step and of prefills of full steps."""
    cfg, work, decode = candidate.cfg, work_of(shape), candidate.decode
    macs = work.layer_macs + work.attention_macs_per_position * decode["context"]
    macs += shape.vocab * shape.dim
    points = [
        ("decode", macs / decode["useful_bytes_per_step"], macs * decode["tokens_per_second"])
    ]
    rows = 2
    while rows <= min(cfg.max_rows, shape.context):
        step = estimate_prefill(cfg, shape, rows)
        macs = work.layer_macs * rows + work.attention_macs_per_position * rows * (rows + 1) // 2
        moved = work.layer_bytes + work.kv_bytes_per_position * rows
        seconds = step["cycles_per_step"] * step["steps"] / (cfg.clock_mhz * 1e6)
        points.append((f"{rows} rows", macs / moved, macs / seconds))
        rows *= 2
    return points


def _roofline(axes: Any, shape: ModelShape, candidate: Candidate) -> None:
    cfg = candidate.cfg
    memory, array = cfg.dram.peak_bytes_per_s, cfg.macs * cfg.clock_mhz * 1e6
    ridge, points = array / memory, _points(shape, candidate)
    low = min(x for _, x, _ in points) / 3
    high = max(ridge * 6, 2 * max(x for _, x, _ in points))
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low * memory / 1e9, array / 4e8))
    roof = [low * memory / 1e9, array / 1e9, array / 1e9]
    axes.plot([low, ridge, high], roof, color=ROOF, lw=2.2, solid_joinstyle="round")
    axes.fill_between([low, ridge, high], roof, low * memory / 1e9, color=PALE, alpha=0.5, lw=0)
    axes.text(
        high, array / 0.93e9, f"array {cfg.rows} x {cfg.cols}: {array / 1e9:g} GMAC/s",
        ha="right", va="bottom", size=9,
    )  # fmt: skip
    middle = (low * ridge) ** 0.5
    axes.annotate(
        f"memory {memory / 1e9:g} GB/s", (middle, middle * memory / 1e9), (-10, 4),
        textcoords="offset points", ha="right", va="bottom", size=9,
    )  # fmt: skip
    for label, x, y in points:
        decode = label == "decode"
        color = BEST if decode else FRONT
        axes.plot(x, y / 1e9, "*" if decode else "o", ms=15 if decode else 7, color=color)
        axes.annotate(
            label, (x, y / 1e9), (9, -4), textcoords="offset points", va="top", size=9, color=color
        )
    axes.set_xlabel("multiply-accumulates per byte read from memory")
    axes.set_ylabel("10⁹ multiply-accumulates per second")
    axes.set_title("What limits the best one", loc="left", size=11, color=QUIET)
    axes.grid(True, which="major", lw=0.6)
    axes.set_axisbelow(True)


def _sizes(
    axes: Any, found: list[Candidate], best: list[Candidate], preset: Candidate | None
) -> None:
    def percent(candidates: list[Candidate]) -> list[float]:
        return [100 * c.size for c in candidates]

    def speed(candidates: list[Candidate]) -> list[float]:
        return [c.speed for c in candidates]

    axes.plot(percent(found), speed(found), "o", ms=4, color=QUIET, alpha=0.35, mew=0,
              label=f"{len(found)} that fit")  # fmt: skip
    axes.plot(percent(best), speed(best), "o-", ms=7, lw=1.6, color=FRONT, drawstyle="steps-pre",
              label="none is both smaller and faster")  # fmt: skip
    if preset is not None:
        axes.plot(100 * preset.size, preset.speed, "D", ms=9, color=PRESET,
                  label=f"preset {preset.cfg.name}")  # fmt: skip
    top = found[0]
    name = f"the best: {top.cfg.rows} x {top.cfg.cols}, {top.speed:,.0f} tokens/s"
    axes.plot(100 * top.size, top.speed, "*", ms=18, color=BEST, label=name)
    decode = top.decode
    if top.prefill is None:
        limit = decode["tokens_per_second"] / decode["bandwidth_fraction"]
        axes.axhline(limit, color=ROOF, lw=1.2, ls=(0, (4, 3)))
        axes.text(0.01, limit, "limit of the memory", va="bottom", size=9,
                  transform=axes.get_yaxis_transform())  # fmt: skip
    axes.set_xlim(0, 100 * max(c.size for c in found) * 1.12)
    axes.set_ylim(0, max(axes.get_ylim()[1], top.speed * 1.12))
    axes.set_xlabel("taken of the board's LUTs, DSPs and RAM blocks, mean, %")
    axes.set_ylabel("tokens per second")
    axes.set_title("Speed over size", loc="left", size=11, color=QUIET)
    axes.grid(True, lw=0.6)
    axes.set_axisbelow(True)
    axes.legend(loc="lower left" if top.prefill is None else "upper left", fontsize=9)
