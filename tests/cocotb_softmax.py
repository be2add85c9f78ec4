"""Run by cocotb inside the simulator: SoftmaxUnit against numpy."""

import os

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge
from softmax_jobs import Job, pack, pack_fields, unpack
from tokenfabric.core.config import preset
from tokenfabric.rtl import layouts

CFG = preset(os.environ["TOKENFABRIC_PRESET"])
LATENCY = int(os.environ["LATENCY"])
SCORE, COMMAND, SCALE = (
    make(CFG) for make in (layouts.matmul_result, layouts.softmax_command, layouts.row_scale)
)


async def reset(dut):
    Clock(dut.clk, 10, "ns").start()
    for name in ("score_valid", "score", "cmd_valid", "cmd_payload", "p_r_en", "p_r_addr"):
        getattr(dut, name).value = 0
    dut.rst.value = 1
    for _ in range(4):
        await FallingEdge(dut.clk)
    dut.rst.value = 0


async def put_scores(dut, job, rng, chance):
    """The same row at most every 4 cycles; what is not valid is noise."""
    for block, index, lanes in job.chunks():
        idle = max(0, 4 - job.m) if index == 0 else 0
        while idle or rng.random() < chance:
            idle = max(0, idle - 1)
            dut.score.value = int.from_bytes(rng.bytes(SCORE.size), "little") % (1 << SCORE.size)
            await FallingEdge(dut.clk)
        fields = {"index": index, "block": block, "limit": job.limits[index]}
        dut.score.value = pack_fields(SCORE, y=pack(lanes, 32), **fields)
        dut.score_valid.value = 1
        await FallingEdge(dut.clk)
        dut.score_valid.value = 0


async def command(dut, job):
    """Row scales of the command, and the cycles it was busy."""
    values = {"m": job.m, "blocks": job.blocks, "align": job.align}
    dut.cmd_payload.value = pack_fields(COMMAND, **values)
    dut.cmd_valid.value = 1
    while not int(dut.cmd_ready.value):
        await FallingEdge(dut.clk)
    await FallingEdge(dut.clk)
    dut.cmd_valid.value = 0
    scales, cycles = [], 0
    while int(dut.busy.value):
        if int(dut.row_scale_valid.value):
            bits = int(dut.row_scale.value)
            index, mult, shift = (
                bits >> SCALE[name].offset & ((1 << SCALE[name].width) - 1)
                for name in ("index", "mult", "shift")
            )
            assert index == len(scales)
            scales.append((mult, shift))
        cycles += 1
        await FallingEdge(dut.clk)
    return scales, cycles


async def check(dut, job, rng, chance):
    await put_scores(dut, job, rng, chance)
    scales, cycles = await command(dut, job)
    assert scales == job.scales
    assert cycles == job.m * job.blocks * CFG.k_chunks + LATENCY
    dut.p_r_en.value = 1
    for addr, expected in job.reads():
        dut.p_r_addr.value = addr
        await FallingEdge(dut.clk)
        assert unpack(int(dut.p_r_data.value), CFG.rows) == expected
    dut.p_r_en.value = 0


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(chance=[0, 0.1, 0.8])
async def random_commands(dut, chance):
    await reset(dut)
    for seed in range(20):
        rng = np.random.default_rng([seed, int(10 * chance)])
        await check(dut, Job(CFG, rng), rng, chance)


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def whole_memory(dut):
    """Every row of SCORES at full length; all equal in row 0, so that total is the largest."""
    await reset(dut)
    rng = np.random.default_rng(1)
    for _ in range(2):
        job = Job(CFG, rng, m=CFG.max_rows, blocks=CFG.max_context // CFG.rows)
        job.scores[0], job.limits[0] = -7, CFG.max_context - 1
        job.finish()
        await check(dut, job, rng, 0)
