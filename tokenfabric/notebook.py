"""A model on an accelerator in one line, for notebooks and small programs."""

from __future__ import annotations

from pathlib import Path

from tokenfabric.commands.inputs import load_image, shipped_model
from tokenfabric.errors import UserError
from tokenfabric.host.text import LLM
from tokenfabric.progress import Progress

__all__ = ["load"]


def load(
    model: str | Path | None = None,
    *,
    on: str = "verilator",
    preset: str | None = None,
    context: int | None = None,
    slots: int = 1,
    tokenizer: str | None = None,
) -> LLM:
    """An LLM on the device ``on``: golden, pysim or verilator.

    model: a model file, an image, a llama2.c .bin or a Hugging Face folder; the shipped one by
    default. slots: texts at a time. The other options are those of ``tokenfabric generate``.
    """
    from tokenfabric.sim.devices import make_device

    path = shipped_model() if model is None else Path(model)
    with Progress() as progress:
        cfg, image = load_image(path, tokenizer, preset, context, progress, slots)
        if image.slots < slots:
            raise UserError(
                f"{path}: was compiled with {image.slots} slots, not {slots}; compile it again"
            )
        device = make_device(on, cfg, image.memory(), progress=progress)
        return LLM(device, image, progress=progress)
