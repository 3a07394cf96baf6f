"""The code of Winograd's convolution (tiles_winograd.py has the formulas). Imported when a kernel must be compiled."""

from __future__ import annotations

from tinynet.kernels.cpu.congruence import congruence
from tinynet.kernels.cpu.jit import inline
from tinynet.kernels.cpu.simd import add, full, get, if_positive, kept, loads, outer_fma, pointer, pooled, product, relu, side_by_side, splats, stores, unpooled, winners, zeros
from tinynet.kernels.cpu.copies_kernels import changes, copy, place, sums_of, transpose, zero
from tinynet.kernels.cpu.tiles_winograd import ENTER, LEAVE, MADE, WEIGHTS, WEIGHTS_OUT, WINOGRAD, WINOGRAD_DW, WINOGRAD_DX, A, B, G


def _turned(matrices: dict) -> dict:
    return {m: tuple(zip(*matrix)) for m, matrix in matrices.items()}


# Of a tile's registers and M: B^T d B, A dy A^T, G g G^T; and A^T m A, B m B^T, G^T dm G.
of_images, of_gradients, of_weights = congruence(_turned(B)), congruence(A), congruence(G)
to_outputs, to_images, to_weights = congruence(_turned(A)), congruence(B), congruence(_turned(G))

# --- weights: into matrices, and back ---------------------------------------------------------------------------------


def _of_weights(M, W):
    """A function for (G g G^T)[k] of `many` terms and W lanes, `there` of which have weights g, 3 x 3 at w[at + term * w_term + lane * w_lane],
    and 0 is in the others: to u[to + k * pitch + term * u_term]. scratch: taps[hold:], 9 * W * many elements."""
    MATRICES, TAPS = (M + 2) ** 2, 9 * W

    @inline
    def transformed(w, at, w_term, w_lane, there, many, flip, taps, hold, u, to, u_term, pitch):
        if there < W:
            zero(taps, hold, TAPS * many)
        if w_term == 9:  # a lane's terms follow one another
            transpose(w, at, w_lane, taps, hold, W, there, 9 * many)
        else:
            for term in range(many):
                transpose(w, at + term * w_term, w_lane, taps, hold + term * TAPS, W, there, 9)
        first, step = (hold + 8 * W, -W) if flip != 0 else (hold, W)
        for term in range(many):
            stores(u, to + term * u_term, MATRICES, pitch, 1, 0, 1, W, of_weights(loads(taps, first + term * TAPS, 9, step, 1, 0, 1, W), M))

    return transformed


def weights_in(M, W, T):
    """u[k, term, lane] = (G g G^T)[k], g the 3 x 3 weights at w + term * w_term + lane * w_lane; 0 in lanes from `count` on.

    Forward: terms are input channels, lanes the output's. Images' gradient: the other way round, and `flip`: taps are read
    backwards. Shares split the terms. taps: scratch memory, 9 * W * MADE elements a slot. seen: as for layers.pack, but only forward.
    """
    transformed, changed = _of_weights(M, W), changes(T)

    def kernel(row, image, slot, chunk, share, shares):
        terms, count, lanes = get(row, WEIGHTS.terms), get(row, WEIGHTS.count), get(row, WEIGHTS.lanes)
        w, w_term, w_lane = pointer(get(row, WEIGHTS.w), T), get(row, WEIGHTS.w_term), get(row, WEIGHTS.w_lane)
        u, pitch, taps = pointer(get(row, WEIGHTS.u), T), get(row, WEIGHTS.u_pitch), pointer(get(row, WEIGHTS.taps) + slot * get(row, WEIGHTS.taps_slot), T)
        begin, end, seen = terms * share // shares, terms * (share + 1) // shares, get(row, WEIGHTS.seen)
        if seen != 0 and not changed(get(row, WEIGHTS.w), seen, begin * w_term, count, w_lane, (end - begin) * 9):
            return
        for c in range(begin, end, MADE):
            for o in range(0, lanes, W):
                o = min(o, lanes - W)
                transformed(w, c * w_term + o * w_lane, w_term, w_lane, max(0, min(W, count - o)), min(MADE, end - c), get(row, WEIGHTS.flip), taps, 0, u, c * lanes + o, lanes, pitch)

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


