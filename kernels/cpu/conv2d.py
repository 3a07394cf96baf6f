"""Convolution on the CPU: the definition's sums, turned so that the innermost loop runs along memory.

The story of the variants, simplest first, with the share of the machine's multiply-add peak that each reached on two Zen 4
cores: forward, dx and dw of 32 -> 64 channels, 3 x 3, on 128 NCHW images of 16 x 16.

    loops      plain Python loops whose innermost one LLVM turns into vector code    33 %   31 %    7 %    this file
    simd       a tile of outputs held in vector registers from first term to last    81 %   82 %   78 %    conv2d_simd.py
    winograd2  2.25 times fewer multiplications, as near to the truth as a whole    150 %  150 %  137 %    conv2d_winograd.py
    winograd   4 times fewer, less near                                             205 %  205 %  180 %    conv2d_winograd.py

(Above 100 %: the definition's operations are counted, not those that were saved.)
Yours: `tinynet bench kernels --networks tensorflow --batch-sizes 128`. `simd` is the default;
`with tinynet.use(conv2d="cpu.loops"):` runs another. What follows is `loops`.

The innermost loop must run over numbers that lie side by side and are all wanted, so images are
copied once to (rows, columns, channels) with their padding around them, and weights are laid out
with the lanes last. A row of taps of one pixel is then one run of kw * C floats:

    forward   acc[j, :] += x[...] * weight[u, t, :]        lanes: output channels   t: a place in the run
    dx        run[:]    += dy[j, k] * weight[u, k, :]      lanes: the run
    dw        acc[t, :] += x[...] * dy[j, :]               lanes: output channels

Each loop takes four terms of the sum at a time (and two pixels where they share the weights): one
load and store of the accumulator then serve 4 or 8 multiply-adds. With dilation or groups a run is
broken into kw runs of one pixel's channels each; nothing else changes.

Next on the walk: simd.py, where registers become values.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from tinynet.geometry import nchw
from tinynet.kernels.contract import implements
from tinynet.kernels.cpu.jit import chunks, inline, parallel, parallel_dot, readable

# --- layout: into rows x columns x channels, and back ------------------------------------------------


@parallel
def _enter(x, channels_first, top, left, out):
    n, rows, columns, channels = out.shape
    for task in prange(n * rows):
        image, row = task // rows, task % rows
        if channels_first:
            h, w = x.shape[2], x.shape[3]
        else:
            h, w = x.shape[1], x.shape[2]
        line = out[image, row]
        source = row - top
        if source < 0 or source >= h:
            line[:] = 0
            continue
        line[:left] = 0
        line[left + w :] = 0
        if channels_first:
            for c in range(channels):
                for j in range(w):
                    line[left + j, c] = x[image, c, source, j]
        else:
            for j in range(w):
                for c in range(channels):
                    line[left + j, c] = x[image, source, j, c]


def entered(x, padding, layout):
    """Images as (N, padded rows, padded columns, C)."""
    n, c, h, w = nchw(x.shape, layout)
    (top, bottom), (left, right) = padding
    if layout == "NHWC" and not any((top, bottom, left, right)):
        return np.ascontiguousarray(x)
    out = np.empty((n, h + top + bottom, w + left + right, c), x.dtype)
    _enter(readable(x), layout == "NCHW", top, left, out)
    return out


@inline
def _leave(line, out, channels_first, image, row, first):
    """Stores a row (columns, channels) of the result, its channels from `first` on."""
    columns, channels = line.shape
    if channels_first:
        for k in range(channels):
            for j in range(columns):
                out[image, first + k, row, j] = line[j, k]
    else:
        for j in range(columns):
            for k in range(channels):
                out[image, row, j, first + k] = line[j, k]


def runs(weight_shape, dilation, groups) -> tuple[int, int]:
    """(runs a kernel row, channels a run): one run for the whole row of taps where they touch in memory."""
    _, channels, _, kw = weight_shape
    return (1, kw * channels) if dilation[1] == 1 and groups == 1 else (kw, channels)


# --- forward -----------------------------------------------------------------------------------------


@inline
def _row(x, weight, acc, first, step, spread):
    """acc[j, :] += sum over a run's t of x[j*step + r*spread, first + t] * weight[r, t, :], for one row u of taps."""
    count, length, lanes = weight.shape
    outputs = acc.shape[0]
    flat = x.reshape(-1)
    channels = x.shape[1]
    for r in range(count):
        t = 0
        while t + 4 <= length:
            w0, w1, w2, w3 = weight[r, t], weight[r, t + 1], weight[r, t + 2], weight[r, t + 3]
            j = 0
            while j + 2 <= outputs:
                p = (j * step + r * spread) * channels + first + t
                q = p + step * channels
                p0, p1, p2, p3 = flat[p], flat[p + 1], flat[p + 2], flat[p + 3]
                q0, q1, q2, q3 = flat[q], flat[q + 1], flat[q + 2], flat[q + 3]
                a, b = acc[j], acc[j + 1]
                for k in range(lanes):
                    a[k] = a[k] + p0 * w0[k] + p1 * w1[k] + p2 * w2[k] + p3 * w3[k]
                    b[k] = b[k] + q0 * w0[k] + q1 * w1[k] + q2 * w2[k] + q3 * w3[k]
                j += 2
            if j < outputs:
                p = (j * step + r * spread) * channels + first + t
                p0, p1, p2, p3 = flat[p], flat[p + 1], flat[p + 2], flat[p + 3]
                a = acc[j]
                for k in range(lanes):
                    a[k] = a[k] + p0 * w0[k] + p1 * w1[k] + p2 * w2[k] + p3 * w3[k]
            t += 4
        while t < length:
            w0 = weight[r, t]
            for j in range(outputs):
                p0 = flat[(j * step + r * spread) * channels + first + t]
                a = acc[j]
                for k in range(lanes):
                    a[k] += p0 * w0[k]
            t += 1


