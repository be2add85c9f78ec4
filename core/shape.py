"""The sizes of a model: what the quantizer, the compiler and ``perf --shape`` share."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenfabric.core.arch import ARCHITECTURES, LLAMA, Architecture
from tokenfabric.core.errors import UserError
from tokenfabric.core.files import read_json_object, show
from tokenfabric.core.rope import Scaling, rope_scaling

# Largest accepted value of each size. Far above any model that fits a board: they exist so that a
# corrupt header is refused by name before anything is computed from it.
LIMITS = {
    "dim": 65_536,
    "hidden": 262_144,
    "layers": 256,
    "heads": 1_024,
    "kv_heads": 1_024,
    "head_dim": 1_024,
    "vocab": 1_048_576,
    "context": 1_048_576,
}


@dataclass(frozen=True)
class ModelShape:
    """Sizes and constants of one decoder; ``arch`` says what it consists of (core/arch.py).

    dim: width of the residual stream. hidden: width of the feed-forward network.
    heads, kv_heads: query heads and key/value heads; query head h reads kv head
    h // (heads // kv_heads). head_dim: width of one head; heads * head_dim need not equal dim.
    vocab: rows of the embedding. context: largest number of positions.
    norm_eps: added to the mean square in RMSNorm. rope_theta: base of the rotary frequencies.
    tied: the classifier is the embedding. arch: its row of ARCHITECTURES.
    rope_scale: what the frequency of each pair is multiplied by, () for nothing (core/rope.py).

    Raises UserError (value, limit and remedy, without a file name) for sizes no model can have.
    """

    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    tied: bool = True
    arch: str = LLAMA.name
    rope_scale: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
                raise UserError(
                    f"{name}={show(value)} is not an integer from 1 to {limit}; "
                    "the header or config is corrupt or the model is too large"
                )
        if self.heads % self.kv_heads:
            raise UserError(
                f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}; "
                "grouped-query attention needs equal groups"
            )
        if self.head_dim % 2:
            raise UserError(
                f"head_dim={self.head_dim} is odd; RoPE rotates pairs, so it must be even"
            )
        for name, low, high in (("norm_eps", 0.0, 1.0), ("rope_theta", 1.0, 1e12)):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not low < value <= high:
                raise UserError(
                    f"{name}={show(value)} is not a number above {low:g} and at most {high:g}; "
                    "correct the config"
                )
        if not isinstance(self.tied, bool):
            raise UserError(f"tied={show(self.tied)} is not true or false; correct the config")
        if self.arch not in ARCHITECTURES:
            names = ", ".join(ARCHITECTURES)
            raise UserError(f"arch={show(self.arch)} is not known; there are: {names}")
        scale: object = self.rope_scale
        pairs = isinstance(scale, tuple) and len(scale) in (0, self.head_dim // 2)
        if not pairs or not all(type(v) is float and 0 < v < math.inf for v in self.rope_scale):
            raise UserError(
                f"rope_scale={show(scale)} is not one positive number for each of the "
                f"{self.head_dim // 2} pairs; correct the config"
            )

    def check_tokens(self, tokens: npt.NDArray[Any], of: str) -> None:
        """UserError unless ``tokens`` are ids of the vocabulary; of: what the ids should be of."""
        integers = np.issubdtype(tokens.dtype, np.integer)
        if not integers or tokens.min() < 0 or tokens.max() >= self.vocab:
            raise UserError(
                f"token ids must be integers from 0 to {self.vocab - 1} (the vocabulary); "
                f"use the tokenizer of this {of}"
            )

    @property
    def architecture(self) -> Architecture:
        """What the model consists of."""
        return ARCHITECTURES[self.arch]

    def check_hardware(self) -> None:
        """UserError if the accelerator cannot compute this architecture."""
        if beyond := self.architecture.beyond_hardware:
            able = [name for name, row in ARCHITECTURES.items() if not row.beyond_hardware]
            raise UserError(
                f"{self.architecture.hf_class} has {'; '.join(beyond)}, which the accelerator "
                f"cannot compute; it runs: {', '.join(able)}"
            )

    @property
    def q_dim(self) -> int:
        """Rows of wq: heads * head_dim."""
        return self.heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Rows of wk and of wv: kv_heads * head_dim."""
        return self.kv_heads * self.head_dim

    @property
    def parameters(self) -> int:
        """Number of weights, norms included; a tied classifier counts once."""
        layer = sum(math.prod(dims) for _, _, dims in self.architecture.tensors(self))
        embeddings = self.vocab * self.dim * (1 if self.tied else 2)
        return self.layers * layer + embeddings + self.dim


# llama2.c's stories models (https://huggingface.co/karpathy/tinyllamas) and SmolLM2-135M. The
# latter's config allows 8,192 positions; 2,048 is the length a board has memory for.
NAMED_SHAPES: dict[str, ModelShape] = {
    "stories260k": ModelShape(64, 172, 5, 8, 4, 8, 512, 512),
    "stories15m": ModelShape(288, 768, 6, 6, 6, 48, 32_000, 256),
    "stories110m": ModelShape(768, 2_048, 12, 12, 12, 64, 32_000, 1_024),
    "smollm2-135m": ModelShape(576, 1_536, 30, 9, 3, 64, 49_152, 2_048, rope_theta=100_000.0),
}


def shape_from(name: str | Path) -> ModelShape:
    """A shape by name (a key of NAMED_SHAPES, any case) or from a Hugging Face config.json.

    A folder means the config.json inside it. UserError if it is neither.
    """
    if str(name).lower() in NAMED_SHAPES:
        return NAMED_SHAPES[str(name).lower()]
    path = Path(name)
    try:
        known = path.exists()
    except (OSError, ValueError):
        known = False
    if not known:
        names = ", ".join(NAMED_SHAPES)
        raise UserError(f"{show(str(name))} is no shape and no file; use {names} or a config.json")
    return shape_from_config(path / "config.json" if path.is_dir() else path)


