# amaranth: UnusedElaboratable=no
"""The units of a run, each by itself, with random stalls, against plain Python."""

from __future__ import annotations

import random

import pytest
from amaranth.sim import Simulator
from presets import TINY16
from runs import FAULTS, NO_TOKEN, WORD, Job, ring_beats, row_writes
from tokenfabric.core import isa
from tokenfabric.core.config import preset
from tokenfabric.core.isa import Instruction, Op, RowFlag
from tokenfabric.rtl.descriptor import JobLoader
from tokenfabric.rtl.layouts import BeatTag
from tokenfabric.rtl.sequencer import MatmulRows
from tokenfabric.rtl.steps import RowWalker, TokenChooser

CONFIGS = {cfg.name: cfg for cfg in (preset("ulx3s"), preset("tiny"), TINY16)}
ALL = pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
DEADLINE = 600


def simulate(dut, bench) -> None:
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()


def record(row: dict[str, int]) -> dict[str, int]:
    """A row as the table shows it."""
    shown = {name: value for name, value in row.items() if name != "reserved"}
    return {**shown, "position": row["position"] & 0xFFFF, "flags": row["flags"] & 255}


# --- JobLoader ------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("fault", [None, None, *FAULTS])
def test_a_job_is_loaded_or_refused(cfg, fault):
    rng = random.Random(str(fault))
    work = Job(cfg, 3, fault)
    dut = JobLoader(cfg)

    async def bench(ctx):
        fetched, ends = [], []
        described = None
        for now in range(120):
            ctx.set(dut.start, now == 3)
            ready = int(rng.random() < 0.4)
            ctx.set(dut.fetch.ready, ready)
            if described == now:
                ctx.set(dut.job, work.job)
                ctx.set(dut.described, 1)
            if ctx.get(dut.fetch.valid) and ready:
                command = ctx.get(dut.fetch.payload)
                fetched.append((command.tag, command.offset, command.beats))
                if described is None:
                    described = now + rng.randint(1, 9)
            ends += ["done"] * ctx.get(dut.done) + ["bad"] * ctx.get(dut.bad)
            await ctx.tick()
        words = isa.DESCRIPTOR_WORDS + cfg.max_rows * isa.ROW_WORDS
        wanted = [(BeatTag.DESCRIPTOR, isa.JOB, words * 4 // cfg.port_bytes)]
        if fault is None:
            beats = work.job["program_words"] * isa.INSTRUCTION_BYTES // cfg.port_bytes
            wanted.append((BeatTag.PROGRAM, work.job["program"], beats))
        assert fetched == wanted and ends == ["done" if fault is None else "bad"]

    simulate(dut, bench)


# --- RowWalker and TokenChooser -------------------------------------------------------------------


async def show(ctx, dut, rows, number, begin=0, start=0):
    ctx.set(dut.begin, begin)
    ctx.set(dut.start, start)
    ctx.set(dut.number, number)
    ctx.set(dut.last, number == len(rows) - 1)
    ctx.set(dut.row, record(rows[min(number, len(rows) - 1)]))


@ALL
@pytest.mark.parametrize("seed", range(6))
def test_rows_are_walked_before_a_step(cfg, seed):
    rng = random.Random(seed)
    work = Job(cfg, seed, "position" if seed == 5 else None)
    job, rows = work.job, work.rows
    dut = RowWalker(cfg)

    async def bench(ctx):
        ctx.set(dut.job, job)
        await show(ctx, dut, rows, 0, begin=1)
        await ctx.tick()
        logits = job["logits"]
        for _ in range(3):  # steps: the address of the logits goes on
            await show(ctx, dut, rows, 0, start=1)
            assert not ctx.get(dut.fetch.valid)
            await ctx.tick()
            number, cycles = 0, 0
            while number < len(rows):
                await show(ctx, dut, rows, number)
                ready = int(rng.random() < 0.5)
                ctx.set(dut.fetch.ready, ready)
                row = rows[number]
                if ctx.get(dut.beyond):
                    assert row["position"] >= job["context"] and not ctx.get(dut.advance)
                    for _ in range(5):  # and nothing more happens
                        await ctx.tick()
                        assert not ctx.get(dut.fetch.valid) and not ctx.get(dut.beyond)
                    return
                advance = ctx.get(dut.fetch.valid) and ready
                assert ctx.get(dut.advance) == advance
                wants = advance and bool(row["flags"] & RowFlag.WANT_LOGITS)
                assert ctx.get(dut.want_en) == wants
                if advance:
                    assert row["position"] < job["context"]
                    command = ctx.get(dut.fetch.payload)
                    rope = job["rope"] + 2 * (row["kv_row"] - row["kv_slot"])
                    beats = 2 * job["head_bytes"] // cfg.port_bytes
                    assert (command.tag, command.offset, command.beats) == (
                        BeatTag.ROPE, rope & WORD, beats,
                    )  # fmt: skip
                    dumps = int(bool(row["flags"] & RowFlag.DUMP_LOGITS))
                    if wants:
                        entry = ctx.get(dut.want_entry)
                        assert (entry.row, entry.dump, entry.addr) == (number, dumps, logits)
                        logits = (logits + dumps * job["logits_stride"]) & WORD
                    number += 1
                await ctx.tick()
                cycles += 1
                assert cycles < DEADLINE
        assert seed != 5

    simulate(dut, bench)


@ALL
@pytest.mark.parametrize("seed", range(6))
def test_tokens_are_chosen_after_a_step(cfg, seed):
    rng = random.Random(seed)
    work = Job(cfg, seed + 20)
    job, rows = work.job, [dict(row) for row in work.rows]
    dut = TokenChooser(cfg)

    async def bench(ctx):
        ctx.set(dut.job, job)
        await show(ctx, dut, rows, 0, begin=1)
        await ctx.tick()
        ring, ended, now = job["ring"], set(), 0
        for _ in range(3):
            await show(ctx, dut, rows, 0, start=1)
            await ctx.tick()
            for number, row in enumerate(rows):
                best = rng.choice([rng.randrange(8), rng.getrandbits(32)])
                wanted = bool(row["flags"] & RowFlag.WANT_LOGITS) and number not in ended
                token = best if wanted else NO_TOKEN
                entries, writes, done, cycles = [], [], False, 0
                while not done:
                    await show(ctx, dut, rows, number)
                    ctx.set(dut.best_token, best)
                    ctx.set(dut.cycles, now)
                    ready = int(rng.random() < 0.5)
                    ctx.set(dut.beats.ready, ready)
                    if ctx.get(dut.beats.valid) and ready:
                        beat = ctx.get(dut.beats.payload)
                        size = cfg.port_bytes
                        mask = sum(0xFF << 8 * i for i in range(size) if beat.strb >> i & 1)
                        entry = (beat.first, beat.last, beat.addr, beat.strb, beat.data & mask)
                        entries.append((entry, now))
                    if ctx.get(dut.rows_w.en):
                        writes.append((ctx.get(dut.rows_w.addr), ctx.get(dut.rows_w.data)))
                    done = bool(ctx.get(dut.advance))
                    await ctx.tick()
                    now, cycles = now + 1, cycles + 1
                    assert cycles < DEADLINE
                times = [at for _, at in entries]
                want = ring_beats(cfg, ring, token, lambda n, times=times: times[n])
                assert [entry for entry, _ in entries] == want
                ring = (ring + 8) & WORD
                if wanted:
                    row["token"] = token
                stops = {job[f"stop{i}"] for i in range(4)} - {NO_TOKEN}
                if token in stops and row["flags"] & RowFlag.STOP:
                    ended.add(number)
                row["position"] = (row["position"] + 1) & 0xFFFF
                row["kv_row"] = (row["kv_row"] + job["head_bytes"]) & WORD
                written = {**row, "reserved": 0}
                assert writes == row_writes(cfg, number, written)
            assert ctx.get(dut.all_ended) == (len(ended) == len(rows))

    simulate(dut, bench)


# --- MatmulRows -----------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("seed", range(8))
def test_the_table_of_a_matmul_is_counted_out(cfg, seed):
    rng = random.Random(seed)
    rows = rng.choice([1, cfg.max_rows, rng.randint(1, cfg.max_rows)])
    wanted = sorted(rng.sample(range(rows), rng.randint(1, rows)))
    want = seed % 2
    i = Instruction(
        op=Op.MATMUL, want=want, src=rng.randrange(999), src_stride=rng.randrange(40),
        dst=rng.randrange(999), dst_stride=rng.randrange(40),
    )  # fmt: skip
    dut = MatmulRows(cfg)

    async def bench(ctx):
        for name in ("src", "dst", "src_stride", "dst_stride"):
            ctx.set(getattr(dut, name), getattr(i, name))
        ctx.set(dut.wanted_only, want)
        ctx.set(dut.rows, rows)
        ctx.set(dut.want_count, len(wanted))
        for _ in range(2):  # it begins again
            for _ in range(rng.randint(1, 3)):
                ctx.set(dut.walk, 0)
                await ctx.tick()
            table, last, cycles = {}, False, 0
            ctx.set(dut.walk, 1)
            while not last:
                at = ctx.get(dut.want_index)
                ctx.set(dut.want_row, wanted[min(at, len(wanted) - 1)])
                entry = ctx.get(dut.entry)
                table[ctx.get(dut.index)] = (entry.src, entry.dst)
                last = bool(ctx.get(dut.last))
                await ctx.tick()
                cycles += 1
            those = wanted if want else list(range(rows))
            assert cycles == those[-1] + 1  # one row per cycle
            assert ctx.get(dut.count) == len(those)
            assert [table[n] for n in range(len(those))] == [
                (i.src + row * i.src_stride, i.dst + row * i.dst_stride) for row in those
            ]

    simulate(dut, bench)
