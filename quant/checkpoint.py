"""Float checkpoints: llama2.c's float32 ``.bin`` and Hugging Face folders, read with numpy only.

RoPE convention. In memory the rows of ``wq`` and ``wk`` are INTERLEAVED: rows (2i, 2i+1) of a head
are one pair that rotates together by position * theta ** (-2i / head_dim). That is llama2.c's order
(and the original Llama's). Hugging Face checkpoints are half-split (pair (i, i + head_dim/2)); they
are permuted here, once. Interleaved is what the hardware wants: one vector of lanes then holds both
members of every pair, so the rotation unit needs one read. A score q.k does not change, because q
and k are permuted alike; v and wo are not touched.

Sources: run.c and export.py (legacy_export, version1_export) of github.com/karpathy/llama2.c.
Nothing is ever unpickled, and nothing is allocated before the sizes in a header have been compared
with the size of the file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tokenfabric.core.errors import UserError
from tokenfabric.core.files import file_size, show
from tokenfabric.core.shape import ModelShape, read_config
from tokenfabric.quant.safetensors import (
    INDEX,
    Float,
    SafeTensors,
    Shards,
    check_finite,
)

Layer = dict[str, Float]
"""The tensors of one layer by name, with the shapes that the architecture's row gives them."""


@dataclass
class Checkpoint:
    """A float model. embedding, classifier [vocab, dim] (one object when tied); final_norm [dim].

    Every array is float32, C-contiguous, finite and owned by the checkpoint.
    """

    shape: ModelShape
    embedding: Float
    layers: list[Layer]
    final_norm: Float
    classifier: Float

    def tensors(self) -> Iterator[tuple[str, Float]]:
        """Every array by name, a tied one once."""
        yield "embedding", self.embedding
        for number, layer in enumerate(self.layers):
            yield from ((f"layer{number}.{name}", array) for name, array in layer.items())
        yield "final_norm", self.final_norm
        if not self.shape.tied:
            yield "classifier", self.classifier


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a llama2.c ``.bin`` file (float32) or a Hugging Face folder: config.json and
    model.safetensors, or the shards of its index. A model without lm_head.weight has tied
    embeddings, whatever config.json says.

    UserError, one line, for everything else: missing or truncated files, sizes that disagree with
    the file, other architectures, tensors that are missing, misshapen or hold NaN or infinity.
    """
    path = Path(path)
    try:
        return _load_hf(path) if path.is_dir() else _load_llama2c(path)
    except (OSError, ValueError) as error:
        why = " ".join(str(getattr(error, "strerror", None) or error).split())[:120]
        raise UserError(f"{path}: cannot be read ({why}); check the path") from None


def interleave_rope(weight: Float, heads: int) -> Float:
    """Rows of a rotated matrix [heads*head_dim, dim], or of its bias, from half-split to
    interleaved order: in each head row i goes to 2i and row i + head_dim/2 to 2i + 1.
    """
    halves = weight.reshape(heads, 2, len(weight) // heads // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


# llama2.c

_SIZES = struct.Struct("<7i")
_VERSIONED = struct.Struct("<4si7iB")  # magic, version, sizes, whether the classifier is tied
_VERSIONED_BYTES = 256
_MAGIC = b"24ka"


def _load_llama2c(path: Path) -> Checkpoint:
    size = file_size(path)
    with path.open("rb") as file:
        header = file.read(_VERSIONED_BYTES)
        _refuse_other_formats(path, header)
        versioned = header.startswith(_MAGIC)
        shape = _llama2c_shape(path, header, versioned)
        stacks = {name: dims for name, _, dims in shape.architecture.tensors(shape)}
        if versioned:
            start, gap = _VERSIONED_BYTES, 0
            norms = [norm.name for norm in shape.architecture.norms]
            matrices = [name for name in stacks if name not in norms]
            order = [*norms, "final_norm", "embedding", *matrices]
        else:
            # freq_cis_real and freq_cis_imag, which llama2.c still writes and no longer reads
            start, gap = _SIZES.size, 4 * shape.context * (shape.head_dim // 2) * 2
            order = ["embedding", *stacks, "final_norm"]

        need = start + 4 * shape.parameters + gap
        if size != need:
            wrong = f"{need - size} missing" if size < need else f"{size - need} too many"
            raise UserError(
                f"{path}: the file has {size} bytes, its header {_brief(shape)} needs {need} "
                f"({wrong}); download or export it again (float32 .bin)"
            )

        def tensor(name: str, dims: tuple[int, ...]) -> Float:
            values = np.fromfile(file, "<f4", math.prod(dims)).astype(np.float32, copy=False)
            values = values.reshape(dims)
            check_finite(path, name, values)
            return values

        file.seek(start)
        layers: list[Layer] = [{} for _ in range(shape.layers)]
        single = {"embedding": (shape.vocab, shape.dim), "final_norm": (shape.dim,)}
        found = {}
        for name in order:
            if name in single:
                found[name] = tensor(name, single[name])
                continue
            for i, layer in enumerate(layers):
                layer[name] = tensor(f"layer{i}.{name}", stacks[name])
        file.seek(gap, 1)
        embedding = classifier = found["embedding"]
        if not shape.tied:
            classifier = tensor("classifier", (shape.vocab, shape.dim))
    layers = [{name: layer[name] for name in stacks} for layer in layers]
    return Checkpoint(shape, embedding, layers, found["final_norm"], classifier)


def _llama2c_shape(path: Path, header: bytes, versioned: bool) -> ModelShape:
    layout = _VERSIONED if versioned else _SIZES
    least = _VERSIONED_BYTES if versioned else _SIZES.size
    if len(header) < least:
        raise UserError(
            f"{path}: {len(header)} bytes is shorter than the {least}-byte header of a "
            "llama2.c .bin; download or export it again"
        )
    values = layout.unpack_from(header)
    if versioned:
        _, version, *sizes, tied = values
        if version != 1 or tied not in (0, 1):
            what = f"version {version}" if version != 1 else f"shared_classifier={tied}"
            raise UserError(
                f"{path}: a llama2.c .bin with {what}; only float32 is read: export it with "
                "--version 1 or --version 0"
            )
    else:
        sizes, tied = list(values), int(values[5] > 0)
        sizes[5] = abs(sizes[5])
    dim, hidden, layers, heads, kv_heads, vocab, context = sizes
    what = f"not a usable llama2.c .bin (it begins with {show(header[:8])})"
    if heads < 1 or dim % heads:
        raise UserError(
            f"{path}: {what}: dim={dim} is not a multiple of heads={heads}; "
            "the header is corrupt or this is not a llama2.c .bin: download or export it again"
        )
    try:
        return ModelShape(
            dim=dim,
            hidden=hidden,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=dim // heads,
            vocab=vocab,
            context=context,
            tied=bool(tied),
        )
    except UserError as error:
        raise UserError(f"{path}: {what}: {error}: download or export it again") from None


def _refuse_other_formats(path: Path, head: bytes) -> None:
    """Name the formats people confuse with a .bin, instead of reporting their bytes as sizes."""
    # A .bin of dim 640 begins 80 02 00 00, like a pickle; but 00 is no opcode of pickle.
    pickled = head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05" and head[2:3] != b"\0"
    hint = None
    if pickled or head[:4] == b"PK\x03\x04" or path.suffix in (".pt", ".pth", ".ckpt", ".pkl"):
        hint = (
            "a pickled PyTorch file can run any code and is never opened; "
            "convert it to safetensors or to a llama2.c .bin"
        )
    elif head[:4] == b"GGUF":
        hint = "GGUF is not read; give the Hugging Face folder it was made from"
    elif path.suffix in (".safetensors", ".json") or head[:1] == b"{" or head[8:10] == b'{"':
        hint = "give the folder that holds config.json and model.safetensors"
    if hint:
        raise UserError(f"{path}: not a llama2.c .bin: {hint}")


def _brief(s: ModelShape) -> str:
    return (
        f"(dim {s.dim}, hidden {s.hidden}, layers {s.layers}, heads {s.heads}, "
        f"kv_heads {s.kv_heads}, vocab {s.vocab}, context {s.context})"
    )


# Hugging Face


def _weights(folder: Path) -> Path:
    """The file of a folder that holds the weights, or the index of several; UserError for none."""
    for name in ("model.safetensors", INDEX):
        if (folder / name).exists() or (folder / name).is_symlink():
            return folder / name
    for pattern, hint in _NO_WEIGHTS.items():
        if found := sorted(folder.glob(pattern)):
            raise UserError(f"{folder}: no model.safetensors; {hint.format(found[0])}")
    raise UserError(
        f"{folder / 'model.safetensors'}: no such file; give a folder with config.json and it"
    )


# What a folder may hold instead, and what to do then.
_NO_WEIGHTS = {
    "model-*-of-*.safetensors": f"its shards need {INDEX}, which is missing: download it, too",
    "adapter_model.*": "it holds an adapter: merge it into its model and save that "
    "(peft: merge_and_unload)",
    "pytorch_model*.bin*": "a pickled pytorch_model.bin can run any code and is never opened: "
    "convert it to model.safetensors",
    "*.gguf": "GGUF is not read: give the Hugging Face folder it was made from",
    "*.safetensors": "give {} that name if it is the whole model",
    "*.bin": "if {} is a llama2.c model, give that file",
}


def _config(folder: Path) -> tuple[ModelShape, float]:
    """Of a folder's config.json; where there is none, UserError says what to give instead."""
    path = folder / "config.json"
    if not path.exists() and not path.is_symlink():
        inner = [
            found.parent for deep in ("*", "*/*") for found in folder.glob(f"{deep}/{path.name}")
        ]
        remedy = f"give {inner[0]}" if inner else ""
        if not inner and (bins := sorted(folder.glob("*.bin"))):
            remedy = f"if {bins[0]} is a llama2.c model, give that file"
        remedy = remedy or "give a Hugging Face folder, with config.json and model.safetensors"
        raise UserError(f"{path}: no such file; {remedy}")
    return read_config(path)


