"""A row that nobody has seen: its feed-forward comes before its attention.

The accelerator has all of its operations, so it must go the whole way, from a checkpoint to logits
of the golden device, without a line of code for it. What knows of Llama by heart fails here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from checkpoints import random_checkpoint, write_hf
from small_models import ODD, SMALL
from tokenfabric.compiler.check import check_program
from tokenfabric.compiler.compile import compile_model, program_of
from tokenfabric.core import arch, isa, shape
from tokenfabric.core.config import preset
from tokenfabric.core.image import PAGE
from tokenfabric.core.isa import Op, RowFlag
from tokenfabric.core.work import work_of
from tokenfabric.host.device import load, put_job, run
from tokenfabric.quant.calibrate import calibrate
from tokenfabric.quant.checkpoint import load_checkpoint
from tokenfabric.quant.float_model import forward
from tokenfabric.quant.qmodel import QModel
from tokenfabric.quant.quantize import quantize
from tokenfabric.sim.golden import GoldenDevice

ROW = replace(
    arch.LLAMA,
    name="swapped",
    hf_class="SwappedForCausalLM",
    hf_type="swapped",
    sublayers=arch.LLAMA.sublayers[::-1],
    llama2c=False,
)
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(autouse=True)
def in_the_table(monkeypatch):
    table = {**arch.ARCHITECTURES, ROW.name: ROW}
    for module in (arch, shape):
        monkeypatch.setattr(module, "ARCHITECTURES", table)


def shapes() -> dict[str, shape.ModelShape]:
    return {"small": replace(SMALL, arch=ROW.name), "odd": replace(ODD, arch=ROW.name)}


@pytest.mark.parametrize("name", ["small", "odd"])
def test_the_float_model_computes_it_in_its_order(name):
    checkpoint = random_checkpoint(shapes()[name], seed=1)
    traced: list[str] = []
    logits = forward(checkpoint, TOKENS, trace=lambda what, _: traced.append(what))
    first = [what.removeprefix("layer0.") for what in traced if what.startswith("layer0.")]
    assert first == [
        "ffn_norm", "gate", "up", "h", "residual",
        "attn_norm", "q", "k", "v", "scores", "att", "residual_attn",
    ]  # fmt: skip
    llama = replace(checkpoint, shape=replace(checkpoint.shape, arch="llama"))
    assert np.abs(logits - forward(llama, TOKENS)).max() > 0.1


@pytest.mark.parametrize("name", ["small", "odd"])
def test_it_is_loaded_quantized_and_kept(name, tmp_path):
    made = random_checkpoint(shapes()[name], seed=2)
    folder = write_hf(tmp_path, replace(made, shape=replace(made.shape, arch="llama")))
    config = (folder / "config.json").read_text()
    config = config.replace("LlamaForCausalLM", ROW.hf_class).replace('"llama"', '"swapped"')
    (folder / "config.json").write_text(config)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.shape == made.shape
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, made.shape.vocab, 40) for _ in range(4)]
    model = quantize(checkpoint, calibrate(checkpoint, texts))
    model.write(tmp_path / "m.tfm")
    again = QModel.read(tmp_path / "m.tfm")
    assert again.shape.arch == ROW.name
    got = again.forward(TOKENS) * 2.0**-again.logits_frac
    want = forward(checkpoint, TOKENS)
    assert np.abs(got - want).max() < 0.05 * np.abs(want).max()


@pytest.mark.parametrize("preset_name", ["tiny", "pynq-z2", "kv260"])
@pytest.mark.parametrize("name", ["small", "odd"])
def test_its_program_is_sound_and_gives_its_logits(name, preset_name):
    model, cfg = QModel.random(shapes()[name], 3), preset(preset_name)
    image = compile_model(model, cfg)
    rows, code = program_of(model.shape, cfg)
    check_program(cfg, rows, code)
    of_layer = [i.op for i in code[1 : [i.op for i in code].index(Op.LOAD, 3)]]
    assert of_layer.index(Op.SWIGLU) < of_layer.index(Op.ATTEND)

    device = GoldenDevice(cfg, image.memory(len(TOKENS)))
    load(device, image)
    found = []
    flags = int(RowFlag.WANT_LOGITS | RowFlag.DUMP_LOGITS)
    for at in range(0, len(TOKENS), image.rows):
        part = TOKENS[at : at + image.rows]
        table = [
            {"token": t, "position": at + n, "slot": 0, "flags": flags} for n, t in enumerate(part)
        ]
        put_job(device, image.descriptor(table))
        run(device, 60)
        stride = image.map.logits_stride
        data = device.read(image.map.logits, len(part) * stride).view("<i4")
        found.append(data.reshape(len(part), -1)[:, : model.shape.vocab])
    np.testing.assert_array_equal(np.concatenate(found), model.forward(TOKENS))


def test_its_work_is_that_of_the_same_matrices():
    assert work_of(shapes()["odd"]) == work_of(ODD)
    assert shapes()["odd"].parameters == ODD.parameters


def test_its_instructions_read_what_they_should():
    """The norm before the feed-forward comes first, and gains stand where norms look for them."""
    model, cfg = QModel.random(shapes()["small"], 4), preset("tiny")
    image = compile_model(model, cfg)
    at, size = image.map.program - PAGE, isa.INSTRUCTION_BYTES
    text = image.payload[at : at + image.map.program_words * size].tobytes()
    code = [isa.decode(text[i : i + size]) for i in range(0, len(text), size)]
    norms = [i for i in code if i.op is Op.NORM][:2]
    layer = model.layers[0]
    assert [i.shift for i in norms] == [
        layer.norms[name].out_shift for name in ("ffn_norm", "attn_norm")
    ]
    append = next(i for i in code if i.op is Op.APPEND)
    assert norms[0].param == 0 and norms[1].param < append.param
