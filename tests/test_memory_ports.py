"""MemoryPorts: units that read and write at once, each of its ports against an AXI slave."""

from collections import deque

import numpy as np
import pytest
from axi_slaves import (
    SIZE,
    STALLS,
    ReadSlave,
    WriteSlave,
    fetch_beats,
    run,
    write_model,
    write_run,
)
from presets import TINY16
from streams import receiver, sender
from tokenfabric.core.config import preset
from tokenfabric.core.registers import Error
from tokenfabric.rtl.layouts import BeatTag
from tokenfabric.rtl.ports import MemoryPorts

TINY = preset("tiny")
UNITS = 3
EVERYTHING = 1 << 20


class System:
    """The unit between UNITS that read, UNITS that write, and slaves.

    ``bad``: (port, beat) of a read that is answered with an error; ``bad_write``: such a burst.
    """

    def __init__(
        self, cfg, stall="none", *, bad=(0, None), bad_write=None, latencies=((1, 2),) * 2
    ):
        self.cfg, self.stall = cfg, STALLS[stall][1]
        self.dut = dut = MemoryPorts(cfg, fetches=UNITS, writes=UNITS)
        self.memory = np.random.default_rng(1).integers(0, 256, SIZE, np.uint8).tobytes()
        chance, _, usual = STALLS[stall]
        reading, writing = latencies if stall == "none" else (usual, usual)
        self.slaves = [
            ReadSlave(
                cfg,
                axi,
                self.memory,
                np.random.default_rng([2, port]),
                (chance, 0, reading),
                bad_beat=bad[1] if port == bad[0] else None,
            )
            for port, axi in enumerate(dut.axi_r)
        ]
        rng = np.random.default_rng(3)
        stalls = (chance, 0, writing)
        self.written = WriteSlave(cfg, dut.axi_w, rng, stalls, bad_burst=bad_write)
        self.words, self.beats, self.kv = [], [], [[] for _ in dut.kv]
        self.turns, self.order = [], {"fetch": [], "write": []}
        self.read_beats, self.write_beats = [0] * cfg.ports, 0

    def takers(self):
        """Benches that take all that is read."""
        dut, rng = self.dut, np.random.default_rng(4)
        yield receiver(dut.words, EVERYTHING, self.words, rng, self.stall)
        yield receiver(dut.beats, EVERYTHING, self.beats, rng, self.stall)
        yield receiver(dut.kv_turns, EVERYTHING, self.turns)
        for port, got in zip(dut.kv, self.kv, strict=True):
            yield receiver(port, EVERYTHING, got, rng, self.stall)

    async def watch(self, ctx):
        """Whose payload was taken, and how many beats are told."""
        dut = self.dut
        sides = {"fetch": dut.fetch, "write": dut.write}
        taken = [port.valid & port.ready for ports in sides.values() for port in ports]
        sampled = ctx.tick().sample(dut.read_beats, dut.write_beat, *taken)
        async for _, _, reads, writes, *now in sampled:
            for port in range(self.cfg.ports):
                self.read_beats[port] += reads >> port & 1
            self.write_beats += writes
            for number, side in enumerate(sides):
                who = [unit for unit in range(UNITS) if now[UNITS * number + unit]]
                assert len(who) <= 1, "two at once"
                self.order[side] += who

    def run(self, benches, background=(), size=SIZE):
        slaves = [*self.slaves, self.written]
        run(self.dut, benches, [*slaves, *self.takers(), self.watch, *background], size)

    def in_order(self, side, payloads):
        """The payloads of all units, in the order in which they were taken."""
        waiting = [deque(each) for each in payloads]
        found = [waiting[unit].popleft() for unit in self.order[side]]
        assert not any(waiting)
        return found


