"""Attention with all that only it uses: what the program knows as the unit ATTENTION."""

from __future__ import annotations

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from tokenfabric.core.config import FabricConfig
from tokenfabric.rtl.array import array_commands
from tokenfabric.rtl.attention import AttentionControl
from tokenfabric.rtl.kvbuffer import KvBuffer
from tokenfabric.rtl.layouts import matmul_result, row_scale
from tokenfabric.rtl.softmax import SoftmaxUnit

__all__ = ["AttentionUnit"]

INPUTS = ("rows", "row", "plan_row", "v_offset", "kv_head", "scale_head")
OUTPUTS = ("busy", "row_index", "plan_index")


class AttentionUnit(wiring.Component):
    """AttentionControl, the buffer for K and V, and the softmax.

    Latency and throughput: see these; nothing is added to theirs.

    Members
    -------
    cmd, busy : stream of instructions, in; out, one is running
    rows, v_offset, kv_head, scale_head : in, of the job, see AttentionControl
    row_index, row, plan_index, plan_row : out and in, two readers of the row table
    fetch : stream of fetch_command, out
    turns, beats : streams, in: K and V as they come, see KvBuffer
    words : stream of the words of K and V, out
    array : array_commands, out; ``array_busy`` : in
    score_valid, score : in, a matmul_result with scores
    p_r : read_port of SCORES, in, see SoftmaxUnit
    row_scale_w : out, ``en`` and a row_scale: the multiplier that finishes a row
    softmax_busy : out, the softmax is at work
    """

    def __init__(self, cfg: FabricConfig):
        self.control, self.kv, self.softmax = AttentionControl(cfg), KvBuffer(cfg), SoftmaxUnit(cfg)
        of_control, of_kv = self.control.signature.members, self.kv.signature.members
        row_scales = wiring.Signature({"en": Out(1), "payload": Out(row_scale(cfg))})
        super().__init__(
            {
                **{name: of_control[name] for name in ("cmd", "fetch", *INPUTS, *OUTPUTS)},
                **{name: of_kv[name] for name in ("turns", "beats", "words")},
                "array": Out(array_commands(cfg)),
                "array_busy": In(1),
                "score_valid": In(1),
                "score": In(matmul_result(cfg)),
                "p_r": self.softmax.signature.members["p_r"],
                "row_scale_w": Out(row_scales),
                "softmax_busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        control, kv, softmax = self.control, self.kv, self.softmax
        m.submodules.control, m.submodules.kv, m.submodules.softmax = control, kv, softmax
        connect(m, flipped(self.cmd), control.cmd)
        connect(m, control.fetch, flipped(self.fetch))
        connect(m, control.kv, kv.cmd)
        connect(m, control.softmax, softmax.cmd)
        connect(m, control.matmul, flipped(self.array.matmul))
        connect(m, flipped(self.turns), kv.turns)
        for source, sink in zip(self.beats, kv.beats, strict=True):
            connect(m, flipped(source), sink)
        connect(m, kv.words, flipped(self.words))
        connect(m, flipped(self.p_r), softmax.p_r)
        m.d.comb += [getattr(control, name).eq(getattr(self, name)) for name in INPUTS]
        m.d.comb += [getattr(self, name).eq(getattr(control, name)) for name in OUTPUTS]
        m.d.comb += [
            self.array.table_en.eq(control.table_en),
            self.array.table_index.eq(control.table_index),
            self.array.table.eq(control.table),
            control.matmul_busy.eq(self.array_busy),
            control.softmax_busy.eq(softmax.busy),
            softmax.score_valid.eq(self.score_valid),
            softmax.score.eq(self.score),
            self.row_scale_w.en.eq(softmax.row_scale_valid),
            self.row_scale_w.payload.eq(softmax.row_scale),
            self.softmax_busy.eq(softmax.busy),
        ]
        return m
