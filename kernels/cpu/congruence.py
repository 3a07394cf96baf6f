"""A small constant matrix times a tile times the matrix again, unrolled into few operations: Winograd's transforms.

`of_images = congruence({4: matrix})` makes an operation for a kernel: `of_images(tile, 4)` is matrix @ tile @ matrix.T, the
tile's registers taken as a square. `from_left` makes half of one: matrix @ tile, of as many columns as are asked for. Most of
these matrices' entries are 0, 1 and -1, and their columns come in pairs that differ only in signs, which is what makes
Winograd's algorithm pay (tiles_winograd.py).
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic

from tinynet.kernels.cpu.vectors import constant, multiply_add, packed, parts_of


def _weighted(builder, factors, xs):
    """The sum of factors[i] * xs[i]. Zeros cost nothing, and factors of 1 and -1 no multiplication."""
    total = None
    for c, x in sorted(((c, x) for c, x in zip(factors, xs) if c), key=lambda term: (abs(term[0]) != 1, term[0] < 0)):
        factor = ir.Constant(x.type, [float(c)] * x.type.count)
        if total is None:
            total = x if c == 1 else builder.fmul(x, factor)
        else:
            total = builder.fadd(total, x) if c == 1 else builder.fsub(total, x) if c == -1 else multiply_add(builder, x, factor, total)
    return total


def _halves(x, y):
    """(x where it equals y, x where it is -y; each 0 elsewhere); None unless every number of x is one of these, and both occur."""
    same, unlike = ([a if a == s * b else 0 for a, b in zip(x, y)] for s in (1, -1))
    return (same, unlike) if list(map(abs, x)) == list(map(abs, y)) and any(same) and any(unlike) else None


def _product(builder, matrix, xs) -> list:
    """matrix @ xs in few operations. Where two columns differ only in signs, x + x' and x - x' take the places of x and x';
    rows that differ only in signs are the sum and the difference of the same two halves."""
    columns, xs = list(zip(*matrix)), list(xs)
    for i in range(len(columns)):
        for j in range(i):
            if found := _halves(columns[j], columns[i]):
                columns[j], columns[i] = found
                xs[j], xs[i] = builder.fadd(xs[j], xs[i]), builder.fsub(xs[j], xs[i])
    rows = list(zip(*columns))
    out = [None] * len(rows)
    for i, row in enumerate(rows):
        for k in range(i + 1, len(rows)):
            if out[i] is None and (found := _halves(row, rows[k])):
                even, odd = found
                scale = min(abs(c) for c in odd if c)
                halves = _weighted(builder, even, xs), _weighted(builder, [c / scale for c in odd], xs)
                out[i], out[k] = (_weighted(builder, (1, s * scale), halves) for s in (1, -1))
        if out[i] is None:
            out[i] = _weighted(builder, row, xs)
    return out


def congruence(matrices: dict):
    """An operation on tiles: matrix @ tile @ matrix.T, the tile's registers taken as a square and the matrix as matrices[key].

    Unrolled for that matrix: few and small operations are left of it. key: a constant of the kernel.
    """

    @intrinsic(prefer_literal=True)
    def transformed(typing, tile, key):
        matrix = matrices[constant(key, "key")]
        rows, columns = len(matrix), len(matrix[0])
        if tile.count != columns**2:
            raise TypingError(f"congruence: a matrix of {rows} x {columns} transforms {columns**2} registers; got {tile.count}")
        found = types.UniTuple(tile.dtype, rows**2)

        def generate(context, builder, signature, arguments):
            xs = parts_of(builder, arguments[0])
            half = [_product(builder, matrix, xs[j::columns]) for j in range(columns)]  # half[j][i]
            return packed(builder, [y for i in range(rows) for y in _product(builder, matrix, [h[i] for h in half])])

        return found(tile, key), generate

    return transformed


def from_left(matrices: dict):
    """An operation on tiles of n columns: matrix @ tile, with matrices[key]; n and key: constants of the kernel."""

    @intrinsic(prefer_literal=True)
    def transformed(typing, tile, key, n):
        matrix, columns = matrices[constant(key, "key")], constant(n, "n")
        if tile.count != len(matrix[0]) * columns:
            raise TypingError(f"from_left: a matrix of {len(matrix)} x {len(matrix[0])} transforms {columns} columns of {len(matrix[0])} registers; got {tile.count}")

        def generate(context, builder, signature, arguments):
            xs = parts_of(builder, arguments[0])
            each = [_product(builder, matrix, xs[j::columns]) for j in range(columns)]
            return packed(builder, [y for row in zip(*each) for y in row])

        return types.UniTuple(tile.dtype, len(matrix) * columns)(tile, key, n), generate

    return transformed
