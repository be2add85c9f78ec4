"""The vector unit: RMS norm, RoPE, appending to the KV cache, SwiGLU."""

from __future__ import annotations

from amaranth.hdl import Cat, EnableInserter, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core import ops
from tokenfabric.core.config import FabricConfig
from tokenfabric.rtl.issue import (
    BEATS,
    DATA,
    ITEMS,
    MEAN,
    OPERANDS,
    PRODUCT,
    READ,
    RESULT,
    Issue,
    tag_layout,
)
from tokenfabric.rtl.lanes import (
    A_BITS,
    B_BITS,
    C_BITS,
    P1_BITS,
    Lanes,
    ShiftRound,
    Sigmoid,
    clamp,
)
from tokenfabric.rtl.layouts import (
    ADDRESS_BITS,
    count_shape,
    index_shape,
    instruction_layout,
    row_record,
    write_beat,
)
from tokenfabric.rtl.memory import Fifo, Ram, read_port, write_port
from tokenfabric.rtl.normalize import Recip127, Rsqrt
from tokenfabric.rtl.pipeline import delay
from tokenfabric.rtl.walker import Part

__all__ = ["VectorUnit"]

R_BITS = 17  # of a reciprocal: up to 2**16
AMAX_BITS = 15
ACT = signed(ops.ACT_BITS)


def factor_layout() -> data.StructLayout:
    """What the first pass over an item finds out for the second."""
    return data.StructLayout({"r": R_BITS, "shift": 5, "amax": AMAX_BITS})


def tree(m: Module, values: list, join, name: str):
    """``join`` over all values (a power of two of them), one level per cycle."""
    while len(values) > 1:
        joined = [join(a, b) for a, b in zip(values[::2], values[1::2])]
        values = [
            Signal(value.shape(), name=f"{name}{len(joined)}_{i}", reset_less=True)
            for i, value in enumerate(joined)
        ]
        m.d.sync += [register.eq(value) for register, value in zip(values, joined)]
    return values[0]


def levels(cols: int) -> int:
    return (cols - 1).bit_length()


