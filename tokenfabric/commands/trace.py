"""Compare a model tensor by tensor, and name the first one that differs.

With --against the quantized model is compared with the float checkpoint: the first tensor whose
error exceeds the tolerance is named. Without it, what a device leaves in memory (K and V cache,
logits) is compared with the quantized model, which must be equal bit for bit.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenfabric.commands.inputs import kind_of, load_model, tokenizer_of
from tokenfabric.commands.options import add_preset, real
from tokenfabric.core.errors import UserError
from tokenfabric.progress import Progress

if TYPE_CHECKING:
    from tokenfabric.core.config import FabricConfig
    from tokenfabric.core.image import Image
    from tokenfabric.host.device import Device
    from tokenfabric.quant.qmodel import QModel

DEADLINE = 3600.0
Row = tuple[str, float, float]  # tensor, error relative to its rms, largest error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="M", help="model file, or a checkpoint to quantize on the fly")
    add("--prompt", required=True, metavar="TEXT", help="the text to run")
    add("--against", metavar="CHECKPOINT", help="the float model; default: a device")
    add("--tolerance", type=real(0, 1e6), default=0.05, metavar="E", help="default: 0.05 of rms")
    add("--tokenizer", metavar="FILE", help="if M is a checkpoint that does not bring its own")
    add_preset(parser)
    add("--on", default="golden", metavar="DEVICE", help="golden (default), pysim or verilator")


def run(args: argparse.Namespace) -> int:
    from tokenfabric.core.config import preset
    from tokenfabric.sim.devices import check_device

    path, cfg = Path(args.model), preset(args.preset)
    if args.against is None:
        check_device(args.on)
    else:
        kind_of(Path(args.against))
    with Progress() as progress:
        model = load_model(path, args.tokenizer, progress)
        tokens = tokenizer_of(model.tokenizer, path).encode(args.prompt)
        if len(tokens) > model.shape.context:
            raise UserError(
                f"the prompt has {len(tokens)} tokens, the context {model.shape.context}; "
                "shorten the prompt"
            )
        progress("tracing")
        traced = _traced(model, tokens)
        if args.against is None:
            rows, tolerance = _against_device(args.on, cfg, model, tokens, traced, progress), 0.0
        else:
            rows, tolerance = _against_float(args.against, model, tokens, traced), args.tolerance
    return _report(rows, tolerance)


def _report(rows: list[Row], tolerance: float) -> int:
    first = None
    print(f"{'tensor':<24}{'error / rms':>12}{'largest error':>15}")
    for name, relative, largest in rows:
        bad = relative > tolerance
        first = first or (name if bad else None)
        print(f"{name:<24}{relative:>12.6f}{largest:>15.6g}{'  <--' if name == first else ''}")
    if first is None:
        print(f"no tensor differs by more than {tolerance:g} of its rms")
        return 0
    print(f"the first tensor that differs by more than {tolerance:g} of its rms: {first}")
    return 1


def _traced(model: QModel, tokens: list[int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    model.forward(tokens, trace=found.__setitem__)
    return found


def _error(name: str, got: Any, want: Any) -> Row:
    import numpy as np

    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    rms = np.sqrt(np.mean(want**2))
    error = np.sqrt(np.mean((got - want) ** 2))
    return name, float(error / rms if rms else error), float(np.abs(got - want).max())


def _against_float(
    path: str, model: QModel, tokens: list[int], traced: dict[str, Any]
) -> list[Row]:
    """Every tensor that both models have. Scores: softmax does not see a constant per row."""
    import numpy as np

    from tokenfabric.quant import float_model
    from tokenfabric.quant.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    rows: list[Row] = []
    scales = model.scales()

    def note(name: str, want: Any) -> None:
        got = traced[name] * scales[name]
        if got.shape != want.shape:
            raise UserError(
                f"{path}: tensor {name} has shape {want.shape}, the model's {got.shape}; "
                "give the checkpoint that was quantized"
            )
        if name.endswith("scores"):
            seen = np.isfinite(want)
            count = seen.sum(axis=-1, keepdims=True)
            got, want = (
                np.where(seen, x - np.where(seen, x, 0).sum(-1, keepdims=True) / count, 0)
                for x in (got, want)
            )
        rows.append(_error(name, got, want))

    float_model.forward(checkpoint, tokens, trace=note)
    return rows


def _against_device(
    device_name: str,
    cfg: FabricConfig,
    model: QModel,
    tokens: list[int],
    traced: dict[str, Any],
    progress: Progress,
) -> list[Row]:
    """The KV cache and the logits, which is what a device leaves in memory."""
    import numpy as np

    from tokenfabric.compiler.compile import compile_model
    from tokenfabric.host.session import Session
    from tokenfabric.sim.devices import make_device

    image = compile_model(model, cfg)
    device = make_device(device_name, cfg, image.memory(image.rows), progress=progress)
    session = Session(device, image, dump=True, deadline=DEADLINE)
    progress(f"running on {device_name}")
    list(session.generate(tokens, 1))
    rows = [
        _error(name, got, want)
        for name, got, want in _cache(device, image, model, traced, len(tokens))
    ]
    logits = np.concatenate([job.logits for job in session.jobs if job.logits is not None])
    rows.append(_error("logits", logits[:, : image.vocab], traced["logits"]))
    return rows


def _cache(
    device: Device, image: Image, model: QModel, traced: dict[str, Any], count: int
) -> Iterator[tuple[str, Any, Any]]:
    for name, layer, head, at, size in image.kv.tensors():
        data = device.read(at, count * size)
        tensor = f"layer{layer}." + {"K": "k8", "V": "v", "K scale": "k_amax"}[name]
        want = traced[tensor][:, head]
        if name == "K scale":
            got = data.view("<u2")
        else:
            got = data.view("i1").reshape(count, size)[:, : model.shape.head_dim]
        yield f"{tensor}[{head}]", got, want
