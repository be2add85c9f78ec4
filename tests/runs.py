"""Runs of the sequencer's Steps: random jobs, what must happen in which order, and a bench."""

from __future__ import annotations

import random
from hashlib import sha256

from amaranth.sim import Simulator
from tokenfabric.core import isa
from tokenfabric.core.isa import RowFlag
from tokenfabric.core.registers import Error
from tokenfabric.rtl.layouts import BeatTag

NO_TOKEN = 0xFFFFFFFF
WORD = 0xFFFFFFFF
CYCLES = 1000  # what the cycle counter shows in the first cycle of a test
CHANGED = ("token", "position", "kv_row")  # words of a row that are different in the next step

# What a descriptor must not say.
FAULTS = {
    "magic": lambda cfg, job: job["magic"] ^ 1 << 31,
    "no rows": lambda cfg, job: 0,
    "rows": lambda cfg, job: cfg.max_rows + 1,
    "steps": lambda cfg, job: 0,
    "no program_words": lambda cfg, job: 0,
    "program_words": lambda cfg, job: cfg.program_words + 1,
    "odd head_bytes": lambda cfg, job: job["head_bytes"] - 1,
    "head_bytes": lambda cfg, job: cfg.max_head_dim + cfg.cols,
    "context": lambda cfg, job: cfg.max_context + 1,
}


