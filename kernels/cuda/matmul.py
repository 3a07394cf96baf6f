"""Matrix product on a GPU: who launches what of matmul.cu, which tells the story of its variants.

An operand lies in memory as it pleases, and comes with its strides. What the fast variants ask is which of its axes lies
side by side, and whether all rows start at multiples of 16 bytes: then they read four numbers at a time, else one.
Copied is only what no stride can say: a batch of several axes that is no regular walk through memory, and numbers that
don't lie at multiples of their size.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np

from tinynet.kernels.cuda.both import implements_on_both
from tinynet.kernels.cuda.launch import REALS, address, empty, in_elements, kernel, real, strides_of
from tinynet.kernels.cuda.sums import add_parts, split_of

FILE = Path(__file__).with_suffix(".cu")
ENOUGH_BLOCKS = 128  # as many multiprocessors as a large GPU has: with fewer blocks of 128 x 128 some would stand idle
LEAST_TERMS = 128  # of a sum that is split, in each part


def _operand(m):
    """A batch of matrices, (batch, rows, columns), of which every element is a whole number of elements from the first."""
    return in_elements(m.reshape(-1, *m.shape[-2:]))


def _launch(variant: str, a, b, parts, block: tuple[int, int], high: int, wide: int, *split: int, **defines) -> None:
    """One launch with a block for each `high` x `wide` elements of a matrix of each part."""
    count, batch, rows, columns = parts.shape
    blocks = batch * -(-rows // high) * -(-columns // wide)
    run = kernel(parts, FILE, f"matmul_{variant}", **defines)
    run((blocks, count), block, (a, *strides_of(a), b, *strides_of(b), parts, rows, columns, a.shape[2], *split))


def _fast(variant: str, a, b, c) -> None:
    """By vectors or async: where blocks are few and terms many, in parts that are added up."""
    tile = tile_of(c.shape)
    batch, rows, columns = c.shape
    count, each = split_of(a.shape[2], 8, batch * -(-rows // tile) * -(-columns // tile), LEAST_TERMS)
    parts = empty(c, count, *c.shape) if count > 1 else c[None]
    _launch(variant, a, b, parts, (tile // 8, tile // 8), tile, tile, each, c.size, TILE=tile, **form_of(a, b, parts[0]))
    if count > 1:
        add_parts(parts, c)


def units():
    """All that can be compiled of matmul.cu: macros, and the threads in a block of each kernel."""
    for number in REALS.values():
        yield {"REAL": number}, {"matmul_naive": 256, "matmul_tiles": 256, "matmul_registers": 256}
    for tile, wide, a, b in product((128, 64), (1, 0), (1, 0), (0, 1)):
        yield dict(TILE=tile, A_ALONG_TERMS=a, B_ALONG_TERMS=b, WIDE=wide), {"matmul_vectors": (tile // 8) ** 2, "matmul_async": (tile // 8) ** 2}


def occupancy_rows() -> list[tuple[str, str, dict, int]]:
    """What docs/cuda.md shows of them: title, kernel, macros, threads in a block."""
    simple = [(f"matmul {kernel}, {number}", f"matmul_{kernel}", {"REAL": number}, 256) for kernel, number in (("naive", "float"), ("tiles", "float"), ("registers", "float"), ("registers", "double"))]
    form = dict(A_ALONG_TERMS=1, B_ALONG_TERMS=0, WIDE=1)  # both by rows
    return simple + [(f"matmul {kernel}, {tile} x {tile}", f"matmul_{kernel}", dict(TILE=tile, **form), (tile // 8) ** 2) for kernel in ("vectors", "async") for tile in (128, 64)]


def _matmul(variant: str, a, b, out) -> None:
    number = real("matmul", out.dtype)
    if out.size == 0 or a.shape[-1] == 0:
        out[...] = 0  # no terms: every sum is empty
        return
    a, b, c = _operand(a), _operand(b), out.reshape(-1, *out.shape[-2:])
    if variant == "naive":
        _launch(variant, a, b, c[None], (32, 8), 8, 32, REAL=number)
    elif variant == "tiles":
        _launch(variant, a, b, c[None], (16, 16), 16, 16, REAL=number)
    elif variant == "registers" or out.dtype == np.float64:  # the simple variants do float64
        _launch("registers", a, b, c[None], (16, 16), 64, 64, REAL=number)
    else:
        _fast(variant, a, b, c)


def tile_of(shape: tuple[int, int, int]) -> int:
    """Rows and columns of a block of the fast variants: the larger ones read less, if they are enough to go round."""
    batch, rows, columns = shape
    return 128 if batch * -(-rows // 128) * -(-columns // 128) >= ENOUGH_BLOCKS else 64


def form_of(a, b, c) -> dict[str, int]:
    """The macros of matmul.cu that say how the operands lie."""
    a_side, b_side = a.strides[2] == a.itemsize, b.strides[2] == b.itemsize
    a_terms, b_terms = int(a_side or a.strides[1] != a.itemsize), int(not b_side and b.strides[1] == b.itemsize)
    wide = _by_four(a, 2 if a_terms else 1) and _by_four(b, 1 if b_terms else 2) and c.shape[2] % 4 == 0 and address(c) % 16 == 0
    return dict(A_ALONG_TERMS=a_terms, B_ALONG_TERMS=b_terms, WIDE=int(wide))


def _by_four(m, axis: int) -> bool:
    """Whether four numbers along `axis` lie at a multiple of 16 bytes wherever their place is a multiple of four."""
    others = [m.strides[i] for i in range(3) if i != axis and m.shape[i] > 1]
    return m.strides[axis] == m.itemsize and not any(n % 16 for n in (address(m), *others))


@implements_on_both("matmul", variant="naive")
def matmul_naive(a, b, *, out):
    _matmul("naive", a, b, out)


@implements_on_both("matmul", variant="tiles")
def matmul_tiles(a, b, *, out):
    _matmul("tiles", a, b, out)


@implements_on_both("matmul", variant="registers")
def matmul_registers(a, b, *, out):
    _matmul("registers", a, b, out)


@implements_on_both("matmul", variant="vectors", default=True)
def matmul_vectors(a, b, *, out):
    _matmul("vectors", a, b, out)


@implements_on_both("matmul", variant="async")
def matmul_async(a, b, *, out):
    _matmul("async", a, b, out)
