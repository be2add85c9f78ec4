from dataclasses import replace

import numpy as np
import pytest
from checkpoints import TINY, random_checkpoint
from test_evaluate import Spelling
from tokenfabric.core import ops
from tokenfabric.core.errors import UserError
from tokenfabric.core.shape import ModelShape
from tokenfabric.quant import calibrate as calibrate_module
from tokenfabric.quant import float_model
from tokenfabric.quant.calibrate import calibrate, pair_scales
from tokenfabric.quant.qmodel import QModel
from tokenfabric.quant.quantize import (
    FRAC_LIMIT,
    binary_point,
    quantize,
    quantize_checkpoint,
    quantize_linears,
    round_gptq,
)

SHAPES = {
    "gqa": TINY,
    "mha, untied": ModelShape(24, 40, 2, 3, 3, 8, 40, 32, tied=False),
    "mqa, wide heads": ModelShape(18, 29, 2, 3, 1, 10, 41, 32, norm_eps=1e-6, rope_theta=5e5),
}


def sequences(shape, count=6, length=24, seed=1):
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, shape.vocab, (count, min(length, shape.context))))


def quantized(checkpoint, recipe="w8"):
    return quantize(checkpoint, calibrate(checkpoint, sequences(checkpoint.shape)), recipe)


def errors(model, checkpoint, tokens):
    """Traced name -> rms of the dequantized error, relative to the rms of the float tensor."""
    found, result, scales = {}, {}, model.scales()
    model.forward(tokens, trace=found.__setitem__)

    def note(name, want):
        got = found[name] * scales[name]
        if name.endswith("scores"):  # equal but for a constant per row
            seen = np.isfinite(want)
            count = seen.sum(axis=-1, keepdims=True)
            got, want = (np.where(seen, x, 0) for x in (got, want))
            got, want = (
                np.where(seen, x - x.sum(axis=-1, keepdims=True) / count, 0) for x in (got, want)
            )
        result[name] = float(np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)))

    float_model.forward(checkpoint, tokens, trace=note)
    return result


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("recipe", ["w8", "w8-rtn"])
def test_every_tensor_is_near_its_float(name, recipe):
    checkpoint = random_checkpoint(SHAPES[name], seed=4)
    checkpoint.layers[1]["wk"][2:4] *= 4  # a pair of K that is larger than the others
    model = quantized(checkpoint, recipe)
    counts = {}
    tokens = sequences(SHAPES[name], seed=9)[0]
    model.forward(tokens, saturations=counts)
    assert sum(counts.values()) - counts["v"] == 0
    found = errors(model, checkpoint, tokens)
    assert max(found.values()) < 0.05, found
    assert found["embedding"] < 0.01 and found["layer0.attn_norm"] < 0.01
    assert model.recipe == recipe and (model.classifier.weight is model.embedding.weight) == (
        SHAPES[name].tied
    )


def test_16_bit_activations_are_not_what_limits():
    """With weights that int8 holds exactly, only K and V are coarse."""
    checkpoint = random_checkpoint(TINY, seed=5)
    rng = np.random.default_rng(0)
    for layer in checkpoint.layers:
        for name in ("w1", "w2", "w3"):
            weight = rng.integers(-127, 128, layer[name].shape)
            weight[:, 0] = 127
            layer[name] = (weight / 400).astype(np.float32)
    tokens = sequences(TINY)[0]
    model = quantized(checkpoint, "w8-rtn")
    found = {}
    model.forward(tokens, trace=found.__setitem__)
    scales = model.scales()
    for i, layer in enumerate(checkpoint.layers):
        x = found[f"layer{i}.ffn_norm"] * scales[f"layer{i}.ffn_norm"]
        gate, up = (
            x @ layer["w1"].T.astype(np.float64),
            x @ layer["w3"].T.astype(np.float64),
        )
        h = gate / (1 + np.exp(-gate)) * up
        got = found[f"layer{i}.h"] * scales[f"layer{i}.h"]
        assert np.abs(got - h).max() < 2e-3 * np.abs(h).max()
        before, after = found[f"layer{i}.residual_attn"], found[f"layer{i}.residual"]
        got = (after - before) * 2.0**-model.res_frac
        assert np.abs(got - h @ layer["w2"].T).max() < 2e-3 * np.abs(h @ layer["w2"].T).max()


