"""Convolution, the definition: one tap (u, v) of the kernel at a time, over the whole batch.

All three sums run over the same triples (input place, tap, output place). For one tap the
input places that meet the outputs are a strided slice of the padded image, `at`; then

    forward   y       += x[at] * weight[tap]      summed over c
    dx        dx[at]  += dy * weight[tap]         summed over k
    dw        dw[tap]  = dy * x[at]               summed over n, i, j

Next on the walk: kernels/cpu/conv2d.py, the same sums on vector registers.
"""

from __future__ import annotations

import numpy as np

from tinynet.geometry import taps
from tinynet.kernels.contract import implements
from tinynet.kernels.reference.layout import as_nchw, cropped, padded


def grouped(a: np.ndarray, groups: int, axis: int) -> np.ndarray:
    """The channels on `axis` as (groups, channels of one group)."""
    return a.reshape(*a.shape[:axis], groups, a.shape[axis] // groups, *a.shape[axis + 1 :])


def columns(a: np.ndarray) -> np.ndarray:
    """Images (..., channels, rows, columns) as matrices (..., channels, places)."""
    return a.reshape(*a.shape[:-2], a.shape[-2] * a.shape[-1])


@implements("conv2d", device="reference", variant="numpy")
def conv2d(x, weight, bias, *, stride, padding, dilation, groups, layout, out):
    y = as_nchw(out, layout)
    x = grouped(padded(as_nchw(x, layout), padding), groups, axis=1)
    weight = grouped(weight, groups, axis=0)
    total = 0
    for u, v, h, w in taps(weight.shape[3:], stride, dilation, y.shape[2:]):
        total = total + weight[..., u, v] @ columns(x[..., h, w])  # (g, k, c) @ (n, g, c, places)
    y[...] = total.reshape(y.shape)
    if bias is not None:
        y += bias[:, None, None]


@implements("conv2d_dx", device="reference", variant="numpy")
def conv2d_dx(dy, weight, *, x_shape, stride, padding, dilation, groups, layout, out):
    dx = as_nchw(out, layout)
    dy = grouped(as_nchw(dy, layout), groups, axis=1)
    weight = grouped(weight, groups, axis=0)
    total = padded(np.zeros(dx.shape, dx.dtype), padding)
    by_group = grouped(total, groups, axis=1)
    for u, v, h, w in taps(weight.shape[3:], stride, dilation, dy.shape[3:]):
        at = by_group[..., h, w]
        at += (weight[..., u, v].swapaxes(1, 2) @ columns(dy)).reshape(at.shape)  # (g, c, k) @ (n, g, k, places)
    dx[...] = cropped(total, padding)


@implements("conv2d_dw", device="reference", variant="numpy")
def conv2d_dw(dy, x, *, weight_shape, stride, padding, dilation, groups, layout, out):
    dy = grouped(as_nchw(dy, layout), groups, axis=1)
    x = grouped(padded(as_nchw(x, layout), padding), groups, axis=1)
    dweight = grouped(out, groups, axis=0)
    for u, v, h, w in taps(weight_shape[2:], stride, dilation, dy.shape[3:]):
        each = columns(dy) @ columns(x[..., h, w]).swapaxes(2, 3)  # (n, g, k, places) @ (n, g, places, c)
        dweight[..., u, v] = each.sum(axis=0)


@implements("conv2d_db", device="reference", variant="numpy")
def conv2d_db(dy, *, layout, out):
    out[...] = as_nchw(dy, layout).sum(axis=(0, 2, 3))
