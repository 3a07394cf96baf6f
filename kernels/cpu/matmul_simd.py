"""Matrix product on vector registers, in three forms; which one depends on the rows of c, and on how b lies in memory.

    gemm          few rows, b[t, :] side by side    acc[i, :] += a[i, t] * b[t, :]          lanes: columns of c
    dots          few rows, b[:, j] side by side    acc[i, j] += a[i, t..] * b[t.., j]      lanes: the terms, added up at the end
    gemm_packed   many rows                         as gemm, on blocks of b that are packed first, in the order in which they are read

The three products of a dense layer need no copy of a whole matrix: its weights are (out, in), so b[:, j] lie side by side in the
forward pass x @ W^T, and b[t, :] in both gradients, dy @ W and dy^T @ x. Few rows are a matter of memory, which gemm and dots read
once, in long runs; with many rows packing costs little beside what it spares. The three products of a layer of 4096 to 1024
features reach 83, 80 and 83 % of the peak on 128 images and two cores of Zen 4, where `loops` reaches 48, 30 and 32 % (medians of three
runs of `tinynet bench kernels --networks tensorflow --batch-sizes 128 --only matmul`). The kernels are in product_kernels.py, their blocks in tiles.py.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from tinynet.kernels.contract import implements
from tinynet.kernels.cpu import threads, tiles
from tinynet.kernels.cpu.program import ARRAYS, KEPT, SCRATCH, WORTH_THREADS, Prepared, compiled, lines, named
from tinynet.kernels.cpu.target import TARGET

CACHE = 1 << 19  # bytes: half of a second cache
A, B, C, *_ = ARRAYS  # where a call's arrays lie (program.Prepared)


def _side_by_side(m: np.ndarray, axis: int) -> bool:
    return m.strides[axis] == m.itemsize or m.shape[axis] == 1


@implements("matmul", device="cpu", variant="simd", default=True)
def matmul(a, b, *, out):
    if out.ndim == 2:
        a, b, c = a[None], b[None], out[None]
    else:
        a, b, c = (m.reshape(-1, *m.shape[-2:]) if m.size else m.reshape(0, 1, 1) for m in (a, b, out))
    if c.size == 0 or a.size == 0:
        out[...] = 0  # no terms: every sum is empty
        return
    if _side_by_side(b, 1) and not _side_by_side(b, 2) or c.shape[2] < tiles.LEAST_LANES:
        a = a if _side_by_side(a, 2) else np.ascontiguousarray(a)
        b = b if _side_by_side(b, 1) else np.ascontiguousarray(b.swapaxes(1, 2)).swapaxes(1, 2)
        prepared = _packed if tiles.turned_is_packed(*c.shape[1:], a.shape[2]) else _dots
    else:
        b = b if _side_by_side(b, 2) else np.ascontiguousarray(b)
        prepared = _packed if tiles.is_packed(*c.shape[1:], a.shape[2], c.dtype) else _gemm
    prepared(c.shape, a.shape[2], a.strides, b.strides, c.dtype.type, threads.count())(a, b, c)


def _shares(batch: int, rows: int, columns: int, slots: int, work: int) -> tuple[int, int, int]:
    """(chunks, column shares, row shares): a piece of work for each thread, or four where they are worth it: then none waits for long for
    one that was held up. Columns are shared before rows."""
    chunks, a_thread = min(batch, slots), max(1, min(4, work // (slots * WORTH_THREADS // 2)))
    wanted = -(-slots * a_thread // chunks)
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
    chunks, across, down = _shares(batch, rows // high, columns // wide, slots, 2 * batch * rows * columns * terms)
    stay = max(high, CACHE // (terms * item) // high * high)
    numbers = dict(
        rows=rows, columns=columns, terms=terms, a=(A, 0, a_strides[0]), a_row=a_strides[1] // item, b=(B, 0, b_strides[0]), b_row=b_strides[2] // item,
        c=(C, 0, rows * columns * item), c_row=columns, stay=stay, row_shares=down,
    )  # fmt: skip
    kernel = compiled(tiles.dots, high, wide, max(TARGET.lanes(dtype), tiles.LEAST_LANES), dtype)
    return Prepared([([named(kernel, tiles.DOTS, numbers)], batch, chunks, across * down)], 0, dtype, 2 * batch * rows * columns * terms)


@lru_cache(KEPT)
def _packed(shape, terms, a_strides, b_strides, dtype, slots) -> Prepared:
    batch, rows, columns = shape
    item = np.dtype(dtype).itemsize
    a_row, a_term = (step // item for step in a_strides[1:])
    b_term, b_column = (step // item for step in b_strides[1:])
    tile, blocks, size = tiles.best_packed(rows, columns, terms, dtype, slots, a_term != 1, b_term == 1)
    work, chunks = lines(size, dtype), min(batch, 4 * slots)
    numbers = dict(
        rows=rows, columns=columns, terms=terms, a=(A, 0, a_strides[0]), a_row=a_row, a_term=a_term, b=(B, 0, b_strides[0]), b_term=b_term, b_column=b_column,
        c=(C, 0, rows * columns * item), c_row=columns, panel=SCRATCH, panel_slot=work * item, **blocks,
    )  # fmt: skip
    units = -(-rows // blocks["row_block"]) * -(-columns // blocks["column_block"])
    phase = [named(compiled(tiles.gemm_packed, *tile, dtype), tiles.GEMM, numbers)], batch, chunks, max(1, min(-(-8 * slots // chunks), units))
    return Prepared([phase], slots * work, dtype, 2 * batch * rows * columns * terms)
