"""The grammar of the stories, the model that ships here, and the script that trains it."""

import importlib.util
import json
import random
import re
import sys

import grammar
import plots
import pytest
import words
from conftest import ROOT
from grammar import PLOTS, stories, tell
from tokenfabric.core.errors import UserError

MODEL = ROOT / "models" / "stories"
SAMPLE = list(stories(7, 1000))


def test_a_seed_gives_the_same_stories_every_time():
    assert list(stories(7, 20)) == SAMPLE[:20]
    assert list(stories(8, 20)) != SAMPLE[:20]


def test_text_is_clean():
    for text in SAMPLE:
        assert text.isascii()
        assert not re.search(r"[\[\]{}|?][a-z]|[\[\]{}|]|  |\n| [.,!?]|\.\.", text), text
        assert text == text.strip() and text[0].isupper() and text[-1] in '.!?"', text
        assert text.count('"') % 2 == 0, text
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", text), text
        assert not re.search(r"[.!?] [a-z]", text), text


def test_length_and_openings():
    words = [len(text.split()) for text in SAMPLE]
    assert min(words) >= 60 and max(words) <= grammar.MAX_WORDS
    once = sum(text.startswith("Once upon a time") for text in SAMPLE)
    assert 300 < once < 700


def test_variety():
    assert len(set(SAMPLE)) > 950
    # Not only the names differ: neither do many stories share their first two sentences.
    assert len({text[-60:] for text in SAMPLE}) > 400


@pytest.mark.parametrize("plot", PLOTS)
def test_pronouns_agree(plot):
    """A story in which everybody is a girl, or everybody a boy, has no pronoun of the other."""
    rng = random.Random(3)
    wrong = {"she": re.compile(r"\b(he|him|his)\b", re.I), "he": re.compile(r"\b(she|her)\b", re.I)}
    checked = set()
    for _ in range(150):
        story = tell(rng, plot)
        pronouns = {story.hero.pronoun, story.friend.pronoun, *story.others}
        if len(pronouns) == 1:
            pronoun = pronouns.pop()
            checked.add(pronoun)
            assert not wrong[pronoun].search(story.text), story.text
    assert checked == {"she", "he"}


@pytest.mark.parametrize("plot", PLOTS)
def test_state_is_carried_through(plot):
    rng = random.Random(4)
    names = {*grammar.GIRLS, *grammar.BOYS, *grammar.SHE_ANIMALS, *grammar.HE_ANIMALS}
    for _ in range(50):
        story = tell(rng, plot)
        told = names & set(re.findall(r"[A-Z][a-z]+", story.text))
        assert story.hero.name in told <= {story.hero.name, story.friend.name}, story.text
        assert story.hero.name != story.friend.name


def test_plots_name_only_what_a_story_has():
    rng = random.Random(5)
    for hero in (grammar.Character("Tom", "boy", "he"), grammar.Character("Coco", "fox", "she")):
        slots = grammar._slots(rng, hero, grammar.Character("Mia", "girl", "she"))
        beats = [beat for plot in PLOTS.values() for beat in plot]
        for template in (*beats, *plots.OPENINGS, *plots.CLOSINGS, *plots.LIFE, *slots.values()):
            assert set(re.findall(r"{(\w+)}", template)) <= slots.keys(), template
            assert template.count("[") == template.count("]"), template
            assert template == template.strip() and "\n" not in template, template


def test_every_word_can_be_told():
    """No list of words is left over: each of its entries turns up in some story."""
    told = " ".join(stories(11, 4000))
    for name in ("COLORS", "WEATHER", "TRAITS", "PLANTS", "LURES", "GUIDES", "MAGIC", "RACES"):
        for entry in getattr(words, name):
            assert re.search(rf"\b{entry}\b", told), (name, entry)
    for name in ("TOYS", "PLACES", "ANIMALS", "PARENTS"):
        for entry in getattr(words, name):
            assert entry in told, (name, entry)
    for name in ("RESCUES", "FEARS", "BUILDS", "BREAKS", "BAKES", "PRESENTS"):
        for entry, *_ in getattr(words, name):
            assert entry in told, (name, entry)


def test_unknown_plot():
    with pytest.raises(UserError, match="no plot 'western'"):
        tell(random.Random(0), "western")


# --- the model that ships here -----------------------------------------------------------------


