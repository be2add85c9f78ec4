"""VectorUnit against ops: every write, every beat and every saturation, in order."""

import dataclasses

import numpy as np
import pytest
from amaranth.hdl import ResetInserter, Signal
from amaranth.sim import Simulator
from presets import TINY16
from tokenfabric.core import ops
from tokenfabric.core.config import preset
from tokenfabric.core.fixed import round_up
from tokenfabric.core.isa import Instruction, Op
from tokenfabric.rtl.vector import VectorUnit

TINY = preset("tiny")
SIXTEEN = preset("pynq-z2")
DEADLINE = 5000  # cycles of an instruction


def pack(values, bits):
    return sum((int(v) & ((1 << bits) - 1)) << (bits * i) for i, v in enumerate(values))


class Step:
    """Memories and row table of one step, as the unit finds them."""

    def __init__(self, cfg, rng, rows, want=()):
        def whole(bits):
            return -(1 << (bits - 1)), 1 << (bits - 1)

        self.cfg, self.rows, self.want = cfg, rows, list(want)
        cols = cfg.cols
        self.res = rng.integers(*whole(32), (cfg.res_chunks, cols))
        self.res >>= rng.integers(0, 24, (cfg.res_chunks, 1))
        self.out = rng.integers(*whole(16), (cfg.out_chunks, cols))
        self.param = rng.integers(*whole(16), (cfg.param_chunks, cols))
        angle = rng.uniform(0, 7, (cfg.max_rows * cfg.max_head_chunks, cols))
        angle[:, 1::2] = angle[:, 0::2]
        self.rope = np.round(np.where(np.arange(cols) % 2, np.sin(angle), np.cos(angle)) * 16384)
        self.rope = self.rope.astype(np.int64)
        self.position = rng.integers(0, cfg.max_context, cfg.max_rows).tolist()
        self.kv_row = (8 * rng.integers(0, 1 << 20, cfg.max_rows)).tolist()
        self.scale_slot = (64 * rng.integers(0, 1 << 12, cfg.max_rows)).tolist()
        self.v_offset, self.kv_head, self.scale_head = 0x123400, 0x4560, 0x780


def expected(step, i):
    """In order: writes (addr, values), beats (first, last, addr, strb, data), saturations."""
    cfg, writes, beats, sats = step.cfg, [], [], []

    def chunks(memory, at, count):
        return memory[at : at + count].reshape(-1)

    def result(dst, wide):
        y = ops.saturate(wide, 16)
        for j, lanes in enumerate(y.reshape(-1, cfg.cols)):
            writes.append((dst + j, lanes.tolist()))
        sats.extend((wide != y).reshape(-1, cfg.cols).sum(1).tolist())

    def burst(addr, values):
        count = len(values) // cfg.cols
        for j, lanes in enumerate(values.reshape(-1, cfg.cols)):
            last = j == count - 1
            beats.append((j == 0, last, None if j else addr, (1 << cfg.cols) - 1, pack(lanes, 8)))

    for row in step.want if i.want else range(step.rows):
        src, dst = i.src + row * i.src_stride, i.dst + row * i.dst_stride
        table = step.rope[row * cfg.max_head_chunks :][: i.head_chunks].reshape(-1)
        if i.op is Op.NORM:
            gain = chunks(step.param, i.param, i.k)
            x = chunks(step.res, src, i.k)
            result(dst, ops.rmsnorm_wide(x, i.shift2, i.imm, gain, i.shift))
        if i.op is Op.SWIGLU:
            pairs = step.out[src : src + 2 * i.n]
            gate, up = pairs[0::2].reshape(-1), pairs[1::2].reshape(-1)
            result(dst, ops.swiglu_wide(gate, up, i.shift2, i.shift))
        if i.op is Op.ROPE:
            for h in range(i.heads):
                x = chunks(step.out, src + h * i.head_chunks, i.head_chunks)
                result(dst + h * round_up(i.head_chunks, cfg.k_chunks), ops.rope_wide(x, table))
        if i.op is Op.APPEND:
            for h in range(i.heads):
                wide = ops.rope_wide(
                    chunks(step.out, src + h * i.head_chunks, i.head_chunks), table
                )
                k = ops.saturate(wide, 16)
                sats.extend((wide != k).reshape(-1, cfg.cols).sum(1).tolist())
                mean = chunks(step.param, i.param + h * i.head_chunks, i.head_chunks)
                k8, amax = ops.quantize_k(k, mean)
                v = chunks(step.out, src + (i.heads + h) * i.head_chunks, i.head_chunks)
                at = step.kv_row[row] + h * step.kv_head
                burst(i.imm + at, k8)
                scale = i.imm2 + step.scale_slot[row] + h * step.scale_head + 2 * step.position[row]
                byte = scale % cfg.port_bytes
                beats.append((True, True, scale, 3 << byte, int(amax) << (8 * byte)))
                burst(i.imm + step.v_offset + at, v)
    return writes, beats, sats


