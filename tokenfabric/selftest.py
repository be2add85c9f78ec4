"""Does an accelerator work? Random models, run on it and in numpy, must agree in every logit.

A small model goes through every unit; one with a large classifier reads some megabytes through all
ports, so that it tests the memory, too, and tells its speed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenfabric.compiler.compile import compile_model
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.image import Image
from tokenfabric.core.isa import RowFlag
from tokenfabric.core.shape import ModelShape
from tokenfabric.host.device import CountingDevice, load, put_job, run
from tokenfabric.quant.qmodel import QModel

__all__ = ["MemorySpeed", "check_arithmetic", "check_memory"]

OpenDevice = Callable[[Image, int], CountingDevice]  # (image, rows of dumped logits)

SMALL = ModelShape(
    dim=64, hidden=96, layers=2, heads=4, kv_heads=2, head_dim=16, vocab=96, context=64
)
LARGE = ModelShape(
    dim=256, hidden=64, layers=1, heads=4, kv_heads=4, head_dim=16, vocab=32_768, context=64
)
DEADLINE = 300.0


def check_arithmetic(open_device: OpenDevice, cfg: FabricConfig, seed: int = 0) -> str | None:
    """A prefill through every unit against numpy; a sentence that names the first difference."""
    return _compare(open_device, cfg, SMALL, rows=4, seed=seed)[0]


@dataclass(frozen=True)
class MemorySpeed:
    """``difference``: a sentence if any. ``moved``: bytes read through each port in ``cycles``."""

    difference: str | None
    moved: list[int]
    cycles: int

    def rates(self, clock_mhz: float) -> list[float]:
        """Bytes per second of each port."""
        return [count * clock_mhz * 1e6 / self.cycles for count in self.moved]


def check_memory(open_device: OpenDevice, cfg: FabricConfig, seed: int = 0) -> MemorySpeed:
    """One step over megabytes of weights, compared with numpy, and how fast they came."""
    difference, device = _compare(open_device, cfg, LARGE, rows=1, seed=seed)
    beats = [device.register(f"READ_BEATS_{port}") for port in range(cfg.ports)]
    moved = [count * cfg.port_bytes for count in beats]
    return MemorySpeed(difference, moved, device.counter("CYCLES"))


def _compare(
    open_device: OpenDevice, cfg: FabricConfig, shape: ModelShape, *, rows: int, seed: int
) -> tuple[str | None, Any]:
    model = QModel.random(shape, seed)
    image = compile_model(model, cfg)
    device = open_device(image, rows)
    tokens = np.random.default_rng(seed).integers(0, shape.vocab, rows)
    flags = int(RowFlag.WANT_LOGITS | RowFlag.DUMP_LOGITS)
    table = [
        {"token": int(token), "position": i, "slot": 0, "flags": flags}
        for i, token in enumerate(tokens)
    ]
    load(device, image)
    put_job(device, image.descriptor(table))
    run(device, DEADLINE)
    data = device.read(image.map.logits, rows * image.map.logits_stride)
    found = data.view("<i4").reshape(rows, -1)[:, : shape.vocab]
    want = model.forward(tokens)
    if np.array_equal(found, want):
        return None, device
    wrong = np.argwhere(found != want)
    row, channel = (int(i) for i in wrong[0])
    return (
        f"{len(wrong)} of {want.size} logits differ, first that of channel {channel} in row {row}: "
        f"{found[row, channel]} instead of {want[row, channel]}"
    ), device
