"""The code of Winograd's convolution and its images' gradient (tiles_winograd.py has the formulas); that of weights is in
winograd_weights_kernels.py. Imported when a kernel must be compiled."""

from __future__ import annotations

from functools import cache

from tinynet.kernels.cpu.copies_kernels import copy, place, transpose, zero
from tinynet.kernels.cpu.jit import inline
from tinynet.kernels.cpu.simd import add, each_product, outer_fma, product, zeros
from tinynet.kernels.cpu.simd_memory import get, loads, pointer, scalars, stores
from tinynet.kernels.cpu.tiles_kernels import finishing, pooling
from tinynet.kernels.cpu.tiles_winograd import ENTER, LEAVE, WINOGRAD, WINOGRAD_DX, by_rows
from tinynet.kernels.cpu.winograd_transforms import entering, half_to_outputs, making, of_gradients, to_images, to_outputs


@cache
def _multiplying(R, V, W, PADDED):
    """A function for one of the matrix products, tiles x channels at work[v] by terms x lanes at u[q], u_term from one term to the next, of
    which V * W lanes: to work[m], R tiles at a time. PADDED: there is room for a multiple of R, and `more` may add to what is there."""
    N, LANES = R * V, V * W

    @inline
    def multiply(work, v, tiles, channels, u, q, terms, u_term, m, more):
        for t in range(0, tiles, R):
            t = t if PADDED else max(0, min(t, tiles - R))
            acc, at, weights = zeros(work, N, W), v + t * channels, q
            if PADDED and more:
                acc = loads(work, m + t * LANES, R, LANES, 1, 0, V, W)
            for c in range(terms):
                acc = outer_fma(acc, scalars(work, at, R, channels, 1, 0), loads(u, weights, 1, 0, 1, 0, V, W))
                at += 1
                weights += u_term
            stores(work, m + t * LANES, R, LANES, 1, 0, V, W, acc)

    return multiply


