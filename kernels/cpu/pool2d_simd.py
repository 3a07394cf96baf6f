"""Pooling as programs (program.py): the threads are our own, and a call is prepared once for its shapes.

Lanes run along memory: the channels of NHWC, a row of outputs of NCHW. Two kernels have windows and strides as constants,
so that every s-th number of a row is loaded as whole registers and shuffles; they take NCHW windows of up to 4 x 4 that lie
inside the image, which is nearly every pooling there is. The others read all that from their row, and where windows reach over
the image read a copy with padding around it; averages are sums along rows of sums along columns, so that a 7 x 7 window costs
14 additions. The kernels' code is in pool_kernels.py.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, prod

import numpy as np

from tinynet.geometry import nchw
from tinynet.kernels.contract import implements
from tinynet.kernels.cpu import layers, threads
from tinynet.kernels.cpu.images import shared
from tinynet.kernels.cpu.program import ARRAYS, KEPT, SCRATCH, Prepared, compiled, lines, named, row
from tinynet.kernels.cpu.rows import kernels_in
from tinynet.kernels.cpu.tiles import fitting

max_pool, avg_pool, max_pool_rows, maxima, scatter_plane, scatter_lanes, averages, averages_back = kernels_in(
    "pool_kernels", "max_pool avg_pool max_pool_rows maxima scatter_plane scatter_lanes averages averages_back"
)
FIRST, SECOND, THIRD, *_ = ARRAYS  # where a call's arrays lie (program.Prepared)
COUNTED = 1 << 24  # how far float32 counts: places in a window
AT_ONCE = 4  # windows whose maxima are sought side by side: each comparison waits for the one before
LARGEST = 4  # rows or columns of a window that is a constant, and steps between such windows


def small(x_shape, kernel_size, stride, padding, dilation, outputs, layout) -> bool:
    """Whether the kernels whose windows are constants take a pooling."""
    inside = all((o - 1) * s + e <= size for o, s, e, size in zip(outputs, stride, kernel_size, x_shape[2:]))
    return layout == "NCHW" and inside and not any(map(any, padding)) and max(dilation) == 1 and max(*kernel_size, *stride) <= LARGEST and LARGEST * x_shape[3] < COUNTED


def _planes(shape: tuple[int, ...], layout: str) -> tuple[int, int, int, int]:
    """(images, rows, columns, lanes): NCHW's planes are images of one channel."""
    n, c, h, w = nchw(shape, layout)
    return (n * c, h, w, 1) if layout == "NCHW" else (n, h, w, c)


def _fitting(lanes: int, dtype) -> int:
    """Lanes of a vector; 2 where there are 2 or 3, for a comparison of single numbers is a jump, and no one can say where to."""
    return max(fitting(lanes, dtype), min(lanes, 2))


def _step(lanes: int, columns: int) -> int:
    """The step between a row's windows, if they can be taken as one run of numbers, whatever the channels; else 0."""
    return columns if columns == 1 or lanes == 1 and columns <= LARGEST else 0


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
    (kr, kc), (sr, sc), (dr, dc), ((top, _), (left, _)) = kernel_size, stride, dilation, padding
    flops, item = 4 * prod(y_shape) * prod(kernel_size), np.dtype(dtype).itemsize
    if small(x_shape, kernel_size, stride, padding, dilation, (rows, columns), layout):
        kernel = row(compiled(max_pool, kr, kc, sr, sc, _fitting(columns, dtype), dtype), FIRST, SECOND, THIRD, height, width, rows, columns)
        return Prepared([([kernel], images, *shared(images, rows))], 0, dtype, flops)
    numbers = dict(x=FIRST, y=SECOND, argmax=THIRD, height=height, width=width, lanes=lanes, rows=rows, columns=columns, kr=kr, kc=kc, sr=sr, sc=sc, dr=dr, dc=dc, top=top, left=left)
    if (kr * dr + 1) * width + kc * dc >= COUNTED:
        return Prepared([([named(compiled(max_pool_rows, dtype), layers.MAX_POOL, numbers)], images, *shared(images, rows))], 0, dtype, flops)
    step = _step(lanes, sc)
    reached = (columns - 1) * sc + (kc - 1) * dc + 1  # columns, from the padding on
    line, wide = lines(columns * lanes, dtype), max(reached, left + width) * lanes if left or reached > width else 0
    work = 2 * line + lines(kr * wide, dtype)
    together = AT_ONCE if not step and columns >= AT_ONCE else 1
    kernel = compiled(maxima, step, together, _fitting(columns * lanes if step else lanes, dtype), dtype)
    numbers.update(work=SCRATCH, work_slot=work * item, line=line * item, wide=wide)
    return Prepared([([named(kernel, layers.MAX_POOL, numbers)], images, *shared(images, rows))], slots * work, dtype, flops)


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


