"""Matrix product on vector registers, in two forms; which one depends on how b lies in memory.

    gemm   b[t, :] side by side   acc[i, :] += a[i, t] * b[t, :]          lanes: columns of c
    dots   b[:, j] side by side   acc[i, j] += a[i, t..] * b[t.., j]      lanes: the terms, added up at the end

The three products of a dense layer need no copy of anything: its weights are (out, in), so the forward x @ W^T is
dots, and both gradients, dy @ W and dy^T @ x, are gemm, which reads `a` in any order, and goes over large matrices
in blocks (tiles.best_blocks). The kernels are in tiles.py.
"""

from __future__ import annotations

import numpy as np

from tinynet.kernels.contract import implements
from tinynet.kernels.cpu import threads, tiles
from tinynet.kernels.cpu.program import address_of, compiled, named, run
from tinynet.kernels.cpu.simd import TARGET

CACHE = 1 << 19  # bytes: half of a second cache


def _steps(m: np.ndarray) -> tuple[int, int, int]:
    """From one matrix of the batch, row or column to the next, in elements."""
    return tuple(s // m.itemsize for s in m.strides)


def _side_by_side(m: np.ndarray, axis: int) -> bool:
    return m.strides[axis] == m.itemsize or m.shape[axis] == 1


@implements("matmul", device="cpu", variant="simd", default=True)
def matmul(a, b, *, out):
    a, b, c = (m.reshape(-1, *m.shape[-2:]) if m.size else m.reshape(0, 1, 1) for m in (a, b, out))
    if c.size == 0 or a.size == 0:
        out[...] = 0  # no terms: every sum is empty
    elif _side_by_side(b, 1) and not _side_by_side(b, 2) or c.shape[2] < tiles.LEAST_LANES:
        _dots(a if _side_by_side(a, 2) else np.ascontiguousarray(a), b if _side_by_side(b, 1) else np.ascontiguousarray(b.swapaxes(1, 2)).swapaxes(1, 2), c)
    else:
        _gemm(a, b if _side_by_side(b, 2) else np.ascontiguousarray(b), c)


def _shares(batch: int, rows: int, columns: int) -> tuple[int, int, int]:
    """(chunks, column shares, row shares): a piece of work for each thread, columns shared before rows."""
    pieces = threads.count()
    chunks = min(batch, pieces)
    wanted = -(-pieces // chunks)
    across = max(1, min(wanted, columns))
    return chunks, across, max(1, min(-(-wanted // across), rows))


def _gemm(a, b, c):
    batch, rows, columns = c.shape
    terms, dtype = a.shape[2], c.dtype.type
    tile, blocks = tiles.best_blocks(rows, columns, terms, dtype)
    (a_batch, a_row, a_term), (b_batch, b_term, _) = _steps(a), _steps(b)
    numbers = dict(
        rows=rows, columns=columns, terms=terms, a=(address_of(a), 0, a_batch * c.itemsize), a_row=a_row, a_term=a_term,
        b=(address_of(b), 0, b_batch * c.itemsize), b_term=b_term, c=(address_of(c), 0, rows * columns * c.itemsize), c_row=columns, **blocks,
    )  # fmt: skip
    chunks = min(batch, 4 * threads.count())
    shares = max(1, min(-(-4 * threads.count() // chunks), -(-columns // blocks["column_block"])))
    run([named(compiled(tiles.gemm, *tile, dtype), tiles.GEMM, numbers)], batch, chunks, shares)


def _dots(a, b, c):
    batch, rows, columns = c.shape
    terms, dtype = a.shape[2], c.dtype.type
    high, wide = tiles.best_dots(rows, columns)
    chunks, across, down = _shares(batch, rows // high, columns // wide)
    (a_batch, a_row, _), (b_batch, _, b_row) = _steps(a), _steps(b)
    stay = max(high, CACHE // (terms * c.itemsize) // high * high)
    numbers = dict(
        rows=rows, columns=columns, terms=terms, a=(address_of(a), 0, a_batch * c.itemsize), a_row=a_row, b=(address_of(b), 0, b_batch * c.itemsize), b_row=b_row,
        c=(address_of(c), 0, rows * columns * c.itemsize), c_row=columns, stay=stay, row_shares=down,
    )  # fmt: skip
    run([named(compiled(tiles.dots, high, wide, max(TARGET.lanes(dtype), tiles.LEAST_LANES), dtype), tiles.DOTS, numbers)], batch, chunks, across * down)
