"""ATTEND: what the array and the softmax are told, job by job of what AttentionPlan cut."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from tokenfabric.core.config import FabricConfig
from tokenfabric.rtl.layouts import (
    ADDRESS_BITS,
    CHUNK_BITS,
    MatmulDest,
    MatmulKind,
    count_shape,
    fetch_command,
    index_shape,
    instruction_layout,
    kv_command,
    matmul_command,
    row_record,
    softmax_command,
    table_entry,
)
from tokenfabric.rtl.mac import multiply
from tokenfabric.rtl.memory import Fifo
from tokenfabric.rtl.plan import AttentionPlan, attention_job

__all__ = ["AttentionControl", "JobPasses", "PairTable", "PassCommands", "table_command"]


def table_command(cfg: FabricConfig) -> data.StructLayout:
    """Pairs of rows ``first .. first + rows - 1`` with ``heads`` heads from ``head`` on.

    In chunks: head 0 of row 0 is at ``base``, rows are ``stride`` apart, heads ``step``.
    """
    return data.StructLayout(
        {
            "first": index_shape(cfg),
            "rows": count_shape(cfg),
            "head": unsigned(8),
            "heads": unsigned(8),
            "base": unsigned(CHUNK_BITS),
            "stride": unsigned(12),
            "step": unsigned(8),
            "for_v": unsigned(1),
        }
    )


class PassCommands(wiring.Component):
    """What the units are told in a pass of a job: with K for the scores, with V for the result.

    Combinational.

    Members
    -------
    instruction : in, instruction_layout
    job : in, attention_job
    for_v : in, 1 bit, the pass
    pairs : in, count_shape, the job's (row, query head) pairs
    table : out, table_command: where the pairs' q is, or where their results go
    matmul : out, matmul_command
    softmax : out, softmax_command, of the pass with K
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "instruction": In(instruction_layout()),
                "job": In(attention_job(cfg)),
                "for_v": In(1),
                "pairs": In(count_shape(cfg)),
                "table": Out(table_command(cfg)),
                "matmul": Out(matmul_command(cfg)),
                "softmax": Out(softmax_command(cfg)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg, cmd, job, for_v = self.cfg, self.instruction, self.job, self.for_v
        r, c = (cfg.rows - 1).bit_length(), (cfg.cols - 1).bit_length()
        kc = r - c
        row_blocks = (job.positions + (cfg.rows - 1)) >> r
        column_blocks = (job.positions + (cfg.cols - 1)) >> c
        dim_blocks = (cmd.head_chunks + (cfg.k_chunks - 1)) >> kc
        dim_tail = ((cmd.head_chunks - 1) & (cfg.k_chunks - 1)) + 1
        pitch = Signal(8)  # chunks from head to head of q: whole row-blocks
        table, matmul, softmax = self.table, self.matmul, self.softmax
        m.d.comb += [
            pitch.eq(dim_blocks << kc),
            table.first.eq(job.first),
            table.rows.eq(job.rows),
            table.head.eq(job.head),
            table.heads.eq(job.heads),
            table.base.eq(Mux(for_v, cmd.dst, cmd.src)),
            table.stride.eq(Mux(for_v, cmd.dst_stride, cmd.src_stride)),
            table.step.eq(Mux(for_v, cmd.head_chunks, pitch)),
            table.for_v.eq(for_v),
            matmul.kind.eq(Mux(for_v, MatmulKind.V, MatmulKind.K)),
            matmul.m.eq(self.pairs),
            matmul.k.eq(Mux(for_v, row_blocks, dim_blocks)),
            matmul.n.eq(Mux(for_v, cmd.head_chunks, column_blocks)),
            matmul.tail.eq(Mux(for_v, cfg.k_chunks, dim_tail)),
            matmul.shift.eq(cmd.shift),
            matmul.bits.eq(1),
            matmul.dest.eq(Mux(for_v, MatmulDest.ATT, MatmulDest.SCORES)),
            matmul.sat.eq(cmd.sat + for_v),
            softmax.m.eq(self.pairs),
            softmax.blocks.eq(row_blocks),
            softmax.align.eq(cmd.shift2),
        ]
        return m


class PairTable(wiring.Component):
    """Writes MatmulEngine's table of (row, query head) pairs, which are numbered row by row.

    A command of n pairs is taken in its cycle 4 + n, n entries in the last n of them. An entry
    needs only one address: where the pair's q is, or, with ``for_v``, where its result goes, and
    then the operand is its row of SCORES.

    Members
    -------
    i : stream of table_command, in
    row_index, row : out, index_shape / in, row_record: that row of the table, in the same cycle
    en, index, entry : out, 1 bit, index_shape, table_entry: a write of the table
    pairs : out, count_shape: of the last command, from the cycle after it was taken
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "i": In(stream.Signature(table_command(cfg))),
                "row_index": Out(index_shape(cfg)),
                "row": In(row_record(cfg)),
                "en": Out(1),
                "index": Out(index_shape(cfg)),
                "entry": Out(table_entry(cfg)),
                "pairs": Out(count_shape(cfg)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg, want = self.cfg, self.i.payload
        row, head = Signal(count_shape(cfg)), Signal(8)
        at, row_at = Signal(CHUNK_BITS), Signal(CHUNK_BITS)
        first, offset = Signal(CHUNK_BITS), Signal(CHUNK_BITS)
        last_head, last_row = head + 1 == want.heads, row + 1 == want.rows
        score_bits = (cfg.max_context // cfg.cols - 1).bit_length()
        scores = Cat(Const(0, score_bits), self.index)
        m.d.comb += [
            self.row_index.eq(want.first + row),
            self.entry.src.eq(Mux(want.for_v, scores, at)),
            self.entry.dst.eq(at),
            self.entry.limit.eq(self.row.position),
        ]
        with m.FSM():
            with m.State("BEGIN"), m.If(self.i.valid):
                # Rows ascend by one stride each; a job begins at its first row and head.
                settle = Signal(2)  # products, their sum, its copy
                m.d.sync += [
                    row.eq(0),
                    head.eq(0),
                    self.index.eq(0),
                    settle.eq(settle + 1),
                    first.eq(multiply(want.head, want.step)),
                    offset.eq(want.base + multiply(want.first, want.stride)),
                    row_at.eq(offset + first),
                    at.eq(row_at),
                ]
                with m.If(settle == 3):
                    m.next = "WRITE"
            with m.State("WRITE"):
                m.d.comb += self.en.eq(1)
                m.d.sync += [
                    self.index.eq(self.index + 1),
                    self.pairs.eq(self.index + 1),
                    head.eq(Mux(last_head, 0, head + 1)),
                    at.eq(at + want.step),
                ]
                with m.If(last_head):
                    m.d.sync += [
                        row.eq(row + 1),
                        row_at.eq(row_at + want.stride),
                        at.eq(row_at + want.stride),
                    ]
                    with m.If(last_row):
                        m.d.comb += self.i.ready.eq(1)
                        m.next = "BEGIN"
        return m


class JobPasses(wiring.Component):
    """The order of an ATTEND: of each job table, scores and softmax, then table and product with V.

    V's table is written while the softmax still runs. The end of one command and the ``valid`` of
    the next are a cycle apart.

    Members
    -------
    cmd : stream of instruction_layout, in; not taken while ``busy``
    busy : out, 1 bit
    instruction : out, instruction_layout, the one that runs
    jobs : stream of attention_job, in; taken when its second product is complete
    for_v : out, 1 bit, the pass; rises while the softmax's command, the same in both, is offered
    table_valid, table_ready : out, in, 1 bit: the table of the pass is to be written; is written
    matmul_valid, matmul_ready : out, in, 1 bit: command of the pass
    matmul_busy : in, 1 bit, from the cycle after a command was taken
    softmax_valid, softmax_ready : out, in, 1 bit: command
    softmax_busy : in, 1 bit, as ``matmul_busy``
    """

    def __init__(self, cfg: FabricConfig):
        super().__init__(
            {
                "cmd": In(stream.Signature(instruction_layout())),
                "busy": Out(1),
                "instruction": Out(instruction_layout()),
                "jobs": In(stream.Signature(attention_job(cfg))),
                "for_v": Out(1),
                "table_valid": Out(1),
                "table_ready": In(1),
                "matmul_valid": Out(1),
                "matmul_ready": In(1),
                "matmul_busy": In(1),
                "softmax_valid": Out(1),
                "softmax_ready": In(1),
                "softmax_busy": In(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        with m.FSM() as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("IDLE"))
            with m.State("IDLE"):
                m.d.comb += self.cmd.ready.eq(1)
                m.d.sync += self.instruction.eq(self.cmd.payload)
                with m.If(self.cmd.valid):
                    m.next = "JOB"
            with m.State("JOB"):
                m.d.sync += self.for_v.eq(0)
                with m.If(self.jobs.valid):
                    m.next = "TABLE"
            with m.State("TABLE"):
                m.d.comb += self.table_valid.eq(1)
                with m.If(self.table_ready):
                    m.next = "MATMUL"
            with m.State("MATMUL"):
                m.d.comb += self.matmul_valid.eq(~(self.for_v & self.softmax_busy))
                with m.If(self.matmul_valid & self.matmul_ready):
                    m.next = "MULTIPLY"
            with m.State("MULTIPLY"), m.If(~self.matmul_busy):
                m.next = "SOFTMAX"
                with m.If(self.for_v):
                    m.d.comb += self.jobs.ready.eq(1)
                    m.next = "JOB"
                    with m.If(self.jobs.payload.last):
                        m.next = "IDLE"
            with m.State("SOFTMAX"):
                m.d.comb += self.softmax_valid.eq(1)
                m.d.sync += self.for_v.eq(1)
                with m.If(self.softmax_ready):
                    m.next = "TABLE"
        return m


class AttentionControl(wiring.Component):
    """Runs ATTEND: for each job scores, softmax and the product with V, one after the other.

    While it is ``busy`` it owns MatmulEngine, the row table of MatmulEngine and SoftmaxUnit.
    A row of a job is a (row, query head) pair; pairs are numbered row by row.

    Members
    -------
    cmd : stream of instruction_layout, in; not taken while ``busy``
    busy : out, 1 bit, from the cycle after ``cmd`` was taken to the end of the last product
    rows : in, count_shape, rows in the table; steady while ``busy``, as are the descriptor's values
    row_index, row : out, index_shape / in, row_record: that row of the table, in the same cycle
    plan_index, plan_row : as these, for what runs ahead
    v_offset, kv_head, scale_head : in, ADDRESS_BITS, bytes: from K to V, from KV head to KV head in
        K (and V), in the K scales
    fetch : stream of fetch_command, out
    kv : stream of kv_command, out
    matmul : stream of matmul_command, out
    matmul_busy : in, 1 bit, from the cycle after a command was taken to the end of all it does
    table_en, table_index, table : out, 1 bit, index_shape, table_entry: a write of the row table
    softmax : stream of softmax_command, out
    softmax_busy : in, 1 bit, from the cycle after a command was taken
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "cmd": In(stream.Signature(instruction_layout())),
                "busy": Out(1),
                "rows": In(count_shape(cfg)),
                "row_index": Out(index_shape(cfg)),
                "row": In(row_record(cfg)),
                "plan_index": Out(index_shape(cfg)),
                "plan_row": In(row_record(cfg)),
                "v_offset": In(ADDRESS_BITS),
                "kv_head": In(ADDRESS_BITS),
                "scale_head": In(ADDRESS_BITS),
                "fetch": Out(stream.Signature(fetch_command(cfg))),
                "kv": Out(stream.Signature(kv_command(cfg))),
                "matmul": Out(stream.Signature(matmul_command(cfg))),
                "matmul_busy": In(1),
                "table_en": Out(1),
                "table_index": Out(index_shape(cfg)),
                "table": Out(table_entry(cfg)),
                "softmax": Out(stream.Signature(softmax_command(cfg))),
                "softmax_busy": In(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg = self.cfg
        m.submodules.plan = plan = AttentionPlan(cfg)
        m.submodules.jobs = jobs = Fifo(attention_job(cfg), 4)
        m.submodules.passes = passes = JobPasses(cfg)
        m.submodules.commands = commands = PassCommands(cfg)
        m.submodules.pairs = pairs = PairTable(cfg)
        connect(m, plan.jobs, jobs.i)
        connect(m, plan.fetch, flipped(self.fetch))
        connect(m, plan.kv, flipped(self.kv))
        connect(m, jobs.o, passes.jobs)
        m.d.comb += [
            plan.rows.eq(self.rows),
            self.plan_index.eq(plan.row_index),
            plan.row.eq(self.plan_row),
            plan.v_offset.eq(self.v_offset),
            plan.kv_head.eq(self.kv_head),
            plan.scale_head.eq(self.scale_head),
            # Both take the instruction in the same cycle.
            self.cmd.ready.eq(passes.cmd.ready & plan.cmd.ready),
            passes.cmd.valid.eq(self.cmd.valid & plan.cmd.ready),
            plan.cmd.valid.eq(self.cmd.valid & passes.cmd.ready),
            passes.cmd.payload.eq(self.cmd.payload),
            plan.cmd.payload.eq(self.cmd.payload),
            self.busy.eq(passes.busy),
        ]
        m.d.comb += [
            commands.instruction.eq(passes.instruction),
            commands.job.eq(jobs.o.payload),
            commands.for_v.eq(passes.for_v),
            commands.pairs.eq(pairs.pairs),
            pairs.i.valid.eq(passes.table_valid),
            pairs.i.payload.eq(commands.table),
            passes.table_ready.eq(pairs.i.ready),
            self.row_index.eq(pairs.row_index),
            pairs.row.eq(self.row),
            self.table_en.eq(pairs.en),
            self.table_index.eq(pairs.index),
            self.table.eq(pairs.entry),
        ]
        for name, payload in (("matmul", commands.matmul), ("softmax", commands.softmax)):
            port = getattr(self, name)
            m.d.comb += [
                port.valid.eq(getattr(passes, f"{name}_valid")),
                port.payload.eq(payload),
                getattr(passes, f"{name}_ready").eq(port.ready),
                getattr(passes, f"{name}_busy").eq(getattr(self, f"{name}_busy")),
            ]
        return m
