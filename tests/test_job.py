# amaranth: UnusedElaboratable=no
"""Job: from the first fetch to the last token, among units and a memory that stall at random."""

from __future__ import annotations

import random

import pytest
from amaranth.sim import Simulator
from presets import TINY16
from runs import CYCLES, NO_TOKEN, expected
from runs import Job as Work
from tokenfabric.core import isa
from tokenfabric.core.config import preset
from tokenfabric.core.fixed import ceil_div
from tokenfabric.core.isa import Dest, Instruction, Op, Unit
from tokenfabric.core.registers import Error
from tokenfabric.rtl.job import Job
from tokenfabric.rtl.layouts import BeatTag, MatmulDest, MatmulKind

# Ports of 4, 8 and 16 bytes.
CONFIGS = {cfg.name: cfg for cfg in (preset("ulx3s"), preset("tiny"), TINY16)}
ALL = pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
READERS, LIMIT = 2, 6000
STREAMS = {"vector": Unit.VECTOR, "attention": Unit.ATTENTION, "embed": Unit.EMBED}
BITS = {Dest.OUT: 1, Dest.OUT8: 0, Dest.RES: 2, Dest.LOGITS: 2}
DESTS = {dest: MatmulDest[dest.name] for dest in Dest}


def random_program(rng, count):
    """Instructions of all kinds with random fields, and END."""
    program = []
    for op in rng.choices([op for op in Op if op is not Op.END], k=count):
        fields = {name: rng.getrandbits(width) for name, width in isa.FIELDS}
        fields |= {"op": op, "mode": rng.randrange(4), "k": rng.randrange(1, 200)}
        fields |= {"want": rng.randrange(2) if op in (Op.LOAD, Op.NORM, Op.MATMUL) else 0}
        fields["wait"] = rng.choice([0, rng.getrandbits(len(Unit))])
        program.append(Instruction(**fields))
    return [*program, Instruction(op=Op.END)]


def matmul_of(cfg, i, rows):
    """The command and its table, for these rows."""
    command = {
        "kind": MatmulKind.LOAD if i.op is Op.LOAD else MatmulKind.STREAM,
        "n": i.n,
        "param": i.param,
    }
    if i.op is Op.LOAD:
        return command, None
    k = ceil_div(i.k, cfg.k_chunks)
    command |= {"m": len(rows), "k": k, "tail": i.k - (k - 1) * cfg.k_chunks, "sat": i.sat}
    command |= {"shift": i.shift, "shift_odd": i.shift2}
    command |= {"bits": BITS[Dest(i.mode)], "dest": DESTS[Dest(i.mode)]}
    return command, [
        (i.src + row * i.src_stride & 0xFFFF, i.dst + row * i.dst_stride & 0xFFFF) for row in rows
    ]


def issued(cfg, program, rows, wanted):
    """What a step issues: (stream, instruction) or ("matmul", command, table)."""
    names = {unit: name for name, unit in STREAMS.items()}
    for i in program[:-1]:
        if i.want and not wanted:
            continue
        if i.op in (Op.LOAD, Op.MATMUL):
            yield ("matmul", *matmul_of(cfg, i, wanted if i.want else range(rows)))
        else:
            yield names[isa.OPERATIONS[i.op].unit], i


