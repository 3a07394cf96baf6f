"""The code of what becomes of weights in Winograd's convolution (tiles_winograd.py has the formulas): their matrices, and back, and the
gradient's sums. Imported when a kernel must be compiled."""

from __future__ import annotations

from functools import cache

from tinynet.kernels.cpu.copies_kernels import changes, place, sums_of, transpose, zero
from tinynet.kernels.cpu.jit import inline
from tinynet.kernels.cpu.simd import add, full, if_positive, outer_fma, unpooled, zeros
from tinynet.kernels.cpu.simd_memory import get, loads, pointer, scalars, stores
from tinynet.kernels.cpu.tiles_winograd import MADE, WEIGHTS, WEIGHTS_OUT, WINOGRAD_DW
from tinynet.kernels.cpu.winograd_transforms import entering, making, of_gradients, to_weights


def weights_in(M, W, T):
    """u[k, term, lane] = (G g G^T)[k], g the 3 x 3 weights at w + term * w_term + lane * w_lane; 0 in lanes from `count` on.

    Forward: terms are input channels, lanes the output's. Images' gradient: the other way round, and `flip`: taps are read
    backwards. Shares split the terms. taps: scratch memory, 9 * W * MADE elements a slot. seen: as for layers.pack, but only forward.
    """
    make, changed = making(M, W), changes(T)

    def kernel(row, image, slot, chunk, share, shares):
        terms, count, lanes = get(row, WEIGHTS.terms), get(row, WEIGHTS.count), get(row, WEIGHTS.lanes)
        w, w_term, w_lane = pointer(get(row, WEIGHTS.w), T), get(row, WEIGHTS.w_term), get(row, WEIGHTS.w_lane)
        u, u_term, pitch, taps = pointer(get(row, WEIGHTS.u), T), get(row, WEIGHTS.u_term), get(row, WEIGHTS.u_pitch), pointer(get(row, WEIGHTS.taps) + slot * get(row, WEIGHTS.taps_slot), T)
        begin, end, seen = terms * share // shares, terms * (share + 1) // shares, get(row, WEIGHTS.seen)
        if seen != 0 and not changed(get(row, WEIGHTS.w), seen, begin * w_term, count, w_lane, (end - begin) * 9):
            return
        for c in range(begin, end, MADE):
            for o in range(0, lanes, W):
                o = min(o, lanes - W)
                make(w, c * w_term + o * w_lane, w_term, w_lane, max(0, min(W, count - o)), min(MADE, end - c), get(row, WEIGHTS.flip), taps, 0, u, c * u_term + o, u_term, pitch)

    return kernel


def weights_out(M, W, T):
    """w[lane, term, :] = G^T (the chunks' sums of `winograd_dw` at [k, term, lane]) G, the 3 x 3 weights of `count` lanes.

    Shares split the terms, the canonical weights' input channels. taps: scratch memory, 9 * W * terms elements a slot.
    """
    MATRICES, TAPS = (M + 2) ** 2, 9 * W

    def kernel(row, image, slot, chunk, share, shares):
        terms, count, lanes = get(row, WEIGHTS_OUT.terms), get(row, WEIGHTS_OUT.count), get(row, WEIGHTS_OUT.lanes)
        sums, chunks, sums_chunk = get(row, WEIGHTS_OUT.sums), get(row, WEIGHTS_OUT.chunks), get(row, WEIGHTS_OUT.sums_chunk)
        w, taps = pointer(get(row, WEIGHTS_OUT.w), T), pointer(get(row, WEIGHTS_OUT.taps) + slot * get(row, WEIGHTS_OUT.taps_slot), T)
        pitch = get(row, WEIGHTS_OUT.sums_pitch)
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


@cache
def _summing(R, V, W):
    """A function for some sums of the weights' gradient: acc, R terms x V * W lanes, and the products of all tiles' images from work[p]
    on, `channels` a tile, and of their gradients from work[q] on, `side` a tile."""

    @inline
    def add_tiles(acc, work, p, channels, q, side, tiles):
        for t in range(tiles):
            acc = outer_fma(acc, scalars(work, p, R, 1, 1, 0), loads(work, q, 1, 0, 1, 0, V, W))
            p += channels
            q += side
        return acc

    return add_tiles


