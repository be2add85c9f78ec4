"""Real models on the Verilated accelerator of pynq-z2: every token and every logit."""

from pathlib import Path

import numpy as np
import pytest
from tokenfabric.compiler.compile import compile_model
from tokenfabric.core.config import preset
from tokenfabric.host.session import Session
from tokenfabric.host.tokenizer import Tokenizer
from tokenfabric.host.verify import replay
from tokenfabric.quant.qmodel import QModel
from tokenfabric.sim.devices import make_device

from tokenfabric.commands.inputs import load_model, shipped_model, tokenizer_of

pytestmark = [pytest.mark.verilator, pytest.mark.slow]

PROMPT = "Once upon a time"
COUNT = 64
# The shipped model, quantized and kept; test_reproducible.py compares it with one made anew:
# tokenfabric quantize models/stories -o tests/data/stories.tfm
STORIES = Path(__file__).parent / "data" / "stories.tfm"
# What it continues PROMPT with, greedy, and the first two tokens of PROMPT.
# fmt: off
LITERAL = [
    13, 435, 283, 260, 281, 321, 324, 663, 383, 609, 15, 340, 405, 332, 260, 507, 823, 377, 346,
    525, 15, 609, 389, 260, 472, 348, 383, 593, 15, 550, 307, 898, 310, 264, 756, 372, 593, 15, 609,
    501, 278, 556, 346, 470, 968, 15, 272, 889, 316, 534, 514, 965, 301, 328, 290, 299, 699, 672,
    15, 272, 726, 397, 352, 353,
]
LITERAL_OF_TWO = [522, 260]
# fmt: on


@pytest.fixture(params=["shipped", "stories260K"])
def path(request):
    if request.param == "shipped":
        return shipped_model()
    return request.getfixturevalue("shared") / "models" / "stories260K.bin"


def test_greedy_tokens_and_all_logits(path):
    """The device equals golden; golden the integer model, whose code shares only ops with it."""
    model = load_model(path, None, lambda *_: None)  # quantized once, then from the cache
    cfg = preset("pynq-z2")
    image = compile_model(model, cfg, context=128)
    prompt = tokenizer_of(model.tokenizer, path).encode(PROMPT)
    memory = image.memory(COUNT + len(prompt))
    device = make_device("verilator", cfg, memory)
    session = Session(device, image, dump=True, deadline=120)
    tokens = list(session.generate(prompt, COUNT))
    assert len(tokens) == COUNT
    assert replay(session.jobs, image, device, make_device("golden", cfg, memory)) is None
    logits = model.forward([*prompt, *tokens[:-1]])
    found = np.concatenate([job.logits[:, : model.shape.vocab] for job in session.jobs])
    assert np.array_equal(found, logits)


@pytest.mark.parametrize("name", ["golden", "verilator"])
def test_the_literal_tokens(name):
    assert generated(name, "pynq-z2", None, COUNT) == LITERAL


def test_the_first_literal_tokens_in_pysim():
    assert generated("pysim", "tiny", 2, len(LITERAL_OF_TWO)) == LITERAL_OF_TWO


def generated(device: str, preset_name: str, length: int | None, count: int) -> list[int]:
    """``count`` greedy tokens after the first ``length`` tokens of PROMPT."""
    model, cfg = QModel.read(STORIES), preset(preset_name)
    image = compile_model(model, cfg, context=128)
    prompt = Tokenizer.from_bytes(model.tokenizer).encode(PROMPT)[:length]
    session = Session(make_device(device, cfg, image.memory()), image, deadline=1200)
    return list(session.generate(prompt, count))
