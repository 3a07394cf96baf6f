"""Winograd's convolution: fewer multiplications for 3 x 3 kernels of stride 1."""

from __future__ import annotations

from tinynet.kernels.cpu.program import fields
from tinynet.kernels.cpu.simd import add, congruence, get, if_positive, kept, loads, outer_fma, pointer, pooled, put, relu, splats, stores, winners, zeros
from tinynet.kernels.cpu.tiles import _transpose, place

B = {
    2: ((1, 0, 0, 0), (0, 1, -1, 1), (-1, 1, 1, 0), (0, 0, 0, -1)),
    4: ((4, 0, 0, 0, 0, 0), (0, -4, 4, -2, 2, 4), (-5, -4, -4, -1, -1, 0), (0, 1, -1, 2, -2, -5), (1, 1, 1, 1, 1, 0), (0, 0, 0, 0, 0, 1)),
}
G = {
    2: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    4: ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1)),
}
A = {
    2: ((1, 0), (1, 1), (1, -1), (0, -1)),
    4: ((1, 0, 0, 0), (1, 1, 1, 1), (1, -1, 1, -1), (1, 2, 4, 8), (1, -2, 4, -8), (0, 0, 0, 1)),
}


def _turned(matrices: dict) -> dict:
    return {m: tuple(zip(*matrix)) for m, matrix in matrices.items()}


of_x, of_dy, of_weights = congruence(_turned(B)), congruence(A), congruence(G)
to_y, to_dweights = congruence(_turned(A)), congruence(_turned(G))

WEIGHTS = fields("lanes terms count w w_term w_lane flip u scratch scratch_slot")


