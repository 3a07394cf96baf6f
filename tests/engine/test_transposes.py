"""Weights and images in another order (copies_kernels.py): every number arrives, whichever way the squares go, and nothing else is written."""

import numpy as np
import pytest

from tinynet.kernels.cpu import layers
from tinynet.kernels.cpu.conv2d_simd import packing
from tinynet.kernels.cpu.copies_kernels import KILOBYTE, transpose, transpose_from_runs, transpose_to_runs
from tinynet.kernels.cpu.images import widened
from tinynet.kernels.cpu.program import address_of, compiled, named, row, run
from tinynet.kernels.cpu.simd_memory import get, pointer

SIZES = [1, 3, 4, 7, 8, 9, 16, 17, 25, 31]


def plain(T):
    def kernel(row, image, slot, chunk, share, shares):
        transpose(pointer(get(row, 0), T), 0, get(row, 2), pointer(get(row, 1), T), 0, get(row, 3), get(row, 4), get(row, 5))

    return kernel


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("columns", SIZES)
@pytest.mark.parametrize("y_step", [32, KILOBYTE], ids=["along rows", "down columns"])
def test_a_matrix_is_transposed(rows, columns, y_step, rng):
    x, y = rng.standard_normal((rows, columns + 2), dtype=np.float32), np.zeros((columns, y_step), np.float32)
    run([row(compiled(plain, np.float32), address_of(x), address_of(y), columns + 2, y_step, rows, columns)], 1, 1)
    assert (y[:, :rows] == x[:, :columns].T).all() and not y[:, rows:].any()


def to_runs(T):
    def kernel(row, image, slot, chunk, share, shares):
        transpose_to_runs(pointer(get(row, 0), T), 0, get(row, 2), pointer(get(row, 1), T), 0, get(row, 3), get(row, 4), get(row, 5), get(row, 6), get(row, 7))

    return kernel


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("runs, run_length", [(1, 1), (5, 4), (1, 9), (3, 8), (2, 9), (7, 9), (5, 25)])
@pytest.mark.parametrize("turned", [False, True], ids=["", "the last first"])
def test_a_matrix_s_columns_are_transposed_into_runs(rows, runs, run_length, turned, rng):
    x, y = rng.standard_normal((rows, runs, run_length), dtype=np.float32), np.zeros((run_length, runs, rows + 1), np.float32)
    step, first = runs * (rows + 1), (run_length - 1) * runs * (rows + 1) if turned else 0
    numbers = runs * run_length, rows + 1, -step if turned else step, rows, runs, run_length
    run([row(compiled(to_runs, np.float32), address_of(x), address_of(y) + 4 * first, *numbers)], 1, 1)
    want = x.transpose(2, 1, 0)
    assert (y[:, :, :rows] == (want[::-1] if turned else want)).all() and not y[:, :, rows:].any()


def from_runs(T):
    def kernel(row, image, slot, chunk, share, shares):
        transpose_from_runs(pointer(get(row, 0), T), 0, get(row, 2), get(row, 3), pointer(get(row, 1), T), 0, get(row, 4), get(row, 5), get(row, 6), get(row, 7))

    return kernel


@pytest.mark.parametrize("columns", SIZES)
@pytest.mark.parametrize("runs, run_length", [(1, 1), (5, 4), (1, 9), (3, 8), (2, 9), (7, 9), (5, 25)])
def test_runs_of_rows_are_transposed_into_a_matrix(columns, runs, run_length, rng):
    x, y = rng.standard_normal((run_length, runs, columns), dtype=np.float32), np.zeros((columns, runs * run_length + 1), np.float32)
    numbers = columns, runs * columns, runs * run_length + 1, runs, run_length, columns
    run([row(compiled(from_runs, np.float32), address_of(x), address_of(y), *numbers)], 1, 1)
    assert (y[:, :-1] == x.transpose(2, 1, 0).reshape(columns, -1)).all() and not y[:, -1].any()


@pytest.mark.parametrize("shares", [1, 3])
@pytest.mark.parametrize("turned", [False, True], ids=["", "the last tap first"])
@pytest.mark.parametrize("forward", [True, False], ids=["forward", "gradient"])
@pytest.mark.parametrize("shape, groups, panel", [((24, 5, 3, 3), 1, 16), ((9, 4, 1, 1), 1, 8), ((16, 8, 5, 5), 2, 8), ((6, 3, 3, 2), 3, 4), ((17, 17, 3, 3), 1, 16)])
def test_weights_pack_into_panels_whose_missing_lanes_are_0(shape, groups, panel, forward, turned, shares, rng):
    weights = rng.standard_normal(shape, dtype=np.float32)
    k, c, kh, kw = shape
    of_groups = weights.reshape(groups, k // groups, c, kh * kw)  # group, output, input, tap
    canonical = of_groups.transpose(0, 3, 2, 1) if forward else of_groups.transpose(0, 3, 1, 2)  # group, tap, term, lane
    lanes = widened(canonical.shape[3])
    panel = min(panel, lanes)
    numbers, first, steps = packing(shape, groups, forward, panel, lanes, turned)
    y = np.full(groups * steps["w_group"], np.nan, np.float32)
    run([named(compiled(layers.pack, np.float32), layers.PACK, dict(numbers, w=address_of(weights), y=address_of(y) + 4 * first))], 1, 1, shares)
    padded = np.pad(canonical[:, ::-1] if turned else canonical, ((0, 0), (0, 0), (0, 0), (0, lanes - canonical.shape[3])))
    starts = [min(start, lanes - panel) for start in range(0, lanes, panel)]  # the last panel is moved back
    want = np.stack([padded[..., start : start + panel] for start in starts], 1)  # group, panel, tap, term, lane
    assert (y.reshape(want.shape) == want).all()
