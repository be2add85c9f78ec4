"""The softmax unit alone, in Amaranth's simulator: one row of scores in, its weights out."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
from amaranth.sim import Simulator
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.errors import UserError
from tokenfabric.core.fixed import round_up, to_signed
from tokenfabric.core.ops import ACT_BITS
from tokenfabric.rtl.softmax import SoftmaxUnit

__all__ = ["SoftmaxRun", "simulate_softmax"]

SIGNALS = ("score_valid", "busy", "row_scale_valid", "p_r.en")


@dataclass
class SoftmaxRun:
    """What came out, as of ``ops.softmax`` and ``ops.attention_scale``.

    waves: a 0 or 1 per cycle, by the name of the signal.
    """

    p: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    mult: int = 0
    shift: int = 0
    waves: dict[str, list[int]] = field(default_factory=dict)


def simulate_softmax(cfg: FabricConfig, scores: npt.ArrayLike, align: int) -> SoftmaxRun:
    """``scores``: int16 [t], with ``10 - align`` fraction bits. UserError if there are too many."""
    row = np.asarray(scores, np.int64)
    if not 0 < len(row) <= cfg.max_context:
        raise UserError(f"{len(row)} scores are not from 1 to the {cfg.max_context} of {cfg.name}")
    unit, found = SoftmaxUnit(cfg), SoftmaxRun(waves={name: [] for name in SIGNALS})
    padded = np.zeros(round_up(len(row), cfg.rows), np.int64)
    padded[: len(row)] = row
    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(partial(_drive, unit, padded, len(row) - 1, align, found))
    simulator.run_until(1e-6 * (8 * len(padded) + 200))
    found.p = found.p[: len(row)]
    return found


async def _drive(
    unit: SoftmaxUnit, row: Any, limit: int, align: int, found: SoftmaxRun, ctx: Any
) -> None:
    """Scores in, as the array brings them; the command; then the weights are read."""
    cfg = unit.cfg

    async def tick() -> None:
        for name in SIGNALS:
            found.waves[name].append(ctx.get(attrgetter(name)(unit)))
        await ctx.tick()

    for block, lanes in enumerate(row.reshape(-1, cfg.cols)):
        ctx.set(unit.score, {"y": lanes.tolist(), "block": block, "limit": limit})
        ctx.set(unit.score_valid, 1)
        await tick()
        ctx.set(unit.score_valid, 0)
        for _ in range(cfg.tile_cycles - 1):
            await tick()
    ctx.set(unit.cmd.payload, {"m": 1, "blocks": len(row) // cfg.rows, "align": align})
    ctx.set(unit.cmd.valid, 1)
    while not ctx.get(unit.cmd.ready):
        await tick()
    await tick()
    ctx.set(unit.cmd.valid, 0)
    while ctx.get(unit.busy):
        if ctx.get(unit.row_scale_valid):
            found.mult = int(ctx.get(unit.row_scale.mult))
            found.shift = int(ctx.get(unit.row_scale.shift))
        await tick()
    words = []
    for block in range(len(row) // cfg.rows):
        ctx.set(unit.p_r.en, 1)
        ctx.set(unit.p_r.addr, block * cfg.k_chunks)
        await tick()
        words.append(ctx.get(unit.p_r.data))
    ctx.set(unit.p_r.en, 0)
    await tick()
    lanes = [word >> (ACT_BITS * i) & 0xFFFF for word in words for i in range(cfg.rows)]
    found.p = to_signed(np.array(lanes, np.int64), ACT_BITS)
