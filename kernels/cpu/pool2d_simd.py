"""Pooling as programs (program.py): the threads are our own, and a call is prepared once for its shapes.

Lanes run along memory: the channels of NHWC, a row of outputs of NCHW. Two kernels have windows and strides as constants,
so that every s-th number of a row is loaded as whole registers and shuffles; they take NCHW windows of up to 4 x 4 that lie
inside the image, which is nearly every pooling there is. The others read all that from their row.

The loops are those of pool2d.py, `loops`. Average-pooling is that of compiled networks (layers.py).
"""

from __future__ import annotations

import math
from functools import lru_cache
from math import prod

import numpy as np

from tinynet.geometry import nchw
from tinynet.kernels.contract import implements
from tinynet.kernels.cpu import layers, threads, tiles
from tinynet.kernels.cpu.images import shared
from tinynet.kernels.cpu.jit import inline
from tinynet.kernels.cpu.program import ARRAYS, KEPT, Prepared, compiled, fields, named, row
from tinynet.kernels.cpu.simd import add, divide, full, get, pointer, put, stores, strided, zeros
from tinynet.kernels.cpu.tiles import dividing, fitting, inside, zero

FIRST, SECOND, THIRD, _ = ARRAYS  # where a call's arrays lie (program.Prepared)
LARGEST = 4  # rows or columns of a window that is a constant, and steps between such windows


def small(x_shape, kernel_size, stride, padding, dilation, outputs, layout) -> bool:
    """Whether the kernels whose windows are constants take a pooling; float32 counts the places of a plane up to 2^24."""
    inside = all((o - 1) * s + e <= size for o, s, e, size in zip(outputs, stride, kernel_size, x_shape[2:]))
    return layout == "NCHW" and inside and not any(map(any, padding)) and max(dilation) == 1 and max(*kernel_size, *stride) <= LARGEST and prod(x_shape[2:]) < 1 << 24


def _planes(shape: tuple[int, ...], layout: str) -> tuple[int, int, int, int]:
    """(images, rows, columns, lanes): NCHW's planes are images of one channel."""
    n, c, h, w = nchw(shape, layout)
    return (n * c, h, w, 1) if layout == "NCHW" else (n, h, w, c)


# --- max-pooling -------------------------------------------------------------------------------------------

MAX = fields("x y argmax height width lanes rows columns kr kc sr sc dr dc top left")


@inline
def _keep_larger(value, place, y, argmax, at):
    """The contract's rule: a larger value, a first NaN or a first place at all replaces what is there."""
    old, found = get(y, at), get(argmax, at)
    better = (value > old) | ((value != value) & (old == old)) | (found < 0)
    put(y, at, value if better else old)
    put(argmax, at, place if better else found)


