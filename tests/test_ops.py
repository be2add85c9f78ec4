"""The integer references against float64 and exact integers, with the error each may have."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from tokenfabric.core import fixed, ops

RECIP_ERROR = 2.3e-5
RSQRT_ERROR = 6e-5
SIGMOID_ERROR = 2.1e-4  # 64 linear segments of 1/8
SIGMOID_TAIL = 3.6e-4  # beyond 8, where the table ends


def rng_of(*seed: int):
    return np.random.default_rng(seed)


def wide_integers(bits: int, rng, count: int = 4000):
    """Non-negative integers of every length up to ``bits``, with the powers of two around them."""
    powers = [1 << k for k in range(bits)]
    near = [p + d for p in powers for d in (-1, 0, 1)] + [(1 << bits) - 1]
    spread = rng.integers(0, 1 << bits, count) >> rng.integers(0, bits, count)
    return np.concatenate([np.array(near, np.int64), spread])


# --- fixed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 2, 7, 31, 52, 62, 63])
def test_rshift_round_is_nearest_with_ties_up(n):
    rng = rng_of(n)
    x = np.concatenate([np.arange(-40, 41), rng.integers(-(1 << 52), 1 << 52, 500)])
    expected = [floor(Fraction(int(v), 1 << n) + Fraction(1, 2)) for v in x]
    assert fixed.rshift_round(x, n).tolist() == expected
    assert fixed.rshift_round(x, np.full(len(x), n)).tolist() == expected


def test_rshift_round_ties():
    assert fixed.rshift_round([-6, -5, -3, -2, -1, 1, 2, 3, 5, 6], 2).tolist() == [
        -1, -1, -1, 0, 0, 0, 1, 1, 1, 2,
    ]  # fmt: skip


@pytest.mark.parametrize("bits", [1, 8, 16, 18, 32, 36])
def test_saturate(bits):
    low, high = fixed.int_limits(bits)
    assert (low, high) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    x = [low - 1, low, low + 1, 0, high - 1, high, high + 1, -(1 << 62), 1 << 62]
    assert fixed.saturate(x, bits).tolist() == [min(max(v, low), high) for v in x]
    assert ops.count_saturated(x, bits) == sum(not low <= v <= high for v in x)


@pytest.mark.parametrize("bits", [1, 8, 16, 25])
def test_to_signed(bits):
    x = np.array([0, 1, (1 << bits) - 1, 1 << (bits - 1), (1 << (bits - 1)) - 1, -1, 12345])
    assert np.all((fixed.to_signed(x, bits) - x) % (1 << bits) == 0)
    assert np.all(fixed.saturate(fixed.to_signed(x, bits), bits) == fixed.to_signed(x, bits))


def test_padding():
    for a in range(40):
        for b in range(1, 12):
            assert fixed.ceil_div(a, b) == -(-a // b) == (a + b - 1) // b
            assert fixed.round_up(a, b) in range(a, a + b) and fixed.round_up(a, b) % b == 0


def test_bit_length():
    x = wide_integers(62, rng_of(1))
    assert ops.bit_length(x).tolist() == [int(v).bit_length() for v in x]


# --- tables ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "table, base_bits, step_bits, falling",
    [
        (ops.exp_table(), 24, 18, True),
        (ops.recip_table(), 21, 12, True),
        (ops.recip_table(127 / 128), 20, 12, True),
        (ops.rsqrt_table(), 17, 9, True),
        (ops.sigmoid_table(), 16, 11, False),
    ],
)
def test_tables_fit_and_join(table, base_bits, step_bits, falling):
    """Widths as the hardware has them; the right end of a segment is the base of the next."""
    base, step = table
    assert base.min() >= 0 and int(base.max()).bit_length() <= base_bits
    assert step.min() >= 0 and int(step.max()).bit_length() <= step_bits
    assert np.array_equal((base - step if falling else base + step)[:-1], base[1:])


# --- reciprocals -------------------------------------------------------------------------------


@pytest.mark.parametrize("function, numerator", [(ops.recip, 1.0), (ops.recip127, 127 / 128)])
def test_recip(function, numerator):
    x = np.concatenate([np.arange(1, 1 << 17), wide_integers(48, rng_of(2), 200_000)])
    x = x[x > 0]
    r, e = function(x)
    error = np.abs(r * 2.0**-16 * 2.0**-e / (numerator / x) - 1)
    assert error.max() < RECIP_ERROR
    assert r.min() >= (1 << 15) * numerator and r.max() <= (1 << 16) * numerator
    assert np.array_equal(e, ops.bit_length(x) - 1)


def test_recip_of_powers_of_two_is_exact():
    for k in range(48):
        assert tuple(map(int, ops.recip(1 << k))) == (1 << 16, k)


def test_rsqrt():
    x = np.concatenate([np.arange(1, 1 << 17), wide_integers(49, rng_of(3), 200_000)])
    x = x[x > 0]
    r, e = ops.rsqrt(x)
    error = np.abs(r * 2.0**-16 * 2.0**-e * np.sqrt(x.astype(np.float64)) - 1)
    assert error.max() < RSQRT_ERROR
    assert r.min() >= 1 << 15 and r.max() <= 1 << 16
    for k in range(24):
        assert tuple(map(int, ops.rsqrt(4**k))) == (1 << 16, k)


# --- matrix products ---------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 7, 256, 8192])
def test_matmul_is_exact(k):
    rng = rng_of(k)
    x, w = rng.integers(-32768, 32768, (3, k)), rng.integers(-128, 128, (5, k))
    x[0], w[0], w[1] = -32768, -128, 127
    expected = [
        [sum(int(a) * int(b) for a, b in zip(row, col, strict=True)) for col in w] for row in x
    ]
    got = ops.matmul(x.astype(np.int16), w.astype(np.int8))
    assert got.dtype == np.int64 and got.tolist() == expected


@pytest.mark.parametrize("shift", [0, 1, 17, 31, 52, 63])
def test_requantize_never_overflows(shift):
    """The widest accumulator times the widest multiplier, against Python's integers."""
    rng = rng_of(shift)
    acc = np.concatenate(
        [[-(1 << 35), (1 << 35) - 1, -1, 0, 1], rng.integers(-(1 << 35), 1 << 35, 200)]
    )
    mult = np.concatenate([[65535] * 5, rng.integers(0, 65536, 200)])
    expected = [
        floor(Fraction(int(a) * int(b), 1 << shift) + Fraction(1, 2))
        for a, b in zip(acc, mult, strict=True)
    ]
    assert ops.requantize(acc, mult, shift).tolist() == expected


