from dataclasses import asdict, fields, replace

import numpy as np
import pytest
from checkpoints import random_checkpoint
from tokenfabric.core import ops
from tokenfabric.core.container import read_container, write_container
from tokenfabric.core.errors import UserError
from tokenfabric.core.files import write_file
from tokenfabric.core.shape import NAMED_SHAPES, ModelShape
from tokenfabric.core.tensors import TensorClass
from tokenfabric.quant import float_model
from tokenfabric.quant.model_file import MAGIC
from tokenfabric.quant.qmodel import Linear, Norm, QModel, scaled_multipliers

SHAPES = {
    "gqa": ModelShape(16, 24, 2, 4, 2, 4, 40, 32),
    "mha, untied": ModelShape(24, 40, 2, 3, 3, 8, 33, 24, tied=False),
    "mqa, odd sizes": ModelShape(18, 29, 1, 3, 1, 10, 41, 24, norm_eps=1e-6, rope_theta=5e5),
}


def tokens_for(model, count=10, seed=3):
    return np.random.default_rng(seed).integers(0, model.shape.vocab, count)


# --- an independent forward pass: one token after the other, a K and V cache, int64 sums ---------


def int64(linear: Linear, x):
    acc = np.einsum("i,oi->o", x.astype(np.int64), linear.weight.astype(np.int64))
    return ops.requantize(acc, linear.mult, linear.shift)


def step_by_step(model: QModel, tokens):
    """(logits, counts): as the definition has it, without any of forward's vectorisation."""
    s, counts = model.shape, dict.fromkeys((kind.name.lower() for kind in TensorClass), 0)

    def narrow(wide, bits, name):
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        counts[name] += int(((wide < low) | (wide > high)).sum())
        return np.clip(wide, low, high)

    def norm(x, n: Norm):
        narrow(ops.rmsnorm_wide(x, n.in_shift, n.eps, n.gain, n.out_shift), 16, "norm")
        return ops.rmsnorm(x, n.in_shift, n.eps, n.gain, n.out_shift)

    def add(x, delta, name):
        narrow(x + narrow(delta, 32, name), 32, "res")
        return ops.residual_add(x, delta)

    cache = [([], [], []) for _ in model.layers]
    logits = []
    for position, token in enumerate(tokens):
        table = ops.rope_table([position], s.head_dim, s.rope_theta)[0]
        e = model.embedding
        x = ops.embed(e.weight[token], int(e.mult[token]), e.shift)
        for layer, (keys, scales, values) in zip(model.layers, cache, strict=True):
            xb = norm(x, layer.norms["attn_norm"])
            q = narrow(int64(layer.linears["wq"], xb), 16, "q").reshape(s.heads, s.head_dim)
            k = narrow(int64(layer.linears["wk"], xb), 16, "k").reshape(s.kv_heads, s.head_dim)
            v = narrow(int64(layer.linears["wv"], xb), 8, "v").reshape(s.kv_heads, s.head_dim)
            narrow(ops.rope_wide(q, table), 16, "rope_q")
            narrow(ops.rope_wide(k, table), 16, "rope_k")
            q = ops.rope(q, table)
            quantized = [
                ops.quantize_k(ops.rope(k[h], table), m) for h, m in enumerate(layer.k_mean)
            ]
            keys.append([k8 for k8, _ in quantized])
            scales.append([amax for _, amax in quantized])
            values.append(v)
            att = []
            for h in range(s.heads):
                kv = h * s.kv_heads // s.heads
                acc = np.array([(q[h] * k8[kv]).sum() for k8 in keys])
                scale = np.array([amax[kv] for amax in scales])
                scores = narrow(ops.requantize(acc, scale, layer.score_shift), 16, "scores")
                p, total = ops.softmax(scores, np.ones(len(scores), bool), layer.score_align)
                acc = sum(int(weight) * v8[kv] for weight, v8 in zip(p, values, strict=True))
                att.append(narrow(ops.requantize(acc, *ops.attention_scale(total)), 16, "att"))
            x = add(x, int64(layer.linears["wo"], np.concatenate(att)), "wo")
            xb = norm(x, layer.norms["ffn_norm"])
            gate = narrow(int64(layer.linears["w1"], xb), 16, "gate_up")
            up = narrow(int64(layer.linears["w3"], xb), 16, "gate_up")
            narrow(ops.swiglu_wide(gate, up, layer.glu_align, layer.glu_shift), 16, "swiglu")
            h = ops.swiglu(gate, up, layer.glu_align, layer.glu_shift)
            x = add(x, int64(layer.linears["w2"], h), "w2")
        logits.append(narrow(int64(model.classifier, norm(x, model.final_norm)), 32, "logits"))
    return np.array(logits), counts


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_forward_equals_one_token_after_the_other_in_int64(name, seed):
    model = QModel.random(SHAPES[name], seed)
    tokens = tokens_for(model)
    counts = {}
    logits = model.forward(tokens, saturations=counts)
    want, want_counts = step_by_step(model, tokens)
    assert logits.dtype == np.int64 and np.ptp(want) > 1 << 15
    np.testing.assert_array_equal(logits, want)
    assert counts == want_counts
    # and so every prefix, which is causality
    np.testing.assert_array_equal(model.forward(tokens[:7]), logits[:7])


