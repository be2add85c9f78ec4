"""Synthetic checkpoints for tests: random weights from a seed, written in either format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenfabric.core.arch import ARCHITECTURES
from tokenfabric.core.shape import ModelShape
from tokenfabric.quant.checkpoint import Checkpoint

TINY = ModelShape(
    dim=16, hidden=24, layers=2, heads=4, kv_heads=2, head_dim=4, vocab=40, context=32
)
# A rope_scaling as Llama 3.1's, for a shorter text.
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def random_checkpoint(shape: ModelShape = TINY, seed: int = 0, scale: float = 1.0) -> Checkpoint:
    """Weights of unit gain (times ``scale``), norms around one: activations stay of order one."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        weights = rng.standard_normal((rows, columns)) * scale / np.sqrt(columns)
        return weights.astype(np.float32)

    def vector(size: int) -> np.ndarray:
        """A norm's gains, or a bias."""
        return rng.uniform(0.5, 1.5, size).astype(np.float32)

    s = shape
    layers = [
        {
            name: (matrix if len(dims) == 2 else vector)(*dims)
            for name, _, dims in s.architecture.tensors(s)
        }
        for _ in range(s.layers)
    ]
    embedding = matrix(s.vocab, s.dim)
    classifier = embedding if s.tied else matrix(s.vocab, s.dim)
    return Checkpoint(shape, embedding, layers, vector(s.dim), classifier)


def write_llama2c(path: Path, checkpoint: Checkpoint) -> Path:
    """A legacy llama2.c .bin; its RoPE table, which nobody may read, is filled with 9e9."""
    s = checkpoint.shape
    assert s.dim == s.q_dim and s.norm_eps == 1e-5 and s.rope_theta == 10_000, "not expressible"
    vocab = s.vocab if s.tied else -s.vocab
    parts = [np.array([s.dim, s.hidden, s.layers, s.heads, s.kv_heads, vocab, s.context], "<i4")]
    parts.append(checkpoint.embedding)
    # Written out: the order of llama2.c's run.c.
    for name in ("attn_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3"):
        parts += [layer[name] for layer in checkpoint.layers]
    parts += [checkpoint.final_norm, np.full(s.context * s.head_dim, 9e9, "<f4")]
    if not s.tied:
        parts.append(checkpoint.classifier)
    path.write_bytes(b"".join(part.tobytes() for part in parts))
    return path


def write_llama2c_version1(path: Path, checkpoint: Checkpoint, version: int = 1) -> Path:
    """A llama2.c .bin as version1_export of its export.py writes it."""
    s = checkpoint.shape
    header = np.array([s.dim, s.hidden, s.layers, s.heads, s.kv_heads, s.vocab, s.context], "<i4")
    head = b"24ka" + version.to_bytes(4, "little") + header.tobytes() + bytes([s.tied])
    parts = [layer[name] for name in ("attn_norm", "ffn_norm") for layer in checkpoint.layers]
    parts += [checkpoint.final_norm, checkpoint.embedding]
    for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3"):
        parts += [layer[name] for layer in checkpoint.layers]
    if not s.tied:
        parts.append(checkpoint.classifier)
    path.write_bytes(head.ljust(256, b"\0") + b"".join(part.tobytes() for part in parts))
    return path


def halve_rope(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows from interleaved to Hugging Face's half-split order, row by row on purpose."""
    size = weight.shape[0] // heads
    order = [*range(0, size, 2), *range(1, size, 2)]
    return np.concatenate([weight[h * size : (h + 1) * size][order] for h in range(heads)])


def hf_tensors(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Hugging Face names -> float32 arrays in Hugging Face's order of rows."""
    s = checkpoint.shape
    found = {"model.embed_tokens.weight": checkpoint.embedding}
    for i, layer in enumerate(checkpoint.layers):
        named = {
            "input_layernorm.weight": layer["attn_norm"],
            "self_attn.q_proj.weight": halve_rope(layer["wq"], s.heads),
            "self_attn.k_proj.weight": halve_rope(layer["wk"], s.kv_heads),
            "self_attn.v_proj.weight": layer["wv"],
            "self_attn.o_proj.weight": layer["wo"],
            "post_attention_layernorm.weight": layer["ffn_norm"],
            "mlp.gate_proj.weight": layer["w1"],
            "mlp.down_proj.weight": layer["w2"],
            "mlp.up_proj.weight": layer["w3"],
        }
        if s.arch == "qwen2":
            named |= {
                "self_attn.q_proj.bias": halve_rope(layer["bq"], s.heads),
                "self_attn.k_proj.bias": halve_rope(layer["bk"], s.kv_heads),
                "self_attn.v_proj.bias": layer["bv"],
            }
        found |= {f"model.layers.{i}.{name}": array for name, array in named.items()}
    found["model.norm.weight"] = checkpoint.final_norm
    if not s.tied:
        found["lm_head.weight"] = checkpoint.classifier
    return found


def hf_config(shape: ModelShape) -> dict:
    """config.json of the shape, as transformers 4 wrote it."""
    return {
        "architectures": [ARCHITECTURES[shape.arch].hf_class],
        "model_type": shape.arch,
        "hidden_size": shape.dim,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": shape.tied,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def safetensors_bytes(tensors: dict[str, np.ndarray], dtype: str = "F32") -> bytes:
    """A safetensors file, written by hand so that tests of the reader need no library.

    BF16 keeps the upper half of each float32 (round toward zero).
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        if dtype == "BF16":
            raw = (array.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
        else:
            raw = array.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
        span = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": span}
        data += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def write_hf(
    folder: Path, checkpoint: Checkpoint, dtype: str = "F32", config: dict | None = None
) -> Path:
    """A Hugging Face folder: config.json (with ``config`` on top) and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config(checkpoint.shape) | (config or {})))
    (folder / "model.safetensors").write_bytes(safetensors_bytes(hf_tensors(checkpoint), dtype))
    return folder


def write_shards(folder: Path, checkpoint: Checkpoint, count: int = 2) -> Path:
    """As :func:`write_hf`, with the tensors dealt to ``count`` files and an index."""
    write_hf(folder, checkpoint)
    (folder / "model.safetensors").unlink()
    tensors = hf_tensors(checkpoint)
    where = {}
    for i in range(count):
        name = f"model-{i + 1:05}-of-{count:05}.safetensors"
        part = {key: tensors[key] for key in list(tensors)[i::count]}
        where |= dict.fromkeys(part, name)
        (folder / name).write_bytes(safetensors_bytes(part))
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