def test_requantize_ties_and_rows():
    assert ops.requantize([-3, -1, 1, 3], 1, 1).tolist() == [-1, 0, 1, 2]
    by_row = ops.requantize(np.ones((2, 3), int), np.array([[4], [8]]), 2)
    assert by_row.tolist() == [[1, 1, 1], [2, 2, 2]]


def test_embed_and_residual_add():
    top = (1 << 31) - 1
    assert ops.embed([-128, -1, 0, 127], 65535, 0).tolist() == [
        -128 * 65535,
        -65535,
        0,
        127 * 65535,
    ]
    assert ops.embed([-3, 3], 1, 1).tolist() == [-1, 2]
    res, delta = [top, -top - 1, top, -top - 1, 5], [1, -1, 1 << 40, -(1 << 40), -7]
    assert ops.residual_add(res, delta).tolist() == [top, -top - 1, top, -top - 1, -2]
    # Each step saturates: the delta first, so a huge one cannot be undone by the sum.
    assert ops.residual_add([-5], [1 << 40]).tolist() == [top - 5]


# --- RMSNorm -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [64, 288, 2048])
@pytest.mark.parametrize("size", [1, 9, 1000, 100_000, 1 << 27, (1 << 31) - 1])
def test_rmsnorm(size, dim):
    rng = rng_of(size, dim)
    in_shift, out_shift = max(0, size.bit_length() - 17), 20
    x = rng.integers(-size, size + 1, (20, dim))
    x[0, 0], x[1] = -size - 1, size
    gain, eps = rng.integers(-32768, 32768, dim), int(rng.integers(0, 1 << 20)) * (size > 1)
    scaled = x / 2.0**in_shift
    norm = np.sqrt(np.sum(scaled**2, axis=-1, keepdims=True) + eps)
    want = scaled / norm * gain * 2.0 ** (20 - out_shift)
    rounded = 0.5 if in_shift else 0  # of every x, and so of the norm
    t_error = np.abs(scaled / norm) * 2.0**20 * (RSQRT_ERROR + rounded * np.sqrt(dim) / norm)
    t_error = t_error + rounded * 2.0**20 / norm + 0.5
    got = ops.rmsnorm_wide(x, in_shift, eps, gain, out_shift)
    assert np.all(np.abs(got - want) <= 0.5 + 1e-6 + t_error * np.abs(gain) / 2.0**out_shift)
    assert np.array_equal(ops.rmsnorm(x, in_shift, eps, gain, out_shift), fixed.saturate(got, 16))


