"""The SIMD layer between registers: every operation on tiles gives what numpy says, at every width, for both dtypes. test_simd_memory.py
has those that read and write."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from kernels_by_hand import assert_same
from simd_by_hand import DTYPES, WIDTHS, play

from tinynet.kernels.cpu import simd
from tinynet.kernels.cpu.congruence import congruence, from_left
from tinynet.kernels.cpu.exponential import exp
from tinynet.kernels.cpu.program import address_of, compiled, row, run
from tinynet.kernels.cpu.simd import add, outer_fma, pooled, sums, unpooled, winners, zeros
from tinynet.kernels.cpu.simd_memory import get, loads, pointer, put, scalars, stores
from tinynet.kernels.cpu.target import TARGET


def outer(n, m, W, T):
    count = n * m  # computed outside: inside, only what numba folds itself is a constant

    def kernel(row, image, slot, chunk, share, shares):
        x, w, y = pointer(get(row, 0), T), pointer(get(row, 1), T), pointer(get(row, 2), T)
        acc = zeros(x, count, W)
        for t in range(5):
            acc = outer_fma(acc, scalars(x, t, 1, 0, n, 10), loads(w, t * 64, 1, 0, 1, 0, m, W))
        stores(y, 0, n, m * W, 1, 0, m, W, acc)

    return kernel


@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("W", WIDTHS)
@pytest.mark.parametrize("n, m", [(1, 1), (3, 2), (6, 4), (14, 1)])
def test_outer_fma_adds_every_product(n, m, W, T, rng):
    x, w = rng.integers(-4, 5, (n, 10)).astype(T), rng.integers(-4, 5, (5, 64)).astype(T)
    assert_same(play(outer, (n, m, W, T), np.zeros((n, m * W), T), x, w), x[:, :5] @ w[:, : m * W])


def short_sums(TERMS, W, T):
    def kernel(row, image, slot, chunk, share, shares):
        x, w, y = pointer(get(row, 0), T), pointer(get(row, 1), T), pointer(get(row, 2), T)
        begun = loads(y, 0, 3, 2 * W, 1, 0, 2, W)
        acc = simd.product(begun, scalars(x, 0, 3, 10, TERMS, 1), loads(w, 0, TERMS, 64, 1, 0, 2, W), TERMS)
        stores(y, 0, 3, 2 * W, 1, 0, 2, W, acc)

    return kernel


@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("W", WIDTHS)
@pytest.mark.parametrize("terms", [1, 2, 3, 4])
def test_product_adds_a_product_of_matrices(terms, W, T, rng):
    x, w, begun = rng.integers(-4, 5, (3, 10)).astype(T), rng.integers(-4, 5, (4, 64)).astype(T), rng.integers(-9, 10, (3, 2 * W)).astype(T)
    assert_same(play(short_sums, (terms, W, T), begun.copy(), x, w), begun + x[:, :terms] @ w[:terms, : 2 * W])


def short_sums_each(TERMS, W, T):
    def kernel(row, image, slot, chunk, share, shares):
        x, w, y = pointer(get(row, 0), T), pointer(get(row, 1), T), pointer(get(row, 2), T)
        stores(y, 0, 3, W, 1, 0, 1, W, simd.each_product(scalars(x, 0, 3, TERMS, TERMS, 1), loads(w, 0, 3, TERMS * W, TERMS, W, 1, W), TERMS))

    return kernel


@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("W", WIDTHS)
@pytest.mark.parametrize("terms", [1, 2, 3, 4])
def test_each_product_is_a_sum_for_each_row_of_scalars_and_of_registers(terms, W, T, rng):
    x, w = rng.integers(-4, 5, (3, terms)).astype(T), rng.integers(-4, 5, (3, terms, W)).astype(T)
    assert_same(play(short_sums_each, (terms, W, T), np.zeros((3, W), T), x, w), np.einsum("ik,ikw->iw", x, w))


def wrong_terms_each(T):
    def kernel(row, image, slot, chunk, share, shares):
        x = pointer(get(row, 0), T)
        stores(x, 0, 1, 0, 2, 4, 1, 4, simd.each_product(scalars(x, 0, 1, 0, 4, 1), loads(x, 0, 2, 16, 4, 4, 1, 4), 3))

    return kernel


def wrong_terms(T):
    def kernel(row, image, slot, chunk, share, shares):
        x = pointer(get(row, 0), T)
        stores(x, 0, 1, 0, 4, 4, 1, 4, simd.product(zeros(x, 4, 4), scalars(x, 0, 1, 0, 4, 1), loads(x, 0, 1, 0, 1, 0, 4, 4), 4))

    return kernel


def arithmetic(W, T):
    def kernel(row, image, slot, chunk, share, shares):
        x, y = pointer(get(row, 0), T), pointer(get(row, 1), T)
        four, one = loads(x, 0, 1, 0, 1, 0, 4, W), loads(x, 64, 1, 0, 1, 0, 1, W)
        stores(y, 0, 1, 0, 1, 0, 4, W, add(four, one))
        totals = sums(four)
        for i in range(4):
            put(y, 64 + i, totals[i])

    return kernel


@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("W", WIDTHS)
def test_add_takes_a_shorter_tile_again_and_sums_adds_lanes(W, T, rng):
    x = rng.integers(-9, 10, 80).astype(T)
    y = play(arithmetic, (W, T), np.zeros(68, T), x)
    four = x[: 4 * W].reshape(4, W)
    assert_same(y[: 4 * W].reshape(4, W), four + x[64 : 64 + W])
    assert_same(y[64:], four.sum(axis=1))


ONE = {
    "multiply": (simd.multiply, lambda x, y: x * y),
    "divide": (simd.divide, lambda x, y: x / y),
    "maximum": (simd.maximum, np.maximum),
    "kept": (simd.kept, lambda x, y: np.where(y > 0, x, 0)),
}


def elementwise(name, W, T):
    operation = ONE[name][0]

    def kernel(row, image, slot, chunk, share, shares):
        x, y = pointer(get(row, 0), T), pointer(get(row, 1), T)
        stores(y, 0, 1, 0, 1, 0, 2, W, operation(loads(x, 0, 1, 0, 1, 0, 2, W), loads(x, 32, 1, 0, 1, 0, 2, W)))

    return kernel


SPECIAL = [1.5, -2.0, 0.0, -0.0, np.inf, -np.inf, np.nan, 3.0]


@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("W", [8])
@pytest.mark.parametrize("name", ONE)
def test_what_is_done_number_by_number_is_what_numpy_does(name, W, T):
    """Every pair of special numbers, NaN and infinities too."""
    pairs = [(a, b) for a in SPECIAL for b in SPECIAL]
    kernel = compiled_once(elementwise, name, W, T)
    for start in range(0, len(pairs), 2 * W):
        block = (pairs + pairs)[start : start + 2 * W]
        x = np.zeros(64, T)
        x[: 2 * W], x[32 : 32 + 2 * W] = zip(*block)
        y = np.zeros(2 * W, T)
        run([row(kernel, address_of(x), address_of(y))], 1, 1)
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(y, ONE[name][1](x[: 2 * W], x[32 : 32 + 2 * W]))


_made: dict = {}


def compiled_once(factory, name, W, T):
    """A kernel whose operation is chosen by name, which is no constant that numba's cache could see: named after it."""
    if (name, W, T) not in _made:

        def named(W, T):
            return factory(name, W, T)

        named.__name__ = f"{factory.__name__}_{name}"
        _made[name, W, T] = compiled(named, W, T)
    return _made[name, W, T]


