"""Random ATTENDs with what AttentionControl must ask for, and a bench that sees every cycle."""

from __future__ import annotations

import hashlib
import random
from itertools import groupby

import numpy as np
from amaranth.hdl import Elaboratable, Module
from amaranth.sim import Simulator
from tokenfabric.core import isa
from tokenfabric.core.fixed import ceil_div
from tokenfabric.core.isa import Op
from tokenfabric.rtl.layouts import BeatTag, MatmulDest, MatmulKind
from tokenfabric.rtl.rows import RowTable

WORD, HALF = (1 << 32) - 1, (1 << 16) - 1


class Attend:
    """One ATTEND: its fields ``i``, the rows, the descriptor's values, and all that must come of
    it: ``fetches``, ``kv``, ``jobs``; of each job and pass ``passes``.

    ``shape``: rows of each group, query heads per KV head; None: random ones.
    """

    def __init__(self, cfg, rng: random.Random, shape=None):
        self.cfg = cfg
        sizes, group = shape or self._shape(rng)
        slots = rng.sample(range(256), len(sizes))
        self.rows = []
        for slot, size in zip(slots, sizes):
            at = {"slot": slot, "kv_slot": rng.getrandbits(32), "scale_slot": rng.getrandbits(32)}
            reach = rng.choice([size, 3 * cfg.cols + size, cfg.max_context])
            positions = sorted(rng.sample(range(reach), size))
            self.rows += [{**at, "position": position} for position in positions]
        self.i = {name: rng.getrandbits(width) for name, width in isa.FIELDS}
        self.i.update(op=int(Op.ATTEND), group=group, heads=rng.randrange(1, 4))
        self.i.update(head_chunks=rng.randrange(1, cfg.max_head_chunks + 1), sat=rng.randrange(15))
        names = ("v_offset", "kv_head", "scale_head")
        self.job = {name: rng.getrandbits(32) for name in names}
        self._plan()

    def _shape(self, rng):
        sizes, left = [], rng.randrange(1, self.cfg.max_rows + 1)
        while left:
            sizes.append(rng.randrange(1, left + 1))
            left -= sizes[-1]
        return sizes, rng.choice([1, 2, 3, 4, 7, 8, self.cfg.max_rows])

    def _plan(self):
        i, cfg = self.i, self.cfg
        self.fetches, self.kv, self.jobs, self.passes = [], [], [], []
        first = 0
        for _, same in groupby(self.rows, lambda row: row["slot"]):
            rows = list(same)
            together = len(rows) * i["group"] <= cfg.max_rows
            positions = rows[-1]["position"] + 1
            beats = positions * i["head_chunks"]
            for head in range(i["heads"]):
                k = i["imm"] + rows[0]["kv_slot"] + head * self.job["kv_head"]
                scale = i["imm2"] + rows[0]["scale_slot"] + head * self.job["scale_head"]
                for query in range(1 if together else i["group"]):
                    self.fetches += [
                        (scale & WORD, 2 * ceil_div(positions, cfg.cols), BeatTag.SCALE),
                        (k & WORD, beats, BeatTag.KV),
                        (k + self.job["v_offset"] & WORD, beats, BeatTag.KV),
                    ]
                    self.kv += [(is_v, positions, i["head_chunks"]) for is_v in (0, 1)]
                    at, heads = head * i["group"] + query, i["group"] if together else 1
                    self.jobs.append((first, len(rows), at, heads, positions))
                    self.passes += [self._pass(*self.jobs[-1], is_v) for is_v in (0, 1)]
            first += len(rows)

    def _pass(self, first, rows, head, heads, positions, is_v):
        """(table: where each pair's q is, or its result goes; its limit), matmul, softmax."""
        i, cfg = self.i, self.cfg
        chunks = i["head_chunks"]
        dim_blocks = ceil_div(chunks, cfg.k_chunks)
        row_blocks = ceil_div(positions, cfg.rows)
        base, stride, step = (
            (i["dst"], i["dst_stride"], chunks)
            if is_v
            else (i["src"], i["src_stride"], dim_blocks * cfg.k_chunks)
        )
        table = [
            (base + row * stride + h * step & HALF, self.rows[row]["position"])
            for row in range(first, first + rows)
            for h in range(head, head + heads)
        ]
        matmul = {
            "kind": MatmulKind.V if is_v else MatmulKind.K,
            "m": len(table),
            "k": row_blocks if is_v else dim_blocks,
            "n": chunks if is_v else ceil_div(positions, cfg.cols),
            "tail": cfg.k_chunks if is_v else (chunks - 1) % cfg.k_chunks + 1,
            "shift": i["shift"],
            "shift_odd": 0,
            "bits": 1,
            "dest": MatmulDest.ATT if is_v else MatmulDest.SCORES,
            "sat": i["sat"] + is_v,
            "param": 0,
        }
        softmax = {"m": len(table), "blocks": row_blocks, "align": i["shift2"]}
        return table, matmul, None if is_v else softmax


