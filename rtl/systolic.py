"""The systolic array: R x C weight-stationary multipliers with a shadow set of weights."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.ops import ACT_BITS, WEIGHT_BITS
from tokenfabric.rtl.mac import PRODUCT_BITS, FabricMultipliers, multiply
from tokenfabric.rtl.pipeline import delays

__all__ = ["SystolicArray", "array_latency", "psum_shape"]


def psum_shape(cfg: FabricConfig):
    """The sum of one column's products."""
    return signed(PRODUCT_BITS + (cfg.rows - 1).bit_length())


def array_latency(cfg: FabricConfig) -> int:
    """From an x to its sums: down a chain, through a PE, up the tree."""
    return cfg.tile_cycles + 2 + (cfg.word_rows - 1).bit_length()


class SystolicArray(wiring.Component):
    """``psum[c] = sum over k of x[k] * w[k][c]``, one x per cycle, :attr:`LATENCY` cycles later.

    Row k is PE number ``depth = k // P`` of chain ``k % P`` (P = ``cfg.word_rows``). A partial sum
    enters a PE one cycle after the one above, so everything that enters row k (activation, swap,
    weights that come by columns) is delayed by its depth. A PE has a register for each of weight,
    activation, product and sum: one DSP slice; the shadow is beside it. The ends of the chains
    are added in a tree. Kung, "Why systolic architectures?", 1982.

    The multipliers of the last ``cfg.fabric_rows`` rows are made of LUTs and take a cycle more:
    what enters these rows does so one cycle earlier (:meth:`_start`).

    Weights go to the shadow: the ``cfg.tile_cycles`` words of a tile in order, gaps allowed. By
    columns, word w brings columns ``w*W ..``, R bytes each (W = ``cfg.word_cols``); with
    ``load_rows`` it brings rows ``w*P ..``, C bytes each. Those rows all have depth w, so when the
    words of a tile come one per cycle they arrive in step with the wave of the swap as they are.
    ``swap`` (with ``valid``) makes the tile current from that x on: at the earliest in the cycle
    after its last word; the first word of the next tile may come in the cycle of the swap. Then no
    row is overwritten before the wave has passed it, whichever the modes of the two tiles.

    Members
    -------
    load, load_index, load_rows, word : a word for the shadow
    valid, swap, x : R activations, lane k at bits ``16*k``
    psum : C sums
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        self.LATENCY = array_latency(cfg)
        super().__init__(
            {
                "load": In(1),
                "load_index": In(range(cfg.tile_cycles)),
                "load_rows": In(1),
                "word": In(8 * cfg.word_bytes),
                "valid": In(1),
                "swap": In(1),
                "x": In(cfg.rows * ACT_BITS),
                "psum": Out(data.ArrayLayout(psum_shape(cfg), cfg.cols)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        chains, depths = self.cfg.word_rows, self.cfg.tile_cycles
        valid = delays(m, self.valid, self.LATENCY - 1, name="valid", reset_less=False)
        sums: list[list[Value]] = [[] for _ in range(self.cfg.cols)]  # what enters the next row
        weights = self._weights(m)
        for depth in range(depths):
            first, start = depth * chains, self._start(depth)
            x = self.x.word_select(depth, chains * ACT_BITS)
            x = delays(m, x, start, name=f"x{depth}")[start]
            for row in range(first, first + chains):
                a = x.word_select(row - first, ACT_BITS).as_signed()
                enable = valid[start : depth + 2]
                products_of = self._dsp_row if start == depth else self._fabric_row
                products = products_of(m, row, a, weights[row], enable)
                for col, (column, product) in enumerate(zip(sums, products, strict=True)):
                    total = column.pop(0) + product if depth else product
                    column.append(self._sum(m, valid[depth + 2], total, f"p{row}_{col}"))
        for col, column in enumerate(sums):
            level = depths + 2
            while len(column) > 1:
                totals = [a + b for a, b in zip(column[::2], column[1::2], strict=True)]
                name = f"t{level}_{col}"
                column = [
                    self._sum(m, valid[level], t, f"{name}_{i}") for i, t in enumerate(totals)
                ]
                level += 1
            m.d.comb += self.psum[col].eq(column[0])
        return m

    def _start(self, depth: int) -> int:
        """Cycles from the x of row 0 to what enters the rows of this depth."""
        in_fabric = depth * self.cfg.word_rows >= self.cfg.rows - self.cfg.fabric_rows
        return depth - 1 if in_fabric else depth

    def _dsp_row(self, m: Module, row: int, x: Value, weights: Signal, enable: list) -> list:
        """The products of one row, a DSP slice for each."""
        a = Signal(signed(ACT_BITS), name=f"a{row}", reset_less=True)
        with m.If(enable[0]):
            m.d.sync += a.eq(x)
        products = []
        for col in range(self.cfg.cols):
            w = weights.word_select(col, WEIGHT_BITS).as_signed()
            product = Signal(signed(PRODUCT_BITS), name=f"m{row}_{col}", reset_less=True)
            with m.If(enable[1]):
                m.d.sync += product.eq(multiply(a, w))
            products.append(product)
        return products

    def _fabric_row(self, m: Module, row: int, x: Value, weights: Signal, enable: list) -> list:
        """The products of one row in LUTs."""
        m.submodules[f"row{row}"] = unit = FabricMultipliers(self.cfg.cols)
        m.d.comb += [unit.enable.eq(Cat(enable)), unit.a.eq(x), unit.w.eq(weights)]
        return [unit.product[col] for col in range(self.cfg.cols)]

    def _weights(self, m: Module) -> list[Signal]:
        """The current weights of each row, one byte per column."""
        cfg = self.cfg
        chains, depths, width = cfg.word_rows, cfg.tile_cycles, cfg.word_cols * WEIGHT_BITS
        swap = delays(m, self.swap, depths - 1, name="swap", reset_less=False)
        index = delays(m, self.load_index, depths - 1, name="load_index")
        by_column = self.load & ~self.load_rows
        by_column = delays(m, by_column, depths - 1, name="load", reset_less=False)
        current = []
        for row in range(cfg.rows):
            depth, chain = divmod(row, chains)
            start = self._start(depth)
            columns = [
                self.word.word_select(c * cfg.rows + row, WEIGHT_BITS) for c in range(cfg.word_cols)
            ]
            columns = delays(m, Cat(columns), start, name=f"word{row}")[start]
            shadow = Signal(cfg.cols * WEIGHT_BITS, name=f"shadow{row}", reset_less=True)
            with m.If(self.load & self.load_rows & (self.load_index == depth)):
                m.d.sync += shadow.eq(self.word.word_select(chain, cfg.cols * WEIGHT_BITS))
            for word in range(depths):
                with m.If(by_column[start] & (index[start] == word)):
                    m.d.sync += shadow.word_select(word, width).eq(columns)
            w = Signal.like(shadow, name=f"w{row}")
            with m.If(swap[start]):
                m.d.sync += w.eq(shadow)
            current.append(w)
        return current

    def _sum(self, m: Module, enable: Value, total: Value, name: str) -> Signal:
        """A register for ``total``, no wider than the sum of a whole column."""
        bits = min(len(total), psum_shape(self.cfg).width)
        register = Signal(signed(bits), name=name, reset_less=True)
        with m.If(enable):
            m.d.sync += register.eq(total)
        return register
