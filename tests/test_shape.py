import json
from dataclasses import replace

import pytest
from checkpoints import LLAMA3, TINY, hf_config
from tokenfabric.core.errors import UserError
from tokenfabric.core.shape import NAMED_SHAPES, ModelShape, shape_from


def test_named_shapes_have_the_published_sizes():
    assert list(NAMED_SHAPES) == ["stories260k", "stories15m", "stories110m", "smollm2-135m"]
    assert NAMED_SHAPES["stories260k"].parameters == 260_032
    assert NAMED_SHAPES["stories15m"].parameters == 15_191_712
    assert NAMED_SHAPES["stories110m"].parameters == 109_529_856
    assert NAMED_SHAPES["smollm2-135m"].parameters == 134_515_008
    for shape in NAMED_SHAPES.values():
        assert shape.tied and shape.q_dim == shape.dim


def test_shape_by_name_in_any_case():
    assert shape_from("Stories260K") is NAMED_SHAPES["stories260k"]


def test_shape_from_config_file_and_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(hf_config(TINY)))
    assert shape_from(tmp_path / "config.json") == TINY
    assert shape_from(str(tmp_path)) == TINY


def test_unknown_name_lists_the_names():
    with pytest.raises(UserError, match=r"'gpt5' is no shape .*stories260k, .*config\.json"):
        shape_from("gpt5")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dim": 0}, "dim=0 is not an integer from 1 to 65536"),
        ({"dim": 65_537}, "dim=65537"),
        ({"layers": 257}, "layers=257 is not an integer from 1 to 256"),
        ({"vocab": 2_000_000}, "vocab=2000000"),
        ({"hidden": -1}, "hidden=-1"),
        ({"hidden": 1.5}, "hidden=1.5"),
        ({"context": True}, "context=True"),
        ({"context": 0}, "context=0"),
        ({"heads": 3}, "heads=3 is not a multiple of kv_heads=2"),
        ({"head_dim": 5}, "head_dim=5 is odd"),
        ({"norm_eps": 0.0}, "norm_eps=0.0"),
        ({"norm_eps": float("nan")}, "norm_eps=nan"),
        ({"rope_theta": float("inf")}, "rope_theta=inf"),
        ({"rope_theta": 10**400}, "rope_theta=1000"),
        ({"rope_theta": "1e4"}, "rope_theta='1e4'"),
        ({"tied": 1}, "tied=1"),
    ],
)
def test_impossible_shapes_are_refused_by_name(change, words):
    with pytest.raises(UserError, match=words) as caught:
        ModelShape(**(vars(TINY) | change))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize("scale", [[1.0, 0.5], (1.0,), (1.0, 0.0), (1.0, float("nan")), (1, 1), 3])
def test_rope_scale_is_one_number_per_pair(scale):
    assert replace(TINY, rope_scale=(1.0, 0.5)).head_dim == 4
    with pytest.raises(UserError, match=r"rope_scale=.* for each of the 2 pairs"):
        replace(TINY, rope_scale=scale)


def read(tmp_path, change, drop=()):
    config = {k: v for k, v in (hf_config(TINY) | change).items() if k not in drop}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return shape_from(tmp_path)


def test_absent_keys_take_the_llama_defaults(tmp_path):
    drop = ["head_dim", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps"]
    drop += ["rope_theta", "tie_word_embeddings", "hidden_act", "architectures"]
    shape = read(tmp_path, {}, drop)
    assert (shape.head_dim, shape.kv_heads, shape.context) == (4, 4, 2048)
    assert (shape.norm_eps, shape.rope_theta, shape.tied) == (1e-6, 10_000, False)
    assert read(tmp_path, {"head_dim": None, "num_key_value_heads": None}).kv_heads == 4


@pytest.mark.parametrize(
    "change",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_theta": 5e5, "rope_scaling": {"type": "default"}},
        {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_theta": None, "rope_parameters": {"rope_theta": 5e5}},
    ],
)
def test_rope_theta_in_every_generation_of_config(tmp_path, change):
    assert read(tmp_path, change).rope_theta == 5e5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, r"architectures=\['MixtralForCausalLM'\]"),
        (
            {"architectures": None, "model_type": "gpt2"},
            "model_type='gpt2'.*supported: llama, qwen2, mistral",
        ),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"mlp_bias": True}, "mlp_bias=True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config="),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_scaling: type 'longrope' is not supported"),
        ({"rope_scaling": {"type": ["linear"]}}, r"rope_scaling: type \['linear'\] is not"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor=None must be a"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor=None must be a number above"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor=0 must be a number above 0"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor='2' must be a number"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": True}}, "factor=True must be a num"),
        (
            {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}},
            "low_freq_factor=1 is not below high_freq_factor=1",
        ),
        (
            {"rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "linear", "factor": 2}},
            "rope_scaling and rope_parameters contradict each other; remove one",
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"rope_parameters": {"rope_theta": 7.0}}, "rope_theta has two values"),
        ({"rope_scaling": 3}, "rope_scaling=3 is not an object"),
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"hidden_size": "64"}, "dim='64'"),
        ({"hidden_size": 17, "head_dim": None}, "hidden_size=17 is not a multiple"),
        ({"hidden_size": [1], "head_dim": None}, "hidden_size="),
        ({"num_attention_heads": 0, "head_dim": None}, "num_attention_heads=0"),
        ({"vocab_size": 10**30}, "vocab="),
    ],
)
def test_configs_we_cannot_run_are_refused_by_name(tmp_path, change, words):
    with pytest.raises(UserError, match=words) as caught:
        read(tmp_path, change)
    message = str(caught.value)
    assert "config.json" in message and "\n" not in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "empty"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "the JSON holds a list"),
        (b'{"vocab_size": 1, "vocab_size": 2}', "'vocab_size' appears twice"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_config_that_is_no_json_object(tmp_path, text, words):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(UserError, match=words):
        shape_from(tmp_path / "config.json")


def test_folder_without_config(tmp_path):
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        shape_from(tmp_path)


def test_a_config_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(hf_config(TINY)).encode())
    assert shape_from(path) == TINY


MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}


@pytest.mark.parametrize(
    ("change", "context"),
    [
        ({"sliding_window": None}, 9000),
        ({"sliding_window": 9000}, 9000),
        ({"sliding_window": 100}, 100),  # up to there attention sees everything
        ({}, 4096),  # the default of the class
        ({"architectures": None, "sliding_window": None}, 9000),
    ],
)
def test_the_window_of_mistral_bounds_the_context(tmp_path, change, context):
    shape = read(tmp_path, {**MISTRAL, "max_position_embeddings": 9000, **change})
    assert shape == replace(TINY, arch="mistral", context=context)


def test_a_window_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config.json: sliding_window=\[4\] is no number of pos"):
        read(tmp_path, {**MISTRAL, "sliding_window": [4]})


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_dtype_of_a_config_changes_nothing(tmp_path, key):
    assert read(tmp_path, {key: "bfloat16"}) == TINY
