"""What an FPGA has, and what a config takes of it: computed instead of synthesized.

DSP slices and RAM blocks follow from the design. LUTs and flip-flops are a sum of parts whose costs
were counted by yosys (``tokenfabric synth``); ``tests/test_area.py`` holds the sum to a config that
it was not fitted to: within ERROR.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

from tokenfabric.config import FabricConfig

__all__ = ["CAPACITY", "COMPARED", "ERROR", "area", "shares"]

# bram36: blocks of 36 kbit.
CAPACITY: dict[str, dict[str, float]] = {
    "xc7z020": {"lut": 53_200, "lutram": 17_400, "ff": 106_400, "dsp": 220, "bram36": 140},
    "xck26": {
        "lut": 117_120, "lutram": 57_600, "ff": 234_240, "dsp": 1_248, "bram36": 144, "uram": 64,
    },
    "xczu7ev": {
        "lut": 230_400, "lutram": 101_760, "ff": 460_800, "dsp": 1_728, "bram36": 312, "uram": 96,
    },
    "lfe5u-85f": {"lut": 83_640, "ff": 83_640, "dsp": 156, "bram36": 104},
}  # fmt: skip

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
    """What ``cfg`` takes of an FPGA with LUTs of six inputs, by resource as in CAPACITY."""
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