def larger(W, T):
    def kernel(row, image, slot, chunk, share, shares):
        x, y = pointer(get(row, 0), T), pointer(get(row, 1), T)
        a, b = loads(x, 0, 1, 0, 1, 0, 1, W), loads(x, W, 1, 0, 1, 0, 1, W)
        best, place = simd.larger_with(a, simd.full(y, T(1), 1, W), b, simd.full(y, T(2), 1, W))
        stores(y, 0, 1, 0, 1, 0, 1, W, best)
        stores(y, W, 1, 0, 1, 0, 1, W, place)

    return kernel


@pytest.mark.parametrize("T", DTYPES)
def test_the_larger_number_brings_its_place_and_the_first_nan_wins(T):
    nan, inf = np.nan, np.inf
    a = np.array([1, 2, 2, nan, 1, nan, -inf, 0], T)
    b = np.array([2, 1, 2, 1, nan, nan, inf, -0.0], T)
    y = play(larger, (8, T), np.zeros((2, 8), T), np.concatenate([a, b]))
    np.testing.assert_array_equal(y[0], np.array([2, 2, 2, nan, nan, nan, inf, 0], T))
    assert y[1].tolist() == [2, 1, 1, 1, 2, 1, 2, 1]


def selections(W, T):
    def kernel(row, image, slot, chunk, share, shares):
        x, y = pointer(get(row, 0), T), pointer(get(row, 1), T)
        a, b = loads(x, 0, 1, 0, 1, 0, 1, W), loads(x, W, 1, 0, 1, 0, 1, W)
        stores(y, 0, 1, 0, 1, 0, 1, W, simd.relu(a))
        stores(y, W, 1, 0, 1, 0, 1, W, simd.if_positive(a, b, T(-7)))
        stores(y, 2 * W, 1, 0, 1, 0, 1, W, simd.if_equal(a, b, T(3)))
        hit, rest = simd.first_hit(loads(x, 2 * W, 1, 0, 1, 0, 1, W), a, b)
        stores(y, 3 * W, 1, 0, 1, 0, 1, W, hit)
        stores(y, 4 * W, 1, 0, 1, 0, 1, W, rest)
        stores(y, 5 * W, 1, 0, 1, 0, 1, W, simd.each_fma(a, b, simd.full(y, T(2), 1, W)))

    return kernel


