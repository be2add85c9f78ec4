"""A board in one line and a model on it in another, for notebooks and small programs."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenfabric.commands import inputs
from tokenfabric.core.errors import UserError, missing_package
from tokenfabric.host.text import LLM
from tokenfabric.progress import Progress

if TYPE_CHECKING:
    from tokenfabric.host.pynq_device import Board
    from tokenfabric.host.tokenizer import Tokenizer
    from tokenfabric.host.uart import SerialBoard
    from tokenfabric.quant.checkpoint import Checkpoint
    from tokenfabric.quant.qmodel import QModel
    from tokenfabric.sim.board import VirtualBoard

__all__ = ["load", "load_checkpoint", "load_model", "measure", "open_board"]

VIRTUAL = "kv260", "pynq-z2"  # a board that every pynq knows, an accelerator quickly simulated
_ending = ExitStack()  # ends the virtual board with the program
_virtual: list[VirtualBoard] = []  # the one that was started, for all who want one
atexit.register(_ending.close)


def open_board(
    bitfile: str | Path | None = None, address: str | None = None, **options: Any
) -> Board:
    """A board with this bitstream: this one, or the remote or virtual one at ``address``.

    By default the bitstream in $TOKENFABRIC_BITSTREAM at the address in $PYNQ_REMOTE_DEVICES;
    without both, a virtual board, which is started and ends with the program. Options: those of
    :class:`~tokenfabric.host.pynq_device.Board`. Needs the package ``pynq``.
    """
    bitfile = bitfile or os.environ.get("TOKENFABRIC_BITSTREAM")
    if bitfile is None:
        asked = address or os.environ.get("PYNQ_REMOTE_DEVICES")
        if asked and asked not in [board.address for board in _virtual]:
            raise UserError(f"no bitstream for the board at {asked}; name it, or no address")
        found = _start_virtual_board()
        bitfile, address = found.bitfile, found.address
    if address is not None and "pynq" not in sys.modules:
        os.environ["PYNQ_REMOTE_DEVICES"] = address  # read once: a remote board has no interrupts
    try:
        from tokenfabric.host.pynq_device import Board
    except ModuleNotFoundError as error:
        raise missing_package(error) from None
    return Board(bitfile, address=address, **options)


def _start_virtual_board() -> VirtualBoard:
    """The virtual board of this program, started if it does not run."""
    from tokenfabric.sim.board import virtual_board

    if not _virtual or _virtual[0].process.poll() is not None:
        name, preset = VIRTUAL
        with Progress() as progress:
            started = virtual_board(name, preset=preset, progress=progress)
            _virtual[:] = [_ending.enter_context(started)]
    return _virtual[0]


def load(
    model: str | Path | None = None,
    *,
    on: str | Board | SerialBoard = "verilator",
    preset: str | None = None,
    context: int | None = None,
    slots: int = 1,
    tokenizer: str | None = None,
) -> LLM:
    """An LLM on the device ``on``: golden, pysim, verilator, or a board.

    A board is one of :func:`open_board` or a :class:`~tokenfabric.host.uart.SerialBoard`, and holds
    one model at a time. model: a model file, an image, a llama2.c .bin or a Hugging Face folder;
    the shipped one by default. slots: texts at a time. The other options are those of
    ``tokenfabric generate``.
    """
    path = inputs.shipped_model() if model is None else Path(model)
    if isinstance(on, str):
        from tokenfabric.sim.devices import check_device

        check_device(on)  # before the model is quantized for it
    accelerator = preset if isinstance(on, str) else on.config
    with Progress() as progress:
        cfg, image = inputs.load_image(path, tokenizer, accelerator, context, progress, slots)
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


def load_model(
    model: str | Path | None = None, tokenizer: str | None = None
) -> tuple[QModel, Tokenizer]:
    """The integers of a model, for the reference, and its tokenizer; arguments as of ``load``."""
    path = inputs.shipped_model() if model is None else Path(model)
    with Progress() as progress:
        found = inputs.load_model(path, tokenizer, progress)
    return found, inputs.tokenizer_of(found.tokenizer, path)


def load_checkpoint(
    checkpoint: str | Path | None = None, tokenizer: str | None = None
) -> tuple[Checkpoint, Tokenizer]:
    """The floats of a llama2.c .bin or a Hugging Face folder; by default of the shipped model."""
    path = inputs.shipped_model() if checkpoint is None else Path(checkpoint)
    return inputs.load_checkpoint(path, tokenizer)


def measure(
    shape: str, preset: str, *, context: int = 64, rows: int | None = None
) -> dict[str, Any]:
    """What ``tokenfabric perf`` measures: decoding, or the prefill of ``rows`` tokens."""
    from tokenfabric.core.config import preset as config
    from tokenfabric.core.shape import shape_from
    from tokenfabric.sim import measure as simulation

    with Progress() as progress:
        return simulation.measure(
            config(preset), shape_from(shape), context=context, rows=rows, progress=progress
        )