def weights_in(M, W, T):
    SIDE, F = M + 2, WEIGHTS
    MATRICES = SIDE * SIDE

    def kernel(row, image, slot, chunk, share, shares):
        lanes, terms, count, flip = get(row, F.lanes), get(row, F.terms), get(row, F.count), get(row, F.flip)
        w, w_term, w_lane = pointer(get(row, F.w), T), get(row, F.w_term), get(row, F.w_lane)
        u, taps = pointer(get(row, F.u), T), pointer(get(row, F.scratch) + slot * get(row, F.scratch_slot), T)
        for term in range(terms * share // shares, terms * (share + 1) // shares):
            for o in range(0, lanes, W):
                o = min(o, lanes - W)
                there = max(0, min(W, count - o))
                for i in range(9 * W):
                    put(taps, i, 0.0)
                _transpose(w, term * w_term + o * w_lane, w_lane, taps, 0, W, there, 9)
                if flip != 0:
                    kernel_ = loads(taps, 8 * W, 9, -W, 1, 0, 1, W)
                    stores(u, term * lanes + o, MATRICES, terms * lanes, 1, 0, 1, W, of_weights(kernel_, M))
                else:
                    kernel_ = loads(taps, 0, 9, W, 1, 0, 1, W)
                    stores(u, term * lanes + o, MATRICES, terms * lanes, 1, 0, 1, W, of_weights(kernel_, M))

    return kernel


WINOGRAD = fields(
    "rows columns block channels terms lanes by_lanes iy ix x x_slot x_image u bias work work_slot v_pitch m_pitch "
    "y y_slot y_image oy ox add add_slot add_image add_y add_x mask mask_slot mask_image mask_y mask_x relu winner"
)  # fmt: skip


def winograd(M, R, V, W, X, POOL, T):
    N, SIDE, LANES, F = R * V, M + 2, V * W, WINOGRAD
    MATRICES, WINDOWS = SIDE * SIDE, M // 2

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, block = get(row, F.rows), get(row, F.columns), get(row, F.block)
        channels, terms, lanes = get(row, F.channels), get(row, F.terms), get(row, F.lanes)
        x, iy, ix = place(row, F.x, image, slot, T), get(row, F.iy), get(row, F.ix)
        u, bias, relus = pointer(get(row, F.u), T), get(row, F.bias), get(row, F.relu)
        v_pitch, m_pitch = get(row, F.v_pitch), get(row, F.m_pitch)
        v = pointer(get(row, F.work) + slot * get(row, F.work_slot), T)
        m = MATRICES * v_pitch
        y, oy, ox = place(row, F.y, image, slot, T), get(row, F.oy), get(row, F.ox)
        add_to, mask, asked = get(row, F.add), get(row, F.mask), get(row, F.winner)
        before, before_y, before_x = place(row, F.add, image, slot, T), get(row, F.add_y), get(row, F.add_x)
        passed, passed_y, passed_x = place(row, F.mask, image, slot, T), get(row, F.mask_y), get(row, F.mask_x)
        winner = pointer(asked + slot * get(row, F.y_slot) + image * get(row, F.y_image), T)

        whole, across, blocks = rows // M, (columns + M - 1) // M, (lanes + LANES - 1) // LANES
        begin, end, first_block, last_block = whole * share // shares, whole * (share + 1) // shares, 0, blocks
        if get(row, F.by_lanes) != 0:
            begin, end, first_block, last_block = 0, whole, blocks * share // shares, blocks * (share + 1) // shares
        if end == whole and begin < end:
            end = (rows + M - 1) // M
        for top in range(begin, end, block):
            high = min(block, end - top)
            tiles = high * across
            for i in range(high):
                for j in range(across):
                    at = min((top + i) * M, rows - M) * iy + min(j * M, columns - M) * ix
                    to = (i * across + j) * channels
                    for c in range(0, channels, X):
                        c = min(c, channels - X)
                        stores(v, to + c, MATRICES, v_pitch, 1, 0, 1, X, of_x(loads(x, at + c, SIDE, iy, SIDE, ix, 1, X), M))
            for b in range(first_block, last_block):
                o = min(b * LANES, lanes - LANES)
                for k in range(MATRICES):
                    for t in range(0, tiles, R):
                        t = max(0, min(t, tiles - R))
                        acc = zeros(v, N, W)
                        p, q = k * v_pitch + t * channels, k * terms * lanes + o
                        for c in range(terms):
                            acc = outer_fma(acc, splats(v, p, R, channels, 1, 0, W), loads(u, q, 1, 0, 1, 0, V, W))
                            p += 1
                            q += lanes
                        stores(v, m + k * m_pitch + t * LANES, R, LANES, 1, 0, V, W, acc)
                for i in range(high):
                    for j in range(across):
                        h, g, t = min((top + i) * M, rows - M), min(j * M, columns - M), i * across + j
                        for e in range(0, LANES, W):
                            acc = to_y(loads(v, m + t * LANES + e, MATRICES, m_pitch, 1, 0, 1, W), M)
                            lane = o + e
                            if POOL:
                                to = h // 2 * oy + g // 2 * ox + lane
                                best = pooled(acc, WINDOWS, 1)
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
                                    acc = add(acc, loads(before, h * before_y + g * before_x + lane, M, before_y, M, before_x, 1, W))
                                if relus != 0:
                                    acc = relu(acc)
                                if mask != 0:
                                    acc = kept(acc, loads(passed, h * passed_y + g * passed_x + lane, M, passed_y, M, passed_x, 1, W))
                                stores(y, h * oy + g * ox + lane, M, oy, M, ox, 1, W, acc)

    return kernel


DW = fields("rows columns block channels lanes iy ix x x_slot x_image gy gx dy dy_slot dy_image work work_slot v_pitch m_pitch sums sums_chunk")


def winograd_dw(M, R, V, W, X, T):
    SIDE, LANES, F = M + 2, V * W, DW
    MATRICES = SIDE * SIDE

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, block = get(row, F.rows), get(row, F.columns), get(row, F.block)
        channels, lanes = get(row, F.channels), get(row, F.lanes)
        x, iy, ix = place(row, F.x, image, slot, T), get(row, F.iy), get(row, F.ix)
        dy, gy, gx = place(row, F.dy, image, slot, T), get(row, F.gy), get(row, F.gx)
        v_pitch, m_pitch = get(row, F.v_pitch), get(row, F.m_pitch)
        v = pointer(get(row, F.work) + slot * get(row, F.work_slot), T)
        m = MATRICES * v_pitch
        sums = pointer(get(row, F.sums) + chunk * get(row, F.sums_chunk), T)
        down, across = (rows + M - 1) // M, (columns + M - 1) // M
        for top in range(0, down, block):
            high = min(block, down - top)
            tiles = high * across
            for i in range(high):
                for j in range(across):
                    t, h, g = i * across + j, (top + i) * M, j * M
                    for c in range(0, channels, X):
                        c = min(c, channels - X)
                        stores(v, t * channels + c, MATRICES, v_pitch, 1, 0, 1, X, of_x(loads(x, h * iy + g * ix + c, SIDE, iy, SIDE, ix, 1, X), M))
                    for o in range(0, lanes, W):
                        stores(v, m + t * lanes + o, MATRICES, m_pitch, 1, 0, 1, W, of_dy(loads(dy, h * gy + g * gx + o, M, gy, M, gx, 1, W), M))
            for k in range(MATRICES * share // shares, MATRICES * (share + 1) // shares):
                for c in range(0, channels, R):
                    for o in range(0, lanes, LANES):
                        at = (k * channels + c) * lanes + o
                        acc, p, q = loads(sums, at, R, lanes, 1, 0, V, W), k * v_pitch + c, m + k * m_pitch + o
                        for t in range(tiles):
                            acc = outer_fma(acc, splats(v, p, R, 1, 1, 0, W), loads(v, q, 1, 0, 1, 0, V, W))
                            p += channels
                            q += lanes
                        stores(sums, at, R, lanes, 1, 0, V, W, acc)

    return kernel