@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("W", [4, 8, 16])
def test_selections_choose_each_lane_by_itself(W, T):
    rng = np.random.default_rng(W)
    a, b, rest = rng.integers(-3, 4, (3, W)).astype(T)
    a[0], b[1] = np.nan, 3
    y = play(selections, (W, T), np.zeros((6, W), T), np.concatenate([a, b, rest]))
    hit = (a == b) | np.isnan(a)
    for got, want in zip(y, (np.maximum(a, 0), np.where(b > 0, a, -7), np.where(b == 3, a, 0), np.where(hit, rest, 0), np.where(hit, 0, rest), a + 2 * b)):
        np.testing.assert_array_equal(got, want.astype(T))


def exponentials(W, T):
    def kernel(row, image, slot, chunk, share, shares):
        x, y = pointer(get(row, 0), T), pointer(get(row, 1), T)
        for i in range(0, get(row, 2), W):
            stores(y, i, 1, 0, 1, 0, 1, W, exp(loads(x, i, 1, 0, 1, 0, 1, W)))

    return kernel


def exp_of(x, W):
    y, x = np.full(-(-len(x) // W) * W, -1, x.dtype), np.concatenate([x, np.zeros(-len(x) % W, x.dtype)])
    run([row(compiled(exponentials, W, x.dtype.type), address_of(x), address_of(y), len(y))], 1, 1)
    return y


@pytest.mark.parametrize("W", [1, 4, 8, 16])
@pytest.mark.parametrize("T, low, high", [(np.float32, -104, 89), (np.float64, -746, 710)])
def test_exp_is_within_one_unit_in_the_last_place(T, low, high, W, rng):
    """Of everything that a format holds, numbers below its normal ones too; judged by one of more digits."""
    wider = np.float64 if T is np.float32 else np.longdouble
    assert np.finfo(wider).nmant > np.finfo(T).nmant + 10, "this machine has no longer format to judge by"
    x = np.concatenate([rng.uniform(low, high, 50_000), rng.uniform(-1, 1, 50_000), np.log(2) * (np.arange(low, high) + 0.5)]).astype(T)
    x = np.concatenate([x, np.nextafter(T(0), T([-1, 1])), np.logspace(-30, 0, 1000).astype(T)])
    y, want = exp_of(x, W)[: len(x)], np.exp(x.astype(wider))
    finite = want < np.finfo(T).max
    ulp = np.spacing(want[finite].astype(T)).astype(wider)
    assert (np.abs(y[finite].astype(wider) - want[finite]) / ulp).max() <= 1
    assert finite.any() and (y[~finite] >= np.finfo(T).max).all()


@pytest.mark.parametrize("T", DTYPES)
def test_exp_of_what_is_no_ordinary_number(T):
    x = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30, 0], T)
    np.testing.assert_array_equal(exp_of(x, 8), np.array([1, 1, np.inf, 0, np.nan, np.inf, 0, 1], T))


