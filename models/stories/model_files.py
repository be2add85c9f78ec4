"""The files of a trained model: a Hugging Face directory, complete or not there at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from llama import BOS, EOS, Shape, Weights
from tokenfabric.core.errors import UserError
from tokenizers import Tokenizer

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "README.md",
)

CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# stories: a Llama of {parameters:,} weights that tells children's stories

It ships with tokenfabric so that something worth reading comes out of the hardware without
downloading anything. Everything it knows comes from a small grammar
(`models/stories/grammar.py`); no text or model of anybody else was used.

| | |
|---|---|
| Architecture | Llama: {num_hidden_layers} layers, dim {hidden_size}, \
{num_attention_heads} heads of {head_dim}, {num_key_value_heads} KV heads, \
hidden {intermediate_size}, tied embeddings |
| Vocabulary | {vocab_size}, byte-level BPE; `<bos>` = 0 (prepend it), `<eos>` = 1 |
| Context | {max_position_embeddings} tokens, longer than any story |
| Weights | float16 |
| Trained on | {stories:,} generated stories, {seen:.1f} M tokens in {steps} steps |
| Validation loss | {loss:.4f} nats per token on stories that it was not trained on |
| Time | {time} minutes on {threads} thread(s) |
| Made with | `{command}` |
| PyTorch | {torch} |
| Licence | Apache-2.0 |

The seed fixes stories, tokenizer, initial weights and batches. The last bits of the weights also
depend on the number of threads and the PyTorch version.

It writes stories in the manner of its training text and nothing else: a prompt that is not the
beginning of such a story gets a wild answer.

## What it tells (greedy)

{samples}
"""


def write_safetensors(path: Path, weights: Weights) -> None:
    """Write float16 weights in the safetensors format, entries in the order of ``weights``."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, w in weights.items():
        end = offset + 2 * w.numel()
        header[name] = {"dtype": "F16", "shape": list(w.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for w in weights.values():
            file.write(w.to(torch.float16).contiguous().numpy().astype("<f2").tobytes())


def write_model(out: Path, weights: Weights, shape: Shape, tokenizer: Tokenizer, card: str) -> None:
    """Write the directory ``out`` as a whole: it is complete, or it is what it was before.

    An ``out`` that exists is replaced if it holds nothing but files written here.
    """
    check_output(out)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "torch_dtype": "float16",
        **asdict(shape),
    }
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
        (new / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        generation = {"bos_token_id": BOS, "eos_token_id": EOS}
        (new / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
        write_safetensors(new / "model.safetensors", weights)
        tokenizer.save(str(new / "tokenizer.json"))
        (new / "README.md").write_text(card)
        if out.exists():
            out.rename(old)
        try:
            new.rename(out)
        except BaseException:
            if old.exists():
                old.rename(out)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_output(out: Path) -> None:
    """Raise a UserError if ``out`` exists and is anything but an earlier output."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is not a directory; choose another -o")
    others = sorted(p.name for p in out.iterdir() if p.name not in FILES)
    if others:
        raise UserError(
            f"{out} holds {others[0]!r}, which is not ours to replace; choose another -o"
        )
