import numpy as np
import pytest
from checkpoints import TINY, hf_config, hf_tensors, random_checkpoint
from tokenfabric.core.errors import UserError
from tokenfabric.core.shape import ModelShape
from tokenfabric.quant.checkpoint import load_checkpoint
from tokenfabric.quant.float_model import FloatSession, forward, sample_texts

# Greedy text of stories260K after BOS; run.c prints the same.
LILY = [403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426, 338, 401, 396]
LILY += [267, 337, 410, 408, 419, 292, 411, 322, 265, 282, 295, 433, 426, 385, 328, 432, 358, 394]
LILY += [261, 370, 432, 352, 266, 268, 388, 426]

SHAPES = {
    "mha": ModelShape(32, 48, 2, 4, 4, 8, 60, 64),
    "gqa": ModelShape(64, 172, 3, 8, 4, 8, 100, 64, norm_eps=1e-6, rope_theta=5e5),
    "mqa odd sizes": ModelShape(96, 200, 2, 3, 1, 32, 777, 64),
    "untied": ModelShape(32, 50, 2, 2, 1, 16, 61, 64, tied=False),
    "wide heads": ModelShape(24, 40, 2, 4, 2, 10, 50, 64, tied=False),
    "biases": ModelShape(40, 52, 2, 4, 2, 10, 77, 64, norm_eps=1e-6, arch="qwen2"),
    "mistral": ModelShape(48, 52, 2, 4, 2, 16, 77, 64, norm_eps=1e-5, arch="mistral"),
    "biases, untied": ModelShape(36, 52, 3, 3, 1, 12, 61, 64, tied=False, arch="qwen2"),
}


def tokens_for(shape, count=40):
    return np.random.default_rng(3).integers(0, shape.vocab, count)


@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_transformers(name):
    torch = pytest.importorskip("torch", reason="the independent reference needs torch")
    transformers = pytest.importorskip("transformers", reason="the independent reference")
    shape = SHAPES[name]
    made = random_checkpoint(shape, seed=5, scale=1.5)
    config = hf_config(shape)
    theta = config.pop("rope_theta")
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    kind = {"llama": "Llama", "qwen2": "Qwen2", "mistral": "Mistral"}[shape.arch]
    configured = getattr(transformers, f"{kind}Config")(**config)
    model = getattr(transformers, f"{kind}ForCausalLM")(configured).eval()
    state = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in hf_tensors(made).items()}
    if shape.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    tokens = tokens_for(shape)
    with torch.no_grad():
        want = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    assert want.std() > 0.3
    got = forward(made, tokens)
    assert got.dtype == np.float64
    assert np.abs(got - want).max() < 1e-4


def test_greedy_text_of_the_real_model(shared):
    checkpoint = load_checkpoint(shared / "models" / "stories260K.bin")
    session, tokens = FloatSession(checkpoint), [1]
    for _ in LILY:
        tokens.append(int(session.step(tokens[-1]).argmax()))
    assert tokens[1:] == LILY


@pytest.mark.parametrize("name", SHAPES)
def test_session_equals_the_whole_sequence(name):
    checkpoint = random_checkpoint(SHAPES[name], seed=6)
    tokens = tokens_for(checkpoint.shape, 20)
    session = FloatSession(checkpoint)
    steps = [session.step(int(token)) for token in tokens]
    assert session.position == 20
    np.testing.assert_array_equal(steps, forward(checkpoint, tokens))  # every sum is exact


def test_causal():
    checkpoint = random_checkpoint()
    tokens = tokens_for(TINY, 12)
    changed = tokens.copy()
    changed[8] = (changed[8] + 1) % TINY.vocab
    a, b = forward(checkpoint, tokens), forward(checkpoint, changed)
    np.testing.assert_array_equal(a[:8], b[:8])
    assert (np.abs(a - b).max(axis=1)[8:] > 1e-4).all()