def shape_from_config(path: Path) -> ModelShape:
    """The shape of :func:`read_config`."""
    return read_config(path)[0]


def read_config(path: Path) -> tuple[ModelShape, float]:
    """The shape in a Hugging Face config.json, and what q and k are multiplied by (RoPE scaling).

    Absent keys take transformers' defaults. The context ends where attention would stop to see all
    of it. UserError names the key for architectures that are not known and for what changes the
    arithmetic (other kinds of scaled RoPE, other biases, other activations).
    """
    config = read_json_object(path)
    row = _row(path, config)

    def required(key: str) -> Any:
        if config.get(key) is None:
            raise UserError(f"{path}: the key {key!r} is missing; use the model's own config.json")
        return config[key]

    def default(key: str, otherwise: Any = None) -> Any:
        absent = row.defaults.get(key, otherwise)
        return absent if config.get(key) is None else config[key]

    dim, heads = required("hidden_size"), required("num_attention_heads")
    head_dim = config.get("head_dim")
    if head_dim is None:
        if not isinstance(dim, int) or not isinstance(heads, int) or heads < 1 or dim % heads:
            raise UserError(
                f"{path}: hidden_size={show(dim)} is not a multiple of "
                f"num_attention_heads={show(heads)}; give head_dim"
            )
        head_dim = dim // heads
    try:
        shape = ModelShape(
            dim=dim,
            hidden=required("intermediate_size"),
            layers=required("num_hidden_layers"),
            heads=heads,
            kv_heads=default("num_key_value_heads", heads),
            head_dim=head_dim,
            vocab=required("vocab_size"),
            context=default("max_position_embeddings"),
            norm_eps=default("rms_norm_eps"),
            rope_theta=_rope_theta(path, config),
            tied=default("tie_word_embeddings"),
            arch=row.name,
        )
        scaling = _rope_scaling(config, shape)
        context = scaling.context
        if row.window and (window := config.get(row.window, row.defaults.get(row.window))):
            if type(window) is not int or window < 1:
                raise UserError(
                    f"{row.window}={show(window)} is no number of positions; correct it"
                )
            context = min(context, window)
        return replace(shape, context=context, rope_scale=scaling.pairs), scaling.magnitude
    except UserError as error:
        message = str(error)
        raise UserError(message if str(path) in message else f"{path}: {message}") from None


def _row(path: Path, config: dict[str, Any]) -> Architecture:
    """The architecture that a config.json names, if nothing else in it contradicts that row."""

    def refuse(key: str, value: object, need: str) -> UserError:
        return UserError(f"{path}: {key}={show(value)} is not supported; {need}")

    by_class = {row.hf_class: row for row in ARCHITECTURES.values()}
    by_type = {row.hf_type: row for row in ARCHITECTURES.values()}
    classes = config.get("architectures")
    if classes is None:
        kind = config.get("model_type")
        if not isinstance(kind, str) or kind not in by_type:
            raise refuse("model_type", kind, f"supported: {', '.join(by_type)}")
        row = by_type[kind]
    else:
        if classes not in [[name] for name in by_class]:
            raise refuse("architectures", classes, f"supported: {', '.join(by_class)}")
        row = by_class[classes[0]]
    for key, allowed in row.fixed.items():
        value = config.get(key, allowed[0])
        if value not in allowed:
            need = f"it must be {show(allowed[0])}; use a plain {row.hf_class} checkpoint"
            raise refuse(key, value, need)
    return row


def _rope_settings(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a config.json says about RoPE, by the key: the older one, that of transformers 5."""
    found = {key: config.get(key) for key in ("rope_scaling", "rope_parameters")}
    return {key: rope for key, rope in found.items() if rope is not None}


def _rope_theta(path: Path, config: dict[str, Any]) -> Any:
    """The one RoPE base, wherever this generation of config.json keeps it."""
    found = [config["rope_theta"]] if config.get("rope_theta") is not None else []
    for key, rope in _rope_settings(config).items():
        if not isinstance(rope, dict):
            raise UserError(f"{path}: {key}={show(rope)} is not an object; remove it or correct it")
        if rope.get("partial_rotary_factor") not in (None, 1):
            raise UserError(
                f"{path}: {key} has partial_rotary_factor={show(rope['partial_rotary_factor'])}; "
                "only 1 (all of head_dim rotated) is supported"
            )
        if rope.get("rope_theta") is not None:
            found.append(rope["rope_theta"])
    if any(theta != found[0] for theta in found):
        raise UserError(f"{path}: rope_theta has two values, {show(found)}; keep one of them")
    return found[0] if found else 10_000.0


def _rope_scaling(config: dict[str, Any], shape: ModelShape) -> Scaling:
    """The one RoPE scaling; UserError, without the file's name, for two that differ."""
    trained = "original_max_position_embeddings"  # beside the others, or where Phi-3 put it
    outer = {trained: config[trained]} if config.get(trained) is not None else {}
    found = [Scaling((), 1.0, shape.context)]
    for key, rope in _rope_settings(config).items():
        try:
            found.append(
                rope_scaling({**rope, **outer}, shape.head_dim, shape.rope_theta, shape.context)
            )
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
    if len(found) == 3 and found[1] != found[2]:
        raise UserError("rope_scaling and rope_parameters contradict each other; remove one")
    return found[-1]
