"""The units of MatmulEngine that decide or count, each by itself against plain Python."""

from types import SimpleNamespace

import numpy as np
import pytest
from amaranth.sim import Simulator
from presets import TINY16
from streams import sender, simulate
from tokenfabric.core.config import preset
from tokenfabric.rtl.drain import SumPlace
from tokenfabric.rtl.layouts import MatmulKind
from tokenfabric.rtl.matmul import RowTables
from tokenfabric.rtl.tileloader import MultiplierLoader, ParameterLoader
from tokenfabric.rtl.tileloops import TileLoops

STREAM, K, V, LOAD = MatmulKind
TINY, PYNQ = preset("tiny"), preset("pynq-z2")


def run(dut, bench, deadline=5000):
    """Runs ``bench``, which must end by the deadline."""
    ended = []

    async def whole(ctx):
        await bench(ctx)
        ended.append(True)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(whole)
    sim.run_until(deadline * 1e-6)
    assert ended, f"not through in {deadline} cycles"


def start_of(ctx, dut, command):
    """Sets a command; ``start`` stays up until the next tick."""
    ctx.set(dut.cmd, command)
    ctx.set(dut.start, 1)


@pytest.mark.parametrize("stall", [0.0, 0.6])
def test_loops_visit_every_tile_in_order(stall):
    rng = np.random.default_rng(int(stall * 10))
    dut = TileLoops(TINY)

    async def bench(ctx):
        for kind in (*MatmulKind, *MatmulKind):
            k, n = (int(v) for v in rng.integers(1, 5, 2))
            inners, outers = {V: (n, k), LOAD: (1, n)}.get(kind, (k, n))
            start_of(ctx, dut, {"kind": kind, "k": k, "n": n})
            await ctx.tick()
            ctx.set(dut.start, 0)
            for outer, inner in np.ndindex(outers, inners):
                waits = 0
                while rng.random() < stall:
                    waits += 1
                for step in [0] * waits + [1]:
                    ctx.set(dut.step, step)
                    assert ctx.get(dut.running)
                    assert (ctx.get(dut.outer), ctx.get(dut.inner)) == (outer, inner)
                    ends = (inner == 0, inner == inners - 1, outer == outers - 1)
                    names = ("first_inner", "last_inner", "last_outer")
                    assert tuple(ctx.get(getattr(dut, name)) for name in names) == ends
                    await ctx.tick()
            ctx.set(dut.step, 0)
            assert not ctx.get(dut.running)

    run(dut, bench)


