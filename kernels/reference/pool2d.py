"""Pooling, the definition: like the convolution, one tap of the window at a time.

Max-pooling keeps the best value and its place, and a later tap replaces them only if it is
strictly larger: so the first of equals wins. Windows that reach past the padded image
(ceil_mode) are given room by padding a little more.
"""

from __future__ import annotations

import numpy as np

from tinynet.geometry import reach, taps
from tinynet.kernels.contract import implements
from tinynet.kernels.reference.layout import as_nchw, cropped, padded


def with_room(padding, sizes, kernel_size, stride, dilation, outputs):
    """The padding, enlarged at the bottom and right until the last window fits."""
    enlarged = []
    for (before, after), size, e, s, d, o in zip(padding, sizes, kernel_size, stride, dilation, outputs):
        enlarged.append((before, max(after, (o - 1) * s + reach(e, d) - size - before)))
    return tuple(enlarged)


@implements("max_pool2d", device="reference", variant="numpy")
def max_pool2d(x, *, kernel_size, stride, padding, dilation, ceil_mode, layout, out):
    y, argmax = (as_nchw(o, layout) for o in out)
    x = as_nchw(x, layout)
    room = with_room(padding, x.shape[2:], kernel_size, stride, dilation, y.shape[2:])
    places = np.arange(x.shape[2] * x.shape[3]).reshape(1, 1, *x.shape[2:])
    x, places = padded(x, room, -np.inf), padded(places, room, -1)
    y[...], argmax[...] = -np.inf, -1
    for _, _, rows, columns in taps(kernel_size, stride, dilation, y.shape[2:]):
        value, place = x[..., rows, columns], places[..., rows, columns]
        better = (place >= 0) & ((value > y) | (np.isnan(value) & ~np.isnan(y)) | (argmax < 0))
        np.copyto(y, value, where=better)
        np.copyto(argmax, np.broadcast_to(place, y.shape), where=better, casting="same_kind")


@implements("max_pool2d_dx", device="reference", variant="numpy")
def max_pool2d_dx(dy, argmax, *, x_shape, layout, out):
    dx = as_nchw(out, layout)
    dy, argmax = as_nchw(dy, layout), as_nchw(argmax, layout)
    n, c, h, w = dx.shape
    total = np.zeros((n * c, h * w), dy.dtype)
    planes = np.broadcast_to(np.arange(n * c).reshape(n, c, 1, 1), dy.shape)
    inside = argmax >= 0
    np.add.at(total, (planes[inside], argmax[inside]), dy[inside])
    dx[...] = total.reshape(dx.shape)


def counts(x_shape, kernel_size, stride, padding, count_include_pad, outputs):
    """How many places each window averages over, (rows, columns) of the output; at least 1."""
    inside = np.ones((1, 1, *x_shape))
    if count_include_pad:
        inside = padded(inside, padding, 1.0)
        padding = ((0, 0), (0, 0))
    inside = padded(inside, with_room(padding, inside.shape[2:], kernel_size, stride, (1, 1), outputs))
    total = sum(inside[0, 0, rows, columns] for _, _, rows, columns in taps(kernel_size, stride, (1, 1), outputs))
    return np.maximum(total, 1.0)


@implements("avg_pool2d", device="reference", variant="numpy")
def avg_pool2d(x, *, kernel_size, stride, padding, ceil_mode, count_include_pad, layout, out):
    x, y = as_nchw(x, layout), as_nchw(out, layout)
    count = counts(x.shape[2:], kernel_size, stride, padding, count_include_pad, y.shape[2:])
    x = padded(x, with_room(padding, x.shape[2:], kernel_size, stride, (1, 1), y.shape[2:]))
    total = np.zeros(y.shape, y.dtype)
    for _, _, rows, columns in taps(kernel_size, stride, (1, 1), y.shape[2:]):
        total += x[..., rows, columns]
    y[...] = total / count.astype(y.dtype)


@implements("avg_pool2d_dx", device="reference", variant="numpy")
def avg_pool2d_dx(dy, *, x_shape, kernel_size, stride, padding, ceil_mode, count_include_pad, layout, out):
    dx, dy = as_nchw(out, layout), as_nchw(dy, layout)
    sizes, outputs = dx.shape[2:], dy.shape[2:]
    share = dy / counts(sizes, kernel_size, stride, padding, count_include_pad, outputs).astype(dy.dtype)
    room = with_room(padding, sizes, kernel_size, stride, (1, 1), outputs)
    total = padded(np.zeros(dx.shape, dx.dtype), room)
    for _, _, rows, columns in taps(kernel_size, stride, (1, 1), outputs):
        total[..., rows, columns] += share
    dx[...] = cropped(total, room)
