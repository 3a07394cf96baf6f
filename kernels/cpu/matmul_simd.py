"""Matrix product on vector registers, in three forms; which one depends on how b lies in memory.

    gemm          b[t, :] side by side              acc[i, :] += a[i, t] * b[t, :]          lanes: columns of c
    dots          b[:, j] side by side, few rows    acc[i, j] += a[i, t..] * b[t.., j]      lanes: the terms, added up at the end
    gemm_turned   b[:, j] side by side, many        as gemm, on some columns of b that are turned first, for all rows

The three products of a dense layer need no copy of a whole matrix: its weights are (out, in), so the forward x @ W^T is
dots or gemm_turned, and both gradients, dy @ W and dy^T @ x, are gemm, which reads `a` in any order, and goes over large
matrices in blocks (tiles.best_blocks). The kernels are in tiles_kernels.py.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from tinynet.kernels.contract import implements
from tinynet.kernels.cpu import threads, tiles
from tinynet.kernels.cpu.program import ARRAYS, KEPT, SCRATCH, Prepared, compiled, lines, named
from tinynet.kernels.cpu.target import TARGET

CACHE = 1 << 19  # bytes: half of a second cache
A, B, C, *_ = ARRAYS  # where a call's arrays lie (program.Prepared)


def _side_by_side(m: np.ndarray, axis: int) -> bool:
    return m.strides[axis] == m.itemsize or m.shape[axis] == 1


def _turns(rows: int, columns: int, terms: int) -> bool:
    """Whether it pays to turn b: many rows share what is turned, and there are columns for all threads, or few terms for `dots`."""
    return rows > 8 and columns >= tiles.LEAST_LANES and (columns >= 32 or terms <= 32)


@implements("matmul", device="cpu", variant="simd", default=True)
def matmul(a, b, *, out):
    a, b, c = (m.reshape(-1, *m.shape[-2:]) if m.size else m.reshape(0, 1, 1) for m in (a, b, out))
    if c.size == 0 or a.size == 0:
        out[...] = 0  # no terms: every sum is empty
        return
    if _side_by_side(b, 1) and not _side_by_side(b, 2) or c.shape[2] < tiles.LEAST_LANES:
        a = a if _side_by_side(a, 2) else np.ascontiguousarray(a)
        b = b if _side_by_side(b, 1) else np.ascontiguousarray(b.swapaxes(1, 2)).swapaxes(1, 2)
        prepared = _turned if _turns(*c.shape[1:], a.shape[2]) else _dots
    else:
        b = b if _side_by_side(b, 2) else np.ascontiguousarray(b)
        prepared = _gemm
    prepared(c.shape, a.shape[2], a.strides, b.strides, c.dtype.type, threads.count())(a, b, c)


def _shares(batch: int, rows: int, columns: int, slots: int) -> tuple[int, int, int]:
    """(chunks, column shares, row shares): a piece of work for each thread, columns shared before rows."""
    chunks = min(batch, slots)
    wanted = -(-slots // chunks)
    across = max(1, min(wanted, columns))
    return chunks, across, max(1, min(-(-wanted // across), rows))


@lru_cache(KEPT)
def _gemm(shape, terms, a_strides, b_strides, dtype, slots) -> Prepared:
    batch, rows, columns = shape
    item = np.dtype(dtype).itemsize
    tile, blocks = tiles.best_blocks(rows, columns, terms, dtype)
    chunks, lanes = min(batch, 4 * slots), tile[1] * tile[2]
    piece = -(-columns // (-(-slots // chunks) * lanes)) * lanes  # a piece for each thread; narrower ones read and write short runs
    block = min(blocks["column_block"], piece)
    shares = max(1, min(-(-4 * slots // chunks), -(-columns // block)))
    numbers = dict(
        rows=rows, columns=columns, terms=terms, a=(A, 0, a_strides[0]), a_row=a_strides[1] // item, a_term=a_strides[2] // item,
        b=(B, 0, b_strides[0]), b_term=b_strides[1] // item, c=(C, 0, rows * columns * item), c_row=columns, **{**blocks, "column_block": block},
    )  # fmt: skip
    return Prepared([([named(compiled(tiles.gemm, *tile, dtype), tiles.GEMM, numbers)], batch, chunks, shares)], 0, dtype, 2 * batch * rows * columns * terms)


@lru_cache(KEPT)
def _dots(shape, terms, a_strides, b_strides, dtype, slots) -> Prepared:
    batch, rows, columns = shape
    item = np.dtype(dtype).itemsize
    high, wide = tiles.best_dots(rows, columns)
    chunks, across, down = _shares(batch, rows // high, columns // wide, slots)
    stay = max(high, CACHE // (terms * item) // high * high)
    numbers = dict(
        rows=rows, columns=columns, terms=terms, a=(A, 0, a_strides[0]), a_row=a_strides[1] // item, b=(B, 0, b_strides[0]), b_row=b_strides[2] // item,
        c=(C, 0, rows * columns * item), c_row=columns, stay=stay, row_shares=down,
    )  # fmt: skip
    kernel = compiled(tiles.dots, high, wide, max(TARGET.lanes(dtype), tiles.LEAST_LANES), dtype)
    return Prepared([([named(kernel, tiles.DOTS, numbers)], batch, chunks, across * down)], 0, dtype, 2 * batch * rows * columns * terms)


@lru_cache(KEPT)
def _turned(shape, terms, a_strides, b_strides, dtype, slots) -> Prepared:
    batch, rows, columns = shape
    item = np.dtype(dtype).itemsize
    high, vectors, w = tiles.best_gemm(rows, columns, terms, dtype)
    panel, chunks = lines(terms * vectors * w, dtype), min(batch, 4 * slots)
    numbers = dict(
        rows=rows, columns=columns, terms=terms, a=(A, 0, a_strides[0]), a_row=a_strides[1] // item, b=(B, 0, b_strides[0]), b_column=b_strides[2] // item,
        c=(C, 0, rows * columns * item), c_row=columns, panel=SCRATCH, panel_slot=panel * item,
    )  # fmt: skip
    kernel, shares = compiled(tiles.gemm_turned, high, vectors, w, dtype), max(1, min(-(-4 * slots // chunks), -(-columns // (vectors * w))))
    return Prepared([([named(kernel, tiles.GEMM, numbers)], batch, chunks, shares)], slots * panel, dtype, 2 * batch * rows * columns * terms)