def run(step, instructions, stall="none", resets=None):
    """Runs the instructions; returns per instruction (writes, beats, saturations, cycles).

    The Writer takes beats as ``stall`` says: always ("none"), one in three cycles ("slow"), or
    asleep for up to 150 cycles at a time ("burst"). ``resets``: index of an instruction that
    is not finished -> after how many cycles there is a reset instead.
    """
    cfg = step.cfg
    dut, reset = VectorUnit(cfg), Signal()
    resets = resets or {}
    rng = np.random.default_rng(len(stall))
    results = []
    memories = [
        (dut.res_r, [pack(v, 32) for v in step.res]),
        (dut.param_r, [pack(v, 16) for v in step.param]),
        (dut.rope_r, [pack(v, 16) for v in step.rope]),
    ]
    out = [pack(v, 16) for v in step.out.reshape(-1, 2 * cfg.cols)]
    ports = [signal for port, _ in memories for signal in (port.en, port.addr)]
    watch = [
        *ports,
        *(dut.out_r.en, dut.out_r.addr, dut.in_w.en, dut.in_w.addr, dut.in_w.data),
        *(dut.beats.valid, dut.beats.ready, dut.beats.payload),
        *(dut.sat_valid, dut.sat_class, dut.sat_count, dut.busy),
    ]

    async def bench(ctx):
        for name in ("rows", "v_offset", "kv_head", "scale_head"):
            ctx.set(getattr(dut, name), getattr(step, name))
        ctx.set(dut.want_count, len(step.want))
        for instruction in instructions:
            results.append(([], [], [], [0]))
            fields = {k: int(v) for k, v in dataclasses.asdict(instruction).items()}
            ctx.set(dut.cmd.payload, fields)
            ctx.set(dut.cmd.valid, 1)
            await ctx.tick()
            ctx.set(dut.cmd.valid, 0)
            await cycles(ctx, instruction, resets.get(len(results) - 1, DEADLINE), *results[-1])
            ctx.set(reset, len(results) - 1 in resets)
            await ctx.tick()
            ctx.set(reset, 0)

    async def cycles(ctx, instruction, limit, writes, beats, sats, time):
        asleep, busy, held = 0, True, None
        while busy and time[0] < limit:
            row = ctx.get(dut.row_index)
            for name in ("position", "kv_row", "scale_slot"):
                ctx.set(dut.row[name], getattr(step, name)[row])
            index = ctx.get(dut.want_index)
            ctx.set(dut.want_row, step.want[index] if index < len(step.want) else 0)
            if stall == "burst" and rng.integers(40) == 0:
                asleep = int(rng.integers(1, 150))
            asleep -= asleep > 0
            ready = asleep == 0 and (stall != "slow" or rng.integers(3) == 0)
            ctx.set(dut.beats.ready, bool(ready))
            _, _, *values = await ctx.tick().sample(*watch)
            time[0] += 1
            for (port, memory), en, addr in zip(memories, values[0:6:2], values[1:6:2]):
                if en:
                    ctx.set(port.data, memory[addr])
            out_en, out_addr, en, addr, data, valid, taken, beat, *sat, busy = values[6:]
            if out_en:
                ctx.set(dut.out_r.data, out[out_addr >> 1])
            if en:
                lanes = [(data >> (16 * i)) & 0xFFFF for i in range(cfg.cols)]
                writes.append((addr, [v - ((v & 0x8000) << 1) for v in lanes]))
            assert held is None or (valid and beat == held), "a beat changed before it was taken"
            held = beat if valid and not taken else None
            if valid and taken:
                mask = sum(0xFF << (8 * i) for i in range(cfg.cols) if beat.strb >> i & 1)
                addr = beat.addr if beat.first else None
                beats.append((beat.first, beat.last, addr, beat.strb, beat.data & mask))
            if sat[0]:
                assert sat[1] == instruction.sat
                sats.append(sat[2])

    sim = Simulator(ResetInserter(reset)(dut))
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return results