def louder(linear: Linear, bits: int) -> Linear:
    assert linear.shift >= bits
    return replace(linear, shift=linear.shift - bits)


def loud_model(kind: str) -> QModel:
    """A random model in which (at least) one class of tensors saturates."""
    model = QModel.random(SHAPES["gqa"], 4)
    layer = model.layers[1]
    more = {"q": 5, "k": 5, "v": 3, "gate_up": 4, "wo": 15, "w2": 15}
    more |= {"rope_q": more["q"], "rope_k": more["k"]}  # two full lanes of a pair, rotated
    of = {"gate_up": "w3", "wo": "wo", "w2": "w2"}
    if kind in more:
        name = of.get(kind, "w" + kind[-1])
        layer.linears[name] = louder(layer.linears[name], more[kind])
    elif kind == "norm":
        layer.norms["attn_norm"].out_shift -= 5
    elif kind == "scores":
        layer.score_shift -= 6
    elif kind == "swiglu":
        layer.glu_shift -= 5
    elif kind == "res":
        model.layers[0].linears["wo"] = louder(model.layers[0].linears["wo"], 14)
        model.layers[0].linears["w2"] = louder(model.layers[0].linears["w2"], 14)
    elif kind == "logits":
        model.classifier = louder(model.classifier, 14)
    return model


@pytest.mark.parametrize("kind", [k.name.lower() for k in TensorClass if k is not TensorClass.ATT])
def test_saturations_are_counted_by_class(kind):
    model = loud_model(kind)
    tokens = tokens_for(model)
    counts = {}
    logits = model.forward(tokens, saturations=counts)
    want, want_counts = step_by_step(model, tokens)
    np.testing.assert_array_equal(logits, want)
    assert counts == want_counts
    assert counts[kind] > 0
    before = dict(counts)
    model.forward(tokens, saturations=counts)
    assert counts == {name: 2 * count for name, count in before.items()}


def test_trace_has_the_float_models_names_and_shapes():
    shape = SHAPES["gqa"]
    names, quantized = {}, {}
    tokens = np.arange(9)
    float_model.forward(random_checkpoint(shape), tokens, trace=lambda n, x: names.update({n: x}))
    model = QModel.random(shape)
    logits = model.forward(tokens, trace=quantized.__setitem__)
    cache = {f"layer{i}.{name}" for i in range(shape.layers) for name in ("k8", "k_amax")}
    assert [name for name in quantized if name not in cache] == list(names)
    assert cache <= set(quantized)
    scales = model.scales()
    assert set(scales) == set(names)
    for name, x in names.items():
        assert quantized[name].dtype == np.int64 and quantized[name].shape == x.shape
        assert (quantized[name] * scales[name]).shape == x.shape
    np.testing.assert_array_equal(quantized["logits"], logits)
    assert (quantized["layer0.scores"][:, 2, 3:] == -32768).all()
    k8, amax = ops.quantize_k(quantized["layer1.k"], model.layers[1].k_mean)
    np.testing.assert_array_equal(quantized["layer1.k8"], k8)
    np.testing.assert_array_equal(quantized["layer1.k_amax"], amax)


@pytest.mark.parametrize("tokens", [[], [0] * 33, [40], [-1], [0.5]])
def test_impossible_tokens(tokens):
    model = QModel.random(SHAPES["gqa"])
    with pytest.raises(UserError, match=r"^(\d+ tokens do not fit|token ids must be).*; use "):
        model.forward(tokens)