# --- ranges --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [16, 18, 31])
@pytest.mark.parametrize("largest", [1e-3, 0.49999, 0.5, 1.0, 3.7, 1e5])
def test_binary_point_leaves_one_bit(largest, bits):
    frac = binary_point(largest, bits)
    if frac < FRAC_LIMIT:
        assert 2 ** (bits - 3) < largest * 2.0**frac <= 2 ** (bits - 2)
    assert binary_point(0.0, bits) == FRAC_LIMIT


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_scalars_are_those_a_model_file_may_hold(tmp_path, scale):
    checkpoint = random_checkpoint(TINY, seed=6, scale=scale)
    model = quantized(checkpoint)
    model.write(tmp_path / "m.tfm")
    again = QModel.read(tmp_path / "m.tfm")
    tokens = sequences(TINY)[1]
    np.testing.assert_array_equal(again.forward(tokens), model.forward(tokens))
    for layer in model.layers:
        for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3"):
            linear = layer.linears[name]
            assert linear.mult.dtype == np.uint16 and linear.weight.dtype == np.int8
            assert linear.mult.max() >= (1 << 15) - 1
            assert np.abs(linear.weight.astype(int)).max() == 127


def test_a_model_of_zeros(tmp_path):
    checkpoint = random_checkpoint(TINY, seed=7)
    for layer in checkpoint.layers:
        for name, value in layer.items():
            layer[name] = np.zeros_like(value)
    checkpoint.embedding[:] = 0
    model = quantized(checkpoint)
    assert not model.forward([1, 2, 3]).any()
    model.write(tmp_path / "m.tfm")
    assert not QModel.read(tmp_path / "m.tfm").forward([1, 2, 3]).any()


@pytest.mark.parametrize("name", ["wq", "wk", "wv", "wo", "w1", "w2", "w3", "attn_norm"])
def test_one_tensor_of_zeros(name):
    checkpoint = random_checkpoint(TINY, seed=8)
    checkpoint.layers[1][name][:] = 0
    model = quantized(checkpoint)
    tokens = sequences(TINY)[2]
    got = model.forward(tokens) * 2.0**-model.logits_frac
    want = float_model.forward(checkpoint, tokens)
    assert np.abs(got - want).max() < 0.05 * np.abs(want).max()


def test_exploding_checkpoints_are_refused():
    for factor, value in ((1e20, r"\d\.\d+e\+\d\d"), (3e38, r"\d\.\d+e\+39"), (np.nan, "nan")):
        checkpoint = random_checkpoint(TINY, seed=9, scale=2)
        w2 = checkpoint.layers[1]["w2"]
        with np.errstate(over="ignore"):
            w2 *= np.float32(factor)
        with pytest.raises(UserError, match=rf"layer1\.residual reaches {value} on .*; the check"):
            quantized(checkpoint)


# --- weights -------------------------------------------------------------------------------------


def correlated(size, rng, rank=6):
    x = rng.standard_normal((400, rank)) @ rng.standard_normal((rank, size))
    x += 0.1 * rng.standard_normal((400, size))
    return x, x.T @ x / len(x)


@pytest.mark.parametrize("size", [5, 64, 65, 150])
def test_gptq_computes_more_exactly_than_rounding(size):
    rng = np.random.default_rng(size)
    x, moment = correlated(size, rng)
    weight = rng.uniform(-90, 90, (30, size))
    codes = round_gptq(weight, moment)
    nearest = np.round(weight)
    assert (codes == np.round(codes)).all() and np.abs(codes).max() <= 127
    error, naive = ((np.mean((x @ (c - weight).T) ** 2)) for c in (codes, nearest))
    assert error < 0.6 * naive
    # inputs that have nothing in common leave nothing to pass on
    np.testing.assert_array_equal(round_gptq(weight, np.diag(np.arange(1.0, size + 1))), nearest)