class System:
    """A Job among what surrounds it, and all that it did.

    ``stop``: from the start on. ``program``: in the place of a random one.
    """

    def __init__(self, cfg, seed, fault=None, *, stop=False, program=None):
        self.cfg, self.rng, self.stop = cfg, random.Random(seed), stop
        self.work = Work(cfg, seed, fault)
        self.program = program or random_program(self.rng, self.rng.randint(1, 7))
        if fault not in ("no program_words", "program_words"):
            self.work.job["program_words"] = len(self.program)
        self.dut = Job(cfg, row_readers=READERS, want_readers=READERS)
        self.stall = self.rng.choice([0, 0.3, 0.8])
        self.found = {name: [] for name in ("fetch", "stream", "ring", "issued", "error")}
        self.table, self.wants, self.busy = [], [], dict.fromkeys(Unit, 0)  # cycles left
        self.coming = []  # beats on their way: (cycle, port, data)
        self.steps = self.progress = self.head = 0

    def chance(self):
        return int(self.rng.random() >= self.stall)

    def run(self):
        sim = Simulator(self.dut)
        sim.add_clock(1e-6)
        sim.add_testbench(self.bench)
        sim.run()
        return self

    async def bench(self, ctx):
        dut, over = self.dut, 0
        ctx.set(dut.stop, self.stop)
        ctx.set(dut.cycles, CYCLES)
        for now in range(LIMIT):
            ctx.set(dut.start, now == 2)
            self.bring(ctx, now)
            for name in ("fetch", "stream", "beats", *STREAMS):
                ctx.set(getattr(dut, name).ready, self.chance())
            ctx.set(dut.array.matmul.ready, self.chance())
            busy = sum(unit for unit, left in self.busy.items() if left)
            ctx.set(dut.busy, busy)
            ctx.set(dut.writer_idle, int(not self.busy[Unit.WRITER]))
            best = self.work.best[max(0, self.steps - 1)]
            ctx.set(dut.best_token, best[ctx.get(dut.best_index)])
            self.busy = {unit: max(0, left - 1) for unit, left in self.busy.items()}
            self.asks(ctx, now)
            self.issues(ctx, busy)
            assert ctx.get(dut.ring_head) >= self.head
            self.head = ctx.get(dut.ring_head)
            self.progress += ctx.get(dut.progress)
            if ctx.get(dut.step_done):
                self.steps += 1
                self.look_at_wants(ctx)
            if error := ctx.get(dut.error):
                self.found["error"].append((Error(error), ctx.get(dut.pc)))
            over += bool(ctx.get(dut.finished) or self.found["error"])
            if over == 60:
                self.rows = [self.row(ctx, n) for n in range(len(self.work.rows))]
                self.job = {name: ctx.get(dut.job[name]) for name, _ in isa.DESCRIPTOR}
                return
            await ctx.tick()
        raise AssertionError(f"no end in {LIMIT} cycles: {self.found}")

    def send(self, now, port, words):
        """Beats of these 32-bit words, from some cycles later on; behind the last one None."""
        at = now + self.rng.randint(1, 20)
        for data in [*self.work.beats(words), None]:
            self.coming.append((at, port, data))
            at += 1 + self.rng.choice([0, 0, self.rng.randrange(4)])

    def bring(self, ctx, now):
        dut, due = self.dut, self.coming and self.coming[0][0] <= now
        _, port, data = self.coming.pop(0) if due else (now, None, None)
        ctx.set(dut.data, self.rng.getrandbits(64) if data is None else data)
        for name, level in (("descriptor", "described"), ("program", "loaded")):
            ctx.set(getattr(dut, name), int(port == name and data is not None))
            if port == name and data is None:
                ctx.set(getattr(dut, level), 1)

    def asks(self, ctx, now):
        """Memory: reads, the weight stream, and the ring's entries."""
        dut, work, rng = self.dut, self.work, self.rng
        if ctx.get(dut.fetch.valid & dut.fetch.ready):
            command = ctx.get(dut.fetch.payload)
            self.found["fetch"].append((command.tag.value, command.offset, command.beats))
            if command.tag == BeatTag.DESCRIPTOR:
                rows = [*work.rows, *[{}] * (self.cfg.max_rows - len(work.rows))]
                words = [work.job[name] for name, _ in isa.DESCRIPTOR]
                words += [0xDEAD_BEEF] * (isa.DESCRIPTOR_WORDS - len(words))
                words += [row.get(name, 0xDEAD_BEEF) for row in rows for name, _ in isa.ROW]
                self.send(now, "descriptor", words)
            elif command.tag == BeatTag.PROGRAM:
                data = b"".join(map(isa.encode, self.program))
                words = [int.from_bytes(data[n : n + 4], "little") for n in range(0, len(data), 4)]
                self.send(now, "program", words)
        if ctx.get(dut.stream.valid & dut.stream.ready):
            command = ctx.get(dut.stream.payload)
            payload = command.offset, command.superblocks, command.repeats
            self.found["stream"].append(payload)
        if ctx.get(dut.beats.valid & dut.beats.ready):
            beat = ctx.get(dut.beats.payload)
            mask = sum(0xFF << 8 * n for n in range(self.cfg.port_bytes) if beat.strb >> n & 1)
            entry = beat.first, beat.last, beat.addr, beat.strb, beat.data & mask
            self.found["ring"].append(entry)
            self.busy[Unit.WRITER] = 1 + rng.choice([0, rng.randrange(30)])

    def issues(self, ctx, busy):
        """Units that take instructions and are busy then; none of those waited for may be."""
        dut, array = self.dut, self.dut.array
        if ctx.get(array.table_en):
            at, entry = ctx.get(array.table_index), ctx.get(array.table)
            self.table[at:] = [(entry.src, entry.dst)]
        taken = []
        for name, unit in STREAMS.items():
            port = getattr(dut, name)
            if ctx.get(port.valid & port.ready):
                payload = ctx.get(port.payload)
                fields = {field: getattr(payload, field) for field, _ in isa.FIELDS}
                taken.append((unit, (name, Instruction(**fields | {"op": Op(fields["op"])}))))
        if ctx.get(array.matmul.valid & array.matmul.ready):
            taken.append((Unit.ARRAY, ("matmul", ctx.get(array.matmul.payload), self.table)))
            self.table = []
        assert len(taken) <= 1
        for unit, what in taken:
            op = what[1].op if unit is not Unit.ARRAY else Op.MATMUL
            assert not busy & (
                isa.shares(op) if unit is Unit.ARRAY else isa.shares(op) | what[1].wait
            )
            self.found["issued"].append(what)
            # A unit is busy from the next cycle on.
            self.busy[unit] = self.rng.choice([1, self.rng.randint(2, 40)])

    def look_at_wants(self, ctx):
        """All entries of the step, through each of the readers."""
        count = ctx.get(self.dut.want_count)
        for index, entry in zip(self.dut.want_index, self.dut.want, strict=True):
            found = []
            for number in range(count):
                ctx.set(index, number)
                want = ctx.get(entry)
                found.append((number, want.row, want.dump, want.addr))
            self.wants.append(found)

    def row(self, ctx, number):
        found = []
        for index, row in zip(self.dut.row_index, self.dut.row, strict=True):
            ctx.set(index, number)
            value = ctx.get(row)
            found.append({name: getattr(value, name) for name, _ in isa.ROW if name != "reserved"})
        assert found.count(found[0]) == READERS
        return found[0]

    def check(self):
        """Everything has happened that must, and nothing else, each thing in its order."""
        work, cfg = self.work, self.cfg
        events, rows = expected(work, lambda n: 0, lambda n: self.stop)

        def of(kind):
            return [event[1:] for event in events if event[0] == kind]

        found = self.found
        assert found["fetch"] == of("fetch") and found["stream"] == of("stream")
        assert found["ring"] == of("ring")
        assert [code for code, _ in found["error"]] == [code for (code,) in of("error")]
        steps = of("issue")
        assert self.steps == len(steps)
        wants = self._wants(events)
        assert self.wants == [entries for entries in wants for _ in range(READERS)]
        want = []
        for entries in wants:
            wanted = [row for _, row, _, _ in entries]
            want += issued(cfg, self.program, len(rows), wanted)
        assert len(found["issued"]) == len(want)
        for got, wanted in zip(found["issued"], want, strict=True):
            if wanted[0] == "matmul":
                name, command, table = got
                command = {field: getattr(command, field) for field in wanted[1]}
                assert (name, command) == wanted[:2] and wanted[2] in (None, table)
            else:
                assert got == wanted
        assert self.progress == len(steps) * (len(self.program) - 1)
        if not found["error"]:
            assert self.head == len(steps)
        assert self.job == work.job
        if not work.bad:
            assert self.rows == [
                {**row, "position": row["position"] & 0xFFFF, "flags": row["flags"] & 255}
                for row in ({k: v for k, v in row.items() if k != "reserved"} for row in rows)
            ]

    def _wants(self, events):
        """The entries of the table of wanted rows, by step that was begun."""
        steps, entries = [], []
        for kind, *event in events:
            if kind == "want":
                entries.append(tuple(event))
            elif kind == "issue":
                steps.append(entries)
                entries = []
        return steps


