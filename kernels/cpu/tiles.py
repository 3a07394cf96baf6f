"""The kernels that programs are made of (program.py): each is made for a tile and a dtype, and reads the rest from its row.

`conv` and `conv_dw` are where the time goes. Their tiles are chosen by a small model of the machine (`best`):
registers, one multiply-add and one load of a vector a cycle, the latency of a multiply-add, and what a tile
that does not divide the image wastes.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil

import numpy as np

from tinynet.kernels.cpu.jit import inline
from tinynet.kernels.cpu.simd import TARGET, add, get, loads, outer_fma, pointer, put, splats, stores, sums, transposed, zeros

# --- which tile ------------------------------------------------------------------------------------------

LEAST_LANES = 4
# rows x columns of pixels; with v vectors of channels at each they fill rows * columns * v registers
PIXELS = (*((1, c) for c in range(1, 15)), (1, 16), (2, 2), (2, 3), (2, 4), (2, 5), (2, 6), (2, 7), (2, 8), (3, 3), (3, 4), (4, 4))


def widths(dtype) -> list[int]:
    """Lanes of a vector, the widest first: narrower ones waste less where there are few channels."""
    lanes = max(TARGET.lanes(dtype), LEAST_LANES)
    return [lanes >> i for i in range(3) if lanes >> i >= LEAST_LANES]


@lru_cache(4096)
def best(rows: int, columns: int, lanes: int, terms: int, segments: int, dtype) -> tuple[int, int, int, int]:
    """(rows, columns, vectors, lanes) of the tile with the least modelled cycles for rows x columns pixels of `lanes` channels."""
    full = max(TARGET.lanes(dtype), LEAST_LANES)
    choices = []
    for w in widths(dtype):
        share = w / full  # of a whole register
        for v in (1, 2, 3, 4):
            if v * w > lanes:
                continue
            for r, c in PIXELS:
                pixels = r * c
                # the accumulators, the weights' vectors, and one more must fit into the registers
                if r > rows or c > columns or pixels * v + v + 1 > TARGET.registers or pixels * v > 28:
                    continue
                streamed = v * w * 4 / 32 if terms * v * w * 4 > 24_000 else 0  # weights beyond the first cache
                step = max(pixels * v * max(share, 0.5), pixels * 0.5 + v, 4.2) + 0.3 * streamed + 0.25 * (pixels * 0.5 + v) + (0.1 * pixels if v == 1 else 0)
                count = ceil(rows / r) * ceil(columns / c) * ceil(lanes / (v * w))
                choices.append((count * (terms * step + 25 * segments + 30 + 2 * pixels * v), r, c, v, w))
    return min(choices)[1:]


@lru_cache(4096)
def best_dw(length: int, lanes: int, dtype) -> tuple[int, int, int]:
    """(rows of the run, vectors, lanes) of a tile of weights, for a run of `length` places and `lanes` channels."""
    full = max(TARGET.lanes(dtype), LEAST_LANES)
    choices = []
    for w in widths(dtype):
        for v in (1, 2, 3, 4):
            for high in (1, 2, 3, 4, 5, 6, 8, 9, 12, 14):
                if v * w > lanes or high > length or high * v + v + 1 > TARGET.registers or high * v > 26:
                    continue
                step = max(high * v * max(w / full, 0.5), high * 0.5 + v, 4.5) + 0.25 * (high * 0.5 + v)
                choices.append((ceil(length / high) * ceil(lanes / (v * w)) * step, -high * v, high, v, w))
    return min(choices)[2:]


# --- copies -------------------------------------------------------------------------------------------------


@inline
def _zero(y, at, count):
    for j in range(count):
        put(y, at + j, 0.0)


@inline
def _copy(x, source, y, target, count):
    if count < 4:
        for j in range(count):
            put(y, target + j, get(x, source + j))
        return
    for j in range(0, count, 4):
        j = min(j, count - 4)
        stores(y, target + j, 1, 0, 1, 0, 1, 4, loads(x, source + j, 1, 0, 1, 0, 1, 4))


def enter(T):
    """Rows of an image into scratch memory, with their padding: `count` rows for the first output row of the share, and
    `step` more for each other."""

    def kernel(row, image, slot, chunk, share, shares):
        x, x_image, planes, x_plane = pointer(get(row, 0), T), get(row, 1), get(row, 2), get(row, 3)
        height, x_row, run, left, right = get(row, 4), get(row, 5), get(row, 6), get(row, 7), get(row, 8)
        outputs, step, top, count, y_plane, y_row = get(row, 9), get(row, 10), get(row, 11), get(row, 12), get(row, 13), get(row, 14)
        y = pointer(get(row, 15) + slot * get(row, 16), T)
        begin, end = outputs * share // shares, outputs * (share + 1) // shares
        if get(row, 17) != 0:  # every part needs the whole image
            begin, end = 0, outputs
        first, rows = begin * step - top, (end - begin - 1) * step + count
        for plane in range(planes):
            for r in range(rows):
                target, source = plane * y_plane + r * y_row, first + r
                if source < 0 or source >= height:
                    _zero(y, target, left + run + right)
                else:
                    _zero(y, target, left)
                    _copy(x, image * x_image + plane * x_plane + source * x_row, y, target + left, run)
                    _zero(y, target + left + run, right)

    return kernel


@inline
def _transpose(x, source, x_step, y, target, y_step, rows, columns):
    """y[c, r] = x[r, c], in squares of 8 x 8 or 4 x 4; the last squares are moved back until they fit."""
    if rows >= 8 and columns >= 8:
        for r in range(0, rows, 8):
            r = min(r, rows - 8)
            for c in range(0, columns, 8):
                c = min(c, columns - 8)
                square = loads(x, source + r * x_step + c, 8, x_step, 1, 0, 1, 8)
                stores(y, target + c * y_step + r, 8, y_step, 1, 0, 1, 8, transposed(square))
        return
    if rows < 4 or columns < 4:
        for r in range(rows):
            for c in range(columns):
                put(y, target + c * y_step + r, get(x, source + r * x_step + c))
        return
    for r in range(0, rows, 4):
        r = min(r, rows - 4)
        for c in range(0, columns, 4):
            c = min(c, columns - 4)
            square = loads(x, source + r * x_step + c, 4, x_step, 1, 0, 1, 4)
            stores(y, target + c * y_step + r, 4, y_step, 1, 0, 1, 4, transposed(square))


def leave(T):
    """A share's pixels x channels in scratch memory, as rows of an NCHW image."""

    def kernel(row, image, slot, chunk, share, shares):
        outputs, step, height, width, channels = get(row, 0), get(row, 1), get(row, 2), get(row, 3), get(row, 4)
        x = pointer(get(row, 5) + slot * get(row, 6), T)
        y, y_image, y_channel = pointer(get(row, 7), T), get(row, 8), get(row, 9)
        begin, end = outputs * share // shares * step, min(outputs * (share + 1) // shares * step, height)
        pixels, target = (end - begin) * width, image * y_image + begin * width
        _transpose(x, 0, channels, y, target, y_channel, pixels, channels)

    return kernel