def max_pool_rows(T):
    """Any window of images whose channels lie side by side."""

    def kernel(row, image, slot, chunk, share, shares):
        height, width, lanes, rows, columns = get(row, MAX.height), get(row, MAX.width), get(row, MAX.lanes), get(row, MAX.rows), get(row, MAX.columns)
        kr, kc, sr, sc, dr, dc = get(row, MAX.kr), get(row, MAX.kc), get(row, MAX.sr), get(row, MAX.sc), get(row, MAX.dr), get(row, MAX.dc)
        x, y, argmax = pointer(get(row, MAX.x), T), pointer(get(row, MAX.y), T), pointer(get(row, MAX.argmax), np.int32)
        for i in range(rows * share // shares, rows * (share + 1) // shares):
            h = i * sr - get(row, MAX.top)
            u0, u1 = inside(h, dr, kr, height)
            for j in range(columns):
                l = j * sc - get(row, MAX.left)
                v0, v1 = inside(l, dc, kc, width)
                to = ((image * rows + i) * columns + j) * lanes
                for c in range(lanes):
                    put(y, to + c, T(-math.inf))
                    put(argmax, to + c, np.int32(-1))
                for u in range(u0, u1):
                    for v in range(v0, v1):
                        place = (h + u * dr) * width + l + v * dc
                        at = (image * height * width + place) * lanes
                        for c in range(lanes):
                            _keep_larger(get(x, at + c), np.int32(place), y, argmax, to + c)

    return kernel


def max_pool_planes(T):
    """Any window of planes."""

    def kernel(row, plane, slot, chunk, share, shares):
        height, width, rows, columns = get(row, MAX.height), get(row, MAX.width), get(row, MAX.rows), get(row, MAX.columns)
        kr, kc, sr, sc, dr, dc = get(row, MAX.kr), get(row, MAX.kc), get(row, MAX.sr), get(row, MAX.sc), get(row, MAX.dr), get(row, MAX.dc)
        x, y, argmax = pointer(get(row, MAX.x), T), pointer(get(row, MAX.y), T), pointer(get(row, MAX.argmax), np.int32)
        for i in range(rows * share // shares, rows * (share + 1) // shares):
            h = i * sr - get(row, MAX.top)
            u0, u1 = inside(h, dr, kr, height)
            to = (plane * rows + i) * columns
            for j in range(columns):
                put(y, to + j, T(-math.inf))
                put(argmax, to + j, np.int32(-1))
            for u in range(u0, u1):
                for v in range(kc):
                    offset = v * dc - get(row, MAX.left)
                    j0, j1 = inside(offset, sc, columns, width)
                    place = (h + u * dr) * width + offset
                    for j in range(j0, j1):
                        _keep_larger(get(x, plane * height * width + place + j * sc), np.int32(place + j * sc), y, argmax, to + j)

    return kernel


@implements("max_pool2d", device="cpu", variant="simd", default=True)
def max_pool2d(x, *, kernel_size, stride, padding, dilation, ceil_mode, layout, out):
    y, argmax = out
    call = _max_pool(x.shape, y.shape, kernel_size, stride, padding, dilation, layout, x.dtype.type, threads.count())
    call(np.ascontiguousarray(x), y, argmax)


@lru_cache(KEPT)
def _max_pool(x_shape, y_shape, kernel_size, stride, padding, dilation, layout, dtype, slots) -> Prepared:
    images, height, width, lanes = _planes(x_shape, layout)
    _, rows, columns, _ = _planes(y_shape, layout)
    if small(x_shape, kernel_size, stride, padding, dilation, (rows, columns), layout):
        kernel = row(compiled(tiles.max_pool, *kernel_size, *stride, fitting(columns, dtype), dtype), FIRST, SECOND, THIRD, height, width, rows, columns)
    else:
        (kr, kc), (sr, sc), (dr, dc), ((top, _), (left, _)) = kernel_size, stride, dilation, padding
        numbers = dict(x=FIRST, y=SECOND, argmax=THIRD, height=height, width=width, lanes=lanes, rows=rows, columns=columns, kr=kr, kc=kc, sr=sr, sc=sc, dr=dr, dc=dc, top=top, left=left)
        kernel = named(compiled(max_pool_planes if layout == "NCHW" else max_pool_rows, dtype), MAX, numbers)
    return Prepared([([kernel], images, *shared(images, rows))], 0, dtype, 4 * prod(y_shape) * prod(kernel_size))


SCATTER = fields("dy argmax dx outputs inputs lanes")


def scatter_plane(T):
    """dx[argmax[p]] += dy[p]."""

    def kernel(row, plane, slot, chunk, share, shares):
        outputs, inputs = get(row, SCATTER.outputs), get(row, SCATTER.inputs)
        dy, argmax, dx = pointer(get(row, SCATTER.dy), T), pointer(get(row, SCATTER.argmax), np.int32), pointer(get(row, SCATTER.dx), T)
        zero(dx, plane * inputs, inputs)
        for p in range(plane * outputs, (plane + 1) * outputs):
            place = get(argmax, p)
            if place >= 0:
                put(dx, plane * inputs + place, get(dx, plane * inputs + place) + get(dy, p))

    return kernel


def scatter_lanes(T):
    """The same of each channel of images whose channels lie side by side. Threads share the channels: windows may overlap."""

    def kernel(row, image, slot, chunk, share, shares):
        outputs, inputs, lanes = get(row, SCATTER.outputs), get(row, SCATTER.inputs), get(row, SCATTER.lanes)
        dy, argmax, dx = pointer(get(row, SCATTER.dy), T), pointer(get(row, SCATTER.argmax), np.int32), pointer(get(row, SCATTER.dx), T)
        begin, end = lanes * share // shares, lanes * (share + 1) // shares
        to = image * inputs * lanes
        for p in range(inputs):
            for c in range(begin, end):
                put(dx, to + p * lanes + c, T(0))
        for p in range(outputs):
            at = (image * outputs + p) * lanes
            for c in range(begin, end):
                place = get(argmax, at + c)
                if place >= 0:
                    into = to + place * lanes + c
                    put(dx, into, get(dx, into) + get(dy, at + c))

    return kernel


@implements("max_pool2d_dx", device="cpu", variant="simd", default=True)
def max_pool2d_dx(dy, argmax, *, x_shape, layout, out):
    call = _max_pool_gradient(dy.shape, out.shape, layout, out.dtype.type, threads.count())
    call(np.ascontiguousarray(dy), np.ascontiguousarray(argmax), out)


@lru_cache(KEPT)
def _max_pool_gradient(dy_shape, x_shape, layout, dtype, slots) -> Prepared:
    images, height, width, lanes = _planes(x_shape, layout)
    _, rows, columns, _ = _planes(dy_shape, layout)
    numbers = dict(dy=FIRST, argmax=SECOND, dx=THIRD, outputs=rows * columns, inputs=height * width, lanes=lanes)
    kernel = named(compiled(scatter_plane if layout == "NCHW" else scatter_lanes, dtype), SCATTER, numbers)
    return Prepared([([kernel], images, *shared(images, lanes))], 0, dtype, 2 * prod(x_shape) + 4 * prod(dy_shape))


# --- average-pooling ---------------------------------------------------------------------------------------------


def avg_pool(KR, KC, SR, SC, W, T):
    """The average of each KR x KC window of a plane; as tiles.max_pool."""
    COUNT = KR * KC

    def kernel(row, plane, slot, chunk, share, shares):
        x, y = pointer(get(row, 0), T), pointer(get(row, 1), T)
        height, width, rows, columns = get(row, 2), get(row, 3), get(row, 4), get(row, 5)
        xo, yo = plane * height * width, plane * rows * columns
        for i in range(rows * share // shares, rows * (share + 1) // shares):
            for j in range(0, columns, W):
                j = min(j, columns - W)
                first, total = xo + i * SR * width + j * SC, zeros(y, 1, W)
                for u in range(KR):
                    for v in range(KC):
                        total = add(total, strided(x, first + u * width + v, SC, W))
                stores(y, yo + i * columns + j, 1, 0, 1, 0, 1, W, divide(total, full(y, T(COUNT), 1, W)))

    return kernel


def _window(x_shape, y_shape, kernel_size, stride, padding, padded, layout) -> dict:
    """The numbers of a layers.POOL row that both directions have, with images where `x` and `y` are the outer and the inner side."""
    _, height, width, lanes = _planes(x_shape, layout)
    _, rows, columns, _ = _planes(y_shape, layout)
    (kr, kc), (sr, sc), ((top, bottom), (left, right)) = kernel_size, stride, padding
    return dict(
        rows=rows, columns=columns, lanes=lanes, height=height, width=width, kr=kr, kc=kc, sr=sr, sc=sc, dr=1, dc=1,
        top=top, left=left, bottom=bottom, right=right, average=layers.AVERAGE if padded else layers.AVERAGE_INSIDE,
    )  # fmt: skip


def _images(name: str, address: int, rows: int, columns: int, lanes: int, dtype) -> dict:
    """Contiguous images under a name of layers.POOL."""
    return {name: (address, 0, rows * columns * lanes * np.dtype(dtype).itemsize), f"{name}_y": columns * lanes, f"{name}_x": lanes}


@implements("avg_pool2d", device="cpu", variant="simd", default=True)
def avg_pool2d(x, *, kernel_size, stride, padding, ceil_mode, count_include_pad, layout, out):
    call = _avg_pool(x.shape, out.shape, kernel_size, stride, padding, count_include_pad, layout, x.dtype.type, threads.count())
    call(np.ascontiguousarray(x), out)


@lru_cache(KEPT)
def _avg_pool(x_shape, y_shape, kernel_size, stride, padding, padded, layout, dtype, slots) -> Prepared:
    images, *x = _planes(x_shape, layout)
    _, *y = _planes(y_shape, layout)
    if small(x_shape, kernel_size, stride, padding, (1, 1), y[:2], layout):
        kernel = row(compiled(avg_pool, *kernel_size, *stride, fitting(y[1], dtype), dtype), FIRST, SECOND, *x[:2], *y[:2])
    else:
        numbers = _window(x_shape, y_shape, kernel_size, stride, padding, padded, layout) | _images("x", FIRST, *x, dtype) | _images("y", SECOND, *y, dtype)
        kernel = named(compiled(layers.pool, fitting(x[2], dtype), dtype), layers.POOL, numbers)
    return Prepared([([kernel], images, *shared(images, y[0]))], 0, dtype, 2 * prod(y_shape) * prod(kernel_size))


@implements("avg_pool2d_dx", device="cpu", variant="simd", default=True)
def avg_pool2d_dx(dy, *, x_shape, kernel_size, stride, padding, ceil_mode, count_include_pad, layout, out):
    call = _avg_pool_gradient(dy.shape, out.shape, kernel_size, stride, padding, count_include_pad, layout, dy.dtype.type, threads.count())
    call(np.ascontiguousarray(dy), out)


@lru_cache(KEPT)
def _avg_pool_gradient(dy_shape, x_shape, kernel_size, stride, padding, padded, layout, dtype, slots) -> Prepared:
    images, *x = _planes(x_shape, layout)
    _, *y = _planes(dy_shape, layout)
    w = dividing(x[2], dtype)
    # The kernel looks at the pooled images to find a maximum; for an average any numbers will do.
    places = _images("dy", FIRST, *y, dtype) | _images("y", FIRST, *y, dtype) | _images("dx", SECOND, *x, dtype)
    numbers = _window(x_shape, dy_shape, kernel_size, stride, padding, padded, layout) | places
    return Prepared([([named(compiled(layers.pool_back, w, dtype), layers.POOL, numbers)], images, *shared(images, x[2] // w))], 0, dtype, 2 * prod(dy_shape) * prod(kernel_size))
