"""matmul: the oracle accepts the CPU kernel in every shape and memory layout."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_by_hand import assert_same, reals, run, whole_numbers

from tinynet import functional as F
from tinynet import oracle, tensor
from tinynet.dispatch import kernels, use, variants
from tinynet.kernels.cpu import tiles

DTYPES = (np.float32, np.float64)
SIZES = st.integers(0, 12)
# Around the sizes at which the kernel cuts its work: pairs of rows, 4 terms, 4 columns, 32 rows, 128 terms, 256 columns.
EDGES = [(1, 1, 1), (2, 4, 4), (3, 5, 7), (31, 127, 5), (32, 128, 8), (33, 129, 9), (5, 3, 255), (4, 6, 256), (3, 7, 257), (65, 257, 3), (1, 300, 1), (40, 1, 300)]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("transposed", [False, True], ids=["b by rows", "b by columns"])
@pytest.mark.parametrize("i,t,j", EDGES)
def test_every_block_edge(i, t, j, transposed, dtype, rng):
    for fill in (whole_numbers, reals):
        a, b = fill(rng, (i, t), dtype), fill(rng, (t, j), dtype)
        form = np.asfortranarray(b) if transposed else b  # a dense layer's weights arrive by columns
        want = oracle.reference.matmul(a, b)
        for variant in variants("matmul", "cpu"):
            with use(matmul=f"cpu.{variant}"):
                got = kernels("cpu").matmul(a, form)
            oracle.assert_matches(got, want.exactly() if fill is whole_numbers else want, name=f"{variant}: ({i}, {t}) @ ({t}, {j})", max_zero_share=1.0)


@settings(max_examples=60, deadline=None)
@given(batch=st.lists(st.integers(0, 3), max_size=2), i=SIZES, t=SIZES, j=SIZES, order=st.sampled_from("CF"), dtype=st.sampled_from(DTYPES))
def test_every_shape_with_empty_ones(batch, i, t, j, order, dtype):
    rng = np.random.default_rng(i + 13 * t + 169 * j)
    a, b = whole_numbers(rng, (*batch, i, t), dtype), whole_numbers(rng, (*batch, t, j), dtype)
    if order == "F":
        b = np.ascontiguousarray(b.swapaxes(-1, -2)).swapaxes(-1, -2)
    for device in ("cpu", "reference"):
        assert_same(kernels(device).matmul(a, b), a @ b, device)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_batches_broadcast_forward_and_backward(data):
    axes = data.draw(st.lists(st.integers(1, 3), max_size=3))
    first = [data.draw(st.sampled_from([1, n])) for n in axes]
    second = [data.draw(st.sampled_from([1, n])) for n in axes][data.draw(st.integers(0, len(axes))) :]
    rng = np.random.default_rng(len(axes))
    a, b = whole_numbers(rng, (*first, 2, 3), np.float64), whole_numbers(rng, (*second, 3, 4), np.float64)
    theirs = [torch.tensor(m, requires_grad=True) for m in (a, b)]
    want = theirs[0] @ theirs[1]
    dy = whole_numbers(rng, tuple(want.shape), np.float64)
    want.backward(torch.tensor(dy))
    for device in ("cpu", "reference"):
        ours = [tensor(m, requires_grad=True, device=device) for m in (a, b)]
        got = F.matmul(*ours)
        got.backward(dy)
        assert_same(got.numpy(), want.detach().numpy())
        for our, their in zip(ours, theirs):
            assert_same(our.grad, their.grad.numpy())


def test_inputs_in_any_memory_layout_and_read_only(rng):
    a, b = whole_numbers(rng, (3, 5, 7), np.float32), whole_numbers(rng, (3, 7, 4), np.float32)
    for left in (a, np.asfortranarray(a), np.repeat(a, 2, axis=1)[:, ::2], a[::-1][::-1]):
        for right in (b, np.asfortranarray(b), np.repeat(b, 2, axis=2)[..., ::2]):
            left, right = left.view(), right.view()
            left.flags.writeable = right.flags.writeable = False
            for device in ("cpu", "reference"):
                assert_same(kernels(device).matmul(left, right), a @ b)


def test_outputs_are_written_all_over_and_inputs_left_alone(rng):
    for shape in ((3, 5, 4), (1, 1, 1), (33, 129, 257), (4, 0, 3)):
        i, t, j = shape
        for device in ("cpu", "reference"):
            run("matmul", device, reals(rng, (i, t), np.float32), reals(rng, (t, j), np.float32))


def test_nan_reaches_its_row_and_column_alone():
    a, b = np.ones((5, 6), np.float32), np.ones((6, 7), np.float32)
    a[2, 3] = np.nan
    for form in (b, np.asfortranarray(b)):
        bad = np.isnan(kernels("cpu").matmul(a, form))
        assert bad[2].all()
        assert bad.sum() == 7


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_a_row_of_few_is_what_it_would_be_alone(dtype, rng):
    """To the bit: a dense layer of few images computes them one by one or together, as threads suggest."""
    for terms, columns in ((3, 40), (10, 400), (15, 5), (16, 64), (33, 70)):
        a, weight = (rng.standard_normal(shape).astype(dtype) for shape in ((tiles.FEW, terms), (columns, terms)))
        for rows in range(1, tiles.FEW + 1):
            together = kernels("cpu").matmul(a[:rows], weight.T)
            assert np.array_equal(together, np.concatenate([kernels("cpu").matmul(a[i : i + 1], weight.T) for i in range(rows)])), (terms, columns, rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_blocks_are_whole_tiles(dtype):
    """Else a tile reaches into the next block: that is work done twice, and a step of SGD taken twice."""
    rng = np.random.default_rng(0)
    for rows, columns, terms in [*rng.integers(4, 5000, (200, 3)).tolist(), *rng.integers(4, 60, (200, 3)).tolist()]:
        (_, vectors, lanes), blocks = tiles.best_blocks(rows, columns, terms, dtype)
        assert blocks["column_block"] % (vectors * lanes) == 0, (rows, columns, terms)
        for packs, turned in product((True, False), repeat=2):
            (high, vectors, lanes), blocks, scratch = tiles.best_packed(rows, columns, terms, dtype, 2, packs, turned)
            assert high <= rows and vectors * lanes <= columns
            assert blocks["row_block"] % high == blocks["column_block"] % (vectors * lanes) == 0, (rows, columns, terms)
            panels = blocks["column_block"] * blocks["term_block"]
            assert panels <= blocks["packed"] <= blocks["partial"] - packs * high * blocks["term_block"] and blocks["partial"] < scratch < 1 << 20


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_threads_share_a_product_of_few_terms_by_rows(slots):
    """A gradient of weights: threads that wrote parts of one row would fetch its lines from each other. Every thread has some."""
    for rows, columns, terms in [(120, 400, 1), (512, 784, 8), (512, 784, 128), (128, 9216, 32), (1024, 4096, 1)]:
        _, blocks, _ = tiles.best_packed(rows, columns, terms, np.float32, slots, True, False)
        panels = -(-columns // blocks["column_block"])
        assert panels == 1 or blocks["column_block"] * terms * 4 > tiles.PANELS // 2, "columns are cut for the cache alone"
        assert -(-rows // blocks["row_block"]) * panels >= slots, (rows, columns, terms)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_packed_blocks_of_rows_columns_and_terms(dtype, rng):
    """Several blocks along each axis, the last ones small; both ways in which each factor may lie."""
    rows, terms, columns = 1501, 1111, 777
    for packs, turned in product((True, False), repeat=2):
        blocks = tiles.best_packed(rows, columns, terms, dtype, 2, packs, turned)[1]
        assert blocks["row_block"] < rows and blocks["column_block"] < columns and blocks["term_block"] < terms
    a, b = whole_numbers(rng, (rows, terms), dtype), whole_numbers(rng, (terms, columns), dtype)
    for left in (a, np.asfortranarray(a)):
        for right in (b, np.asfortranarray(b)):
            assert_same(run("matmul", "cpu", left, right), a @ b)
