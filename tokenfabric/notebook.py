"""A model on an accelerator in one line, for notebooks and small programs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenfabric.commands.inputs import load_image, shipped_model
from tokenfabric.errors import UserError
from tokenfabric.host.text import LLM
from tokenfabric.progress import Progress

if TYPE_CHECKING:
    from tokenfabric.host.pynq_device import Board

__all__ = ["load", "open_board"]


def open_board(bitfile: str | Path, address: str | None = None, **options: Any) -> Board:
    """A board with this bitstream: this one, or the remote or virtual one at ``address``.

    Options: those of :class:`~tokenfabric.host.pynq_device.Board`. Needs the package ``pynq``.
    """
    if address is not None and "pynq" not in sys.modules:
        os.environ["PYNQ_REMOTE_DEVICES"] = address  # read once: a remote board has no interrupts
    from tokenfabric.host.pynq_device import Board

    return Board(bitfile, address=address, **options)


def load(
    model: str | Path | None = None,
    *,
    on: str | Board = "verilator",
    preset: str | None = None,
    context: int | None = None,
    slots: int = 1,
    tokenizer: str | None = None,
) -> LLM:
    """An LLM on the device ``on``: golden, pysim, verilator, or a board (:func:`open_board`).

    A board holds one model at a time. model: a model file, an image, a llama2.c .bin or a Hugging
    Face folder; the shipped one by default. slots: texts at a time. The other options are those of
    ``tokenfabric generate``.
    """
    path = shipped_model() if model is None else Path(model)
    accelerator = preset if isinstance(on, str) else on.config
    with Progress() as progress:
        cfg, image = load_image(path, tokenizer, accelerator, context, progress, slots)
        if image.slots < slots:
            raise UserError(
                f"{path}: was compiled with {image.slots} slots, not {slots}; compile it again"
            )
        if isinstance(on, str):
            from tokenfabric.sim.devices import make_device

            device = make_device(on, cfg, image.memory(), progress=progress)
        else:
            device = on.device(image)
        return LLM(device, image, progress=progress)
