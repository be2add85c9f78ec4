"""Base-2 softmax over the scores of a step: maximum on the way in, then one pass in place."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core import ops
from tokenfabric.core.config import FabricConfig
from tokenfabric.rtl import layouts
from tokenfabric.rtl.mac import multiply
from tokenfabric.rtl.memory import Ram, Rom, read_port
from tokenfabric.rtl.normalize import Recip

__all__ = ["ALIGN_BITS", "Exponential", "RowMaximum", "RowTotal", "SoftmaxUnit"]

ALIGN_BITS = 4  # the scores have 10 - align fraction bits
EXP_BITS = 24
SCORE = signed(ops.ACT_BITS)


def participants(chunk, limit, lanes: int):
    """One bit per lane: position ``chunk * lanes + lane`` is at most ``limit``."""
    low = (lanes - 1).bit_length()
    before, last = chunk < limit[low:], chunk == limit[low:]
    return Cat(before | (last & (limit[:low] >= lane)) for lane in range(lanes))


class RowMaximum(wiring.Component):
    """The largest participating score of each row, and the row's limit.

    A chunk per cycle; chunks of the same row at least 2 cycles apart. Block 0 starts a new maximum.

    Members
    -------
    valid, score : in, a chunk of scores
    idle : out, everything that came in is in the table
    row : in; maximum, limit : out, of that row, in the same cycle, while ``idle``
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


