"""How fast an accelerator is with a model of some shape, on the simulated hardware.

The numbers of the model do not matter for its speed, so it is a random one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenfabric.compiler.compile import check_fits, compile_model
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.image import Image
from tokenfabric.core.shape import ModelShape
from tokenfabric.host.device import CountingDevice
from tokenfabric.host.perf import measure_decode, measure_prefill
from tokenfabric.quant.qmodel import QModel
from tokenfabric.sim.devices import VerilatedDevice, verilated

__all__ = ["measure", "measure_on", "random_image", "simulated"]

CONTEXT = 64  # positions in the KV cache of a decode step, unless somebody asks for others
Progress = Callable[..., None]  # what is done, and perhaps how much of it


def random_image(cfg: FabricConfig, shape: ModelShape, progress: Progress | None = None) -> Image:
    """A random model of this shape, always the same one, compiled for ``cfg``. UserError, before
    it is made, where it does not fit."""
    check_fits(shape, cfg)
    if progress is not None:
        progress("making a random model")
    model = QModel.random(shape, 0)
    if progress is None:
        return compile_model(model, cfg)
    return compile_model(
        model, cfg, progress=lambda done, total: progress("compiling", done, total)
    )


def simulated(
    cfg: FabricConfig, shape: ModelShape, progress: Progress | None = None
) -> tuple[VerilatedDevice, Image]:
    """The accelerator in Verilator, and a random model of this shape for it."""
    image = random_image(cfg, shape, progress)
    return verilated(cfg, image.memory(), progress=progress), image


def measure_on(
    device: CountingDevice,
    cfg: FabricConfig,
    image: Image,
    *,
    context: int = CONTEXT,
    rows: int | None = None,
) -> dict[str, Any]:
    """What :mod:`tokenfabric.host.perf` measures: decoding with ``context`` positions in the
    cache or, if ``rows`` is given, the prefill of so many tokens. UserError if they do not fit."""
    if rows is None:
        return measure_decode(device, cfg, image, context)
    return measure_prefill(device, cfg, image, rows)


def measure(
    cfg: FabricConfig,
    shape: ModelShape,
    *,
    context: int = CONTEXT,
    rows: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The speed of ``cfg`` with a model of this shape; ``context`` and ``rows`` as for
    :func:`measure_on`."""
    device, image = simulated(cfg, shape, progress)
    if progress is not None:
        progress("simulating")
    return measure_on(device, cfg, image, context=context, rows=rows)
