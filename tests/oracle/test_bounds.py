"""The rule: formats, gamma, the gate, and truths against exact rational arithmetic."""

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from tinynet import oracle
from tinynet.kernels.contract import CONTRACTS
from tinynet.oracle import reference
from tinynet.oracle.bounds import FORMATS, U32, U64, Bounded, gamma, gate, rounded
from tinynet.oracle.running import Doubles, evaluate


def exact(bounded: Bounded, at) -> Fraction:
    """The truth that a Bounded states, as a fraction."""
    return Fraction(float(bounded.value[at])) + (Fraction(float(bounded.low[at])) if bounded.low is not None else 0)


def test_formats_agree_with_numpy():
    for name in ("float16", "float32", "float64"):
        info, fmt = np.finfo(name), FORMATS[name]
        assert (fmt.max, fmt.normal, fmt.tiny, 2 * fmt.u) == (info.max, info.tiny, info.smallest_subnormal, info.eps)


def test_rounding_agrees_with_numpy_and_ml_dtypes(rng=np.random.default_rng(0)):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.concatenate([rng.standard_normal(2000) * 10.0 ** rng.integers(-45, 39, 2000), [0.0, -0.0, np.inf, -np.inf, np.nan, 65519.9, 65520.0, 3.4e38, 1e-50]])
    with np.errstate(over="ignore"):
        for name in ("float16", "float32", "float64"):
            np.testing.assert_array_equal(rounded(values, FORMATS[name]), values.astype(name).astype(np.float64))
        once = values.astype(np.float32).astype(np.float64)  # exact in float32, so ml_dtypes rounds once
        np.testing.assert_array_equal(rounded(once, FORMATS["bfloat16"]), values.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64))


def test_gamma_is_nu_over_one_minus_nu_and_infinite_from_one_on():
    assert gamma(0) == 0
    assert gamma(100) == 100 * U32 / (1 - 100 * U32)
    assert gamma(2**24) == np.inf and gamma(2**11, 2.0**-11) == np.inf
    np.testing.assert_allclose(gamma(np.array([1, 2]), U64), [U64, 2 * U64], rtol=1e-15)


def test_the_gate_is_the_proof_bound_for_short_sums_and_16_or_two_roots_for_long_ones():
    assert gate(3) == gate(3, zero_mean=True) == gamma(3) / U32
    assert gate(10_000, zero_mean=True) == 16
    assert gate(10_000) == 200
    assert gate(100) == 20
    assert gate(0) == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_truths_of_sums_are_exact_fractions(dtype):
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((3, 40)).astype(dtype), (rng.standard_normal((40, 2)) * 10.0 ** rng.integers(-9, 9, (40, 2))).astype(dtype)
    want = reference.matmul(a, b)
    for at in np.ndindex(3, 2):
        true = sum(Fraction(float(a[at[0], t])) * Fraction(float(b[t, at[1]])) for t in range(40))
        unit = Fraction(float(want.gauge[at])) * Fraction(2) ** (-100 if dtype == "float64" else -47)
        assert abs(exact(want, at) - true) <= unit


def test_truths_of_means_and_pools_are_exact_for_float64():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((1, 2, 5, 7))
    want = reference.avg_pool2d(x, kernel_size=3, stride=2, padding=1, count_include_pad=False)
    true = sum(Fraction(float(v)) for v in x[0, 1, 0:2, 0:2].ravel()) / 4
    assert abs(exact(want, (0, 1, 0, 0)) - true) < Fraction(2) ** -100
    mean = reference.mean(x, axis=(2, 3))
    assert abs(exact(mean, (0, 1)) - sum(Fraction(float(v)) for v in x[0, 1].ravel()) / 35) < Fraction(2) ** -100
    dy = rng.standard_normal((1, 2, 3, 4))
    dx = reference.avg_pool2d_dx(dy, x_shape=(1, 2, 5, 7), kernel_size=3, stride=2, padding=1)
    true = sum(Fraction(float(dy[0, 0, i, j])) / 9 for i in (0, 1) for j in (0, 1))
    assert abs(exact(dx, (0, 0, 1, 1)) - true) < Fraction(2) ** -100