class Exponential(wiring.Component):
    """``ops.softmax_exp`` of C lanes, 0 where ``mask`` is 0. One chunk per cycle, no back-pressure.

    d = maximum - score is split into a shift and 10 fraction bits; the table gives 2**-fraction. A
    lane that is masked or too small takes the longest shift, which leaves nothing.

    Members
    -------
    valid, scores, maximum, mask : in; scores of unmasked lanes are at most ``maximum``
    align : in, constant while anything is in flight
    e_valid, e : out, LATENCY cycles later
    """

    LATENCY = 8

    def __init__(self, lanes: int):
        self.lanes = lanes
        super().__init__(
            {
                "valid": In(1),
                "scores": In(data.ArrayLayout(SCORE, lanes)),
                "maximum": In(SCORE),
                "mask": In(lanes),
                "align": In(ALIGN_BITS),
                "e_valid": Out(1),
                "e": Out(data.ArrayLayout(EXP_BITS, lanes)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        base, drop = ops.exp_table()

        def row(width: int, name: str):
            return Signal(data.ArrayLayout(width, self.lanes), name=name, reset_less=True)

        valid = Signal(self.LATENCY)
        m.d.sync += valid.eq(Cat(self.valid, valid))
        m.d.comb += self.e_valid.eq(valid[-1])

        s0_d, s0_mask = row(16, "s0_d"), Signal(self.lanes, reset_less=True)
        s1_frac, s1_shift = row(ops.EXP_FRAC, "s1_frac"), row(5, "s1_shift")
        s2_base, s2_drop = row(EXP_BITS, "s2_base"), row(18, "s2_drop")
        s2_rem, s2_shift = row(ops.EXP_REM_BITS, "s2_rem"), row(5, "s2_shift")
        s3_base, s3_product, s3_shift = (
            row(EXP_BITS, "s3_base"),
            row(22, "s3_p"),
            row(5, "s3_shift"),
        )
        s4_e, s4_shift = row(EXP_BITS, "s4_e"), row(5, "s4_shift")
        s5_e, s5_shift = row(EXP_BITS + 1, "s5_e"), row(2, "s5_shift")  # one bit more, to round
        s6_e = row(EXP_BITS + 1, "s6_e")

        with m.If(self.valid):
            m.d.sync += s0_mask.eq(self.mask)
        for lane in range(self.lanes):
            d = s0_d[lane] << self.align
            m.submodules[f"base{lane}"] = base_rom = Rom(base, EXP_BITS)
            m.submodules[f"drop{lane}"] = drop_rom = Rom(drop, 18)
            m.d.comb += base_rom.addr.eq(s1_frac[lane][ops.EXP_REM_BITS :])
            m.d.comb += drop_rom.addr.eq(s1_frac[lane][ops.EXP_REM_BITS :])
            with m.If(self.valid):
                m.d.sync += s0_d[lane].eq(self.maximum - self.scores[lane])
            with m.If(valid[0]):
                gone = ~s0_mask[lane] | d[ops.EXP_FRAC + 5 :].any()
                m.d.sync += [
                    s1_frac[lane].eq(d),
                    s1_shift[lane].eq(Mux(gone, 31, d[ops.EXP_FRAC :])),
                ]
            with m.If(valid[1]):
                m.d.sync += [
                    s2_base[lane].eq(base_rom.data),
                    s2_drop[lane].eq(drop_rom.data),
                    s2_rem[lane].eq(s1_frac[lane]),
                    s2_shift[lane].eq(s1_shift[lane]),
                ]
            with m.If(valid[2]):
                m.d.sync += [
                    s3_base[lane].eq(s2_base[lane]),
                    s3_product[lane].eq(multiply(s2_drop[lane], s2_rem[lane])),
                    s3_shift[lane].eq(s2_shift[lane]),
                ]
            with m.If(valid[3]):
                m.d.sync += [
                    s4_e[lane].eq(s3_base[lane] - (s3_product[lane] >> ops.EXP_REM_BITS)),
                    s4_shift[lane].eq(s3_shift[lane]),
                ]
            with m.If(valid[4]):
                m.d.sync += [
                    s5_e[lane].eq(Cat(0, s4_e[lane]) >> (s4_shift[lane] & 0b11100)),
                    s5_shift[lane].eq(s4_shift[lane]),
                ]
            with m.If(valid[5]):
                m.d.sync += s6_e[lane].eq(s5_e[lane] >> s5_shift[lane])
            with m.If(valid[6]):
                m.d.sync += self.e[lane].eq(s6_e[lane][1:] + s6_e[lane][0])
        return m


class RowTotal(wiring.Component):
    """Sum of the exponentials of each row: a tree over the lanes, then an accumulator.

    ``total_valid`` LATENCY cycles after the chunk that came with ``last``.
    """

    def __init__(self, lanes: int, bits: int):
        self.lanes = lanes
        self.levels = lanes.bit_length() - 1
        self.LATENCY = self.levels + 1
        super().__init__(
            {
                "valid": In(1),
                "last": In(1),
                "e": In(data.ArrayLayout(EXP_BITS, lanes)),
                "total_valid": Out(1),
                "total": Out(bits),
            }
        )

    def elaborate(self, platform):
        m = Module()
        valid, last = Signal(self.levels), Signal(self.levels, reset_less=True)
        m.d.sync += [valid.eq(Cat(self.valid, valid)), last.eq(Cat(self.last, last))]
        values, enable = [self.e[lane] for lane in range(self.lanes)], self.valid
        for level in range(self.levels):
            count = len(values) // 2
            layout = data.ArrayLayout(EXP_BITS + level + 1, count)
            sums = Signal(layout, name=f"s{level}_sum", reset_less=True)
            with m.If(enable):
                m.d.sync += [sums[i].eq(values[2 * i] + values[2 * i + 1]) for i in range(count)]
            values, enable = [sums[i] for i in range(count)], valid[level]

        first = Signal(init=1)
        m.d.sync += self.total_valid.eq(valid[-1] & last[-1])
        with m.If(valid[-1]):
            m.d.sync += [
                self.total.eq(Mux(first, 0, self.total) + values[0]),
                first.eq(last[-1]),
            ]
        return m


class _Walk(wiring.Component):
    """Counts through ``rows`` times ``chunks``; ``row_end`` and ``end`` mark the last ones."""

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        per_row = cfg.max_context // cfg.cols
        super().__init__(
            {
                "step": In(1),
                "rows": In(layouts.count_shape(cfg)),
                "chunks": In(range(per_row + 1)),
                "row": Out(layouts.index_shape(cfg)),
                "chunk": Out(range(per_row)),
                "row_end": Out(1),
                "end": Out(1),
                "addr": Out(range(cfg.score_chunks)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.d.comb += [
            self.row_end.eq(self.chunk + 1 == self.chunks),
            self.end.eq(self.row_end & (self.row + 1 == self.rows)),
            self.addr.eq(_row_chunk(self.cfg, self.row) + self.chunk),
        ]
        with m.If(self.step):
            m.d.sync += self.chunk.eq(Mux(self.row_end, 0, self.chunk + 1))
            with m.If(self.row_end):
                m.d.sync += self.row.eq(Mux(self.end, 0, self.row + 1))
        return m


def _row_chunk(cfg: FabricConfig, index):
    """First chunk of row ``index`` in SCORES, a product with a constant made of shifts."""
    per_row = cfg.max_context // cfg.cols
    return sum(index << bit for bit in range(per_row.bit_length()) if per_row >> bit & 1)


class SoftmaxUnit(wiring.Component):
    """Owner of SCORES: takes scores, then replaces them by ``ops.softmax`` in place.

    C lanes per cycle, rows back to back: a command of m rows of c = ``blocks`` * R/C chunks is busy
    for m * c + LATENCY cycles. Base-2 exponentials from a table as in Stevens et al., "Softermax",
    2021, but with the maximum known before the pass and the division left to the product with V.

    Members
    -------
    score_valid, score : in, results with dest SCORES (y saturated to int16), always accepted, never
        while busy; the same index at least 2 cycles apart
    cmd : in; taken when the last score is in the table and no command runs. m, blocks at least 1;
        every chunk of the blocks written since the last command; align < 2**ALIGN_BITS
    row_scale_valid, row_scale : out, ``ops.attention_scale`` of rows 0..m-1 in order
    busy : out, from the cycle after ``cmd`` is taken to the cycle of the last row scale
    p_r : in, the array's read port: the row-block at chunk ``addr``; not while busy
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        self.total = RowTotal(cfg.cols, EXP_BITS + (cfg.max_context - 1).bit_length())
        self.LATENCY = 2 + Exponential.LATENCY + self.total.LATENCY + Recip.LATENCY
        super().__init__(
            {
                "score_valid": In(1),
                "score": In(layouts.matmul_result(cfg)),
                "cmd": In(stream.Signature(layouts.softmax_command(cfg))),
                "row_scale_valid": Out(1),
                "row_scale": Out(layouts.row_scale(cfg)),
                "busy": Out(1),
                "p_r": In(read_port((cfg.score_chunks - 1).bit_length(), cfg.rows * ops.ACT_BITS)),
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
        m.submodules.read = read = _Walk(cfg)
        m.submodules.write = write = _Walk(cfg)
        m.submodules.exponential = exponential = Exponential(cfg.cols)
        m.submodules.total = total = self.total

        reading, m_rows = Signal(), Signal.like(read.rows)
        m_chunks, align = Signal.like(read.chunks), Signal(ALIGN_BITS)
        m.d.comb += [
            maximum.valid.eq(self.score_valid),
            maximum.score.eq(self.score),
            self.cmd.ready.eq(~self.busy & maximum.idle),
            exponential.align.eq(align),
            read.step.eq(reading),
            write.step.eq(exponential.e_valid),
        ]
        for walk in (read, write):
            m.d.comb += [walk.rows.eq(m_rows), walk.chunks.eq(m_chunks)]
        with m.If(self.cmd.valid & self.cmd.ready):
            m.d.sync += [
                reading.eq(1),
                m_rows.eq(self.cmd.p.m),
                m_chunks.eq(self.cmd.p.blocks << (cfg.k_chunks - 1).bit_length()),
                align.eq(self.cmd.p.align),
            ]
        with m.Elif(read.step & read.end):
            m.d.sync += reading.eq(0)

        self._read(m, ram, maximum, read, exponential)
        self._write(m, ram, write, exponential)
        m.d.comb += [
            total.valid.eq(exponential.e_valid),
            total.last.eq(write.row_end),
            total.e.eq(exponential.e),
        ]
        self._scale(m, total, m_rows)
        return m

    def _read(self, m, ram, maximum, read, exponential):
        """A chunk of scores with its row's maximum and limit: two stages, then the exponentials."""
        s1_valid, s1_chunk = Signal(), Signal.like(read.chunk, reset_less=True)
        s1_row = Signal.like(read.row, reset_less=True)
        s2_valid = Signal()
        s2_scores = Signal.like(exponential.scores, reset_less=True)
        s2_maximum = Signal(SCORE, reset_less=True)
        s2_limit, s2_chunk = Signal(16, reset_less=True), Signal.like(s1_chunk)
        chunk_bits = len(s2_scores.as_value())
        select = s1_chunk[: (self.cfg.k_chunks - 1).bit_length()]
        m.d.comb += [
            ram.r.en.eq(Mux(self.busy, read.step, self.p_r.en)),
            ram.r.addr.eq(Mux(self.busy, read.addr, self.p_r.addr)),
            self.p_r.data.eq(ram.r.data),
            maximum.row.eq(s1_row),
            exponential.valid.eq(s2_valid),
            exponential.scores.eq(s2_scores),
            exponential.maximum.eq(s2_maximum),
            exponential.mask.eq(participants(s2_chunk, s2_limit, self.cfg.cols)),
        ]
        m.d.sync += [s1_valid.eq(read.step), s2_valid.eq(s1_valid)]
        with m.If(read.step):
            m.d.sync += [s1_row.eq(read.row), s1_chunk.eq(read.chunk)]
        with m.If(s1_valid):
            m.d.sync += [
                s2_scores.eq(ram.r.data.word_select(select, chunk_bits)),
                s2_maximum.eq(maximum.maximum),
                s2_limit.eq(maximum.limit),
                s2_chunk.eq(s1_chunk),
            ]

    def _write(self, m, ram, write, exponential):
        """Scores as they come, or p: the exponentials rounded to 15 bits."""
        lanes = range(self.cfg.cols)
        w_valid, w_addr = Signal(), Signal.like(ram.w.addr, reset_less=True)
        w_data = Signal(data.ArrayLayout(SCORE, self.cfg.cols), reset_less=True)
        m.d.comb += [ram.w.en.eq(w_valid), ram.w.addr.eq(w_addr), ram.w.data.eq(w_data)]
        m.d.sync += w_valid.eq(self.score_valid | exponential.e_valid)
        with m.If(exponential.e_valid):
            m.d.sync += w_addr.eq(write.addr)
            for lane in lanes:
                e = exponential.e[lane]
                m.d.sync += w_data[lane].eq(e[ops.EXP_P_SHIFT :] + e[ops.EXP_P_SHIFT - 1])
        with m.Elif(self.score_valid):
            m.d.sync += w_addr.eq(_row_chunk(self.cfg, self.score.index) + self.score.block)
            m.d.sync += [w_data[lane].eq(self.score.y[lane]) for lane in lanes]

    def _scale(self, m, total, m_rows):
        """The reciprocal of a total as mult and shift; the last one ends the command."""
        m.submodules.recip = recip = Recip(len(total.total))
        index = Signal.like(self.row_scale.index)
        end = Signal()
        m.d.comb += [
            recip.x_valid.eq(total.total_valid),
            recip.x.eq(total.total),
            self.row_scale_valid.eq(recip.r_valid),
            self.row_scale.index.eq(index),
            self.row_scale.mult.eq(Mux(recip.r[ops.MULT_BITS], -1, recip.r)),
            self.row_scale.shift.eq(recip.e + (16 - ops.EXP_P_SHIFT - ops.ATT_FRAC)),
            end.eq(recip.r_valid & (index + 1 == m_rows)),
        ]
        with m.If(recip.r_valid):
            m.d.sync += index.eq(Mux(end, 0, index + 1))
        with m.If(self.cmd.valid & self.cmd.ready):
            m.d.sync += self.busy.eq(1)
        with m.Elif(end):
            m.d.sync += self.busy.eq(0)