def test_rmsnorm_of_nothing_and_next_to_nothing():
    gain = np.full(64, 16384)
    zeros = np.zeros((1, 64), int)
    for eps in (0, 1, (1 << 32) - 1):
        assert not ops.rmsnorm(zeros, 0, eps, gain, 20).any()
    one = zeros.copy()
    one[0, 5] = -1
    assert ops.rmsnorm(one, 0, 0, gain, 20)[0, 5] == -16384  # alone, so it is the whole norm
    assert abs(ops.rmsnorm(one, 0, (1 << 32) - 1, gain, 20)[0, 5]) <= 1  # eps hides it
    assert not ops.rmsnorm(one, 4, 0, gain, 20).any()  # below the resolution


def test_rmsnorm_saturates():
    x = np.zeros((1, 64), int)
    x[0, 0] = (1 << 31) - 1  # 18 bits after the shift of 0: 131071, still the whole norm
    gain = np.full(64, 32767)
    assert abs(int(ops.rmsnorm_wide(x, 0, 0, gain, 20)[0, 0]) - 32767) <= 3
    assert ops.rmsnorm(x, 0, 0, gain, 18)[0, 0] == 32767
    assert ops.rmsnorm(-x, 0, 0, gain, 18)[0, 0] == -32768


# --- RoPE --------------------------------------------------------------------------------------


@pytest.mark.parametrize("head_dim", [8, 48, 64, 128])
def test_rope(head_dim):
    positions = np.concatenate([np.arange(8), [100, 1023, 2047, 4095]])
    table = ops.rope_table(positions, head_dim, 10000.0)
    assert np.abs(table).max() <= 1 << 14
    rng = rng_of(head_dim)
    x = rng.integers(-32768, 32768, (len(positions), head_dim))
    x[-1] = 32767
    angle = positions[:, None] * 10000.0 ** (-np.arange(0, head_dim, 2) / head_dim)
    turned = (x[:, 0::2] + 1j * x[:, 1::2]) * np.exp(1j * angle)
    got = ops.rope_wide(x, table)
    bound = 0.5 + (np.abs(x[:, 0::2]) + np.abs(x[:, 1::2])) * 2.0**-15
    assert np.all(np.abs(got[:, 0::2] - turned.real) <= bound)
    assert np.all(np.abs(got[:, 1::2] - turned.imag) <= bound)
    assert np.array_equal(got[0], x[0])  # position 0 turns nothing
    assert np.array_equal(ops.rope(x, table), fixed.saturate(got, 16))


def test_rope_is_orthogonal():
    """Lengths of pairs stay, and the product of two heads depends on their distance only."""
    rng = rng_of(4)
    q, k = rng.integers(-23000, 23000, (2, 64))
    table = ops.rope_table(np.arange(600), 64, 10000.0)
    turned_q, turned_k = ops.rope(q, table), ops.rope(k, table)
    length = np.hypot(q[0::2], q[1::2])
    turned = np.hypot(turned_q[:, 0::2], turned_q[:, 1::2])
    assert np.all(np.abs(turned - length) <= 1 + length * 2.0**-14)
    size = np.linalg.norm(q) * np.linalg.norm(k)
    for distance in (0, 1, 77):
        products = np.sum(turned_q[distance:] * turned_k[: 600 - distance], axis=-1)
        assert np.ptp(products) <= 2e-4 * size


def test_rope_saturates():
    x, table = np.full(8, 32767), ops.rope_table([1], 8, 1.0)  # every pair turned by 1 radian
    assert ops.rope_wide(x, table).max() > 32767
    assert ops.rope(x, table).max() == 32767


