import math

import numpy as np
import pytest
from checkpoints import TINY, random_checkpoint
from tokenfabric.core.errors import UserError
from tokenfabric.core.shape import ModelShape
from tokenfabric.core.tensors import TensorClass
from tokenfabric.host.tokenizer import load_tokenizer
from tokenfabric.quant import float_model
from tokenfabric.quant.checkpoint import load_checkpoint
from tokenfabric.quant.evaluate import MAX_TOKENS, compare, evaluate, read_sequences
from tokenfabric.quant.qmodel import QModel
from tokenfabric.quant.quantize import quantize_checkpoint

LETTERS = "abcdefghijklmnopqrstuvwxyz ,."


class Spelling:
    """A tokenizer of letters: BOS is 1, "a" is 3, what is unknown is 0."""

    vocab, bos, eos = 3 + len(LETTERS), 1, [2]

    def encode(self, text):
        return [self.bos, *(3 + LETTERS.find(c) if c in LETTERS else 0 for c in text)]

    def to_bytes(self):
        return b"spelling"


@pytest.fixture
def checkpoint():
    return random_checkpoint(TINY, seed=2, scale=1.5)


def test_results_equal_their_definitions(checkpoint, tmp_path):
    model = QModel.random(TINY, 3)
    text = tmp_path / "text"
    text.write_text("hello, world.\n\n  \nonce upon a time there was a very small cat.\n")
    result = evaluate(model, text, checkpoint, Spelling())
    kl = top1 = count = nll = nll_float = predicted = 0
    for line in ("hello, world.", "once upon a time there was a very small cat."):
        ids = Spelling().encode(line)[: TINY.context]
        p = float_model.forward(checkpoint, ids).astype(np.float64)
        q = model.forward(ids) / 2.0**model.logits_frac
        for t in range(len(ids)):
            a = np.exp(p[t]) / np.exp(p[t]).sum()
            b = np.exp(q[t]) / np.exp(q[t]).sum()
            kl += (a * np.log(a / b)).sum()
            top1 += a.argmax() == b.argmax()
            count += 1
            if t + 1 < len(ids):
                nll -= math.log(b[ids[t + 1]])
                nll_float -= math.log(a[ids[t + 1]])
                predicted += 1
    assert result["tokens"] == count == 14 + TINY.context
    assert result["kl"] == pytest.approx(kl / count, rel=1e-9) and result["kl"] > 0.1
    assert result["top1"] == pytest.approx(100 * top1 / count)
    assert result["perplexity"] == pytest.approx(math.exp(nll / predicted), rel=1e-9)
    assert result["perplexity_float"] == pytest.approx(math.exp(nll_float / predicted), rel=1e-9)
    assert list(result["saturations"]) == [kind.name.lower() for kind in TensorClass]


def test_a_quantized_model_is_near_and_another_is_not(checkpoint):
    sequences = [np.arange(3, 30), np.arange(30, 2, -1)]
    near = compare(quantize_checkpoint(checkpoint, Spelling()), checkpoint, sequences)
    far = compare(QModel.random(TINY), checkpoint, sequences)
    assert near["kl"] < 3e-3 < 0.1 < far["kl"]
    assert near["top1"] > 90 > far["top1"]
    assert near["perplexity"] == pytest.approx(near["perplexity_float"], rel=0.02)


def test_progress(checkpoint):
    calls = []
    compare(QModel.random(TINY), checkpoint, [np.arange(5)] * 3, lambda *call: calls.append(call))
    assert calls == [("evaluating", n, 3) for n in (1, 2, 3)]


def test_sequences(tmp_path):
    text = tmp_path / "text"
    text.write_bytes(b"\xef\xbb\xbfab\r\n \t\r\n" + b"c" * 1000 + b"\nd")
    found = read_sequences(text, Spelling(), 40, 512)
    assert [ids.tolist() for ids in found] == [[1, 3, 4], [1] + [5] * (MAX_TOKENS - 1), [1, 6]]
    assert len(read_sequences(text, Spelling(), 40, 32)[1]) == 32


@pytest.mark.parametrize(
    "data, match",
    [
        (b"", "empty"),
        (b"\n \n\r\n", "holds no text; give"),
        (b"abc\n\xff\xfe", "byte 4 is not UTF-8; give"),
    ],
)
def test_bad_texts(tmp_path, data, match):
    text = tmp_path / "text"
    text.write_bytes(data)
    with pytest.raises(UserError, match=match) as caught:
        read_sequences(text, Spelling(), 40, 32)
    assert str(text) in str(caught.value)


def test_bad_inputs(tmp_path, checkpoint):
    with pytest.raises(UserError, match="no such file"):
        evaluate(QModel.random(TINY), tmp_path / "none", checkpoint, Spelling())
    text = tmp_path / "text"
    text.write_text("fine\nz\n")
    with pytest.raises(UserError, match="line 2 has token 28, the model's vocabulary has 20; use"):
        read_sequences(text, Spelling(), 20, 32)
    other = ModelShape(16, 24, 1, 4, 2, 4, 64, 32)
    with pytest.raises(UserError, match="the model has 64 tokens, the checkpoint 40; evaluate"):
        evaluate(QModel.random(other), text, checkpoint, Spelling())


@pytest.mark.slow
@pytest.mark.parametrize("recipe, limit", [("w8", 0.0010), ("w8-rtn", 0.0012)])
def test_kl_of_the_real_model(shared, recipe, limit):
    """The target: at most 0.0010 nats per token on text that calibration has not seen."""
    checkpoint = load_checkpoint(shared / "models" / "stories260K.bin")
    tokenizer = load_tokenizer(shared / "models" / "tok512.bin", checkpoint.shape.vocab)
    model = quantize_checkpoint(checkpoint, tokenizer, recipe)
    text = shared / "data" / "tinystories-sample.txt"
    result = evaluate(model, text, checkpoint, tokenizer)
    assert result["tokens"] == 9 * 256
    assert 1e-4 < result["kl"] <= limit
    assert result["top1"] > 97
    assert result["perplexity"] == pytest.approx(result["perplexity_float"], rel=0.005)
    assert sum(result["saturations"].values()) < 20


class Bare(Spelling):
    """No BOS, and what is unknown gives no token."""

    bos = None

    def encode(self, text):
        return [3 + LETTERS.find(c) for c in text if c in LETTERS]


def test_a_tokenizer_without_bos(checkpoint, tmp_path):
    text = tmp_path / "text"
    text.write_text("abc\n123\nz\n")
    found = read_sequences(text, Bare(), TINY.vocab, TINY.context)
    assert [ids.tolist() for ids in found] == [[3, 4, 5], [28]]
    text.write_text("123\n456\n")
    with pytest.raises(UserError, match="holds no text"):
        read_sequences(text, Bare(), TINY.vocab, TINY.context)
    model = quantize_checkpoint(checkpoint, Bare(), "w8-rtn")
    text.write_text("abc\nonce upon a time")
    assert evaluate(model, text, checkpoint, Bare())["kl"] < 0.05
