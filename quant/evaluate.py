"""How far a quantized model is from its float checkpoint on a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tokenfabric.core.errors import UserError
from tokenfabric.core.files import read_bytes
from tokenfabric.core.tensors import TensorClass
from tokenfabric.quant import float_model
from tokenfabric.quant.calibrate import Progress
from tokenfabric.quant.checkpoint import Checkpoint
from tokenfabric.quant.qmodel import Array, QModel

MAX_TOKENS = 256  # of one text


class Encoder(Protocol):
    """What is needed of a tokenizer."""

    vocab: int
    bos: int | None
    eos: list[int]

    def encode(self, text: str) -> list[int]: ...


def read_sequences(
    path: str | Path, tokenizer: Encoder, vocab: int, context: int
) -> list[npt.NDArray[np.int64]]:
    """One text a line, as its tokens (after the BOS, if the tokenizer has one), cut at MAX_TOKENS
    and the context.

    Lines that give no tokens are skipped. UserError for a file that is not text or holds none.
    """
    found = []
    for number, line in read_lines(path):
        ids = np.array(tokenizer.encode(line)[: min(MAX_TOKENS, context)], np.int64)
        if not len(ids):
            continue
        if ids.min() < 0 or ids.max() >= vocab:
            raise UserError(
                f"{path}: line {number} has token {max(ids.max(), -ids.min())}, the model's "
                f"vocabulary has {vocab}; use the tokenizer of the checkpoint"
            )
        found.append(ids)
    if not found:
        raise UserError(f"{path}: the file holds no text; give one text a line")
    return found


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not empty, with their numbers; UserError as above."""
    path = Path(path)
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start} is not UTF-8; give a text file, one text a line"
        ) from None
    lines = enumerate(text.removeprefix("\ufeff").split("\n"), start=1)
    found = [(number, line.strip()) for number, line in lines if line.strip()]
    if not found:
        raise UserError(f"{path}: the file holds no text; give one text a line")
    return found


def evaluate(
    model: QModel,
    text: str | Path,
    checkpoint: Checkpoint,
    tokenizer: Encoder,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare a quantized model with its float checkpoint on a text file, one text a line.

    Results: kl, mean over all positions of KL(float || quantized) of the next token, in nats; top1,
    percent of positions where both put the same token first; perplexity and perplexity_float of
    the tokens after the first; tokens; saturations, counts by lower-case name of TensorClass.
    """
    context = min(model.shape.context, checkpoint.shape.context)
    sequences = read_sequences(text, tokenizer, model.shape.vocab, context)
    return compare(model, checkpoint, sequences, progress)


def _log_softmax(x: Array) -> Array:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def compare(
    model: QModel,
    checkpoint: Checkpoint,
    sequences: Sequence[npt.NDArray[np.int64]],
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The results of :func:`evaluate` for token sequences."""
    if model.shape.vocab != checkpoint.shape.vocab:
        raise UserError(
            f"the model has {model.shape.vocab} tokens, the checkpoint {checkpoint.shape.vocab}; "
            "evaluate against the checkpoint that was quantized"
        )
    saturations = {kind.name.lower(): 0 for kind in TensorClass}
    same = tokens = predicted = 0
    kl = nll = nll_float = 0.0
    for n, ids in enumerate(sequences):
        want = _log_softmax(float_model.forward(checkpoint, ids).astype(np.float64))
        logits = model.forward(ids, saturations=saturations)
        got = _log_softmax(logits * 2.0**-model.logits_frac)
        kl += float((np.exp(want) * (want - got)).sum())
        same += int((want.argmax(axis=-1) == got.argmax(axis=-1)).sum())
        tokens += len(ids)
        rows = np.arange(len(ids) - 1)
        nll -= float(got[rows, ids[1:]].sum())
        nll_float -= float(want[rows, ids[1:]].sum())
        predicted += len(rows)
        if progress is not None:
            progress("evaluating", n + 1, len(sequences))
    return {
        "kl": kl / tokens,
        "top1": 100 * same / tokens,
        "perplexity": float(np.exp(nll / max(predicted, 1))),
        "perplexity_float": float(np.exp(nll_float / max(predicted, 1))),
        "tokens": tokens,
        "saturations": saturations,
    }