# --- random models -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stories260k", "stories15m"])
def test_random_models_stay_in_range(name):
    shape = replace(NAMED_SHAPES[name], layers=2)
    model = QModel.random(shape, 5)
    counts, traced = {}, {}
    logits = model.forward(tokens_for(model, 48), trace=traced.__setitem__, saturations=counts)
    assert sum(counts.values()) == 0
    for tensor in ("attn_norm", "q", "k", "scores", "gate", "up", "h"):
        x = traced["layer1." + tensor]
        assert 1 << 10 < np.abs(np.where(x == -32768, 0, x)).max() < 1 << 15
    assert 30 < np.abs(traced["layer1.v"]).max() <= 127
    assert 0.3 < (logits * 2.0**-model.logits_frac).std() < 2
    assert (QModel.random(shape, 5).forward([1, 2]) == model.forward([1, 2])).all()
    assert (QModel.random(shape, 6).forward([1, 2]) != model.forward([1, 2])).any()


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 0.99999, 1, 1.00001, 300, 65535])
def test_scaled_multipliers(scale):
    real = np.array([1, 0.5, 1e-3, 0]) * scale
    mult, shift = scaled_multipliers(real)
    assert mult.dtype == np.uint16 and 0 <= shift <= 63
    assert mult.max() >= (1 << 15) - 1
    np.testing.assert_allclose(mult * 2.0**-shift, real, rtol=0, atol=2.0 ** -(shift + 1))


def test_scaled_multipliers_at_the_ends():
    assert scaled_multipliers([0.0])[0].tolist() == [0]
    mult, shift = scaled_multipliers([65535.9999 / 2**20])  # rounds up to a power of two
    assert (mult.tolist(), shift) in (([65535], 20), ([32768], 19))
    assert scaled_multipliers([2.0**-60]) == (np.uint16(8), 63)


# --- the file ------------------------------------------------------------------------------------


def same(a, b) -> bool:
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if hasattr(a, "__dataclass_fields__"):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("tokenizer", [b"", b"any \x00 bytes" * 9])
def test_file_round_trip(tmp_path, name, tokenizer):
    model = QModel.random(SHAPES[name], 7)
    model.tokenizer = tokenizer
    path = tmp_path / "m.tfm"
    model.write(path)
    again = QModel.read(path)
    assert same(model, again)
    assert (again.classifier.weight is again.embedding.weight) == model.shape.tied
    np.testing.assert_array_equal(again.forward([1, 2, 3]), model.forward([1, 2, 3]))
    again.write(tmp_path / "again.tfm")
    assert path.read_bytes() == (tmp_path / "again.tfm").read_bytes()
    assert path.read_bytes()[:8] == MAGIC
    header, payload = read_container(path, MAGIC, "a model file", "x")
    assert (path.stat().st_size - len(payload)) % 64 == 0
    assert all(entry["offset"] % 64 == 0 for entry in header["tensors"])


@pytest.fixture
def model_file(tmp_path):
    model = QModel.random(SHAPES["gqa"], 8)
    model.tokenizer = b"words"
    model.write(tmp_path / "m.tfm")
    return tmp_path / "m.tfm"


