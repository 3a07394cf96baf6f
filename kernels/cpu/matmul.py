"""Matrix product on the CPU, in two forms; which one depends on how b lies in memory.

The variants are `loops`, here, and `simd` (matmul_simd.py), the default. `loops`, as in conv2d.py: the innermost
loop runs along memory and takes several terms at a time.

    b[t, :] contiguous   c[i, :] += a[i, t] * b[t, :]       lanes: columns j; two rows, four t at a time
    b[:, j] contiguous   c[i, j]  = a[i, :] . b[:, j]       lanes: t; 2 x 4 dot products side by side

The second is a dense layer's forward, whose weights are (out, in): no transposed copy is made.
Blocks are sized so that the part of b in use stays in the L2 cache while the rows of a pass by.
"""

from __future__ import annotations

from numba import prange

from tinynet.kernels.contract import implements
from tinynet.kernels.cpu.jit import inline, parallel, parallel_dot, readable

COLUMNS = 256  # of b in one block
TERMS = 128  # rows of b in one block: 128 * 256 floats are 128 KiB
ROWS = 32  # of a in one task


@inline
def _add_block(a, b, c, i0, i1, t0, t1, j0, j1):
    for i in range(i0, i1, 2):
        pair = i + 1 < i1
        x, y = a[i], a[i + 1] if pair else a[i]
        p, q = c[i, j0:j1], c[i + 1, j0:j1] if pair else c[i, j0:j1]
        t = t0
        while t + 4 <= t1:
            b0, b1, b2, b3 = b[t, j0:j1], b[t + 1, j0:j1], b[t + 2, j0:j1], b[t + 3, j0:j1]
            x0, x1, x2, x3 = x[t], x[t + 1], x[t + 2], x[t + 3]
            if pair:
                y0, y1, y2, y3 = y[t], y[t + 1], y[t + 2], y[t + 3]
                for j in range(j1 - j0):
                    p[j] = p[j] + x0 * b0[j] + x1 * b1[j] + x2 * b2[j] + x3 * b3[j]
                    q[j] = q[j] + y0 * b0[j] + y1 * b1[j] + y2 * b2[j] + y3 * b3[j]
            else:
                for j in range(j1 - j0):
                    p[j] = p[j] + x0 * b0[j] + x1 * b1[j] + x2 * b2[j] + x3 * b3[j]
            t += 4
        while t < t1:
            b0, x0, y0 = b[t, j0:j1], x[t], y[t]
            for j in range(j1 - j0):
                p[j] += x0 * b0[j]
            if pair:
                for j in range(j1 - j0):
                    q[j] += y0 * b0[j]
            t += 1


@parallel
def _along_columns(a, b, c):
    batch, rows, columns = c.shape
    terms = a.shape[2]
    row_blocks, column_blocks = (rows + ROWS - 1) // ROWS, (columns + COLUMNS - 1) // COLUMNS
    for task in prange(batch * row_blocks * column_blocks):
        m = task // (row_blocks * column_blocks)
        i0 = task % row_blocks * ROWS
        j0 = task // row_blocks % column_blocks * COLUMNS
        i1, j1 = min(i0 + ROWS, rows), min(j0 + COLUMNS, columns)
        c[m, i0:i1, j0:j1] = 0
        for t0 in range(0, terms, TERMS):
            _add_block(a[m], b[m], c[m], i0, i1, t0, min(t0 + TERMS, terms), j0, j1)


@parallel_dot
def _along_terms(a, b, c):
    """b is given transposed: (batch, columns, terms)."""
    batch, rows, columns = c.shape
    terms = a.shape[2]
    column_blocks = (columns + 3) // 4
    zero = c.dtype.type(0)
    for task in prange(batch * column_blocks):
        m, j = task // column_blocks, task % column_blocks * 4
        # past the last column, the last one is computed again
        j1, j2, j3 = min(j + 1, columns - 1), min(j + 2, columns - 1), min(j + 3, columns - 1)
        w0, w1, w2, w3 = b[m, j], b[m, j1], b[m, j2], b[m, j3]
        for i in range(0, rows, 2):
            below = min(i + 1, rows - 1)
            x, y = a[m, i], a[m, below]
            p0, p1, p2, p3, q0, q1, q2, q3 = zero, zero, zero, zero, zero, zero, zero, zero
            for t in range(terms):
                p0 += x[t] * w0[t]
                p1 += x[t] * w1[t]
                p2 += x[t] * w2[t]
                p3 += x[t] * w3[t]
                q0 += y[t] * w0[t]
                q1 += y[t] * w1[t]
                q2 += y[t] * w2[t]
                q3 += y[t] * w3[t]
            c[m, i, j], c[m, i, j1], c[m, i, j2], c[m, i, j3] = p0, p1, p2, p3
            c[m, below, j], c[m, below, j1], c[m, below, j2], c[m, below, j3] = q0, q1, q2, q3


@implements("matmul", device="cpu", variant="loops")
def matmul(a, b, *, out):
    a, b, c = (m.reshape(-1, *m.shape[-2:]) if m.size else m.reshape(0, 1, 1) for m in (a, b, out))
    if c.size == 0 or a.size == 0:
        out[...] = 0  # no terms: every sum is empty
    elif b.swapaxes(1, 2).flags.c_contiguous and not b.flags.c_contiguous:
        _along_terms(readable(a), readable(b.swapaxes(1, 2)), c)
    else:
        _along_columns(readable(a), readable(b), c)
