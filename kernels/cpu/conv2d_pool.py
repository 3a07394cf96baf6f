"""Convolution, bias, ReLU and max-pooling of 2 x 2 in one: of four sums in registers one number is stored, and which it was.

    apart    conv2d, ReLU and max-pooling one after the other: z is written, read and written, and read again
    simd     z never leaves the registers: a tile is two rows of it, of which one number of four is stored

The kernel (tiles_kernels.conv_pool) is the one that compiled networks run. Before bias and ReLU the largest is chosen: rounding
keeps the order of numbers, so it stays the largest. What it says of the winners, 0 to 3, or -1 where ReLU lets no gradient
pass, becomes places in z's plane: then the gradient at z is max-pooling's own (pool2d_simd.py).
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

import numpy as np

from tinynet.geometry import output_size, reach
from tinynet.kernels.contract import CONTRACTS, implements
from tinynet.kernels.cpu import threads, tiles
from tinynet.kernels.cpu.conv2d_simd import PLACES, conv2d, packed
from tinynet.kernels.cpu.images import Entering, Images, Leaving, shared, widened, with_lanes
from tinynet.kernels.cpu.program import ARRAYS, KEPT, SCRATCH, Prepared, compiled, lines, named
from tinynet.kernels.cpu.pool2d_simd import max_pool2d

X, WEIGHT, BIAS, Y, ARGMAX = ARRAYS  # where a call's arrays lie (program.Prepared)


@implements("conv2d_relu_max_pool2d", device="cpu", variant="apart")
def conv2d_relu_max_pool2d_apart(x, weight, bias, *, stride, padding, dilation, groups, layout, out):
    y, argmax = out
    window = dict(stride=stride, padding=padding, dilation=dilation, groups=groups, layout=layout)
    ((shape, dtype),) = CONTRACTS["conv2d"].spec(x, weight, bias, **window).outputs
    if y.size:
        z = np.empty(shape, dtype)
        conv2d(x, weight, bias, **window, out=z)
        np.maximum(z, 0, out=z)
        max_pool2d(z, kernel_size=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)), dilation=(1, 1), ceil_mode=False, layout=layout, out=out)
        argmax[~(y > 0)] = -1


@implements("conv2d_relu_max_pool2d", device="cpu", variant="simd", default=True)
def conv2d_relu_max_pool2d(x, weight, bias, *, stride, padding, dilation, groups, layout, out):
    y, argmax = out
    if y.size:
        call = _forward(x.shape, weight.shape, bias is not None, x.dtype.type, stride, padding, dilation, groups, layout, y.shape, threads.count())
        call(np.ascontiguousarray(x), np.ascontiguousarray(weight), with_lanes(bias, groups, widened(weight.shape[0] // groups)), y, argmax)


@lru_cache(KEPT)
def _forward(x_shape, weight_shape, biased, dtype, stride, padding, dilation, groups, layout, y_shape, slots) -> Prepared:
    k, c, kh, kw = weight_shape
    count, lanes = k // groups, widened(k // groups)
    x, y = Images(x_shape, layout, dtype, X), Images(y_shape, layout, dtype, Y)
    item, width = y.item, output_size(x.columns, kw, stride[1], dilation[1], padding[1])
    chunks, shares = shared(x.n, y.rows)
    (top, _), (left, right) = padding
    copy = Entering(x, 2 * stride[0], top, stride[0] + reach(kh, dilation[0]), (left, right), y.rows, shares, any(map(any, padding)))
    result = Leaving(y, groups, 1, y.rows, shares)
    # Winners lie as what the tile stores of y does: in a thread's own scratch memory, or image by image.
    winners = result.size * slots if result.apart else lines(x.n * y.image, dtype)
    base = SCRATCH
    target = base + slots * copy.slot
    chosen = target + slots * result.slot
    w = chosen + winners * item
    ix, flops = stride[1] * copy.column, 8 * x.n * y.rows * y.columns * prod(weight_shape)
    listed, step = tiles.listed(kh * kw, c), tiles.pixel_step(ix, flops)
    _, wide, vectors, W = tiles.best(2, 2 * y.columns, lanes, c * kh * kw, 1 if listed else kh * kw, dtype, True, step=step)
    panel = vectors * W
    first, steps = packed(weight_shape, groups, True, panel, WEIGHT, w, dtype)
    numbers = dict(
        outputs=y.rows, limit=y.rows, columns=y.columns, taps_a=kh, taps_b=kw, terms=c,
        ta=dilation[0] * copy.row, tb=dilation[1] * copy.column, tc=copy.channel, wa=kw * c * panel, wb=c * panel, **steps,
        iy=stride[0] * copy.row, ix=ix, groups=groups, lanes=lanes, x_group=c * copy.channel,
        x=copy.place(base), x_first=copy.first_row, w=w, bias=BIAS if biased else 0, relu=1,
        y=result.place(target), y_first=result.first_row, oy=result.row, ox=result.column, winner=(chosen, result.slot, result.image * item),
    )  # fmt: skip
    found = dict(
        rows=y.rows, columns=y.columns, groups=groups, count=count, lanes=lanes, width=width, x=(chosen, result.slot, result.image * item),
        x_row=result.row, x_first=result.first_row, y=(ARGMAX, 0, 4 * y.image), y_channel=y.channel, y_column=y.column,
    )  # fmt: skip
    numbers.update(tiles.Axis(-top, stride[0], dilation[0], kh, x.rows, 2 * y.rows).numbers("row"))
    places = lines(groups * steps["w_group"], dtype)
    numbers.update(places=(w + places * item, PLACES))
    kernel = named(compiled(tiles.conv_pool, wide // 2, vectors, W, step, listed, dtype), tiles.CONV, numbers)
    images = [*copy.rows_of(base, dtype), kernel, *result.rows_of(target, dtype), named(compiled(tiles.places, dtype), tiles.PLACES, found)]
    return Prepared([first, (images, x.n, chunks, shares)], slots * (copy.size + result.size) + winners + places + slots * PLACES // item, dtype, flops)