def refused(path, match=None):
    with pytest.raises(UserError, match=match) as caught:
        QModel.read(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and ";" in message


def test_every_damaged_byte_is_noticed(model_file):
    data = model_file.read_bytes()
    rng = np.random.default_rng(0)
    for at in {*range(64), len(data) - 1, *rng.integers(0, len(data), 150).tolist()}:
        model_file.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        refused(model_file)


def test_truncated_and_longer_files(model_file):
    data = model_file.read_bytes()
    for size in (1, 7, 8, 15, 16, 47, 48, 100, len(data) // 2, len(data) - 64, len(data) - 1):
        model_file.write_bytes(data[:size])
        refused(model_file)
    model_file.write_bytes(data + bytes(64))
    refused(model_file)


def test_other_files(model_file, tmp_path):
    data = model_file.read_bytes()
    refused(tmp_path / "none.tfm", "no such file")
    refused(tmp_path, "not a regular file")
    (tmp_path / "empty").write_bytes(b"")
    refused(tmp_path / "empty", "empty")
    (tmp_path / "text").write_text("a story" * 100)
    refused(tmp_path / "text", "a model file begins with")
    model_file.write_bytes(MAGIC[:7] + b"\x63" + data[8:])
    refused(model_file, "version 99, this program reads version 1")
    # a header that claims more than there is must not be believed
    model_file.write_bytes(data[:8] + (1 << 62).to_bytes(8, "little") + data[16:])
    refused(model_file, "truncated")


def at_path(header, path, value):
    *parents, last = path
    for key in parents:
        header = header[key]
    if value is KeyError:
        del header[last]
    else:
        header[last] = value


WRONG_HEADERS = {
    "no recipe": (("recipe",), KeyError),
    "recipe of two lines": (("recipe",), "w8\nw9"),
    "recipe 5": (("recipe",), 5),
    "one more section": (("more",), {}),
    "shape is a list": (("shape",), [1, 2]),
    "no dim": (("shape", "dim"), KeyError),
    "negative dim": (("shape", "dim"), -16),
    "float dim": (("shape", "dim"), 16.0),
    "huge vocabulary": (("shape", "vocab"), 1 << 20),
    "impossible vocabulary": (("shape", "vocab"), 1 << 62),
    "dim of another model": (("shape", "dim"), 32),
    "odd head_dim": (("shape", "head_dim"), 5),
    "more layers": (("shape", "layers"), 3),
    "untied": (("shape", "tied"), False),
    "eps is text": (("shape", "norm_eps"), "1e-5"),
    "model is null": (("model",), None),
    "no layers": (("model", "layers"), []),
    "layers is a number": (("model", "layers"), 2),
    "a layer is null": (("model", "layers", 1), None),
    "shift 64": (("model", "layers", 1, "wq", "shift"), 64),
    "negative shift": (("model", "layers", 0, "w2", "shift"), -1),
    "shift is true": (("model", "layers", 0, "w2", "shift"), True),
    "shift is a float": (("model", "embedding", "shift"), 5.0),
    "shift is missing": (("model", "classifier"), {}),
    "eps of 33 bits": (("model", "final_norm", "eps"), 1 << 32),
    "in_shift 32": (("model", "layers", 0, "attn_norm", "in_shift"), 32),
    "align 11": (("model", "layers", 0, "score_align"), 11),
    "glu align 13": (("model", "layers", 0, "glu_align"), 13),
    "frac 65": (("model", "res_frac"), 65),
    "huge tokenizer": (("model", "tokenizer_bytes"), 1 << 29),
    "tokenizer of another size": (("model", "tokenizer_bytes"), 100),
    "tensors is null": (("tensors",), None),
    "no tensors": (("tensors",), []),
    "a tensor is a number": (("tensors", 3), 7),
    "offset elsewhere": (("tensors", 1, "offset"), 0),
    "other dtype": (("tensors", 0, "dtype"), "uint8"),
    "pickled dtype": (("tensors", 0, "dtype"), "object"),
    "other name": (("tensors", 0, "name"), "classifier.weight"),
    "other shape": (("tensors", 0, "shape"), [16, 40]),
}


@pytest.mark.parametrize("name", WRONG_HEADERS)
def test_wrong_headers_with_a_right_checksum(model_file, name):
    header, payload = read_container(model_file, MAGIC, "a model file", "x")
    payload = bytes(payload)
    write_container(model_file, MAGIC, header, [payload])
    assert QModel.read(model_file).shape == SHAPES["gqa"]
    at_path(header, *WRONG_HEADERS[name])
    write_container(model_file, MAGIC, header, [payload])
    refused(model_file)


def test_wrong_payloads_with_a_right_checksum(model_file):
    header, payload = read_container(model_file, MAGIC, "a model file", "x")
    payload = bytes(payload)
    for changed, match in (
        (payload[:-64], "tokenizer ends at byte"),
        (payload[:640], "truncated"),
        (b"", "truncated"),
        (payload + bytes(64), "64 bytes follow the last tensor"),
    ):
        write_container(model_file, MAGIC, header, [changed])
        refused(model_file, match)
    (entry,) = [e for e in header["tensors"] if e["name"] == "layer1.v_scale"]
    for value in (0.0, -1.0, np.nan, np.inf):
        raw = np.array([value], "<f4").tobytes()
        at = entry["offset"]
        write_container(model_file, MAGIC, header, [payload[:at] + raw + payload[at + 4 :]])
        refused(model_file, "v_scale")


def test_writing_is_whole_or_not_at_all(tmp_path, model_file):
    model = QModel.read(model_file)
    before = model_file.read_bytes()
    with pytest.raises(UserError, match=r"none/m\.tfm: cannot be written .*; choose"):
        model.write(tmp_path / "none" / "m.tfm")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="not a regular file"):
        model.write(tmp_path / "folder")

    def parts():
        yield b"the first half"
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); choose"):
        write_file(model_file, parts())
    model.recipe = object()  # fails while the header is made
    with pytest.raises(TypeError):
        model.write(model_file)
    assert model_file.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "m.tfm"]


def test_shapes_of_matrices_are_those_of_the_checkpoint():
    for shape in SHAPES.values():
        layer = random_checkpoint(shape).layers[0]
        found = QModel.random(shape)
        for matrix in shape.architecture.matrices:
            assert found.layers[0].linears[matrix.name].weight.shape == layer[matrix.name].shape
        assert asdict(found.shape) == asdict(shape)