def test_every_kernel_of_the_contract_has_a_truth_and_a_table():
    base = {"conv2d", "conv2d_dx", "conv2d_dw", "conv2d_db", "max_pool2d", "max_pool2d_dx", "avg_pool2d", "avg_pool2d_dx", "matmul"}
    assert base <= set(CONTRACTS) and base <= set(reference.NAMES)
    assert set(reference.NAMES) == set(oracle.names())


def test_every_differentiable_op_of_functional_has_a_truth_and_gradients():
    from tinynet import functional

    for name in functional.__all__:
        assert name in reference.NAMES and f"{name}_grad" in reference.NAMES


def test_friendly_forms_of_geometry_are_accepted():
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((1, 2, 6, 5)).astype("f4"), rng.standard_normal((3, 2, 3, 2)).astype("f4")
    same = reference.conv2d(x, w, padding="same")
    pairs = reference.conv2d(x, w, stride=(1, 1), padding=((1, 1), (0, 1)), dilation=(1, 1))
    np.testing.assert_array_equal(same.value, pairs.value)
    assert same.shape == (1, 3, 6, 5) and same.n == 12 and same.dtype == "float32"


def test_running_bounds_hold_for_float32_softmax_of_any_scale():
    rng = np.random.default_rng(4)
    for scale in (1, 10, 60):
        x = (rng.standard_normal((200, 12)) * scale).astype(np.float32)
        e = np.exp(x - x.max(axis=1, keepdims=True))
        assert oracle.judge(e / e.sum(axis=1, keepdims=True), reference.softmax(x), max_zero_share=1.0)
        shifted = x - x.max(axis=1, keepdims=True)
        assert oracle.judge(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), reference.log_softmax(x))


def test_running_bounds_follow_division_and_roots():
    x = np.random.default_rng(5).uniform(0.1, 3, 500).astype(np.float32)
    want = evaluate(lambda m, x: (x * x - x) / (m.sqrt(x) + m.number(0.1)), FORMATS["float32"], x)
    got = (x * x - x) / (np.sqrt(x) + np.float32(0.1))
    assert oracle.judge(got, want)
    assert not oracle.judge(got * np.float32(1.001), want)
    assert Doubles.number(3) == 3.0


def test_bounded_splits_wider_floats_and_refuses_what_cannot_be():
    if np.finfo(np.longdouble).nmant > 52:
        wide = np.longdouble(1) + np.longdouble(2) ** -60
        assert Bounded(np.array([wide]), 1.0, 1).low[0] == 2.0**-60
    with pytest.raises(ValueError, match="shape"):
        Bounded(np.zeros(3), np.ones(4), 1)
    with pytest.raises(ValueError, match="negative"):
        Bounded(np.zeros(3), -np.ones(3), 1)


def test_errors_name_what_was_expected():
    x = np.zeros((1, 2, 4, 4), np.float32)
    with pytest.raises(ValueError, match="oracle.reference.conv2d: weight has 3 input channels"):
        reference.conv2d(x, np.zeros((1, 3, 2, 2), np.float32))
    with pytest.raises(TypeError, match="one dtype"):
        reference.conv2d(x, np.zeros((1, 2, 2, 2)))
    with pytest.raises(ValueError, match="dy must have the shape"):
        reference.conv2d_dx(np.zeros((1, 1, 4, 4), np.float32), np.zeros((1, 2, 2, 2), np.float32), x_shape=x.shape)
    with pytest.raises(ValueError, match="has no 'conv3d'"):
        reference.find("conv3d")


def test_the_oracle_imports_numpy_alone_and_fast():
    script = "import numpy, tinynet, time, sys; t = time.perf_counter(); import tinynet.oracle as o; o.judge; o.check; o.reference; print(time.perf_counter() - t); print(*[m for m in ('numba', 'torch', 'scipy', 'tensorflow', 'jax', 'ml_dtypes') if m in sys.modules])"
    seconds, loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split("\n")[:2]
    assert loaded == ""
    assert float(seconds) < 0.5  # about 0.02 on an idle machine; a slow one must not fail
