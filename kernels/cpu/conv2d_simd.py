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
some outputs again. Groups of fewer than 4 output channels are widened to 4 lanes, with weights of 0 in the rest.

images.py has the copies that padding and layouts ask for. Next on the walk, and its end: tiles.py, the kernels
themselves.
"""

from __future__ import annotations

from math import ceil, gcd

import numpy as np

from tinynet.geometry import reach
from tinynet.kernels.contract import implements
from tinynet.kernels.cpu import threads, tiles
from tinynet.kernels.cpu.images import Entering, Images, Leaving, shared, widened
from tinynet.kernels.cpu.program import address_of, compiled, lines, named, row, run, scratch
from tinynet.kernels.cpu.tiles import Weights


# --- weights in the order in which a tile reads them ----------------------------------------------------


def laid(weight: np.ndarray, groups: int, forward: bool) -> np.ndarray:
    """(groups, taps, terms, lanes): out[g, t, c, k] = weight[g*K + k, c, t], or out[g, t, k, c] for the gradient of the images."""
    weight = np.ascontiguousarray(weight)
    k, c, kh, kw = weight.shape
    terms, count = (c, k // groups) if forward else (k // groups, c)
    out = np.empty((groups, kh * kw, terms, widened(count)), weight.dtype)
    steps = (kh * kw, c * kh * kw) if forward else (c * kh * kw, kh * kw)
    numbers = (kh * kw, terms, count, out.shape[3], address_of(weight), k // groups * c * kh * kw, *steps, address_of(out))
    run([row(compiled(tiles.lay, weight.dtype.type), *numbers)], groups * kh * kw, min(groups * kh * kw, 16) if weight.size > 4096 else 1)
    return out


# --- forward -----------------------------------------------------------------------------------------------


@implements("conv2d", device="cpu", variant="simd", default=True)
def conv2d(x, weight, bias, *, stride, padding, dilation, groups, layout, out):
    k, c, kh, kw = weight.shape
    dtype, lanes = x.dtype.type, widened(k // groups)
    x, y = Images(x := np.ascontiguousarray(x), layout), Images(out, layout)
    chunks, shares = shared(x.n, y.rows)
    (top, _), (left, right) = padding
    copy = Entering(x, stride[0], top, reach(kh, dilation[0]), (left, right), y.rows, shares, any(map(any, padding)))
    w = laid(weight, groups, forward=True)
    if bias is not None and lanes > k // groups:
        bias = np.pad(bias.reshape(groups, -1), ((0, 0), (0, lanes - k // groups)))
    if bias is not None:
        bias = np.ascontiguousarray(bias)

    result = Leaving(y, groups, 1, y.rows, shares)
    slots = threads.count()
    memory = scratch(slots * (copy.size + result.size), dtype)
    base = address_of(memory)
    target = base + slots * copy.slot
    tile = tiles.best(y.rows // shares, y.columns, lanes, c * kh * kw, kh * kw, dtype)
    ix = stride[1] * copy.column
    kernel = compiled(tiles.conv, *tile, tiles.pixel_step(ix, 2 * x.n * y.rows * y.columns * weight.size), dtype)
    numbers = dict(
        outputs=y.rows, limit=y.rows, columns=y.columns, taps_a=kh, taps_b=kw, terms=c,
        ta=dilation[0] * copy.row, tb=dilation[1] * copy.column, tc=copy.channel, wa=kw * c * lanes, wb=c * lanes, w_term=lanes,
        iy=stride[0] * copy.row, ix=ix, groups=groups, lanes=lanes, x_group=c * copy.channel, w_group=w[0].size,
        x=copy.place(base), x_first=copy.first_row, w=address_of(w), bias=0 if bias is None else address_of(bias),
        y=result.place(target), y_first=result.first_row, oy=result.row, ox=result.column,
    )  # fmt: skip
    run([*copy.rows_of(base, dtype), named(kernel, tiles.CONV, numbers), *result.rows_of(target, dtype)], x.n, chunks, shares)


# --- gradient of the images -----------------------------------------------------------------------------------


def phases(kernel: int, stride: int, dilation: int, before: int, size: int) -> list[tuple[int, ...]]:
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


def span(found) -> tuple[int, int]:
    """The least and the largest offset of any tap."""
    offsets = [offset - m * back for _, _, _, _, count, offset, back in found for m in (0, count - 1) if count]
    return (min(offsets), max(offsets)) if offsets else (0, 0)


@implements("conv2d_dx", device="cpu", variant="simd", default=True)
def conv2d_dx(dy, weight, *, x_shape, stride, padding, dilation, groups, layout, out):
    k, c, kh, kw = weight.shape
    dtype, lanes = dy.dtype.type, widened(c)
    dy, dx = Images(dy := np.ascontiguousarray(dy), layout), Images(out, layout)
    down, across = (phases(*axis) for axis in zip((kh, kw), stride, dilation, (padding[0][0], padding[1][0]), (dx.rows, dx.columns)))
    (up, low), (near, far) = span(down), span(across)
    rows = ceil(dx.rows / stride[0])  # of q, which parts share
    chunks, shares = shared(dy.n, rows)
    columns = ceil(dx.columns / stride[1])
    inside = up >= 0 and rows - 1 + low < dy.rows and near >= 0 and columns - 1 + far < dy.columns
    sides = (max(-near, 0), max(columns + far - dy.columns, 0))
    copy = Entering(dy, 1, -up, low - up + 1, sides, rows, shares, not inside)
    result = Leaving(dx, groups, stride[0], rows, shares)
    slots = threads.count()
    memory = scratch(slots * (copy.size + result.size), dtype)
    base = address_of(memory)
    target = base + slots * copy.slot

    terms = k // groups
    w = laid(weight, groups, forward=False)
    table = copy.rows_of(base, dtype)
    flops = 2 * dy.n * dy.rows * dy.columns * weight.size
    for phase, many, u, su, mu, offset, back in down:
        for side, wide, v, sv, mv, shift, aside in across:
            least = rows // shares if many == rows else 1
            tile = tiles.best(least, wide, lanes, terms * mu * mv, max(mu * mv, 1), dtype)
            start = (offset - up if copy.needed else offset) * copy.row + (shift + (sides[0] if copy.needed else 0)) * copy.column
            numbers = dict(
                outputs=rows, limit=many, columns=wide, taps_a=mu if mv else 0, taps_b=mv, terms=terms,
                ta=-back * copy.row, tb=-aside * copy.column, tc=copy.channel, wa=su * kw * terms * lanes, wb=sv * terms * lanes, w_term=lanes,
                iy=copy.row, ix=copy.column, groups=groups, lanes=lanes, x_group=terms * copy.channel, w_group=w[0].size,
                x=copy.place(base, start), x_first=copy.first_row, w=address_of(w) + (u * kw + v) * terms * lanes * dy.item,
                y=result.place(target, phase * result.row + side * result.column), y_first=result.first_row, oy=stride[0] * result.row, ox=stride[1] * result.column,
            )  # fmt: skip
            table.append(named(compiled(tiles.conv, *tile, tiles.pixel_step(copy.column, flops), dtype), tiles.CONV, numbers))
    run([*table, *result.rows_of(target, dtype)], dy.n, chunks, shares)


# --- gradient of the weights -------------------------------------------------------------------------------------

MOST_SUMS = 1 << 20  # elements of partial sums, over all chunks


@implements("conv2d_dw", device="cpu", variant="simd", default=True)
def conv2d_dw(dy, x, *, weight_shape, stride, padding, dilation, groups, layout, out):
    k, c, kh, kw = weight_shape
    dtype, lanes = x.dtype.type, widened(k // groups)
    dy, x = Images(dy := np.ascontiguousarray(dy), layout), Images(x := np.ascontiguousarray(x), layout)
    (top, _), (left, right) = padding
    copy = Entering(x, stride[0], top, reach(kh, dilation[0]), (left, right), dy.rows, 0, any(map(any, padding)))
    tile = Weights((kh, kw, c), (dilation[0] * copy.row, dilation[1] * copy.column, copy.channel), lanes, groups, dtype)
    # The chunks, and with them the order of every sum, depend on the shapes alone: not on the number of threads.
    chunks = max(1, min(dy.n, 8, MOST_SUMS // tile.size))
    shares = max(1, min(8 // chunks, tile.units))
    partial = np.zeros((chunks, tile.size), dtype)

    wide = lanes > k // groups
    pitch = groups * lanes  # from one pixel of dy to the next, as a tile reads it
    turned = lines(dy.rows * dy.columns * pitch, dtype) if dy.first or wide else 0
    slots = threads.count()
    memory = scratch(slots * (copy.size + turned), dtype)
    base = address_of(memory)
    target = base + slots * copy.slot
    table = copy.rows_of(base, dtype)
    if wide:
        table.append(row(compiled(tiles.turn_few, dtype), groups, k // groups, dy.rows * dy.columns, pitch, dy.address, dy.image, dy.channel, dy.column, target, turned * dy.item))
    elif dy.first:
        table.append(row(compiled(tiles.turn, dtype), dy.channels, dy.rows * dy.columns, dy.address, dy.image, dy.channel, target, turned * dy.item))
    numbers = dict(
        height=dy.rows, columns=dy.columns, **tile.numbers, iy=stride[0] * copy.row, ix=stride[1] * copy.column, gy=dy.columns * pitch, gx=pitch,
        groups=groups, lanes=lanes, x_group=c * copy.channel, x=copy.place(base), dy=(target, turned * dy.item, 0) if turned else (dy.address, 0, dy.image * dy.item),
        sums=address_of(partial), sums_chunk=tile.size * dy.item, block=tiles.rows_at_once(dy.rows, dy.columns, pitch + copy.column),
    )  # fmt: skip
    table.append(named(compiled(tiles.conv_dw, *tile.constants, dtype), tiles.DW, numbers))
    run(table, dy.n, chunks, shares)
    numbers = dict(x=address_of(partial), chunks=chunks, x_chunk=tile.size, count=k // groups, y=address_of(out), **tile.gathered)
    run([named(compiled(tiles.gather, tile.width, dtype), tiles.GATHER, numbers)], 1, 1, min(tile.units, 16))
