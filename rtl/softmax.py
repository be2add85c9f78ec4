"""Base-2 softmax over the scores of a step: maximum on the way in, then one pass in place."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect
from tokenfabric.core import ops
from tokenfabric.core.config import FabricConfig
from tokenfabric.rtl import layouts
from tokenfabric.rtl.exponential import EXP_BITS, SCORE, Exponential, RowTotal
from tokenfabric.rtl.memory import Ram, output_registers, read_port, write_port
from tokenfabric.rtl.normalize import Recip
from tokenfabric.rtl.pipeline import delays

__all__ = ["RowMaximum", "RowScales", "ScoreReader", "ScoreWalk", "ScoreWriter", "SoftmaxUnit"]


def participants(chunk, limit, lanes: int):
    """One bit per lane: position ``chunk * lanes + lane`` is at most ``limit``."""
    low = (lanes - 1).bit_length()
    before, last = chunk < limit[low:], chunk == limit[low:]
    return Cat(before | (last & (limit[:low] >= lane)) for lane in range(lanes))


class RowMaximum(wiring.Component):
    """The largest participating score of each row, and the row's limit.

    A chunk per cycle; chunks of the same row at least 2 cycles apart. Block 0 starts a new maximum.
    In the table log2(C) + 3 cycles after it came.

    Members
    -------
    valid, score : in, 1 bit, matmul_result: a chunk of scores
    idle : out, 1 bit, everything that came in is in the table
    row : in, index_shape; maximum, limit : out, SCORE, 16 bits: of that row, in the same cycle,
        while ``idle``
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "valid": In(1),
                "score": In(layouts.matmul_result(cfg)),
                "idle": Out(1),
                "row": In(layouts.index_shape(cfg)),
                "maximum": Out(SCORE),
                "limit": Out(16),
            }
        )

    def elaborate(self, platform):
        m = Module()
        lanes, score = self.cfg.cols, self.score
        m.submodules.table = table = Ram(self.cfg.max_rows, 32, comb=True)
        levels = lanes.bit_length() - 1
        valid = Signal(levels + 2)
        m.d.sync += valid.eq(Cat(self.valid, valid))
        m.d.comb += self.idle.eq(~self.valid & ~valid.any())

        row = data.StructLayout(
            {"index": layouts.index_shape(self.cfg), "first": 1, "limit": unsigned(16)}
        )
        s0_row = Signal(row, reset_less=True)
        s0_scores = Signal(data.ArrayLayout(SCORE, lanes), reset_less=True)
        s0_mask = Signal(lanes, reset_less=True)
        with m.If(self.valid):
            m.d.sync += [
                s0_row.eq(Cat(score.index, score.block == 0, score.limit)),
                s0_mask.eq(participants(score.block, score.limit, lanes)),
            ]
            m.d.sync += [s0_scores[lane].eq(score.y[lane]) for lane in range(lanes)]

        lowest = -(1 << (ops.ACT_BITS - 1))
        values = [Mux(s0_mask[lane], s0_scores[lane], lowest) for lane in range(lanes)]
        s_row = s0_row
        for level in range(1, levels + 1):
            count = lanes >> level
            larger = Signal(data.ArrayLayout(SCORE, count), name=f"s{level}_max", reset_less=True)
            next_row = Signal(row, name=f"s{level}_row", reset_less=True)
            with m.If(valid[level - 1]):
                m.d.sync += next_row.eq(s_row)
                for i in range(count):
                    a, b = values[2 * i : 2 * i + 2]
                    m.d.sync += larger[i].eq(Mux(a > b, a, b))
            values, s_row = [larger[i] for i in range(count)], next_row

        w_old, w_new = Signal(SCORE, reset_less=True), Signal(SCORE, reset_less=True)
        w_row = Signal(row, reset_less=True)
        m.d.comb += [
            table.r.addr.eq(Mux(valid[levels], s_row.index, self.row)),
            Cat(self.maximum, self.limit).eq(table.r.data),
            table.w.en.eq(valid[levels + 1]),
            table.w.addr.eq(w_row.index),
            table.w.data.eq(Cat(Mux(w_row.first | (w_new > w_old), w_new, w_old), w_row.limit)),
        ]
        with m.If(valid[levels]):
            m.d.sync += [w_old.eq(self.maximum), w_new.eq(values[0]), w_row.eq(s_row)]
        return m


