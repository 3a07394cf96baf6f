"""The SIMD layer between memory and registers: what is read and written, where, and what is not; at every width, for both dtypes."""

from __future__ import annotations

import re

import numpy as np
import pytest
from kernels_by_hand import assert_same
from simd_by_hand import DTYPES, WIDTHS, play

from tinynet.kernels.cpu import compiler, simd, simd_memory
from tinynet.kernels.cpu.program import address_of, compiled, row, run
from tinynet.kernels.cpu.simd import transposed
from tinynet.kernels.cpu.simd_memory import get, loads, pointer, put, stores
from tinynet.kernels.cpu.target import LINE


def copies(rows, columns, vectors, W, T):
    def kernel(row, image, slot, chunk, share, shares):
        x, y = pointer(get(row, 0), T), pointer(get(row, 1), T)
        stores(y, 3, rows, 100, columns, 40, vectors, W, loads(x, 1, rows, 90, columns, 30, vectors, W))

    return kernel


@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("W", WIDTHS)
@pytest.mark.parametrize("rows, columns, vectors", [(1, 1, 1), (2, 3, 1), (1, 2, 2), (3, 1, 1)])
def test_loads_and_stores_move_registers_between_places(rows, columns, vectors, W, T, rng):
    x, y = rng.standard_normal(400).astype(T), np.zeros(500, T)
    want = y.copy()
    for r in range(rows):
        for c in range(columns):
            want[3 + 100 * r + 40 * c :][: vectors * W] = x[1 + 90 * r + 30 * c :][: vectors * W]
    assert_same(play(copies, (rows, columns, vectors, W, T), y, x), want)


def windows_of(APART, ABREAST, W, T):
    columns, lanes = APART + 2, ABREAST * W
    count = 3 * columns

    def kernel(row, image, slot, chunk, share, shares):
        x, y = pointer(get(row, 0), T), pointer(get(row, 1), T)
        stores(y, 0, 1, 0, 1, 0, count, lanes, simd_memory.windows(x, W, 3, 300, columns, APART, ABREAST, W))

    return kernel