class Operands(wiring.Component):
    """From what the memories gave to what the lanes multiply, LATENCY cycles later.

    NORM: the residual values, shifted and saturated (first pass: by themselves; second: by r).
    SWIGLU: gate, its sigmoid, and up. ROPE and first pass of APPEND: x, cos, and the other one of
    the pair with -+sin. Second pass of APPEND: K times r, or amax or V times 1.

    Members
    -------
    norm, swiglu, append, in_shift, align, out_shift : in, from the instruction
    tag, res, out, param, rope, head, factor : in, a chunk and what belongs to it
    a, b, a2, c, shift1, shift2 : out, for :class:`Lanes`
    """

    LATENCY = OPERANDS - DATA

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        cols = cfg.cols
        super().__init__(
            {
                "norm": In(1),
                "swiglu": In(1),
                "append": In(1),
                "in_shift": In(6),
                "align": In(6),
                "out_shift": In(6),
                "tag": In(tag_layout(cfg)),
                "res": In(data.ArrayLayout(signed(ops.RES_BITS), cols)),
                "out": In(data.ArrayLayout(ACT, 2 * cols)),
                "param": In(data.ArrayLayout(ACT, cols)),
                "rope": In(data.ArrayLayout(ACT, cols)),
                "head": In(data.ArrayLayout(ACT, cols)),
                "factor": In(factor_layout()),
                "a": Out(data.ArrayLayout(signed(A_BITS), cols)),
                "b": Out(data.ArrayLayout(signed(B_BITS), cols)),
                "a2": Out(data.ArrayLayout(ACT, cols)),
                "c": Out(data.ArrayLayout(signed(C_BITS), cols)),
                "shift1": Out(5),
                "shift2": Out(6),
            }
        )

    def elaborate(self, platform):
        m = Module()
        rest, second = self.LATENCY - 1, self.tag.second
        s3_x, s3_c = self._choose(m)
        scaled = second & (self.norm | (self.append & (self.tag.part == Part.K)))
        r, shift1 = Signal(R_BITS), Signal(5)
        m.d.comb += [
            r.eq(Mux(scaled, self.factor.r, 1)),
            shift1.eq(Mux(scaled, self.factor.shift, Mux(self.swiglu, 12, 0))),
        ]
        s10_r = delay(m, r, rest, "r")
        s10_second = delay(m, second, rest, "second")
        s10_cached = s10_second & self.append
        s10_a = [self._multiplicand(m, i, s3_x[i]) for i in range(self.cfg.cols)]
        s10_c = [delay(m, c, 7, f"c{i}") for i, c in enumerate(s3_c)]
        m.d.sync += [
            self.shift1.eq(delay(m, shift1, rest, "shift1")),
            self.shift2.eq(
                Mux(self.norm | self.swiglu, self.out_shift, Mux(s10_cached, 0, ops.ROPE_FRAC))
            ),
        ]
        for i in range(self.cfg.cols):
            m.submodules[f"sigmoid{i}"] = sigmoid = Sigmoid()
            m.d.comb += [sigmoid.x.eq(s3_x[i]), sigmoid.align.eq(self.align)]
            cos, sin = s10_c[i & ~1], s10_c[i | 1]
            m.d.sync += [self.a[i].eq(s10_a[i]), self.a2[i].eq(s10_a[i ^ 1])]
            with m.If(self.norm):
                m.d.sync += [
                    self.b[i].eq(Mux(s10_second, s10_r << 4, s10_a[i])),
                    self.c[i].eq(s10_c[i]),
                ]
            with m.Elif(self.swiglu):
                m.d.sync += [self.b[i].eq(sigmoid.s), self.c[i].eq(s10_c[i])]
            with m.Elif(s10_cached):
                m.d.sync += [self.b[i].eq(s10_r), self.c[i].eq(0)]
            with m.Else():
                m.d.sync += [self.b[i].eq(cos), self.c[i].eq(sin if i & 1 else -sin)]
        return m

    def _choose(self, m: Module):
        """Stage 3: the 16-bit operands."""
        tag, cols = self.tag, self.cfg.cols
        cached = tag.second & self.append
        s3_x, s3_c = (
            [Signal(ACT, name=f"s3_{name}{i}", reset_less=True) for i in range(cols)]
            for name in ("x", "c")
        )
        for i in range(cols):
            with m.If(cached & (tag.part == Part.K)):
                m.d.sync += s3_x[i].eq(self.head[i])
            with m.Elif(cached & (tag.part == Part.SCALE)):
                m.d.sync += s3_x[i].eq(self.factor.amax)
            with m.Else():
                m.d.sync += s3_x[i].eq(Mux(tag.high, self.out[cols + i], self.out[i]))
            c = Mux(self.norm, self.param[i], self.rope[i])
            m.d.sync += s3_c[i].eq(Mux(self.swiglu, self.out[cols + i], c))
        return s3_x, s3_c

    def _multiplicand(self, m: Module, i: int, s3_x):
        """Stage 10 of a lane: the residual value as the norm sees it, or x."""
        m.submodules[f"in_shift{i}"] = in_shift = ShiftRound(ops.RES_BITS)
        s3_res, s7_res = (
            Signal(signed(ops.RES_BITS), name=f"s{s}_res{i}", reset_less=True) for s in (3, 7)
        )
        s8_a = Signal(signed(A_BITS), name=f"s8_a{i}", reset_less=True)
        s7_x = delay(m, s3_x, 4, f"x{i}")
        m.d.comb += [in_shift.x.eq(s3_res), in_shift.n.eq(self.in_shift)]
        m.d.sync += [
            s3_res.eq(self.res[i]),
            s7_res.eq(in_shift.y),
            s8_a.eq(Mux(self.norm, clamp(s7_res, ops.NORM_BITS)[0], s7_x)),
        ]
        return delay(m, s8_a, 2, f"a{i}")