# --- K cache -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 127, 1000, 16000])
def test_quantize_k(size):
    rng = rng_of(size)
    mean = rng.integers(-size, size + 1, 48)
    k = mean + rng.integers(-size, size + 1, (300, 48))
    k8, amax = ops.quantize_k(k, mean)
    centred = k - mean
    assert np.array_equal(amax, np.maximum(np.abs(centred).max(axis=-1), 1))
    assert np.abs(k8).max() <= 127
    step = amax[:, None] / 127
    assert np.all(np.abs(k8 * step - centred) <= (0.5 + 127 * RECIP_ERROR) * step)
    peak = np.abs(centred).argmax(axis=-1)
    assert np.all(np.abs(k8[np.arange(len(k)), peak]) == 127)  # the range is used to its end


def test_quantize_k_corners():
    mean = np.array([5, -7, 32767, -32768])
    k8, amax = ops.quantize_k(mean[None], mean)
    assert not k8.any() and amax.tolist() == [1]
    k8, amax = ops.quantize_k([[32767, -32768, -32768, 32767]], np.array([-32768, 32767, 0, 0]))
    assert amax.tolist() == [32767] and k8.tolist() == [[127, -127, -127, 127]]


# --- softmax -----------------------------------------------------------------------------------


def float_softmax(scores, mask, frac: int):
    d = np.where(mask, scores - np.max(np.where(mask, scores, -np.inf), -1, keepdims=True), -np.inf)
    weight = 2.0 ** (d / 2.0**frac)
    return weight / weight.sum(axis=-1, keepdims=True)


def finished(p, total):
    """The weights as the product with V sees them: through the reciprocal."""
    mult, shift = ops.attention_scale(total)
    return p * mult[..., None] * 2.0 ** -(shift[..., None] + ops.ATT_FRAC)


@pytest.fixture(scope="module")
def softmax_rows():
    """10,000 rows of 64..256 scores: ``(align, scores, mask, float weights)`` per align."""
    groups = []
    for align in range(5):
        rng, frac = rng_of(5, align), ops.EXP_FRAC - align
        sigma = rng.uniform(0.2, 5, (2000, 1)) / np.log(2)
        scores = np.round(rng.normal(0, sigma, (2000, 256)) * 2**frac)
        scores = fixed.saturate(scores, 16)
        mask = np.arange(256) < rng.integers(64, 257, (2000, 1))
        groups.append((align, scores, mask, float_softmax(scores, mask, frac)))
    return groups


def test_softmax(softmax_rows):
    for align, scores, mask, want in softmax_rows:
        p, total = ops.softmax(scores, mask, align)
        assert np.abs(p * 2.0**ops.EXP_P_SHIFT / total[:, None] - want).max() <= 2e-5
        assert np.abs(finished(p, total) - want).max() <= 2e-5
        assert np.array_equal(p.argmax(axis=-1), want.argmax(axis=-1))
        assert np.all(p.max(axis=-1) == 32767) and not p[~mask].any()


@pytest.mark.parametrize("align", range(8))
def test_softmax_exp(align):
    d = np.arange(0, 65536)
    got = ops.softmax_exp(32767 - d, 32767, align)
    want = ops.EXP_ONE * 2.0 ** -(d / 2.0 ** (ops.EXP_FRAC - align))
    assert np.all(np.abs(got - want) <= 1.5e-5 * want + 1.5)
    assert got[0] == ops.EXP_ONE and np.all(np.diff(got) <= 0) and got.max() < 1 << 24


def test_softmax_corners():
    scores = np.array([-32768, 32767, 100, 100, 32767, -32768, 0, 100])
    for lane in range(8):  # one participant, whatever it and the others are
        p, total = ops.softmax(scores, np.arange(8) == lane, 4)
        assert p.tolist() == [32767 * (i == lane) for i in range(8)] and total == ops.EXP_ONE
    for value in (-32768, 0, 32767):
        p, total = ops.softmax(np.full(256, value), np.arange(256) >= 0, 0)
        assert np.all(p == 32767) and total == 256 * ops.EXP_ONE
        assert np.abs(finished(p, total) * 256 - 1).max() <= 2.5e-5
    p, total = ops.softmax(np.array([-32768, 32767, -32768]), np.array([True] * 3), 4)
    assert p.tolist() == [0, 32767, 0] and total == ops.EXP_ONE
    wide = np.full(2048, 32767)  # the longest total
    assert ops.bit_length(ops.softmax(wide, wide > 0, 0)[1]) <= 35


