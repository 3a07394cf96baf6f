"""Winograd's convolution: 3 x 3 kernels of stride 1 with 2.25 or 4 times fewer multiplications.

M outputs in a row of a 3-tap filter g over M + 2 numbers d can be had with M + 2 multiplications instead of 3 * M: both
are polynomials, and their product is known from its values at M + 2 points (here 0, 1, -1, 2, -2 and infinity for
M = 4). Evaluating and interpolating are small constant matrices, so for a tile of M x M outputs

    y = A^T [ (G g G^T) * (B^T d B) ] A               forward; and the images' gradient, with turned weights
    dg = G^T [ (B^T d B) * (A dy A^T) ] G             the weights' gradient: the transposed algorithm

The sum over channels is taken between the brackets, where * is elementwise: so it is (M + 2)^2 matrix products, tiles
x channels by channels x lanes, which run at the processor's peak. The transforms are additions for the most part, and cost
a quarter of that from 32 to 64 channels, less where there are more. Matrices:
A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308, 2015.

The price is accuracy: B^T d B subtracts neighbours, and A^T weighs what is left by up to 64, so an output has errors of the
size of its neighbours' terms. Measured on reals, M = 4 loses 2 to 2.5 bits to a direct sum (one channel: nearly 4); M = 2 loses
none from 8 channels on, for its sums are shorter. conv2d_winograd.py derives what can be promised. A NaN or an infinity
spreads over its whole tile.

Kernels here read and write NHWC images whose channels are `lanes`: a multiple of 8, or 4, those that are not there 0. The
last tile of a row or column is moved back until it fits, so a reader meets no pixel beyond the windows of its outputs; only
`winograd_dw`, which adds up, lets its tiles hang over, and asks for zeros there.

Next on the walk: conv2d_winograd.py, the kernels as variants of convolution.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil

import numpy as np

from tinynet.kernels.cpu.program import LINE, fields, lines
from tinynet.kernels.cpu.simd import TARGET, add, congruence, get, if_positive, kept, loads, outer_fma, pointer, pooled, relu, splats, stores, winners, zeros
from tinynet.kernels.cpu.tiles import LEAST_LANES, copy, fitting, place, transpose, widths, zero

B = {
    2: ((1, 0, 0, 0), (0, 1, -1, 1), (-1, 1, 1, 0), (0, 0, 0, -1)),
    4: ((4, 0, 0, 0, 0, 0), (0, -4, 4, -2, 2, 4), (-5, -4, -4, -1, -1, 0), (0, 1, -1, 2, -2, -5), (1, 1, 1, 1, 1, 0), (0, 0, 0, 0, 0, 1)),
}  # fmt: skip
G = {
    2: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    4: ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1)),
}  # fmt: skip
A = {
    2: ((1, 0), (1, 1), (1, -1), (0, -1)),
    4: ((1, 0, 0, 0), (1, 1, 1, 1), (1, -1, 1, -1), (1, 2, 4, 8), (1, -2, 4, -8), (0, 0, 0, 1)),
}  # fmt: skip


def _turned(matrices: dict) -> dict:
    return {m: tuple(zip(*matrix)) for m, matrix in matrices.items()}


# Of a tile's registers and M: B^T d B, A dy A^T, G g G^T; and A^T m A, G^T dm G.
of_images, of_gradients, of_weights = congruence(_turned(B)), congruence(A), congruence(G)
to_outputs, to_weights = congruence(_turned(A)), congruence(_turned(G))

# --- sizes --------------------------------------------------------------------------------------------------------

CACHE = 1 << 18  # bytes that a block of tiles may take between its transforms: a part of the second cache, which weights need too


def _pitch(elements: int, dtype) -> int:
    """From one of the (M + 2)^2 matrices to the next: not a multiple of 4096 bytes, or all of them would share a cache set."""
    return lines(elements, dtype) + LINE // np.dtype(dtype).itemsize


class Tiles:
    """How an image of rows x columns outputs is cut into tiles: the kernels' constants, the numbers of their rows that follow
    from shapes, and `work`, the elements of scratch memory that a slot needs. channels, lanes: of x and y as they lie in memory."""

    def __init__(self, m: int, rows: int, columns: int, channels: int, lanes: int, dtype, *, gradient: bool = False):
        """gradient: for `winograd_dw`, else for `winograd`."""
        down, across, matrices = ceil(rows / m), ceil(columns / m), (m + 2) ** 2
        high, vectors, w = _tile(channels if gradient else down * across, lanes, gradient, dtype)
        self.constants = m, high, vectors, w, fitting(channels, dtype)
        side, least = (lanes, 1) if gradient else (vectors * w, high)
        fit = CACHE // (matrices * across * (channels + side) * np.dtype(dtype).itemsize)
        block = ceil(down / ceil(down / max(1, fit, ceil(least / across))))  # rows of tiles at a time, as many in each block
        v_pitch, m_pitch = (_pitch(max(block * across, least) * n, dtype) for n in (channels, side))
        self.work = matrices * (v_pitch + m_pitch)
        self.numbers = dict(rows=rows, columns=columns, block=block, channels=channels, lanes=lanes, v_pitch=v_pitch, m_pitch=m_pitch)


def best_size(rows: int, columns: int) -> int:
    """M for so many outputs: at least 4 tiles, which save a third of the multiplications or more; 0 if no M does."""

    def pays(m: int) -> bool:
        count = ceil(rows / m) * ceil(columns / m)
        return min(rows, columns) >= m and count >= 4 and count * (m + 2) ** 2 * 3 <= rows * columns * 9 * 2

    return next((m for m in (4, 2) if pays(m)), 0)


@lru_cache(4096)
def _tile(rows: int, lanes: int, whole: bool, dtype) -> tuple[int, int, int]:
    """(rows, vectors, lanes) of a register tile of the matrix products. whole: it adds to memory, so it must divide them."""
    full = max(TARGET.lanes(dtype), LEAST_LANES)
    choices = []
    for w in widths(dtype):
        for v in (1, 2, 3, 4):
            for r in (1, 2, 3, 4, 6, 8, 9):
                if r > rows or v * w > lanes or r * v + v + 1 > TARGET.registers or r * v > 28 or whole and (rows % r or lanes % (v * w)):
                    continue
                step = max(r * v * max(w / full, 0.5), r * 0.5 + v, 4.2) + 0.25 * (r * 0.5 + v)
                choices.append((ceil(rows / r) * ceil(lanes / (v * w)) * step, -r * v, r, v, w))
    return min(choices)[2:]


# --- weights: into matrices, and back ---------------------------------------------------------------------------------

WEIGHTS = fields("terms count lanes w w_term w_lane flip u taps taps_slot")


def weights_in(M, W, T):
    """u[k, term, lane] = (G g G^T)[k], g the 3 x 3 weights at w + term * w_term + lane * w_lane; 0 in lanes from `count` on.

    Forward: terms are input channels, lanes the output's. Images' gradient: the other way round, and `flip`: taps are read
    backwards. Shares split the terms. taps: scratch memory, 9 * W elements a slot.
    """
    MATRICES = (M + 2) ** 2

    def kernel(row, image, slot, chunk, share, shares):
        terms, count, lanes = get(row, WEIGHTS.terms), get(row, WEIGHTS.count), get(row, WEIGHTS.lanes)
        w, w_term, w_lane = pointer(get(row, WEIGHTS.w), T), get(row, WEIGHTS.w_term), get(row, WEIGHTS.w_lane)
        u, taps = pointer(get(row, WEIGHTS.u), T), pointer(get(row, WEIGHTS.taps) + slot * get(row, WEIGHTS.taps_slot), T)
        first, step = (8 * W, -W) if get(row, WEIGHTS.flip) != 0 else (0, W)
        for term in range(terms * share // shares, terms * (share + 1) // shares):
            for o in range(0, lanes, W):
                o = min(o, lanes - W)
                there = max(0, min(W, count - o))
                if there < W:
                    zero(taps, 0, 9 * W)
                transpose(w, term * w_term + o * w_lane, w_lane, taps, 0, W, there, 9)
                stores(u, term * lanes + o, MATRICES, terms * lanes, 1, 0, 1, W, of_weights(loads(taps, first, 9, step, 1, 0, 1, W), M))

    return kernel


WEIGHTS_OUT = fields("terms channels count lanes sums chunks sums_chunk w taps taps_slot")


def weights_out(M, W, T):
    """w[lane, term, :] = G^T (the chunks' sums of `winograd_dw` at [k, term, lane]) G, the 3 x 3 weights of `count` lanes.

    Shares split the terms, the canonical weights' input channels. taps: scratch memory, 9 * W * terms elements a slot.
    """
    MATRICES, TAPS = (M + 2) ** 2, 9 * W

    def kernel(row, image, slot, chunk, share, shares):
        terms, count, lanes = get(row, WEIGHTS_OUT.terms), get(row, WEIGHTS_OUT.count), get(row, WEIGHTS_OUT.lanes)
        sums, chunks, sums_chunk = get(row, WEIGHTS_OUT.sums), get(row, WEIGHTS_OUT.chunks), get(row, WEIGHTS_OUT.sums_chunk)
        w, taps = pointer(get(row, WEIGHTS_OUT.w), T), pointer(get(row, WEIGHTS_OUT.taps) + slot * get(row, WEIGHTS_OUT.taps_slot), T)
        pitch = get(row, WEIGHTS_OUT.channels) * lanes
        begin, end = terms * share // shares, terms * (share + 1) // shares
        for o in range(0, lanes, W):
            o = min(o, lanes - W)
            for term in range(begin, end):
                at = term * lanes + o
                total = loads(pointer(sums, T), at, MATRICES, pitch, 1, 0, 1, W)
                for c in range(1, chunks):
                    total = add(total, loads(pointer(sums + c * sums_chunk, T), at, MATRICES, pitch, 1, 0, 1, W))
                stores(taps, (term - begin) * TAPS, 9, W, 1, 0, 1, W, to_weights(total, M))
            transpose(taps, 0, W, w, (o * terms + begin) * 9, terms * 9, (end - begin) * 9, max(0, min(W, count - o)))

    return kernel


# --- images ----------------------------------------------------------------------------------------------------------

WINOGRAD = fields(
    "rows columns block channels terms lanes by_lanes iy ix x x_slot x_image u bias work work_slot v_pitch m_pitch "
    "y y_slot y_image oy ox add add_slot add_image add_y add_x mask mask_slot mask_image mask_y mask_x relu winner winner_slot winner_image"
)  # fmt: skip


def winograd(M, R, V, W, X, POOL, T):
    """Convolution of an image, rows x columns outputs of `lanes` channels, by tiles of M x M, in blocks of `block` rows of tiles:
    their transforms of x (X lanes at a time), matrix products (R tiles x V * W lanes in registers), the transform of y.

    rows, columns: at least M. x: the upper left pixel of the first output's window, iy and ix from one row and pixel to the next;
    y, add and mask: the first output. terms: how many of x's `channels` have weights in u (`weights_in`). work: scratch memory;
    Tiles says how much. Then as in tiles.conv: bias, `add`, ReLU, ReLU's mask. y may be none of the buffers that are read.

    POOL: bias, ReLU and the maximum of 2 x 2 windows, as in tiles.conv_pool. rows, columns: before pooling, so even; M x M / 4
    numbers of y, and of `winner` if its address is not 0, come of a tile.

    Shares split the rows of tiles, or, `by_lanes`, blocks of V * W channels, for which each transforms x again.
    """
    N, SIDE, LANES, WINDOWS = R * V, M + 2, V * W, M // 2
    MATRICES = SIDE**2

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, block = get(row, WINOGRAD.rows), get(row, WINOGRAD.columns), get(row, WINOGRAD.block)
        channels, terms, lanes = get(row, WINOGRAD.channels), get(row, WINOGRAD.terms), get(row, WINOGRAD.lanes)
        x, iy, ix = place(row, WINOGRAD.x, image, slot, T), get(row, WINOGRAD.iy), get(row, WINOGRAD.ix)
        u, bias, relus = pointer(get(row, WINOGRAD.u), T), get(row, WINOGRAD.bias), get(row, WINOGRAD.relu)
        work, v_pitch, m_pitch = pointer(get(row, WINOGRAD.work) + slot * get(row, WINOGRAD.work_slot), T), get(row, WINOGRAD.v_pitch), get(row, WINOGRAD.m_pitch)
        y, oy, ox = place(row, WINOGRAD.y, image, slot, T), get(row, WINOGRAD.oy), get(row, WINOGRAD.ox)
        add_to, mask, asked = get(row, WINOGRAD.add), get(row, WINOGRAD.mask), get(row, WINOGRAD.winner)
        before, before_y, before_x = place(row, WINOGRAD.add, image, slot, T), get(row, WINOGRAD.add_y), get(row, WINOGRAD.add_x)
        passed, passed_y, passed_x = place(row, WINOGRAD.mask, image, slot, T), get(row, WINOGRAD.mask_y), get(row, WINOGRAD.mask_x)
        winner = place(row, WINOGRAD.winner, image, slot, T)

        # A last row of tiles that was moved back computes some outputs of the one before again, and rounds them otherwise:
        # one share does both, in order, so that the result does not depend on who is first.
        whole, blocks, across, products = rows // M, (lanes + LANES - 1) // LANES, (columns + M - 1) // M, MATRICES * v_pitch
        begin, end, first_block, last_block = whole * share // shares, whole * (share + 1) // shares, 0, blocks
        if get(row, WINOGRAD.by_lanes) != 0:
            begin, end, first_block, last_block = 0, whole, blocks * share // shares, blocks * (share + 1) // shares
        if begin < end == whole:
            end = (rows + M - 1) // M
        for top in range(begin, end, block):
            tiles = min(block, end - top) * across
            for t in range(tiles):
                i, j = min((top + t // across) * M, rows - M), min(t % across * M, columns - M)
                for c in range(0, channels, X):
                    c = min(c, channels - X)
                    patch = loads(x, i * iy + j * ix + c, SIDE, iy, SIDE, ix, 1, X)
                    stores(work, t * channels + c, MATRICES, v_pitch, 1, 0, 1, X, of_images(patch, M))
            for b in range(first_block, last_block):
                o = min(b * LANES, lanes - LANES)
                for k in range(MATRICES):
                    for t in range(0, tiles, R):
                        t = max(0, min(t, tiles - R))
                        acc, p, q = zeros(y, N, W), k * v_pitch + t * channels, k * terms * lanes + o
                        for c in range(terms):
                            acc = outer_fma(acc, splats(work, p, R, channels, 1, 0, W), loads(u, q, 1, 0, 1, 0, V, W))
                            p += 1
                            q += lanes
                        stores(work, products + k * m_pitch + t * LANES, R, LANES, 1, 0, V, W, acc)
                for t in range(tiles):
                    i, j = min((top + t // across) * M, rows - M), min(t % across * M, columns - M)
                    for lane in range(o, o + LANES, W):
                        acc = to_outputs(loads(work, products + t * LANES + lane - o, MATRICES, m_pitch, 1, 0, 1, W), M)
                        if POOL:
                            best, to = pooled(acc, WINDOWS, 1), i // 2 * oy + j // 2 * ox + lane
                            out = best if bias == 0 else add(best, loads(pointer(bias, T), lane, 1, 0, 1, 0, 1, W))
                            if relus != 0:
                                out = relu(out)
                            stores(y, to, WINDOWS, oy, WINDOWS, ox, 1, W, out)
                            if asked != 0:
                                found = winners(acc, best, WINDOWS, 1)
                                if relus != 0:
                                    found = if_positive(found, out, -1.0)
                                stores(winner, to, WINDOWS, oy, WINDOWS, ox, 1, W, found)
                        else:
                            if bias != 0:
                                acc = add(acc, loads(pointer(bias, T), lane, 1, 0, 1, 0, 1, W))
                            if add_to != 0:
                                acc = add(acc, loads(before, i * before_y + j * before_x + lane, M, before_y, M, before_x, 1, W))
                            if relus != 0:
                                acc = relu(acc)
                            if mask != 0:
                                acc = kept(acc, loads(passed, i * passed_y + j * passed_x + lane, M, passed_y, M, passed_x, 1, W))
                            stores(y, i * oy + j * ox + lane, M, oy, M, ox, 1, W, acc)

    return kernel


WINOGRAD_DW = fields("rows columns block channels lanes iy ix x x_slot x_image gy gx dy dy_slot dy_image work work_slot v_pitch m_pitch sums sums_chunk")


def winograd_dw(M, R, V, W, X, T):
    """Adds an image's (B^T x B) * (A dy A^T) to the chunk's sums[k, channel of x, lane of dy], which are 0 at first.

    rows, columns: of dy. Tiles hang over: dy must be 0, and x finite, up to the next multiples of M of rows and columns (for x:
    of the windows of such outputs). R divides `channels`, V * W `lanes`: R x V * W sums are in registers. Shares split the
    (M + 2)^2 matrices, for which each transforms the images again. work: as in `winograd`.
    """
    SIDE, LANES = M + 2, V * W
    MATRICES = SIDE**2

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, block, channels, lanes = get(row, WINOGRAD_DW.rows), get(row, WINOGRAD_DW.columns), get(row, WINOGRAD_DW.block), get(row, WINOGRAD_DW.channels), get(row, WINOGRAD_DW.lanes)
        x, iy, ix = place(row, WINOGRAD_DW.x, image, slot, T), get(row, WINOGRAD_DW.iy), get(row, WINOGRAD_DW.ix)
        dy, gy, gx = place(row, WINOGRAD_DW.dy, image, slot, T), get(row, WINOGRAD_DW.gy), get(row, WINOGRAD_DW.gx)
        work, v_pitch, m_pitch = pointer(get(row, WINOGRAD_DW.work) + slot * get(row, WINOGRAD_DW.work_slot), T), get(row, WINOGRAD_DW.v_pitch), get(row, WINOGRAD_DW.m_pitch)
        sums = pointer(get(row, WINOGRAD_DW.sums) + chunk * get(row, WINOGRAD_DW.sums_chunk), T)
        down, across, second = (rows + M - 1) // M, (columns + M - 1) // M, MATRICES * v_pitch
        for top in range(0, down, block):
            tiles = min(block, down - top) * across
            for t in range(tiles):
                i, j = (top + t // across) * M, t % across * M
                for c in range(0, channels, X):
                    c = min(c, channels - X)
                    patch = loads(x, i * iy + j * ix + c, SIDE, iy, SIDE, ix, 1, X)
                    stores(work, t * channels + c, MATRICES, v_pitch, 1, 0, 1, X, of_images(patch, M))
                for o in range(0, lanes, W):
                    patch = loads(dy, i * gy + j * gx + o, M, gy, M, gx, 1, W)
                    stores(work, second + t * lanes + o, MATRICES, m_pitch, 1, 0, 1, W, of_gradients(patch, M))
            for k in range(MATRICES * share // shares, MATRICES * (share + 1) // shares):
                for c in range(0, channels, R):
                    for o in range(0, lanes, LANES):
                        at, p, q = (k * channels + c) * lanes + o, k * v_pitch + c, second + k * m_pitch + o
                        acc = loads(sums, at, R, lanes, 1, 0, V, W)
                        for t in range(tiles):
                            acc = outer_fma(acc, splats(work, p, R, 1, 1, 0, W), loads(work, q, 1, 0, 1, 0, V, W))
                            p += channels
                            q += lanes
                        stores(sums, at, R, lanes, 1, 0, V, W, acc)

    return kernel


# --- for single calls: NHWC images of `lanes` out of images of any layout, and back -------------------------------------------

ENTER = fields("high wide lanes top left rows columns channels x x_image x_row x_column x_channel y y_slot y_image")


def enter_lanes(T):
    """y, high x wide x lanes: x, whose first pixel comes to (top, left), and zeros. Shares split y's rows."""

    def kernel(row, image, slot, chunk, share, shares):
        high, wide, lanes = get(row, ENTER.high), get(row, ENTER.wide), get(row, ENTER.lanes)
        top, left, rows, columns, channels = get(row, ENTER.top), get(row, ENTER.left), get(row, ENTER.rows), get(row, ENTER.columns), get(row, ENTER.channels)
        x, x_row, x_column, x_channel = pointer(get(row, ENTER.x), T), get(row, ENTER.x_row), get(row, ENTER.x_column), get(row, ENTER.x_channel)
        y, first = place(row, ENTER.y, image, slot, T), image * get(row, ENTER.x_image)
        for i in range(high * share // shares, high * (share + 1) // shares):
            to, there = i * wide * lanes, i >= top and i < top + rows
            if not there or channels < lanes:
                zero(y, to, wide * lanes)
            if there:
                source, target = first + (i - top) * x_row, to + left * lanes
                zero(y, to, left * lanes)
                zero(y, target + columns * lanes, (wide - left - columns) * lanes)
                if x_channel != 1:
                    transpose(x, source, x_channel, y, target, lanes, channels, columns)
                elif channels == lanes:
                    copy(x, source, y, target, columns * lanes)
                else:
                    for j in range(columns):
                        copy(x, source + j * x_column, y, target + j * lanes, channels)

    return kernel


LEAVE = fields("rows columns lanes channels x x_slot x_image y y_image y_row y_column y_channel")


def leave_lanes(T):
    """The inverse: y's channels out of x, rows x columns x lanes. Shares split the rows."""

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, lanes, channels = get(row, LEAVE.rows), get(row, LEAVE.columns), get(row, LEAVE.lanes), get(row, LEAVE.channels)
        x, y, first = place(row, LEAVE.x, image, slot, T), pointer(get(row, LEAVE.y), T), image * get(row, LEAVE.y_image)
        y_row, y_column, y_channel = get(row, LEAVE.y_row), get(row, LEAVE.y_column), get(row, LEAVE.y_channel)
        begin, end = rows * share // shares, rows * (share + 1) // shares
        if y_channel != 1:
            transpose(x, begin * columns * lanes, lanes, y, first + begin * y_row, y_channel, (end - begin) * columns, channels)
        else:
            for i in range(begin, end):
                for j in range(columns):
                    copy(x, (i * columns + j) * lanes, y, first + i * y_row + j * y_column, channels)

    return kernel
