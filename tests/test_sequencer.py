"""The control between the units: issue of instructions, embedding look-up, cutting of attention."""

import numpy as np
import pytest
from amaranth.hdl import Elaboratable, Module
from amaranth.sim import Simulator
from presets import TINY16
from streams import receiver, sender, simulate
from tokenfabric.core import isa, ops
from tokenfabric.core.config import preset
from tokenfabric.core.fixed import ceil_div, saturate
from tokenfabric.core.isa import Dest, Instruction, Op, Unit
from tokenfabric.rtl.attention import AttentionPlan
from tokenfabric.rtl.descriptor import Descriptor
from tokenfabric.rtl.embed import Embed
from tokenfabric.rtl.layouts import BeatTag, MatmulDest, MatmulKind
from tokenfabric.rtl.rows import RowTable
from tokenfabric.rtl.sequencer import InstructionIssue
from tokenfabric.sim.golden import GoldenDevice

TINY, WIDE = preset("tiny"), preset("pynq-z2")
ALL = pytest.mark.parametrize("cfg", [TINY, WIDE, TINY16], ids=lambda cfg: cfg.name)
BEATS = pytest.mark.parametrize("cfg", [TINY, TINY16], ids=lambda cfg: cfg.name)  # 8, 16 bytes


def fields_of(instruction):
    return {name: int(getattr(instruction, name)) for name, _ in isa.FIELDS}


