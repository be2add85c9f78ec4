"""Run by cocotb inside the simulator: the systolic array against numpy."""

import os

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge
from systolic_tiles import expected, random_tiles, schedule
from tokenfabric.core.config import preset

CFG = preset(os.environ["TOKENFABRIC_PRESET"])
LATENCY = int(os.environ["LATENCY"])
INPUTS = ("load", "load_index", "load_rows", "word", "valid", "swap", "x")


async def sums(dut, cycles, rng):
    """psum LATENCY cycles after each x, in the order of x. Changes inputs on falling edges."""
    width = len(dut.psum) // CFG.cols
    got, due = [], []
    for now in range(len(cycles) + LATENCY + 1):
        await FallingEdge(dut.clk)
        if due and due[0] == now:
            bits = int(dut.psum.value)
            lanes = [bits >> (width * c) & ((1 << width) - 1) for c in range(CFG.cols)]
            got.append([v - (v >> (width - 1) << width) for v in lanes])
            due.pop(0)
        step = dict(cycles[now]) if now < len(cycles) else {}
        if step.get("valid"):
            due.append(now + LATENCY)
        # What is not valid must not matter.
        noise = {"word": int.from_bytes(rng.bytes(CFG.word_bytes), "little")}
        noise["x"] = int.from_bytes(rng.bytes(2 * CFG.rows), "little")
        for name in INPUTS:
            getattr(dut, name).value = step.get(name, noise.get(name, 0))
    return np.array(got)


async def check(dut, seed, count, modes, gaps):
    Clock(dut.clk, 10, "ns").start()
    for name in INPUTS:
        getattr(dut, name).value = 0
    dut.rst.value = 1
    for _ in range(LATENCY + 2):
        await FallingEdge(dut.clk)
    dut.rst.value = 0
    rng = np.random.default_rng([seed, count])
    tiles = random_tiles(CFG, count, modes, rng)
    got = await sums(dut, schedule(CFG, tiles, *gaps, rng), rng)
    want = expected(tiles)
    assert got.shape == want.shape
    wrong = np.argwhere(got != want)
    assert not len(wrong), f"{len(wrong)} wrong sums, the first in row, column {wrong[0]}"


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(
    modes=["columns", "rows", "mixed"],
    gaps=[(0, 0), (0.5, 0), (0, 0.5), (0.3, 0.3), (0.9, 0.1)],
)
async def random_sizes(dut, modes, gaps):
    for seed in range(3):
        await check(dut, seed, 20 + 7 * seed, modes, gaps)


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def many_tiles_back_to_back(dut):
    await check(dut, 9, 600, "mixed", (0, 0))