@parallel
def _forward(x, weight, bias, stride, dilation, channels_first, outputs, out):
    groups, kernel_rows, _, length, lanes = weight.shape
    rows, columns = outputs
    channels = x.shape[3] // groups
    for task in prange(x.shape[0] * rows):
        image, i = task // rows, task % rows
        acc = np.empty((columns, lanes), x.dtype)
        for g in range(groups):
            for j in range(columns):
                for k in range(lanes):
                    acc[j, k] = bias[g * lanes + k]
            for u in range(kernel_rows):
                _row(x[image, i * stride[0] + u * dilation[0]], weight[g, u], acc, g * channels, stride[1], dilation[1])
            _leave(acc, out, channels_first, image, i, g * lanes)


@implements("conv2d", device="cpu", variant="loops")
def conv2d(x, weight, bias, *, stride, padding, dilation, groups, layout, out):
    _, _, *outputs = nchw(out.shape, layout)
    k, c, kh, _ = weight.shape
    count, length = runs(weight.shape, dilation, groups)
    # (groups, kh, runs, places of a run, output channels of a group)
    laid = np.ascontiguousarray(weight.reshape(groups, k // groups, c, kh, -1).transpose(0, 3, 4, 2, 1)).reshape(groups, kh, count, length, -1)
    bias = np.zeros(k, x.dtype) if bias is None else np.ascontiguousarray(bias)
    _forward(readable(entered(x, padding, layout)), readable(laid), readable(bias), stride, dilation, layout == "NCHW", tuple(outputs), out)


# --- gradient of the images --------------------------------------------------------------------------


@inline
def _spread_row(dy, weight, line, first, step, spread):
    """line[j*step + r*spread, first:] += sum over k of dy[j, k] * weight[r, k, :], for one row u of taps."""
    count, terms, length = weight.shape
    flat = line.reshape(-1)
    channels = line.shape[1]
    for j in range(dy.shape[0]):
        d = dy[j]
        for r in range(count):
            p = (j * step + r * spread) * channels + first
            place = flat[p : p + length]
            k = 0
            while k + 4 <= terms:
                d0, d1, d2, d3 = d[k], d[k + 1], d[k + 2], d[k + 3]
                w0, w1, w2, w3 = weight[r, k], weight[r, k + 1], weight[r, k + 2], weight[r, k + 3]
                for t in range(length):
                    place[t] = place[t] + d0 * w0[t] + d1 * w1[t] + d2 * w2[t] + d3 * w3[t]
                k += 4
            while k < terms:
                d0, w0 = d[k], weight[r, k]
                for t in range(length):
                    place[t] += d0 * w0[t]
                k += 1


@parallel
def _input_gradient(dy, weight, stride, dilation, top, left, padded_columns, channels_first, sizes, out):
    groups, kernel_rows, _, terms, _ = weight.shape
    rows, columns, channels = sizes
    within = channels // groups
    for task in prange(dy.shape[0] * rows):
        image, row = task // rows, task % rows
        line = np.zeros((padded_columns, channels), dy.dtype)
        for u in range(kernel_rows):
            # the output row i whose tap u meets this row: i * stride + u * dilation = row + top
            above = row + top - u * dilation[0]
            i = above // stride[0]
            if above < 0 or above % stride[0] != 0 or i >= dy.shape[1]:
                continue
            for g in range(groups):
                _spread_row(dy[image, i, :, g * terms : (g + 1) * terms], weight[g, u], line, g * within, stride[1], dilation[1])
        _leave(line[left : left + columns], out, channels_first, image, row, 0)


@implements("conv2d_dx", device="cpu", variant="loops")
def conv2d_dx(dy, weight, *, x_shape, stride, padding, dilation, groups, layout, out):
    _, channels, rows, columns = nchw(x_shape, layout)
    k, c, kh, _ = weight.shape
    count, length = runs(weight.shape, dilation, groups)
    # (groups, kh, runs, output channels of a group, places of a run)
    laid = weight.reshape(groups, k // groups, c, kh, count, -1).transpose(0, 3, 4, 1, 5, 2)
    laid = np.ascontiguousarray(laid).reshape(groups, kh, count, k // groups, length)
    (top, _), (left, right) = padding
    dy = entered(dy, ((0, 0), (0, 0)), layout)
    _input_gradient(readable(dy), readable(laid), stride, dilation, top, left, left + columns + right, layout == "NCHW", (rows, columns, channels), out)


# --- gradient of the weights -------------------------------------------------------------------------


@inline
def _gather(x, dy, acc, start, step, lines, first, row_step, second):
    """acc[t, :] += sum over the image's outputs (i, j) of x[.., start + t] * dy[i, j, :], for up to four places t of a run."""
    lanes = acc.shape[1]
    channels = x.shape[2]
    a0, a1, a2, a3 = acc[0], acc[1], acc[2], acc[3]
    # A run may end before its fourth place: the places beyond read the last one again, and are dropped.
    o1, o2, o3 = min(1, lines - 1), min(2, lines - 1), min(3, lines - 1)
    for i in range(dy.shape[0]):
        flat = x[i * row_step + first].reshape(-1)
        for j in range(0, dy.shape[1] - 1, 2):
            p = (j * step + second) * channels + start
            q = p + step * channels
            p0, p1, p2, p3 = flat[p], flat[p + o1], flat[p + o2], flat[p + o3]
            q0, q1, q2, q3 = flat[q], flat[q + o1], flat[q + o2], flat[q + o3]
            d, e = dy[i, j], dy[i, j + 1]
            for k in range(lanes):
                a0[k] = a0[k] + p0 * d[k] + q0 * e[k]
                a1[k] = a1[k] + p1 * d[k] + q1 * e[k]
                a2[k] = a2[k] + p2 * d[k] + q2 * e[k]
                a3[k] = a3[k] + p3 * d[k] + q3 * e[k]
        if dy.shape[1] % 2:
            j = dy.shape[1] - 1
            p = (j * step + second) * channels + start
            p0, p1, p2, p3 = flat[p], flat[p + o1], flat[p + o2], flat[p + o3]
            d = dy[i, j]
            for k in range(lanes):
                a0[k] += p0 * d[k]
                a1[k] += p1 * d[k]
                a2[k] += p2 * d[k]
                a3[k] += p3 * d[k]


@parallel
def _weight_gradient(dy, x, stride, dilation, out):
    groups, kernel_rows, count, length, lanes = out.shape
    blocks = (length + 3) // 4
    channels = x.shape[3] // groups
    for task in prange(groups * kernel_rows * count * blocks):
        block = task % blocks
        r = task // blocks % count
        u = task // (blocks * count) % kernel_rows
        g = task // (blocks * count * kernel_rows)
        lines = min(4, length - block * 4)
        total = np.zeros((4, lanes), dy.dtype)
        acc = np.empty((4, lanes), dy.dtype)
        for image in range(dy.shape[0]):
            acc[:] = 0  # an image's sum of its own: the chain of roundings is as long as the images, then the places
            part = dy[image, :, :, g * lanes : (g + 1) * lanes]
            _gather(x[image], part, acc, g * channels + block * 4, stride[1], lines, u * dilation[0], stride[0], r * dilation[1])
            for t in range(lines):
                for k in range(lanes):
                    total[t, k] += acc[t, k]
        for t in range(lines):
            for k in range(lanes):
                out[g, u, r, block * 4 + t, k] = total[t, k]


@implements("conv2d_dw", device="cpu", variant="loops")
def conv2d_dw(dy, x, *, weight_shape, stride, padding, dilation, groups, layout, out):
    k, c, kh, kw = weight_shape
    count, length = runs(weight_shape, dilation, groups)
    laid = np.empty((groups, kh, count, length, k // groups), dy.dtype)
    dy = entered(dy, ((0, 0), (0, 0)), layout)
    _weight_gradient(readable(dy), readable(entered(x, padding, layout)), stride, dilation, laid)
    out[...] = laid.reshape(groups, kh, kw, c, k // groups).transpose(0, 4, 3, 1, 2).reshape(weight_shape)


# --- gradient of the bias ----------------------------------------------------------------------------


@parallel_dot
def _plane_sums(dy, out):
    n, channels, places = dy.shape
    for k in prange(channels):
        total = out.dtype.type(0)
        for image in range(n):
            plane = out.dtype.type(0)
            for p in range(places):
                plane += dy[image, k, p]
            total += plane
        out[k] = total


@parallel
def _row_sums(dy, out):
    parts, channels = out.shape
    places = dy.shape[0]
    for part in prange(parts):
        for k in range(channels):
            out[part, k] = 0
        for p in range(places * part // parts, places * (part + 1) // parts):
            for k in range(channels):
                out[part, k] += dy[p, k]


@implements("conv2d_db", device="cpu", variant="loops")
def conv2d_db(dy, *, layout, out):
    n, k, h, w = nchw(dy.shape, layout)
    if layout == "NCHW":
        _plane_sums(readable(dy).reshape(n, k, h * w), out)
    else:
        parts = np.empty((chunks(n * h * w, 256), k), dy.dtype)
        _row_sums(readable(dy).reshape(n * h * w, k), parts)
        out[...] = parts.sum(axis=0)
