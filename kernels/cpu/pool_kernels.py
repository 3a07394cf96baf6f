"""The code of pooling's kernels (pool2d_simd.py). Imported when one must be compiled."""

from __future__ import annotations

import math

import numpy as np

from tinynet.kernels.cpu.jit import inline
from tinynet.kernels.cpu.layers import AVERAGE_INSIDE, AVERAGES, MAX_POOL, SCATTER
from tinynet.kernels.cpu.simd import add, add_first, counting, divide, full, if_equal, larger_with, multiply, zeros
from tinynet.kernels.cpu.simd_memory import get, loads, pointer, put, put_whole, stores, strided, together
from tinynet.kernels.cpu.copies_kernels import copy, inside, zero

# --- windows and strides that are constants -------------------------------------------------------------------


def max_pool(KR, KC, SR, SC, W, T):
    """The largest of each KR x KC window of a plane, and its place: W windows of a row at a time, the last ones moved back
    until they fit. Places are counted from the first window on, in T, which holds them exactly below 2^24."""

    def kernel(row, plane, slot, chunk, share, shares):
        x, y, argmax = pointer(get(row, 0), T), pointer(get(row, 1), T), pointer(get(row, 2), np.int32)
        height, width, rows, columns = get(row, 3), get(row, 4), get(row, 5), get(row, 6)
        xo, yo, start = plane * height * width, plane * rows * columns, counting(y, T(0), T(SC), W)
        for i in range(rows * share // shares, rows * (share + 1) // shares):
            for j in range(0, columns, W):
                j = min(j, columns - W)
                first = i * SR * width + j * SC
                best, place = strided(x, xo + first, SC, W), start
                for u in range(KR):
                    for v in range(KC):
                        if u + v > 0:
                            found = add(start, full(y, T(u * width + v), 1, W))
                            best, place = larger_with(best, place, strided(x, xo + first + u * width + v, SC, W), found)
                stores(y, yo + i * columns + j, 1, 0, 1, 0, 1, W, best)
                put_whole(argmax, yo + i * columns + j, 0, place, first)

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


@inline
def _nothing(y, argmax, at, count):
    """The results of windows that lie outside of the image."""
    for t in range(at, at + count):
        put(y, t, -math.inf)
        put(argmax, t, np.int32(-1))


def max_pool_rows(T):
    """Windows in which float32 can't count, of images whose channels lie side by side; the plane of one is an image of one."""

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
                _nothing(y, argmax, to, lanes)
                for u in range(u0, u1):
                    for v in range(v0, v1):
                        place = (h + u * dr) * width + l + v * dc
                        at = (image * height * width + place) * lanes
                        for c in range(lanes):
                            _keep_larger(get(x, at + c), np.int32(place), y, argmax, to + c)

    return kernel


def maxima(SC, C, V, T):
    """The largest of each window, and its place, in registers. SC: 0, or the step from one window of a row to the next, if a row's
    windows can be taken as one run of numbers, V at a time: planes, and windows that begin at every pixel. Where SC is 0, V
    channels of C windows. Places are counted from where a window begins, in T, which holds them exactly below 2^24.
    """
    LEAST = T(-math.inf)

    def kernel(row, image, slot, chunk, share, shares):
        height, width, lanes, rows, columns = get(row, MAX_POOL.height), get(row, MAX_POOL.width), get(row, MAX_POOL.lanes), get(row, MAX_POOL.rows), get(row, MAX_POOL.columns)
        kr, kc, sr, sc, dr, dc = get(row, MAX_POOL.kr), get(row, MAX_POOL.kc), get(row, MAX_POOL.sr), get(row, MAX_POOL.sc), get(row, MAX_POOL.dr), get(row, MAX_POOL.dc)
        x, y, argmax, left = pointer(get(row, MAX_POOL.x), T), pointer(get(row, MAX_POOL.y), T), pointer(get(row, MAX_POOL.argmax), np.int32), get(row, MAX_POOL.left)
        work, line, wide = get(row, MAX_POOL.work) + slot * get(row, MAX_POOL.work_slot), get(row, MAX_POOL.line), get(row, MAX_POOL.wide)
        # for each number of a row of windows, the column of its window, and from there the first column that lies inside
        starts, firsts, around = pointer(work, T), pointer(work + line, T), pointer(work + 2 * line, T)
        length, pixels, outside = columns * lanes, width * lanes, False
        for j in range(columns):
            v0, v1 = inside(j * sc - left, dc, kc, width)
            outside |= v0 >= v1
            for c in range(lanes):
                put(starts, j * lanes + c, j * sc - left)
                put(firsts, j * lanes + c, v0 * dc if v0 < v1 else -1)
        for t in range(kr * wide):
            put(around, t, LEAST)
        for i in range(rows * share // shares, rows * (share + 1) // shares):
            h, to = i * sr - get(row, MAX_POOL.top), (image * rows + i) * length
            u0, u1 = inside(h, dr, kr, height)
            if u0 >= u1:
                _nothing(y, argmax, to, length)
                continue
            source, at, step = x, (image * height + h + u0 * dr) * pixels, dr * pixels
            if wide:  # windows reach over the sides: the rows are copied to where the least number is around them
                for u in range(u1 - u0):
                    copy(x, at + u * step, around, u * wide + left * lanes, pixels)
                source, at, step = around, 0, wide
            base = T(u0 * dr * width)
            if SC:
                for t in range(0, length, V):
                    t, best, place = min(t, length - V), full(y, LEAST, 1, V), zeros(y, 1, V)
                    for u in range(u1 - u0):
                        for v in range(kc):
                            found = full(y, T((u0 + u) * dr * width + v * dc), 1, V)
                            best, place = larger_with(best, place, strided(source, at + u * step + t * SC + v * dc * lanes, SC, V), found)
                    # where nothing is larger than the least number the first place is it
                    place = add(place, if_equal(add(loads(firsts, t, 1, 0, 1, 0, 1, V), full(y, base, 1, V)), best, LEAST))
                    stores(y, to + t, 1, 0, 1, 0, 1, V, best)
                    put_whole(argmax, to + t, 0, add(place, loads(starts, t, 1, 0, 1, 0, 1, V)), h * width)
            else:
                for j in range(0, columns, C):
                    j = min(j, columns - C)
                    for c in range(0, lanes, V):
                        c, best, place = min(c, lanes - V), full(y, LEAST, C, V), zeros(y, C, V)
                        for u in range(u1 - u0):
                            for v in range(kc):
                                found = full(y, T((u0 + u) * dr * width + v * dc), C, V)
                                best, place = larger_with(best, place, loads(source, at + u * step + (j * sc + v * dc) * lanes + c, 1, 0, C, sc * lanes, 1, V), found)
                        t = j * lanes + c
                        place = add(place, if_equal(add(loads(firsts, t, 1, 0, C, lanes, 1, V), full(y, base, 1, V)), best, LEAST))
                        stores(y, to + t, 1, 0, C, lanes, 1, V, best)
                        put_whole(argmax, to + t, lanes, add(place, loads(starts, t, 1, 0, C, lanes, 1, V)), h * width)
            if outside:
                for t in range(length):
                    if get(firsts, t) < 0:
                        put(argmax, to + t, np.int32(-1))

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


# --- averages -------------------------------------------------------------------------------------------------
# A window's sum is the sum over its columns of the sums over its rows. The first are taken of whole rows of an image at once,
# for all windows that meet them, and kept in scratch memory with zeros around, so that no window need look where it ends.


@inline
def _counted(first, count, size, after, average):
    """How many places of a window along one axis an average is over; of a window outside of the image, which has none, 1."""
    if average == AVERAGE_INSIDE:
        return max(min(first + count, size) - max(first, 0), 1)
    return min(first + count, size + after) - first


@inline
def _count_columns(counts, columns, lanes, first, step, count, size, after, average):
    """The same of each window of a row, for each of its channels."""
    for j in range(columns):
        number = _counted(first + j * step, count, size, after, average)
        for c in range(lanes):
            put(counts, j * lanes + c, number)


def averages(SC, W, V, T):
    """The average of each window. SC: 0, or the step from one window of a row to the next, if all of a row's sums can be taken as
    one run of numbers: planes, and windows that begin at every pixel. W and V lanes fit a row of pixels and of windows, where
    SC is 0 a pixel."""

    def kernel(row, image, slot, chunk, share, shares):
        height, width, lanes, rows, columns = get(row, AVERAGES.height), get(row, AVERAGES.width), get(row, AVERAGES.lanes), get(row, AVERAGES.rows), get(row, AVERAGES.columns)
        kr, kc, sr, sc, top, left = get(row, AVERAGES.kr), get(row, AVERAGES.kc), get(row, AVERAGES.sr), get(row, AVERAGES.sc), get(row, AVERAGES.top), get(row, AVERAGES.left)
        bottom, average = get(row, AVERAGES.bottom), get(row, AVERAGES.average)
        x, y, counts = pointer(get(row, AVERAGES.x), T), pointer(get(row, AVERAGES.y), T), pointer(get(row, AVERAGES.work) + slot * get(row, AVERAGES.work_slot), T)
        sums, line, length = pointer(get(row, AVERAGES.work) + slot * get(row, AVERAGES.work_slot) + get(row, AVERAGES.line), T), width * lanes, columns * lanes
        _count_columns(counts, columns, lanes, -left, sc, kc, width, get(row, AVERAGES.right), average)
        zero(sums, 0, get(row, AVERAGES.wide))
        for i in range(rows * share // shares, rows * (share + 1) // shares):
            h = i * sr - top
            for t in range(0, line, W):
                t, total = min(t, line - W), zeros(y, 1, W)
                for u in range(max(-h, 0), min(kr, height - h)):
                    total = add(total, loads(x, (image * height + h + u) * line + t, 1, 0, 1, 0, 1, W))
                stores(sums, left * lanes + t, 1, 0, 1, 0, 1, W, total)
            number, to = T(_counted(h, kr, height, bottom, average)), (image * rows + i) * length
            if SC:
                for t in range(0, length, V):
                    t, total = min(t, length - V), zeros(y, 1, V)
                    for v in range(kc):
                        total = add(total, strided(sums, t * SC + v * lanes, SC, V))
                    stores(y, to + t, 1, 0, 1, 0, 1, V, divide(total, multiply(loads(counts, t, 1, 0, 1, 0, 1, V), full(y, number, 1, V))))
            else:
                for j in range(columns):
                    for c in range(0, lanes, V):
                        c, total = min(c, lanes - V), zeros(y, 1, V)
                        for v in range(kc):
                            total = add(total, loads(sums, (j * sc + v) * lanes + c, 1, 0, 1, 0, 1, V))
                        t = j * lanes + c
                        stores(y, to + t, 1, 0, 1, 0, 1, V, divide(total, multiply(loads(counts, t, 1, 0, 1, 0, 1, V), full(y, number, 1, V))))

    return kernel


def averages_back(SC, REST, RUNS, W, V, T):
    """The images' gradient: each pixel's is the sum over the windows that it lies in, first over the rows of windows, then along
    a row. SC as for `averages`: columns of SC pixels begin at each window, and REST = columns of a window % SC of them lie in one
    window more than the others. W and V lanes fit a row of windows and of pixels, or of columns of SC; where SC is 0 a pixel.

    RUNS: of too few channels for that. Then the pixels that lie as far into a stride as each other are one run of numbers, of V lanes, which
    is taken apart afterwards."""

    def kernel(row, image, slot, chunk, share, shares):
        height, width, lanes, rows, columns = get(row, AVERAGES.height), get(row, AVERAGES.width), get(row, AVERAGES.lanes), get(row, AVERAGES.rows), get(row, AVERAGES.columns)
        kr, kc, sr, sc, top, left = get(row, AVERAGES.kr), get(row, AVERAGES.kc), get(row, AVERAGES.sr), get(row, AVERAGES.sc), get(row, AVERAGES.top), get(row, AVERAGES.left)
        bottom, average = get(row, AVERAGES.bottom), get(row, AVERAGES.average)
        dx, dy, counts = pointer(get(row, AVERAGES.x), T), pointer(get(row, AVERAGES.y), T), pointer(get(row, AVERAGES.work) + slot * get(row, AVERAGES.work_slot), T)
        sums, line, length = pointer(get(row, AVERAGES.work) + slot * get(row, AVERAGES.work_slot) + get(row, AVERAGES.line), T), width * lanes, columns * lanes
        wide, whole = get(row, AVERAGES.wide), (left + width + sc - 1) // sc
        ahead = (kc - 1) // sc * lanes  # numbers of the windows that begin in columns further left and reach a pixel
        _count_columns(counts, columns, lanes, -left, sc, kc, width, get(row, AVERAGES.right), average)
        zero(sums, 0, wide)
        aligned = left == 0 and whole * sc == width  # whole columns of pixels are what the image's rows are made of
        i0, i1, same = 0, 0, False  # the windows that a row of pixels lies in; whether they are those of the row above
        for h in range(height * share // shares, height * (share + 1) // shares):
            to = (image * height + h) * line
            while i1 < rows and i1 * sr <= h + top:
                i1, same = i1 + 1, False
            while i0 < i1 and i0 * sr + kr <= h + top:
                i0, same = i0 + 1, False
            if same:
                copy(dx, to - line, dx, to, line)
                continue
            same = True
            for t in range(0, length, W):
                t, total = min(t, length - W), zeros(dx, 1, W)
                for i in range(i0, i1):
                    number = T(_counted(i * sr - top, kr, height, bottom, average))
                    count = multiply(loads(counts, t, 1, 0, 1, 0, 1, W), full(dx, number, 1, W))
                    total = add(total, divide(loads(dy, (image * rows + i) * length + t, 1, 0, 1, 0, 1, W), count))
                stores(sums, ahead + t, 1, 0, 1, 0, 1, W, total)
            if SC == 1:
                for t in range(0, line, V):
                    t, total = min(t, line - V), zeros(dx, 1, V)
                    for v in range(kc):
                        total = add(total, loads(sums, ahead + (left - v) * lanes + t, 1, 0, 1, 0, 1, V))
                    stores(dx, to + t, 1, 0, 1, 0, 1, V, total)
            elif SC:
                for q in range(0, whole, V):
                    q, total = min(q, whole - V), zeros(dx, SC, V)
                    for m in range(kc // SC):
                        total = add(total, loads(sums, ahead + q - m, 1, 0, 1, 0, 1, V))
                    if REST:
                        total = add_first(total, loads(sums, ahead + q - kc // SC, 1, 0, 1, 0, 1, V), REST)
                    if aligned:
                        together(dx, to + q * SC, total)
                    else:
                        together(sums, wide + q * SC, total)
                if not aligned:
                    copy(sums, wide + left, dx, to, width)
            elif RUNS:
                for v in range(sc):
                    for t in range(0, whole * lanes, V):
                        t, total = min(t, whole * lanes - V), zeros(dx, 1, V)
                        tap, place = v, ahead + t
                        while tap < kc:
                            total = add(total, loads(sums, place, 1, 0, 1, 0, 1, V))
                            tap, place = tap + sc, place - lanes
                        stores(sums, wide + t, 1, 0, 1, 0, 1, V, total)
                    for q in range(max(0, (left - v + sc - 1) // sc), min(whole, (left + width - v + sc - 1) // sc)):
                        at, place = to + (q * sc + v - left) * lanes, wide + q * lanes
                        for c in range(lanes):
                            put(dx, at + c, get(sums, place + c))
            else:
                for q in range(left // sc, whole):
                    for v in range(max(left - q * sc, 0), min(left + width - q * sc, sc)):
                        at = to + (q * sc + v - left) * lanes
                        for c in range(0, lanes, V):
                            c, total, place = min(c, lanes - V), zeros(dx, 1, V), ahead + q * lanes
                            tap = v
                            while tap < kc:
                                total = add(total, loads(sums, place + c, 1, 0, 1, 0, 1, V))
                                tap, place = tap + sc, place - lanes
                            stores(dx, at + c, 1, 0, 1, 0, 1, V, total)

    return kernel