# --- images ----------------------------------------------------------------------------------------------------------


def _entering(M, X, ABREAST):
    """A function that transforms the patches of x for a row of tiles, whose first begins at x[at]; the first `even` of them
    lie M pixels apart, the last may have been moved back. Where X lanes are all channels of a pixel, ABREAST such tiles fill a register."""
    SIDE, TOGETHER = M + 2, ABREAST * X
    MATRICES = SIDE**2

    @inline
    def enter(x, at, iy, ix, columns, even, across, channels, work, to, v_pitch):
        done = 0
        if ABREAST > 1 and even >= ABREAST:
            for t in range(0, even, ABREAST):
                t = min(t, even - ABREAST)
                patches = side_by_side(x, at + t * M * ix, SIDE, iy, SIDE, ix, ABREAST, M * ix, X)
                stores(work, to + t * X, MATRICES, v_pitch, 1, 0, 1, TOGETHER, of_images(patches, M))
            done = even
        for t in range(done, across):
            j = min(t * M, columns - M)
            for c in range(0, channels, X):
                c = min(c, channels - X)
                patch = loads(x, at + j * ix + c, SIDE, iy, SIDE, ix, 1, X)
                stores(work, to + t * channels + c, MATRICES, v_pitch, 1, 0, 1, X, of_images(patch, M))

    return enter


