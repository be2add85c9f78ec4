"""What the project makes of fixed inputs, as hashes: Verilog, model files, programs and streams.

A change that should not change any of them (a redesign, a move, a new name) is checked with it; one
that should says which lines of ``identity.json`` it moves. stories260K takes part where it is at
hand (``../shared`` or ``$TOKENFABRIC_SHARED``); its line and that of the shipped model are
quantized here.

    python benchmarks/identity.py            compare everything (make identity)
    python benchmarks/identity.py --fast     all but Verilog, which takes minutes
    python benchmarks/identity.py --update   write identity.json (make identity-update); with
                                             --fast the Verilog's lines stay as they are
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tokenfabric.compiler.compile import compile_model
from tokenfabric.core.config import PRESETS, preset
from tokenfabric.core.errors import UserError
from tokenfabric.core.image import PAGE
from tokenfabric.core.isa import INSTRUCTION_BYTES
from tokenfabric.core.shape import NAMED_SHAPES, ModelShape
from tokenfabric.flow.verilog import cached_verilog
from tokenfabric.quant.qmodel import QModel
from tokenfabric.quant.quantize import quantize_checkpoint

from tokenfabric.commands.inputs import load_checkpoint
from tokenfabric.commands.options import write_json

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BASELINE = HERE / "identity.json"
SHARED = Path(os.environ.get("TOKENFABRIC_SHARED", ROOT.parent / "shared"))
UPDATE = "if that is what you wanted: make identity-update"

# The sizes that no power of two divides, tied and untied, of the tests.
SHAPES = {
    "stories260k": NAMED_SHAPES["stories260k"],
    "odd": ModelShape(40, 52, 2, 3, 1, 20, 77, 64, tied=False),
    "odder": ModelShape(96, 200, 2, 3, 1, 32, 777, 128),
    "narrow": ModelShape(36, 68, 1, 4, 4, 22, 131, 64, tied=False),
    "mqa": ModelShape(18, 29, 1, 3, 1, 10, 41, 64, norm_eps=1e-6, rope_theta=5e5),
}
SLOTS = (1, 3)


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:32]


def model_file(model: QModel) -> str:
    with tempfile.TemporaryDirectory(prefix="tokenfabric-") as folder:
        path = Path(folder) / "model.tfm"
        model.write(path)
        return digest(path.read_bytes())


def image_of(model: QModel, name: str, slots: int) -> dict[str, Any]:
    """Hashes of the parts of an image; or why there is none."""
    try:
        image = compile_model(model, preset(name), slots=slots)
    except UserError as error:
        return {"refused": str(error)}
    at, size = image.map.program - PAGE, image.map.program_words * INSTRUCTION_BYTES
    code, data = image.payload[at : at + size], image.payload[at + size :]
    row = {"token": 1, "position": 0, "slot": slots - 1, "flags": 3}
    header = {key: value for key, value in vars(image).items() if isinstance(value, (int, str))}
    return {
        "program": digest(code.tobytes()),
        "data": digest(data.tobytes()),
        "map": digest(json.dumps([asdict(image.map), header], sort_keys=True).encode()),
        "descriptor": digest(np.ascontiguousarray(image.descriptor([row])).tobytes()),
    }


def real_models() -> dict[str, QModel]:
    """The shipped model and stories260K, quantized."""
    sources = {"shipped": ROOT / "models" / "stories"}
    if (SHARED / "models" / "stories260K.bin").exists():
        sources["stories260K"] = SHARED / "models" / "stories260K.bin"
    return {
        name: quantize_checkpoint(*load_checkpoint(source, None))
        for name, source in sources.items()
    }


def found(fast: bool) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, cfg in PRESETS.items():
        result[f"fingerprint {name}"] = cfg.fingerprint
        if not fast:
            result[f"verilog {name}"] = digest(cached_verilog(cfg).encode())
    if not fast:
        board = cached_verilog(preset("ulx3s"), board=True)
        result["verilog ulx3s with its board"] = digest(board.encode())
    models = {name: QModel.random(shape, 0) for name, shape in SHAPES.items()} | real_models()
    for name, model in models.items():
        result[f"model {name}"] = model_file(model)
        for config in PRESETS:
            for slots in SLOTS:
                result[f"image {name} {config} {slots}"] = image_of(model, config, slots)
    return result


def differences(old: dict[str, Any], new: dict[str, Any], fast: bool) -> list[str]:
    """One line for each figure that is not the known one; those that cannot be made are left out"""
    known = {
        name: value
        for name, value in old.items()
        if name in new or not ("stories260K" in name or (fast and name.startswith("verilog")))
    }
    return [
        f"{name}: {known.get(name)} -> {new.get(name)}"
        for name in {**known, **new}
        if known.get(name) != new.get(name)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="all but the Verilog")
    parser.add_argument("--update", action="store_true", help="write what was found")
    args = parser.parse_args()
    new = found(args.fast)
    old = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    if args.update:
        write_json(str(BASELINE), {**old, **new})
        return 0
    lines = differences(old, new, args.fast)
    for line in lines:
        print(line)
    print(UPDATE if lines else f"all {len(new)} as they were")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