def _load_hf(folder: Path) -> Checkpoint:
    shape, magnitude = _config(folder)
    path = _weights(folder)
    tensors = Shards(path) if path.name == INDEX else SafeTensors(path)

    # An unknown tensor (a bias, a norm per head, an adapter) would change what the model computes.
    arch = shape.architecture
    rows = list(arch.tensors(shape))
    used = {arch.embedding, arch.classifier, arch.final_norm}
    used |= {arch.layer_prefix.format(i) + hf for i in range(shape.layers) for _, hf, _ in rows}
    for name in tensors.names:
        if name not in used and not name.endswith("rotary_emb.inv_freq"):
            raise UserError(
                f"{path}: tensor {show(name)} is not part of a {shape.layers}-layer {arch.name}; "
                f"use a plain {arch.hf_class} checkpoint"
            )

    def layer(i: int) -> Layer:
        prefix = arch.layer_prefix.format(i)
        found = {name: tensors.read(prefix + hf, dims) for name, hf, dims in rows}
        for matrix in arch.matrices:
            for name in filter(None, (matrix.name, matrix.bias)):
                if matrix.rotated:
                    found[name] = interleave_rope(found[name], getattr(shape, matrix.rotated))
                    found[name] *= np.float32(magnitude)
        return found

    layers = [layer(i) for i in range(shape.layers)]
    embedding = tensors.read(arch.embedding, (shape.vocab, shape.dim))
    final_norm = tensors.read(arch.final_norm, (shape.dim,))
    if arch.classifier not in tensors.names:
        shape = replace(shape, tied=True)
    classifier = embedding
    if not shape.tied:
        classifier = tensors.read(arch.classifier, embedding.shape)
    elif arch.classifier in tensors.names:
        if not np.array_equal(tensors.read(arch.classifier, embedding.shape), embedding):
            raise UserError(
                f"{path}: {arch.classifier} differs from {arch.embedding} but config.json has "
                "tie_word_embeddings=true; correct one of them"
            )
    return Checkpoint(shape, embedding, layers, final_norm, classifier)
