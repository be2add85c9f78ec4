"""From a Llama-style checkpoint to tokens streaming off an FPGA, every bit checked.

What programs and notebooks need comes from here::

    from tokenfabric import load, measure, preset, UserError

Names are looked up when they are first used, so that importing this package costs nothing and a
board needs no more than what it calls.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tokenfabric.core import __version__

if TYPE_CHECKING:
    from tokenfabric.core.config import PRESETS, FabricConfig, preset
    from tokenfabric.core.errors import UserError
    from tokenfabric.core.shape import ModelShape, shape_from
    from tokenfabric.notebook import load, load_checkpoint, load_model, measure, open_board

__all__ = [
    "PRESETS",
    "FabricConfig",
    "ModelShape",
    "UserError",
    "__version__",
    "load",
    "load_checkpoint",
    "load_model",
    "measure",
    "open_board",
    "preset",
    "shape_from",
]

_HOMES = {
    "tokenfabric.core.config": ("PRESETS", "FabricConfig", "preset"),
    "tokenfabric.core.errors": ("UserError",),
    "tokenfabric.core.shape": ("ModelShape", "shape_from"),
    "tokenfabric.notebook": ("load", "load_checkpoint", "load_model", "measure", "open_board"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'tokenfabric' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