def chunks_shape(cfg: FabricConfig):
    """A number of chunks of a row of SCORES."""
    return range(cfg.max_context // cfg.cols + 1)


def scores_address_bits(cfg: FabricConfig) -> int:
    """Of a chunk of SCORES."""
    return (cfg.score_chunks - 1).bit_length()


def row_chunk(cfg: FabricConfig, index):
    """First chunk of row ``index`` in SCORES, a product with a constant made of shifts."""
    per_row = cfg.max_context // cfg.cols
    return sum(index << bit for bit in range(per_row.bit_length()) if per_row >> bit & 1)


class ScoreWalk(wiring.Component):
    """Counts through the chunks of the rows of a command, a step per cycle; then from the start.

    Members
    -------
    step : in, 1 bit, strobe: go to the next chunk
    rows, chunks : in, count_shape, chunks_shape: rows, chunks of a row; steady between two walks
    row, chunk : out, index_shape, 0 .. chunks - 1
    row_end, end : out, 1 bit: at the last chunk of a row, at the last of all
    addr : out, the chunk in SCORES
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "step": In(1),
                "rows": In(layouts.count_shape(cfg)),
                "chunks": In(chunks_shape(cfg)),
                "row": Out(layouts.index_shape(cfg)),
                "chunk": Out(range(cfg.max_context // cfg.cols)),
                "row_end": Out(1),
                "end": Out(1),
                "addr": Out(scores_address_bits(cfg)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.d.comb += [
            self.row_end.eq(self.chunk + 1 == self.chunks),
            self.end.eq(self.row_end & (self.row + 1 == self.rows)),
            self.addr.eq(row_chunk(self.cfg, self.row) + self.chunk),
        ]
        with m.If(self.step):
            m.d.sync += self.chunk.eq(Mux(self.row_end, 0, self.chunk + 1))
            with m.If(self.row_end):
                m.d.sync += self.row.eq(Mux(self.end, 0, self.row + 1))
        return m


class ScoreReader(wiring.Component):
    """Reads the chunks of a command out of SCORES, each with its row's maximum and its mask.

    One chunk per cycle; the first is asked for in the cycle after ``start`` and comes out
    ``LATENCY`` cycles later.

    Members
    -------
    start : in, 1 bit, strobe
    rows, chunks : in, count_shape, chunks_shape: from the cycle after ``start`` on, steady
    r : out, read_port of SCORES: R scores at the chunk ``addr``
    row, row_maximum, row_limit : out, in, in, index_shape, SCORE, 16 bits: of that row, in the same
        cycle
    valid, scores, maximum, mask : out, 1 bit, C x SCORE, SCORE, C bits: a chunk; the lanes that
        take part
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        self.LATENCY = 2 + output_registers(cfg, "scores")
        super().__init__(
            {
                "start": In(1),
                "rows": In(layouts.count_shape(cfg)),
                "chunks": In(chunks_shape(cfg)),
                "r": Out(read_port(scores_address_bits(cfg), cfg.rows * ops.ACT_BITS)),
                "row": Out(layouts.index_shape(cfg)),
                "row_maximum": In(SCORE),
                "row_limit": In(16),
                "valid": Out(1),
                "scores": Out(data.ArrayLayout(SCORE, cfg.cols)),
                "maximum": Out(SCORE),
                "mask": Out(cfg.cols),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.walk = walk = ScoreWalk(self.cfg)
        reading, end = Signal(), self.LATENCY - 1  # the stage that sees the data
        valid = delays(m, reading, self.LATENCY, name="valid", reset_less=False)
        s1_chunk = delays(m, walk.chunk, end, name="chunk")[end]
        s1_row = delays(m, walk.row, end, name="row")[end]
        read = self.r.data
        if end > 1:
            read = Signal.like(read, name="read", reset_less=True)
            m.d.sync += read.eq(self.r.data)
        s2_scores = Signal.like(self.scores, reset_less=True)
        s2_maximum = Signal(SCORE, reset_less=True)
        s2_limit, s2_chunk = Signal(16, reset_less=True), Signal.like(walk.chunk)
        chunk_bits = len(s2_scores.as_value())
        select = s1_chunk[: (self.cfg.k_chunks - 1).bit_length()]
        m.d.comb += [
            walk.step.eq(reading),
            walk.rows.eq(self.rows),
            walk.chunks.eq(self.chunks),
            self.r.en.eq(reading),
            self.r.addr.eq(walk.addr),
            self.row.eq(s1_row),
            self.valid.eq(valid[self.LATENCY]),
            self.scores.eq(s2_scores),
            self.maximum.eq(s2_maximum),
            self.mask.eq(participants(s2_chunk, s2_limit, self.cfg.cols)),
        ]
        with m.If(self.start):
            m.d.sync += reading.eq(1)
        with m.Elif(reading & walk.end):
            m.d.sync += reading.eq(0)
        with m.If(valid[end]):
            m.d.sync += [
                s2_scores.eq(read.word_select(select, chunk_bits)),
                s2_maximum.eq(self.row_maximum),
                s2_limit.eq(self.row_limit),
                s2_chunk.eq(s1_chunk),
            ]
        return m


class ScoreWriter(wiring.Component):
    """Writes SCORES: scores as they come, or p, the exponentials rounded to 15 bits, in place.

    One chunk per cycle, written in the cycle after it came.

    Members
    -------
    rows, chunks : in, count_shape, chunks_shape: of the command, steady while exponentials come
    score_valid, score : in, 1 bit, matmul_result
    e_valid, e : in, 1 bit, C x EXP_BITS: the next chunk of the command's rows; not with a score
    row_end : out, 1 bit: the exponentials that come next end a row
    w : out, write_port of SCORES: C scores at the chunk ``addr``
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "rows": In(layouts.count_shape(cfg)),
                "chunks": In(chunks_shape(cfg)),
                "score_valid": In(1),
                "score": In(layouts.matmul_result(cfg)),
                "e_valid": In(1),
                "e": In(data.ArrayLayout(EXP_BITS, cfg.cols)),
                "row_end": Out(1),
                "w": Out(write_port(scores_address_bits(cfg), cfg.cols * ops.ACT_BITS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.walk = walk = ScoreWalk(self.cfg)
        lanes = range(self.cfg.cols)
        w_addr = Signal.like(self.w.addr, reset_less=True)
        w_data = Signal(data.ArrayLayout(SCORE, self.cfg.cols), reset_less=True)
        m.d.comb += [
            walk.step.eq(self.e_valid),
            walk.rows.eq(self.rows),
            walk.chunks.eq(self.chunks),
            self.row_end.eq(walk.row_end),
            self.w.addr.eq(w_addr),
            self.w.data.eq(w_data),
        ]
        m.d.sync += self.w.en.eq(self.score_valid | self.e_valid)
        with m.If(self.e_valid):
            m.d.sync += w_addr.eq(walk.addr)
            for lane in lanes:
                e = self.e[lane]
                m.d.sync += w_data[lane].eq(e[ops.EXP_P_SHIFT :] + e[ops.EXP_P_SHIFT - 1])
        with m.Elif(self.score_valid):
            m.d.sync += w_addr.eq(row_chunk(self.cfg, self.score.index) + self.score.block)
            m.d.sync += [w_data[lane].eq(self.score.y[lane]) for lane in lanes]
        return m


class RowScales(wiring.Component):
    """The reciprocal of each row's total as mult and shift: ``ops.attention_scale``.

    LATENCY cycles, one total at a time (as Recip), rows in order.

    Members
    -------
    rows : in, count_shape: of the command, steady until ``end``
    total_valid, total : in, 1 bit, ``bits``
    valid, scale : out, 1 bit, row_scale
    end : out, 1 bit, strobe, with the scale of the command's last row
    """

    LATENCY = Recip.LATENCY

    def __init__(self, cfg: FabricConfig, bits: int):
        super().__init__(
            {
                "rows": In(layouts.count_shape(cfg)),
                "total_valid": In(1),
                "total": In(bits),
                "valid": Out(1),
                "scale": Out(layouts.row_scale(cfg)),
                "end": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.recip = recip = Recip(len(self.total))
        index = Signal.like(self.scale.index)
        m.d.comb += [
            recip.x_valid.eq(self.total_valid),
            recip.x.eq(self.total),
            self.valid.eq(recip.r_valid),
            self.scale.index.eq(index),
            self.scale.mult.eq(Mux(recip.r[ops.MULT_BITS], -1, recip.r)),
            self.scale.shift.eq(recip.e + (16 - ops.EXP_P_SHIFT - ops.ATT_FRAC)),
            self.end.eq(recip.r_valid & (index + 1 == self.rows)),
        ]
        with m.If(recip.r_valid):
            m.d.sync += index.eq(Mux(self.end, 0, index + 1))
        return m


class SoftmaxUnit(wiring.Component):
    """Owner of SCORES: takes scores, then replaces them by ``ops.softmax`` in place.

    C lanes per cycle, rows back to back: a command of m rows of c = ``blocks`` * R/C chunks is busy
    for m * c + LATENCY cycles. Base-2 exponentials from a table as in Stevens et al., "Softermax",
    2021, but with the maximum known before the pass and the division left to the product with V.

    Members
    -------
    score_valid, score : in, 1 bit, matmul_result: results with dest SCORES (y saturated to int16),
        always accepted, never while busy; the same index at least 2 cycles apart
    cmd : stream of softmax_command, in; taken when the last score is in the table and no command
        runs. m, blocks at least 1; every chunk of the blocks written since the last command;
        align < 2**ALIGN_BITS
    row_scale_valid, row_scale : out, 1 bit, row_scale: ``ops.attention_scale`` of rows 0..m-1 in
        order
    busy : out, 1 bit, from the cycle after ``cmd`` is taken to the cycle of the last row scale
    p_r : in, the array's read_port: the row-block at chunk ``addr``; not while busy
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        self.total = RowTotal(cfg.cols, EXP_BITS + (cfg.max_context - 1).bit_length())
        self.reader = ScoreReader(cfg)
        self.LATENCY = (
            self.reader.LATENCY + Exponential.LATENCY + self.total.LATENCY + RowScales.LATENCY
        )
        super().__init__(
            {
                "score_valid": In(1),
                "score": In(layouts.matmul_result(cfg)),
                "cmd": In(stream.Signature(layouts.softmax_command(cfg))),
                "row_scale_valid": Out(1),
                "row_scale": Out(layouts.row_scale(cfg)),
                "busy": Out(1),
                "p_r": In(read_port(scores_address_bits(cfg), cfg.rows * ops.ACT_BITS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg = self.cfg
        m.submodules.ram = ram = Ram(
            cfg.score_chunks,
            cfg.cols * ops.ACT_BITS,
            read_units=cfg.k_chunks,
            ultra="scores" in cfg.ultra,
        )
        m.submodules.maximum = maximum = RowMaximum(cfg)
        m.submodules.reader = reader = self.reader
        m.submodules.exponential = exponential = Exponential(cfg.cols)
        m.submodules.writer = writer = ScoreWriter(cfg)
        m.submodules.total = total = self.total
        m.submodules.scales = scales = RowScales(cfg, len(total.total))
        connect(m, writer.w, ram.w)
        rows, chunks = Signal.like(reader.rows), Signal.like(reader.chunks)
        m.d.comb += [
            maximum.valid.eq(self.score_valid),
            maximum.score.eq(self.score),
            maximum.row.eq(reader.row),
            reader.row_maximum.eq(maximum.maximum),
            reader.row_limit.eq(maximum.limit),
            ram.r.en.eq(Mux(self.busy, reader.r.en, self.p_r.en)),
            ram.r.addr.eq(Mux(self.busy, reader.r.addr, self.p_r.addr)),
            reader.r.data.eq(ram.r.data),
            self.p_r.data.eq(ram.r.data),
            exponential.valid.eq(reader.valid),
            exponential.scores.eq(reader.scores),
            exponential.maximum.eq(reader.maximum),
            exponential.mask.eq(reader.mask),
            writer.score_valid.eq(self.score_valid),
            writer.score.eq(self.score),
            writer.e_valid.eq(exponential.e_valid),
            writer.e.eq(exponential.e),
            total.valid.eq(exponential.e_valid),
            total.last.eq(writer.row_end),
            total.e.eq(exponential.e),
            scales.total_valid.eq(total.total_valid),
            scales.total.eq(total.total),
            self.row_scale_valid.eq(scales.valid),
            self.row_scale.eq(scales.scale),
            self.cmd.ready.eq(~self.busy & maximum.idle),
            reader.start.eq(self.cmd.valid & self.cmd.ready),
        ]
        for user in (reader, writer):
            m.d.comb += [user.rows.eq(rows), user.chunks.eq(chunks)]
        m.d.comb += scales.rows.eq(rows)
        with m.If(reader.start):
            m.d.sync += [
                self.busy.eq(1),
                rows.eq(self.cmd.p.m),
                chunks.eq(self.cmd.p.blocks << (cfg.k_chunks - 1).bit_length()),
                exponential.align.eq(self.cmd.p.align),
            ]
        with m.Elif(scales.end):
            m.d.sync += self.busy.eq(0)
        return m
