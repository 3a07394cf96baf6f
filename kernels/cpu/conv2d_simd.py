"""Convolution on vector registers (simd.py): one tile of outputs is held in registers from its first term to its last.

    acc[i, j, :] += x[i, j] * weight[term, :]       lanes: output channels; a tile: rows x columns x channels

One kernel does the forward pass and the images' gradient: both are sums over taps (a, b) and channels c of

    y[i*oy + j*ox + o] = sum of x[i*iy + j*ix + a*ta + b*tb + c*tc] * w[(a, b, c), o]

in which stride, dilation and layout are nothing but steps through memory. So images are read where they lie, NCHW or
NHWC; only padding asks for a copy, of the rows that a thread is about to read. The gradient of a convolution of stride s is
s*s such sums of stride 1, one for each phase of the input's rows and columns, with the taps that meet that phase.

The weights' gradient holds a tile of weights in registers instead, channels of x times channels of dy:

    acc[c, :] += x[pixel, c] * dy[pixel, :]

Nothing is left over at the end of a row or of the channels: the last tile is moved back until it fits, and computes
some outputs again. What needs less than 4 lanes (fewer output channels in a group) is left to `loops`, which
conv2d.py holds; `takes` below says so.

Next on the walk, and its end: tiles.py, the kernels themselves.
"""

from __future__ import annotations

from math import ceil, gcd, prod

import numba
import numpy as np
from numba import prange

from tinynet.geometry import nchw, reach
from tinynet.kernels.contract import implements
from tinynet.kernels.cpu import conv2d as loops
from tinynet.kernels.cpu import tiles
from tinynet.kernels.cpu.jit import parallel, readable
from tinynet.kernels.cpu.program import address_of, compiled, lines, row, run, scratch

FEWEST = 4  # lanes that are worth a vector


def takes(lanes: int) -> bool:
    """Does a group of so many output channels fill a vector?"""
    return lanes >= FEWEST


# --- images in memory ----------------------------------------------------------------------------------


class Images:
    """A batch of images as steps through memory, in elements: from one image, row, column or channel to the next."""

    def __init__(self, array: np.ndarray, layout: str):
        self.array = array  # kept: an address alone holds no memory
        self.address, self.item = address_of(array), array.itemsize
        self.n, self.channels, self.rows, self.columns = nchw(array.shape, layout)
        self.image = self.channels * self.rows * self.columns
        self.first = layout == "NCHW"
        self.row, self.column, self.channel = (self.columns, 1, self.rows * self.columns) if self.first else (self.columns * self.channels, self.channels, 1)