def largest_of(W, T):
    def kernel(row, image, slot, chunk, share, shares):
        x, y = pointer(get(row, 0), T), pointer(get(row, 1), T)
        put(y, 0, simd.largest(loads(x, 0, 1, 0, 1, 0, 1, W)))

    return kernel


@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("W", [1, *WIDTHS])
def test_the_largest_number_of_a_register_wherever_it_is_and_a_nan_wins(W, T):
    for at in range(W):
        for found in (1, np.inf, np.nan):
            x = np.full(W, -np.inf, T)
            x[at] = found
            np.testing.assert_array_equal(play(largest_of, (W, T), np.zeros(1, T), x), T([found]))


def unlike_of(W, T):
    def kernel(row, image, slot, chunk, share, shares):
        x, y, z = pointer(get(row, 0), T), pointer(get(row, 1), T), pointer(get(row, 2), T)
        bits = simd.unlike(zeros(x, 2, W), loads(x, 0, 1, 0, 1, 0, 2, W), loads(y, 0, 1, 0, 1, 0, 2, W))
        nothing = simd.unlike(bits, loads(y, 0, 1, 0, 1, 0, 2, W), loads(y, 0, 1, 0, 1, 0, 2, W))
        put(z, 0, 1.0 if simd.any_bit(bits) else 0.0)
        put(z, 1, 1.0 if simd.any_bit(nothing) else 0.0)

    return kernel


@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("W", WIDTHS)
def test_registers_are_unlike_if_any_bit_is_and_stay_so(W, T):
    x = np.full(2 * W, np.nan, T)
    x[1] = 0
    assert_same(play(unlike_of, (W, T), np.full(2, -1, T), x, x.copy()), T([0, 0]))
    for lane in range(2 * W):
        y = x.copy()
        y.view(np.int32 if T is np.float32 else np.int64)[lane] ^= 1 << (lane % 23)
        assert_same(play(unlike_of, (W, T), np.full(2, -1, T), x, y), T([1, 1]))
    y = x.copy()
    y[1] = -0.0
    assert_same(play(unlike_of, (W, T), np.full(2, -1, T), x, y), T([1, 1]))


MATRICES = {1: ((2, -1), (2, 1), (0, 0.5)), 2: ((1, 0), (-1, 3)), 3: ((1, 2, 4), (1, -2, 4), (0, 5, -5), (1, 1, 0))}


transformed = congruence(MATRICES)


def squares(KEY, N, M, W, T):
    def kernel(row, image, slot, chunk, share, shares):
        x, y = pointer(get(row, 0), T), pointer(get(row, 1), T)
        stores(y, 0, M, W, 1, 0, 1, W, transformed(loads(x, 0, N, W, 1, 0, 1, W), KEY))

    return kernel


@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("W", WIDTHS)
@pytest.mark.parametrize("key", MATRICES)
def test_congruence_multiplies_by_a_constant_matrix_from_both_sides(key, W, T, rng):
    matrix = np.array(MATRICES[key])
    rows, columns = matrix.shape
    x = rng.integers(-9, 10, (columns, columns, W)).astype(T)
    y = play(squares, (key, columns**2, rows**2, W, T), np.zeros((rows, rows, W), T), x)
    assert_same(y, np.einsum("ia,jb,abw->ijw", matrix, matrix, x).astype(T))


halved = from_left(MATRICES)


def columns_of_a_tile(KEY, N, M, COLUMNS, W, T):
    def kernel(row, image, slot, chunk, share, shares):
        x, y = pointer(get(row, 0), T), pointer(get(row, 1), T)
        stores(y, 0, M, COLUMNS * W, COLUMNS, W, 1, W, halved(loads(x, 0, N, COLUMNS * W, COLUMNS, W, 1, W), KEY, COLUMNS))

    return kernel


@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("W", WIDTHS)
@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("key", MATRICES)
def test_from_left_multiplies_by_a_constant_matrix(key, columns, W, T, rng):
    matrix = np.array(MATRICES[key])
    high, wide = matrix.shape
    x = rng.integers(-9, 10, (wide, columns, W)).astype(T)
    y = play(columns_of_a_tile, (key, wide, high, columns, W, T), np.zeros((high, columns, W), T), x)
    assert_same(y, np.einsum("ia,ajw->ijw", matrix, x).astype(T))


