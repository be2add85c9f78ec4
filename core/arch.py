"""What decoders consist of: one row per architecture, from which everything else derives.

A decoder is an embedding, layers, a last norm and a classifier. A layer is a list of sublayers,
each of which adds something to the residual stream: ``x + sublayer(norm(x))``. The loaders' names
and shapes, the float model, calibration, the quantizer, the model file, the compiler's program and
the counts of work all follow these rows; no other file spells a matrix's shape out.

To add an architecture whose arithmetic exists already, add a row here and a test. To add one with a
new operation, add the field that says so, its step in ``quant/float_model.py``, and let
:attr:`Architecture.beyond_hardware` name it until the accelerator has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol

from tokenfabric.core.tensors import TensorClass

__all__ = [
    "ARCHITECTURES",
    "LLAMA",
    "Architecture",
    "Attention",
    "FeedForward",
    "Gain",
    "Matrix",
    "Sublayer",
]


class Sizes(Protocol):
    """Where sizes are looked up by name: a :class:`~tokenfabric.core.shape.ModelShape`."""

    @property
    def dim(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix of a sublayer: ``y = W @ x``, W [outputs, inputs], and ``+ bias`` where it has one.

    name: of the field, as in llama2.c. outputs, inputs: names of sizes of ModelShape. reads: the
    traced tensor that is x. hf: its name in a Hugging Face checkpoint, inside the layer, without
    ".weight". counted: the saturation counter of its results. rotated: the size that says how many
    heads RoPE rotates in y ("" for none); a loader brings the pairs of such rows together. bias:
    name of its bias [outputs], "" if there is none.
    """

    name: str
    outputs: str
    inputs: str
    reads: str
    hf: str
    counted: TensorClass
    rotated: str = ""
    bias: str = ""

    def dims(self, sizes: Sizes) -> tuple[int, int]:
        """(outputs, inputs) in numbers."""
        return getattr(sizes, self.outputs), getattr(sizes, self.inputs)


@dataclass(frozen=True, kw_only=True)
class Gain:
    """The weights [dim] of an RMSNorm. name: of field and traced result; hf: its name there."""

    name: str
    hf: str


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Causal grouped-query attention with RoPE on q and k. result: traced residual after it."""

    norm: Gain
    q: Matrix
    k: Matrix
    v: Matrix
    o: Matrix
    result: str

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """In the order of a llama2.c file."""
        return self.q, self.k, self.v, self.o


@dataclass(frozen=True, kw_only=True)
class FeedForward:
    """``down @ (activation(gate @ x) * (up @ x))``. result: traced residual after it."""

    norm: Gain
    gate: Matrix
    up: Matrix
    down: Matrix
    activation: str
    result: str

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """In the order of a llama2.c file."""
        return self.gate, self.down, self.up


Sublayer = Attention | FeedForward


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One row of the table.

    name: as in our own files. hf_class, hf_type: ``architectures`` and ``model_type`` of a
    config.json. sublayers: of every layer, in order. embedding, classifier, final_norm: names in a
    Hugging Face checkpoint. fixed: keys of config.json that change the arithmetic, with the values
    that leave it as it is here, the default first. defaults: of keys that may be absent. window:
    key of config.json that says how many positions attention sees ("" for none); up to so many it
    sees all of them, so that it bounds the context. llama2c: llama2.c's files hold it.
    """

    name: str
    hf_class: str
    hf_type: str
    sublayers: tuple[Sublayer, ...]
    embedding: str = "model.embed_tokens.weight"
    final_norm: str = "model.norm.weight"
    classifier: str = "lm_head.weight"
    layer_prefix: str = "model.layers.{}."
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    window: str = ""
    llama2c: bool = False

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """Of a layer, in the order of the files."""
        return tuple(m for sublayer in self.sublayers for m in sublayer.matrices)

    @property
    def norms(self) -> tuple[Gain, ...]:
        """Of a layer, in order."""
        return tuple(sublayer.norm for sublayer in self.sublayers)

    def tensors(self, sizes: Sizes) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """(name, name in a Hugging Face checkpoint, shape) of each tensor of a layer, in order."""
        for sublayer in self.sublayers:
            yield sublayer.norm.name, f"{sublayer.norm.hf}.weight", (sizes.dim,)
            for matrix in sublayer.matrices:
                dims = matrix.dims(sizes)
                yield matrix.name, f"{matrix.hf}.weight", dims
                if matrix.bias:
                    yield matrix.bias, f"{matrix.hf}.bias", dims[:1]

    def matrix_weights(self, sizes: Sizes) -> int:
        """Weights in the matrices of one layer: also its multiply-accumulates per row."""
        return sum(outputs * inputs for outputs, inputs in (m.dims(sizes) for m in self.matrices))

    @property
    def beyond_hardware(self) -> list[str]:
        """What the accelerator cannot do yet, in words; the quantizer refuses such a model."""
        biased = [matrix.name for matrix in self.matrices if matrix.bias]
        return [f"biases on {', '.join(biased)}"] if biased else []