def leave_few(T):
    """The same for groups of a few channels, which a tile has widened to more lanes; to images of any layout."""

    def kernel(row, image, slot, chunk, share, shares):
        outputs, step, height, width = get(row, 0), get(row, 1), get(row, 2), get(row, 3)
        groups, count, pitch = get(row, 4), get(row, 5), get(row, 6)
        x = pointer(get(row, 7) + slot * get(row, 8), T)
        y, y_channel, y_pixel = pointer(get(row, 9), T), get(row, 11), get(row, 12)
        begin, end = outputs * share // shares * step, min(outputs * (share + 1) // shares * step, height)
        target = image * get(row, 10) + begin * width * y_pixel
        for g in range(groups):
            for o in range(count):
                for p in range((end - begin) * width):
                    put(y, target + (g * count + o) * y_channel + p * y_pixel, get(x, p * pitch + g * (pitch // groups) + o))

    return kernel


def turn_few(T):
    """An image of any layout as pixels x lanes in scratch memory, each group of a few channels widened with zeros."""

    def kernel(row, image, slot, chunk, share, shares):
        groups, count, pixels, pitch = get(row, 0), get(row, 1), get(row, 2), get(row, 3)
        x, x_channel, x_pixel = pointer(get(row, 4), T), get(row, 6), get(row, 7)
        y, source = pointer(get(row, 8) + slot * get(row, 9), T), image * get(row, 5)
        lanes = pitch // groups
        for p in range(pixels):
            for g in range(groups):
                for o in range(count):
                    put(y, p * pitch + g * lanes + o, get(x, source + p * x_pixel + (g * count + o) * x_channel))
                for o in range(count, lanes):
                    put(y, p * pitch + g * lanes + o, 0.0)

    return kernel


def turn(T):
    """An NCHW image as pixels x channels in scratch memory."""

    def kernel(row, image, slot, chunk, share, shares):
        channels, pixels = get(row, 0), get(row, 1)
        x, x_image, x_channel = pointer(get(row, 2), T), get(row, 3), get(row, 4)
        y = pointer(get(row, 5) + slot * get(row, 6), T)
        _transpose(x, image * x_image, x_channel, y, 0, channels, channels, pixels)

    return kernel


# --- weights: into the order in which a tile reads them, and back ------------------------------------------------


def lay(T):
    """image: group * taps + t. y[g, t, a, b] = weight[..., tap of t], b along the lanes; 0 in lanes that are not there."""

    def kernel(row, image, slot, chunk, share, shares):
        taps, terms, count, lanes = get(row, 0), get(row, 1), get(row, 2), get(row, 3)
        w, w_group, w_term, w_lane = pointer(get(row, 4), T), get(row, 5), get(row, 6), get(row, 7)
        order, y = pointer(get(row, 8), np.int64), pointer(get(row, 9), T)
        at, to = image // taps * w_group + get(order, image % taps), image * terms * lanes
        for a in range(terms):
            for b in range(count):
                put(y, to + a * lanes + b, get(w, at + a * w_term + b * w_lane))
            for b in range(count, lanes):
                put(y, to + a * lanes + b, 0.0)

    return kernel


def gather(T):
    """image: an output channel. Adds the chunks' sums of `conv_dw`, and puts each where its weight is.

    A chunk's sums lie as (groups, lane blocks, outer taps, inner taps, blocks of the run, high, vectors).
    """

    def kernel(row, image, slot, chunk, share, shares):
        x, chunks, x_chunk = pointer(get(row, 0), T), get(row, 1), get(row, 2)
        count, lanes, vectors, high = get(row, 3), get(row, 4), get(row, 5), get(row, 6)
        outer, inner, length = get(row, 7), get(row, 8), get(row, 9)
        y, y_channel, y_outer, y_inner, y_length = pointer(get(row, 10), T), get(row, 11), get(row, 12), get(row, 13), get(row, 14)
        g, k = image // count, image % count
        block, blocks = min(k // vectors, (lanes + vectors - 1) // vectors - 1), (lanes + vectors - 1) // vectors
        lane, runs = k - min(block * vectors, lanes - vectors), (length + high - 1) // high
        for a in range(outer):
            for b in range(inner):
                at = ((((g * blocks + block) * outer + a) * inner + b) * runs) * high * vectors + lane
                to = image * y_channel + a * y_outer + b * y_inner
                for t in range(length):
                    r = min(t // high, runs - 1)
                    j = at + (r * high + t - min(r * high, length - high)) * vectors
                    total = get(x, j)
                    for c in range(1, chunks):
                        total += get(x, j + c * x_chunk)
                    put(y, to + t * y_length, total)

    return kernel


# --- sums -----------------------------------------------------------------------------------------------------


WORTH = 1e8  # operations of a call for which a kernel of its own is compiled, in a third of a second, once


def pixel_step(step: int, flops: float) -> int:
    """The step between pixels as a constant of the kernel: then a tile's places are one address and constants, where else each
    takes a register and there are too few. 1, as in NCHW, always; others in calls that are worth it; else 0, not constant."""
    return step if step == 1 or flops >= WORTH else 0


def conv(R, C, V, W, STEP, T):
    """R x C pixels of V * W channels at a time; conv2d_simd.py has the formula. STEP: see pixel_step."""
    N, LANES = R * C * V, V * W

    def kernel(row, image, slot, chunk, share, shares):
        outputs, limit, columns = get(row, 0), get(row, 1), get(row, 2)
        taps_a, taps_b, terms = get(row, 3), get(row, 4), get(row, 5)
        ta, tb, tc, iy, ix, oy, ox = get(row, 6), get(row, 7), get(row, 8), get(row, 9), get(row, 10), get(row, 11), get(row, 12)
        groups, lanes, x_group, w_term, w_group = get(row, 13), get(row, 14), get(row, 15), get(row, 16), get(row, 17)
        x = pointer(get(row, 18) + slot * get(row, 19), T)
        w, bias = pointer(get(row, 22), T), get(row, 23)
        y = pointer(get(row, 24) + slot * get(row, 25), T)
        begin, end = outputs * share // shares, min(outputs * (share + 1) // shares, limit)
        xo, yo, rows = image * get(row, 20) + begin * get(row, 21), image * get(row, 26) + begin * get(row, 27), end - begin
        for g in range(groups):
            for o in range(0, lanes, LANES):
                o = min(o, lanes - LANES)
                for i in range(0, rows, R):
                    i = min(i, rows - R)
                    for j in range(0, columns, C):
                        j = min(j, columns - C)
                        acc = zeros(y, N, W)
                        p, q = xo + g * x_group + i * iy + j * ix, g * w_group + o
                        for a in range(taps_a):
                            for b in range(taps_b):
                                at = p + a * ta + b * tb
                                for c in range(terms):
                                    if STEP:
                                        acc = outer_fma(acc, splats(x, at, R, iy, C, STEP, W), loads(w, q, 1, 0, 1, 0, V, W))
                                    else:
                                        acc = outer_fma(acc, splats(x, at, R, iy, C, ix, W), loads(w, q, 1, 0, 1, 0, V, W))
                                    at += tc
                                    q += w_term
                        if bias != 0:
                            acc = add(acc, loads(pointer(bias, T), g * lanes + o, 1, 0, 1, 0, V, W))
                        stores(y, yo + i * oy + j * ox + g * lanes + o, R, oy, C, ox, V, W, acc)

    return kernel


def conv_dw(H, V, W, T):
    """H places of a run times V * W channels of dy: sums over the pixels of an image, added to the chunk's."""
    N, LANES = H * V, V * W

    def kernel(row, image, slot, chunk, share, shares):
        height, columns, outer, inner, length = get(row, 0), get(row, 1), get(row, 2), get(row, 3), get(row, 4)
        ta, tb, tj, iy, ix, gy, gx = get(row, 5), get(row, 6), get(row, 7), get(row, 8), get(row, 9), get(row, 10), get(row, 11)
        groups, lanes, x_group = get(row, 12), get(row, 13), get(row, 14)
        x, dy = pointer(get(row, 15) + slot * get(row, 16), T), pointer(get(row, 18) + slot * get(row, 19), T)
        xo, go = image * get(row, 17), image * get(row, 20)
        partial, block = pointer(get(row, 21) + chunk * get(row, 22), T), get(row, 23)
        for first in range(0, height, block):  # rows of x and dy that stay in the first cache for all tiles
            last, unit = min(first + block, height), 0
            for g in range(groups):
                for o in range(0, lanes, LANES):
                    o = min(o, lanes - LANES)
                    for a in range(outer):
                        for b in range(inner):
                            for t in range(0, length, H):
                                if unit % shares == share:
                                    at = xo + g * x_group + a * ta + b * tb + min(t, length - H) * tj
                                    acc = zeros(partial, N, W)
                                    for i in range(first, last):
                                        p, q = at + i * iy, go + i * gy + g * lanes + o
                                        for j in range(columns):
                                            acc = outer_fma(acc, splats(x, p, 1, 0, H, tj, W), loads(dy, q, 1, 0, 1, 0, V, W))
                                            p += ix
                                            q += gx
                                    d = unit * N * W
                                    stores(partial, d, 1, 0, H, LANES, V, W, add(acc, loads(partial, d, 1, 0, H, LANES, V, W)))
                                unit += 1

    return kernel


# --- matrix product --------------------------------------------------------------------------------------------


@lru_cache(4096)
def best_gemm(rows: int, lanes: int, terms: int, dtype) -> tuple[int, int, int]:
    """(rows, vectors, lanes) of a tile of `gemm`, for a matrix of rows x lanes."""
    full = max(TARGET.lanes(dtype), LEAST_LANES)
    choices = []
    for w in widths(dtype):
        for v in (1, 2, 3, 4, 8, 16):  # a single row reads b once: the longer the pieces, the better
            for r in (1, 2, 3, 4, 6, 8, 9, 12, 14):
                if v > 4 and r > 1 or v * w > lanes or r > rows or r * v + v + 1 > TARGET.registers or r * v > 28:
                    continue
                large = 1.2 if terms * v * w * 4 > 300_000 else 1.0  # a panel of b beyond the second cache
                step = max(r * v * max(w / full, 0.5), r * 0.5 + v, 4.2) + 0.25 * (r * 0.5 + v)
                choices.append((ceil(rows / r) * ceil(lanes / (v * w)) * step * large, -r * v, r, v, w))
    return min(choices)[2:]


def gemm(R, V, W, T):
    """R rows of c, V * W columns at a time: c[i, :] += a[i, t] * b[t, :], b's columns packed into a panel if that pays."""
    N, LANES = R * V, V * W

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, terms = get(row, 0), get(row, 1), get(row, 2)
        a, a_row, a_term = pointer(get(row, 3), T), get(row, 5), get(row, 6)
        b, b_term = pointer(get(row, 7), T), get(row, 9)
        c, c_row = pointer(get(row, 10), T), get(row, 12)
        panel, packed, row_shares = pointer(get(row, 13) + slot * get(row, 14), T), get(row, 14), get(row, 15)
        ao, bo, co = image * get(row, 4), image * get(row, 8), image * get(row, 11)
        block_shares = shares // row_shares
        begin, end = rows * (share // block_shares) // row_shares, rows * (share // block_shares + 1) // row_shares
        blocks = (columns + LANES - 1) // LANES
        for block in range(share % block_shares, blocks, block_shares):
            o = min(block * LANES, columns - LANES)
            w, start, step = b, bo + o, b_term
            if packed != 0:
                for t in range(terms):
                    stores(panel, t * LANES, 1, 0, 1, 0, V, W, loads(b, bo + o + t * b_term, 1, 0, 1, 0, V, W))
                w, start, step = panel, 0, LANES
            for i in range(begin, end, R):
                i = min(i, end - R)
                acc, p, q = zeros(c, N, W), ao + i * a_row, start
                for t in range(terms):
                    acc = outer_fma(acc, splats(a, p, R, a_row, 1, 0, W), loads(w, q, 1, 0, 1, 0, V, W))
                    p += a_term
                    q += step
                stores(c, co + i * c_row + o, R, c_row, 1, 0, V, W, acc)

    return kernel


@lru_cache(4096)
def best_dots(rows: int, columns: int) -> tuple[int, int]:
    """(rows of a, rows of b) of a tile of `dots`: as many products as the registers hold, from few loads."""
    choices = []
    for r in (1, 2, 3, 4):
        for c in (1, 2, 3, 4, 5, 6, 8):
            if r > rows or c > columns or r * c + min(r, c) + 1 > TARGET.registers or r * c > 24:
                continue
            step = max(r * c, r + c, 4.2) + 0.25 * (r + c)
            choices.append((ceil(rows / r) * ceil(columns / c) * step, -r * c, r, c))
    return min(choices)[2:]


def dots(R, C, W, T):
    """R x C dot products side by side: both factors lie along the terms, which fill the lanes."""
    N = R * C

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, terms = get(row, 0), get(row, 1), get(row, 2)
        a, a_row = pointer(get(row, 3), T), get(row, 5)
        b, b_row = pointer(get(row, 7), T), get(row, 8)
        c, c_row = pointer(get(row, 10), T), get(row, 12)
        ao, bo, co = image * get(row, 4), image * get(row, 9), image * get(row, 11)
        high, row_shares = get(row, 13), get(row, 14)  # rows of a that stay in the second cache
        column_shares = shares // row_shares
        top, bottom = rows * (share // column_shares) // row_shares, rows * (share // column_shares + 1) // row_shares
        left, right = columns * (share % column_shares) // column_shares, columns * (share % column_shares + 1) // column_shares
        whole = terms // W * W
        for first in range(top, bottom, high):
            last = min(first + high, bottom)
            for j in range(left, right, C):
                j = min(j, right - C)
                for i in range(first, last, R):
                    i = max(min(i, last - R), top)
                    acc, p, q = zeros(c, N, W), ao + i * a_row, bo + j * b_row
                    for t in range(0, whole, W):
                        acc = outer_fma(acc, loads(a, p + t, R, a_row, 1, 0, 1, W), loads(b, q + t, C, b_row, 1, 0, 1, W))
                    totals = sums(acc)
                    for r in range(R):
                        for s in range(C):
                            total = totals[r * C + s]
                            for t in range(whole, terms):
                                total += get(a, p + r * a_row + t) * get(b, q + s * b_row + t)
                            put(c, co + (i + r) * c_row + j + s, total)

    return kernel


# --- pooling -----------------------------------------------------------------------------------------------------


def max_pool(KR, KC, SR, SC, T):
    """The largest of each KR x KC window of a plane, and its place. Window and stride are constants, so that a row of windows
    becomes vector code: LLVM turns loads at a constant step into whole vectors and shuffles."""

    def kernel(row, plane, slot, chunk, share, shares):
        x, y, argmax = pointer(get(row, 0), T), pointer(get(row, 1), T), pointer(get(row, 2), np.int32)
        height, width, rows, columns = get(row, 3), get(row, 4), get(row, 5), get(row, 6)
        xo, yo = plane * height * width, plane * rows * columns
        for i in range(rows * share // shares, rows * (share + 1) // shares):
            for j in range(columns):
                first = i * SR * width + j * SC
                best, place = get(x, xo + first), np.int32(first)
                for u in range(KR):
                    for v in range(KC):
                        value = get(x, xo + first + u * width + v)
                        better = (value > best) | ((value != value) & (best == best))
                        best = value if better else best
                        place = np.int32(first + u * width + v) if better else place
                put(y, yo + i * columns + j, best)
                put(argmax, yo + i * columns + j, place)

    return kernel
