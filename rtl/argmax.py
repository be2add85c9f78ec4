"""Greedy sampling: the largest logit of each row."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.ops import RES_BITS
from tokenfabric.rtl.layouts import index_shape, matmul_result
from tokenfabric.rtl.memory import Ram
from tokenfabric.rtl.pipeline import delay

__all__ = ["Argmax", "LargestLane"]


class LargestLane(wiring.Component):
    """The largest of a chunk of logits and its lane; the lowest lane wins a tie.

    A chunk per cycle, LATENCY cycles. Channels beyond the vocabulary get the smallest value: they
    lose every tie.

    Members
    -------
    y : in, C times int32; block : in, 16 bits: channels ``C * block`` and on
    vocab : in, 32 bits: channels that count; at least the first of a chunk does
    largest : out, int32; lane : out, log2(C) bits
    """

    def __init__(self, cfg: FabricConfig):
        self.levels = (cfg.cols - 1).bit_length()
        self.LATENCY = self.levels + 2
        super().__init__(
            {
                "y": In(data.ArrayLayout(signed(RES_BITS), cfg.cols)),
                "block": In(16),
                "vocab": In(32),
                "largest": Out(signed(RES_BITS)),
                "lane": Out(self.levels),
            }
        )

    def elaborate(self, platform):
        m = Module()
        # Stage 0 counts the channels that are left, stage 1 takes out those beyond the vocabulary.
        left = Signal(signed(33))
        s0_y = Signal(self.y.shape(), reset_less=True)
        m.d.sync += [left.eq(self.vocab - Cat(Signal(self.levels), self.block)), s0_y.eq(self.y)]
        lanes = [
            (
                Signal(signed(RES_BITS), name=f"s1_y{i}", reset_less=True),
                Signal(self.levels, name=f"s1_lane{i}"),
            )
            for i in range(len(self.y))
        ]
        for i, (y, lane) in enumerate(lanes):
            m.d.comb += lane.eq(i)
            m.d.sync += y.eq(Mux(left > i, s0_y[i], -(1 << (RES_BITS - 1))))
        for level in range(self.levels):
            halved = []
            for i in range(0, len(lanes), 2):
                (a, a_lane), (b, b_lane) = lanes[i], lanes[i + 1]
                y = Signal(signed(RES_BITS), name=f"s{level + 2}_y{i}", reset_less=True)
                lane = Signal(self.levels, name=f"s{level + 2}_lane{i}", reset_less=True)
                m.d.sync += [y.eq(Mux(b > a, b, a)), lane.eq(Mux(b > a, b_lane, a_lane))]
                halved.append((y, lane))
            lanes = halved
        ((y, lane),) = lanes
        m.d.comb += [self.largest.eq(y), self.lane.eq(lane)]
        return m


class Argmax(wiring.Component):
    """The largest logit of each index and its channel; the lowest channel wins a tie.

    Takes a chunk per cycle; a block 0 begins anew. The same index comes again after 4 cycles at the
    earliest. ``best_token`` of ``best_index`` is right LATENCY cycles after the last chunk.

    Members
    -------
    valid : in, 1 bit; result : in, ``matmul_result``: a chunk of logits
    vocab : in, 32 bits: channels that count
    best_index : in, a row; best_token : out, 32 bits, its channel; combinational
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        self.largest = LargestLane(cfg)
        self.LATENCY = self.largest.LATENCY + 1
        super().__init__(
            {
                "valid": In(1),
                "result": In(matmul_result(cfg)),
                "vocab": In(32),
                "best_index": In(index_shape(cfg)),
                "best_token": Out(32),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.largest = largest = self.largest
        valid = delay(m, self.valid, largest.LATENCY, "valid", reset_less=False)
        index, block = (
            delay(m, self.result[name], largest.LATENCY, name) for name in ("index", "block")
        )
        token_bits = 16 + len(largest.lane)
        entry = data.StructLayout({"y": signed(RES_BITS), "token": unsigned(token_bits)})
        m.submodules.best = best = Ram(self.cfg.max_rows, entry.size, comb=True)
        m.submodules.tokens = tokens = Ram(self.cfg.max_rows, token_bits, comb=True)
        held, new = data.View(entry, best.r.data), Signal(entry)
        m.d.comb += [
            largest.y.eq(self.result.y),
            largest.block.eq(self.result.block),
            largest.vocab.eq(self.vocab),
            best.r.addr.eq(index),
            new.y.eq(largest.largest),
            new.token.eq(Cat(largest.lane, block)),
            best.w.addr.eq(index),
            best.w.data.eq(new),
            best.w.en.eq(valid & ((block == 0) | (new.y > held.y))),
            tokens.w.addr.eq(index),
            tokens.w.data.eq(new.token),
            tokens.w.en.eq(best.w.en),
            tokens.r.addr.eq(self.best_index),
            self.best_token.eq(tokens.r.data),
        ]
        return m
