"""The sizes of a model: what the quantizer, the compiler and ``perf --shape`` share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenfabric.core.arch import ARCHITECTURES, LLAMA, Architecture
from tokenfabric.core.errors import UserError
from tokenfabric.core.files import read_json_object, show

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
    """The shape in a Hugging Face config.json of an architecture that is known.

    Absent keys take transformers' defaults. UserError names the key for every other architecture
    and for what changes the arithmetic (scaled RoPE, other biases, other activations).
    """
    config = read_json_object(path)

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
        return ModelShape(
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
    except UserError as error:
        message = str(error)
        raise UserError(message if str(path) in message else f"{path}: {message}") from None


def _rope_theta(path: Path, config: dict[str, Any]) -> Any:
    """The one RoPE base, wherever this generation of config.json keeps it."""
    found = [config["rope_theta"]] if config.get("rope_theta") is not None else []
    for key in ("rope_scaling", "rope_parameters"):
        rope = config.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise UserError(f"{path}: {key}={show(rope)} is not an object; remove it or correct it")
        kind = rope.get("rope_type", rope.get("type"))
        if kind not in (None, "none", "default"):
            raise UserError(
                f"{path}: {key} of type {show(kind)} is not supported, only 'default'; "
                "use a checkpoint without scaled RoPE"
            )
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