def winograd(M, R, V, W, X, ABREAST, FEW, OWN, POOL, T):
    """Convolution of an image, rows x columns outputs of `lanes` channels, by tiles of M x M, in blocks of `block` rows of tiles:
    their transforms of x (X lanes at a time), matrix products (R tiles x V * W lanes in registers), the transform of y.

    rows, columns: at least M. x: the upper left pixel of the first output's window, iy and ix from one row and pixel to the next;
    y, add and mask: the first output. terms: how many of x's `channels` have weights in u (`weights_in`). work: scratch memory;
    Tiles says how much. Then as in tiles.conv: bias, `add`, ReLU, ReLU's mask. y may be none of the buffers that are read.

    POOL: bias, ReLU and the maximum of 2 x 2 windows, as in tiles.conv_pool. rows, columns: before pooling, so even; M x M / 4
    numbers of y, and of `winner` if its address is not 0, come of a tile.

    FEW: `terms`, if they are so few that a matrix' weights for V * W lanes stay in registers over all tiles; else 0. Where those of a
    row of matrices do (`by_rows`), a tile's products of that row are transformed before they are stored: half of the work that
    is left, done while the next products are computed, and a third less to store.

    OWN: u is nowhere in memory: the weights of `own` terms and V * W lanes at a time are transformed here, into scratch memory. All
    tiles of an image are one block, and those of `together` images; there may be more `images` in a call.

    Shares split the images, if there are more than one; else the tiles, or rows of them where tiles overlap. Or, `by_lanes`, blocks of
    V * W channels, for which each transforms x again.
    """
    N, LANES, WINDOWS, SIDE, MATRICES, TERMS = R * V, V * W, M // 2, M + 2, (M + 2) ** 2, max(FEW, 1)
    BY_ROWS, HALF = by_rows(M, FEW), M * W  # HALF: what is stored of a row of matrices
    enter, multiply, make = entering(M, X, ABREAST), _multiplying(R, V, W, OWN), making(M, W)
    finished, store_largest = finishing(M, M, 1, W, T), pooling(WINDOWS, WINDOWS, 1, W, T)

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, block = get(row, WINOGRAD.rows), get(row, WINOGRAD.columns), get(row, WINOGRAD.block)
        channels, terms, lanes = get(row, WINOGRAD.channels), get(row, WINOGRAD.terms), get(row, WINOGRAD.lanes)
        iy, ix, images, together = get(row, WINOGRAD.iy), get(row, WINOGRAD.ix), get(row, WINOGRAD.images), get(row, WINOGRAD.together)
        u, u_term, u_pitch, bias, relus = pointer(get(row, WINOGRAD.u), T), get(row, WINOGRAD.u_term), get(row, WINOGRAD.u_pitch), get(row, WINOGRAD.bias), get(row, WINOGRAD.relu)
        work, v_pitch, m_pitch = pointer(get(row, WINOGRAD.work) + slot * get(row, WINOGRAD.work_slot), T), get(row, WINOGRAD.v_pitch), get(row, WINOGRAD.m_pitch)
        oy, ox, add_to, mask, asked = get(row, WINOGRAD.oy), get(row, WINOGRAD.ox), get(row, WINOGRAD.add), get(row, WINOGRAD.mask), get(row, WINOGRAD.winner)
        before_y, before_x, passed_y, passed_x = get(row, WINOGRAD.add_y), get(row, WINOGRAD.add_x), get(row, WINOGRAD.mask_y), get(row, WINOGRAD.mask_x)

        blocks, across, even, products = (lanes + LANES - 1) // LANES, (columns + M - 1) // M, columns // M, MATRICES * v_pitch
        made, own, own_pitch = products + MATRICES * m_pitch, get(row, WINOGRAD.own), get(row, WINOGRAD.u_pitch)
        taps, w, w_term, w_lane = made + MATRICES * own_pitch, pointer(get(row, WINOGRAD.u), T), get(row, WINOGRAD.w_term), get(row, WINOGRAD.w_lane)
        count, flip = get(row, WINOGRAD.count), get(row, WINOGRAD.flip)
        begin, end, first_block, last_block, last = 0, (rows + M - 1) // M * across, 0, blocks, image + images
        if get(row, WINOGRAD.by_lanes) != 0:
            first_block, last_block = blocks * share // shares, blocks * (share + 1) // shares
        elif images > 1:
            image, last = images * share // shares, images * (share + 1) // shares
        else:
            # A last row or column of tiles that was moved back computes some outputs of the one before again, and rounds them otherwise:
            # one share does both, in order, so that the result does not depend on who is first.
            unit = 1 if rows % M == 0 and columns % M == 0 else across
            units = rows // M * across // unit
            begin, end = units * share // shares * unit, units * (share + 1) // shares * unit if share + 1 < shares else end
        for first in range(image, last, together):
            group = min(together, last - first)
            for top in range(begin // across, (end + across - 1) // across, block):
                tile, past = max(begin, top * across), min(end, (top + block) * across)
                each = past - tile
                tiles = group * each
                for n in range(group):
                    x = place(row, WINOGRAD.x, first + n, slot, T)
                    for r in range(tile // across, (past + across - 1) // across):
                        left, right = max(tile - r * across, 0), min(past - r * across, across)
                        at, to = min(r * M, rows - M) * iy + left * M * ix, n * each + r * across + left - tile
                        enter(x, at, iy, ix, columns - left * M, min(even, right) - left, right - left, channels, work, to * channels, v_pitch)
                for b in range(first_block, last_block):
                    o = min(b * LANES, lanes - LANES)
                    if OWN:
                        for c in range(0, terms, own):
                            many = min(own, terms - c)
                            for lane in range(o, o + LANES, W):
                                there = max(0, min(W, count - lane))
                                make(w, c * w_term + lane * w_lane, w_term, w_lane, there, many, flip, work, taps, work, made + lane - o, LANES, own_pitch)
                            for k in range(MATRICES):
                                multiply(work, k * v_pitch + c, tiles, channels, work, made + k * own_pitch, many, LANES, products + k * m_pitch, c > 0)
                    elif BY_ROWS:
                        for i in range(SIDE):
                            weights = loads(u, i * SIDE * u_pitch + o, SIDE, u_pitch, TERMS, u_term, 1, W)
                            for t in range(tiles):
                                sums = each_product(scalars(work, i * SIDE * v_pitch + t * channels, SIDE, v_pitch, TERMS, 1), weights, TERMS)
                                stores(work, products + (t * SIDE + i) * HALF, M, W, 1, 0, 1, W, half_to_outputs(sums, M, 1))
                    elif FEW > 0:
                        for k in range(MATRICES):
                            weights = loads(u, k * u_pitch + o, TERMS, u_term, 1, 0, V, W)
                            for t in range(0, tiles, R):
                                t = max(0, min(t, tiles - R))
                                acc = product(zeros(work, N, W), scalars(work, k * v_pitch + t * channels, R, channels, TERMS, 1), weights, TERMS)
                                stores(work, products + k * m_pitch + t * LANES, R, LANES, 1, 0, V, W, acc)
                    else:
                        for k in range(MATRICES):
                            multiply(work, k * v_pitch, tiles, channels, u, k * u_pitch + o, terms, u_term, products + k * m_pitch, False)
                    for n in range(group):
                        y, winner = place(row, WINOGRAD.y, first + n, slot, T), place(row, WINOGRAD.winner, first + n, slot, T)
                        before, passed = place(row, WINOGRAD.add, first + n, slot, T), place(row, WINOGRAD.mask, first + n, slot, T)
                        for t in range(each):
                            i, j, at = min((tile + t) // across * M, rows - M), min((tile + t) % across * M, columns - M), products + (n * each + t) * LANES - o
                            for lane in range(o, o + LANES, W):
                                if BY_ROWS:
                                    acc = half_to_outputs(loads(work, products + (n * each + t) * SIDE * HALF, SIDE, HALF, M, W, 1, W), M, M)
                                else:
                                    acc = to_outputs(loads(work, at + lane, MATRICES, m_pitch, 1, 0, 1, W), M)
                                if POOL:
                                    store_largest(acc, bias, lane, relus, y, i // 2 * oy + j // 2 * ox + lane, oy, ox, asked, winner)
                                else:
                                    added, masked = i * before_y + j * before_x + lane, i * passed_y + j * passed_x + lane
                                    acc = finished(acc, bias, lane, add_to, before, added, before_y, before_x, relus, mask, passed, masked, passed_y, passed_x)
                                    stores(y, i * oy + j * ox + lane, M, oy, M, ox, 1, W, acc)

    return kernel


def winograd_dx(M, R, V, W, X, T):
    """The images' gradient, high x wide pixels of `lanes`, out of tiles of dy: B [u * (A dy A^T)] B^T of each is added to where it came
    from, in scratch memory with room for what the convolution's padding (top, left) and the last tiles leave over.

    rows, columns: of dy, which must be 0 up to their next multiples of M. V * W divides `lanes`. u (`weights_in`): its terms are dy's
    channels, not flipped. Then `add` and ReLU's mask, as in `winograd`. Shares split the lanes; each transforms dy for itself.
    """
    LANES, MATRICES, SIDE, multiply, finished = V * W, (M + 2) ** 2, M + 2, _multiplying(R, V, W, False), finishing(1, 1, 1, W, T)

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, block = get(row, WINOGRAD_DX.rows), get(row, WINOGRAD_DX.columns), get(row, WINOGRAD_DX.block)
        channels, terms, lanes = get(row, WINOGRAD_DX.channels), get(row, WINOGRAD_DX.terms), get(row, WINOGRAD_DX.lanes)
        high, wide, up, left = get(row, WINOGRAD_DX.high), get(row, WINOGRAD_DX.wide), get(row, WINOGRAD_DX.top), get(row, WINOGRAD_DX.left)
        dy, gy, gx = place(row, WINOGRAD_DX.dy, image, slot, T), get(row, WINOGRAD_DX.gy), get(row, WINOGRAD_DX.gx)
        u, u_term, u_pitch = pointer(get(row, WINOGRAD_DX.u), T), get(row, WINOGRAD_DX.u_term), get(row, WINOGRAD_DX.u_pitch)
        work, v_pitch, m_pitch = pointer(get(row, WINOGRAD_DX.work) + slot * get(row, WINOGRAD_DX.work_slot), T), get(row, WINOGRAD_DX.v_pitch), get(row, WINOGRAD_DX.m_pitch)
        dx, dx_y, dx_x = place(row, WINOGRAD_DX.dx, image, slot, T), get(row, WINOGRAD_DX.dx_y), get(row, WINOGRAD_DX.dx_x)
        add_to, mask = get(row, WINOGRAD_DX.add), get(row, WINOGRAD_DX.mask)
        before, before_y, before_x = place(row, WINOGRAD_DX.add, image, slot, T), get(row, WINOGRAD_DX.add_y), get(row, WINOGRAD_DX.add_x)
        passed, passed_y, passed_x = place(row, WINOGRAD_DX.mask, image, slot, T), get(row, WINOGRAD_DX.mask_y), get(row, WINOGRAD_DX.mask_x)

        blocks, down, across = lanes // LANES, (rows + M - 1) // M, (columns + M - 1) // M
        first, last = blocks * share // shares * LANES, blocks * (share + 1) // shares * LANES
        products, sums = MATRICES * v_pitch, MATRICES * (v_pitch + m_pitch)
        pixels, sums_x, sums_y = get(row, WINOGRAD_DX.sum_rows) * get(row, WINOGRAD_DX.sum_columns), lanes, get(row, WINOGRAD_DX.sum_columns) * lanes
        for p in range(pixels):
            for o in range(first, last, W):
                stores(work, sums + p * sums_x + o, 1, 0, 1, 0, 1, W, zeros(work, 1, W))
        for top in range(0, down, block):
            tiles = min(block, down - top) * across
            for t in range(tiles):
                at = (top + t // across) * M * gy + t % across * M * gx
                for c in range(0, channels, X):
                    c = min(c, channels - X)
                    stores(work, t * channels + c, MATRICES, v_pitch, 1, 0, 1, X, of_gradients(loads(dy, at + c, M, gy, M, gx, 1, X), M))
            for o in range(first, last, LANES):
                for k in range(MATRICES):
                    multiply(work, k * v_pitch, tiles, channels, u, k * u_pitch + o, terms, u_term, products + k * m_pitch, False)
                for t in range(tiles):
                    to = sums + (top + t // across) * M * sums_y + t % across * M * sums_x
                    for lane in range(o, o + LANES, W):
                        tile = to_images(loads(work, products + t * LANES + lane - o, MATRICES, m_pitch, 1, 0, 1, W), M)
                        stores(work, to + lane, SIDE, sums_y, SIDE, sums_x, 1, W, add(tile, loads(work, to + lane, SIDE, sums_y, SIDE, sums_x, 1, W)))
        for i in range(high):
            for j in range(wide):
                for o in range(first, last, W):
                    acc = loads(work, sums + (i + up) * sums_y + (j + left) * sums_x + o, 1, 0, 1, 0, 1, W)
                    added, masked = i * before_y + j * before_x + o, i * passed_y + j * passed_x + o
                    acc = finished(acc, 0, o, add_to, before, added, before_y, before_x, 0, mask, passed, masked, passed_y, passed_x)
                    stores(dx, i * dx_y + j * dx_x + o, 1, 0, 1, 0, 1, W, acc)

    return kernel


# --- for single calls: NHWC images of `lanes` out of images of any layout, and back -------------------------------------------


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