def test_trace_names_shapes_and_meaning():
    s = ModelShape(24, 40, 2, 4, 2, 10, 50, 64)
    checkpoint = random_checkpoint(s)
    seen: dict[str, np.ndarray] = {}
    tokens = tokens_for(s, 7)
    logits = forward(checkpoint, tokens, trace=lambda name, x: seen.update({name: x.copy()}))
    per_layer = {
        "attn_norm": (7, 24),
        "q": (7, 4, 10),
        "k": (7, 2, 10),
        "v": (7, 2, 10),
        "scores": (4, 7, 7),
        "att": (7, 40),
        "residual_attn": (7, 24),
        "ffn_norm": (7, 24),
        "gate": (7, 40),
        "up": (7, 40),
        "h": (7, 40),
        "residual": (7, 24),
    }
    want = {"embedding": (7, 24)}
    want |= {f"layer{i}.{name}": shape for i in range(2) for name, shape in per_layer.items()}
    want |= {"final_norm": (7, 24), "logits": (7, 50)}
    assert {name: x.shape for name, x in seen.items()} == want
    assert list(seen) == list(want)

    np.testing.assert_array_equal(seen["logits"], logits)
    np.testing.assert_array_equal(seen["embedding"], checkpoint.embedding[tokens])
    w = checkpoint.layers[1]
    close = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(seen["layer1.gate"], seen["layer1.ffn_norm"] @ w["w1"].T, **close)
    np.testing.assert_allclose(seen["layer1.up"], seen["layer1.ffn_norm"] @ w["w3"].T, **close)
    gate = seen["layer1.gate"]
    np.testing.assert_allclose(
        seen["layer1.h"], gate / (1 + np.exp(-gate)) * seen["layer1.up"], **close
    )
    np.testing.assert_allclose(
        seen["layer1.residual_attn"] - seen["layer0.residual"],
        seen["layer1.att"] @ w["wo"].T,
        **close,
    )
    q, k, v = (seen[f"layer1.{name}"] for name in "qkv")
    for head in range(4):
        scores = q[:, head] @ k[:, head // 2].T / np.sqrt(10)
        scores[np.triu_indices(7, 1)] = -np.inf
        np.testing.assert_allclose(seen["layer1.scores"][head], scores, **close)
        p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        att = seen["layer1.att"][:, head * 10 : head * 10 + 10]
        np.testing.assert_allclose(att, p @ v[:, head // 2], **close)
    # position 0 is not rotated; position 5 turns pair (2i, 2i+1) by 5 * theta^(-2i/head_dim)
    raw = (seen["layer1.attn_norm"] @ w["wq"].T).reshape(7, 4, 10)
    np.testing.assert_allclose(q[0], raw[0], **close)
    turned = (raw[5, :, 0::2] + 1j * raw[5, :, 1::2]) * np.exp(5j * 1e4 ** (-np.arange(5) / 5))
    np.testing.assert_allclose(q[5, :, 0::2] + 1j * q[5, :, 1::2], turned, **close)


def test_large_activations_do_not_overflow():
    assert np.isfinite(forward(random_checkpoint(scale=40.0), tokens_for(TINY, 8))).all()


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([], "0 tokens do not fit the model's context of 32"),
        ([1] * 33, "33 tokens do not fit the model's context of 32"),
        ([40], "from 0 to 39"),
        ([-1], "from 0 to 39"),
        ([0.5], "must be integers"),
    ],
)
def test_impossible_tokens_are_refused(tokens, words):
    with pytest.raises(UserError, match=words):
        forward(random_checkpoint(), tokens)


def test_session_that_is_full():
    session = FloatSession(random_checkpoint(), length=2)
    session.step(1)
    session.step(1)
    with pytest.raises(UserError, match="token 3 does not fit a session of 2"):
        session.step(1)
    with pytest.raises(UserError, match="33 tokens do not fit"):
        FloatSession(random_checkpoint(), length=33)


def test_greedy_samples_follow_the_session():
    checkpoint = random_checkpoint(seed=9)
    texts = sample_texts(checkpoint, 1, [], 3, 12, seed=0, temperature=0)
    session, tokens = FloatSession(checkpoint), [1]
    for _ in range(11):
        tokens.append(int(session.step(tokens[-1]).argmax()))
    assert texts.tolist() == [tokens] * 3


def test_samples_are_seeded_and_follow_the_model():
    checkpoint = random_checkpoint(seed=9, scale=1.5)
    texts = sample_texts(checkpoint, 1, [2], 4000, 2, seed=1)
    assert texts.shape == (4000, 2) and (texts[:, 0] == 1).all()
    logits = forward(checkpoint, [1])[0].astype(np.float64)
    for temperature in (1.0, 0.5):
        texts = sample_texts(checkpoint, 1, [2], 4000, 2, 1, temperature)
        p = np.exp(logits / temperature - logits.max() / temperature)
        share = np.bincount(texts[:, 1], minlength=TINY.vocab) / 4000
        assert np.abs(share - p / p.sum()).max() < 0.03
    again = sample_texts(checkpoint, 1, [2], 4000, 2, seed=1, temperature=0.5)
    np.testing.assert_array_equal(texts, again)
    assert (texts != sample_texts(checkpoint, 1, [2], 4000, 2, seed=2, temperature=0.5)).any()


def test_bos_follows_the_end_of_a_text():
    texts = sample_texts(random_checkpoint(), 1, [2, 3], 64, 32, seed=0)
    ends = np.isin(texts[:, :-1], [2, 3])
    assert ends.any() and (texts[:, 1:][ends] == 1).all()


def test_without_a_bos_texts_begin_as_they_do_after_an_end():
    checkpoint = random_checkpoint(seed=9, scale=1.5)
    texts = sample_texts(checkpoint, None, [2, 3], 4000, 1, seed=1)
    logits = forward(checkpoint, [2])[0].astype(np.float64)
    p = np.exp(logits - logits.max())
    share = np.bincount(texts[:, 0], minlength=TINY.vocab) / 4000
    assert np.abs(share - p / p.sum()).max() < 0.03
    texts = sample_texts(checkpoint, None, [2], 3, 12, seed=0, temperature=0)
    session, tokens = FloatSession(checkpoint), [2]
    for _ in range(12):
        tokens.append(int(session.step(tokens[-1]).argmax()))
    assert texts.tolist() == [tokens[1:]] * 3
    assert sample_texts(checkpoint, None, [], 2, 31, seed=0).shape == (2, 31)


def test_samples_longer_than_the_context():
    with pytest.raises(UserError, match="33 tokens do not fit"):
        sample_texts(random_checkpoint(), 1, [2], 1, 33, seed=0)
