"""Sums of many numbers on a GPU: conv2d_db, and the second half of sums that other kernels split among blocks (sums.cu).

How a sum is split depends on shapes alone, never on the GPU: equal inputs give equal bits, wherever they run.
"""

from __future__ import annotations

from pathlib import Path

from tinynet.geometry import nchw
from tinynet.kernels.cuda.both import implements_on_both
from tinynet.kernels.cuda.launch import REALS, empty, in_elements, kernel, real, strides_of

FILE = Path(__file__).with_suffix(".cu")
ENOUGH_BLOCKS = 256  # a large GPU has half as many multiprocessors: with fewer blocks some would stand idle
LEAST_PLACES = 1024  # that a block adds up: 4 of each thread


def units():
    """All that can be compiled of sums.cu: macros, and the threads in a block of each kernel."""
    for number in REALS.values():
        yield {"REAL": number}, {"conv2d_db_direct": 256, "conv2d_db_parts": 256, "add_parts": 256}


def occupancy_rows() -> list[tuple[str, str, dict, int]]:
    """What docs/cuda.md shows of them: title, kernel, macros, threads in a block."""
    return [(f"{title}, float", name, {"REAL": "float"}, 256) for title, name in (("conv2d_db direct", "conv2d_db_direct"), ("conv2d_db parts", "conv2d_db_parts"), ("add_parts", "add_parts"))]


def split_of(terms: int, step: int, blocks: int, least: int) -> tuple[int, int]:
    """(parts, terms of a part, a multiple of `step`) of a sum that so many blocks compute: more parts where blocks are few."""
    parts = max(1, min(ENOUGH_BLOCKS // blocks, terms // least))
    each = -(-terms // (parts * step)) * step
    return -(-terms // each), each


def add_parts(parts, out, turned: tuple[int, int] = (1, 1)) -> None:
    """out = parts[0] + parts[1] + ..., always in the same order. `turned`: each part is rows of (b, a) numbers where out has (a, b)."""
    run = kernel(out, FILE, "add_parts", REAL=REALS[out.dtype])
    run((-(-out.size // 32),), (32, 8), (parts, len(parts), out.size, *turned, out))


def _db(variant: str, dy, layout: str, out) -> None:
    number = real("conv2d_db", out.dtype)
    images, channels, rows, columns = nchw(dy.shape, layout)
    if images == 0:
        out[...] = 0  # no terms: every sum is empty
        return
    dy = in_elements(dy)
    places = images * rows * columns
    arguments = (dy, *nchw(strides_of(dy), layout), channels, places, rows, columns)
    if variant == "direct":
        kernel(out, FILE, "conv2d_db_direct", REAL=number)((-(-channels // 256),), (256,), (*arguments, out))
        return
    last = dy.strides[3 if layout == "NHWC" else 1] == dy.itemsize and channels > 1  # channels lie side by side
    across = -(-channels // 32) if last else channels
    each = max(-(-places // max(1, ENOUGH_BLOCKS // across)), LEAST_PLACES // 32 if last else LEAST_PLACES)
    count = -(-places // each)
    parts = empty(out, count, channels) if count > 1 else out
    kernel(out, FILE, "conv2d_db_parts", REAL=number)((across * count,), (32, 8), (*arguments, each, int(last), parts))
    if count > 1:
        add_parts(parts, out)


@implements_on_both("conv2d_db", variant="direct")
def conv2d_db_direct(dy, *, layout, out):
    _db("direct", dy, layout, out)


@implements_on_both("conv2d_db", variant="parts", default=True)
def conv2d_db_parts(dy, *, layout, out):
    _db("parts", dy, layout, out)
