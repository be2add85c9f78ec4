"""Units of a few lines that others are made of, each by itself against plain Python."""

from itertools import pairwise

import numpy as np
import pytest
from amaranth.sim import Simulator
from presets import TINY16
from streams import receiver, sender, simulate
from tokenfabric.core import isa, registers
from tokenfabric.core.boards import ULX3S_SDRAM
from tokenfabric.core.config import preset
from tokenfabric.core.isa import Op, Unit
from tokenfabric.rtl import uart
from tokenfabric.rtl.append import CacheAddress
from tokenfabric.rtl.burst import Splitter
from tokenfabric.rtl.chunkwalk import ChunkWalk, Part
from tokenfabric.rtl.control import Counters
from tokenfabric.rtl.descriptor import ProgramMemory
from tokenfabric.rtl.layouts import BeatTag
from tokenfabric.rtl.mac import FabricMultipliers
from tokenfabric.rtl.rows import WantTable
from tokenfabric.rtl.sdram import OpenRows, RefreshTimer
from tokenfabric.rtl.sequencer import Clearance

TINY = preset("tiny")
BEATS = pytest.mark.parametrize(
    "cfg", [preset("ulx3s"), TINY, TINY16], ids=lambda cfg: cfg.name
)  # 4, 8 and 16 bytes
WORD = (1 << 32) - 1


def run(dut, bench):
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()


def some(rng, bits):
    return int(rng.integers(1 << bits))


# --- memory and its ports -----------------------------------------------------------------------


