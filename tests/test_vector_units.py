"""The units of the vector unit, each by itself against plain Python."""

import dataclasses

import numpy as np
import pytest
from amaranth.hdl import EnableInserter, Signal
from amaranth.sim import Simulator
from tokenfabric.core import ops
from tokenfabric.core.config import preset
from tokenfabric.core.isa import Instruction, Op
from tokenfabric.rtl.append import AppendBeats
from tokenfabric.rtl.chunkwalk import Part
from tokenfabric.rtl.factors import ItemFactors, SquareSum
from tokenfabric.rtl.normalize import Recip127, Rsqrt
from tokenfabric.rtl.vectorissue import (
    BEATS,
    ITEMS,
    STAGES,
    Stages,
    VectorCommand,
)

CFG = preset("tiny")
COLS = CFG.cols
LEVELS = (COLS - 1).bit_length()


def run(dut, bench, deadline=20000):
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


# --- VectorCommand ------------------------------------------------------------------------------


@pytest.mark.parametrize("stall", [0.0, 0.5, 0.95])
def test_commands_start_and_end_when_they_say(stall):
    rng = np.random.default_rng(int(stall * 100))
    dut = VectorCommand()
    names = {Op.NORM: "norm", Op.ROPE: "rope", Op.APPEND: "append", Op.SWIGLU: "swiglu"}

    async def bench(ctx):
        for _ in range(30):
            op = list(names)[rng.integers(4)]
            heads, chunks, src = (int(rng.integers(high)) for high in (7, 9, 1 << 16))
            given = Instruction(op=op, src=src, heads=heads, head_chunks=chunks, imm=77)
            fields = {k: int(v) for k, v in dataclasses.asdict(given).items()}
            ctx.set(dut.cmd.valid, 0)
            while rng.random() < stall:
                assert ctx.get(dut.cmd.ready) and not ctx.get(dut.busy)
                await ctx.tick()
            ctx.set(dut.cmd.valid, 1)
            ctx.set(dut.cmd.payload, fields)
            assert ctx.get(dut.cmd.ready) and not ctx.get(dut.start)
            await ctx.tick()
            # Another instruction is offered from now on, and must not matter before its turn.
            ctx.set(dut.cmd.payload, fields | {"op": int(Op.APPEND), "heads": 255, "src": 1})
            ctx.set(dut.done, 0)
            for _ in range(heads if op is Op.APPEND else 0):
                assert not ctx.get(dut.start) and ctx.get(dut.busy)
                await ctx.tick()
            assert ctx.get(dut.start)
            offset = heads * chunks if op is Op.APPEND else 0
            assert ctx.get(dut.src) == (src + offset) & 0xFFFF
            assert ctx.get(dut.command.imm) == 77
            for other, name in names.items():
                assert ctx.get(getattr(dut, name)) == (other is op)
            await ctx.tick()
            for _ in range(int(rng.integers(20))):
                assert not ctx.get(dut.start) and ctx.get(dut.busy)
                await ctx.tick()
            ctx.set(dut.done, 1)
            left = 1
            for cycle in range(1, 2000):
                left = rng.random() < stall  # of the cycle before the one that is looked at
                ctx.set(dut.beats_left, left)
                await ctx.tick()
                ended = cycle >= dut.DRAIN and not left
                assert ctx.get(dut.cmd.ready) == ended, cycle
                assert ctx.get(dut.src) == (src + offset) & 0xFFFF
                if ended:
                    break
            assert not left

    run(dut, bench)


# --- Stages -------------------------------------------------------------------------------------


def test_stages_move_only_while_enabled():
    rng = np.random.default_rng(1)
    enable = Signal()
    dut = Stages(CFG)
    history = [(0, 0, 0)] * 40  # of the enabled cycles: valid, dst, src

    async def bench(ctx):
        for _ in range(300):
            now = tuple(int(rng.integers(high)) for high in (2, 1 << 16, 1 << 16))
            ctx.set(dut.issued, {"valid": now[0], "tag": {"dst": now[1]}})
            ctx.set(dut.src, now[2])
            ctx.set(enable, moves := int(rng.random() < 0.8))
            for name, stage in STAGES.items():
                out, (valid, dst, _) = ctx.get(getattr(dut, name)), history[-stage]
                assert (out.valid, out.tag.dst) == (valid, dst)
            assert ctx.get(dut.read_src) == history[-STAGES["read"]][2]
            await ctx.tick()
            if moves:
                history.append(now)

    run(EnableInserter(enable)(dut), bench)


# --- ItemFactors --------------------------------------------------------------------------------


def items(rng, count, stall):
    """Per cycle None, or (item, chunk, last) of items of random lengths, in order."""
    cycles = []
    for item in range(count):
        chunks = int(rng.integers(1, CFG.max_head_chunks + 1))
        for chunk in range(chunks):
            while rng.random() < stall:
                cycles.append(None)
            cycles.append((item, chunk, chunk == chunks - 1))
        cycles += [None] * 12  # what follows takes its turn: no more than ITEMS are kept
    return cycles