class Job:
    """A random job; ``fault``: one of FAULTS, or "position": the first step passes the context."""

    def __init__(self, cfg, seed, fault=None):
        rng = random.Random(seed)
        job = {name: rng.getrandbits(32) for name, _ in isa.DESCRIPTOR}
        job |= {
            "magic": isa.DESCRIPTOR_MAGIC,
            "program_words": rng.randint(1, cfg.program_words),
            "head_bytes": cfg.cols * rng.randint(1, cfg.max_head_dim // cfg.cols),
            "rows": rng.choice([1, cfg.max_rows, rng.randint(1, cfg.max_rows)]),
            "steps": rng.randint(1, 4),
            "context": rng.randint(16, cfg.max_context),
            "ring": rng.getrandbits(32) & ~7,
        }
        job |= {f"stop{i}": rng.choice([NO_TOKEN, i, i + 4]) for i in range(4)}
        flags = rng.choice([None, RowFlag.WANT_LOGITS | RowFlag.STOP])  # of all rows alike
        self.rows = []
        for _ in range(job["rows"]):
            position = rng.choice([rng.randrange(job["context"]), max(0, job["context"] - 3)])
            kv_slot = rng.getrandbits(32)
            self.rows.append(
                {
                    "token": rng.getrandbits(32),
                    "position": position,
                    "flags": int(flags) if flags is not None else rng.getrandbits(8),
                    "slot": rng.getrandbits(8),
                    "kv_slot": kv_slot,
                    "scale_slot": rng.getrandbits(32),
                    "kv_row": (kv_slot + position * job["head_bytes"]) & WORD,
                    "reserved": 0,
                }
            )
        if fault == "position":
            rng.choice(self.rows)["position"] = rng.choice([job["context"], 0xFFFF])
        elif fault:
            job[fault.split()[-1]] = FAULTS[fault](cfg, job)
        # Chosen tokens, by step and number among the rows that want logits.
        self.best = [
            [rng.choice([rng.randrange(8), rng.getrandbits(32)]) for _ in range(cfg.max_rows)]
            for _ in range(4)
        ]
        self.cfg, self.job = cfg, job
        self.bad = fault in FAULTS

    def beats(self, words):
        """``words`` (a list) cut into beats of a port, as numbers."""
        size = self.cfg.port_bytes // 4
        return [
            sum(word << 32 * i for i, word in enumerate(words[at : at + size]))
            for at in range(0, len(words), size)
        ]


def ring_beats(cfg, address, token, cycles):
    """What the Writer gets for an entry: (first, last, addr, strobes, the strobed bytes)."""
    if cfg.port_bytes == 4:
        return [(1, 0, address, 0xF, token), (0, 1, address, 0xF, cycles(1))]
    at = address % cfg.port_bytes
    return [(1, 1, address, 0xFF << at, (token | cycles(0) << 32) << 8 * at)]


def row_writes(cfg, number, row):
    """The beats of row ``number`` in which something has changed: (addr, data)."""
    words = [row[name] for name, _ in isa.ROW]
    size = cfg.port_bytes // 4
    changed = sorted({[name for name, _ in isa.ROW].index(name) // size for name in CHANGED})
    return [
        (
            number * isa.ROW_WORDS // size + beat,
            sum(word << 32 * i for i, word in enumerate(words[beat * size : (beat + 1) * size])),
        )
        for beat in changed
    ]


def expected(work, cycle_of, stopped):
    """The events of a run in order, and its rows afterwards.

    ``cycle_of(n)``: when the n-th event came; ``stopped(n)``: ``stop`` was high in the cycle after
    it.
    """
    cfg, job, rows = work.cfg, work.job, [dict(row) for row in work.rows]
    words = isa.DESCRIPTOR_WORDS + cfg.max_rows * isa.ROW_WORDS
    events = [("fetch", BeatTag.DESCRIPTOR.value, isa.JOB, words * 4 // cfg.port_bytes)]
    if work.bad:
        return [*events, ("error", Error.DESCRIPTOR.value)], rows
    program_beats = job["program_words"] * isa.INSTRUCTION_BYTES // cfg.port_bytes
    events.append(("fetch", BeatTag.PROGRAM.value, job["program"], program_beats))
    ring, logits, ended = job["ring"], job["logits"], set()
    for step in range(job["steps"]):
        wants = 0
        for number, row in enumerate(rows):
            if row["position"] >= job["context"]:
                return [*events, ("error", Error.CONTEXT.value)], rows
            rope = job["rope"] + 2 * (row["kv_row"] - row["kv_slot"])
            beats = 2 * job["head_bytes"] // cfg.port_bytes
            events.append(("fetch", BeatTag.ROPE.value, rope & WORD, beats))
            if row["flags"] & RowFlag.WANT_LOGITS:
                dumps = int(bool(row["flags"] & RowFlag.DUMP_LOGITS))
                events.append(("want", wants, number, dumps, logits))
                wants += 1
                logits = (logits + dumps * job["logits_stride"]) & WORD
        if step == 0:
            superblocks = job["stream_full" if wants else "stream_body"]
            events.append(("stream", job["stream"], superblocks, job["steps"]))
        events.append(("issue", wants))
        want = 0
        for number, row in enumerate(rows):
            token = NO_TOKEN
            if row["flags"] & RowFlag.WANT_LOGITS:
                if number not in ended:
                    token = row["token"] = work.best[step][want]
                want += 1
            at = len(events)
            cycles = lambda n, at=at: CYCLES + cycle_of(at + n)  # noqa: E731
            events += [("ring", *beat) for beat in ring_beats(cfg, ring, token, cycles)]
            ring = (ring + 8) & WORD
            if token in {job[f"stop{i}"] for i in range(4)} - {NO_TOKEN}:
                if row["flags"] & RowFlag.STOP:
                    ended.add(number)
            row["position"] += 1
            row["kv_row"] = (row["kv_row"] + job["head_bytes"]) & WORD
            events += [("row", *write) for write in row_writes(cfg, number, row)]
        if stopped(len(events) - 1) or len(ended) == len(rows):
            break
    return [*events, ("finished",)], rows


class Run:
    """Lets ``Steps`` do a job among units that stall; ``stop_at``: the cycle, from there on."""

    def __init__(self, dut, work, seed, stop_at=None):
        self.dut, self.work, self.rng = dut, work, random.Random(seed)
        self.stall = self.rng.choice([0, 0.3, 0.8])
        self.stop_at = 1 << 30 if stop_at is None else stop_at
        self.events, self.cycles = [], []
        self.words = [[row[name] for name, _ in isa.ROW] for row in work.rows]
        self.words += [[0xDEADBEEF] * isa.ROW_WORDS] * (work.cfg.max_rows - len(work.rows))
        self.words = [word for row in self.words for word in row]

    def run(self, limit=6000):
        self.limit = limit
        sim = Simulator(self.dut)
        sim.add_clock(1e-6)
        sim.add_testbench(self.bench)
        sim.run()
        return self

    def check(self):
        """Everything has happened that must, and nothing else."""
        cycle_of = lambda n: self.cycles[n] if n < len(self.cycles) else 0  # noqa: E731
        events, rows = expected(self.work, cycle_of, lambda n: cycle_of(n) + 1 >= self.stop_at)
        assert self.events == events
        names = [name for name, _ in isa.ROW]
        assert self.words[: isa.ROW_WORDS * len(rows)] == [row[n] for row in rows for n in names]

    def fingerprint(self):
        """Of what happened in which cycle."""
        return sha256(repr(list(zip(self.cycles, self.events))).encode()).hexdigest()

    def happens(self, now, *event):
        self.events.append(event)
        self.cycles.append(now)

    def chance(self):
        return int(self.rng.random() >= self.stall)

    def later(self, now):
        return now + self.rng.choice([1, 2, self.rng.randint(3, 30)])

    def look_up(self, ctx, step):
        """The tables answer in the same cycle."""
        dut, at = self.dut, isa.ROW_WORDS * ctx.get(self.dut.row_index)
        row = dict(zip([name for name, _ in isa.ROW], self.words[at : at + isa.ROW_WORDS]))
        del row["reserved"]
        ctx.set(dut.row, {**row, "position": row["position"] & 0xFFFF, "flags": row["flags"] & 255})
        ctx.set(dut.best_token, self.work.best[step][ctx.get(dut.best_index)])

    async def bench(self, ctx):
        dut, cfg, job = self.dut, self.work.cfg, self.work.job
        described = loaded = issue_done = None  # when
        step = over = head = stepped = writes = 0
        answers, held = [], {}  # when the writes are through; what waits in a stream
        writes_per_step = len(self.work.rows) * len(row_writes(cfg, 0, self.work.rows[0]))
        finished = False
        ctx.set(dut.job, {"magic": self.rng.getrandbits(32)})
        for now in range(self.limit):
            ctx.set(dut.start, now == 2)
            ctx.set(dut.stop, now >= self.stop_at)
            ctx.set(dut.cycles, CYCLES + now)
            for stream in (dut.fetch, dut.stream, dut.beats):
                ctx.set(stream.ready, self.chance())
            if described == now:
                ctx.set(dut.job, job)
                ctx.set(dut.described, 1)
            if loaded == now:
                ctx.set(dut.loaded, 1)
            ctx.set(dut.issue_done, issue_done == now)
            answers = [at for at in answers if at > now]
            idle = int(not answers and (self.stall == 0 or self.rng.random() > 0.2))
            ctx.set(dut.writer_idle, idle)
            self.look_up(ctx, max(0, step - 1))

            assert ctx.get(dut.ring_head) == head
            head = stepped if idle else head
            payloads = {}
            for name in ("fetch", "stream", "beats"):
                port = getattr(dut, name)
                valid, ready = ctx.get(port.valid), ctx.get(port.ready)
                payload = self.payload(ctx, port.payload) if valid else None
                if name in held:
                    same = payload[:-1] == held[name][:-1] if payload else False
                    assert same, f"{name} changed or dropped before taken"
                held.pop(name, None)
                if valid and not ready:
                    held[name] = payload
                elif valid:
                    payloads[name] = payload
            if "fetch" in payloads:
                self.happens(now, "fetch", *payloads["fetch"])
                if payloads["fetch"][0] == BeatTag.DESCRIPTOR.value:
                    described = self.later(now)
                if payloads["fetch"][0] == BeatTag.PROGRAM.value:
                    loaded = self.later(now) + self.rng.choice([0, 40])
            if ctx.get(dut.want_en):
                entry = ctx.get(dut.want_entry)
                at = ctx.get(dut.want_addr)
                self.happens(now, "want", at, entry.row, entry.dump, entry.addr)
            if "stream" in payloads:
                self.happens(now, "stream", *payloads["stream"])
            if ctx.get(dut.issue_start):
                assert loaded is not None and loaded <= now
                self.happens(now, "issue", ctx.get(dut.want_count))
                issue_done, step = self.later(now), step + 1
            if "beats" in payloads:
                self.happens(now, "ring", *payloads["beats"])
                answers.append(now + 1 + self.rng.choice([0, 0, self.rng.randint(1, 40)]))
            if ctx.get(dut.rows_w.en):
                self.row_write(now, ctx.get(dut.rows_w.addr), ctx.get(dut.rows_w.data))
                writes += 1
                stepped += writes % writes_per_step == 0
            if error := ctx.get(dut.error):
                self.happens(now, "error", error)
            if ctx.get(dut.finished) and not finished:
                assert idle or not answers
                assert head == stepped
                self.happens(now, "finished")
                finished = True
            assert ctx.get(dut.finished) == finished
            over += finished or bool(self.events and self.events[-1][0] == "error")
            if over == 20:
                return
            await ctx.tick()
        raise AssertionError(f"no end in {self.limit} cycles: {self.events[-3:]}")

    def payload(self, ctx, port):
        """As numbers; of the ring's beats the strobed bytes, which may change while they wait."""
        value = ctx.get(port)
        names = list(port.shape().members)
        if "strb" not in names:
            if "tag" in names:
                return (int(value.tag.value), value.offset, value.beats)
            return tuple(getattr(value, name) for name in names)
        mask = sum(0xFF << 8 * i for i in range(len(port.strb)) if value.strb >> i & 1)
        return (value.first, value.last, value.addr, value.strb, value.data & mask)

    def row_write(self, now, addr, data):
        self.happens(now, "row", addr, data)
        size = self.work.cfg.port_bytes // 4
        for i in range(size):
            self.words[addr * size + i] = data >> 32 * i & WORD