def random_commands(cfg, rng, count):
    size = cfg.port_bytes
    return [
        {
            "offset": int(rng.integers(SIZE // size - 60)) * size,
            "beats": int(rng.integers(1, 60)),
            "tag": BeatTag(int(rng.integers(6))),
        }
        for _ in range(count)
    ]


CASES = [*((stall, TINY) for stall in STALLS), ("all", TINY16)]


@pytest.mark.parametrize(("stall", "cfg"), CASES, ids=[f"{s}, {cfg.name}" for s, cfg in CASES])
def test_all_units_at_once(stall, cfg):
    """Commands and runs stay whole, whoever they are from; every beat reaches whom it is for."""
    system, rng = System(cfg, stall), np.random.default_rng(len(stall))
    dut, slow = system.dut, system.stall
    fetches = [random_commands(cfg, rng, 5) for _ in range(UNITS)]
    # All over the same few blocks: the order decides what is there in the end.
    runs = [
        [write_run(cfg, int(rng.integers(40)), int(rng.integers(1, 30)), rng) for _ in range(5)]
        for _ in range(UNITS)
    ]
    beats = [[beat for each in of_unit for beat in each] for of_unit in runs]
    weights = {"offset": 2 * cfg.superblock_bytes, "superblocks": 6, "repeats": 1}
    block = np.frombuffer(system.memory, np.uint8)[2 * cfg.superblock_bytes :]
    block = block[: 6 * cfg.superblock_bytes].reshape(6, cfg.ports, 16, cfg.port_bytes)
    words = [word.tobytes() for word in block.transpose(0, 2, 1, 3).reshape(-1, cfg.word_bytes)]
    count = sum(command["beats"] for each in fetches for command in each)

    async def until_all_is_there(ctx):
        while len(system.beats) + sum(map(len, system.kv)) < count or len(system.words) < len(
            words
        ):
            await ctx.tick()
        await ctx.tick().until(dut.writer_idle & dut.quiet)
        await ctx.tick()
        assert (ctx.get(dut.error), ctx.get(dut.error_port)) == (0, 0)

    benches = [sender(dut.stream, [weights]), until_all_is_there]
    for unit in range(UNITS):
        benches.append(sender(dut.fetch[unit], fetches[unit], rng, slow))
        benches.append(sender(dut.write[unit], beats[unit], rng, slow))
    system.run(benches)

    want = [
        beat
        for command in system.in_order("fetch", fetches)
        for beat in fetch_beats(cfg, system.memory, command)
    ]
    found = [(beat.data, BeatTag(beat.tag), beat.last) for beat in system.beats]
    assert found == [beat for beat in want if beat[1] is not BeatTag.KV]
    lanes, kv = [deque(lane) for lane in system.kv], []
    for turn in system.turns:
        kv.append(lanes[turn].popleft())
        while not kv[-1].last:
            kv.append(lanes[turn].popleft())
    assert not any(lanes)
    assert [beat.data for beat in kv] == [data for data, tag, _ in want if tag is BeatTag.KV]
    assert [word.to_bytes(cfg.word_bytes, "little") for word in system.words] == words
    taken = system.in_order("write", beats)
    starts = [at for at, beat in enumerate(taken) if beat["first"]]
    ends = [*starts[1:], len(taken)]
    whole = [taken[start:end] for start, end in zip(starts, ends, strict=True)]
    assert all(any(each in of_unit for of_unit in runs) for each in whole)
    assert system.written.memory == write_model(cfg, whole)
    assert system.read_beats == [slave.beats for slave in system.slaves]
    assert system.write_beats == len(taken)


def test_the_first_go_before_the_others():
    system, rng = System(TINY), np.random.default_rng(5)
    fetches = [random_commands(TINY, rng, 4) for _ in range(UNITS)]
    writes = [write_run(TINY, 10 * unit, 4, rng) for unit in range(UNITS)]
    sources = [*zip(system.dut.fetch, fetches), *zip(system.dut.write, writes)]
    system.run([sender(port, payloads) for port, payloads in sources])
    by_turns = [unit for unit in range(UNITS) for _ in range(4)]
    assert system.order == {"fetch": by_turns, "write": by_turns}


FAR, SINGLE = 1 << 20, {"beats": 1, "tag": BeatTag.EMBED}
ERRORS = {  # what is done, and the error that stays
    "no error": ({}, Error.NONE, 0),
    "read outside, port 0": ({"fetch": [{**SINGLE, "offset": FAR}]}, Error.WINDOW, 0),
    "read outside, port 1": (
        {"fetch": [{**SINGLE, "offset": 0}, {**SINGLE, "offset": FAR}]},
        Error.WINDOW,
        1,
    ),
    "bad answer, port 0": ({"fetch": [{**SINGLE, "offset": 0}], "bad": (0, 0)}, Error.AXI_READ, 0),
    "bad answer, port 1": (
        {"fetch": [{**SINGLE, "offset": 0}] * 2, "bad": (1, 0)},
        Error.AXI_READ,
        1,
    ),
    "write outside": ({"write": FAR}, Error.WINDOW, 0),
    "bad answer to a write": ({"write": 0, "bad_write": 0}, Error.AXI_WRITE, 0),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_told_and_stay(name):
    given, code, port = ERRORS[name]
    bad = {key: given[key] for key in ("bad", "bad_write") if key in given}
    system, rng = System(TINY, **bad), np.random.default_rng(6)
    dut, seen = system.dut, []
    writes = []
    if "write" in given:
        writes = write_run(TINY, given["write"] // TINY.port_bytes, 1, rng)

    async def bench(ctx):
        for _ in range(60):
            await ctx.tick()
            now = ctx.get(dut.error), ctx.get(dut.error_port)
            if not seen or now != seen[-1]:
                seen.append(now)

    benches = [bench, sender(dut.fetch[0], given.get("fetch", [])), sender(dut.write[0], writes)]
    system.run(benches)
    assert seen == [(0, 0), (code, port)][: 1 if code is Error.NONE else 2]


@pytest.mark.parametrize("slow", ["reads", "writes"])
def test_halt_then_quiet(slow):
    """No quiet before the slower side has its answers; then nothing is announced any more."""
    latencies = ((400, 401), (1, 2)) if slow == "reads" else ((1, 2), (400, 401))
    system, rng = System(TINY, latencies=latencies), np.random.default_rng(7)
    dut = system.dut
    fetches = [{"offset": 0, "beats": 16, "tag": BeatTag.EMBED}] * 200

    def bursts():
        return [len(slave.bursts) for slave in (*system.slaves, system.written)]

    async def bench(ctx):
        await ctx.tick().repeat(60)
        assert all(bursts())
        ctx.set(dut.halt, 1)
        # What stands on the channels when halt comes is still announced, and takes its time.
        await ctx.tick().repeat(100)
        before = bursts()
        missing = [len(slave.bursts) > slave.beats // 16 for slave in system.slaves]
        missing.append(len(system.written.bursts) > system.written.answered)
        assert missing == ([True, True, False] if slow == "reads" else [False, False, True])
        assert not ctx.get(dut.quiet)
        await ctx.tick().until(dut.quiet)
        assert all(slave.beats == 16 * len(slave.bursts) for slave in system.slaves)
        assert system.written.answered == len(system.written.bursts)
        for _ in range(40):
            await ctx.tick()
            assert ctx.get(dut.quiet)
        assert bursts() == before

    writes = write_run(TINY, 0, 2000, rng)
    system.run([bench], [sender(dut.fetch[0], fetches), sender(dut.write[0], writes)])


def test_full_while_nobody_takes_weights():
    dut, levels = MemoryPorts(TINY, fetches=1, writes=1), []
    memory, rng = bytes(SIZE), np.random.default_rng(8)
    slaves = [ReadSlave(TINY, axi, memory, rng, (0, 0, (1, 2))) for axi in dut.axi_r]

    async def bench(ctx):
        for _ in range(2):
            levels.append(ctx.get(dut.full))
            await ctx.tick().repeat(TINY.weight_fifo_beats + 60)
        ctx.set(dut.words.ready, 1)
        await ctx.tick().repeat(60)
        levels.append(ctx.get(dut.full))

    superblocks = TINY.weight_fifo_beats // 16 + 2
    weights = {"offset": 0, "superblocks": superblocks, "repeats": 1}
    run(dut, [bench, sender(dut.stream, [weights])], slaves)
    assert levels == [0, 1, 0]


def test_the_writer_is_not_idle_while_the_end_of_a_run_is_missing():
    """Though nothing is in flight; nor before the answer has come."""
    system, rng = System(TINY, latencies=((1, 2), (30, 31))), np.random.default_rng(9)
    dut, beats = system.dut, write_run(TINY, 0, 40, rng)

    def state(ctx):
        return ctx.get(dut.writer_idle), ctx.get(dut.quiet)

    async def bench(ctx):
        assert state(ctx) == (1, 1)
        await sender(dut.write[1], beats[:-1])(ctx)
        await ctx.tick().repeat(100)
        assert state(ctx) == (0, 1) and system.written.answered == 2
        await sender(dut.write[1], beats[-1:])(ctx)
        await ctx.tick().repeat(10)
        assert state(ctx) == (0, 0)
        await ctx.tick().until(dut.writer_idle)
        assert state(ctx) == (1, 1) and len(system.written.bursts) == 3

    system.run([bench])
