"""The vector unit: RMS norm, RoPE, appending to the KV cache, SwiGLU."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core import ops
from tokenfabric.core.config import FabricConfig
from tokenfabric.rtl.append import AppendBeats, CacheAddress
from tokenfabric.rtl.factors import ItemFactors
from tokenfabric.rtl.lanes import Lanes
from tokenfabric.rtl.layouts import (
    ADDRESS_BITS,
    count_shape,
    index_shape,
    instruction_layout,
    row_record,
    write_beat,
)
from tokenfabric.rtl.memory import read_port, write_port
from tokenfabric.rtl.operands import Operands
from tokenfabric.rtl.vectorissue import Stages, VectorIssue

__all__ = ["VectorUnit"]


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
        m.submodules.issue = issue = VectorIssue(cfg)
        # The pipeline moves in every cycle: an enable would drive all its registers.
        m.submodules.stages = stages = Stages(cfg)
        m.submodules.operands = operands = Operands(cfg)
        m.submodules.lanes = lanes = Lanes(cfg.cols)
        m.submodules.factors = factors = ItemFactors(cfg)
        m.submodules.address = address = CacheAddress(cfg)
        m.submodules.beats = beats = AppendBeats(cfg)
        wiring.connect(m, wiring.flipped(self.cmd), issue.cmd)
        wiring.connect(m, wiring.flipped(self.beats), beats.beats)
        m.d.comb += [
            issue.rows.eq(self.rows),
            issue.want_count.eq(self.want_count),
            issue.want_row.eq(self.want_row),
            issue.result.eq(factors.known),
            issue.beat_taken.eq(beats.taken),
            issue.beats_left.eq(beats.left),
            self.want_index.eq(issue.want_index),
            self.row_index.eq(issue.row),
            self.busy.eq(issue.busy),
            stages.issued.eq(issue.issued),
            stages.src.eq(issue.src),
        ]
        self._reads(m, issue, stages)
        self._operands(m, issue, stages, factors, operands)
        self._lanes(m, issue, stages, operands, lanes, factors)
        self._addresses(m, issue, address)
        self._results(m, issue, stages, lanes, address, beats)
        return m

    def _reads(self, m: Module, issue: VectorIssue, stages: Stages):
        """Stage READ: the memories are addressed. The mean of K is read later than the rest."""
        read, mean = stages.read, stages.mean
        rotate = read.valid & (issue.rope | (issue.append & ~read.tag.second))
        gain, mean_en = read.valid & issue.norm & read.tag.second, mean.valid & ~mean.tag.second
        m.d.comb += [
            self.res_r.en.eq(read.valid & issue.norm),
            self.res_r.addr.eq(stages.read_src),
            self.out_r.en.eq(read.valid & ~issue.norm),
            self.out_r.addr.eq(stages.read_src),
            self.rope_r.en.eq(rotate),
            self.rope_r.addr.eq(Cat(read.tag.chunk, read.tag.row)),
            self.param_r.en.eq(Mux(issue.append, mean_en, gain)),
            self.param_r.addr.eq(Mux(issue.append, mean.tag.param, read.tag.param)),
        ]

    def _operands(self, m: Module, issue, stages, factors, operands):
        """Stage DATA: what the memories and the first passes gave."""
        m.d.comb += [
            factors.slot.eq(stages.data.tag.slot),
            factors.chunk.eq(stages.data.tag.chunk),
            operands.norm.eq(issue.norm),
            operands.swiglu.eq(issue.swiglu),
            operands.append.eq(issue.append),
            operands.in_shift.eq(issue.command.shift2),
            operands.align.eq(issue.command.shift2),
            operands.out_shift.eq(issue.command.shift),
            operands.tag.eq(stages.data.tag),
            operands.res.eq(self.res_r.data),
            operands.out.eq(self.out_r.data),
            operands.param.eq(self.param_r.data),
            operands.rope.eq(self.rope_r.data),
            operands.head.eq(factors.head),
            operands.factor.eq(factors.factor),
        ]

    def _lanes(self, m: Module, issue, stages, operands, lanes, factors):
        """Stages OPERANDS to RESULT, and what first passes find out there."""
        for name in ("a", "b", "a2", "c", "shift1", "shift2"):
            m.d.comb += getattr(lanes, name).eq(getattr(operands, name))
        m.d.comb += [
            lanes.add.eq(~issue.norm & ~issue.swiglu),
            factors.norm.eq(issue.norm),
            factors.append.eq(issue.append),
            factors.eps.eq(issue.command.imm),
            factors.squares.eq(stages.product),
            factors.product.eq(lanes.product),
            factors.rotated.eq(stages.result),
            factors.y.eq(lanes.y),
            factors.mean.eq(self.param_r.data),
        ]

    def _addresses(self, m: Module, issue: VectorIssue, address: CacheAddress):
        """From stage 0 on: where the burst of this chunk goes."""
        for name in ("v_offset", "kv_head", "scale_head", "row"):
            m.d.comb += getattr(address, name).eq(getattr(self, name))
        m.d.comb += [
            address.k_base.eq(issue.command.imm),
            address.scale_base.eq(issue.command.imm2),
            address.part.eq(issue.issued.tag.part),
            address.head_end.eq(issue.append & issue.head_end),
            address.row_end.eq(issue.append & issue.row_end),
        ]

    def _results(self, m: Module, issue, stages, lanes, address, beats):
        """Stage RESULT: to IN, or as beats to the Writer; saturations are counted.

        First passes of APPEND count (that is where K saturates), those of NORM do not.
        """
        valid, tag = stages.result.valid, stages.result.tag
        m.d.comb += [
            self.in_w.en.eq(valid & ~issue.append & tag.second),
            self.in_w.addr.eq(tag.dst),
            self.in_w.data.eq(lanes.y),
            beats.valid.eq(valid & issue.append & tag.second),
            beats.part.eq(tag.part),
            beats.first.eq(tag.first),
            beats.last.eq(tag.last),
            beats.addr.eq(address.addr),
            beats.y.eq(lanes.y),
            self.sat_class.eq(issue.command.sat),
        ]
        m.d.sync += [
            self.sat_valid.eq(valid & (tag.second ^ issue.append)),
            self.sat_count.eq(sum(lanes.saturated[i] for i in range(self.cfg.cols))),
        ]
