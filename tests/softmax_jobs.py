"""Random softmax commands with what must come of them, for the tests in pysim and under cocotb."""

import numpy as np
from tokenfabric.core import ops
from tokenfabric.core.fixed import to_signed


def pack(values, bits: int = 16) -> int:
    return sum((int(v) & ((1 << bits) - 1)) << (bits * i) for i, v in enumerate(values))


def unpack(word: int, lanes: int, bits: int = 16) -> list[int]:
    mask = (1 << bits) - 1
    return to_signed([word >> (bits * i) & mask for i in range(lanes)], bits).tolist()


def pack_fields(layout, **values) -> int:
    """The payload of ``layout`` with these fields (integers), the others 0."""
    word = 0
    for name, value in values.items():
        field = layout[name]
        word |= (int(value) & ((1 << field.width) - 1)) << field.offset
    return word


class Job:
    """One command: scores of every lane, the rows' limits; p and (mult, shift) of each row."""

    def __init__(self, cfg, rng, *, m=None, blocks=None, align=None):
        self.cfg = cfg
        self.m = m or int(rng.integers(1, cfg.max_rows + 1))
        self.blocks = blocks or int(rng.integers(1, min(cfg.max_context // cfg.rows, 6) + 1))
        self.align = int(rng.integers(5)) if align is None else align
        width = self.blocks * cfg.rows
        spread = 1 << int(rng.integers(1, 16))
        self.scores = rng.integers(-spread, spread, (self.m, width)).clip(-32768, 32767)
        extreme = rng.random(self.m) < 0.2
        self.scores[extreme] = rng.choice([-32768, 32767, 0], (int(extreme.sum()), width))
        self.limits = rng.integers(width, size=self.m)
        if rng.integers(4) == 0:  # causal: the rows are consecutive positions
            self.limits = np.clip(width - self.m + np.arange(self.m), 0, None)
        self.finish()

    def finish(self):
        mask = np.arange(self.scores.shape[1]) <= self.limits[:, None]
        self.p, total = ops.softmax(self.scores, mask, self.align)
        self.scales = list(zip(*(v.tolist() for v in ops.attention_scale(total)), strict=True))

    def chunks(self):
        """``(block, index, C scores)`` in the array's order: block by block, row by row."""
        cols = self.cfg.cols
        for block in range(self.scores.shape[1] // cols):
            for index in range(self.m):
                yield block, index, self.scores[index, block * cols :][:cols]

    def reads(self):
        """``(chunk address, R values)`` of every row-block of p."""
        rows, cols = self.cfg.rows, self.cfg.cols
        for index in range(self.m):
            for block in range(self.blocks):
                addr = (index * self.cfg.max_context + block * rows) // cols
                yield addr, self.p[index, block * rows :][:rows].tolist()
