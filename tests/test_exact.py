"""Floats that are the same on every machine, against exact arithmetic of Python's integers."""

import hashlib
import math
from decimal import Decimal, getcontext
from fractions import Fraction

import numpy as np
import pytest
from tokenfabric.core import exact, ops
from tokenfabric.core.shape import NAMED_SHAPES


def whole(x, unit):
    """x [...] in units, as Python's integers; fails where it is none."""
    found = [[Fraction(v) / Fraction(unit) for v in row] for row in np.atleast_2d(x).tolist()]
    assert all(v.denominator == 1 for row in found for v in row)
    return [[int(v) for v in row] for row in found]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 3e4, 1e30])
def test_on_grid_leaves_few_bits_of_one_unit(scale):
    x = np.random.default_rng(0).standard_normal((3, 40)) * scale
    x[1] = 0
    x[2, 5] = x[2].max() * 1e6  # the others are small beside it
    for row, got in zip(x, exact.on_grid(x, 12), strict=True):
        unit = 2.0 ** (math.frexp(np.abs(row).max())[1] - 12)
        assert np.abs(whole(got, unit)).max() <= 1 << 12
        assert np.abs(got - row).max() <= unit / 2
    across = exact.on_grid(x, 12, axis=0)
    np.testing.assert_array_equal(across.T, exact.on_grid(np.ascontiguousarray(x.T), 12))


@pytest.mark.parametrize("count", [1, 2, 7, 64, 65, 768, 4096])
def test_no_order_of_a_sum_matters(count):
    rng = np.random.default_rng(count)
    x = rng.standard_normal((4, count)) * 10.0 ** rng.integers(-9, 3, (4, count))
    x[0] = np.abs(x).max()  # as large as sums get
    want = exact.sum_of(x)
    rounded = exact.on_grid(x, exact.summand_bits(count))
    assert want[:, 0].tolist() == [math.fsum(row) for row in rounded]
    np.testing.assert_allclose(want[:, 0], [math.fsum(row) for row in x], rtol=1e-9)
    for _ in range(5):
        np.testing.assert_array_equal(exact.sum_of(rng.permuted(x, axis=1)), want)
    np.testing.assert_array_equal(exact.sum_of(x.T.copy(), (0,)).T, want)


@pytest.mark.parametrize("count", [1, 5, 48, 257, 2048])
def test_products_are_exact(count):
    rng = np.random.default_rng(count)
    a, b = rng.standard_normal((3, count)), rng.standard_normal((4, count))
    a[0], b[0] = 1 - 2.0**-30, -1 + 2.0**-30  # the largest operands, all of one sign
    bits = exact.operand_bits(count)
    assert bits <= 24 and count << 2 * bits <= 1 << 53 and (bits == 24 or count << 2 * bits > 2**51)
    ra, rb = exact.on_grid(a, bits), exact.on_grid(b, bits)
    want = [
        [float(sum(Fraction(u) * Fraction(v) for u, v in zip(x, y, strict=True))) for y in rb]
        for x in ra
    ]
    np.testing.assert_array_equal(exact.product(a, b), want)
    np.testing.assert_allclose(exact.product(a, b), a @ b.T, atol=count**0.5 * 2.0 ** (4 - bits))
    assert (ra.astype(np.float32) == ra).all()
    gram = exact.moment(a)
    np.testing.assert_array_equal(gram, gram.T)
    np.testing.assert_allclose(gram, a.T @ a, atol=1e-5)
    fine = exact.fine_product(a.T.copy(), b.T.copy())
    np.testing.assert_allclose(fine, a @ b.T, rtol=1e-11, atol=1e-10)


def test_functions_are_those_of_decimal():
    getcontext().prec = 40
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.uniform(-60, 60, 500), [0.0, -700.0, 700.0, 1e-20]])
    want = np.array([float(Decimal(v).exp()) for v in x.tolist()])
    np.testing.assert_allclose(exact.exp(x), want, rtol=2e-12)
    assert exact.exp(np.zeros(1)) == 1 and exact.exp(np.full((2, 3), -np.inf)).max() < 1e-300
    assert np.isnan(exact.exp(np.array([np.nan])))
    assert exact.LOG2_E == math.log2(math.e)
    assert exact.power(10000.0, -0.5) == 0.01 and exact.power(5e5, 0.0) == 1.0

    angle = np.concatenate([rng.uniform(-10, 10, 500), rng.uniform(0, 1e6, 500), [0.0]])
    cos, sin = exact.cos_sin(angle)
    np.testing.assert_allclose(cos, [math.cos(a) for a in angle], atol=3e-16)
    np.testing.assert_allclose(sin, [math.sin(a) for a in angle], atol=3e-16)


@pytest.mark.parametrize("n", [-40, -1, 0, 1, 15, 60])
def test_logarithms_at_their_steps(n):
    step = 2.0**n
    assert exact.floor_log2(step) == n == exact.floor_log2(np.nextafter(2 * step, 0))
    assert exact.floor_log2(np.nextafter(step, 0)) == n - 1
    assert exact.ceil_log2(step) == n == exact.ceil_log2(np.nextafter(step, 0))
    assert exact.ceil_log2(np.nextafter(step, 2 * step)) == n + 1


def test_choices_follow_the_likelihoods():
    logits = np.array([[0.0, 1.0, -3.0, -900.0], [5.0, 5.0, 5.0, 5.0]])
    for temperature in (1.0, 0.5, 1e-300):
        with np.errstate(over="ignore"):
            p = np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
        p /= p.sum(axis=-1, keepdims=True)
        found = exact.likelihoods(logits, temperature)
        assert (found == np.rint(found)).all() and found[0, 3] == 0
        np.testing.assert_allclose(found / found.sum(axis=-1, keepdims=True), p, atol=1e-11)
    ends = np.cumsum(np.array([[0.0, 3, 0, 5], [2, 0, 6, 0]]), axis=-1)
    last = 1 - 2.0**-52  # the largest that is drawn
    got = [exact.pick(ends, np.full(2, u)).tolist() for u in (0.0, 0.25, 0.3749, 0.375, last)]
    assert got == [[1, 0], [1, 2], [1, 2], [3, 2], [3, 2]]
    total = np.array([[(1 << 53) - 1.0]])
    assert exact.pick(total, np.array([last])) == [0]
    drawn = exact.uniforms(np.random.default_rng(7), 5000)
    assert drawn.min() >= 0 and drawn.max() <= last and abs(drawn.mean() - 0.5) < 0.02


def test_the_tables_are_these():
    """Of every ROM and of the rotations that the host writes, on any machine."""
    tables = [ops.exp_table(), ops.recip_table(), ops.rsqrt_table(), ops.sigmoid_table()]
    found = hashlib.sha256(b"".join(t.astype("<i8").tobytes() for pair in tables for t in pair))
    for s in NAMED_SHAPES.values():
        table = ops.rope_table(np.arange(s.context), s.head_dim, s.rope_theta)
        found.update(table.astype("<i8").tobytes())
    assert found.hexdigest()[:32] == "b096f84875d048384659e76c3dc517f1"