@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("W", [1, 2, 4, 8])
@pytest.mark.parametrize("apart, abreast", [(2, 2), (2, 4), (4, 2), (4, 4), (2, 8)])
def test_windows_abreast_are_sorted_by_their_pixels(apart, abreast, W, T):
    columns = apart + 2
    x = np.arange(900).astype(T)
    pixels = x.reshape(3, 300)[:, : 300 // W * W].reshape(3, -1, W)[:, 1:]
    y = play(windows_of, (apart, abreast, W, T), np.zeros((3, columns, abreast, W), T), x)
    for k in range(abreast):
        assert_same(y[:, :, k], pixels[:, k * apart : k * apart + columns])


def every_few(STEP, W, T):
    def kernel(row, image, slot, chunk, share, shares):
        x, y = pointer(get(row, 0), T), pointer(get(row, 1), T)
        stores(y, 0, 1, 0, 1, 0, 1, W, simd_memory.strided(x, 0, STEP, W))
        places = simd.counting(y, T(5), T(STEP), W)
        stores(y, W, 1, 0, 1, 0, 1, W, places)
        simd_memory.put_whole(pointer(get(row, 2), np.int32), 0, W, loads(y, 0, 1, 0, 2, W, 1, W), 1 << 24)

    return kernel


@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("W", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_every_few_numbers_make_a_register_and_so_do_their_places(step, W, T):
    x, places, y = np.arange(100, 100 + (W - 1) * step + 1).astype(T), np.zeros(2 * W, np.int32), np.zeros(2 * W, T)
    run([row(compiled(every_few, step, W, T), address_of(x), address_of(y), address_of(places))], 1, 1)
    assert (y[:W] == x[::step]).all() and (y[W:] == 5 + step * np.arange(W)).all() and (places == (1 << 24) + y.astype(np.int32)).all()


def every_so_many(W, T):
    def kernel(row, image, slot, chunk, share, shares):
        stores(pointer(get(row, 1), T), 0, 1, 0, 1, 0, 1, W, simd_memory.strided(pointer(get(row, 0), T), 0, get(row, 2), W))

    return kernel


@pytest.mark.parametrize("W", [4, 8])
@pytest.mark.parametrize("step", [1, 2, 9, 25])
def test_the_step_need_not_be_known_before(step, W):
    x, y = np.arange((W - 1) * step + 1).astype(np.float32), np.zeros(W, np.float32)
    run([row(compiled(every_so_many, W, np.float32), address_of(x), address_of(y), step)], 1, 1)
    assert (y == x[::step]).all()


def from_two_to_two(ROWS, W, T):
    def kernel(row, image, slot, chunk, share, shares):
        x, y, end, jump = pointer(get(row, 0), T), pointer(get(row, 1), T), get(row, 2), get(row, 3)
        tile = simd_memory.loads_of_two(x, 1, ROWS, W, end, jump, W)
        stores(y, 0, ROWS, W, 1, 0, 1, W, tile)
        simd_memory.stores_to_two(y, ROWS * W, 2 * W, end, jump, tile)

    return kernel


@pytest.mark.parametrize("end", [0, 1, 3, 5, 9])
@pytest.mark.parametrize("jump", [7, -5])
def test_registers_lie_in_two_runs_of_places(end, jump):
    rows, W = 5, 4
    starts = np.array([W * k + (jump if k >= end else 0) for k in range(rows)])
    x, y = np.arange(100, 140).astype(np.float32), np.zeros(100, np.float32)
    at = 0 if (1 + starts).min() >= 0 else 8  # so that a jump back stays in the array
    run([row(compiled(from_two_to_two, rows, W, np.float32), address_of(x) + 4 * at, address_of(y) + 4 * at, end, jump)], 1, 1)
    want = np.zeros_like(y)
    tile = [x[at + 1 + start : at + 1 + start + W] for start in starts]
    want[at : at + rows * W] = np.concatenate(tile)
    for k, (start, register) in enumerate(zip(starts, tile)):  # in this order: after a jump back one may lie on another
        first = at + rows * W + start + W * k
        want[first : first + W] = register
    assert (y == want).all()


def put_together(STEP, W, T):
    FEWER = STEP - 1

    def kernel(row, image, slot, chunk, share, shares):
        x, y = pointer(get(row, 0), T), pointer(get(row, 1), T)
        simd_memory.together(y, 1, loads(x, 0, 1, 0, 1, 0, STEP, W))
        stores(y, 1 + STEP * W, 1, 0, 1, 0, STEP, W, simd.add_first(loads(x, 0, 1, 0, 1, 0, STEP, W), loads(x, STEP * W, 1, 0, 1, 0, 1, W), FEWER))

    return kernel


@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("W", [1, 2, 4, 8])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_registers_are_put_together_number_by_number_and_some_are_added_to(step, W, T):
    x, y = np.arange((step + 1) * W).astype(T), np.full(2 + 2 * step * W, -1, T)
    run([row(compiled(put_together, step, W, T), address_of(x), address_of(y))], 1, 1)
    rows = x.reshape(step + 1, W)
    assert (y[1 : 1 + step * W] == rows[:step].T.ravel()).all() and y[0] == y[-1] == -1
    added = rows[:step] + rows[step] * (np.arange(step) < step - 1)[:, None]
    assert (y[1 + step * W : -1] == added.ravel()).all()


def turned(W, T):
    def kernel(row, image, slot, chunk, share, shares):
        x, y = pointer(get(row, 0), T), pointer(get(row, 1), T)
        stores(y, 0, W, W, 1, 0, 1, W, transposed(loads(x, 0, W, W, 1, 0, 1, W)))

    return kernel


@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("W", WIDTHS)
def test_a_square_of_registers_is_transposed(W, T):
    x = np.arange(W * W, dtype=T).reshape(W, W)
    assert_same(play(turned, (W, T), np.zeros((W, W), T), x), x.T.copy())


def part(ROWS, W, T):
    def kernel(row, image, slot, chunk, share, shares):
        x, y, count = pointer(get(row, 0), T), pointer(get(row, 1), T), get(row, 2)
        stores(y, 0, ROWS, W, 1, 0, 1, W, simd_memory.firsts(x, get(row, 3), count, ROWS, get(row, 4), W))

    return kernel


@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("W", WIDTHS)
def test_a_part_of_a_register_is_read_and_nothing_behind_it(W, T):
    page = np.full(3 * W, np.nan, T)  # what is not asked for would spoil a sum
    for count in range(W + 1):
        x, y = page.copy(), np.full((2, W), 7, T)
        x[1 : 1 + count], x[1 + W : 1 + W + count] = np.arange(count), np.arange(count) + 10
        run([row(compiled(part, 2, W, T), address_of(x), address_of(y), count, 1, W)], 1, 1)
        want = np.zeros((2, W), T)
        want[:, :count] = np.arange(count), np.arange(count) + 10
        assert_same(y, want)


def fetches(rows, count, written, T):
    def kernel(row, image, slot, chunk, share, shares):
        x, y = pointer(get(row, 0), T), pointer(get(row, 1), T)
        simd_memory.fetch(x, 1, rows, 1 << 40, count, written)  # the second row is nobody's memory
        put(y, 0, get(x, 1))

    return kernel


@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("written", [0, 1])
@pytest.mark.parametrize("rows, size, lines", [(1, 0, 1), (2, 0, 2), (2, 5 * LINE // 2, 2 * 4)])
def test_lines_are_asked_for_and_nothing_is_read(rows, size, lines, written, T, rng):
    """Two lines and a half are four, if they begin within one."""
    x, constants = rng.standard_normal(64).astype(T), (rows, max(1, size // np.dtype(T).itemsize), written, T)
    assert play(fetches, constants, np.zeros(1, T), x)[0] == x[1]
    asked = re.findall(r"call void @llvm\.prefetch.*i32 (\d), i32 (\d), i32 1\)", compiler.kernel_text(fetches(*constants)))
    assert asked == [(str(written), str(2 + written))] * lines
