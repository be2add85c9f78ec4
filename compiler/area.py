"""What a config takes of an FPGA: computed instead of synthesized.

DSP slices and RAM blocks follow from the design. LUTs and flip-flops are a sum of parts whose costs
were counted by yosys (``tokenfabric synth``); ``tests/test_area.py`` holds the sum to a config that
it was not fitted to: within ERROR.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

from tokenfabric.core.boards import CAPACITY
from tokenfabric.core.config import FabricConfig

__all__ = ["COMPARED", "ERROR", "area", "shares"]

ERROR = 0.10  # at most, of every resource

LANE_DSPS = 5  # a lane of the vector unit 2, of Requantize 2, of the softmax 1
OTHER_DSPS = 6  # reciprocals, roots, addresses


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
        return float(sum(cost * count for cost, count in zip(astuple(self), counts)))


# An element: SystolicArray at three sizes. A byte: WeightStream, Fetch and KvBuffer, with two and
# four ports. A lane: Requantize and SoftmaxUnit with 8 and 16; of VectorUnit, counted with 8 only,
# an estimate. ``fabric``: from the structure of the multiplier. The base: what is left of tiny.
LUTS = _Cost(base=12_630, lane=1_530, byte=91, element=13, fabric=130)
FLIP_FLOPS = _Cost(base=11_774, lane=1_250, byte=76, element=14, fabric=136)
# Parts for which a preset was synthesized that nothing was fitted to.
COMPARED = ("xc7z020", "xck26")


def area(cfg: FabricConfig) -> dict[str, float]:
    """What ``cfg`` takes of an FPGA with LUTs of six inputs, by resource as in boards.CAPACITY."""
    return {
        "lut": LUTS(cfg),
        "ff": FLIP_FLOPS(cfg),
        "dsp": cfg.macs - cfg.fabric_rows * cfg.cols + LANE_DSPS * cfg.cols + OTHER_DSPS,
        "bram36": sum(cfg.block_rams().values()),
        "uram": sum(cfg.ultra_rams().values()),
    }


def shares(cfg: FabricConfig, fpga: str) -> dict[str, float]:
    """The part of each resource of the FPGA (of CAPACITY) that ``cfg`` takes."""
    whole = CAPACITY[fpga]
    return {n: value / whole[n] for n, value in area(cfg).items() if n in whole}
