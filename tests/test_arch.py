"""The table of architectures, and that what derives from it is what transformers means."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from checkpoints import hf_config, hf_tensors, random_checkpoint, safetensors_bytes, write_hf
from tokenfabric.compiler.compile import program_of
from tokenfabric.core.arch import ARCHITECTURES, LLAMA, MISTRAL, QWEN2, Attention, FeedForward
from tokenfabric.core.config import preset
from tokenfabric.core.errors import UserError
from tokenfabric.core.shape import NAMED_SHAPES, ModelShape, shape_from
from tokenfabric.core.work import work_of
from tokenfabric.quant.checkpoint import interleave_rope, load_checkpoint
from tokenfabric.quant.float_model import ACTIVATIONS, forward

ODD = ModelShape(40, 52, 2, 4, 2, 10, 77, 32)
BIASED = replace(ODD, arch="qwen2", norm_eps=1e-6)
ROWS = list(ARCHITECTURES.values())


def test_the_tensors_of_a_llama_layer_are_those_of_llama2c():
    assert list(LLAMA.tensors(ODD)) == [
        ("attn_norm", "input_layernorm.weight", (40,)),
        ("wq", "self_attn.q_proj.weight", (40, 40)),
        ("wk", "self_attn.k_proj.weight", (20, 40)),
        ("wv", "self_attn.v_proj.weight", (20, 40)),
        ("wo", "self_attn.o_proj.weight", (40, 40)),
        ("ffn_norm", "post_attention_layernorm.weight", (40,)),
        ("w1", "mlp.gate_proj.weight", (52, 40)),
        ("w2", "mlp.down_proj.weight", (40, 52)),
        ("w3", "mlp.up_proj.weight", (52, 40)),
    ]


def test_qwen2_is_llama_with_three_biases():
    llama, qwen2 = (list(row.tensors(ODD)) for row in (LLAMA, QWEN2))
    assert [t for t in qwen2 if t not in llama] == [
        ("bq", "self_attn.q_proj.bias", (40,)),
        ("bk", "self_attn.k_proj.bias", (20,)),
        ("bv", "self_attn.v_proj.bias", (20,)),
    ]
    assert [t for t in qwen2 if t in llama] == llama
    assert not LLAMA.beyond_hardware and QWEN2.beyond_hardware == ["biases on wq, wk, wv"]


def test_mistral_is_llama_under_another_name():
    assert list(MISTRAL.tensors(ODD)) == list(LLAMA.tensors(ODD)) and not MISTRAL.beyond_hardware
    assert MISTRAL.fixed == LLAMA.fixed and not MISTRAL.llama2c


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_rows_are_sound(row):
    tensors = list(row.tensors(ODD))
    for column in (0, 1):
        names = [t[column] for t in tensors]
        assert len(set(names)) == len(names)
    assert {type(s) for s in row.sublayers} <= {Attention, FeedForward}
    traced = {"att", "h"} | {norm.name for norm in row.norms}
    for matrix in row.matrices:
        assert matrix.reads in traced, matrix.name
        assert hasattr(ODD, matrix.outputs) and hasattr(ODD, matrix.inputs)
        assert not matrix.rotated or matrix.dims(ODD)[0] == getattr(ODD, matrix.rotated) * 10
    assert row.matrix_weights(ODD) == sum(a * b for a, b in (m.dims(ODD) for m in row.matrices))
    for sublayer in row.sublayers:
        if isinstance(sublayer, FeedForward):
            assert sublayer.activation in ACTIVATIONS
            assert sublayer.gate.dims(ODD) == sublayer.up.dims(ODD)
            assert sublayer.gate.reads == sublayer.up.reads  # one input: rounded together
        else:
            assert len({m.reads for m in (sublayer.q, sublayer.k, sublayer.v)}) == 1


def test_names_tell_rows_apart():
    for column in ("name", "hf_class", "hf_type"):
        assert len({getattr(row, column) for row in ROWS}) == len(ROWS)
    assert list(ARCHITECTURES) == [row.name for row in ROWS]


@pytest.mark.parametrize("shape", [ODD, replace(ODD, tied=False), BIASED], ids=str)
def test_parameters_are_as_many_as_transformers_counts(shape):
    transformers = pytest.importorskip("transformers")
    kind = {"llama": "Llama", "qwen2": "Qwen2"}[shape.arch]
    config = getattr(transformers, f"{kind}Config")(**hf_config(shape))
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    assert shape.parameters == model.num_parameters()


def test_parameters_of_models_that_people_know():
    assert NAMED_SHAPES["stories15m"].parameters == 15_191_712
    assert NAMED_SHAPES["smollm2-135m"].parameters == 134_515_008


def test_work_is_what_a_layer_holds():
    work = work_of(ODD)
    q, k, v, o, gate, down, up = 1600, 800, 800, 1600, 2080, 2080, 2080
    assert work.layer_macs == 2 * (q + k + v + o + gate + down + up)
    channels = 40 + 20 + 20 + 40 + 52 + 40 + 52
    assert work.layer_bytes == work.layer_macs + 2 * (2 * channels + 2 * (40 + 40) + 2 * 20)
    assert work.classifier_bytes == 77 * 42 + 80
    assert work.attention_macs_per_position == 2 * 4 * 10 * 2


# --- files of the second row ---------------------------------------------------------------------


def test_qwen2_round_trip(tmp_path):
    made = random_checkpoint(BIASED, seed=2)
    read = load_checkpoint(write_hf(tmp_path, made))
    assert read.shape == BIASED and read.shape.arch == "qwen2"
    for one, other in zip(made.layers, read.layers, strict=True):
        assert one.keys() == other.keys() and {"bq", "bk", "bv"} < one.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    tokens = [1, 5, 9]
    np.testing.assert_array_equal(forward(made, tokens), forward(read, tokens))
    for layer in read.layers:
        layer["bk"][:] = 0  # a bias of k moves all scores of a row alike, but for RoPE
    assert np.abs(forward(made, tokens) - forward(read, tokens)).max() > 1e-3


def test_a_bias_is_interleaved_as_its_rows_are():
    bias = np.arange(12, dtype=np.float32)
    column = interleave_rope(bias[:, None], 2)
    np.testing.assert_array_equal(interleave_rope(bias, 2), column[:, 0])
    assert interleave_rope(bias, 2).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("model.layers.1.self_attn.k_proj.bias"), "k_proj.bias' is missing"),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(39, np.float32)}),
            r"q_proj.bias' has shape \[39\], config.json needs \[40\]",
        ),
        (
            lambda t: t.update({"model.layers.0.mlp.up_proj.bias": np.zeros(52, np.float32)}),
            "mlp.up_proj.bias' is not part of a 2-layer qwen2; use a plain Qwen2ForCausalLM",
        ),
    ],
)
def test_tensors_that_do_not_belong_are_refused(tmp_path, change, words):
    folder = write_hf(tmp_path, random_checkpoint(BIASED))
    tensors = hf_tensors(random_checkpoint(BIASED))
    change(tensors)
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    with pytest.raises(UserError, match=words):
        load_checkpoint(folder)


def test_a_bias_in_a_llama_is_refused(tmp_path):
    folder = write_hf(tmp_path, random_checkpoint(ODD))
    tensors = hf_tensors(random_checkpoint(BIASED))
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    with pytest.raises(UserError, match="bias' is not part of a 2-layer llama"):
        load_checkpoint(folder)


def config_of(tmp_path, **changes):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**hf_config(BIASED), **changes}))
    return shape_from(path)


def test_defaults_are_those_of_the_row(tmp_path):
    assert config_of(tmp_path) == BIASED
    absent = dict.fromkeys(("rms_norm_eps", "max_position_embeddings", "tie_word_embeddings"))
    assert config_of(tmp_path, **absent) == replace(BIASED, context=32_768, tied=False)
    assert config_of(tmp_path, architectures=None) == BIASED  # by model_type


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"use_sliding_window": True},
            "use_sliding_window=True is not supported; it must be False",
        ),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'.*plain Qwen2ForCausalLM"),
        (
            {"architectures": ["Qwen2ForCausalLM", "LlamaForCausalLM"]},
            "supported: LlamaForCausalLM",
        ),
        ({"architectures": [["Qwen2ForCausalLM"]]}, "architectures="),
        ({"architectures": None, "model_type": ["qwen2"]}, "model_type="),
    ],
)
def test_configs_beyond_the_row_are_refused(tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        config_of(tmp_path, **change)


def test_an_unknown_row_is_refused():
    with pytest.raises(
        UserError, match="arch='mamba' is not known; there are: llama, qwen2, mistral"
    ):
        replace(ODD, arch="mamba")


def test_the_compiler_refuses_what_the_hardware_lacks():
    with pytest.raises(UserError, match="Qwen2ForCausalLM has biases on wq, wk, wv, which the acc"):
        program_of(BIASED, preset("tiny"))