def check(step, instructions, stall="none", resets=None):
    """Runs and compares everything; returns the cycles of each instruction."""
    results = run(step, instructions, stall, resets)
    assert len(results) == len(instructions)
    for n, (instruction, (writes, beats, sats, time)) in enumerate(zip(instructions, results)):
        if n in (resets or {}):
            continue
        assert time[0] < DEADLINE
        for name, got, want in zip(
            ("writes", "beats", "saturations"), (writes, beats, sats), expected(step, instruction)
        ):
            for at, (a, b) in enumerate(zip(got, want)):
                assert a == b, f"{name}[{at}] of {n}: {instruction}"
            assert len(got) == len(want), f"{name} of {n}: {instruction}"
    return [time for *_, (time,) in results]


def norms(rng, cases):
    return [
        Instruction(
            **{"op": Op.NORM, "src": int(rng.integers(0, 8)), "src_stride": k, "k": k, "want": want}
            | {"dst": int(rng.integers(0, 100)), "dst_stride": k + 3, "param": 5}
            | {"shift2": in_shift, "shift": shift, "imm": eps, "sat": int(rng.integers(16))}
        )
        for k, in_shift, shift, eps, want in cases
    ]


@pytest.mark.parametrize("rows,want", [(1, [0]), (4, [1, 3])])
def test_norm(rows, want):
    rng = np.random.default_rng(rows)
    step = Step(TINY, rng, rows, want)
    step.res[:2] = 2**31 - 1
    step.res[2:4] = -(2**31)
    step.res[100:] = 0
    step.param[5:7] = [[-32768], [32767]]
    cases = [
        (1, 0, 0, 0, 0),
        (1, 8, 20, 1, 0),
        (2, 14, 22, 2**32 - 1, 1),
        (3, 31, 0, 77, 0),
        (8, 4, 19, 1000, 0),
        (8, 12, 21, 0, 1),
        (25, 9, 20, 12345, 0),
        (25, 63, 63, 0, 0),
    ]
    zeros = [
        dataclasses.replace(i, src=100) for i in norms(rng, [(4, 0, 9, 0, 0), (4, 0, 9, 5, 0)])
    ]
    cycles = check(step, norms(rng, cases) + zeros)
    if rows == 4:
        assert cycles[6] <= 4 * (2 * 25 + 1) + 60


def test_norm_of_many_rows():
    """Both passes look for their rows at the same time."""
    rng = np.random.default_rng(16)
    step = Step(SIXTEEN, rng, 16, [0, 1, 4, 5, 9, 10, 12, 15])
    check(step, norms(rng, [(1, 12, 20, 1, 1), (2, 12, 20, 1, 1), (9, 12, 20, 1, 0)]))


@pytest.mark.parametrize("cfg,rows", [(TINY, 4), (SIXTEEN, 3), (TINY16, 4)])
def test_rope(cfg, rows):
    rng = np.random.default_rng(rows)
    step = Step(cfg, rng, rows)
    step.rope[1:3] = [[-32768], [32767]]
    step.out[40:44] = -32768
    cases = [(1, 1), (5, 1), (3, 2), (2, 3), (4, 6), (1, 6), (2, cfg.max_head_chunks)]
    instructions = [
        Instruction(
            **{"op": Op.ROPE, "src": 7 + n, "src_stride": heads * chunks + n, "dst": 40}
            | {"dst_stride": 100, "heads": heads, "head_chunks": chunks, "sat": n}
        )
        for n, (heads, chunks) in enumerate(cases)
    ]
    cycles = check(step, instructions)
    for time, (heads, chunks) in zip(cycles, cases):
        assert time <= rows * (heads * chunks + 1) + 30