class SquareSum(wiring.Component):
    """``eps`` plus the products from ``first`` to ``last``; ``sum_valid`` is a pulse.

    ``ops`` replaces a sum of 0 by 1: not needed, all that its root will divide is 0 too.
    """

    BITS = 49  # 2**13 squares of up to 2**34, and eps

    def __init__(self, cols: int):
        self.cols = cols
        super().__init__(
            {
                "valid": In(1),
                "first": In(1),
                "last": In(1),
                "product": In(data.ArrayLayout(signed(P1_BITS), cols)),
                "eps": In(32),
                "sum_valid": Out(1),
                "sum": Out(self.BITS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        squares = [self.product[i][: 2 * ops.NORM_BITS - 1] for i in range(self.cols)]
        chunk = tree(m, squares, lambda a, b: a + b, "sum")
        depth = levels(self.cols)
        valid = delay(m, self.valid, depth, "valid", reset_less=False)
        first, last = delay(m, self.first, depth, "first"), delay(m, self.last, depth, "last")
        with m.If(valid):
            m.d.sync += self.sum.eq(Mux(first, self.eps, self.sum) + chunk)
        m.d.sync += self.sum_valid.eq(valid & last)
        return m


class Centre(wiring.Component):
    """K after RoPE, minus its mean: to the memory of heads, and the largest magnitude of the head.

    ``amax_valid`` is a pulse. The memory holds ITEMS heads, one per ``slot``.
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        tag, chunk = tag_layout(cfg), data.ArrayLayout(ACT, cfg.cols)
        heads_bits = (ITEMS * cfg.max_head_chunks - 1).bit_length()
        super().__init__(
            {
                "valid": In(1),
                "tag": In(tag),
                "y": In(chunk),
                "mean": In(chunk),
                "w": Out(write_port(heads_bits, chunk.size)),
                "amax_valid": Out(1),
                "amax": Out(AMAX_BITS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cols, depth = self.cfg.cols, levels(self.cfg.cols)
        s3_sizes = []
        for i in range(cols):
            s1_diff = Signal(signed(ops.ACT_BITS + 1), name=f"s1_diff{i}", reset_less=True)
            s2_k = Signal(ACT, name=f"s2_k{i}", reset_less=True)
            s3_size = Signal(AMAX_BITS, name=f"s3_size{i}", reset_less=True)
            size = Mux(s2_k[-1], -s2_k, s2_k)[: ops.ACT_BITS]
            m.d.sync += [
                s1_diff.eq(self.y[i] - self.mean[i]),
                s2_k.eq(clamp(s1_diff, ops.ACT_BITS)[0]),
                s3_size.eq(size[:-1] | size[-1].replicate(AMAX_BITS)),  # 32768 -> 32767
            ]
            m.d.comb += self.w.data.word_select(i, ops.ACT_BITS).eq(s2_k)
            s3_sizes.append(s3_size)
        s2_valid = delay(m, self.valid, 2, "valid", reset_less=False)
        s2_tag = delay(m, self.tag, 2, "tag")
        m.d.comb += [self.w.en.eq(s2_valid), self.w.addr.eq(Cat(s2_tag.chunk, s2_tag.slot))]

        largest = tree(m, s3_sizes, lambda a, b: Mux(a > b, a, b), "max")
        valid = delay(m, s2_valid, 1 + depth, "s2_valid", reset_less=False)
        first = delay(m, s2_tag.first, 1 + depth, "s2_first")
        last = delay(m, s2_tag.last, 1 + depth, "s2_last")
        running, complete = Signal(AMAX_BITS, reset_less=True), Signal()
        with m.If(valid):
            m.d.sync += running.eq(Mux(~first & (running > largest), running, largest))
        m.d.sync += [
            complete.eq(valid & last),
            self.amax_valid.eq(complete),
            self.amax.eq(Cat(running[0] | (running == 0), running[1:])),
        ]
        return m


class CacheAddress(wiring.Component):
    """Where a K, scale or V burst goes: ``addr`` is LATENCY cycles behind ``tag`` and ``row``.

    ``head_end``, ``row_end`` : in, this chunk is the last of a head, of a row
    """

    LATENCY = 4

    def __init__(self, cfg: FabricConfig):
        super().__init__(
            {
                "k_base": In(ADDRESS_BITS),
                "scale_base": In(ADDRESS_BITS),
                "v_offset": In(ADDRESS_BITS),
                "kv_head": In(ADDRESS_BITS),
                "scale_head": In(ADDRESS_BITS),
                "row": In(row_record(cfg)),
                "part": In(Part),
                "head_end": In(1),
                "row_end": In(1),
                "addr": Out(ADDRESS_BITS),
            }
        )

    def elaborate(self, platform):
        m = Module()

        def stage(n, name):
            return Signal(ADDRESS_BITS, name=f"s{n}_{name}", reset_less=True)

        s1_kv_head, s1_scale_head = Signal(ADDRESS_BITS), Signal(ADDRESS_BITS)
        s1_row_end = delay(m, self.row_end, 1, "row_end", reset_less=False)
        s1_head_end = delay(m, self.head_end, 1, "head_end", reset_less=False)
        with m.If(s1_row_end):
            m.d.sync += [s1_kv_head.eq(0), s1_scale_head.eq(0)]
        with m.Elif(s1_head_end):
            m.d.sync += [
                s1_kv_head.eq(s1_kv_head + self.kv_head),
                s1_scale_head.eq(s1_scale_head + self.scale_head),
            ]
        s1_kv, s2_kv, s3_kv = (stage(n, "kv") for n in (1, 2, 3))
        s1_scale, s2_scale, s3_scale = (stage(n, "scale") for n in (1, 2, 3))
        s2_part = delay(m, self.part, 2, "part")
        s3_is_scale = delay(m, s2_part == Part.SCALE, 1, "is_scale")
        s2_position = delay(m, self.row.position, 2, "position")
        m.d.sync += [
            s1_kv.eq(self.k_base + self.row.kv_row),
            s2_kv.eq(s1_kv + s1_kv_head),
            s3_kv.eq(s2_kv + Mux(s2_part == Part.V, self.v_offset, 0)),
            s1_scale.eq(self.scale_base + self.row.scale_slot),
            s2_scale.eq(s1_scale + s1_scale_head),
            s3_scale.eq(s2_scale + (s2_position << 1)),
            self.addr.eq(Mux(s3_is_scale, s3_scale, s3_kv)),
        ]
        return m


class VectorUnit(wiring.Component):
    """NORM, ROPE, APPEND, SWIGLU: ``ops.rmsnorm``, ``rope``, ``quantize_k``, ``swiglu`` on chunks.

    One pipeline, RESULT cycles from issue to write, one chunk per cycle; it never stalls. Cycles of
    a command, apart from 30 (one pass) or 55 to fill and drain it:

    - ROPE, SWIGLU: rows x (chunks + 1)
    - NORM: rows x (2k + 1), at least about 10 per row
    - APPEND: rows x (heads x (3 head_chunks + 1) + 1), at least about 13 per head

    The multiplications are in :class:`Lanes` (16 for 8 lanes), two more in the reciprocals.

    Parameters
    ----------
    cfg : the configuration

    Members
    -------
    cmd : in, stream of instructions (the four operations only), taken when nothing runs
    rows, want_count, v_offset, kv_head, scale_head : in, of the step; constant while busy
    want_index, row_index : out, looked up combinationally: want_row, row
    res_r, out_r, param_r, rope_r, in_w : out, memory ports; addresses in chunks
    beats : out, stream to the Writer: per row and head of APPEND a burst of K, its scale, V
    sat_valid, sat_class, sat_count : out, lanes of a chunk that saturated to int16
    busy : out, from the command until all it does has been put out
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        chunk = cfg.cols * ops.ACT_BITS

        def bits(depth):
            return max(1, (depth - 1).bit_length())

        rope_bits = bits(cfg.max_rows * cfg.max_head_chunks)
        super().__init__(
            {
                "cmd": In(stream.Signature(instruction_layout())),
                "rows": In(count_shape(cfg)),
                "want_count": In(count_shape(cfg)),
                "want_index": Out(index_shape(cfg)),
                "want_row": In(index_shape(cfg)),
                "row_index": Out(index_shape(cfg)),
                "row": In(row_record(cfg)),
                "v_offset": In(ADDRESS_BITS),
                "kv_head": In(ADDRESS_BITS),
                "scale_head": In(ADDRESS_BITS),
                "res_r": Out(read_port(bits(cfg.res_chunks), cfg.cols * ops.RES_BITS)),
                "out_r": Out(read_port(bits(cfg.out_chunks), 2 * chunk)),
                "param_r": Out(read_port(bits(cfg.param_chunks), chunk)),
                "rope_r": Out(read_port(rope_bits, chunk)),
                "in_w": Out(write_port(bits(cfg.in_chunks), chunk)),
                "beats": Out(stream.Signature(write_beat(cfg))),
                "sat_valid": Out(1),
                "sat_class": Out(4),
                "sat_count": Out(range(cfg.cols + 1)),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg = self.cfg
        m.submodules.issue = issue = Issue(cfg)
        wiring.connect(m, wiring.flipped(self.cmd), issue.cmd)
        m.d.comb += [
            issue.rows.eq(self.rows),
            issue.want_count.eq(self.want_count),
            issue.want_row.eq(self.want_row),
            self.want_index.eq(issue.want_index),
            self.row_index.eq(issue.row),
            self.busy.eq(issue.busy),
        ]
        # The pipeline's registers move only while a command runs.
        active = EnableInserter(issue.busy)
        p = Module()
        m.submodules.stages = active(p)
        valid, tag = [issue.valid], [issue.tag]
        for n in range(1, RESULT + 1):
            valid.append(Signal(name=f"s{n}_valid"))
            tag.append(Signal(tag_layout(cfg), name=f"s{n}_tag", reset_less=True))
            p.d.sync += [valid[n].eq(valid[n - 1]), tag[n].eq(tag[n - 1])]
        m.submodules.operands = active(operands := Operands(cfg))
        m.submodules.lanes = active(lanes := Lanes(cfg.cols))
        heads = Ram(ITEMS * cfg.max_head_chunks, cfg.cols * ops.ACT_BITS, comb=True)
        m.submodules.heads = heads
        self._reads(m, p, issue, valid, tag)
        self._compute(m, issue, tag, operands, lanes, heads)
        self._factors(m, active, issue, valid, tag, operands, lanes, heads)
        self._results(m, p, active, issue, valid, tag, lanes)
        return m

    def _reads(self, m, p, issue, valid, tag):
        """Stage 1: the memories are addressed."""
        s1_src = Signal.like(issue.src, name="s1_src", reset_less=True)
        p.d.sync += s1_src.eq(issue.src)
        s1_valid, s1_tag, mean_tag = valid[READ], tag[READ], tag[MEAN]
        rotate = s1_valid & (issue.rope | (issue.append & ~s1_tag.second))
        gain, mean = s1_valid & issue.norm & s1_tag.second, valid[MEAN] & ~mean_tag.second
        m.d.comb += [
            self.res_r.en.eq(s1_valid & issue.norm),
            self.res_r.addr.eq(s1_src),
            self.out_r.en.eq(s1_valid & ~issue.norm),
            self.out_r.addr.eq(s1_src),
            self.rope_r.en.eq(rotate),
            self.rope_r.addr.eq(Cat(s1_tag.chunk, s1_tag.row)),
            self.param_r.en.eq(Mux(issue.append, mean, gain)),
            self.param_r.addr.eq(Mux(issue.append, mean_tag.param, s1_tag.param)),
        ]

    def _compute(self, m, issue, tag, operands, lanes, heads):
        """Stages 2 to RESULT: the operands and the lanes."""
        command, s2_tag = issue.command, tag[DATA]
        m.d.comb += [
            heads.r.addr.eq(Cat(s2_tag.chunk, s2_tag.slot)),
            operands.norm.eq(issue.norm),
            operands.swiglu.eq(issue.swiglu),
            operands.append.eq(issue.append),
            operands.in_shift.eq(command.shift2),
            operands.align.eq(command.shift2),
            operands.out_shift.eq(command.shift),
            operands.tag.eq(s2_tag),
            operands.res.eq(self.res_r.data),
            operands.out.eq(self.out_r.data),
            operands.param.eq(self.param_r.data),
            operands.rope.eq(self.rope_r.data),
            operands.head.eq(heads.r.data),
            lanes.a.eq(operands.a),
            lanes.b.eq(operands.b),
            lanes.a2.eq(operands.a2),
            lanes.c.eq(operands.c),
            lanes.shift1.eq(operands.shift1),
            lanes.shift2.eq(operands.shift2),
            lanes.add.eq(~issue.norm & ~issue.swiglu),
        ]

    def _factors(self, m, active, issue, valid, tag, operands, lanes, heads):
        """What first passes find out: one factor per item, kept until its second pass."""
        m.submodules.squares = active(squares := SquareSum(self.cfg.cols))
        m.submodules.centre = active(centre := Centre(self.cfg))
        m.submodules.rsqrt = active(rsqrt := Rsqrt(SquareSum.BITS))
        m.submodules.recip = active(recip := Recip127(AMAX_BITS))
        m.submodules.factors = factors = Ram(ITEMS, factor_layout().size, comb=True)
        factor, slot, late = Signal(factor_layout()), Signal(range(ITEMS)), Module()
        m.submodules.amax = active(late)
        s_product, s_result = tag[PRODUCT], tag[RESULT]
        m.d.comb += [
            squares.valid.eq(valid[PRODUCT] & issue.norm & ~s_product.second),
            squares.first.eq(s_product.first),
            squares.last.eq(s_product.last),
            squares.product.eq(lanes.product),
            squares.eps.eq(issue.command.imm),
            rsqrt.x_valid.eq(squares.sum_valid),
            rsqrt.x.eq(squares.sum),
            centre.valid.eq(valid[RESULT] & issue.append & ~s_result.second),
            centre.tag.eq(s_result),
            centre.y.eq(lanes.y),
            centre.mean.eq(self.param_r.data),
            recip.x_valid.eq(centre.amax_valid),
            recip.x.eq(centre.amax),
            factor.r.eq(Mux(issue.norm, rsqrt.r, recip.r)),
            factor.shift.eq(Mux(issue.norm, rsqrt.e, recip.e + 9)),
            factor.amax.eq(delay(late, centre.amax, Recip127.LATENCY, "amax")),
            issue.result.eq(rsqrt.r_valid | recip.r_valid),
            factors.w.en.eq(issue.result),
            factors.w.addr.eq(slot),
            factors.w.data.eq(factor),
            factors.r.addr.eq(tag[DATA].slot),
            operands.factor.eq(factors.r.data),
            heads.w.en.eq(centre.w.en),
            heads.w.addr.eq(centre.w.addr),
            heads.w.data.eq(centre.w.data),
        ]
        with m.If(issue.result):
            m.d.sync += slot.eq(slot + 1)

    def _results(self, m, p, active, issue, valid, tag, lanes):
        """Stage RESULT: to IN, or as beats to the Writer; saturations are counted."""
        cfg, command = self.cfg, issue.command
        s_valid, s_tag = valid[RESULT], tag[RESULT]
        m.submodules.fifo = fifo = Fifo(write_beat(cfg), BEATS)
        m.submodules.address = active(address := CacheAddress(cfg))
        for name in ("v_offset", "kv_head", "scale_head", "row"):
            m.d.comb += getattr(address, name).eq(getattr(self, name))
        wiring.connect(m, wiring.flipped(self.beats), fifo.o)
        scale, beat = s_tag.part == Part.SCALE, fifo.i.payload
        addr = delay(p, address.addr, RESULT - CacheAddress.LATENCY, "addr")
        byte = addr[1 : (cfg.port_bytes - 1).bit_length()]
        m.d.comb += [
            address.k_base.eq(command.imm),
            address.scale_base.eq(command.imm2),
            address.part.eq(issue.tag.part),
            address.head_end.eq(issue.append & issue.head_end),
            address.row_end.eq(issue.append & issue.row_end),
            self.in_w.en.eq(s_valid & ~issue.append & s_tag.second),
            self.in_w.addr.eq(s_tag.dst),
            self.in_w.data.eq(lanes.y),
            fifo.i.valid.eq(s_valid & issue.append & s_tag.second),
            beat.first.eq(s_tag.first),
            beat.last.eq(s_tag.last),
            beat.addr.eq(addr),
            beat.data.eq(
                Mux(
                    scale,
                    lanes.y[0].replicate(cfg.port_bytes // 2),
                    Cat(lanes.y[i][:8] for i in range(cfg.cols)),
                )
            ),
            beat.strb.eq(Mux(scale, 3 << Cat(0, byte), (1 << cfg.port_bytes) - 1)),
            issue.beat_taken.eq(self.beats.valid & self.beats.ready),
            issue.beats_left.eq(fifo.level != 0),
            self.sat_class.eq(command.sat),
        ]
        p.d.sync += [
            self.sat_valid.eq(s_valid & (s_tag.second ^ issue.append)),
            self.sat_count.eq(sum(lanes.saturated[i] for i in range(cfg.cols))),
        ]