class WithRows(Elaboratable):
    """A unit beside the row table it looks rows up in; ``rows``: dicts of ``isa.ROW``."""

    def __init__(self, cfg, unit, rows):
        self.unit, self.table, self.rows = unit, RowTable(cfg, 1), rows

    def elaborate(self, platform):
        m = Module()
        m.submodules.unit, m.submodules.table = self.unit, self.table
        m.d.comb += [
            self.table.index_0.eq(self.unit.row_index),
            self.unit.row.eq(self.table.row_0),
            self.unit.rows.eq(len(self.rows)),
        ]
        return m

    async def fill(self, ctx):
        words = [int(row.get(name, 0)) for row in self.rows for name, _ in isa.ROW]
        data, size = np.array(words, "<u4").tobytes(), len(self.table.w.data) // 8
        ctx.set(self.table.w.en, 1)
        for beat in range(len(data) // size):
            ctx.set(self.table.w.addr, beat)
            value = int.from_bytes(data[beat * size : (beat + 1) * size], "little")
            ctx.set(self.table.w.data, value)
            await ctx.tick()
        ctx.set(self.table.w.en, 0)


# --- Descriptor -------------------------------------------------------------------------------


@BEATS
def test_descriptor_and_rows_arrive_in_their_registers(cfg):
    """Random words; a position of more than 16 bits becomes the largest there is."""
    rng = np.random.default_rng(1)
    dut = Descriptor(cfg)
    count = isa.DESCRIPTOR_WORDS + cfg.max_rows * isa.ROW_WORDS
    words = rng.integers(0, 1 << 32, count, np.uint32)
    rows = words[isa.DESCRIPTOR_WORDS :].reshape(-1, isa.ROW_WORDS)
    rows[:, 1] = [0x1234, 0x1_0005, 0xFFFF, 1 << 31]
    want = rows.copy()
    want[[1, 3], 1] |= 0xFFFF
    found = np.zeros_like(rows.reshape(-1, cfg.port_bytes // 4))
    job = {}

    async def bench(ctx):
        for beat in words.reshape(-1, cfg.port_bytes // 4):
            ctx.set(dut.valid, 1)
            ctx.set(dut.beat, int.from_bytes(beat.tobytes(), "little"))
            if ctx.get(dut.rows_w.en):
                data = ctx.get(dut.rows_w.data).to_bytes(cfg.port_bytes, "little")
                found[ctx.get(dut.rows_w.addr)] = np.frombuffer(data, "<u4")
            await ctx.tick()
            ctx.set(dut.valid, 0)
            await ctx.tick()
        job.update({name: ctx.get(dut.job[name]) for name, _ in isa.DESCRIPTOR})

    simulate(dut, [bench])
    assert job == {name: int(word) for (name, _), word in zip(isa.DESCRIPTOR, words)}
    assert np.array_equal(found.reshape(want.shape), want)


# --- Embed ------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("stall", [0.0, 0.6])
def test_embedding_equals_golden(cfg, stall):
    """Every address and every chunk, for tokens anywhere in the table and rows of odd length."""
    rng = np.random.default_rng([cfg.ports, int(stall * 10)])
    tokens = [0, 1, cfg.scale_channels - 1, cfg.scale_channels, 2047, 1023, 1365]
    tokens = [*tokens, *rng.integers(2048, size=9).tolist()][: cfg.max_rows]
    k, base = 5, 3 * cfg.superblock_bytes
    k_blocks = ceil_div(k, cfg.k_chunks)
    group = cfg.word_bytes * (1 + cfg.scale_channels // cfg.cols * k_blocks * cfg.tile_cycles)
    size = base + (2048 // cfg.scale_channels + 1) * group
    golden = GoldenDevice(cfg, (size // 4096 * 4096 + 8192, 0))
    golden.windows[0][:] = rng.integers(0, 256, golden.windows[0].size, np.uint8)
    golden.job = {"embedding": base, "embedding_group": group}
    golden.rows = [{"token": token} for token in tokens]
    golden.res = np.zeros((cfg.res_chunks, cfg.cols), np.int64)
    golden.saturated = np.zeros(16, np.int64)
    instruction = Instruction(op=Op.EMBED, dst=2, dst_stride=k + 1, k=k, shift=5, sat=3)
    golden._embed(instruction)

    dut = WithRows(cfg, Embed(cfg), golden.rows)
    unit, res, asked = dut.unit, np.zeros_like(golden.res), []

    async def command(ctx):
        ctx.set(unit.embedding, base)
        ctx.set(unit.embedding_group, group)
        await dut.fill(ctx)
        await sender(unit.cmd, [fields_of(instruction)])(ctx)
        while ctx.get(unit.busy):
            await ctx.tick()

    async def memory(ctx):
        """Answers in order, some cycles later."""
        waiting, now = [], 0
        async for _, _, valid, ready, request in ctx.tick().sample(
            unit.fetch.valid, unit.fetch.ready, unit.fetch.payload
        ):
            now += 1
            if valid and ready:
                assert request.beats == 1 and request.tag == BeatTag.EMBED
                asked.append(request.offset)
                waiting.append((now + int(rng.integers(4, 40)), request.offset))
            ctx.set(unit.fetch.ready, int(rng.random() >= stall))
            answer = waiting and waiting[0][0] <= now
            ctx.set(unit.beats.valid, int(bool(answer)))
            if answer:
                _, at = waiting.pop(0)
                beat = golden.windows[0][at : at + cfg.port_bytes].tobytes()
                ctx.set(unit.beats.payload.data, int.from_bytes(beat, "little"))

    async def chunks(ctx):
        async for _, _, valid, chunk in ctx.tick().sample(unit.chunk_valid, unit.chunk):
            if valid:
                assert (chunk.shift, chunk.sat) == (5, 3)
                wide = ops.requantize(np.array(list(chunk.lanes)), chunk.mult, chunk.shift)
                res[chunk.dst] = saturate(wide, 32)

    simulate(dut, [command], background=[memory, chunks])
    assert len(asked) == len(tokens) * (k + 1)
    assert np.array_equal(res, golden.res)


# --- AttentionPlan ----------------------------------------------------------------------------

# Slots and positions of the rows, query heads per KV head.
PLANS = {
    "one row": ([(0, 0)], 1),
    "one row, all heads together": ([(0, 17)], 4),
    "more heads than rows": ([(0, 63)], 8),
    "prefill": ([(1, 5), (1, 6), (1, 7), (1, 8)], 1),
    "prefill, head by head": ([(1, 5), (1, 6), (1, 7), (1, 8)], 2),
    "a slot each": ([(3, 8), (1, 7), (0, 100), (2, 0)], 3),
    "two and two": ([(0, 15), (0, 16), (5, 31), (5, 32)], 2),
    "one, two, one": ([(2, 9), (0, 3), (0, 4), (2, 60)], 2),
    "one and three, too many heads": ([(2, 9), (7, 3), (7, 4), (7, 5)], 3),
}


def planned(cfg, rows, i, v_offset, kv_head, scale_head):
    """What AttentionPlan must ask for: (fetches, kv commands, jobs)."""
    fetches, kv, jobs = [], [], []
    first = 0
    while first < len(rows):
        same = [r for r in rows[first:] if r["slot"] == rows[first]["slot"]]
        count = next((n for n, r in enumerate(rows[first:]) if r not in same), len(rows) - first)
        positions = rows[first + count - 1]["position"] + 1
        together = count * i.group <= cfg.max_rows
        for head in range(i.heads):
            k = i.imm + rows[first]["kv_slot"] + head * kv_head
            scale = i.imm2 + rows[first]["scale_slot"] + head * scale_head
            beats = positions * i.head_chunks
            for query in range(1 if together else i.group):
                fetches += [
                    (scale, ceil_div(positions, cfg.cols) * 2, BeatTag.SCALE),
                    (k, beats, BeatTag.KV),
                    (k + v_offset, beats, BeatTag.KV),
                ]
                kv += [(0, positions, i.head_chunks), (1, positions, i.head_chunks)]
                jobs.append(
                    (first, count, head * i.group + query, i.group if together else 1, positions)
                )
        first += count
    return fetches, kv, jobs


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("stall", [0.0, 0.7])
def test_attention_plan(name, stall):
    cfg = TINY
    places, group = PLANS[name]
    rng = np.random.default_rng(len(name))
    rows = [
        {"slot": s, "position": p, "kv_slot": s * 0x3000, "scale_slot": s * 0x500}
        for s, p in places
    ]
    i = Instruction(op=Op.ATTEND, heads=3, group=group, head_chunks=3, imm=0x10000, imm2=0x8000)
    fetches, kv, jobs = planned(cfg, rows, i, 0x20000, 0x1000, 0x100)
    unit = AttentionPlan(cfg)
    dut = WithRows(cfg, unit, rows)
    got = {"fetch": [], "kv": [], "jobs": []}

    async def command(ctx):
        ctx.set(unit.v_offset, 0x20000)
        ctx.set(unit.kv_head, 0x1000)
        ctx.set(unit.scale_head, 0x100)
        await dut.fill(ctx)
        await sender(unit.cmd, [fields_of(i)] * 2)(ctx)  # and a second time

    receivers = [
        receiver(getattr(unit, port), 2 * len(want), got[port], rng, stall)
        for port, want in (("fetch", fetches), ("kv", kv), ("jobs", jobs))
    ]
    simulate(dut, [command, *receivers])
    assert [(f.offset, f.beats, f.tag) for f in got["fetch"]] == 2 * fetches
    assert [(c.is_v, c.positions, c.head_chunks) for c in got["kv"]] == 2 * kv
    found = [(j.first, j.rows, j.head, j.heads, j.positions) for j in got["jobs"]]
    assert found == 2 * jobs
    assert [j.last for j in got["jobs"]] == 2 * [*[0] * (len(jobs) - 1), 1]


def test_a_job_is_handed_out_before_its_data_are_sent_for():
    """K may not fit the buffer: who takes it out again must have been told by then."""
    rows = [{"slot": 0, "position": 511, "kv_slot": 0, "scale_slot": 0}]
    unit = AttentionPlan(TINY)
    dut, jobs = WithRows(TINY, unit, rows), []

    async def command(ctx):
        await dut.fill(ctx)
        await sender(unit.cmd, [fields_of(Instruction(op=Op.ATTEND, heads=1, group=1))])(ctx)

    simulate(dut, [command, receiver(unit.jobs, 1, jobs)], deadline=200)
    assert jobs[0].positions == 512


# --- Issue ------------------------------------------------------------------------------------


class Units:
    """What stands around Issue: a program, look-ups, and units that are busy for a while."""

    def __init__(self, cfg, program, *, rows=3, wanted=(), busy_cycles=0, words=None):
        self.cfg, self.rows, self.wanted = cfg, rows, list(wanted)
        self.program = [int.from_bytes(data, "little") for data in program]
        self.words = len(program) if words is None else words
        self.dut, self.busy_cycles = InstructionIssue(cfg), busy_cycles
        self.issued, self.tables = [], []  # (op or command, busy units then); table entries
        self.busy_until = dict.fromkeys(Unit, 0)
        self.done = self.illegal = False

    def run(self, cycles=3000):
        sim = Simulator(self.dut)
        sim.add_clock(1e-6)
        sim.add_process(self.look_up)
        sim.add_testbench(self.bench)
        sim.run_until(cycles * 1e-6)
        assert self.done or self.illegal, f"no end in {cycles} cycles"
        return self

    async def look_up(self, ctx):
        program = self.dut.program
        async for _, _, en, addr in ctx.tick().sample(program.en, program.addr):
            if en:
                ctx.set(program.data, self.program[addr] if addr < len(self.program) else 0)

    async def bench(self, ctx):
        dut = self.dut
        ctx.set(dut.job, {"rows": self.rows, "program_words": self.words})
        ctx.set(dut.want_count, len(self.wanted))
        ctx.set(dut.start, 1)
        streams = {name: getattr(dut, name) for name in ("vector", "attention", "embed", "matmul")}
        for stream in streams.values():
            ctx.set(stream.ready, 1)
        owner = {"attention": Unit.ATTENTION, "embed": Unit.EMBED}
        owner |= {"vector": Unit.VECTOR, "matmul": Unit.ARRAY}
        table = []
        now = 0
        while not (self.done or self.illegal):
            index = ctx.get(dut.want_index)
            ctx.set(dut.want, {"row": self.wanted[index] if index < len(self.wanted) else 0})
            busy = Unit(0)
            for unit, until in self.busy_until.items():
                busy |= unit if now < until else Unit(0)
            ctx.set(dut.busy, busy.value)
            if ctx.get(dut.table_en):
                entry = ctx.get(dut.table)
                at = ctx.get(dut.table_index)
                del table[at:]
                table.append((entry.src, entry.dst))
            for name, stream in streams.items():
                if ctx.get(stream.valid):
                    self.issued.append((ctx.get(stream.payload), busy))
                    self.busy_until[owner[name]] = now + 2 + self.busy_cycles
                    if name == "matmul":
                        self.tables.append(table.copy())
            self.done, self.illegal = bool(ctx.get(dut.done)), bool(ctx.get(dut.illegal))
            self.pc, self.busy_at_end = ctx.get(dut.pc), busy
            await ctx.tick()
            ctx.set(dut.start, 0)
            now += 1


def encoded(*instructions):
    return [isa.encode(i) for i in instructions]


@pytest.mark.parametrize("busy_cycles", [0, 3, 40])
def test_instructions_wait_for_their_unit_and_their_mask(busy_cycles):
    program = [
        Instruction(op=Op.EMBED),
        Instruction(op=Op.NORM, wait=Unit.EMBED),
        Instruction(op=Op.LOAD, n=3, param=7),
        Instruction(op=Op.MATMUL, wait=Unit.VECTOR, k=1, n=4),
        Instruction(op=Op.APPEND, wait=Unit.ARRAY),
        Instruction(op=Op.MATMUL, k=1, n=2),
        Instruction(op=Op.ROPE, wait=Unit.ARRAY),
        Instruction(op=Op.ATTEND),
        Instruction(op=Op.MATMUL, wait=Unit.ATTENTION, k=1, n=2),
        Instruction(op=Op.SWIGLU),
        Instruction(op=Op.END),
    ]
    units = Units(TINY, encoded(*program), busy_cycles=busy_cycles).run()
    assert units.done and units.pc == len(program) - 1
    assert not units.busy_at_end & isa.shares(Op.END)
    own = {Op.EMBED: Unit.EMBED, Op.LOAD: Unit.ARRAY, Op.MATMUL: Unit.ARRAY}
    own[Op.ATTEND] = Unit.ATTENTION
    assert len(units.issued) == len(program) - 1
    for instruction, (payload, busy) in zip(program, units.issued):
        assert not busy & (instruction.wait | own.get(instruction.op, Unit.VECTOR))
        assert not busy & isa.shares(instruction.op)
        if instruction.op in (Op.LOAD, Op.MATMUL):
            load = instruction.op is Op.LOAD
            assert payload.kind == (MatmulKind.LOAD if load else MatmulKind.STREAM)
            assert (payload.n, payload.param) == (instruction.n, instruction.param)
        else:
            assert payload.op == instruction.op


@ALL
@pytest.mark.parametrize("want", [0, 1])
def test_matmul_command_and_table(cfg, want):
    wanted = [0, 2, 3]
    settings = [
        (Dest.OUT, 1, MatmulDest.OUT),
        (Dest.OUT8, 0, MatmulDest.OUT8),
        (Dest.RES, 2, MatmulDest.RES),
        (Dest.LOGITS, 2, MatmulDest.LOGITS),
    ]
    program = [
        Instruction(
            op=Op.MATMUL, want=want, mode=dest, k=5 + n, n=9, shift=20 + n, shift2=30 + n,
            src=100, src_stride=11, dst=50, dst_stride=7, sat=n,
        )
        for n, (dest, _, _) in enumerate(settings)
    ]  # fmt: skip
    units = Units(cfg, encoded(*program, Instruction(op=Op.END)), rows=4, wanted=wanted).run()
    rows = wanted if want else range(4)
    for n, ((_, bits, dest), (command, _)) in enumerate(zip(settings, units.issued)):
        assert units.tables[n] == [(100 + 11 * row, 50 + 7 * row) for row in rows]
        assert (command.m, command.n, command.sat) == (len(rows), 9, n)
        assert (command.bits, command.dest) == (bits, dest)
        assert (command.shift, command.shift_odd) == (20 + n, 30 + n)
        k_blocks = ceil_div(5 + n, cfg.k_chunks)
        assert (command.k, command.tail) == (k_blocks, 5 + n - (k_blocks - 1) * cfg.k_chunks)


def test_what_only_logits_need_is_skipped_without_them():
    program = encoded(
        Instruction(op=Op.NORM, want=1),
        Instruction(op=Op.SWIGLU),
        Instruction(op=Op.MATMUL, want=1, k=1, n=1),
        Instruction(op=Op.LOAD, want=1, n=1),
        Instruction(op=Op.END),
    )
    assert len(Units(TINY, program, wanted=[0]).run().issued) == 4
    [(payload, _)] = Units(TINY, program).run().issued
    assert payload.op == Op.SWIGLU


def test_illegal_instructions():
    norm, end = encoded(Instruction(op=Op.NORM), Instruction(op=Op.END))
    for code in range(max(Op) + 1, 16):
        units = Units(TINY, [norm, norm, bytes([code, *norm[1:]]), end]).run()
        assert units.illegal and not units.done and units.pc == 2
    units = Units(TINY, [norm, norm, end], words=2).run()  # END lies behind the program's end
    assert units.illegal and units.pc == 2