def winograd_dw(M, R, V, W, X, ABREAST, OWN, POOL, T):
    """Adds an image's (B^T x B) * (A dy A^T) to the chunk's sums[k, channel of x, lane of dy], of the first `terms` channels.

    rows, columns: of dy. Tiles hang over: dy must be 0, and x finite, up to the next multiples of M of rows and columns (for x:
    of the windows of such outputs). R divides `terms`, V * W `lanes`: R x V * W sums are in registers. Shares split the
    (M + 2)^2 matrices, for which each transforms the images again. work: as in `winograd`.

    POOL: dy is the gradient of the maxima of 2 x 2 windows, M x M / 4 numbers of it and of `winner` make a tile, and a chunk's sums of what
    reaches a winner, the bias' gradient, are added to `reached`. So the gradient before pooling, four times as large and mostly zeros, is nowhere in memory.

    OWN: `sums` is the gradient itself, of `count` lanes: the sums of `own` terms and V * W lanes at a time over the tiles of `together` of
    `images` are in scratch memory, and transformed back at once. Then shares split the lanes.
    """
    N, LANES, MATRICES, WINDOWS, WINNERS, TAPS = R * V, V * W, (M + 2) ** 2, M // 2, (M // 2) ** 2, 9 * W
    enter, add_tiles = entering(M, X, ABREAST), _summing(R, V, W)

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, block = get(row, WINOGRAD_DW.rows), get(row, WINOGRAD_DW.columns), get(row, WINOGRAD_DW.block)
        channels, terms, lanes, side = get(row, WINOGRAD_DW.channels), get(row, WINOGRAD_DW.terms), get(row, WINOGRAD_DW.lanes), get(row, WINOGRAD_DW.side)
        iy, ix, images, together = get(row, WINOGRAD_DW.iy), get(row, WINOGRAD_DW.ix), get(row, WINOGRAD_DW.images), get(row, WINOGRAD_DW.together)
        gy, gx = get(row, WINOGRAD_DW.gy), get(row, WINOGRAD_DW.gx)
        work, v_pitch, m_pitch = pointer(get(row, WINOGRAD_DW.work) + slot * get(row, WINOGRAD_DW.work_slot), T), get(row, WINOGRAD_DW.v_pitch), get(row, WINOGRAD_DW.m_pitch)
        s_pitch, (sums, adds) = get(row, WINOGRAD_DW.sums_pitch), sums_of(row, WINOGRAD_DW.sums, image, chunk, T)
        winner_y, winner_x = get(row, WINOGRAD_DW.winner_y), get(row, WINOGRAD_DW.winner_x)
        ones = full(work, T(1), WINNERS, W)
        reached = pointer(get(row, WINOGRAD_DW.reached) + chunk * get(row, WINOGRAD_DW.reached_chunk), T)
        down, across, second = (rows + M - 1) // M, (columns + M - 1) // M, MATRICES * v_pitch
        third, own, own_pitch, count = MATRICES * (v_pitch + m_pitch), get(row, WINOGRAD_DW.own), get(row, WINOGRAD_DW.own_pitch), get(row, WINOGRAD_DW.count)
        taps, first, last = third + MATRICES * own_pitch, 0, lanes
        if OWN:
            first, last = lanes // LANES * share // shares * LANES, lanes // LANES * (share + 1) // shares * LANES
        for begin in range(image, image + images, together):
            group = min(together, image + images - begin)
            for top in range(0, down, block):
                each, more = min(block, down - top) * across, adds or begin > image or top > 0
                tiles = group * each
                for n in range(group):
                    x = place(row, WINOGRAD_DW.x, begin + n, slot, T)
                    for t in range(0, each, across):
                        enter(x, (top + t // across) * M * iy, iy, ix, across * M, across, across, channels, work, (n * each + t) * channels, v_pitch)
                for o in range(first, last, W):
                    total = zeros(work, WINNERS, W)
                    for n in range(group):
                        dy, winner = place(row, WINOGRAD_DW.dy, begin + n, slot, T), place(row, WINOGRAD_DW.winner, begin + n, slot, T)
                        for t in range(each):
                            i, j, to = (top + t // across) * M, t % across * M, second + (n * each + t) * side + o - first
                            if POOL:
                                i, j = i // 2, j // 2
                                places = loads(winner, i * winner_y + j * winner_x + o, WINDOWS, winner_y, WINDOWS, winner_x, 1, W)
                                best = loads(dy, i * gy + j * gx + o, WINDOWS, gy, WINDOWS, gx, 1, W)
                                patch = unpooled(best, places, WINDOWS, 1)
                                total = add(total, if_positive(best, add(places, ones), 0.0))  # -1: ReLU let nothing pass
                            else:
                                patch = loads(dy, i * gy + j * gx + o, M, gy, M, gx, 1, W)
                            stores(work, to, MATRICES, m_pitch, 1, 0, 1, W, of_gradients(patch, M))
                    if POOL and (OWN or share == 0):
                        whole = zeros(work, 1, W)
                        for vector in total:
                            whole = add(whole, (vector,))
                        if more:
                            whole = add(whole, loads(reached, o, 1, 0, 1, 0, 1, W))
                        stores(reached, o, 1, 0, 1, 0, 1, W, whole)
                if OWN:
                    for o in range(first, last, LANES):
                        for c in range(0, terms, own):
                            many = min(own, terms - c)
                            for k in range(MATRICES):
                                for r in range(0, many, R):
                                    acc = add_tiles(zeros(work, N, W), work, k * v_pitch + c + r, channels, second + k * m_pitch + o - first, side, tiles)
                                    stores(work, third + k * own_pitch + r * LANES, R, LANES, 1, 0, V, W, acc)
                            for lane in range(0, LANES, W):
                                at, there = ((o + lane) * terms + c) * 9, max(0, min(W, count - o - lane))
                                if more:
                                    if there < W:
                                        zero(work, taps, many * TAPS)
                                    transpose(sums, at, terms * 9, work, taps, W, there, many * 9)
                                for r in range(many):
                                    weights = to_weights(loads(work, third + r * LANES + lane, MATRICES, own_pitch, 1, 0, 1, W), M)
                                    if more:
                                        weights = add(weights, loads(work, taps + r * TAPS, 9, W, 1, 0, 1, W))
                                    stores(work, taps + r * TAPS, 9, W, 1, 0, 1, W, weights)
                                transpose(work, taps, W, sums, at, terms * 9, many * 9, there)
                else:
                    for k in range(MATRICES * share // shares, MATRICES * (share + 1) // shares):
                        for c in range(0, terms, R):
                            for o in range(0, lanes, LANES):
                                at, acc = k * s_pitch + c * lanes + o, zeros(sums, N, W)
                                if more:
                                    acc = loads(sums, at, R, lanes, 1, 0, V, W)
                                acc = add_tiles(acc, work, k * v_pitch + c, channels, second + k * m_pitch + o, side, tiles)
                                stores(sums, at, R, lanes, 1, 0, V, W, acc)

    return kernel