def test_gptq_equals_the_plain_algorithm():
    """Optimal brain surgeon, column by column, with the inverse recomputed every time."""
    rng = np.random.default_rng(1)
    _, moment = correlated(70, rng)
    weight = rng.standard_normal((4, 70)) * 30
    h = moment + 0.01 * np.trace(moment) / 70 * np.eye(70)
    left, want = weight.copy(), np.empty_like(weight)
    open_ = list(np.argsort(-np.diag(h), kind="stable"))
    while open_:
        inverse = np.linalg.inv(h[np.ix_(open_, open_)])
        j = open_[0]
        want[:, j] = np.round(left[:, j])
        left[:, open_] -= np.outer(left[:, j] - want[:, j], inverse[0] / inverse[0, 0])
        open_.pop(0)
    np.testing.assert_array_equal(round_gptq(weight, moment), want)


def test_linears_compute_what_the_floats_do():
    rng = np.random.default_rng(2)
    x, moment = correlated(40, rng)
    points = np.round(x * 256)  # int16 with 8 fraction bits
    weights = [rng.standard_normal((n, 40)) for n in (7, 3)]
    weights[0][2] = 0
    weights[0][3] *= 1e-4  # multipliers down to a few units
    weights[0][4] *= 1e-6
    for how in (None, moment, np.zeros_like(moment)):
        a, b = quantize_linears(weights, how, [2, 5])
        for linear, weight, frac in ((a, weights[0], 10), (b, weights[1], 13)):
            assert 1 << 15 <= linear.mult.max()
            want = points / 256 @ weight.T
            exact = ops.matmul(points, linear.weight) * (
                linear.mult * 2.0 ** -(linear.shift + frac)
            )
            rms = np.sqrt((want**2).mean(axis=0))
            error = np.sqrt(((exact - want) ** 2).mean(axis=0))
            near = rms > 1e-3 if weight is weights[0] else rms > 0
            assert (error[near] < 0.02 * rms[near]).all()
            assert (error <= 0.7 * rms + 1e-12).all()
            assert np.abs(linear(points) - exact * 2.0**frac).max() <= 0.5
        assert a.mult[2] == 0 and a.mult[4] >= 1


def test_wo_reads_v8_and_so_does_its_moment():
    checkpoint = random_checkpoint(TINY, seed=14)
    checkpoint.layers[0]["wv"][4:] *= 20  # the second KV head
    stats = calibrate(checkpoint, sequences(TINY))
    model = quantize(checkpoint, stats)
    layer = model.layers[0]
    per_input = np.repeat(layer.v_scale.astype(np.float64), 2 * TINY.head_dim)
    assert per_input.max() > 5 * per_input.min()
    moment = stats.layers[0].moments["att"] / per_input / per_input[:, None]
    weight = checkpoint.layers[0]["wo"] * per_input
    unit = layer.linears["wo"].mult * 2.0 ** -(
        layer.linears["wo"].shift + model.res_frac - ops.ATT_FRAC
    )
    want = round_gptq(weight / unit[:, None], moment)
    np.testing.assert_array_equal(layer.linears["wo"].weight, want)
    assert (want != np.round(weight / unit[:, None])).any()


def test_h_has_no_more_fraction_bits_than_swiglu_makes():
    checkpoint = random_checkpoint(TINY, seed=15)
    stats = calibrate(checkpoint, sequences(TINY))
    stats.largest["layer0.h"] = 1e-7  # as if every gate were closed
    layer = quantize(checkpoint, stats).layers[0]
    assert layer.glu_shift == 0 and layer.h_frac == layer.gate_frac + layer.up_frac + 4


def test_weights_too_large_for_a_multiplier():
    with pytest.raises(UserError, match=r"weights of 1e\+08 are too large .* corrupt"):
        quantize_linears([np.full((2, 3), 1e8)], None, [0])


# --- K -------------------------------------------------------------------------------------------