def _multiplying(R, V, W, PADDED):
    """A function for one of the matrix products, tiles x channels at work[v] by terms x lanes at u[q], of which V * W lanes: to work[m],
    R tiles at a time. PADDED: there is room for a multiple of R, and `more` may add to what is there."""
    N, LANES = R * V, V * W

    @inline
    def multiply(work, v, tiles, channels, u, q, terms, lanes, m, more):
        for t in range(0, tiles, R):
            t = t if PADDED else max(0, min(t, tiles - R))
            acc, at, weights = zeros(work, N, W), v + t * channels, q
            if PADDED and more:
                acc = loads(work, m + t * LANES, R, LANES, 1, 0, V, W)
            for c in range(terms):
                acc = outer_fma(acc, splats(work, at, R, channels, 1, 0, W), loads(u, weights, 1, 0, 1, 0, V, W))
                at += 1
                weights += lanes
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

    FEW: `terms`, if they are so few that a matrix' weights for V * W lanes stay in registers over all tiles; else 0.

    OWN: u is nowhere in memory: the weights of so many terms and V * W lanes at a time are transformed here, into scratch memory. All
    tiles of an image are one block, and those of `together` images; there may be more `images` in a call.

    Shares split the images, if there are more than one; else the rows of tiles. Or, `by_lanes`, blocks of V * W channels, for which each
    transforms x again.
    """
    N, LANES, WINDOWS, MATRICES, TERMS = R * V, V * W, M // 2, (M + 2) ** 2, max(FEW, 1)
    enter, multiply, transformed = _entering(M, X, ABREAST), _multiplying(R, V, W, OWN > 0), _of_weights(M, W)

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, block = get(row, WINOGRAD.rows), get(row, WINOGRAD.columns), get(row, WINOGRAD.block)
        channels, terms, lanes = get(row, WINOGRAD.channels), get(row, WINOGRAD.terms), get(row, WINOGRAD.lanes)
        iy, ix, images, together = get(row, WINOGRAD.iy), get(row, WINOGRAD.ix), get(row, WINOGRAD.images), get(row, WINOGRAD.together)
        u, u_pitch, bias, relus = pointer(get(row, WINOGRAD.u), T), get(row, WINOGRAD.u_pitch), get(row, WINOGRAD.bias), get(row, WINOGRAD.relu)
        work, v_pitch, m_pitch = pointer(get(row, WINOGRAD.work) + slot * get(row, WINOGRAD.work_slot), T), get(row, WINOGRAD.v_pitch), get(row, WINOGRAD.m_pitch)
        oy, ox, add_to, mask, asked = get(row, WINOGRAD.oy), get(row, WINOGRAD.ox), get(row, WINOGRAD.add), get(row, WINOGRAD.mask), get(row, WINOGRAD.winner)
        before_y, before_x, passed_y, passed_x = get(row, WINOGRAD.add_y), get(row, WINOGRAD.add_x), get(row, WINOGRAD.mask_y), get(row, WINOGRAD.mask_x)

        # A last row of tiles that was moved back computes some outputs of the one before again, and rounds them otherwise:
        # one share does both, in order, so that the result does not depend on who is first.
        whole, blocks, across, even, products = rows // M, (lanes + LANES - 1) // LANES, (columns + M - 1) // M, columns // M, MATRICES * v_pitch
        begin, end, first_block, last_block = whole * share // shares, whole * (share + 1) // shares, 0, blocks
        own, own_pitch = products + MATRICES * m_pitch, get(row, WINOGRAD.u_pitch)
        taps, w, w_term, w_lane = own + MATRICES * own_pitch, pointer(get(row, WINOGRAD.u), T), get(row, WINOGRAD.w_term), get(row, WINOGRAD.w_lane)
        count, flip = get(row, WINOGRAD.count), get(row, WINOGRAD.flip)
        if get(row, WINOGRAD.by_lanes) != 0:
            begin, end, first_block, last_block = 0, whole, blocks * share // shares, blocks * (share + 1) // shares
        if begin < end == whole:
            end = (rows + M - 1) // M
        if images > 1 and get(row, WINOGRAD.by_lanes) == 0:
            image, images = images * share // shares, images * (share + 1) // shares - images * share // shares
            begin, end = 0, (rows + M - 1) // M
        for first in range(image, image + images, together):
            group = min(together, image + images - first)
            for top in range(begin, end, block):
                each = min(block, end - top) * across
                tiles = group * each
                for n in range(group):
                    x = place(row, WINOGRAD.x, first + n, slot, T)
                    for t in range(0, each, across):
                        enter(x, min((top + t // across) * M, rows - M) * iy, iy, ix, columns, even, across, channels, work, (n * each + t) * channels, v_pitch)
                for b in range(first_block, last_block):
                    o = min(b * LANES, lanes - LANES)
                    if OWN > 0:
                        for c in range(0, terms, OWN):
                            many = min(OWN, terms - c)
                            for lane in range(o, o + LANES, W):
                                there = max(0, min(W, count - lane))
                                transformed(w, c * w_term + lane * w_lane, w_term, w_lane, there, many, flip, work, taps, work, own + lane - o, LANES, own_pitch)
                            for k in range(MATRICES):
                                multiply(work, k * v_pitch + c, tiles, channels, work, own + k * own_pitch, many, LANES, products + k * m_pitch, c > 0)
                    elif FEW > 0:
                        for k in range(MATRICES):
                            weights = loads(u, k * u_pitch + o, TERMS, lanes, 1, 0, V, W)
                            for t in range(0, tiles, R):
                                t = max(0, min(t, tiles - R))
                                acc = product(zeros(work, N, W), splats(work, k * v_pitch + t * channels, R, channels, TERMS, 1, W), weights, TERMS)
                                stores(work, products + k * m_pitch + t * LANES, R, LANES, 1, 0, V, W, acc)
                    else:
                        for k in range(MATRICES):
                            multiply(work, k * v_pitch, tiles, channels, u, k * u_pitch + o, terms, lanes, products + k * m_pitch, False)
                    for n in range(group):
                        y, winner = place(row, WINOGRAD.y, first + n, slot, T), place(row, WINOGRAD.winner, first + n, slot, T)
                        before, passed = place(row, WINOGRAD.add, first + n, slot, T), place(row, WINOGRAD.mask, first + n, slot, T)
                        for t in range(each):
                            i, j, at = min((top + t // across) * M, rows - M), min(t % across * M, columns - M), products + (n * each + t) * LANES - o
                            for lane in range(o, o + LANES, W):
                                acc = to_outputs(loads(work, at + lane, MATRICES, m_pitch, 1, 0, 1, W), M)
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


def winograd_dx(M, R, V, W, X, T):
    """The images' gradient, high x wide pixels of `lanes`, out of tiles of dy: B [u * (A dy A^T)] B^T of each is added to where it came
    from, in scratch memory with room for what the convolution's padding (top, left) and the last tiles leave over.

    rows, columns: of dy, which must be 0 up to their next multiples of M. V * W divides `lanes`. u (`weights_in`): its terms are dy's
    channels, not flipped. Then `add` and ReLU's mask, as in `winograd`. Shares split the lanes; each transforms dy for itself.
    """
    LANES, MATRICES, SIDE, multiply = V * W, (M + 2) ** 2, M + 2, _multiplying(R, V, W, False)

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, block = get(row, WINOGRAD_DX.rows), get(row, WINOGRAD_DX.columns), get(row, WINOGRAD_DX.block)
        channels, terms, lanes = get(row, WINOGRAD_DX.channels), get(row, WINOGRAD_DX.terms), get(row, WINOGRAD_DX.lanes)
        high, wide, up, left = get(row, WINOGRAD_DX.high), get(row, WINOGRAD_DX.wide), get(row, WINOGRAD_DX.top), get(row, WINOGRAD_DX.left)
        dy, gy, gx = place(row, WINOGRAD_DX.dy, image, slot, T), get(row, WINOGRAD_DX.gy), get(row, WINOGRAD_DX.gx)
        u, u_pitch = pointer(get(row, WINOGRAD_DX.u), T), get(row, WINOGRAD_DX.u_pitch)
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
                    multiply(work, k * v_pitch, tiles, channels, u, k * u_pitch + o, terms, lanes, products + k * m_pitch, False)
                for t in range(tiles):
                    to = sums + (top + t // across) * M * sums_y + t % across * M * sums_x
                    for lane in range(o, o + LANES, W):
                        tile = to_images(loads(work, products + t * LANES + lane - o, MATRICES, m_pitch, 1, 0, 1, W), M)
                        stores(work, to + lane, SIDE, sums_y, SIDE, sums_x, 1, W, add(tile, loads(work, to + lane, SIDE, sums_y, SIDE, sums_x, 1, W)))
        for i in range(high):
            for j in range(wide):
                for o in range(first, last, W):
                    acc = loads(work, sums + (i + up) * sums_y + (j + left) * sums_x + o, 1, 0, 1, 0, 1, W)
                    if add_to != 0:
                        acc = add(acc, loads(before, i * before_y + j * before_x + o, 1, 0, 1, 0, 1, W))
                    if mask != 0:
                        acc = kept(acc, loads(passed, i * passed_y + j * passed_x + o, 1, 0, 1, 0, 1, W))
                    stores(dx, i * dx_y + j * dx_x + o, 1, 0, 1, 0, 1, W, acc)

    return kernel


def _summing(R, V, W):
    """A function for some sums of the weights' gradient: acc, R terms x V * W lanes, and the products of all tiles' images from work[p]
    on, `channels` a tile, and of their gradients from work[q] on, `lanes` a tile."""

    @inline
    def add_tiles(acc, work, p, channels, q, lanes, tiles):
        for t in range(tiles):
            acc = outer_fma(acc, splats(work, p, R, 1, 1, 0, W), loads(work, q, 1, 0, 1, 0, V, W))
            p += channels
            q += lanes
        return acc

    return add_tiles


def winograd_dw(M, R, V, W, X, OWN, POOL, T):
    """Adds an image's (B^T x B) * (A dy A^T) to the chunk's sums[k, channel of x, lane of dy], of the first `terms` channels.

    rows, columns: of dy. Tiles hang over: dy must be 0, and x finite, up to the next multiples of M of rows and columns (for x:
    of the windows of such outputs). R divides `terms`, V * W `lanes`: R x V * W sums are in registers. Shares split the
    (M + 2)^2 matrices, for which each transforms the images again. work: as in `winograd`.

    POOL: dy is the gradient of the maxima of 2 x 2 windows, M x M / 4 numbers of it and of `winner` make a tile, and a chunk's sums of what
    reaches a winner, the bias' gradient, are added to `reached`. So the gradient before pooling, four times as large and mostly zeros, is nowhere in memory.

    OWN: `sums` is the gradient itself, of `count` lanes: the sums of OWN terms and V * W lanes at a time over the tiles of `together` of
    `images` are in scratch memory, and transformed back at once. Then shares split the lanes.
    """
    N, LANES, MATRICES, WINDOWS, WINNERS, TAPS = R * V, V * W, (M + 2) ** 2, M // 2, (M // 2) ** 2, 9 * W
    enter, add_tiles = _entering(M, X, 1), _summing(R, V, W)

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, block = get(row, WINOGRAD_DW.rows), get(row, WINOGRAD_DW.columns), get(row, WINOGRAD_DW.block)
        channels, terms, lanes = get(row, WINOGRAD_DW.channels), get(row, WINOGRAD_DW.terms), get(row, WINOGRAD_DW.lanes)
        iy, ix, images, together = get(row, WINOGRAD_DW.iy), get(row, WINOGRAD_DW.ix), get(row, WINOGRAD_DW.images), get(row, WINOGRAD_DW.together)
        gy, gx = get(row, WINOGRAD_DW.gy), get(row, WINOGRAD_DW.gx)
        work, v_pitch, m_pitch = pointer(get(row, WINOGRAD_DW.work) + slot * get(row, WINOGRAD_DW.work_slot), T), get(row, WINOGRAD_DW.v_pitch), get(row, WINOGRAD_DW.m_pitch)
        s_pitch, (sums, adds) = get(row, WINOGRAD_DW.sums_pitch), sums_of(row, WINOGRAD_DW.sums, image, chunk, T)
        winner_y, winner_x = get(row, WINOGRAD_DW.winner_y), get(row, WINOGRAD_DW.winner_x)
        ones = full(work, T(1), WINNERS, W)
        reached = pointer(get(row, WINOGRAD_DW.reached) + chunk * get(row, WINOGRAD_DW.reached_chunk), T)
        down, across, second = (rows + M - 1) // M, (columns + M - 1) // M, MATRICES * v_pitch
        third, own_pitch, count = MATRICES * (v_pitch + m_pitch), get(row, WINOGRAD_DW.own_pitch), get(row, WINOGRAD_DW.count)
        taps, first, last = third + MATRICES * own_pitch, 0, lanes
        if OWN > 0:
            first, last = lanes // LANES * share // shares * LANES, lanes // LANES * (share + 1) // shares * LANES
        side = last - first  # lanes of dy that are transformed here
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
                    if POOL and (OWN > 0 or share == 0):
                        whole = zeros(work, 1, W)
                        for vector in total:
                            whole = add(whole, (vector,))
                        if more:
                            whole = add(whole, loads(reached, o, 1, 0, 1, 0, 1, W))
                        stores(reached, o, 1, 0, 1, 0, 1, W, whole)
                if OWN > 0:
                    for o in range(first, last, LANES):
                        for c in range(0, terms, OWN):
                            many = min(OWN, terms - c)
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
                                acc = add_tiles(acc, work, k * v_pitch + c, channels, second + k * m_pitch + o, lanes, tiles)
                                stores(sums, at, R, lanes, 1, 0, V, W, acc)

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