def test_attention_scale_with_v():
    """p @ V, requantized, against float attention in units of 2**-8."""
    rng = rng_of(6)
    scores, mask = rng.integers(-3000, 3000, (50, 256)), np.arange(256) < 200
    v = rng.integers(-127, 128, (256, 64))
    p, total = ops.softmax(scores, mask, 0)
    mult, shift = ops.attention_scale(total)
    assert [int(v) for v in ops.attention_scale(1 << 24)] == [65535, 23]  # 65536 does not fit
    assert mult.max() <= 65535 and shift.min() >= 0 and shift.max() <= 63
    got = ops.requantize(ops.matmul(p, v.T), mult[:, None], shift[:, None])
    weights = float_softmax(scores, mask, ops.EXP_FRAC)
    p_error = 200 * 0.5 / 32767 * weights.max(axis=-1, keepdims=True)
    bound = 0.5 + 127 * 2**ops.ATT_FRAC * (p_error + RECIP_ERROR + 2e-5)
    assert np.all(np.abs(got - (weights @ v) * 2**ops.ATT_FRAC) <= bound)
    assert ops.count_saturated(got, 16) == 0


# --- SwiGLU ------------------------------------------------------------------------------------


@pytest.mark.parametrize("align", range(5))
def test_sigmoid(align):
    x = np.arange(-32768, 32768)
    value = x / 2.0 ** (ops.SIGMOID_FRAC - align)
    got = ops.sigmoid(x, align)
    error = np.abs(got / 65536 - 1 / (1 + np.exp(-value)))
    assert error[np.abs(value) < 8].max() <= SIGMOID_ERROR and error.max() <= SIGMOID_TAIL
    assert np.all(np.diff(got) >= 0) and got[32768] == 32768
    assert np.all(got[1:] + got[1:][::-1] == 65536)


@pytest.mark.parametrize("align", range(4))
@pytest.mark.parametrize("size", [3, 1000, 32767])
def test_swiglu(size, align):
    rng = rng_of(size, align)
    frac, shift = ops.SIGMOID_FRAC - align, 16
    gate = np.concatenate([rng.integers(-size, size + 1, 20_000), [-size - 1, -size - 1, size, 0]])
    up = np.concatenate([rng.integers(-32768, 32768, 20_000), [-32768, 32767, -32768, 32767]])
    silu = gate / (1 + np.exp(-gate / 2.0**frac)) * 2**ops.GLU_T_FRAC_GAIN
    want = silu * up / 2.0**shift
    far = np.abs(gate / 2.0**frac) >= 8
    t_error = np.abs(gate) * 16 * np.where(far, SIGMOID_TAIL, SIGMOID_ERROR) + 0.5
    got = ops.swiglu_wide(gate, up, align, shift)
    assert np.all(np.abs(got - want) <= 0.5 + 1e-6 + t_error * np.abs(up) / 2.0**shift)
    assert np.array_equal(ops.swiglu(gate, up, align, shift), fixed.saturate(got, 16))
    assert ops.count_saturated(got, 16) == 0 or size == 32767


def test_swiglu_intermediate_fits():
    """silu(gate) with 4 more fraction bits: never wider than the hardware's t."""
    gate = np.array([-32768, -1, 0, 1, 32767])
    for align in range(8):
        t = ops.swiglu_wide(gate, np.ones(5, int), align, 0)
        assert ops.count_saturated(t, ops.GLU_T_BITS) == 0
        assert t[2] == 0


# --- argmax ------------------------------------------------------------------------------------


def test_argmax():
    logits = np.array([[1, 7, 7, 3, 9], [-5, -9, -5, -6, 0], [0, 0, 0, 0, 0]])
    assert ops.argmax(logits, 4).tolist() == [1, 0, 0]
    assert ops.argmax(logits, 5).tolist() == [4, 4, 0]
