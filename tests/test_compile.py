"""Compiled programs on the golden device against the model's own forward pass, bit for bit."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from small_models import ODD, SMALL, golden
from tokenfabric.compiler.compile import compile_model, program_of
from tokenfabric.compiler.program import stream_words
from tokenfabric.core import isa
from tokenfabric.core.config import preset
from tokenfabric.core.errors import UserError
from tokenfabric.core.image import PAGE, Image
from tokenfabric.core.isa import RowFlag
from tokenfabric.host.device import run
from tokenfabric.quant.qmodel import QModel

BOTH = int(RowFlag.WANT_LOGITS | RowFlag.DUMP_LOGITS)
SHAPES = {
    "small": SMALL,
    "odd sizes, untied": ODD,
    "one head": replace(SMALL, heads=1, kv_heads=1, head_dim=2),
    "head as wide as can be": replace(SMALL, heads=2, kv_heads=1, head_dim=64),
    "dim below a chunk": replace(SMALL, dim=6, hidden=10, vocab=9),
    "hidden in pieces": replace(SMALL, hidden=776),
    "one layer, one token": replace(SMALL, layers=1, vocab=1),
}


def _logits(model: QModel, image: Image, device, tokens, sizes: list[int]) -> np.ndarray:
    """Logits of all positions, in steps of so many rows."""
    device.write(PAGE, image.payload)
    found, at = [], 0
    for size in sizes:
        rows = [
            {"token": int(tokens[at + i]), "position": at + i, "slot": 0, "flags": BOTH}
            for i in range(size)
        ]
        device.write(isa.JOB, image.descriptor(rows))
        run(device, 60)
        data = device.read(image.map.logits, size * image.map.logits_stride)
        found.append(data.view("<i4").reshape(size, -1)[:, : image.vocab])
        at += size
    return np.concatenate(found)


@pytest.mark.parametrize("name", ["tiny", "pynq-z2", "kv260"])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_saturations_equal_the_models(shape, name):
    model, _, image, device = golden(SHAPES[shape], name)
    most = min(image.rows, 7)
    sizes = [min(3, most), 1, most]
    tokens = np.random.default_rng(1).integers(0, image.vocab, sum(sizes))
    counts: dict[str, int] = {}
    want = model.forward(tokens, saturations=counts)
    assert np.array_equal(_logits(model, image, device, tokens, sizes), want)
    _, _, image, device = golden(SHAPES[shape], name)
    if sum(sizes) <= image.rows:  # one step: its counters are those of all tokens
        _logits(model, image, device, tokens, [len(tokens)])
        assert sum(device.saturations()) == sum(counts.values())


def test_models_that_differ_give_other_logits():
    tokens = [1, 2, 3]
    found = [_logits(*golden(seed=seed)[::2], golden()[3], tokens, [3]) for seed in (0, 1)]
    assert not np.array_equal(*found)


def test_slots_do_not_touch_each_other():
    model, cfg, _, _ = golden()
    image = compile_model(model, cfg, slots=2)
    device = type(golden()[3])(cfg, image.memory(8))
    device.write(PAGE, image.payload)
    texts = [[5, 6, 7], [9, 8]]
    rows = [
        {"token": token, "position": position, "slot": slot, "flags": BOTH}
        for slot, text in enumerate(texts)
        for position, token in enumerate(text)
    ]
    device.write(isa.JOB, image.descriptor(rows))
    run(device, 60)
    data = device.read(image.map.logits, 5 * image.map.logits_stride).view("<i4").reshape(5, -1)
    want = np.concatenate([model.forward(text) for text in texts])
    assert np.array_equal(data[:, : image.vocab], want)


def test_an_image_survives_its_file(tmp_path):
    _, _, image, _ = golden()
    image.write(tmp_path / "x.img")
    again = Image.read(tmp_path / "x.img")
    assert np.array_equal(again.payload, image.payload)
    assert {k: v for k, v in vars(again).items() if k != "payload"} == {
        k: v for k, v in vars(image).items() if k != "payload"
    }


@pytest.mark.parametrize("cut", [0, 5, 40, 300, -1])
def test_a_truncated_image_is_refused(tmp_path, cut):
    _, _, image, _ = golden()
    path = tmp_path / "x.img"
    image.write(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"x\.img: ") as caught:
        Image.read(path)
    assert "\n" not in str(caught.value)


def test_every_instruction_of_a_program_decodes_to_what_was_encoded():
    _, _, image, _ = golden()
    at = image.map.program - PAGE
    size = isa.INSTRUCTION_BYTES
    code = image.payload[at : at + image.map.program_words * size].tobytes()
    program = [isa.decode(code[i : i + size]) for i in range(0, len(code), size)]
    assert b"".join(map(isa.encode, program)) == code
    assert [i.op for i in program].count(isa.Op.ATTEND) == SMALL.layers
    assert program[-1].op is isa.Op.END


@pytest.mark.parametrize(
    ("shape", "name", "text"),
    [
        (replace(SMALL, head_dim=128), "tiny", "head_dim = 128 does not fit tiny: at most 64"),
        (
            replace(SMALL, dim=2048),
            "tiny",
            "dim = 2048: takes 256 chunks for one row, .* res_chunks = 128",
        ),
        (
            replace(SMALL, layers=40),
            "tiny",
            "layers = 40 makes a program of .* room for 256; choose a larger",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused(shape, name, text):
    with pytest.raises(UserError, match=text):
        compile_model(QModel.random(shape), preset(name))


@pytest.mark.parametrize("context", [0, -1, 65])
def test_a_context_beyond_the_models_is_refused(context):
    model, cfg, _, _ = golden()
    with pytest.raises(UserError, match=f"context {context} does not fit.*choose from 1 to 64"):
        compile_model(model, cfg, context=context)


@pytest.mark.parametrize("slots", [0, -1, 257])
def test_more_slots_than_the_accelerator_tells_apart_are_refused(slots):
    model, cfg, _, _ = golden()
    with pytest.raises(UserError, match=f"{slots} slots; choose from 1 to 256"):
        compile_model(model, cfg, slots=slots)


@pytest.mark.parametrize("name", ["tiny", "pynq-z2", "kv260"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_program_without_weights_is_the_one_with(shape, name):
    model, cfg, image, _ = golden(SHAPES[shape], name)
    rows, code = program_of(model.shape, cfg)
    data = image.payload[image.map.program - PAGE :][: len(code) * isa.INSTRUCTION_BYTES].tobytes()
    same = ("op", "wait", "want", "mode", "src", "src_stride", "dst", "dst_stride", "k", "n")
    same += ("param", "heads", "group", "head_chunks")
    assert (rows, len(code)) == (image.rows, image.map.program_words)
    for at, made in enumerate(code):
        real = isa.decode(data[at * isa.INSTRUCTION_BYTES :][: isa.INSTRUCTION_BYTES])
        assert [getattr(made, n) for n in same] == [getattr(real, n) for n in same], at
    words = image.map.stream_full * cfg.superblock_bytes // cfg.word_bytes
    assert sum(stream_words(cfg, i) for i in code) == words


def test_an_image_is_not_read_into_memory(tmp_path):
    """A board has little of it: the payload stays in the file until it is put into a buffer."""
    *_, image, _ = golden()
    large = replace(image, payload=np.zeros(1 << 25, np.uint8))
    large = replace(large, map=replace(image.map, kv=PAGE + large.payload.size))
    large.write(tmp_path / "large.tfi")
    tracemalloc.start()
    payload = Image.read(tmp_path / "large.tfi").payload
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert payload.size == 1 << 25 and peak < 1 << 20
