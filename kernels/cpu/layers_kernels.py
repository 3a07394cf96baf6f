"""The code of the kernels of layers.py, which says what their rows hold. Imported when one must be compiled."""

from __future__ import annotations

import math

import numpy as np

from tinynet.kernels.cpu.jit import inline
from tinynet.kernels.cpu.layers import BRING, COMBINE, ELEMENTS, FEATURES, FOLD, PACK, PLANES, POOL, SPREAD, TURN
from tinynet.kernels.cpu.simd import add, divide, each_fma, first_hit, full, if_equal, kept, maximum, relu, sums, zeros
from tinynet.kernels.cpu.simd_memory import fetch, get, loads, pointer, put, stores, together
from tinynet.kernels.cpu.target import LINE
from tinynet.kernels.cpu.tiles import CONV, DW
from tinynet.kernels.cpu.copies_kernels import changes, copy, inside, place, sums_of, transpose, transpose_to_runs, zero

# --- into the program's memory, and out of it -----------------------------------------------------------------


def bring(T):
    """Runs of numbers that lie side by side, from one place to another: planes x rows of them. Long ones come a line at a time, and the
    next page is asked for: images come from memory, and the processor itself looks no further than a page."""
    LANES, PAGE = (size // np.dtype(T).itemsize for size in (LINE, 4096))
    LONG = 4 * LANES

    def kernel(row, image, slot, chunk, share, shares):
        rows, run = get(row, BRING.rows), get(row, BRING.run)
        x, x_plane, x_row = place(row, BRING.x, image, slot, T), get(row, BRING.x_plane), get(row, BRING.x_row)
        y, y_plane, y_row = place(row, BRING.y, image, slot, T), get(row, BRING.y_plane), get(row, BRING.y_row)
        all_rows = get(row, BRING.planes) * rows
        begin, end = all_rows * share // shares, all_rows * (share + 1) // shares
        if run < LONG:
            for r in range(begin, end):
                copy(x, r // rows * x_plane + r % rows * x_row, y, r // rows * y_plane + r % rows * y_row, run)
            return
        for r in range(begin, end):
            source, target = r // rows * x_plane + r % rows * x_row, r // rows * y_plane + r % rows * y_row
            for j in range(0, run, LANES):
                j = min(j, run - LANES)
                fetch(x, source + PAGE + j, 1, 0, 1, 0)
                stores(y, target + j, 1, 0, 1, 0, 1, LANES, loads(x, source + j, 1, 0, 1, 0, 1, LANES))

    return kernel


@inline
def widen_three(x, source, x_step, y, target, columns):
    """y[c] = x[0, c], x[1, c], x[2, c], 0: colours come together, in 8 pixels at a time; at least 8."""
    for c in range(0, columns, 8):
        c = min(c, columns - 8)
        together(y, target + 4 * c, loads(x, source + c, 3, x_step, 1, 0, 1, 8) + zeros(y, 1, 8))


def turn(T):
    """y[c, r] = x[r, c] in each of `rows` rows of an image: channels come together, or are taken apart again.

    y_lanes: of a pixel of y, where those that are not there may be written (with 0); or 0. mask: where it is not > 0, y becomes 0.
    """

    def kernel(row, image, slot, chunk, share, shares):
        rows, high, wide, lanes = get(row, TURN.rows), get(row, TURN.high), get(row, TURN.wide), get(row, TURN.y_lanes)
        x, x_row, x_step = place(row, TURN.x, image, slot, T), get(row, TURN.x_row), get(row, TURN.x_step)
        y, y_row, y_step = place(row, TURN.y, image, slot, T), get(row, TURN.y_row), get(row, TURN.y_step)
        mask, passed = get(row, TURN.mask), place(row, TURN.mask, image, slot, T)
        for i in range(rows * share // shares, rows * (share + 1) // shares):
            if high == 3 and lanes == 4 and wide >= 8:
                widen_three(x, i * x_row, x_step, y, i * y_row, wide)
            else:
                transpose(x, i * x_row, x_step, y, i * y_row, y_step, high, wide)
            if mask != 0:
                for c in range(wide):
                    at, by = i * y_row + c * y_step, i * get(row, TURN.mask_row) + c * get(row, TURN.mask_step)
                    for r in range(high):
                        if not get(passed, by + r) > 0:
                            put(y, at + r, 0.0)

    return kernel


def pack(T):
    """Weights in the order in which tiles read them, a panel of as many lanes as a tile has after the other: y[o, p, i, column, lane] =
    w[o, i, first + lane, column] for outer x inner matrices of rows x columns, whose rows from `first` on make panel p.

    A tile goes through its panel from one end to the other. (Were the lanes of all panels side by side it would read a line of each
    few hundred bytes, and those share a few places in the first cache.) The last panel is moved back until it fits, as tiles are.
    lanes: of all panels; those behind the last row become 0.

    seen: a copy of the weights as they were last packed, of which y is made: a panel is not made again if they are the same; or 0.
    Then outer is 1, and the same rows of the inner matrices lie side by side.
    """
    changed, ITEM = changes(T), np.dtype(T).itemsize

    def kernel(row, image, slot, chunk, share, shares):
        inner, rows, columns, seen = get(row, PACK.inner), get(row, PACK.rows), get(row, PACK.columns), get(row, PACK.seen)
        lanes, panel, w_row, w_inner = get(row, PACK.lanes), get(row, PACK.panel), get(row, PACK.w_row), get(row, PACK.w_inner)
        w, y, y_inner, y_step = pointer(get(row, PACK.w), T), pointer(get(row, PACK.y), T), get(row, PACK.y_inner), get(row, PACK.y_step)
        panels = (lanes + panel - 1) // panel
        count = get(row, PACK.outer) * panels * inner
        begin, end = count * share // shares, count * (share + 1) // shares
        for part in range(begin // inner, (end + inner - 1) // inner):
            p, low, high = part % panels, max(begin - part * inner, 0), min(end - part * inner, inner)
            first = min(p * panel, lanes - panel)
            there = min(panel, rows - first)
            if seen != 0 and not changed(get(row, PACK.w) + first * w_row * ITEM, seen + p * panel * w_row * ITEM, low * columns, there, w_row, (high - low) * columns):
                continue
            at, to = part // panels * get(row, PACK.w_outer) + first * w_row + low * w_inner, part * get(row, PACK.y_panel) + low * y_inner
            if w_inner == columns:  # rows of the inner matrices are one row
                transpose_to_runs(w, at, w_row, y, to, y_inner, y_step, there, high - low, columns)
            else:
                for i in range(high - low):
                    transpose(w, at + i * w_inner, w_row, y, to + i * y_inner, y_step, there, columns)
            for n in range((high - low) * columns if there < panel else 0):
                zero(y, to + n // columns * y_inner + n % columns * y_step + there, panel - there)

    return kernel


# --- depthwise convolution ----------------------------------------------------------------------------------------


def depthwise(R, C, V, W, STEP, T):
    """Each channel with a filter of its own: as tiles.conv, but lanes of x meet lanes of w, (taps, channels)."""
    N, LANES = R * C * V, V * W

    def kernel(row, image, slot, chunk, share, shares):
        outputs, columns, lanes = get(row, CONV.outputs), get(row, CONV.columns), get(row, CONV.lanes)
        taps_a, taps_b, ta, tb, wa, wb = get(row, CONV.taps_a), get(row, CONV.taps_b), get(row, CONV.ta), get(row, CONV.tb), get(row, CONV.wa), get(row, CONV.wb)
        iy, ix, oy, ox = get(row, CONV.iy), get(row, CONV.ix), get(row, CONV.oy), get(row, CONV.ox)
        x, w, bias, y = place(row, CONV.x, image, slot, T), pointer(get(row, CONV.w), T), get(row, CONV.bias), place(row, CONV.y, image, slot, T)
        add_to, before, before_y, before_x = get(row, CONV.add), place(row, CONV.add, image, slot, T), get(row, CONV.add_y), get(row, CONV.add_x)
        mask, passed, passed_y, passed_x = get(row, CONV.mask), place(row, CONV.mask, image, slot, T), get(row, CONV.mask_y), get(row, CONV.mask_x)
        begin, end = outputs * share // shares, outputs * (share + 1) // shares
        for o in range(0, lanes, LANES):
            o = min(o, lanes - LANES)
            for i in range(begin, end, R):
                i = min(i, end - R)
                for j in range(0, columns, C):
                    j = min(j, columns - C)
                    acc = zeros(y, N, W)
                    for a in range(taps_a):
                        for b in range(taps_b):
                            at, v = i * iy + j * ix + a * ta + b * tb + o, a * wa + b * wb + o
                            if STEP:
                                acc = each_fma(acc, loads(x, at, R, iy, C, STEP, V, W), loads(w, v, 1, 0, 1, 0, V, W))
                            else:
                                acc = each_fma(acc, loads(x, at, R, iy, C, ix, V, W), loads(w, v, 1, 0, 1, 0, V, W))
                    if bias != 0:
                        acc = add(acc, loads(pointer(bias, T), o, 1, 0, 1, 0, V, W))
                    if add_to != 0:
                        acc = add(acc, loads(before, i * before_y + j * before_x + o, R, before_y, C, before_x, V, W))
                    if get(row, CONV.relu) != 0:
                        acc = relu(acc)
                    if mask != 0:
                        acc = kept(acc, loads(passed, i * passed_y + j * passed_x + o, R, passed_y, C, passed_x, V, W))
                    stores(y, i * oy + j * ox + o, R, oy, C, ox, V, W, acc)

    return kernel


def depthwise_dw(WIDE, V, W, T):
    """The taps of a row times V * W channels: sums over an image's pixels, added to the chunk's (as tiles.conv_dw)."""
    N, LANES = WIDE * V, V * W

    def kernel(row, image, slot, chunk, share, shares):
        height, columns, outer, length, lanes = get(row, DW.height), get(row, DW.columns), get(row, DW.outer), get(row, DW.length), get(row, DW.lanes)
        ta, tj, iy, ix, gy, gx = get(row, DW.ta), get(row, DW.tj), get(row, DW.iy), get(row, DW.ix), get(row, DW.gy), get(row, DW.gx)
        x, dy = place(row, DW.x, image, slot, T), place(row, DW.dy, image, slot, T)
        unit, (partial, adds) = 0, sums_of(row, DW.sums, image, chunk, T)
        for o in range(0, lanes, LANES):
            o = min(o, lanes - LANES)
            for a in range(outer):
                for t in range(0, length, WIDE):
                    if unit % shares == share:
                        at, acc = a * ta + min(t, length - WIDE) * tj + o, zeros(partial, N, W)
                        for i in range(height):
                            p, q = at + i * iy, i * gy + o
                            for j in range(columns):
                                acc = each_fma(acc, loads(x, p, 1, 0, WIDE, tj, V, W), loads(dy, q, 1, 0, 1, 0, V, W))
                                p += ix
                                q += gx
                        d = unit * N * W
                        if adds:
                            acc = add(acc, loads(partial, d, 1, 0, WIDE, LANES, V, W))
                        stores(partial, d, 1, 0, WIDE, LANES, V, W, acc)
                    unit += 1

    return kernel


# --- pooling ---------------------------------------------------------------------------------------------------------


@inline
def _counted(first, count, inside, size, after, average):
    """How many places of a window along one axis an average is over."""
    return inside if average == 2 else min(first + count, size + after) - first


def pool(W, T):
    """The maximum or the average of each window; channels in the lanes."""

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, lanes, average = get(row, POOL.rows), get(row, POOL.columns), get(row, POOL.lanes), get(row, POOL.average)
        height, width, kr, kc = get(row, POOL.height), get(row, POOL.width), get(row, POOL.kr), get(row, POOL.kc)
        sr, sc, dr, dc, top, left = get(row, POOL.sr), get(row, POOL.sc), get(row, POOL.dr), get(row, POOL.dc), get(row, POOL.top), get(row, POOL.left)
        x, x_y, x_x = place(row, POOL.x, image, slot, T), get(row, POOL.x_y), get(row, POOL.x_x)
        y, y_y, y_x = place(row, POOL.y, image, slot, T), get(row, POOL.y_y), get(row, POOL.y_x)
        for i in range(rows * share // shares, rows * (share + 1) // shares):
            h = i * sr - top
            u0, u1 = inside(h, dr, kr, height)
            for j in range(columns):
                l = j * sc - left
                v0, v1 = inside(l, dc, kc, width)
                for o in range(0, lanes, W):
                    o = min(o, lanes - W)
                    if average == 0:
                        acc = full(y, T(-math.inf), 1, W)
                        for u in range(u0, u1):
                            for v in range(v0, v1):
                                acc = maximum(acc, loads(x, (h + u * dr) * x_y + (l + v * dc) * x_x + o, 1, 0, 1, 0, 1, W))
                    else:
                        acc = zeros(y, 1, W)
                        for u in range(u0, u1):
                            for v in range(v0, v1):
                                acc = add(acc, loads(x, (h + u * dr) * x_y + (l + v * dc) * x_x + o, 1, 0, 1, 0, 1, W))
                        count = _counted(h, kr, u1 - u0, height, get(row, POOL.bottom), average) * _counted(l, kc, v1 - v0, width, get(row, POOL.right), average)
                        acc = divide(acc, full(y, T(max(count, 1)), 1, W))
                    stores(y, i * y_y + j * y_x + o, 1, 0, 1, 0, 1, W, acc)

    return kernel


def pool_back(W, T):
    """The images' gradient. The maximum's goes to the first place that equals it, which is looked for again: nothing need be kept.

    `add`: another gradient of the same images, from which to start. `mask`: x is ReLU's result, and this becomes its input's.
    """

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, lanes, average = get(row, POOL.rows), get(row, POOL.columns), get(row, POOL.lanes), get(row, POOL.average)
        height, width, kr, kc = get(row, POOL.height), get(row, POOL.width), get(row, POOL.kr), get(row, POOL.kc)
        sr, sc, dr, dc, top, left = get(row, POOL.sr), get(row, POOL.sc), get(row, POOL.dr), get(row, POOL.dc), get(row, POOL.top), get(row, POOL.left)
        x, x_y, x_x = place(row, POOL.x, image, slot, T), get(row, POOL.x_y), get(row, POOL.x_x)
        y, y_y, y_x = place(row, POOL.y, image, slot, T), get(row, POOL.y_y), get(row, POOL.y_x)
        dy, dy_y, dy_x = place(row, POOL.dy, image, slot, T), get(row, POOL.dy_y), get(row, POOL.dy_x)
        dx, dx_y, dx_x = place(row, POOL.dx, image, slot, T), get(row, POOL.dx_y), get(row, POOL.dx_x)
        add_to, before, before_y, before_x = get(row, POOL.add), place(row, POOL.add, image, slot, T), get(row, POOL.add_y), get(row, POOL.add_x)
        blocks = lanes // W  # windows overlap, so threads share the channels
        for block in range(blocks * share // shares, blocks * (share + 1) // shares):
            o = block * W
            for h in range(height):
                for l in range(width):
                    start = zeros(dx, 1, W)
                    if add_to != 0:
                        start = loads(before, h * before_y + l * before_x + o, 1, 0, 1, 0, 1, W)
                    stores(dx, h * dx_y + l * dx_x + o, 1, 0, 1, 0, 1, W, start)
            for i in range(rows):
                h = i * sr - top
                u0, u1 = inside(h, dr, kr, height)
                for j in range(columns):
                    l = j * sc - left
                    v0, v1 = inside(l, dc, kc, width)
                    rest = loads(dy, i * dy_y + j * dy_x + o, 1, 0, 1, 0, 1, W)
                    if average != 0:
                        count = _counted(h, kr, u1 - u0, height, get(row, POOL.bottom), average) * _counted(l, kc, v1 - v0, width, get(row, POOL.right), average)
                        rest = divide(rest, full(dx, T(max(count, 1)), 1, W))
                    best = loads(y, i * y_y + j * y_x + o, 1, 0, 1, 0, 1, W)
                    for u in range(u0, u1):
                        for v in range(v0, v1):
                            to = (h + u * dr) * dx_y + (l + v * dc) * dx_x + o
                            hit = rest
                            if average == 0:
                                hit, rest = first_hit(rest, loads(x, (h + u * dr) * x_y + (l + v * dc) * x_x + o, 1, 0, 1, 0, 1, W), best)
                            stores(dx, to, 1, 0, 1, 0, 1, W, add(hit, loads(dx, to, 1, 0, 1, 0, 1, W)))
            if get(row, POOL.mask) != 0:
                for h in range(height):
                    for l in range(width):
                        to = h * dx_y + l * dx_x + o
                        stores(dx, to, 1, 0, 1, 0, 1, W, kept(loads(dx, to, 1, 0, 1, 0, 1, W), loads(x, h * x_y + l * x_x + o, 1, 0, 1, 0, 1, W)))

    return kernel


def spread(W, T):
    """The gradient of tiles.conv_pool's convolution: each dy goes to the winner of its 2 x 2 window, the others get 0.
    The sum over the image's pixels, which is the bias' gradient, is taken on the way."""

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, lanes = get(row, SPREAD.rows), get(row, SPREAD.columns), get(row, SPREAD.lanes)
        dy, dy_y, dy_x = place(row, SPREAD.dy, image, slot, T), get(row, SPREAD.dy_y), get(row, SPREAD.dy_x)
        winner, winner_y, winner_x = place(row, SPREAD.winner, image, slot, T), get(row, SPREAD.winner_y), get(row, SPREAD.winner_x)
        dz, dz_y, dz_x = place(row, SPREAD.dz, image, slot, T), get(row, SPREAD.dz_y), get(row, SPREAD.dz_x)
        partial, adds = sums_of(row, SPREAD.sums, image, chunk, T)
        blocks = lanes // W
        for block in range(blocks * share // shares, blocks * (share + 1) // shares):
            o, total = block * W, zeros(dz, 1, W)
            for i in range(rows):
                for j in range(columns):
                    g = loads(dy, i * dy_y + j * dy_x + o, 1, 0, 1, 0, 1, W)
                    found = loads(winner, i * winner_y + j * winner_x + o, 1, 0, 1, 0, 1, W)
                    to = 2 * i * dz_y + 2 * j * dz_x + o
                    first, second, third, fourth = if_equal(g, found, 0.0), if_equal(g, found, 1.0), if_equal(g, found, 2.0), if_equal(g, found, 3.0)
                    stores(dz, to, 1, 0, 1, 0, 1, W, first)
                    stores(dz, to + dz_x, 1, 0, 1, 0, 1, W, second)
                    stores(dz, to + dz_y, 1, 0, 1, 0, 1, W, third)
                    stores(dz, to + dz_y + dz_x, 1, 0, 1, 0, 1, W, fourth)
                    # at most one of the four is not 0
                    total = add(total, add(add(first, second), add(third, fourth)))
            if adds:
                total = add(total, loads(partial, o, 1, 0, 1, 0, 1, W))
            stores(partial, o, 1, 0, 1, 0, 1, W, total)

    return kernel


def channel_sums(W, T):
    """The sum over an image's pixels of each channel, added to the chunk's: the bias' gradient."""

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, lanes = get(row, SPREAD.rows), get(row, SPREAD.columns), get(row, SPREAD.lanes)
        dy, dy_y, dy_x = place(row, SPREAD.dy, image, slot, T), get(row, SPREAD.dy_y), get(row, SPREAD.dy_x)
        partial, adds = sums_of(row, SPREAD.sums, image, chunk, T)
        blocks, whole = lanes // W, columns // 4 * 4
        for block in range(blocks * share // shares, blocks * (share + 1) // shares):
            o, four, one = block * W, zeros(dy, 4, W), zeros(dy, 1, W)  # four sums: an addition takes four cycles
            for i in range(rows):
                for j in range(0, whole, 4):
                    four = add(four, loads(dy, i * dy_y + j * dy_x + o, 1, 0, 4, dy_x, 1, W))
                for j in range(whole, columns):
                    one = add(one, loads(dy, i * dy_y + j * dy_x + o, 1, 0, 1, 0, 1, W))
            total = one
            if adds:
                total = add(one, loads(partial, o, 1, 0, 1, 0, 1, W))
            for vector in four:
                total = add(total, (vector,))
            stores(partial, o, 1, 0, 1, 0, 1, W, total)

    return kernel


def plane_sums(W, T):
    """As channel_sums, of images whose channels are planes: the sum over all images of one plane, plane after plane."""

    def kernel(row, plane, slot, chunk, share, shares):
        run, dy = get(row, PLANES.run), pointer(get(row, PLANES.dy), T)
        step = 4 * W
        whole, total = run // step * step, T(0)
        for n in range(get(row, PLANES.images)):
            at, four, rest = n * get(row, PLANES.image) + plane * get(row, PLANES.plane), zeros(dy, 4, W), T(0)
            for p in range(0, whole, step):
                four = add(four, loads(dy, at + p, 1, 0, 4, W, 1, W))
            for p in range(whole, run):
                rest += get(dy, at + p)
            for part in sums(four):
                rest += part
            total += rest
        put(pointer(get(row, PLANES.y), T), plane, total)

    return kernel


# --- each number by itself ---------------------------------------------------------------------------------------------


def combine(T):
    """y = a + b (or a alone), then ReLU, then 0 where the mask is not > 0; each if its address or flag is there."""

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, lanes = get(row, COMBINE.rows), get(row, COMBINE.columns), get(row, COMBINE.lanes)
        a, y = place(row, COMBINE.a, image, slot, T), place(row, COMBINE.y, image, slot, T)
        adds, b = get(row, COMBINE.b), place(row, COMBINE.b, image, slot, T)
        masks, mask, relus = get(row, COMBINE.mask), place(row, COMBINE.mask, image, slot, T), get(row, COMBINE.relu)
        for i in range(rows * share // shares, rows * (share + 1) // shares):
            for j in range(columns):
                p, q = i * get(row, COMBINE.a_y) + j * get(row, COMBINE.a_x), i * get(row, COMBINE.b_y) + j * get(row, COMBINE.b_x)
                to, by = i * get(row, COMBINE.y_y) + j * get(row, COMBINE.y_x), i * get(row, COMBINE.mask_y) + j * get(row, COMBINE.mask_x)
                for o in range(lanes):
                    value = get(a, p + o)
                    if adds != 0:
                        value = value + get(b, q + o)
                    if relus != 0 and value < 0:
                        value = T(0)
                    if masks != 0 and not get(mask, by + o) > 0:
                        value = T(0)
                    put(y, to + o, value)

    return kernel


def relu_back(T):
    """dx = dy where x > 0, else 0."""

    def kernel(row, image, slot, chunk, share, shares):
        count, dy, x, dx = get(row, ELEMENTS.count), pointer(get(row, ELEMENTS.dy), T), pointer(get(row, ELEMENTS.x), T), pointer(get(row, ELEMENTS.dx), T)
        for i in range(count * share // shares, count * (share + 1) // shares):
            value = get(dy, i)
            put(dx, i, value if get(x, i) > 0 else T(0))

    return kernel


def row_sums(T):
    """The sum of `images` rows, each dy_row numbers after the one before: the gradient of a dense layer's bias from its dy,
    and of a convolution's from the chunks' sums."""

    def kernel(row, image, slot, chunk, share, shares):
        count, images, dy, y = get(row, FEATURES.count), get(row, FEATURES.images), pointer(get(row, FEATURES.dy), T), pointer(get(row, FEATURES.y), T)
        begin, end = count * share // shares, count * (share + 1) // shares
        for j in range(begin, end):
            put(y, j, get(dy, j))
        for n in range(1, images):
            at = n * get(row, FEATURES.dy_row)
            for j in range(begin, end):
                put(y, j, get(y, j) + get(dy, at + j))

    return kernel


def fold(T):
    """Adds up bundles of `together` chunks' sums, of `count` numbers each, into the first of each bundle, of which "image" is one.

    Threads sum up their own chunks here, so that they read few sums of each other's when these are added, and overwrite in the next step what
    only they have read: a line that two cores have read takes ten times as long to write (players.py)."""
    BLOCK = 1024

    def kernel(row, image, slot, chunk, share, shares):
        count, together, step = get(row, FOLD.count), get(row, FOLD.together), get(row, FOLD.sums_chunk)
        begin, end = count * share // shares, count * (share + 1) // shares
        for left in range(begin, end, BLOCK):
            for n in range(1, together):
                total, more = pointer(get(row, FOLD.sums) + image * together * step, T), pointer(get(row, FOLD.sums) + (image * together + n) * step, T)
                for j in range(left, min(left + BLOCK, end)):
                    put(total, j, get(total, j) + get(more, j))

    return kernel