def k_error(q, k, scale):
    """Error variance of scores whose K is quantized as the cache does, from the definition."""
    factors = np.repeat(scale, 2, axis=1)
    group = q.shape[1] // k.shape[1]
    k16 = np.round(k * factors * 2000).astype(np.int64)
    k8, amax = ops.quantize_k(k16, np.zeros(k.shape[-1], np.int64))
    back = k8 * amax[..., None] / 127 / 2000 / factors
    return sum(np.mean((q[:, h] @ (back - k)[:, h // group].T) ** 2) for h in range(q.shape[1]))


def test_pair_scales_reduce_the_error_of_scores():
    rng = np.random.default_rng(3)
    q, k = rng.standard_normal((300, 4, 8)), rng.standard_normal((300, 2, 8))
    k[:, 0, 2:4] *= 4  # one pair rules amax
    q[:, 2:, 6] *= 5  # one pair of the other head matters most
    scale = pair_scales(q, k)
    assert scale.shape == (2, 4)
    np.testing.assert_allclose(np.log(scale).sum(axis=1), 0, atol=1e-9)
    assert scale[0].argmin() == 1 and scale[1].argmax() == 3
    assert k_error(q, k, scale) < 0.75 * k_error(q, k, np.ones((2, 4)))
    # a model whose pairs are alike is left alone, and zeros do no harm
    alike = pair_scales(rng.standard_normal((3000, 4, 8)), rng.standard_normal((3000, 2, 8)))
    np.testing.assert_allclose(alike, 1, atol=0.03)
    for zero in (pair_scales(q * 0, k), pair_scales(q, k * 0)):
        assert np.isfinite(zero).all() and (zero > 0).all()


def test_k_mean_is_that_of_k_after_rope():
    checkpoint = random_checkpoint(TINY, seed=10)
    texts = sequences(TINY)
    stats = calibrate(checkpoint, texts)
    found = []
    for text in texts:
        float_model.forward(
            checkpoint, text, trace=lambda n, x: found.append(x) if n == "layer1.k" else None
        )
    mean = np.concatenate(found).mean(axis=0)
    np.testing.assert_allclose(stats.layers[1].k_mean, mean, atol=1e-6)
    layer = quantize(checkpoint, stats).layers[1]
    got = layer.k_mean * 2.0**-layer.k_frac * np.repeat(layer.k_scale, 2, axis=1)
    np.testing.assert_allclose(got, mean, atol=2.0**-layer.k_frac * layer.k_scale.max())


def test_moments_and_ranges_are_those_of_the_traced_tensors():
    checkpoint = random_checkpoint(TINY, seed=11)
    texts = sequences(TINY)
    stats = calibrate(checkpoint, texts)
    found = {}

    def note(name, x):
        found.setdefault(name, []).append(x)

    for text in texts:
        float_model.forward(checkpoint, text, trace=note)
    whole = {n: np.concatenate(x) for n, x in found.items() if not n.endswith("scores")}
    assert stats.tokens == sum(map(len, texts))
    for name, largest in stats.largest.items():
        assert largest == pytest.approx(np.abs(whole[name]).max())
    for i, layer in enumerate(stats.layers):
        for name, moment in layer.moments.items():
            x = whole[f"layer{i}.{name}"]
            np.testing.assert_allclose(moment, x.T @ x / len(x), rtol=1e-3, atol=1e-4)
        for name, heads in (("q", [0, 0, 1, 1]), ("k", [0, 1])):
            pairs = whole[f"layer{i}.{name}"].reshape(-1, len(heads), 2, 2)
            length = np.sqrt((pairs**2).sum(axis=-1)).max(axis=0)
            want = [length[np.array(heads) == kv].max(axis=0) for kv in (0, 1)]
            np.testing.assert_allclose(getattr(layer, name + "_max"), want, rtol=1e-5)
        np.testing.assert_array_equal(layer.v_max, np.abs(whole[f"layer{i}.v"]).max(axis=(0, 2)))
        centred = []
        for q, k in zip(found[f"layer{i}.q"], found[f"layer{i}.k"], strict=True):
            k = np.repeat(k - layer.k_mean, 2, axis=1)
            scores = np.einsum("qhd,thd->hqt", q, k) / 2
            centred.append(np.abs(np.tril(scores)).max())
        assert layer.score_max == pytest.approx(max(centred), rel=1e-5)
    x = whole["final_norm"]
    np.testing.assert_allclose(stats.moments["final_norm"], x.T @ x / len(x), rtol=1e-3, atol=1e-4)


# --- the whole -----------------------------------------------------------------------------------


def test_quantize_checkpoint_is_reproducible_and_embeds_the_tokenizer(tmp_path):
    checkpoint = random_checkpoint(TINY, seed=12)
    calls = []
    a = quantize_checkpoint(checkpoint, Spelling(), progress=lambda *call: calls.append(call))
    b = quantize_checkpoint(checkpoint, Spelling())
    c = quantize_checkpoint(checkpoint, Spelling(), seed=1)
    for model, name in ((a, "a"), (b, "b"), (c, "c")):
        model.write(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()
    assert QModel.read(tmp_path / "a").tokenizer == b"spelling"
    assert [call[0] for call in calls[:1]] == ["sampling texts"]
    for what in ("calibrating", "quantizing"):
        done = [(done, total) for name, done, total in calls if name == what]
        assert done == sorted(done) and done[-1][0] == done[-1][1] > 0


def test_sampling_is_bounded_and_says_how_far_it_is(monkeypatch):
    """A large model gets fewer texts, of the same length; a small one all of them."""
    checkpoint = random_checkpoint()
    told = []

    def sample() -> tuple[int, int]:
        texts = calibrate_module.calibration_tokens(
            checkpoint, 1, [2], 0, lambda *told_now: told.append(told_now)
        )
        return len(texts), len(texts[0])

    length = min(calibrate_module.TEXT_TOKENS, checkpoint.shape.context)
    assert sample() == (calibrate_module.TEXTS, length)
    whole = calibrate_module.TEXTS * (length - 1)
    assert [of for _, _, of in told] == [whole] * len(told) and told[-1][1] == whole
    assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})
    one = length * checkpoint.shape.parameters
    for affordable, count in ((20, 20), (1, calibrate_module.FEWEST_TEXTS)):
        monkeypatch.setattr(calibrate_module, "SAMPLING_WORK", affordable * one)
        assert sample() == (count, length)


def test_calibration_text(tmp_path):
    checkpoint = random_checkpoint(TINY, seed=13)
    text = tmp_path / "text"
    text.write_text("once upon a time.\na cat, a dog.\n")
    model = quantize_checkpoint(checkpoint, Spelling(), "w8-rtn", calibration=text)
    texts = [np.array(Spelling().encode(line)) for line in text.read_text().split("\n")[:2]]
    want = quantize(checkpoint, calibrate(checkpoint, texts), "w8-rtn")
    np.testing.assert_array_equal(model.forward(texts[0]), want.forward(texts[0]))
    assert model.recipe == "w8-rtn"


def test_bad_requests(tmp_path):
    checkpoint = random_checkpoint(TINY)
    with pytest.raises(UserError, match="no recipe is called 'w3'; use one of w8, w8-rtn"):
        quantize_checkpoint(checkpoint, Spelling(), "w3")
    with pytest.raises(UserError, match="no such file"):
        quantize_checkpoint(checkpoint, Spelling(), calibration=tmp_path / "none")
    small = random_checkpoint(replace(TINY, vocab=20))
    with pytest.raises(UserError, match="the tokenizer has 32 tokens, the checkpoint 20; give"):
        quantize_checkpoint(small, Spelling())


def test_an_architecture_beyond_the_hardware_is_refused_before_any_work():
    def no_work(what, done, total):
        raise AssertionError(f"{what} began")

    checkpoint = random_checkpoint(replace(TINY, arch="qwen2"), seed=3)
    with pytest.raises(UserError, match=r"^Qwen2ForCausalLM has biases on .*: llama, mistral$"):
        quantize_checkpoint(checkpoint, None, progress=no_work)
    with pytest.raises(UserError, match="biases on wq, wk, wv"):
        QModel.random(checkpoint.shape)
