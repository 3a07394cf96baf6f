"""The code of pooling's kernels (pool2d_simd.py). Imported when one must be compiled."""

from __future__ import annotations

import math

import numpy as np

from tinynet.kernels.cpu.jit import inline
from tinynet.kernels.cpu.layers import MAX_POOL, SCATTER
from tinynet.kernels.cpu.simd import add, counting, divide, full, get, larger_with, pointer, put, put_whole, stores, strided, zeros
from tinynet.kernels.cpu.tiles_kernels import inside, zero

# --- windows and strides that are constants -------------------------------------------------------------------


def max_pool(KR, KC, SR, SC, W, T):
    """The largest of each KR x KC window of a plane, and its place: W windows of a row at a time, the last ones moved back
    until they fit. Places are counted in T, which holds them exactly in planes of less than 2^24 pixels."""

    def kernel(row, plane, slot, chunk, share, shares):
        x, y, argmax = pointer(get(row, 0), T), pointer(get(row, 1), T), pointer(get(row, 2), np.int32)
        height, width, rows, columns = get(row, 3), get(row, 4), get(row, 5), get(row, 6)
        xo, yo = plane * height * width, plane * rows * columns
        for i in range(rows * share // shares, rows * (share + 1) // shares):
            for j in range(0, columns, W):
                j = min(j, columns - W)
                first = i * SR * width + j * SC
                best, place = strided(x, xo + first, SC, W), counting(y, T(first), T(SC), W)
                start = place
                for u in range(KR):
                    for v in range(KC):
                        if u + v > 0:
                            found = add(start, full(y, T(u * width + v), 1, W))
                            best, place = larger_with(best, place, strided(x, xo + first + u * width + v, SC, W), found)
                stores(y, yo + i * columns + j, 1, 0, 1, 0, 1, W, best)
                put_whole(argmax, yo + i * columns + j, place)

    return kernel


def avg_pool(KR, KC, SR, SC, W, T):
    """The average of each KR x KC window of a plane; as max_pool."""
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


# --- any window -----------------------------------------------------------------------------------------------


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
        height, width, lanes, rows, columns = get(row, MAX_POOL.height), get(row, MAX_POOL.width), get(row, MAX_POOL.lanes), get(row, MAX_POOL.rows), get(row, MAX_POOL.columns)
        kr, kc, sr, sc, dr, dc = get(row, MAX_POOL.kr), get(row, MAX_POOL.kc), get(row, MAX_POOL.sr), get(row, MAX_POOL.sc), get(row, MAX_POOL.dr), get(row, MAX_POOL.dc)
        x, y, argmax = pointer(get(row, MAX_POOL.x), T), pointer(get(row, MAX_POOL.y), T), pointer(get(row, MAX_POOL.argmax), np.int32)
        for i in range(rows * share // shares, rows * (share + 1) // shares):
            h = i * sr - get(row, MAX_POOL.top)
            u0, u1 = inside(h, dr, kr, height)
            for j in range(columns):
                l = j * sc - get(row, MAX_POOL.left)
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
        height, width, rows, columns = get(row, MAX_POOL.height), get(row, MAX_POOL.width), get(row, MAX_POOL.rows), get(row, MAX_POOL.columns)
        kr, kc, sr, sc, dr, dc = get(row, MAX_POOL.kr), get(row, MAX_POOL.kc), get(row, MAX_POOL.sr), get(row, MAX_POOL.sc), get(row, MAX_POOL.dr), get(row, MAX_POOL.dc)
        x, y, argmax = pointer(get(row, MAX_POOL.x), T), pointer(get(row, MAX_POOL.y), T), pointer(get(row, MAX_POOL.argmax), np.int32)
        for i in range(rows * share // shares, rows * (share + 1) // shares):
            h = i * sr - get(row, MAX_POOL.top)
            u0, u1 = inside(h, dr, kr, height)
            to = (plane * rows + i) * columns
            for j in range(columns):
                put(y, to + j, T(-math.inf))
                put(argmax, to + j, np.int32(-1))
            for u in range(u0, u1):
                for v in range(kc):
                    offset = v * dc - get(row, MAX_POOL.left)
                    j0, j1 = inside(offset, sc, columns, width)
                    place = (h + u * dr) * width + offset
                    for j in range(j0, j1):
                        _keep_larger(get(x, plane * height * width + place + j * sc), np.int32(place + j * sc), y, argmax, to + j)

    return kernel


# --- the gradient of max-pooling ------------------------------------------------------------------------------


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