def factors_of(dut, cycles, operands, latency, want, heads=None):
    """Feeds chunks and checks each factor (and head), and that it is known in the right cycle."""
    due, done = {}, []

    async def bench(ctx):
        norm = heads is None
        ctx.set(dut.norm, norm)
        ctx.set(dut.append, not norm)
        port = dut.squares if norm else dut.rotated
        for now, entry in enumerate(cycles + [None] * 60):
            item, chunk, last = entry or (0, 0, 0)
            tag = {"first": chunk == 0, "last": int(last), "slot": item % ITEMS, "chunk": chunk}
            ctx.set(port, {"valid": entry is not None, "tag": tag})
            for name, values in (operands[item, chunk] if entry else {}).items():
                ctx.set(getattr(dut, name), values)
            if last:
                due[now + latency] = item
            assert ctx.get(dut.known) == (now in due), now
            if now - 1 in due:
                item = due[now - 1]
                ctx.set(dut.slot, item % ITEMS)
                got = ctx.get(dut.factor)
                assert (got.r, got.shift, got.amax)[: len(want[item])] == want[item], item
                for at, values in enumerate(heads[item] if heads else []):
                    ctx.set(dut.chunk, at)
                    assert list(ctx.get(dut.head)) == values
                done.append(item)
            await ctx.tick()

    run(dut, bench)
    assert done == list(range(len(want)))


@pytest.mark.parametrize("stall", [0.0, 0.6])
def test_factor_of_a_norm(stall):
    rng = np.random.default_rng(int(stall * 10))
    cycles, eps = items(rng, 14, stall), 12345
    operands, sums = {}, {}
    for entry in filter(None, cycles):
        item, chunk, _ = entry
        x = rng.integers(-(1 << 17), 1 << 17, COLS) >> int(rng.integers(18))
        operands[item, chunk] = {"product": (x * x).tolist(), "eps": eps}
        sums[item] = sums.get(item, eps) + int((x * x).sum())
    want = [tuple(int(v) for v in ops.rsqrt(total)) for total in sums.values()]
    assert max(sums.values()) < 1 << SquareSum.BITS
    factors_of(ItemFactors(CFG), cycles, operands, LEVELS + 1 + Rsqrt.LATENCY, want)


@pytest.mark.parametrize("stall", [0.0, 0.6])
def test_factor_of_a_head(stall):
    rng = np.random.default_rng(int(stall * 10))
    cycles = items(rng, 14, stall)
    operands, k = {}, {}
    for entry in filter(None, cycles):
        item, chunk, _ = entry
        y, mean = rng.integers(-32768, 32768, (2, COLS)) >> int(rng.integers(16))
        if item % 5 == 0:
            y = mean  # nothing left: amax is 1
        operands[item, chunk] = {"y": y.tolist(), "mean": mean.tolist()}
        k.setdefault(item, []).append(np.clip(y - mean, -32768, 32767).tolist())
    want = []
    for chunks in k.values():
        amax = int(np.clip(np.abs(chunks).max(), 1, 32767))
        r, e = ops.recip127(amax)
        want.append((int(r), int(e) + 9, amax))
    latency = LEVELS + 5 + Recip127.LATENCY
    factors_of(ItemFactors(CFG), cycles, operands, latency, want, list(k.values()))


# --- AppendBeats --------------------------------------------------------------------------------


@pytest.mark.parametrize("stall", [0.0, 0.5, 0.9])
def test_beats_of_a_head(stall):
    """As many chunks as there is room for, in any order; they leave in order and as bytes."""
    rng = np.random.default_rng(int(stall * 10))
    dut = AppendBeats(CFG)
    want, got = [], []

    async def bench(ctx):
        waiting, fed = 0, 0
        while fed < 300 or waiting:
            part = Part(int(rng.integers(3)))
            y = rng.integers(-128, 128, COLS)
            if part is Part.SCALE:
                y[:] = rng.integers(1, 1 << 15)
            first, last = (int(v) for v in rng.integers(0, 2, 2))
            addr = 2 * int(rng.integers(1 << 20))
            valid = fed < 300 and waiting < BEATS and rng.random() < 0.7
            ctx.set(dut.valid, bool(valid))
            for name, value in (("part", part), ("first", first), ("last", last), ("addr", addr)):
                ctx.set(getattr(dut, name), value)
            ctx.set(dut.y, y.tolist())
            ctx.set(dut.beats.ready, ready := int(rng.random() >= stall))
            assert ctx.get(dut.left) == (waiting > 0)
            taken = ctx.get(dut.beats.valid) and ready
            assert ctx.get(dut.taken) == taken
            if taken:
                beat = ctx.get(dut.beats.payload)
                kept = [beat.data >> 8 * i & 0xFF if beat.strb >> i & 1 else 0 for i in range(8)]
                got.append((beat.first, beat.last, beat.addr, beat.strb, kept))
            if valid:
                lanes, strb = [int(v) & 0xFF for v in y], 0xFF
                if part is Part.SCALE:
                    at = addr % CFG.port_bytes
                    lanes, strb = [0] * 8, 3 << at
                    lanes[at : at + 2] = [int(y[0]) & 0xFF, int(y[0]) >> 8]
                want.append((first, last, addr, strb, lanes))
                fed += 1
            await ctx.tick()
            waiting += int(valid) - int(taken)

    run(dut, bench)
    assert got == want