@pytest.mark.parametrize("stall", [0.0, 0.6])
@pytest.mark.parametrize("cfg", [TINY, PYNQ, TINY16], ids=lambda cfg: cfg.name)
@pytest.mark.parametrize("kind", MatmulKind)
def test_multipliers_come_before_their_group(kind, cfg, stall):
    """``due`` falls with the word and rises with the block that needs the next; in order."""
    rng = np.random.default_rng(int(stall * 10))
    dut = MultiplierLoader(cfg)
    blocks, group = 9, cfg.scale_channels // cfg.cols if kind is STREAM else 1
    words = blocks if kind is K else -(-blocks // group) if kind is STREAM else 0
    values = [int.from_bytes(rng.bytes(cfg.cols * 2), "little") for _ in range(words)]
    port, other = (dut.kv_scales, dut.words) if kind is K else (dut.words, dut.kv_scales)
    got = []

    async def blocks_of_tiles(ctx):
        ctx.set(other.valid, 1)  # never taken
        ctx.set(dut.kind, kind)
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        for block in range(blocks):
            ctx.set(dut.block, block)
            for _ in range(int(rng.integers(4))):
                assert not ctx.get(other.ready)
                await ctx.tick()
            while ctx.get(dut.due):  # the loader lets no block end before
                assert not ctx.get(other.ready)
                await ctx.tick()
            needs = block // group + 1 if words else 0
            assert len(got) >= needs
            ctx.set(dut.next_block, block < blocks - 1)
            await ctx.tick()
            ctx.set(dut.next_block, 0)
            after = (block + 1) // group + 1 if words and block < blocks - 1 else needs
            assert ctx.get(dut.due) == (after > needs)
            assert ctx.get(port.ready) <= ctx.get(dut.due)

    async def taken(ctx):
        async for _, _, valid, ready, payload in ctx.tick().sample(
            dut.multipliers.valid, dut.multipliers.ready, dut.multipliers.payload
        ):
            if valid and ready:
                got.append(payload)
            ctx.set(dut.multipliers.ready, int(rng.random() >= stall))

    background = [taken, sender(port, [*values, 99], rng, stall)]  # one too many: stays
    simulate(dut, [blocks_of_tiles], background)
    assert got == values


def test_parameters_are_written_one_after_another():
    rng = np.random.default_rng(0)
    dut = ParameterLoader(TINY)
    step = TINY.scale_channels // TINY.cols

    async def bench(ctx):
        for _ in range(10):
            param, addr = int(rng.integers(TINY.param_chunks // 2)), 0
            ctx.set(dut.start, 1)
            ctx.set(dut.param, param)
            await ctx.tick()
            ctx.set(dut.start, 0)
            ctx.set(dut.param, 0xFFF)
            for _ in range(20):
                word = int.from_bytes(rng.bytes(TINY.word_bytes), "little")
                ctx.set(dut.word, word)
                ctx.set(dut.valid, valid := int(rng.integers(2)))
                await ctx.tick()
                ctx.set(dut.valid, 0)  # registered: what comes now does not matter
                ctx.set(dut.word, 0)
                assert ctx.get(dut.w.en) == valid
                if valid:
                    assert ctx.get(dut.w.addr) == (param + addr) % (1 << len(dut.w.addr))
                    assert ctx.get(dut.w.data) == word
                    addr += step

    run(dut, bench)


@pytest.mark.parametrize("cfg", [TINY, PYNQ, TINY16], ids=lambda cfg: cfg.name)
@pytest.mark.parametrize("kind", [STREAM, K, V])
def test_sums_are_counted_by_row_and_block(kind, cfg):
    """A block takes four cycles at least; sums of its rows may come back to back."""
    rng = np.random.default_rng(kind.value)
    dut = SumPlace(cfg)
    group = cfg.scale_channels // cfg.cols if kind is STREAM else 1

    async def bench(ctx):
        for m in (1, cfg.max_rows, *(int(v) for v in rng.integers(1, cfg.max_rows + 1, 4))):
            n = int(rng.integers(1, 7))
            start_of(ctx, dut, {"kind": kind, "m": m, "n": n, "k": 1})
            await ctx.tick()
            ctx.set(dut.start, 0)
            await ctx.tick().repeat(3)
            for block in range(n):
                gaps = int(rng.integers(3)) + max(0, 4 - m)
                steps = [*rng.permutation([1] * (m - 1) + [0] * gaps), 1]
                index = 0
                for step in steps:
                    ctx.set(dut.step, int(step))
                    assert (ctx.get(dut.index), ctx.get(dut.block)) == (index, block)
                    if step:
                        last_row, last_block = index == m - 1, block == n - 1
                        use = last_row and (last_block or (block + 1) % group == 0)
                        assert ctx.get(dut.last_use) == use
                        assert ctx.get(dut.last) == (last_row and last_block)
                    await ctx.tick()
                    index += int(step)
            ctx.set(dut.step, 0)

    run(dut, bench)


def test_row_tables_are_looked_up_at_two_rows_at_once():
    rng = np.random.default_rng(2)
    dut = RowTables(PYNQ)
    rows = [SimpleNamespace(src=0, dst=0, limit=0, mult=0, shift=0) for _ in range(PYNQ.max_rows)]

    async def bench(ctx):
        for _ in range(400):
            one, two, a, b = (int(v) for v in rng.integers(0, PYNQ.max_rows, 4))
            src, dst, limit, mult = (int(v) for v in rng.integers(0, 1 << 16, 4))
            shift, write, scale = (int(v) for v in rng.integers(0, [64, 2, 2]))
            ctx.set(dut.table_w.en, write)
            ctx.set(dut.table_w.addr, a)
            ctx.set(dut.table_w.data, {"src": src, "dst": dst, "limit": limit})
            ctx.set(dut.row_scale_w.en, scale)
            ctx.set(dut.row_scale_w.payload, {"index": b, "mult": mult, "shift": shift})
            ctx.set(dut.src_index, one)
            ctx.set(dut.index, two)
            got = ctx.get(dut.scale)
            assert ctx.get(dut.src) == rows[one].src
            assert (ctx.get(dut.dst), ctx.get(dut.limit)) == (rows[two].dst, rows[two].limit)
            assert (got.mult, got.shift) == (rows[two].mult, rows[two].shift)
            await ctx.tick()
            if write:
                vars(rows[a]).update(src=src, dst=dst, limit=limit)
            if scale:
                vars(rows[b]).update(mult=mult, shift=shift)

    run(dut, bench)
