"""The memories of activations and parameters, and the ports that the units share."""

from __future__ import annotations

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.ops import ACT_BITS, RES_BITS
from tokenfabric.rtl.layouts import CHUNK_BITS
from tokenfabric.rtl.memory import Ram, read_port, share_reads, share_writes, write_port

__all__ = ["Activations"]


class Activations(wiring.Component):
    """IN, OUT, RES and PARAM: what the units leave for each other between instructions.

    Each memory takes one write and gives one read per cycle, a cycle after ``en``, of old data if
    both are of one place. Where two units share a port the first listed has it when both want it,
    and the other's access is lost: the program's waits see to it that this does not happen.
    Addresses are in chunks of cols values: 16 bits each, in RES 32.

    Members
    -------
    writeback_in_w, vector_in_w : write_port of IN, in; a chunk
    matmul_in_r : read_port of IN, in; k_chunks chunks
    writeback_out_w : write_port of OUT, in; a chunk
    vector_out_r : read_port of OUT, in; two chunks
    writeback_res_w : write_port of RES, in; a chunk
    writeback_res_r, vector_res_r : read_port of RES, in; a chunk; both see what either read
    matmul_param_w : write_port of PARAM, in; a word of the weight stream
    vector_param_r : read_port of PARAM, in; a chunk
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        act, res = cfg.cols * ACT_BITS, cfg.cols * RES_BITS

        def bits(chunks: int) -> int:
            return max(1, (chunks - 1).bit_length())

        super().__init__(
            {
                "writeback_in_w": In(write_port(CHUNK_BITS, act)),
                "vector_in_w": In(write_port(bits(cfg.in_chunks), act)),
                "matmul_in_r": In(read_port(bits(cfg.in_chunks), cfg.k_chunks * act)),
                "writeback_out_w": In(write_port(CHUNK_BITS, act)),
                "vector_out_r": In(read_port(bits(cfg.out_chunks), 2 * act)),
                "writeback_res_w": In(write_port(CHUNK_BITS, res)),
                "writeback_res_r": In(read_port(CHUNK_BITS, res)),
                "vector_res_r": In(read_port(bits(cfg.res_chunks), res)),
                "matmul_param_w": In(write_port(bits(cfg.param_chunks), 8 * cfg.word_bytes)),
                "vector_param_r": In(read_port(bits(cfg.param_chunks), act)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg, ultra = self.cfg, self.cfg.ultra
        act, res = cfg.cols * ACT_BITS, cfg.cols * RES_BITS
        word = 8 * cfg.word_bytes // act  # chunks of a word of the weight stream
        m.submodules.in_ = in_ = Ram(
            cfg.in_chunks, act, read_units=cfg.k_chunks, ultra="in" in ultra
        )
        m.submodules.out = out = Ram(cfg.out_chunks, act, read_units=2, ultra="out" in ultra)
        m.submodules.res = res_ = Ram(cfg.res_chunks, res, ultra="res" in ultra)
        m.submodules.param = param = Ram(cfg.param_chunks, act, write_units=word)
        share_writes(m, in_.w, self.writeback_in_w, self.vector_in_w)
        share_reads(m, in_.r, self.matmul_in_r)
        share_writes(m, out.w, self.writeback_out_w)
        share_reads(m, out.r, self.vector_out_r)
        share_writes(m, res_.w, self.writeback_res_w)
        share_reads(m, res_.r, self.writeback_res_r, self.vector_res_r)
        share_writes(m, param.w, self.matmul_param_w)
        share_reads(m, param.r, self.vector_param_r)
        return m
