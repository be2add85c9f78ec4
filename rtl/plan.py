"""What an ATTEND asks of memory: groups of rows, the heads of each, the requests of each job."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from tokenfabric.core.config import FabricConfig
from tokenfabric.rtl.layouts import (
    ADDRESS_BITS,
    BeatTag,
    count_shape,
    fetch_command,
    index_shape,
    instruction_layout,
    kv_command,
    row_record,
)
from tokenfabric.rtl.mac import multiply

__all__ = ["AttentionPlan", "HeadWalk", "JobRequests", "RowGroups", "attention_job"]

BEATS_BITS = 24  # of positions x chunks of a head


def attention_job(cfg: FabricConfig) -> data.StructLayout:
    """Rows ``first .. first + rows - 1`` with ``heads`` query heads from ``head`` on, all of one KV
    head, over ``positions`` positions. ``last`` of its instruction."""
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


def row_group(cfg: FabricConfig) -> data.StructLayout:
    """Rows ``first .. first + rows - 1`` are of one slot; the last of them sees ``positions``.

    ``beats`` of K, and of V; ``together``: one job does all query heads of a KV head; ``last``: of
    the table's rows.
    """
    return data.StructLayout(
        {
            "first": index_shape(cfg),
            "rows": count_shape(cfg),
            "positions": unsigned(16),
            "beats": unsigned(BEATS_BITS),
            "together": unsigned(1),
            "last": unsigned(1),
        }
    )


def job_data(cfg: FabricConfig) -> data.StructLayout:
    """A job, and where its K and K scales are; ``beats`` of K, and of V."""
    return data.StructLayout(
        {
            "job": attention_job(cfg),
            "head_chunks": unsigned(8),
            "beats": unsigned(BEATS_BITS),
            "kv_at": unsigned(ADDRESS_BITS),
            "scale_at": unsigned(ADDRESS_BITS),
        }
    )


class RowGroups(wiring.Component):
    """Cuts the rows of an instruction into groups: those that stand together in one slot.

    A group of n rows costs n + 1 cycles before it is offered. The next one is looked for when it
    has been taken; the next instruction is taken in the cycle after the last group was, at the
    earliest.

    Members
    -------
    cmd : stream of instruction_layout, in
    rows : in, count_shape, rows in the table, steady
    row_index, row : out, index_shape / in, row_record: that row of the table, in the same cycle
    instruction : out, instruction_layout, the one that is being cut
    begin : out, 1 bit, strobe: ``row`` is the first of a group; one cycle or more before ``o``
    o : stream of row_group, out
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "cmd": In(stream.Signature(instruction_layout())),
                "rows": In(count_shape(cfg)),
                "row_index": Out(index_shape(cfg)),
                "row": In(row_record(cfg)),
                "instruction": Out(instruction_layout()),
                "begin": Out(1),
                "o": Out(stream.Signature(row_group(cfg))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        group, instruction = self.o.payload, self.instruction
        slot, pairs = Signal(8), Signal(16)  # pairs: rows of the group x query heads per KV head
        following = Signal(count_shape(self.cfg))  # first + rows
        at_end, new = following == self.rows, group.rows == 0
        m.d.comb += [
            self.row_index.eq(following),
            group.together.eq(pairs <= self.cfg.max_rows),
            group.last.eq(at_end),
        ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.cmd.ready.eq(1)
                m.d.sync += [
                    instruction.eq(self.cmd.payload),
                    following.eq(0),
                    group.first.eq(0),
                    group.rows.eq(0),
                ]
                with m.If(self.cmd.valid):
                    m.next = "SCAN"
            with m.State("SCAN"):  # one row per cycle, while it belongs to the group
                m.d.comb += self.begin.eq(new)
                with m.If(new | (~at_end & (self.row.slot == slot))):
                    m.d.sync += [
                        group.rows.eq(group.rows + 1),
                        following.eq(following + 1),
                        pairs.eq(Mux(new, instruction.group, pairs + instruction.group)),
                        group.positions.eq(self.row.position + 1),
                        slot.eq(self.row.slot),
                    ]
                with m.Else():
                    m.d.sync += group.beats.eq(multiply(group.positions, instruction.head_chunks))
                    m.next = "OFFER"
            with m.State("OFFER"):
                m.d.comb += self.o.valid.eq(1)
                with m.If(self.o.ready):
                    m.d.sync += [group.first.eq(following), group.rows.eq(0)]
                    m.next = "SCAN"
                    with m.If(at_end):
                        m.next = "IDLE"
        return m


class HeadWalk(wiring.Component):
    """Walks through the KV heads of a group, and through each one's query heads if each is a job
    of its own. One step per cycle; the outputs are those of the next head in the cycle after.

    Members
    -------
    start : in, 1 bit, strobe: stand at the first head; with ``kv_start``, ``scale_start``
    kv_start, scale_start : in, ADDRESS_BITS: K and K scales of KV head 0
    kv_heads, group : in, 8 bits: KV heads, query heads per KV head; steady from ``start`` on
    together : in, 1 bit: a step passes all query heads of the KV head; steady while there are steps
    kv_pitch, scale_pitch : in, ADDRESS_BITS: from KV head to KV head, steady
    step : in, 1 bit, strobe: go to the next head
    query : out, 8 bits, query head
    heads : out, 8 bits, query heads that a step passes
    kv_at, scale_at : out, ADDRESS_BITS
    last : out, 1 bit
    """

    def __init__(self):
        super().__init__(
            {
                "start": In(1),
                "kv_start": In(ADDRESS_BITS),
                "scale_start": In(ADDRESS_BITS),
                "kv_heads": In(8),
                "group": In(8),
                "together": In(1),
                "kv_pitch": In(ADDRESS_BITS),
                "scale_pitch": In(ADDRESS_BITS),
                "step": In(1),
                "query": Out(8),
                "heads": Out(8),
                "kv_at": Out(ADDRESS_BITS),
                "scale_at": Out(ADDRESS_BITS),
                "last": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        kv_heads_left, heads_left = Signal(8), Signal(8)  # after this one
        head_done = self.together | (heads_left == 0)
        m.d.comb += [
            self.heads.eq(Mux(self.together, self.group, 1)),
            self.last.eq(head_done & (kv_heads_left == 0)),
        ]
        with m.If(self.start):
            m.d.sync += [
                self.query.eq(0),
                kv_heads_left.eq(self.kv_heads - 1),
                heads_left.eq(self.group - 1),
                self.kv_at.eq(self.kv_start),
                self.scale_at.eq(self.scale_start),
            ]
        with m.Elif(self.step):
            m.d.sync += [self.query.eq(self.query + self.heads), heads_left.eq(heads_left - 1)]
            with m.If(head_done):
                m.d.sync += [
                    heads_left.eq(self.group - 1),
                    kv_heads_left.eq(kv_heads_left - 1),
                    self.kv_at.eq(self.kv_at + self.kv_pitch),
                    self.scale_at.eq(self.scale_at + self.scale_pitch),
                ]
        return m


class JobRequests(wiring.Component):
    """Hands a job out, then sends for its K scales, K and V; the buffer hears first of each stream.

    The job goes first: K alone may be more than its buffer holds before the job consumes it.
    Without stalls a job in 7 cycles: the job, five requests, and one in which it is taken off
    ``i``, so that the next one is there in the cycle after.

    Members
    -------
    i : stream of job_data, in
    v_offset : in, ADDRESS_BITS: from K to V, steady
    jobs : stream of attention_job, out
    kv : stream of kv_command, out
    fetch : stream of fetch_command, out
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "i": In(stream.Signature(job_data(cfg))),
                "v_offset": In(ADDRESS_BITS),
                "jobs": Out(stream.Signature(attention_job(cfg))),
                "kv": Out(stream.Signature(kv_command(cfg))),
                "fetch": Out(stream.Signature(fetch_command(cfg))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        want, fetch, kv = self.i.payload, self.fetch, self.kv
        low = (self.cfg.cols - 1).bit_length()
        scale_beats = ((want.job.positions + (self.cfg.cols - 1)) >> low) << 1
        # Every field that does not depend on the state is driven all the time.
        m.d.comb += [
            self.jobs.payload.eq(want.job),
            kv.payload.positions.eq(want.job.positions),
            kv.payload.head_chunks.eq(want.head_chunks),
        ]
        with m.FSM():
            with m.State("JOB"):
                m.d.comb += self.jobs.valid.eq(self.i.valid)
                with m.If(self.jobs.valid & self.jobs.ready):
                    m.next = "SCALE"
            with m.State("SCALE"):
                m.d.comb += [
                    fetch.valid.eq(1),
                    fetch.payload.tag.eq(BeatTag.SCALE),
                    fetch.payload.offset.eq(want.scale_at),
                    fetch.payload.beats.eq(scale_beats),
                ]
                with m.If(fetch.ready):
                    m.next = "K-BUFFER"
            for name, is_v, after in (("K", 0, "V-BUFFER"), ("V", 1, "TAKEN")):
                with m.State(f"{name}-BUFFER"):
                    m.d.comb += [kv.valid.eq(1), kv.payload.is_v.eq(is_v)]
                    with m.If(kv.ready):
                        m.next = f"{name}-FETCH"
                with m.State(f"{name}-FETCH"):
                    m.d.comb += [
                        fetch.valid.eq(1),
                        fetch.payload.tag.eq(BeatTag.KV),
                        fetch.payload.offset.eq(want.kv_at + (self.v_offset if is_v else 0)),
                        fetch.payload.beats.eq(want.beats),
                    ]
                    with m.If(fetch.ready):
                        m.next = after
            with m.State("TAKEN"):
                m.d.comb += self.i.ready.eq(1)
                m.next = "JOB"
        return m


class AttentionPlan(wiring.Component):
    """Cuts an ATTEND into jobs and sends for the K scales, K and V of each, ahead of the compute.

    Rows that stand together in one slot form a group. If rows x group fits ``max_rows``, one job
    does all query heads of a KV head with one pass over K and V; otherwise one job per query head.
    Without stalls a group of n rows takes n + 1 cycles and 7 for each of its jobs.

    Members
    -------
    cmd : stream of instruction_layout, in; taken when all of the one before has been sent for
    rows : in, count_shape, rows in the table; steady, as are the next five
    row_index, row : out, index_shape / in, row_record: that row of the table, in the same cycle
    v_offset, kv_head, scale_head : in, ADDRESS_BITS, bytes: from K to V, from KV head to KV head in
        K (and V), in the K scales
    fetch : stream of fetch_command, out
    kv : stream of kv_command, out, each before its fetch
    jobs : stream of attention_job, out, each before its fetches
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
        m.submodules.groups = groups = RowGroups(self.cfg)
        m.submodules.heads = heads = HeadWalk()
        m.submodules.requests = requests = JobRequests(self.cfg)
        instruction, group = groups.instruction, groups.o.payload
        want, taken = requests.i.payload, requests.i.valid & requests.i.ready
        connect(m, flipped(self.cmd), groups.cmd)
        for name in ("jobs", "kv", "fetch"):
            connect(m, getattr(requests, name), flipped(getattr(self, name)))
        m.d.comb += [
            groups.rows.eq(self.rows),
            self.row_index.eq(groups.row_index),
            groups.row.eq(self.row),
            heads.start.eq(groups.begin),
            heads.kv_start.eq(instruction.imm + self.row.kv_slot),
            heads.scale_start.eq(instruction.imm2 + self.row.scale_slot),
            heads.kv_heads.eq(instruction.heads),
            heads.group.eq(instruction.group),
            heads.together.eq(group.together),
            heads.kv_pitch.eq(self.kv_head),
            heads.scale_pitch.eq(self.scale_head),
            heads.step.eq(taken),
            groups.o.ready.eq(taken & heads.last),
            requests.v_offset.eq(self.v_offset),
            requests.i.valid.eq(groups.o.valid),
            want.job.first.eq(group.first),
            want.job.rows.eq(group.rows),
            want.job.head.eq(heads.query),
            want.job.heads.eq(heads.heads),
            want.job.positions.eq(group.positions),
            want.job.last.eq(heads.last & group.last),
            want.head_chunks.eq(instruction.head_chunks),
            want.beats.eq(group.beats),
            want.kv_at.eq(heads.kv_at),
            want.scale_at.eq(heads.scale_at),
        ]
        return m
