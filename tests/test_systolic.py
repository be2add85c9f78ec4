"""SystolicArray against numpy: both ways of loading, gaps, mixed and back to back, extremes."""

import numpy as np
import pytest
from amaranth.sim import Simulator
from presets import TINY16
from systolic_tiles import expected, pack_x, random_tiles, schedule, words_of
from tokenfabric.core.config import PRESETS, preset
from tokenfabric.rtl.systolic import SystolicArray

GAPS = {
    "back to back": (0, 0),
    "gaps in words": (0.4, 0),
    "gaps in x": (0, 0.4),
    "both": (0.3, 0.3),
}

each = pytest.mark.parametrize("cfg", [preset("tiny"), TINY16], ids=lambda cfg: cfg.name)


def simulate(cfg, tiles, gaps, seed):
    """Sums in the order of x: every one exactly LATENCY cycles after its x."""
    dut = SystolicArray(cfg)
    cycles = schedule(cfg, tiles, *gaps, np.random.default_rng(seed))
    got = []

    async def bench(ctx):
        due = {}
        for now in range(len(cycles) + dut.LATENCY + 1):
            if now in due:
                got.append([ctx.get(dut.psum[c]) for c in range(cfg.cols)])
            step = cycles[now] if now < len(cycles) else {}
            for name in ("load", "valid", "swap", "load_rows"):
                ctx.set(getattr(dut, name), step.get(name, 0))
            # What is not valid must not matter.
            ctx.set(dut.load_index, step.get("load_index", now % cfg.tile_cycles))
            ctx.set(dut.word, step.get("word", now * 0x5A5A5A5A5A % (1 << len(dut.word))))
            ctx.set(dut.x, step.get("x", now * 0x1234567 % (1 << len(dut.x))))
            if step.get("valid"):
                due[now + dut.LATENCY] = True
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run_until((len(cycles) + 100) * 1e-6)
    return np.array(got)


@pytest.mark.parametrize("gaps", GAPS)
@pytest.mark.parametrize("modes", ["columns", "rows", "mixed"])
@each
def test_tiles(cfg, gaps, modes):
    seed = [len(gaps), len(modes)]
    tiles = random_tiles(cfg, 24, modes, np.random.default_rng(seed))
    assert np.array_equal(simulate(cfg, tiles, GAPS[gaps], seed), expected(tiles))


def test_pynq():
    cfg = preset("pynq-z2")
    tiles = random_tiles(cfg, 16, "mixed", np.random.default_rng(5))
    assert np.array_equal(simulate(cfg, tiles, (0, 0), 5), expected(tiles))


@pytest.mark.parametrize("activation", [-32768, 32767])
@pytest.mark.parametrize("weight", [-128, 127])
@each
def test_extremes_everywhere(cfg, activation, weight):
    x = np.full((2, cfg.rows), activation)
    tile = np.full((cfg.rows, cfg.cols), weight)
    tiles = [(rows, tile, x) for rows in (False, True)]
    got = simulate(cfg, tiles, (0, 0), 1)
    assert np.all(got == activation * weight * cfg.rows) and got.shape == (4, cfg.cols)


@pytest.mark.parametrize("cfg", [*PRESETS.values(), TINY16], ids=lambda cfg: cfg.name)
def test_the_packing_used_here_is_the_documented_one(cfg):
    tile = np.random.default_rng(3).integers(-128, 128, (cfg.rows, cfg.cols))
    for rows in (False, True):
        for w, word in enumerate(words_of(cfg, tile, rows)):
            for byte in range(cfg.word_bytes):
                if rows:
                    row, col = w * cfg.word_rows + byte // cfg.cols, byte % cfg.cols
                else:
                    row, col = byte % cfg.rows, w * cfg.word_cols + byte // cfg.rows
                assert word >> (8 * byte) & 255 == tile[row, col] & 255
    assert pack_x(np.array([1, -1])) == 0xFFFF_0001
