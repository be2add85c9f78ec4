"""The loops of the ATTEND instruction over slots, KV heads and query heads."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.config import FabricConfig
from tokenfabric.rtl.layouts import (
    ADDRESS_BITS,
    CHUNK_BITS,
    BeatTag,
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

__all__ = ["AttentionControl", "AttentionPlan", "attention_job"]


def attention_job(cfg: FabricConfig) -> data.StructLayout:
    """Rows ``first .. first + rows - 1`` with ``heads`` query heads from ``head`` on, all of one KV
    head, over ``positions`` positions."""
    return data.StructLayout(
        {
            "first": index_shape(cfg),
            "rows": count_shape(cfg),
            "head": unsigned(8),
            "heads": unsigned(8),
            "positions": unsigned(16),
            "last": unsigned(1),
        }
    )


class AttentionPlan(wiring.Component):
    """Cuts an ATTEND into jobs and sends for the K scales, K and V of each, ahead of the compute.

    A job is handed out before its data are sent for: K alone may be more than its buffer holds.

    Rows that stand together in one slot form a group. If rows x group fits ``max_rows``, one job
    does all query heads of a KV head with one pass over K and V; otherwise one job per query head.
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "cmd": In(stream.Signature(instruction_layout())),
                "rows": In(count_shape(cfg)),
                "row_index": Out(index_shape(cfg)),
                "row": In(row_record(cfg)),
                "v_offset": In(ADDRESS_BITS),
                "kv_head": In(ADDRESS_BITS),
                "scale_head": In(ADDRESS_BITS),
                "fetch": Out(stream.Signature(fetch_command(cfg))),
                "kv": Out(stream.Signature(kv_command(cfg))),
                "jobs": Out(stream.Signature(attention_job(cfg))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg = self.cfg
        cmd = Signal(instruction_layout())
        first, count = Signal(index_shape(cfg)), Signal(count_shape(cfg))
        slot, pairs = Signal(8), Signal(16)  # pairs: rows of the group x query heads per KV head
        positions, beats = Signal(16), Signal(24)
        kv_at, scale_at = Signal(ADDRESS_BITS), Signal(ADDRESS_BITS)
        query, kv_heads_left, heads_left = Signal(8), Signal(8), Signal(8)  # after this one
        together = Signal()
        following = Signal(count_shape(cfg))  # first + count
        m.d.comb += [
            together.eq(pairs <= cfg.max_rows),
            self.row_index.eq(following),
        ]
        # Every field that does not depend on the state is driven all the time.
        low = (cfg.cols - 1).bit_length()
        scale_beats = ((positions + (cfg.cols - 1)) >> low) << 1
        job = self.jobs.payload
        m.d.comb += [
            self.kv.payload.positions.eq(positions),
            self.kv.payload.head_chunks.eq(cmd.head_chunks),
            job.first.eq(first),
            job.rows.eq(count),
            job.head.eq(query),
            job.heads.eq(Mux(together, cmd.group, 1)),
            job.positions.eq(positions),
        ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.cmd.ready.eq(1)
                m.d.sync += [cmd.eq(self.cmd.payload), following.eq(0), count.eq(0)]
                m.d.sync += first.eq(0)
                with m.If(self.cmd.valid):
                    m.next = "GROUP"
            with m.State("GROUP"):  # one row per cycle, while it belongs to the group
                begin = count == 0
                with m.If(begin | ((following != self.rows) & (self.row.slot == slot))):
                    m.d.sync += [
                        count.eq(count + 1),
                        following.eq(following + 1),
                        pairs.eq(Mux(begin, cmd.group, pairs + cmd.group)),
                        positions.eq(self.row.position + 1),
                        slot.eq(self.row.slot),
                    ]
                    with m.If(begin):
                        m.d.sync += [
                            kv_at.eq(cmd.imm + self.row.kv_slot),
                            scale_at.eq(cmd.imm2 + self.row.scale_slot),
                        ]
                with m.Else():
                    m.d.sync += [
                        query.eq(0),
                        kv_heads_left.eq(cmd.heads - 1),
                        heads_left.eq(cmd.group - 1),
                    ]
                    m.d.sync += beats.eq(multiply(positions, cmd.head_chunks))
                    m.next = "JOB"
            head_done = together | (heads_left == 0)
            heads_done = head_done & (kv_heads_left == 0)
            with m.State("JOB"):  # first: K may not fit the buffer before the job consumes it
                m.d.comb += [
                    self.jobs.valid.eq(1),
                    job.last.eq(heads_done & (following == self.rows)),
                ]
                with m.If(self.jobs.ready):
                    m.next = "SCALE"
            with m.State("SCALE"):
                m.d.comb += [
                    self.fetch.valid.eq(1),
                    self.fetch.payload.tag.eq(BeatTag.SCALE),
                    self.fetch.payload.offset.eq(scale_at),
                    self.fetch.payload.beats.eq(scale_beats),
                ]
                with m.If(self.fetch.ready):
                    m.next = "K-BUFFER"
            for name, is_v, after in (("K", 0, "V-BUFFER"), ("V", 1, "HEAD")):
                with m.State(f"{name}-BUFFER"):
                    m.d.comb += [self.kv.valid.eq(1), self.kv.payload.is_v.eq(is_v)]
                    with m.If(self.kv.ready):
                        m.next = f"{name}-FETCH"
                with m.State(f"{name}-FETCH"):
                    m.d.comb += [
                        self.fetch.valid.eq(1),
                        self.fetch.payload.tag.eq(BeatTag.KV),
                        self.fetch.payload.offset.eq(kv_at + (self.v_offset if is_v else 0)),
                        self.fetch.payload.beats.eq(beats),
                    ]
                    with m.If(self.fetch.ready):
                        m.next = after
            with m.State("HEAD"):  # to the next query head, KV head or group
                m.next = "JOB"
                m.d.sync += [query.eq(query + job.heads), heads_left.eq(heads_left - 1)]
                with m.If(head_done):
                    m.d.sync += [
                        heads_left.eq(cmd.group - 1),
                        kv_heads_left.eq(kv_heads_left - 1),
                        kv_at.eq(kv_at + self.kv_head),
                        scale_at.eq(scale_at + self.scale_head),
                    ]
                with m.If(heads_done):
                    m.d.sync += [first.eq(following), count.eq(0)]
                    m.next = "GROUP"
                    with m.If(following == self.rows):
                        m.next = "IDLE"
        return m


class AttentionControl(wiring.Component):
    """Runs ATTEND: for each job scores, softmax and the product with V, one after the other.

    While it is ``busy`` it owns MatmulEngine, the row table of MatmulEngine and SoftmaxUnit.
    A row of a job is a (row, query head) pair; pairs are numbered row by row.

    Members: ``cmd`` (In), ``busy``; row look-up ``rows``, ``row_index``, ``row``; descriptor values
    ``v_offset``, ``kv_head``, ``scale_head``; ``fetch``, ``kv`` (Out); ``matmul``, ``matmul_busy``;
    ``table_en``, ``table_index``, ``table``; ``softmax``, ``softmax_busy``.
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
        wiring.connect(m, plan.jobs, jobs.i)
        wiring.connect(m, plan.fetch, wiring.flipped(self.fetch))
        wiring.connect(m, plan.kv, wiring.flipped(self.kv))
        m.d.comb += [
            plan.rows.eq(self.rows),
            self.plan_index.eq(plan.row_index),
            plan.row.eq(self.plan_row),
            plan.v_offset.eq(self.v_offset),
            plan.kv_head.eq(self.kv_head),
            plan.scale_head.eq(self.scale_head),
            plan.cmd.payload.eq(self.cmd.payload),
        ]
        cmd, job = Signal(instruction_layout()), jobs.o.payload
        # The table of (row, head) pairs: pair number, row and head of the pair, addresses.
        pair, pairs = Signal(index_shape(cfg)), Signal(count_shape(cfg))
        row, head = Signal(count_shape(cfg)), Signal(8)
        for_v = Signal()
        # Where the pair's q is, or where its result goes: a table needs only one of them.
        at, row_at = Signal(CHUNK_BITS), Signal(CHUNK_BITS)
        kc = (cfg.k_chunks - 1).bit_length()
        pitch = Signal(8)  # chunks from head to head of q: whole row-blocks
        m.d.comb += pitch.eq(((cmd.head_chunks + (cfg.k_chunks - 1)) >> kc) << kc)
        base, stride = Mux(for_v, cmd.dst, cmd.src), Mux(for_v, cmd.dst_stride, cmd.src_stride)
        step = Mux(for_v, cmd.head_chunks, pitch)
        first, offset = Signal(CHUNK_BITS), Signal(CHUNK_BITS)
        last_head = head + 1 == job.heads
        last_row = row + 1 == job.rows
        score_bits = (cfg.max_context // cfg.cols - 1).bit_length()
        m.d.comb += [
            self.row_index.eq(job.first + row),
            self.table_index.eq(pair),
            self.table.src.eq(Mux(for_v, Cat(Signal(score_bits), pair), at)),
            self.table.dst.eq(at),
            self.table.limit.eq(self.row.position),
        ]
        self._commands(m, cmd, job, pairs, for_v)
        matmul_idle = ~self.matmul_busy
        with m.FSM() as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("IDLE"))
            with m.State("IDLE"):
                m.d.comb += [self.cmd.ready.eq(plan.cmd.ready), plan.cmd.valid.eq(self.cmd.valid)]
                m.d.sync += cmd.eq(self.cmd.payload)
                with m.If(self.cmd.valid & self.cmd.ready):
                    m.next = "JOB"
            with m.State("JOB"):
                m.d.sync += for_v.eq(0)
                with m.If(jobs.o.valid):
                    m.next = "BEGIN"
            with m.State("BEGIN"):  # both tables are written the same way, one after the other
                # Rows ascend by one stride each; a job begins at its first row and head.
                settle = Signal(2)  # products, their sum, its copy
                m.d.sync += [
                    row.eq(0),
                    head.eq(0),
                    pair.eq(0),
                    settle.eq(settle + 1),
                    first.eq(multiply(job.head, step)),
                    offset.eq(base + multiply(job.first, stride)),
                    row_at.eq(offset + first),
                    at.eq(row_at),
                ]
                with m.If(settle == 3):
                    m.next = "TABLE"
            with m.State("TABLE"):
                m.d.comb += self.table_en.eq(1)
                m.d.sync += [
                    pair.eq(pair + 1),
                    pairs.eq(pair + 1),
                    head.eq(Mux(last_head, 0, head + 1)),
                    at.eq(at + step),
                ]
                with m.If(last_head):
                    m.d.sync += [
                        row.eq(row + 1),
                        row_at.eq(row_at + stride),
                        at.eq(row_at + stride),
                    ]
                    with m.If(last_row):
                        m.next = "MATMUL"
            with m.State("MATMUL"):
                # V's table is ready while the softmax still runs.
                m.d.comb += self.matmul.valid.eq(~(for_v & self.softmax_busy))
                with m.If(self.matmul.valid & self.matmul.ready):
                    m.next = "MULTIPLY"
            with m.State("MULTIPLY"):
                with m.If(matmul_idle):
                    m.next = "SOFTMAX"
                    with m.If(for_v):
                        m.d.comb += jobs.o.ready.eq(1)
                        m.next = "JOB"
                        with m.If(job.last):
                            m.next = "IDLE"
            with m.State("SOFTMAX"):
                m.d.comb += self.softmax.valid.eq(1)
                m.d.sync += for_v.eq(1)
                with m.If(self.softmax.ready):
                    m.next = "BEGIN"
        return m

    def _commands(self, m, cmd, job, pairs, for_v):
        cfg = self.cfg
        r, c = (cfg.rows - 1).bit_length(), (cfg.cols - 1).bit_length()
        kc = r - c
        row_blocks = (job.positions + (cfg.rows - 1)) >> r
        column_blocks = (job.positions + (cfg.cols - 1)) >> c
        dim_blocks = (cmd.head_chunks + (cfg.k_chunks - 1)) >> kc
        dim_tail = ((cmd.head_chunks - 1) & (cfg.k_chunks - 1)) + 1
        out = self.matmul.payload
        m.d.comb += [
            out.kind.eq(Mux(for_v, MatmulKind.V, MatmulKind.K)),
            out.m.eq(pairs),
            out.k.eq(Mux(for_v, row_blocks, dim_blocks)),
            out.n.eq(Mux(for_v, cmd.head_chunks, column_blocks)),
            out.tail.eq(Mux(for_v, cfg.k_chunks, dim_tail)),
            out.shift.eq(cmd.shift),
            out.bits.eq(1),
            out.dest.eq(Mux(for_v, MatmulDest.ATT, MatmulDest.SCORES)),
            out.sat.eq(cmd.sat + for_v),
            self.softmax.payload.m.eq(pairs),
            self.softmax.payload.blocks.eq(row_blocks),
            self.softmax.payload.align.eq(cmd.shift2),
        ]