def pools(W, T):
    def kernel(row, image, slot, chunk, share, shares):
        x, y = pointer(get(row, 0), T), pointer(get(row, 1), T)
        tile = loads(x, 0, 4, 4 * W, 4, W, 1, W)
        best = pooled(tile, 2, 1)
        stores(y, 0, 4, W, 1, 0, 1, W, best)
        stores(y, 4 * W, 4, W, 1, 0, 1, W, winners(tile, best, 2, 1))

    return kernel


@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("W", WIDTHS)
def test_windows_of_several_pairs_of_rows_are_pooled(W, T, rng):
    x = rng.integers(0, 4, (4, 4, W)).astype(T)  # with many ties: the first wins
    y = play(pools, (W, T), np.zeros((2, 4, W), T), x)
    windows = x.reshape(2, 2, 2, 2, W).transpose(0, 2, 4, 1, 3).reshape(4, W, 4)
    assert_same(y, np.array([windows.max(-1), windows.argmax(-1)], T))


def unpools(W, T):
    def kernel(row, image, slot, chunk, share, shares):
        best, place, y = pointer(get(row, 0), T), pointer(get(row, 1), T), pointer(get(row, 2), T)
        numbers, places = loads(best, 0, 2, 2 * W, 2, W, 1, W), loads(place, 0, 2, 2 * W, 2, W, 1, W)
        stores(y, 0, 4, 4 * W, 4, W, 1, W, unpooled(numbers, places, 2, 1))

    return kernel


@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("W", WIDTHS)
def test_windows_are_unpooled_to_where_their_numbers_came_from(W, T, rng):
    best, place = rng.standard_normal((2, 2, W)).astype(T), rng.integers(-1, 4, (2, 2, W)).astype(T)
    windows = np.where(place[..., None] == np.arange(4), best[..., None], 0).reshape(2, 2, W, 2, 2)
    assert_same(play(unpools, (W, T), np.full((4, 4, W), np.nan, T), best, place), windows.transpose(0, 3, 1, 4, 2).reshape(4, 4, W).astype(T))


def wrong_count(T):
    def kernel(row, image, slot, chunk, share, shares):
        x = pointer(get(row, 0), T)
        acc = outer_fma(zeros(x, 5, 4), scalars(x, 0, 1, 0, 2, 1), loads(x, 0, 1, 0, 1, 0, 2, 4))
        stores(x, 0, 1, 0, 5, 4, 1, 4, acc)

    return kernel


def test_tiles_that_do_not_fit_are_refused_when_the_kernel_is_compiled():
    with pytest.raises(Exception, match="2 x 2 products can't be added to 5 accumulators"):
        compiled(wrong_count, np.float32)
    with pytest.raises(Exception, match="4 scalars and 4 registers are no 4 terms of 4 sums"):
        compiled(wrong_terms, np.float32)
    with pytest.raises(Exception, match="4 scalars and 8 registers are no sums of 3 terms each"):
        compiled(wrong_terms_each, np.float32)
    with pytest.raises(Exception, match="a matrix of 4 x 3 transforms 2 columns of 3 registers; got 4"):
        compiled(columns_of_a_tile, 3, 2, 2, 2, 4, np.float32)


@pytest.mark.parametrize("target", sorted({"avx2", "sse2", "neon"} - {TARGET.name}))
def test_kernels_for_other_processors_vectors_are_right_too(target):
    """Compiled for this machine, with the width and the number of registers of another. (Its own: in every other test.)"""
    code = """
import numpy as np
from tinynet import oracle
from tinynet.dispatch import find
for name in ("conv2d", "conv2d_dx", "conv2d_dw", "matmul"):
    report = oracle.check(oracle.with_out(find(name, "cpu.simd").function, name), name, cases=oracle.random_cases(name, 6, seed=5))
    assert report, report.explain()
"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "TINYNET_SIMD": target, "TINYNET_QUIET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_unknown_target_is_refused():
    done = subprocess.run([sys.executable, "-c", "import tinynet.kernels.cpu"], env={**os.environ, "TINYNET_SIMD": "mmx"}, capture_output=True, text=True)
    assert "TINYNET_SIMD: there is no target 'mmx'; choose from avx512, avx2, neon, sse2" in done.stderr