def _attention(bias: bool) -> Attention:
    """Llama's attention; ``bias``: on q, k and v."""
    x = {"inputs": "dim", "reads": "attn_norm"}
    names = {"wq": "bq", "wk": "bk", "wv": "bv"} if bias else {}

    def projection(name: str, outputs: str, hf: str, counted: TensorClass, rotated: str) -> Matrix:
        return Matrix(
            name=name, outputs=outputs, hf=f"self_attn.{hf}", counted=counted, rotated=rotated,
            bias=names.get(name, ""), **x,
        )  # fmt: skip

    return Attention(
        norm=Gain(name="attn_norm", hf="input_layernorm"),
        q=projection("wq", "q_dim", "q_proj", TensorClass.Q, "heads"),
        k=projection("wk", "kv_dim", "k_proj", TensorClass.K, "kv_heads"),
        v=projection("wv", "kv_dim", "v_proj", TensorClass.V, ""),
        o=Matrix(name="wo", outputs="dim", inputs="q_dim", reads="att", hf="self_attn.o_proj",
                 counted=TensorClass.WO),
        result="residual_attn",
    )  # fmt: skip


_SWIGLU = FeedForward(
    norm=Gain(name="ffn_norm", hf="post_attention_layernorm"),
    gate=Matrix(name="w1", outputs="hidden", inputs="dim", reads="ffn_norm", hf="mlp.gate_proj",
                counted=TensorClass.GATE_UP),
    up=Matrix(name="w3", outputs="hidden", inputs="dim", reads="ffn_norm", hf="mlp.up_proj",
              counted=TensorClass.GATE_UP),
    down=Matrix(name="w2", outputs="dim", inputs="hidden", reads="h", hf="mlp.down_proj",
                counted=TensorClass.W2),
    activation="silu",
    result="residual",
)  # fmt: skip

LLAMA = Architecture(
    name="llama",
    hf_class="LlamaForCausalLM",
    hf_type="llama",
    sublayers=(_attention(bias=False), _SWIGLU),
    fixed={
        "hidden_act": ("silu",),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "partial_rotary_factor": (1, None),
        "quantization_config": (None,),
    },
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2_048, "tie_word_embeddings": False},
    llama2c=True,
)

QWEN2 = Architecture(
    name="qwen2",
    hf_class="Qwen2ForCausalLM",
    hf_type="qwen2",
    sublayers=(_attention(bias=True), _SWIGLU),
    fixed={
        "hidden_act": ("silu",),
        "use_sliding_window": (False, None),
        "partial_rotary_factor": (1, None),
        "quantization_config": (None,),
    },
    defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": False,
    },
)

MISTRAL = replace(
    LLAMA,
    name="mistral",
    hf_class="MistralForCausalLM",
    hf_type="mistral",
    defaults={
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": False,
        "sliding_window": 4_096,
    },
    window="sliding_window",
    llama2c=False,
)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {row.name: row for row in (LLAMA, QWEN2, MISTRAL)}
)