def test_model_has_the_declared_sizes():
    config = json.loads((MODEL / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    blob = (MODEL / "model.safetensors").read_bytes()
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 2 << 20
    start = 8 + int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8:start])
    header.pop("__metadata__")
    dim, hidden = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    expected = {
        "model.embed_tokens.weight": [config["vocab_size"], dim],
        "model.norm.weight": [dim],
    }
    for layer in range(config["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm": [dim],
            "self_attn.q_proj": [heads, dim],
            "self_attn.k_proj": [kv, dim],
            "self_attn.v_proj": [kv, dim],
            "self_attn.o_proj": [dim, heads],
            "post_attention_layernorm": [dim],
            "mlp.gate_proj": [hidden, dim],
            "mlp.up_proj": [hidden, dim],
            "mlp.down_proj": [dim, hidden],
        }.items():
            expected[f"model.layers.{layer}.{name}.weight"] = shape
    assert {name: entry["shape"] for name, entry in header.items()} == expected
    assert start + max(entry["data_offsets"][1] for entry in header.values()) == len(blob)
    for size in (dim, hidden, heads, kv, config["head_dim"], config["vocab_size"]):
        assert size % 8 == 0


def test_tokenizer_encodes_everything():
    tokenizers = pytest.importorskip("tokenizers")
    config = json.loads((MODEL / "config.json").read_text())
    tokenizer = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    assert tokenizer.token_to_id("<bos>") == config["bos_token_id"]
    assert tokenizer.token_to_id("<eos>") == config["eos_token_id"]
    for text in (*SAMPLE[:50], "Ünïcödé 漢字 🦊\n\t42 <x>"):
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids) == text
        assert config["bos_token_id"] not in ids
    longest = max(len(tokenizer.encode(text).ids) for text in SAMPLE)
    assert longest + 2 <= config["max_position_embeddings"]


def torch_missing():
    return any(importlib.util.find_spec(name) is None for name in ("torch", "tokenizers"))


needs_torch = pytest.mark.skipif(torch_missing(), reason="needs tokenfabric[train]")


@pytest.mark.slow
@needs_torch
def test_model_tells_a_whole_story():
    """In transformers, an implementation that is not ours, and with the logits of ours."""
    transformers = pytest.importorskip("transformers")
    import llama
    import tokenizers
    import torch

    tokenizer = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    model = transformers.LlamaForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    weights = {name: w for name, w in model.state_dict().items() if name != "lm_head.weight"}
    tokens = [llama.BOS, *tokenizer.encode("Once upon a time").ids]
    told = llama.greedy(weights, llama.Shape(), tokens)
    assert told[-1] == llama.EOS and len(told) > 80
    with torch.no_grad():
        theirs = model(torch.tensor([told])).logits
    ours = llama.forward(weights, llama.Shape(), torch.tensor([told]))
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-3)


# --- training ----------------------------------------------------------------------------------


@pytest.mark.slow
@needs_torch
def test_training_lowers_the_loss_and_writes_a_model(tmp_path):
    import llama
    import model_files
    import train

    shape = llama.Shape(
        vocab_size=512,
        hidden_size=32,
        num_hidden_layers=1,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=360,
    )
    lines = []
    out = tmp_path / "model"
    untrained = train.Recipe(stories=300, threads=1, batch=4, steps=1)
    first = train.train(out, untrained, shape, lines.append)
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    trained = train.Recipe(stories=300, threads=1, batch=4, steps=100, rate=1e-2)
    assert train.train(out, trained, shape, lines.append) < first - 1  # and replaces the first
    weights = (out / "model.safetensors").read_bytes()
    assert weights != files["model.safetensors"]
    train.train(out, untrained, shape, lines.append)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (out / name).read_bytes() == files[name]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert sorted(path.name for path in out.iterdir()) == sorted(model_files.FILES)

    safetensors = pytest.importorskip("safetensors.torch")
    weights = safetensors.load_file(out / "model.safetensors")
    assert weights.keys() == llama.init_weights(shape, 1).keys()


@needs_torch
def test_the_plateau_does_not_depend_on_the_number_of_steps():
    import train

    assert [train.schedule(s, None) for s in range(150)] == [
        train.schedule(s, 300) for s in range(150)
    ]
    assert train.schedule(299, 300) < 0.02


@needs_torch
def test_bad_options_are_one_line(tmp_path, capsys):
    import train

    (tmp_path / "letter.txt").write_text("do not replace me")
    assert train.main(["-o", str(tmp_path)]) == 2
    assert "letter.txt" in capsys.readouterr().err
    assert train.main(["-o", str(tmp_path / "new"), "--steps", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@needs_torch
def test_interrupted_training_leaves_everything_as_it_was(tmp_path, monkeypatch, capsys):
    import llama
    import model_files
    import train

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", interrupt)
    assert train.main(["-o", str(tmp_path / "model")]) == 130
    assert "as it was" in capsys.readouterr().err
    monkeypatch.setattr(model_files, "write_safetensors", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model_files.write_model(tmp_path / "model", {}, llama.Shape(), None, "")
    assert list(tmp_path.iterdir()) == []


def test_missing_torch_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "train", raising=False)
    with pytest.raises(UserError, match="tokenfabric\\[train\\]"):
        importlib.import_module("train")