@implements("avg_pool2d", device="cpu", variant="simd", default=True)
def avg_pool2d(x, *, kernel_size, stride, padding, ceil_mode, count_include_pad, layout, out):
    call = _avg_pool(x.shape, out.shape, kernel_size, stride, padding, count_include_pad, layout, x.dtype.type, threads.count())
    call(np.ascontiguousarray(x), out)


@lru_cache(KEPT)
def _avg_pool(x_shape, y_shape, kernel_size, stride, padding, padded, layout, dtype, slots) -> Prepared:
    images, height, width, _ = _planes(x_shape, layout)
    _, rows, columns, _ = _planes(y_shape, layout)
    if not small(x_shape, kernel_size, stride, padding, (1, 1), (rows, columns), layout):
        return _averages(x_shape, y_shape, kernel_size, stride, padding, padded, layout, dtype, False, slots)
    kernel = row(compiled(avg_pool, *kernel_size, *stride, fitting(columns, dtype), dtype), FIRST, SECOND, height, width, rows, columns)
    return Prepared([([kernel], images, *shared(images, rows))], 0, dtype, 2 * prod(y_shape) * prod(kernel_size))


@implements("avg_pool2d_dx", device="cpu", variant="simd", default=True)
def avg_pool2d_dx(dy, *, x_shape, kernel_size, stride, padding, ceil_mode, count_include_pad, layout, out):
    call = _averages(out.shape, dy.shape, kernel_size, stride, padding, count_include_pad, layout, dy.dtype.type, True, threads.count())
    call(out, np.ascontiguousarray(dy))


@lru_cache(KEPT)
def _averages(x_shape, y_shape, kernel_size, stride, padding, padded, layout, dtype, back, slots) -> Prepared:
    images, height, width, lanes = _planes(x_shape, layout)
    _, rows, columns, _ = _planes(y_shape, layout)
    (kr, kc), (sr, sc), ((top, bottom), (left, right)) = kernel_size, stride, padding
    step = _step(lanes, sc)
    whole = ceil((left + width) / sc)  # columns of sc pixels, from the padding on
    counts = lines(columns * lanes, dtype)
    if back:
        runs = step == 0 and fitting(lanes, dtype) == 1
        wide = ((kc - 1) // sc + max(whole, columns)) * lanes
        run = whole * step if step > 1 else whole * lanes if runs else 0  # a row of pixels before it is cut out, or those of one place in a stride
        v = fitting(whole if step > 1 else width * lanes if step else run if runs else lanes, dtype)
        kernel = compiled(averages_back, step, kc % step if step > 1 else 0, int(runs), fitting(columns * lanes, dtype), v, dtype)
    else:
        wide, run = max((columns - 1) * sc + kc, left + width) * lanes, 0
        kernel = compiled(averages, step, fitting(width * lanes, dtype), fitting(columns * lanes if step else lanes, dtype), dtype)
    work, item = counts + lines(wide + run, dtype), np.dtype(dtype).itemsize
    numbers = dict(
        x=FIRST, y=SECOND, height=height, width=width, lanes=lanes, rows=rows, columns=columns, kr=kr, kc=kc, sr=sr, sc=sc, top=top, left=left, bottom=bottom, right=right,
        average=layers.AVERAGE if padded else layers.AVERAGE_INSIDE, work=SCRATCH, work_slot=work * item, line=counts * item, wide=wide,
    )  # fmt: skip
    return Prepared([([named(kernel, layers.AVERAGES, numbers)], images, *shared(images, height if back else rows))], slots * work, dtype, 2 * prod(y_shape) * prod(kernel_size))