@ALL
@pytest.mark.parametrize("seed", range(5))
def test_a_job_runs_its_program_for_every_step(cfg, seed):
    system = System(cfg, seed).run()
    system.check()
    assert system.found["issued"] or all(i.want for i in system.program[:-1])


@ALL
def test_stop_ends_it_after_the_current_step(cfg):
    seeds = (seed for seed in range(99) if Work(cfg, seed).job["steps"] > 1)
    system = System(cfg, next(seeds), stop=True).run()
    system.check()
    assert system.steps == 1


@pytest.mark.parametrize("fault", ["magic", "rows", "head_bytes", "position"])
def test_a_job_that_cannot_run_says_why(fault):
    system = System(preset("tiny"), 7, fault).run()
    system.check()
    code = Error.CONTEXT if fault == "position" else Error.DESCRIPTOR
    assert [error for error, _ in system.found["error"]] == [code]
    assert not system.found["ring"] and not system.found["issued"]


def test_an_illegal_instruction_is_named_by_pc():
    legal = Instruction(op=Op.SWIGLU)
    program = [legal, legal, Instruction(op=Op.END)]  # behind its end is another
    system = System(preset("tiny"), 3, program=program)
    system.work.job["program_words"] = 2
    system.run()
    assert system.found["error"] == [(Error.ILLEGAL, 2)]
    assert [name for name, _ in system.found["issued"]] == ["vector"] * 2
    assert not system.found["ring"] and system.steps == 0


def test_rows_that_have_ended_get_no_token():
    """All rows stop at once: the first step is the last one."""
    cfg = preset("tiny")
    system = System(cfg, 11)
    job = system.work.job
    flags = int(isa.RowFlag.WANT_LOGITS | isa.RowFlag.STOP)
    for row in system.work.rows:
        row.update(flags=flags, position=0, kv_row=row["kv_slot"])
    job |= {"steps": 4, "stop2": 77, "stop0": NO_TOKEN}
    system.work.best = [[77] * cfg.max_rows] * 4
    system.run().check()
    assert system.steps == 1 and {row["token"] for row in system.rows} == {77}