def shared(images: int, rows: int) -> tuple[int, int]:
    """(chunks, shares): several pieces of work for each thread; an image's rows are shared where there are few images."""
    wanted = 4 * numba.get_num_threads() if numba.get_num_threads() > 1 else 1
    chunks = min(images, wanted)
    return chunks, max(1, min(rows, wanted // max(chunks, 1) if chunks < wanted else 1))


class _Copy:
    """The rows that one part needs, with their padding around them, in scratch memory; or the images as they lie."""

    def __init__(self, x: Images, step: int, top: int, count: int, sides: tuple[int, int], rows: int, shares: int, needed: bool):
        """Output row i reads `count` rows from i*step - top on; `sides`: columns of padding; `rows`: outputs of an image.
        shares: 0 if every part needs the whole image."""
        self.x, self.needed, self.step = x, needed, step
        if not needed:
            self.image, self.row, self.column, self.channel = x.image, x.row, x.column, x.channel
            self.part, self.first_row, self.size = 0, step * x.row, 0
            return
        most = (ceil(rows / max(shares, 1)) - 1) * step + count  # rows in the largest share
        width = sides[0] + x.columns + sides[1]
        self.column, self.row, self.channel = (1, width, most * width) if x.first else (x.channels, width * x.channels, 1)
        self.image = self.first_row = 0  # scratch begins at the share's own first row
        self.size = lines(most * width * x.channels, f"f{x.item}")
        self.part = self.size * x.item
        planes, run_, wide = (x.channels, x.columns, 1) if x.first else (1, x.columns * x.channels, x.channels)
        self.numbers = (x.image, planes, x.channel if x.first else 0, x.rows, x.row, run_, sides[0] * wide, sides[1] * wide, rows, step, top, count, self.channel if x.first else 0, self.row)
        self.whole = not shares

    def rows_of(self, base: int, dtype) -> list[list[int]]:
        return [row(compiled(tiles.enter, dtype), self.x.address, *self.numbers, base, self.part, self.whole)] if self.needed else []

    def source(self, base: int) -> int:
        return base if self.needed else self.x.address


# --- weights in the order in which a tile reads them ----------------------------------------------------


@parallel
def _lay(weight, order, forward, out):
    """out[g, t, c, k] = weight[g*K + k, c, order[t]], or out[g, t, k, c] for the gradient of the images."""
    groups, taps, terms, lanes = out.shape
    for task in prange(groups * taps):
        g, t = task // taps, task % taps
        for a in range(terms):
            for b in range(lanes):
                out[g, t, a, b] = weight[g * lanes + b, a, order[t]] if forward else weight[g * terms + a, b, order[t]]


def laid(weight: np.ndarray, groups: int, order, forward: bool) -> np.ndarray:
    """(groups, taps, terms, lanes)"""
    k, c, kh, kw = weight.shape
    terms, lanes = (c, k // groups) if forward else (k // groups, c)
    out = np.empty((groups, kh * kw, terms, lanes), weight.dtype)
    _lay(readable(weight.reshape(k, c, kh * kw)), readable(np.asarray(order, np.int64)), forward, out)
    return out


# --- forward -----------------------------------------------------------------------------------------------


@implements("conv2d", device="cpu", variant="simd", default=True)
def conv2d(x, weight, bias, *, stride, padding, dilation, groups, layout, out):
    k, c, kh, kw = weight.shape
    if not takes(k // groups):
        return loops.conv2d(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups, layout=layout, out=out)
    dtype = x.dtype.type
    x, y = Images(x := np.ascontiguousarray(x), layout), Images(out, layout)
    chunks, shares = shared(x.n, y.rows)
    (top, _), (left, right) = padding
    copy = _Copy(x, stride[0], top, reach(kh, dilation[0]), (left, right), y.rows, shares, any(map(any, padding)))
    w = laid(weight, groups, range(kh * kw), forward=True)
    bias = np.ascontiguousarray(bias) if bias is not None else None

    result = _Result(y, 1, y.rows, shares)
    memory = scratch(chunks * shares * (copy.size + result.size), dtype)
    base = address_of(memory)
    target = base + chunks * shares * copy.part
    tile = tiles.best(y.rows // shares, y.columns, k // groups, c * kh * kw, kh * kw, dtype)
    steps = (dilation[0] * copy.row, dilation[1] * copy.column, copy.channel, stride[0] * copy.row, stride[1] * copy.column)
    run(
        [
            *copy.rows_of(base, dtype),
            row(
                compiled(tiles.conv, *tile, dtype), y.rows, y.rows, y.columns, kh, kw, c, *steps, result.row, result.column, groups, k // groups, c * copy.channel,
                w.shape[3], w[0].size, copy.source(base), copy.part, copy.image, copy.first_row, address_of(w), 0 if bias is None else address_of(bias),
                result.target(target), result.part, result.image, result.first_row,
            ),  # fmt: skip
            *result.rows_of(target, dtype),
        ],
        x.n, chunks, shares,
    )  # fmt: skip


class _Result:
    """Where a tile stores its outputs, whose channels lie side by side: in NHWC images themselves; for NCHW in scratch
    memory, from which they are transposed. `step` rows of the result belong to one row that parts share."""

    def __init__(self, y: Images, step: int, rows: int, shares: int):
        self.y, self.step, self.rows = y, step, rows
        self.column, self.row = y.channels, y.columns * y.channels
        self.image, self.part, self.size = (0, 0, 0) if y.first else (y.image, 0, 0)
        if y.first:
            self.size = lines(ceil(rows / shares) * step * self.row, f"f{y.item}")
            self.part = self.size * y.item

    def target(self, base: int) -> int:
        return base if self.y.first else self.y.address

    @property
    def first_row(self) -> int:
        return 0 if self.y.first else self.step * self.row

    def rows_of(self, base: int, dtype) -> list[list[int]]:
        y = self.y
        if not y.first:
            return []
        return [row(compiled(tiles.leave, dtype), self.rows, self.step, y.rows, y.columns, y.channels, base, self.part, y.address, y.image, y.channel)]


# --- gradient of the images -----------------------------------------------------------------------------------


def phases(kernel: int, stride: int, dilation: int, before: int, size: int) -> list[tuple[int, int, int, int, int, int]]:
    """For each phase h = q*stride + phase of one axis: (phase, how many q, first tap, step of taps, how many, offset, step back).

    The tap first + m*step meets output q + offset - m*back:  h + before - tap*dilation = output * stride.
    """
    found = []
    every = stride // gcd(stride, dilation)
    for phase in range(min(stride, size)):
        count = ceil((size - phase) / stride)
        met = [u for u in range(kernel) if (phase + before - u * dilation) % stride == 0]
        first = met[0] if met else 0
        found.append((phase, count, first, every, len(met), (phase + before - first * dilation) // stride, every * dilation // stride))
    return found


def _span(found) -> tuple[int, int]:
    """The least and the largest offset of any tap."""
    offsets = [offset - m * back for _, _, _, _, count, offset, back in found for m in (0, count - 1) if count]
    return (min(offsets), max(offsets)) if offsets else (0, 0)


@implements("conv2d_dx", device="cpu", variant="simd", default=True)
def conv2d_dx(dy, weight, *, x_shape, stride, padding, dilation, groups, layout, out):
    k, c, kh, kw = weight.shape
    if not takes(c):
        return loops.conv2d_dx(dy, weight, x_shape=x_shape, stride=stride, padding=padding, dilation=dilation, groups=groups, layout=layout, out=out)
    dtype = dy.dtype.type
    dy, dx = Images(dy := np.ascontiguousarray(dy), layout), Images(out, layout)
    down, across = (phases(*axis) for axis in zip((kh, kw), stride, dilation, (padding[0][0], padding[1][0]), (dx.rows, dx.columns)))
    (up, low), (near, far) = _span(down), _span(across)
    rows = ceil(dx.rows / stride[0])  # of q, which parts share
    chunks, shares = shared(dy.n, rows)
    columns = ceil(dx.columns / stride[1])
    inside = up >= 0 and rows - 1 + low < dy.rows and near >= 0 and columns - 1 + far < dy.columns
    sides = (max(-near, 0), max(columns + far - dy.columns, 0))
    copy = _Copy(dy, 1, -up, low - up + 1, sides, rows, shares, not inside)
    result = _Result(dx, stride[0], rows, shares)
    memory = scratch(chunks * shares * (copy.size + result.size), dtype)
    base = address_of(memory)
    target = base + chunks * shares * copy.part

    order = [(u + m * su) * kw + v + n * sv for _, _, u, su, mu, _, _ in down for _, _, v, sv, mv, _, _ in across for m in range(mu) for n in range(mv)]
    missing = sorted(set(range(kh * kw)) - set(order))  # taps that meet no phase: the image has fewer rows than the stride
    w = laid(weight, groups, order + missing, forward=False)
    table, before = copy.rows_of(base, dtype), 0
    for phase, many, _, _, mu, offset, back in down:
        for side, wide, _, _, mv, shift, aside in across:
            least = rows // shares if many == rows else 1
            tile = tiles.best(least, wide, c, k // groups * mu * mv, max(mu * mv, 1), dtype)
            start = (offset - up if copy.needed else offset) * copy.row + (shift + (sides[0] if copy.needed else 0)) * copy.column
            table.append(
                row(
                    compiled(tiles.conv, *tile, dtype), rows, many, wide, mu if mv else 0, mv, k // groups,
                    -back * copy.row, -aside * copy.column, copy.channel, copy.row, copy.column,
                    stride[0] * result.row, stride[1] * result.column, groups, c, k // groups * copy.channel, c, w[0].size,
                    copy.source(base) + start * dy.item, copy.part, copy.image, copy.first_row, address_of(w) + before * k // groups * c * dy.item, 0,
                    result.target(target) + (phase * result.row + side * result.column) * dy.item, result.part, result.image, result.first_row,
                )
            )  # fmt: skip
            before += mu * mv
    run([*table, *result.rows_of(target, dtype)], dy.n, chunks, shares)


# --- gradient of the weights -------------------------------------------------------------------------------------

MOST_SUMS = 1 << 20  # elements of partial sums, over all chunks


@parallel
def _gather(partial, chunks, lanes, length, vectors, run_length, out):
    """Adds the chunks' sums, and puts each where its weight is.

    partial: (chunks, groups, lane blocks, outer taps, inner taps, blocks of the run, run_length, vectors)
    out: (K, outer taps, inner taps, length), as strides of the weight's gradient.
    """
    k_all, outer, inner, _ = out.shape
    groups, lane_blocks, run_blocks = partial.shape[1], partial.shape[2], partial.shape[5]
    for task in prange(k_all):
        g, k = task // lanes, task % lanes
        ob = min(k // vectors, lane_blocks - 1)
        lane = k - min(ob * vectors, lanes - vectors)
        for a in range(outer):
            for b in range(inner):
                for t in range(length):
                    jb = min(t // run_length, run_blocks - 1)
                    j = t - min(jb * run_length, length - run_length)
                    total = partial[0, g, ob, a, b, jb, j, lane]
                    for chunk in range(1, chunks):
                        total += partial[chunk, g, ob, a, b, jb, j, lane]
                    out[task, a, b, t] = total


@implements("conv2d_dw", device="cpu", variant="simd", default=True)
def conv2d_dw(dy, x, *, weight_shape, stride, padding, dilation, groups, layout, out):
    k, c, kh, kw = weight_shape
    if not takes(k // groups):
        return loops.conv2d_dw(dy, x, weight_shape=weight_shape, stride=stride, padding=padding, dilation=dilation, groups=groups, layout=layout, out=out)
    dtype = x.dtype.type
    dy, x = Images(dy := np.ascontiguousarray(dy), layout), Images(x := np.ascontiguousarray(x), layout)
    (top, _), (left, right) = padding
    copy = _Copy(x, stride[0], top, reach(kh, dilation[0]), (left, right), dy.rows, 0, any(map(any, padding)))
    # A tile's rows run along the channels; where there are fewer of them than taps in a row, along the taps.
    taps = (kh, dilation[0] * copy.row), (kw, dilation[1] * copy.column), (c, copy.channel)
    (outer, ta), (inner, tb), (length, tj) = taps if c >= kw else (taps[0], taps[2], taps[1])
    high, vectors, w = tiles.best_dw(length, k // groups, dtype)
    lane_blocks, run_blocks = ceil(k // groups / (vectors * w)), ceil(length / high)
    shape = (groups, lane_blocks, outer, inner, run_blocks, high, vectors * w)
    # The chunks, and with them the order of every sum, depend on the shapes alone: not on the number of threads.
    chunks = max(1, min(dy.n, 8, MOST_SUMS // prod(shape)))
    shares = max(1, min(8 // chunks, prod(shape[:5])))
    partial = np.zeros((chunks, *shape), dtype)

    turned = lines(dy.image, dtype) if dy.first else 0
    memory = scratch(chunks * shares * (copy.size + turned), dtype)
    base = address_of(memory)
    target = base + chunks * shares * copy.part
    table = copy.rows_of(base, dtype)
    if dy.first:
        table.append(row(compiled(tiles.turn, dtype), dy.channels, dy.rows * dy.columns, dy.address, dy.image, dy.channel, target, turned * dy.item))
    rows = max(1, min(dy.rows, max(ceil(64 / dy.columns), 5000 // max(1, dy.columns * (k + copy.column)))))
    table.append(
        row(
            compiled(tiles.conv_dw, high, vectors, w, dtype), dy.rows, dy.columns, outer, inner, length, ta, tb, tj, stride[0] * copy.row, stride[1] * copy.column,
            dy.columns * k, k, groups, k // groups, c * copy.channel, copy.source(base), copy.part, copy.image,
            target if dy.first else dy.address, turned * dy.item, 0 if dy.first else dy.image, address_of(partial), prod(shape) * dy.item, rows,
        )
    )  # fmt: skip
    run(table, dy.n, chunks, shares)
    by_run = out.transpose(0, 2, 3, 1) if c >= kw else out.transpose(0, 2, 1, 3)
    _gather(partial, chunks, k // groups, length, vectors * w, high, by_run)