@BEATS
@pytest.mark.parametrize("stall", [0.0, 0.5])
def test_bursts_end_at_blocks(cfg, stall):
    """The commands cut by hand, with their tags; the next is taken a cycle after the last burst."""
    rng, dut, size = np.random.default_rng(1), Splitter(cfg), cfg.port_bytes
    commands, want, got, times = [], [], [], []
    for first, beats in [
        (0, 16),
        (0, 1),
        (15, 1),
        (15, 2),
        (16, 17),
        *rng.integers(1, 70, (20, 2)),
    ]:
        tag = BeatTag(int(rng.integers(6)))
        offset = int(first) * size + int(rng.integers(size))  # bits below a beat do not count
        commands.append({"offset": offset, "beats": int(beats), "tag": tag})
        at, end = int(first), int(first) + int(beats)
        while at < end:
            stop = min(end, at // 16 * 16 + 16)
            want.append((at * size, stop - at, tag, int(stop == end)))
            at = stop
    simulate(dut, [sender(dut.i, commands), receiver(dut.o, len(want), got, rng, stall, times)])
    assert [(b.burst.addr, b.burst.beats, b.tag, b.last) for b in got] == want
    if not stall:
        gaps = [b - a for a, b in pairwise(times)]
        assert gaps == [2 if last else 1 for *_, last in want[:-1]]


@BEATS
def test_program_memory_gives_instructions(cfg):
    """Beats one after the other with pauses; an instruction stays until another is asked for."""
    rng, dut, count = np.random.default_rng(2), ProgramMemory(cfg), 20
    program = [rng.bytes(isa.INSTRUCTION_BYTES) for _ in range(count)]
    data, size = b"".join(program), cfg.port_bytes

    async def bench(ctx):
        for at in range(0, len(data), size):
            ctx.set(dut.valid, 1)
            ctx.set(dut.beat, int.from_bytes(data[at : at + size], "little"))
            await ctx.tick()
            ctx.set(dut.valid, 0)
            ctx.set(dut.beat, some(rng, 32))
            await ctx.tick().repeat(int(rng.integers(1, 3)))
        for number in rng.integers(0, count, 40):
            ctx.set(dut.r.en, 1)
            ctx.set(dut.r.addr, int(number))
            await ctx.tick()
            ctx.set(dut.r.en, 0)
            ctx.set(dut.r.addr, 0)
            for _ in range(2):
                assert ctx.get(dut.r.data) == int.from_bytes(program[number], "little")
                await ctx.tick()

    run(dut, bench)


def test_want_table_shows_the_same_to_all_readers():
    rng, dut = np.random.default_rng(3), WantTable(TINY, 3)
    entries = [(0, 0, 0)] * TINY.max_rows

    async def bench(ctx):
        for _ in range(200):
            at, entry = some(rng, 2), (some(rng, 2), some(rng, 1), some(rng, 32))
            ctx.set(dut.en, en := some(rng, 1))
            ctx.set(dut.addr, at)
            ctx.set(dut.entry, dict(zip(("row", "dump", "addr"), entry)))
            for reader in range(3):
                index = some(rng, 2)
                ctx.set(getattr(dut, f"index_{reader}"), index)
                found = ctx.get(getattr(dut, f"entry_{reader}"))
                assert (found.row, found.dump, found.addr) == entries[index]
            await ctx.tick()
            if en:
                entries[at] = entry

    run(dut, bench)


# --- control --------------------------------------------------------------------------------------


def test_counters_count_what_happens_while_they_run():
    rng, dut = np.random.default_rng(4), Counters(TINY)
    names = [name for name, _ in registers.COUNTERS]
    counts = dict.fromkeys(dut.value, 0)

    async def bench(ctx):
        for cycle in range(300):
            clear, runs = int(rng.random() < 0.02), int(rng.random() < 0.8)
            events, reads, write = some(rng, len(names)), some(rng, TINY.ports), some(rng, 1)
            for name, value in (
                ("clear", clear), ("run", runs), ("events", events), ("read_beats", reads),
                ("write_beat", write),
            ):  # fmt: skip
                ctx.set(getattr(dut, name), value)
            await ctx.tick()
            for bit, name in enumerate(names):
                counts[name + "_LO"] += runs & events >> bit
            for port in range(TINY.ports):
                counts[f"READ_BEATS_{port}"] += runs & reads >> port
            counts["WRITE_BEATS"] += runs & write
            if clear:
                counts.update(dict.fromkeys(counts, 0))
            assert {name: ctx.get(value) for name, value in dut.value.items()} == counts, cycle

    run(dut, bench)


def test_a_counter_goes_on_in_its_high_half():
    dut = Counters(TINY)
    low, high = dut.value["CYCLES_LO"], dut.value["CYCLES_HI"]

    async def bench(ctx):
        ctx.set(low, WORD - 1)
        ctx.set(high, 6)
        ctx.set(dut.run, 1)
        ctx.set(dut.events, 1)
        await ctx.tick().repeat(10)
        assert (ctx.get(high), ctx.get(low)) == (7, 8)

    run(dut, bench)


@pytest.mark.parametrize("op", Op)
def test_an_instruction_waits_for_its_units(op):
    """What the program names and what it must not meet whatever the program says; a cycle late."""
    rng, dut = np.random.default_rng(op), Clearance()

    async def bench(ctx):
        ctx.set(dut.op, op.value)
        for unit in Unit:  # one alone
            ctx.set(dut.wait, 0)
            ctx.set(dut.busy, unit.value)
            await ctx.tick()
            assert ctx.get(dut.clear) == (unit not in isa.shares(op))
        for _ in range(60):
            wait, busy = some(rng, len(Unit)) & some(rng, 8), some(rng, len(Unit))
            ctx.set(dut.wait, wait)
            ctx.set(dut.busy, busy)
            await ctx.tick()
            assert ctx.get(dut.clear) == (not busy & (wait | isa.shares(op).value))

    run(dut, bench)


# --- arithmetic and addresses ---------------------------------------------------------------------


def test_products_in_luts():
    """All corners of both sides; the weight comes a cycle after the activation."""
    rng, count = np.random.default_rng(5), 3
    dut = FabricMultipliers(count)
    corners = [(a, w) for a in (-32768, -1, 0, 1, 32767) for w in (-128, -127, -1, 0, 1, 127)]
    a = [pair[0] for pair in corners] + rng.integers(-32768, 32768, 200).tolist()
    w = rng.integers(-128, 128, (len(a), count))
    w[: len(corners), 0] = [pair[1] for pair in corners]
    got = []

    async def bench(ctx):
        ctx.set(dut.enable, 0b111)
        for now in range(len(a) + dut.LATENCY):
            if now >= dut.LATENCY:
                got.append(list(ctx.get(dut.product)))
            ctx.set(dut.a, a[min(now, len(a) - 1)])
            ctx.set(dut.w, w[min(max(now - 1, 0), len(a) - 1)].tolist())
            await ctx.tick()
        ctx.set(dut.enable, 0b011)  # the last stage keeps what it has
        ctx.set(dut.a, 77)
        await ctx.tick().repeat(5)
        assert list(ctx.get(dut.product)) == (a[-1] * w[-1]).tolist()

    run(dut, bench)
    assert got == (np.array(a)[:, None] * w).tolist()


@pytest.mark.parametrize("stall", [0.0, 0.5])
@pytest.mark.parametrize("append", [0, 1])
def test_chunks_are_walked_in_order(append, stall):
    """Rows that are looked up, heads that begin apart, K, its scale and V: against three loops."""
    rng, dut = np.random.default_rng([append, int(stall * 10)]), ChunkWalk(TINY)
    names = (
        "row",
        "part",
        "src_at",
        "dst_at",
        "param_at",
        "first",
        "last",
        "head_last",
        "row_last",
    )

    def walk(c, targets):
        for row in targets:
            src = c["src"] + row * c["src_stride"]
            param = c["param"]
            for head in range(c["heads"]):
                dst = c["dst"] + row * c["dst_stride"] + head * c["head_step"]
                parts = [(Part.K, c["chunks"]), (Part.SCALE, 1), (Part.V, c["chunks"])]
                for part, count in parts if append else parts[:1]:
                    for n in range(count):
                        last = n == count - 1
                        head_last = last and part is (Part.V if append else Part.K)
                        yield (
                            row, part, src & 0xFFFF, dst & 0xFFFF, param & 0xFFF, n == 0, last,
                            head_last, head_last and head == c["heads"] - 1,
                        )  # fmt: skip
                        moves = not append or part is Part.V
                        src, dst, param = src + (2 if c["pair"] else moves), dst + 1, param + 1

    async def bench(ctx):
        for _ in range(12):
            chunks, heads = int(rng.integers(1, 6)), int(rng.integers(1, 4))
            c = {name: some(rng, bits) for name, bits in (
                ("src", 16), ("src_stride", 12), ("dst", 16), ("dst_stride", 12), ("param", 12),
                ("head_step", 8),
            )}  # fmt: skip
            c |= {"chunks": chunks, "heads": heads, "pair": 0 if append else some(rng, 1)}
            count = int(rng.integers(1, TINY.max_rows + 1))
            targets = sorted(rng.choice(TINY.max_rows, count, replace=False).tolist())
            for name, value in (c | {"append": append, "rows": count, "look": 1}).items():
                ctx.set(getattr(dut, name), value)
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            want, seeks = list(walk(c, targets)), 0
            while want:
                ctx.set(dut.target, targets[min(ctx.get(dut.visit), count - 1)])
                steps = ctx.get(dut.valid) and rng.random() >= stall
                ctx.set(dut.step, int(steps))
                if ctx.get(dut.valid):
                    found = tuple(ctx.get(getattr(dut, name)) for name in names)
                    assert found == want[0]
                seeks += ctx.get(dut.seek)
                assert not ctx.get(dut.done)
                if steps:
                    want.pop(0)
                await ctx.tick()
            ctx.set(dut.step, 0)
            assert ctx.get(dut.done) and not ctx.get(dut.valid)
            # One cycle for each row, and one for each that is passed over.
            assert seeks == targets[-1] + 1

    run(dut, bench)


def test_addresses_in_the_cache():
    """K, scale and V of head after head, whatever the row; LATENCY cycles behind the chunk."""
    rng, dut = np.random.default_rng(6), CacheAddress(TINY)
    steady = {name: some(rng, 32) for name in (
        "k_base", "scale_base", "v_offset", "kv_head", "scale_head"
    )}  # fmt: skip
    entries = []  # of each cycle: inputs, and the address that is wanted, None without a chunk
    for _ in range(12):
        row = {"kv_row": some(rng, 32), "scale_slot": some(rng, 32), "position": some(rng, 16)}
        heads = int(rng.integers(1, 4))
        for head in range(heads):
            kv = steady["k_base"] + row["kv_row"] + head * steady["kv_head"]
            scale = steady["scale_base"] + row["scale_slot"] + head * steady["scale_head"]
            addresses = {Part.K: kv, Part.V: kv + steady["v_offset"]}
            addresses[Part.SCALE] = scale + 2 * row["position"]
            chunks = [Part.K, Part.K, Part.SCALE, Part.V, Part.V]
            for n, part in enumerate(chunks):
                ends = int(n == len(chunks) - 1), int(n == len(chunks) - 1 and head == heads - 1)
                entries.append((row, part, *ends, addresses[part] & WORD))
                if rng.random() < 0.3:
                    entries.append((row, part, 0, 0, None))

    async def bench(ctx):
        for name, value in steady.items():
            ctx.set(getattr(dut, name), value)
        for now in range(len(entries) + dut.LATENCY):
            if now >= dut.LATENCY and entries[now - dut.LATENCY][-1] is not None:
                assert ctx.get(dut.addr) == entries[now - dut.LATENCY][-1], now
            row, part, head_end, row_end, _ = entries[min(now, len(entries) - 1)]
            ctx.set(dut.row, row)
            ctx.set(dut.part, part)
            ctx.set(dut.head_end, head_end)
            ctx.set(dut.row_end, row_end)
            await ctx.tick()

    run(dut, bench)


# --- the serial line --------------------------------------------------------------------------


@pytest.mark.parametrize("divisor", [8, 13])
def test_bytes_on_the_line(divisor):
    """A start bit, eight bits from the lowest on, a stop bit, each as long as the others."""
    rng, dut = np.random.default_rng(7), uart.Transmitter(divisor)
    sent, levels = [0x00, 0xFF, 0x55, *rng.integers(0, 256, 5).tolist()], []

    async def listen(ctx):
        async for _, _, level in ctx.tick().sample(dut.tx):
            levels.append(level)

    async def until_sent(ctx):
        await sender(dut.i, sent)(ctx)
        await ctx.tick().repeat(11 * divisor)

    simulate(dut, [until_sent], [listen])
    at, got = 0, []
    while 0 in levels[at:]:
        at += levels[at:].index(0)
        bits = [levels[at + n * divisor : at + (n + 1) * divisor] for n in range(10)]
        assert all(len(set(bit)) == 1 for bit in bits)
        assert bits[9][0] == 1
        got.append(sum(bits[1 + n][0] << n for n in range(8)))
        at += 10 * divisor
    assert got == sent


@pytest.mark.parametrize("off", [-0.02, 0.0, 0.02])
def test_bytes_from_the_line(off):
    """Of a sender whose clock is off by as much as is allowed. One without a stop bit is none, and
    after a pause those that follow are right again."""
    rng, divisor = np.random.default_rng(8), 20
    dut, got = uart.Receiver(divisor), []
    sent = [0x00, 0xFF, 0xA5, *rng.integers(0, 256, 6).tolist()]
    bits = []
    for number, byte in enumerate(sent):
        stop = number != 2
        bits += [0, *(byte >> n & 1 for n in range(8)), int(stop), *([] if stop else [1] * 12)]
    levels = []
    for number, bit in enumerate(bits):
        levels += [bit] * (round((number + 1) * divisor * (1 + off)) - len(levels))

    async def listen(ctx):
        async for _, _, valid, byte in ctx.tick().sample(dut.valid, dut.byte):
            if valid:
                got.append(byte)

    async def talk(ctx):
        await ctx.tick().repeat(5)
        for level in [*levels, *[1] * 40]:
            ctx.set(dut.rx, level)
            await ctx.tick()

    simulate(dut, [talk], [listen])
    assert got[:2] == sent[:2] and got[-6:] == sent[3:] and sent[2] not in got


def test_silence_begins_after_its_cycles():
    rng, dut, silent = np.random.default_rng(9), uart.Silence(12), 0

    async def bench(ctx):
        nonlocal silent
        for _ in range(300):
            got = int(rng.random() < 0.08)
            ctx.set(dut.got, got)
            assert ctx.get(dut.quiet) == (silent >= 12)
            await ctx.tick()
            silent = 0 if got else silent + 1

    run(dut, bench)


def test_the_bytes_of_a_unit():
    rng, dut = np.random.default_rng(10), uart.Unit()
    size = uart.UNIT

    async def bench(ctx):
        held, count = [0] * size, 0
        for _ in range(300):
            what, byte, loaded = some(rng, 2), some(rng, 8), rng.bytes(size)
            step, clear = some(rng, 1), int(rng.random() < 0.1)
            for bit, name in enumerate(("put", "take", "load")):
                ctx.set(getattr(dut, name), int(what == bit))
            ctx.set(dut.byte, byte)
            ctx.set(dut.loaded, int.from_bytes(loaded, "little"))
            ctx.set(dut.step, step)
            ctx.set(dut.clear, clear)
            assert ctx.get(dut.data) == int.from_bytes(bytes(held), "little")
            assert (ctx.get(dut.count), ctx.get(dut.last)) == (count, count == size - 1)
            await ctx.tick()
            held = {0: [*held[1:], byte], 1: [*held[1:], 0], 2: list(loaded)}.get(what, held)
            count = 0 if clear else (count + step) % size

    run(dut, bench)


# --- SDRAM --------------------------------------------------------------------------------------


def test_a_refresh_is_due_in_every_interval():
    dut, ticks, due = RefreshTimer(9), [], False
    rng = np.random.default_rng(11)

    async def bench(ctx):
        nonlocal due
        for now in range(900):
            tick, done = ctx.get(dut.tick), int(due and rng.random() < 0.1)
            ctx.set(dut.done, done)
            assert ctx.get(dut.due) == due
            ticks.extend([now] * tick)
            await ctx.tick()
            due = (due or bool(tick)) and not done

    run(dut, bench)
    gaps = {b - a for a, b in pairwise(ticks)}
    assert len(gaps) == 1 and max(gaps) <= 10


def test_open_rows_of_each_bank():
    chip = ULX3S_SDRAM
    rng, dut = np.random.default_rng(12), OpenRows(chip)
    rows, seen = {}, set()

    async def bench(ctx):
        for _ in range(400):
            bank, row = some(rng, chip.bank_bits), some(rng, 2)
            what = rng.choice(["activate", "close", "look", "look", "look"])
            what = "close_all" if rng.random() < 0.02 else what
            ctx.set(dut.bank, bank)
            ctx.set(dut.row, row)
            for name in ("activate", "close", "close_all", "look"):
                ctx.set(getattr(dut, name), int(what == name))
            before = dict(rows)
            await ctx.tick()
            assert ctx.get(dut.settled) == (what == "look")
            assert ctx.get(dut.is_open) == (bank in before)
            if bank in before:
                assert ctx.get(dut.hit) == (before[bank] == row)
                seen.add(before[bank] == row)
            if what == "activate":
                rows[bank] = row
            elif what == "close":
                rows.pop(bank, None)
            elif what == "close_all":
                rows.clear()

    run(dut, bench)
    assert seen == {True, False}
