"""The array with all that it reads and writes: what the program knows as the unit ARRAY."""

from __future__ import annotations

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from tokenfabric.core.config import FabricConfig
from tokenfabric.rtl.activations import Activations
from tokenfabric.rtl.layouts import (
    MatmulDest,
    index_shape,
    matmul_command,
    matmul_result,
    table_entry,
)
from tokenfabric.rtl.matmul import MatmulEngine
from tokenfabric.rtl.writeback import SaturationCounter, Writeback

__all__ = ["ArrayUnit", "array_commands"]

MATMUL_PORTS = ("words", "kv_words", "kv_scales", "score_r", "row_scale_w")
MATMUL_INPUTS = ("embed_valid", "embed")
MATMUL_EVENTS = ("count_busy", "wait_weights", "wait_kv", "wait_room", "idle")
WRITEBACK_INPUTS = ("vocab", "best_index", "dump", "dump_addr")
WRITEBACK_OUTPUTS = ("best_token", "dump_index")
VECTOR_PORTS = ("vector_in_w", "vector_out_r", "vector_res_r", "vector_param_r")


def array_commands(cfg: FabricConfig) -> wiring.Signature:
    """From who commands the array: commands, and entries of the row table before them."""
    return wiring.Signature(
        {
            "matmul": Out(stream.Signature(matmul_command(cfg))),
            "table_en": Out(1),
            "table_index": Out(index_shape(cfg)),
            "table": Out(table_entry(cfg)),
        }
    )


class ArrayUnit(wiring.Component):
    """MatmulEngine, the memories of activations, and Writeback, which puts results into them.

    Latency and throughput: see these; nothing is added to theirs.

    Members
    -------
    issue, attention : array_commands, in; ``attends`` : in, level: the latter alone commands
    busy : out, a command is in the array, or a result on its way
    words, kv_words, kv_scales : streams, in, see MatmulEngine
    score_r : read_port of SCORES, out
    row_scale_w, embed_valid, embed : in, see MatmulEngine
    score_valid, score : out, a matmul_result with scores
    vector_in_w, vector_out_r, vector_res_r, vector_param_r : in, see Activations
    vocab, best_index, dump, dump_addr : in; best_token, dump_index : out, see Writeback
    beats : stream of write_beat, out: logits
    read_class : in, a class of values that saturate; read_count : out, 32 bits, how many of them
        did here, combinational
    count_busy, wait_weights, wait_kv, wait_room, idle : out, see MatmulEngine
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        self.matmul, self.writeback = MatmulEngine(cfg), Writeback(cfg)
        self.activations = Activations(cfg)
        of_matmul, of_writeback, of_activations = (
            unit.signature.members for unit in (self.matmul, self.writeback, self.activations)
        )
        super().__init__(
            {
                "issue": In(array_commands(cfg)),
                "attention": In(array_commands(cfg)),
                "attends": In(1),
                "busy": Out(1),
                **{n: of_matmul[n] for n in (*MATMUL_PORTS, *MATMUL_INPUTS, *MATMUL_EVENTS)},
                "score_valid": Out(1),
                "score": Out(matmul_result(cfg)),
                **{n: of_activations[n] for n in VECTOR_PORTS},
                **{n: of_writeback[n] for n in ("beats", *WRITEBACK_INPUTS, *WRITEBACK_OUTPUTS)},
                "read_class": In(4),
                "read_count": Out(32),
            }
        )

    def elaborate(self, platform):
        m = Module()
        matmul, writeback, activations = self.matmul, self.writeback, self.activations
        m.submodules.matmul = matmul
        m.submodules.writeback = writeback
        m.submodules.activations = activations
        for source, commands in ((self.attention, self.attends), (self.issue, ~self.attends)):
            with m.If(commands):
                m.d.comb += [
                    matmul.cmd.valid.eq(source.matmul.valid),
                    matmul.cmd.payload.eq(source.matmul.payload),
                    source.matmul.ready.eq(matmul.cmd.ready),
                    matmul.table_w.en.eq(source.table_en),
                    matmul.table_w.addr.eq(source.table_index),
                    matmul.table_w.data.eq(source.table),
                ]
        for name in MATMUL_PORTS:
            connect(m, getattr(matmul, name), flipped(getattr(self, name)))
        for name in VECTOR_PORTS:
            connect(m, getattr(activations, name), flipped(getattr(self, name)))
        for name in ("in_r", "param_w"):
            connect(m, getattr(matmul, name), getattr(activations, f"matmul_{name}"))
        for name in ("in_w", "out_w", "res_w", "res_r"):
            connect(m, getattr(writeback, name), getattr(activations, f"writeback_{name}"))
        connect(m, writeback.beats, flipped(self.beats))
        for unit, inputs, outputs in (
            (matmul, MATMUL_INPUTS, MATMUL_EVENTS),
            (writeback, WRITEBACK_INPUTS, WRITEBACK_OUTPUTS),
        ):
            m.d.comb += [getattr(unit, name).eq(getattr(self, name)) for name in inputs]
            m.d.comb += [getattr(self, name).eq(getattr(unit, name)) for name in outputs]
        m.d.comb += [
            matmul.room.eq(writeback.room),
            writeback.valid.eq(matmul.result_valid),
            writeback.result.eq(matmul.result),
            self.busy.eq(matmul.busy | writeback.busy),
            self.score_valid.eq(matmul.result_valid & (matmul.result.dest == MatmulDest.SCORES)),
            self.score.eq(matmul.result),
        ]
        self._saturated(m)
        return m

    def _saturated(self, m: Module) -> None:
        """Results are counted by class, additions to the residual stream in class 0."""
        writeback = self.writeback
        m.submodules.saturated = results = SaturationCounter(len(writeback.sat_count))
        m.submodules.saturated_adds = adds = SaturationCounter(len(writeback.add_count))
        m.d.comb += [
            results.valid.eq(writeback.sat_valid),
            results.klass.eq(writeback.sat_class),
            results.count.eq(writeback.sat_count),
            adds.valid.eq(writeback.add_valid),
            adds.count.eq(writeback.add_count),
            results.read_class.eq(self.read_class),
            adds.read_class.eq(self.read_class),
            self.read_count.eq(results.read_count + adds.read_count),
        ]