class Busy:
    """A unit behind a stream: it takes a command when not busy, and is busy for a while after."""

    def __init__(self, rng, longest):
        self.rng, self.longest, self.left = rng, longest, 0

    def __call__(self, taken):
        """The next cycle."""
        self.left = self.rng.randrange(1, self.longest) if taken else max(0, self.left - 1)


class Bench(Elaboratable):
    """A unit beside the row table that it looks rows up in; ``trace`` has a tuple for each cycle.

    ports: the row look-ups as (index, row). streams: those that the unit gives. busy: by the name
    of a stream, the input that says that its taker is busy.
    """

    def __init__(self, cfg, unit, ports, streams, busy=(), seen=()):
        self.cfg, self.unit, self.ports = cfg, unit, ports
        self.streams, self.busy, self.seen = streams, dict(busy), seen
        self.table = RowTable(cfg, len(ports))
        self.trace, self.found = [], {name: [] for name in streams}

    def elaborate(self, platform):
        m = Module()
        m.submodules.unit, m.submodules.table = self.unit, self.table
        for number, (index, row) in enumerate(self.ports):
            m.d.comb += [
                getattr(self.table, f"index_{number}").eq(index),
                row.eq(getattr(self.table, f"row_{number}")),
            ]
        return m

    async def _fill(self, ctx, rows):
        words = [int(row.get(name, 0)) for row in rows for name, _ in isa.ROW]
        data, size = np.array(words, "<u4").tobytes(), len(self.table.w.data) // 8
        ctx.set(self.table.w.en, 1)
        for beat in range(len(data) // size):
            ctx.set(self.table.w.addr, beat)
            value = int.from_bytes(data[beat * size : (beat + 1) * size], "little")
            ctx.set(self.table.w.data, value)
            await ctx.tick()
        ctx.set(self.table.w.en, 0)
        ctx.set(self.unit.rows, len(rows))

    def run(self, attends, rng, stall=0.0, longest=2, deadline=40_000):
        """``attends`` with their own rows one after the other, until ``idle`` says so of each."""

        async def bench(ctx):
            for attend in attends:
                await self._fill(ctx, attend.rows)
                for name, value in attend.job.items():
                    ctx.set(getattr(self.unit, name), value)
                await self._one(ctx, attend, rng, stall, longest, deadline)

        sim = Simulator(self)
        sim.add_clock(1e-6)
        sim.add_testbench(bench)
        sim.run()
        return self

    async def _one(self, ctx, attend, rng, stall, longest, deadline):
        unit, offered, after = self.unit, False, 0
        takers = {name: Busy(rng, longest) for name in self.busy}
        held = dict.fromkeys(self.streams)
        while after < 4:
            ctx.set(unit.cmd.valid, int(not offered))
            ctx.set(unit.cmd.payload, attend.i)
            now = []
            for name, port in self.streams.items():
                busy = name in takers and takers[name].left > 0
                if name in takers:
                    ctx.set(self.busy[name], int(busy))
                ctx.set(port.ready, int(rng.random() >= stall and not busy))
            taken = ctx.get(unit.cmd.ready) and not offered
            now.append(ctx.get(unit.cmd.ready))
            for name, port in self.streams.items():
                valid, ready = ctx.get(port.valid), ctx.get(port.ready)
                bits = ctx.get(port.payload.as_value()) if valid else None
                assert held[name] is None or held[name] == bits, f"{name}: changed before taken"
                held[name] = bits if valid and not ready else None
                now.append(bits)
                if valid and ready:
                    self.found[name].append(ctx.get(port.payload))
                    self.taken(ctx, name)
                if name in takers:
                    takers[name](valid and ready)
            now += [ctx.get(signal) for signal in self.seen]
            self.watch(ctx, now)
            self.trace.append(tuple(now))
            assert len(self.trace) < deadline, "it does not end"
            offered |= bool(taken)
            after = after + 1 if offered and self.idle(ctx) else 0
            await ctx.tick()

    def taken(self, ctx, name):
        """A payload of this stream has been taken."""

    def watch(self, ctx, now):
        """More to see in a cycle."""

    def idle(self, ctx):
        return ctx.get(self.unit.cmd.ready)

    def digest(self):
        """(cycles, hash of all that was seen in them)"""
        text = repr(self.trace).encode()
        return len(self.trace), hashlib.blake2s(text, digest_size=8).hexdigest()
