"""Pooling as programs (program.py): the threads are our own, and a call is prepared once for its shapes.

Lanes run along memory: the channels of NHWC, a row of outputs of NCHW. Two kernels have windows and strides as constants,
so that every s-th number of a row is loaded as whole registers and shuffles; they take NCHW windows of up to 4 x 4 that lie
inside the image, which is nearly every pooling there is. The others read all that from their row.

The loops are those of pool2d.py, `loops`; the kernels' code is in pool_kernels.py, and what average-pooling shares with
compiled networks in layers_kernels.py.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

import numpy as np

from tinynet.geometry import nchw
from tinynet.kernels.contract import implements
from tinynet.kernels.cpu import layers, threads
from tinynet.kernels.cpu.images import shared
from tinynet.kernels.cpu.program import ARRAYS, KEPT, Prepared, compiled, named, row
from tinynet.kernels.cpu.rows import kernels_in
from tinynet.kernels.cpu.tiles import dividing, fitting

max_pool, avg_pool, max_pool_rows, max_pool_planes, scatter_plane, scatter_lanes = kernels_in(
    "pool_kernels", "max_pool avg_pool max_pool_rows max_pool_planes scatter_plane scatter_lanes"
)
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
        kernel = row(compiled(max_pool, *kernel_size, *stride, fitting(columns, dtype), dtype), FIRST, SECOND, THIRD, height, width, rows, columns)
    else:
        (kr, kc), (sr, sc), (dr, dc), ((top, _), (left, _)) = kernel_size, stride, dilation, padding
        numbers = dict(x=FIRST, y=SECOND, argmax=THIRD, height=height, width=width, lanes=lanes, rows=rows, columns=columns, kr=kr, kc=kc, sr=sr, sc=sc, dr=dr, dc=dc, top=top, left=left)
        kernel = named(compiled(max_pool_planes if layout == "NCHW" else max_pool_rows, dtype), layers.MAX_POOL, numbers)
    return Prepared([([kernel], images, *shared(images, rows))], 0, dtype, 4 * prod(y_shape) * prod(kernel_size))


@implements("max_pool2d_dx", device="cpu", variant="simd", default=True)
def max_pool2d_dx(dy, argmax, *, x_shape, layout, out):
    call = _max_pool_gradient(dy.shape, out.shape, layout, out.dtype.type, threads.count())
    call(np.ascontiguousarray(dy), np.ascontiguousarray(argmax), out)


@lru_cache(KEPT)
def _max_pool_gradient(dy_shape, x_shape, layout, dtype, slots) -> Prepared:
    images, height, width, lanes = _planes(x_shape, layout)
    _, rows, columns, _ = _planes(dy_shape, layout)
    numbers = dict(dy=FIRST, argmax=SECOND, dx=THIRD, outputs=rows * columns, inputs=height * width, lanes=lanes)
    kernel = named(compiled(scatter_plane if layout == "NCHW" else scatter_lanes, dtype), layers.SCATTER, numbers)
    return Prepared([([kernel], images, *shared(images, lanes))], 0, dtype, 2 * prod(x_shape) + 4 * prod(dy_shape))


# --- average-pooling ---------------------------------------------------------------------------------------------


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
