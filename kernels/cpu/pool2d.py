"""Pooling on the CPU. The variants are `loops`, here, and `simd`, programs of much the same loops (pool2d_simd.py).

`loops`: one tap of the window at a time, the innermost loop along memory.

NCHW: a plane (one channel of one image) is one task, lanes run along the row of outputs.
NHWC: a row of outputs is one task, lanes run along the channels.
Both compare without branches, so that the loop over the lanes becomes vector code.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from tinynet.geometry import nchw
from tinynet.kernels.contract import implements
from tinynet.kernels.cpu.jit import inline, parallel, readable


@inline
def _inside(first, step, count, size):
    """Of the places first, first + step, ...: the first and the last + 1 that lie in 0 ... size - 1."""
    low = 0 if first >= 0 else (-first + step - 1) // step
    return low, max(low, min(count, (size - first + step - 1) // step))


@inline
def _keep_larger(value, place, best, argmax, index):
    """The rule of the contract: a larger value, a first NaN or a first place at all replaces what is there."""
    old = best[index]
    better = (value > old) | ((value != value) & (old == old)) | (argmax[index] < 0)
    best[index] = value if better else old
    argmax[index] = place if better else argmax[index]


# --- max-pooling -------------------------------------------------------------------------------------


@parallel
def _max_planes(x, kernel, stride, dilation, top, left, y, argmax):
    planes, h, w = x.shape
    _, rows, columns = y.shape
    for plane in prange(planes):
        for i in range(rows):
            best, arg = y[plane, i], argmax[plane, i]
            best[:] = -np.inf
            arg[:] = -1
            start = i * stride[0] - top
            u0, u1 = _inside(start, dilation[0], kernel[0], h)
            for u in range(u0, u1):
                row = start + u * dilation[0]
                line = x[plane, row]
                for v in range(kernel[1]):
                    offset = v * dilation[1] - left
                    j0, j1 = _inside(offset, stride[1], columns, w)
                    for j in range(j0, j1):
                        column = j * stride[1] + offset
                        _keep_larger(line[column], np.int32(row * w + column), best, arg, j)


@parallel
def _max_rows(x, kernel, stride, dilation, top, left, y, argmax):
    _, h, w, channels = x.shape
    n, rows, columns, _ = y.shape
    for task in prange(n * rows):
        image, i = task // rows, task % rows
        start = i * stride[0] - top
        u0, u1 = _inside(start, dilation[0], kernel[0], h)
        for j in range(columns):
            best, arg = y[image, i, j], argmax[image, i, j]
            best[:] = -np.inf
            arg[:] = -1
            begin = j * stride[1] - left
            v0, v1 = _inside(begin, dilation[1], kernel[1], w)
            for u in range(u0, u1):
                row = start + u * dilation[0]
                for v in range(v0, v1):
                    column = begin + v * dilation[1]
                    pixel = x[image, row, column]
                    place = np.int32(row * w + column)
                    for c in range(channels):
                        _keep_larger(pixel[c], place, best, arg, c)


@implements("max_pool2d", device="cpu", variant="loops")
def max_pool2d(x, *, kernel_size, stride, padding, dilation, ceil_mode, layout, out):
    y, argmax = out
    (top, _), (left, _) = padding
    if layout == "NCHW":
        _max_planes(readable(x).reshape(-1, *x.shape[2:]), kernel_size, stride, dilation, top, left, y.reshape(-1, *y.shape[2:]), argmax.reshape(-1, *y.shape[2:]))
    else:
        _max_rows(readable(x), kernel_size, stride, dilation, top, left, y, argmax)


@parallel
def _scatter_planes(dy, argmax, dx):
    for plane in prange(dx.shape[0]):
        dx[plane, :] = 0
        for p in range(dy.shape[1]):
            place = argmax[plane, p]
            if place >= 0:
                dx[plane, place] += dy[plane, p]


@parallel
def _scatter_images(dy, argmax, dx):
    channels = dx.shape[2]
    for image in prange(dx.shape[0]):
        dx[image, :, :] = 0
        for p in range(dy.shape[1]):
            for c in range(channels):
                place = argmax[image, p, c]
                if place >= 0:
                    dx[image, place, c] += dy[image, p, c]


@implements("max_pool2d_dx", device="cpu", variant="loops")
def max_pool2d_dx(dy, argmax, *, x_shape, layout, out):
    n, c, h, w = nchw(x_shape, layout)
    _, _, i, j = nchw(dy.shape, layout)
    if layout == "NCHW":
        _scatter_planes(readable(dy).reshape(n * c, i * j), readable(argmax).reshape(n * c, i * j), out.reshape(n * c, h * w))
    else:
        _scatter_images(readable(dy).reshape(n, i * j, c), readable(argmax).reshape(n, i * j, c), out.reshape(n, h * w, c))


# --- average-pooling ---------------------------------------------------------------------------------


@inline
def _places(first, size, before, after, kernel, padded):
    """Along one axis: how many places of a window count, in the padded image or in the image itself."""
    if padded:
        return min(first + kernel, size + after) - max(first, -before)
    return max(min(first + kernel, size) - max(first, 0), 0)


@inline
def _shares(outputs, size, before, after, kernel, stride, padded, out):
    for i in range(outputs):
        out[i] = _places(i * stride - before, size, before, after, kernel, padded)


@parallel
def _average(x, kernel, stride, padding, padded, y):
    """Arrays of (tasks, rows, columns, lanes); lanes is 1 for NCHW, the channels for NHWC."""
    _, h, w, lanes = x.shape
    tasks, rows, columns, _ = y.shape
    (top, bottom), (left, right) = padding
    for task in prange(tasks):
        high, wide = np.empty(rows, np.int64), np.empty(columns, np.int64)
        _shares(rows, h, top, bottom, kernel[0], stride[0], padded, high)
        _shares(columns, w, left, right, kernel[1], stride[1], padded, wide)
        for i in range(rows):
            for j in range(columns):
                total = y[task, i, j]
                total[:] = 0
                start, begin = i * stride[0] - top, j * stride[1] - left
                for row in range(max(start, 0), min(start + kernel[0], h)):
                    for column in range(max(begin, 0), min(begin + kernel[1], w)):
                        for c in range(lanes):
                            total[c] += x[task, row, column, c]
                count = y.dtype.type(max(high[i] * wide[j], 1))
                for c in range(lanes):
                    total[c] /= count


@parallel
def _average_gradient(dy, kernel, stride, padding, padded, dx):
    _, rows, columns, lanes = dy.shape
    tasks, h, w, _ = dx.shape
    (top, bottom), (left, right) = padding
    for task in prange(tasks):
        high, wide = np.empty(rows, np.int64), np.empty(columns, np.int64)
        _shares(rows, h, top, bottom, kernel[0], stride[0], padded, high)
        _shares(columns, w, left, right, kernel[1], stride[1], padded, wide)
        dx[task] = 0
        for i in range(rows):
            for j in range(columns):
                count = dx.dtype.type(max(high[i] * wide[j], 1))
                start, begin = i * stride[0] - top, j * stride[1] - left
                for row in range(max(start, 0), min(start + kernel[0], h)):
                    for column in range(max(begin, 0), min(begin + kernel[1], w)):
                        for c in range(lanes):
                            dx[task, row, column, c] += dy[task, i, j, c] / count


def _by_task(a: np.ndarray, layout: str) -> np.ndarray:
    """A view as (tasks, rows, columns, lanes)."""
    return a.reshape(-1, *a.shape[2:], 1) if layout == "NCHW" else a


@implements("avg_pool2d", device="cpu", variant="loops")
def avg_pool2d(x, *, kernel_size, stride, padding, ceil_mode, count_include_pad, layout, out):
    _average(_by_task(readable(x), layout), kernel_size, stride, padding, count_include_pad, _by_task(out, layout))


@implements("avg_pool2d_dx", device="cpu", variant="loops")
def avg_pool2d_dx(dy, *, x_shape, kernel_size, stride, padding, ceil_mode, count_include_pad, layout, out):
    _average_gradient(_by_task(readable(dy), layout), kernel_size, stride, padding, count_include_pad, _by_task(out, layout))
