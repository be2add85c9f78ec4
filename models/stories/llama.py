"""A Llama in plain PyTorch, as small as it can be: its sizes, its weights, its forward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BOS, EOS = 0, 1


@dataclass(frozen=True)
class Shape:
    """The sizes of the model, under the names that config.json gives them."""

    vocab_size: int = 1024
    hidden_size: int = 96
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    num_key_value_heads: int = 3
    head_dim: int = 16
    intermediate_size: int = 256
    max_position_embeddings: int = 256
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0


Weights = dict[str, Tensor]


def init_weights(shape: Shape, seed: int) -> Weights:
    """Random weights under the names that ``transformers.LlamaForCausalLM`` gives them."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, std: float) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * std

    dim, hidden = shape.hidden_size, shape.intermediate_size
    heads = shape.num_attention_heads * shape.head_dim
    kv = shape.num_key_value_heads * shape.head_dim
    # What is added to the residual stream starts smaller, so that its variance does not grow with
    # the number of layers (Radford et al., GPT-2, 2019).
    std, out_std = dim**-0.5, dim**-0.5 / math.sqrt(2 * shape.num_hidden_layers)
    weights = {"model.embed_tokens.weight": matrix(shape.vocab_size, dim, 0.02)}
    for layer in range(shape.num_hidden_layers):
        p = f"model.layers.{layer}."
        weights[p + "input_layernorm.weight"] = torch.ones(dim)
        weights[p + "self_attn.q_proj.weight"] = matrix(heads, dim, std)
        weights[p + "self_attn.k_proj.weight"] = matrix(kv, dim, std)
        weights[p + "self_attn.v_proj.weight"] = matrix(kv, dim, std)
        weights[p + "self_attn.o_proj.weight"] = matrix(dim, heads, out_std)
        weights[p + "post_attention_layernorm.weight"] = torch.ones(dim)
        weights[p + "mlp.gate_proj.weight"] = matrix(hidden, dim, std)
        weights[p + "mlp.up_proj.weight"] = matrix(hidden, dim, std)
        weights[p + "mlp.down_proj.weight"] = matrix(dim, hidden, out_std)
    weights["model.norm.weight"] = torch.ones(dim)
    return weights


def forward(weights: Weights, shape: Shape, tokens: Tensor) -> Tensor:
    """Logits, float [batch, time, vocab], for tokens, int64 [batch, time]."""
    batch, time_ = tokens.shape
    size, eps = shape.head_dim, shape.rms_norm_eps
    frequency = shape.rope_theta ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
    angle = torch.arange(time_, dtype=torch.float32)[:, None] * frequency
    cos, sin = angle.cos(), angle.sin()

    def norm(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (shape.hidden_size,), weights[name], eps)

    def heads(x: Tensor, name: str, rotate: bool) -> Tensor:
        x = F.linear(x, weights[name]).view(batch, time_, -1, size).transpose(1, 2)
        if not rotate:
            return x
        low, high = x.chunk(2, -1)  # the two halves of a head rotate against each other
        return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)

    embedding = weights["model.embed_tokens.weight"]
    x = F.embedding(tokens, embedding)
    for layer in range(shape.num_hidden_layers):
        p = f"model.layers.{layer}."
        y = norm(x, p + "input_layernorm.weight")
        q = heads(y, p + "self_attn.q_proj.weight", rotate=True)
        k = heads(y, p + "self_attn.k_proj.weight", rotate=True)
        v = heads(y, p + "self_attn.v_proj.weight", rotate=False)
        group = shape.num_attention_heads // shape.num_key_value_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.transpose(1, 2).reshape(batch, time_, -1)
        x = x + F.linear(y, weights[p + "self_attn.o_proj.weight"])
        y = norm(x, p + "post_attention_layernorm.weight")
        gate = F.silu(F.linear(y, weights[p + "mlp.gate_proj.weight"]))
        y = gate * F.linear(y, weights[p + "mlp.up_proj.weight"])
        x = x + F.linear(y, weights[p + "mlp.down_proj.weight"])
    return F.linear(norm(x, "model.norm.weight"), embedding)


@torch.no_grad()
def greedy(weights: Weights, shape: Shape, tokens: Sequence[int]) -> list[int]:
    """``tokens`` continued with the most likely token, up to EOS or the end of the context."""
    out = list(tokens)
    while len(out) < shape.max_position_embeddings and (len(out) == len(tokens) or out[-1] != EOS):
        out.append(int(forward(weights, shape, torch.tensor([out]))[0, -1].argmax()))
    return out
