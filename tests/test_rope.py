"""Scaled RoPE: what transformers makes of the same config.json, and what stays as it was."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from checkpoints import LLAMA3, hf_config, hf_tensors, random_checkpoint, write_hf
from tokenfabric.compiler.compile import compile_model
from tokenfabric.core import ops
from tokenfabric.core.config import preset
from tokenfabric.core.image import PAGE
from tokenfabric.core.rope import rope_scaling
from tokenfabric.core.shape import ModelShape, shape_from
from tokenfabric.quant.checkpoint import load_checkpoint
from tokenfabric.quant.float_model import forward
from tokenfabric.quant.qmodel import QModel

SHAPE = ModelShape(64, 80, 2, 2, 1, 32, 60, 256)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
KINDS = {
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn, own magnitude": YARN | {"attention_factor": 1.3},
    "yarn, mscale": YARN | {"mscale": 1.0, "mscale_all_dim": 0.7},
    "yarn, betas": YARN | {"beta_fast": 8, "beta_slow": 2, "truncate": False},
}


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_transformers(tmp_path, kind, arch):
    torch = pytest.importorskip("torch", reason="the independent reference needs torch")
    transformers = pytest.importorskip("transformers", reason="the independent reference")
    shape = replace(SHAPE, arch=arch)
    made = random_checkpoint(shape, seed=5, scale=1.5)
    key = "rope_scaling" if arch == "llama" else "rope_parameters"
    ours = load_checkpoint(write_hf(tmp_path, made, config={key: KINDS[kind]}))

    config = hf_config(shape)
    config["rope_parameters"] = {"rope_theta": config.pop("rope_theta"), **KINDS[kind]}
    name = {"llama": "Llama", "qwen2": "Qwen2"}[arch]
    configured = getattr(transformers, f"{name}Config")(**config)
    model = getattr(transformers, f"{name}ForCausalLM")(configured).eval()
    state = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in hf_tensors(made).items()}
    model.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    tokens = np.random.default_rng(3).integers(0, shape.vocab, 200)
    with torch.no_grad():
        want = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    assert np.abs(forward(ours, tokens) - want).max() < 3e-4
    if kind != "dynamic":  # the scaling is seen
        assert np.abs(forward(made, tokens) - want).max() > 0.01


def test_kinds_worked_out_by_hand():
    linear = rope_scaling({"type": "linear", "factor": 4}, 8, 1e4, 64)
    assert linear == ((0.25,) * 4, 1.0, 64)
    # theta 16: the pairs turn 64 / 2 pi * (1, 1/2, 1/4, 1/8) = 10.2, 5.1, 2.55, 1.27 times
    pairs, magnitude, _ = rope_scaling(LLAMA3, 8, 16.0, 512)
    keep = [1.0, 1.0] + [(64 / 2 / math.pi / turn - 1) / 3 for turn in (4, 8)]
    np.testing.assert_allclose(pairs, [k + (1 - k) / 8 for k in keep], rtol=1e-7)
    assert magnitude == 1.0
    pairs, magnitude, _ = rope_scaling(YARN, 8, 16.0, 512)
    # 32 turns: below the first pair; one turn: pair 8 ln(64 / 2 pi) / (2 ln 16) = 3.35, up to 4
    np.testing.assert_allclose(pairs, [1 - i / 4 * 0.75 for i in range(4)], rtol=1e-7)
    assert magnitude == pytest.approx(1 + 0.1 * math.log(4))


@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3", "yarn"])
@pytest.mark.parametrize("name", ["type", "rope_type"])
def test_a_factor_of_one_scales_nothing(kind, name):
    rope = {**LLAMA3, "factor": 1.0, "rope_type": None, name: kind}
    if name == "type":
        del rope["rope_type"]
    assert rope_scaling(rope, 32, 1e4, 64) == ((), 1.0, 64)


def test_yarn_without_a_factor_takes_the_ratio_of_the_contexts():
    assert rope_scaling(YARN | {"factor": None}, 32, 1e4, 256) == rope_scaling(YARN, 32, 1e4, 256)


def read(tmp_path, **change):
    (tmp_path / "config.json").write_text(json.dumps(hf_config(SHAPE) | change))
    return shape_from(tmp_path)


def test_the_trained_length_may_stand_beside_the_scaling(tmp_path):
    inside = read(tmp_path, rope_scaling=LLAMA3)
    rope = {k: v for k, v in LLAMA3.items() if not k.startswith("original")}
    assert inside.rope_scale
    assert inside == read(tmp_path, rope_scaling=rope, original_max_position_embeddings=64)
    assert inside != read(tmp_path, rope_scaling=rope)
    assert inside == read(tmp_path, rope_scaling=LLAMA3, rope_parameters=LLAMA3)


def test_dynamic_scaling_ends_at_the_trained_length(tmp_path):
    rope = {"type": "dynamic", "factor": 2.0}
    assert read(tmp_path, rope_scaling=rope) == SHAPE
    trained = rope | {"original_max_position_embeddings": 100}
    assert read(tmp_path, rope_scaling=trained) == replace(SHAPE, context=100)


def test_the_table_of_the_image_is_the_scaled_one(tmp_path):
    scale = rope_scaling(LLAMA3, SHAPE.head_dim, SHAPE.rope_theta, SHAPE.context).pairs
    model = QModel.random(replace(SHAPE, rope_scale=scale), 0)
    model.write(tmp_path / "m.tfm")
    again = QModel.read(tmp_path / "m.tfm")
    assert again.shape == model.shape and again.shape.rope_scale == scale
    image = compile_model(again, preset("tiny"), context=64)
    rows = image.payload[image.map.rope - PAGE :][: 2 * image.head_bytes * 64]
    table = rows.view("<i2").reshape(64, image.head_bytes)[:, :32] / (1 << ops.ROPE_FRAC)
    angle = np.arange(64)[:, None] * 1e4 ** (-np.arange(16) / 16) * np.array(scale)
    np.testing.assert_allclose(table[:, 0::2], np.cos(angle), atol=2**-14)
    np.testing.assert_allclose(table[:, 1::2], np.sin(angle), atol=2**-14)
    tokens = list(range(40))
    plain = QModel.random(SHAPE, 0)
    assert (plain.forward(tokens) != model.forward(tokens)).any()


def test_a_model_file_of_an_unscaled_model_says_nothing_about_scaling(tmp_path):
    QModel.random(SHAPE, 0).write(tmp_path / "m.tfm")
    assert b"rope_theta" in (tmp_path / "m.tfm").read_bytes()
    assert b"rope_scale" not in (tmp_path / "m.tfm").read_bytes()