def test_swiglu():
    rows = 3
    rng = np.random.default_rng(rows)
    step = Step(TINY, rng, rows)
    step.out[0:4] = -32768
    step.out[4:6] = 32767
    cases = [(1, 0, 0), (3, 2, 14), (17, 4, 16), (17, 15, 20), (2, 0, 10), (30, 1, 40)]
    instructions = [
        Instruction(
            **{"op": Op.SWIGLU, "src": 2 * n, "src_stride": 2 * chunks, "dst": 9, "sat": 15}
            | {"dst_stride": chunks + 1, "n": chunks, "shift2": align, "shift": shift}
        )
        for n, (chunks, align, shift) in enumerate(cases)
    ]
    cycles = check(step, instructions)
    for time, (chunks, *_) in zip(cycles, cases):
        assert time <= rows * (chunks + 1) + 30


def appends(cfg, cases):
    return [
        Instruction(
            **{"op": Op.APPEND, "src": 3 + n, "src_stride": 2 * heads * chunks + 1}
            | {"heads": heads, "head_chunks": chunks, "param": 2 * n, "sat": n}
            | {"imm": 0x10000000 + 64 * n, "imm2": 0x20000000 + 128 * n}
        )
        for n, (heads, chunks) in enumerate(cases)
    ]


@pytest.mark.parametrize("rows,stall", [(1, "slow"), (4, "none"), (3, "burst")])
def test_append(rows, stall):
    step = Step(TINY, np.random.default_rng(rows), rows)
    step.out[3:7] = [[-32768], [32767], [0], [0]]  # out of range when rotated
    step.out[40:48] = step.param[6:14]  # nothing left of it: amax is 1
    step.rope[0:2] = [[16384], [0]]
    step.rope[8] = [16384, 0] * 4
    step.param[0:2] = [[-32768], [32767]]
    cases = [(1, 1), (5, 1), (2, 2), (3, 3), (6, 6), (1, 6), (2, 8)]
    cycles = check(step, appends(TINY, cases), stall)
    if stall == "none":
        for time, (heads, chunks) in zip(cycles, cases):
            head = max(3 * chunks + 1, 13)
            assert time <= rows * (heads * head + 3) + 85, (time, heads, chunks)


@pytest.mark.parametrize("cfg", [SIXTEEN, TINY16], ids=lambda cfg: cfg.name)
def test_append_many_rows(cfg):
    rng = np.random.default_rng(5)
    cases = [(2, 1), (1, cfg.max_head_chunks)]
    check(Step(cfg, rng, cfg.max_rows), appends(cfg, cases))


def test_amax_extremes():
    """Constant heads: amax 1, 32767 (from -32768 too) and powers of two, exact to the last bit."""
    step = Step(TINY, np.random.default_rng(0), 4)
    step.rope[:] = [16384, 0] * 4
    step.param[:] = 0
    for n, value in enumerate((0, 1, -1, 2, 255, -256, 257, 4095, 16384, 32766, 32767, -32768)):
        step.out[3 * n + 3 : 3 * n + 6] = np.arange(24).reshape(3, 8) % 3 - 1  # V and room for more
        step.out[3 * n + 3] = value
    instruction = Instruction(
        op=Op.APPEND, src=3, src_stride=9, heads=1, head_chunks=1, imm=1 << 20, imm2=1 << 24
    )
    check(step, [dataclasses.replace(instruction, src=src) for src in (3, 6, 9)])


def test_all_operations_in_turn():
    rng = np.random.default_rng(9)
    step = Step(TINY, rng, 2, [1])
    rope = Instruction(
        op=Op.ROPE, src=1, src_stride=12, dst=4, dst_stride=16, heads=2, head_chunks=3, sat=1
    )
    glu = Instruction(
        op=Op.SWIGLU, src=2, src_stride=8, dst=4, dst_stride=4, n=4, shift=14, shift2=1
    )
    program = [*norms(rng, [(6, 10, 20, 3, 1)]), rope, *appends(TINY, [(2, 3)]), glu]
    check(step, program * 2, "slow")


def test_reset_in_the_middle():
    """Whatever stage a first or second pass has reached, nothing of it shows up afterwards."""
    step = Step(TINY, np.random.default_rng(2), 2)
    append = appends(TINY, [(3, 1)])
    norm = norms(np.random.default_rng(2), [(1, 10, 20, 3, 0)])
    times = [*range(14, 28, 2), *range(26, 46, 2)]
    program = [i for n in range(len(times)) for i in 2 * (norm if n < 7 else append)]
    check(step, program, "none", {2 * n: time for n, time in enumerate(times)})
