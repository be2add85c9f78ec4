# amaranth: UnusedElaboratable=no
"""AttentionUnit: whole ATTENDs, between memory and an array that are written down in Python."""

import random
from collections import deque

import numpy as np
import pytest
from attention_jobs import Attend
from kv_tiles import check, tiles
from softmax_jobs import pack, pack_fields, unpack
from streams import sender, simulate
from tokenfabric.core import ops
from tokenfabric.core.config import preset
from tokenfabric.rtl.attend import AttentionUnit
from tokenfabric.rtl.layouts import BeatTag, MatmulDest, MatmulKind

TINY = preset("tiny").replace(name="short", max_context=64)
WIDE = TINY.replace(name="two chunks", rows=16, ports=4, kv_chunks=512)


class Surroundings:
    """What the unit talks to. ``stall``: the chance that anything waits in a cycle."""

    def __init__(self, cfg, attends, seed, stall):
        self.cfg, self.attends, self.stall = cfg, attends, stall
        self.rng, self.numbers = random.Random(seed), np.random.default_rng(seed)
        self.dut = AttentionUnit(cfg)
        self.rows = []  # of the ATTEND that runs
        self.fetched, self.streams = [], [stream for attend in attends for stream in attend.kv]
        self.turns, self.lanes, self.turn = deque(), [deque() for _ in range(cfg.ports)], 0
        self.words = deque()  # as lists of bytes, in the order of the streams
        self.scales, self.done = [], 0

    def run(self):
        dut = self.dut
        around = [self.look_up, self.memory, self.row_scales, self.source(dut.turns, self.turns)]
        for port, lane in zip(dut.beats, self.lanes, strict=True):
            around.append(self.source(port, lane))
        simulate(dut, [self.commands, self.array], around, deadline=60_000)

    def waits(self):
        return self.rng.random() < self.stall

    async def commands(self, ctx):
        for attend in self.attends:
            self.rows = attend.rows
            ctx.set(self.dut.rows, len(attend.rows))
            for name, value in attend.job.items():
                ctx.set(getattr(self.dut, name), value)
            await sender(self.dut.cmd, [attend.i])(ctx)
            assert ctx.get(self.dut.busy)
            while ctx.get(self.dut.busy):
                await ctx.tick()

    async def look_up(self, ctx):
        dut = self.dut
        while True:
            for index, row in ((dut.row_index, dut.row), (dut.plan_index, dut.plan_row)):
                at = ctx.get(index)
                ctx.set(row, self.rows[at] if at < len(self.rows) else {})
            await ctx.tick()

    async def memory(self, ctx):
        """Random K and V for each fetch of them, dealt to the ports in bursts."""
        port, cfg = self.dut.fetch, self.cfg
        ready = False
        async for _, _, valid, command in ctx.tick().sample(port.valid, port.payload):
            if valid and ready:
                self.fetched.append((command.offset, command.beats, command.tag))
                if command.tag == BeatTag.KV:
                    is_v, positions, chunks = self.streams.pop(0)
                    shape = positions, chunks * cfg.cols
                    values = self.numbers.integers(0, 256, shape, np.uint8)
                    beats = values.reshape(-1, cfg.port_bytes)
                    for at in range(0, len(beats), 16):
                        self._deal(beats[at : at + 16])
                    self.words.extend(tiles(cfg, is_v, values))
            ready = not self.waits()
            ctx.set(port.ready, int(ready))

    def _deal(self, burst):
        self.turns.append(self.turn)
        for n, beat in enumerate(burst):
            payload = {
                "data": int.from_bytes(beat.tobytes(), "little"),
                "last": n + 1 == len(burst),
            }
            self.lanes[self.turn].append(payload)
        self.turn = (self.turn + 1) % self.cfg.ports

    def source(self, port, queue):
        async def bench(ctx):
            while True:
                if queue and not self.waits():
                    await sender(port, [queue.popleft()])(ctx)
                else:
                    await ctx.tick()

        return bench

    async def row_scales(self, ctx):
        write = self.dut.row_scale_w
        async for _, _, en, scale in ctx.tick().sample(write.en, write.payload):
            if en:
                self.scales.append((scale.index, scale.mult, scale.shift))

    # --- the array: K gives scores, V takes what has become of them

    async def array(self, ctx):
        for attend in self.attends:
            scores = None
            for table, command, softmax in attend.passes:
                assert await self._command(ctx, command["kind"]) == (table, command)
                ctx.set(self.dut.array_busy, 1)
                if command["kind"] is MatmulKind.K:
                    await self._words(ctx, command)
                    scores = await self._scores(ctx, table, command, softmax)
                else:
                    await self._p(ctx, scores)
                    await self._words(ctx, command)
                ctx.set(self.dut.array_busy, 0)
                self.done += 1

    async def _command(self, ctx, kind):
        """The next command and the table that came before it, as ``Attend`` has them."""
        array, table = self.dut.array, {}
        while True:
            ctx.set(array.matmul.ready, int(not self.waits()))
            if ctx.get(array.table_en):
                entry = ctx.get(array.table)
                table[ctx.get(array.table_index)] = entry
            if ctx.get(array.matmul.valid & array.matmul.ready):
                break
            await ctx.tick()
        payload = ctx.get(array.matmul.payload)
        await ctx.tick()
        ctx.set(array.matmul.ready, 0)
        self.sources = [table[n].src for n in range(payload.m)]
        at = "src" if kind is MatmulKind.K else "dst"
        entries = [(getattr(table[n], at), table[n].limit) for n in range(payload.m)]
        names = self.attends[0].passes[0][1]
        return entries, {name: getattr(payload, name) for name in names}

    async def _words(self, ctx, command):
        """All words of the command's tiles."""
        port, count = self.dut.words, command["n"] * command["k"] * self.cfg.tile_cycles
        got, ready = [], False
        while len(got) < count:
            ready = not self.waits()
            ctx.set(port.ready, int(ready))
            _, _, valid, word = await ctx.tick().sample(port.valid, port.payload)
            if valid and ready:
                got.append(word)
        ctx.set(port.ready, 0)
        # A stream has no words for row-blocks or columns that are all beyond its end.
        check(self.cfg, got, [self.words.popleft() for _ in got])

    async def _scores(self, ctx, table, command, softmax):
        """Random scores, row by row; what the softmax must make of them."""
        dut, cols, m = self.dut, self.cfg.cols, command["m"]
        width = softmax["blocks"] * self.cfg.rows
        scores = self.numbers.integers(-3000, 3000, (m, width))
        limits = np.array([limit for _, limit in table])
        for block in range(command["n"]):
            for index in range(m):
                lanes = scores[index, block * cols :][:cols]
                values = {"index": index, "block": block, "limit": limits[index]}
                values["dest"] = MatmulDest.SCORES.value
                payload = pack_fields(dut.score.shape(), y=pack(lanes, 32), **values)
                ctx.set(dut.score.as_value(), payload)
                ctx.set(dut.score_valid, 1)
                await ctx.tick()
                ctx.set(dut.score_valid, 0)
                while self.waits():
                    await ctx.tick()
            for _ in range(m, 4):
                await ctx.tick()
        mask = np.arange(width) <= limits[:, None]
        p, total = ops.softmax(scores, mask, softmax["align"])
        mults, shifts = ops.attention_scale(total)
        return p, [(n, int(mults[n]), int(shifts[n])) for n in range(m)]

    async def _p(self, ctx, expected):
        """By the time V's command comes, all rows are finished."""
        (p, scales), dut, cfg = expected, self.dut, self.cfg
        assert not ctx.get(dut.softmax_busy)
        assert self.scales == scales
        self.scales.clear()
        for row, at in zip(p, self.sources, strict=True):
            for block in range(0, len(row), cfg.rows):
                ctx.set(dut.p_r.en, 1)
                ctx.set(dut.p_r.addr, at + block // cfg.cols)
                await ctx.tick()
                ctx.set(dut.p_r.en, 0)
                assert unpack(ctx.get(dut.p_r.data), cfg.rows) == row[block:][: cfg.rows].tolist()


def attends(cfg, rng, shapes):
    made = []
    for shape in shapes:
        attend = Attend(cfg, rng, shape)
        # As far as scores can be spread; and no more work than shows everything.
        attend.i.update(shift2=rng.randrange(5), heads=2, head_chunks=rng.randrange(1, 4))
        attend._plan()
        made.append(attend)
    return made


@pytest.mark.parametrize("cfg", [TINY, WIDE], ids=lambda cfg: cfg.name)
@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_attention_from_fetch_to_p(cfg, stall):
    """A prefill, rows of several slots, and more query heads than rows of a command."""
    rng = random.Random(f"attend {cfg.name} {stall}")
    wanted = attends(cfg, rng, [([3], 1), ([1, 2], 2), ([1], cfg.max_rows + 1)])
    system = Surroundings(cfg, wanted, 7, stall)
    system.run()
    assert system.fetched == [fetch for attend in wanted for fetch in attend.fetches]
    assert system.done == sum(len(attend.passes) for attend in wanted)
    assert not system.words and not any(system.lanes) and not system.turns
