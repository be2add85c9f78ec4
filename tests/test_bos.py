"""What begins and ends a text: from which file, in which order, and that it is there once."""

import json

import pytest
from byte_tokenizers import put, save_bytes_tokenizer, template
from tokenfabric.host.tokenizer import Tokenizer, load_tokenizer


@pytest.mark.parametrize(
    ("files", "bos", "eos"),
    [
        ({}, 200, [201]),
        ({"config.json": {"bos_token_id": 202, "eos_token_id": [201, 202]}}, 202, [201, 202]),
        ({"tokenizer_config.json": {"bos_token": "</s>", "eos_token": "<s>"}}, 201, [200]),
        ({"tokenizer_config.json": {"bos_token": {"content": "</s>"}}}, 201, [201]),
        (
            {
                "generation_config.json": {"eos_token_id": [202, 201]},
                "config.json": {"bos_token_id": None, "eos_token_id": 201},
            },
            200,
            [202, 201],
        ),
    ],
)
def test_bos_and_eos(tmp_path, files, bos, eos):
    save_bytes_tokenizer(tmp_path)
    for name, data in files.items():
        (tmp_path / name).write_text(json.dumps(data))
    ours = load_tokenizer(tmp_path)
    assert (ours.bos, ours.eos, ours.vocab) == (bos, eos, 203)


def test_an_end_marker_shows_nothing_even_if_it_is_no_special_token(tmp_path):
    save_bytes_tokenizer(tmp_path, lambda data: data["added_tokens"].pop(1))
    assert load_tokenizer(tmp_path).decode([64, 150]) == "aab"
    (tmp_path / "config.json").write_text('{"eos_token_id": 150}')
    assert load_tokenizer(tmp_path).decode([64, 150]) == "a"


OURS = {"bos_token": "<s>"}  # of tokenizer_config.json
GPT2 = {"tokenizer_class": "GPT2Tokenizer"}


@pytest.mark.parametrize(
    ("post", "own", "config", "bos"),
    [
        # the tokenizer's own template goes before everything else
        (template("<|im_end|>"), OURS, {"bos_token_id": 5}, 202),
        (template("<|im_end|>"), OURS | {"add_bos_token": True}, {}, 202),
        (
            {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template("</s>")]},
            {},
            {},
            201,
        ),
        ({"type": "RobertaProcessing", "cls": ["</s>", 201], "sep": ["<s>", 200]}, OURS, {}, 201),
        (template(after=["</s>"]), OURS, {"bos_token_id": 200}, None),
        (template(), OURS | {"add_bos_token": True}, {"bos_token_id": 200}, None),
        (template("<s>"), OURS | {"add_bos_token": False}, {}, 200),
        # then tokenizer_config.json
        ({"type": "ByteLevel"}, {"bos_token": "</s>"}, {"bos_token_id": 202}, 201),
        (None, {"bos_token": {"content": "</s>"}}, {"bos_token_id": 202}, 201),
        (None, OURS | {"add_bos_token": False}, {"bos_token_id": 200}, None),
        (None, {"add_bos_token": False}, {"bos_token_id": 200}, None),
        (None, {"bos_token": None}, {"bos_token_id": 200}, None),
        (None, {"bos_token": None, "add_bos_token": None}, {"bos_token_id": 200}, None),
        (None, OURS | GPT2, {"bos_token_id": 200}, None),
        (None, OURS | GPT2 | {"add_bos_token": True}, {}, 200),
        (None, OURS | {"tokenizer_class": "PreTrainedTokenizerFast"}, {}, 200),
        # then config.json; a name or an id that is no added token's is not one
        (None, {"bos_token": "a"}, {"bos_token_id": 202}, 202),
        (None, {"add_bos_token": True}, {"bos_token_id": [202]}, 202),
        (None, {}, {"bos_token_id": 64}, 200),
        (None, {}, {}, 200),
    ],
)
def test_where_bos_comes_from(tmp_path, post, own, config, bos):
    save_bytes_tokenizer(tmp_path, put("post_processor", value=post))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(own))
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = load_tokenizer(tmp_path)
    assert ours.bos == bos
    assert ours.encode("a") == ([64] if bos is None else [bos, 64])
    again = Tokenizer.from_bytes(ours.to_bytes())
    assert again == ours and again.encode("a") == ours.encode("a")


def test_bos_agrees_with_transformers_where_it_knows(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the independent reference")
    asked = [{}, {"add_bos_token": True}, {"add_bos_token": False}]
    cases = [(post, OURS | more) for post in (template("<s>"), template()) for more in asked]
    cases += [(None, OURS | {"add_bos_token": False}), (None, OURS | GPT2)]
    for post, own in cases:
        save_bytes_tokenizer(tmp_path, put("post_processor", value=post))
        path = tmp_path / "tokenizer_config.json"
        path.write_text(json.dumps({"tokenizer_class": "LlamaTokenizerFast", **own}))
        theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
        assert load_tokenizer(tmp_path).encode("a") == theirs("a").input_ids, (post, own)


def test_special_tokens_map_names_what_tokenizer_config_does_not(tmp_path):
    save_bytes_tokenizer(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "</s>", "eos_token": "<s>"}')
    ours = load_tokenizer(tmp_path)
    assert (ours.bos, ours.eos) == (201, [200])
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    assert load_tokenizer(tmp_path).bos == 200


def test_the_defaults_of_a_class_end_nothing(tmp_path):
    """LlamaConfig writes 1 and 2 where nobody set them: here ordinary characters."""
    save_bytes_tokenizer(tmp_path)
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_text('{"bos_token_id": 1, "eos_token_id": 2}')
    for own in ({}, {"bos_token": "<s>", "eos_token": "</s>"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(own))
        ours = load_tokenizer(tmp_path)
        assert (ours.bos, ours.eos) == (200, [201])
        assert ours.decode([2]) == "#"


@pytest.mark.parametrize("bos", [True, False])
def test_bos_is_never_there_twice(tmp_path, bos):
    ours = load_tokenizer(save_bytes_tokenizer(tmp_path))
    assert ours.encode("<s>a", bos) == [200, 64]
    assert ours.encode("<s>", bos) == [200]
    assert ours.encode("<s><s>a", bos) == [200, 200, 64]  # the text says so
    assert ours.encode("a<s>", bos) == [*[200][: int(bos)], 64, 200]


def test_no_bos(tmp_path):
    path = save_bytes_tokenizer(tmp_path, lambda data: data.update(added_tokens=[]))
    for config in ({}, {"bos_token_id": 64, "eos_token_id": 300}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        ours = load_tokenizer(path)
        assert (ours.bos, ours.eos) == (None, [])
        assert ours.encode("a") == [64] and ours.encode("") == [] and ours.decode([64]) == "a"
        assert Tokenizer.from_bytes(ours.to_bytes()) == ours
