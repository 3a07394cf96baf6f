"""Convolution's sums: the code of the kernels whose tiles tiles.py chooses. Imported when one must be compiled."""

from __future__ import annotations

from functools import cache

import numpy as np

from tinynet.kernels.cpu.copies_kernels import inside, place, sums_of
from tinynet.kernels.cpu.jit import inline
from tinynet.kernels.cpu.simd import add, if_positive, kept, outer_fma, pooled, relu, winners, zeros
from tinynet.kernels.cpu.simd_memory import fetch, get, loads, pointer, put, scalars, stores
from tinynet.kernels.cpu.tiles import CONV, DW


@inline
def met(first, last, step, count, size):
    """The first and the last + 1 of `count` taps, of which one place from `first` to `last` finds something in 0 ... size - 1 at
    place + tap * step; equal where there is none."""
    low = min(inside(last, step, count, size)[0], count)
    return low, max(low, min(inside(first, step, count, size)[1], count))


@inline
def list_places(places, taps_a, taps_b, terms, ta, tb, tc, wa, wb, wc):
    """Where each term of a sum lies in x and in w, from where the first one does."""
    count = 0
    for a in range(taps_a):
        for b in range(taps_b):
            for c in range(terms):
                put(places, 2 * count, a * ta + b * tb + c * tc)
                put(places, 2 * count + 1, a * wa + b * wb + c * wc)
                count += 1


@cache
def finishing(R, C, V, W, T):
    """What follows a sum while it is in registers: bias; `add`, numbers of another buffer (the other branch of a sum, or a gradient
    from another consumer); ReLU; and `mask`, a buffer where what is not > 0 makes the result 0 (ReLU's gradient)."""

    @inline
    def tile(acc, bias, lane, add_to, before, added, before_y, before_x, relus, mask, passed, masked, passed_y, passed_x):
        if bias != 0:
            acc = add(acc, loads(pointer(bias, T), lane, 1, 0, 1, 0, V, W))
        if add_to != 0:
            acc = add(acc, loads(before, added, R, before_y, C, before_x, V, W))
        if relus != 0:
            acc = relu(acc)
        if mask != 0:
            acc = kept(acc, loads(passed, masked, R, passed_y, C, passed_x, V, W))
        return acc

    return tile


@cache
def pooling(R, C, V, W, T):
    """What follows the sums of 2 * R x 2 * C pixels of which R x C are stored, the largest of each 2 x 2: bias, ReLU, and which it was,
    if `asked`; -1 where ReLU lets no gradient pass."""

    @inline
    def store_largest(acc, bias, lane, relus, y, to, oy, ox, asked, winner):
        best = pooled(acc, C, V)
        # a sum and a maximum may be exchanged: rounding keeps the order
        out = best if bias == 0 else add(best, loads(pointer(bias, T), lane, 1, 0, 1, 0, V, W))
        if relus != 0:
            out = relu(out)
        stores(y, to, R, oy, C, ox, V, W, out)
        if asked != 0:
            found = winners(acc, best, C, V)
            if relus != 0:
                found = if_positive(found, out, -1.0)
            stores(winner, to, R, oy, C, ox, V, W, found)

    return store_largest


def conv(R, C, V, W, STEP, LISTED, T):
    """R x C pixels of V * W channels at a time; conv2d_simd.py has the formula. STEP: see pixel_step. LISTED: whether the places of
    terms are listed first (tiles.listed), in scratch memory."""
    return _convolution(R, C, V, W, STEP, LISTED, False, T)


def conv_pool(C, V, W, STEP, LISTED, T):
    """Convolution, bias, ReLU if asked for, and the maximum of 2 x 2 windows: 2 rows of 2 * C pixels at a time, of which only
    C leave the registers. outputs, limit: rows of windows; columns: windows of a row. winner: which of the four it was, or -1
    where ReLU lets no gradient pass; at the same places as y; a null address if nobody will ask.
    """
    return _convolution(1, C, V, W, STEP, LISTED, True, T)


def _convolution(R, C, V, W, STEP, LISTED, POOL, T):
    """Of R x C outputs at a time. POOL: each of them is the largest of 2 x 2 sums."""
    SIDE = 2 if POOL else 1
    HIGH, WIDE, LANES = SIDE * R, SIDE * C, V * W
    N = HIGH * WIDE * V
    finished, store_largest = finishing(R, C, V, W, T), pooling(R, C, V, W, T)

    def kernel(row, image, slot, chunk, share, shares):
        outputs, limit, columns = get(row, CONV.outputs), get(row, CONV.limit), get(row, CONV.columns)
        taps_a, taps_b, terms = get(row, CONV.taps_a), get(row, CONV.taps_b), get(row, CONV.terms)
        ta, tb, tc, wa, wb, w_term = get(row, CONV.ta), get(row, CONV.tb), get(row, CONV.tc), get(row, CONV.wa), get(row, CONV.wb), get(row, CONV.w_term)
        iy, ix, oy, ox = get(row, CONV.iy), get(row, CONV.ix), get(row, CONV.oy), get(row, CONV.ox)
        groups, lanes, x_group, w_group, w_panel, relus = get(row, CONV.groups), get(row, CONV.lanes), get(row, CONV.x_group), get(row, CONV.w_group), get(row, CONV.w_panel), get(row, CONV.relu)
        x, w, bias = place(row, CONV.x, image, slot, T), pointer(get(row, CONV.w), T), get(row, CONV.bias)
        y, add_to, mask, asked = place(row, CONV.y, image, slot, T), get(row, CONV.add), get(row, CONV.mask), get(row, CONV.winner)
        before, before_y, before_x = place(row, CONV.add, image, slot, T), get(row, CONV.add_y), get(row, CONV.add_x)
        passed, passed_y, passed_x = place(row, CONV.mask, image, slot, T), get(row, CONV.mask_y), get(row, CONV.mask_x)
        winner = place(row, CONV.winner, image, slot, T)
        begin, end = outputs * share // shares, min(outputs * (share + 1) // shares, limit)
        first_block, last_block = 0, (lanes + LANES - 1) // LANES
        if get(row, CONV.by_lanes) != 0:
            begin, end, first_block, last_block = 0, limit, last_block * share // shares, last_block * (share + 1) // shares
        xo, yo, rows = begin * get(row, CONV.x_first), begin * get(row, CONV.y_first), end - begin
        places = pointer(get(row, CONV.places) + slot * get(row, CONV.places_slot), np.int64)
        if LISTED:
            list_places(places, taps_a, taps_b, terms, ta, tb, tc, wa, wb, w_term)
        x_rows, row_first, row_step, row_tap = get(row, CONV.x_rows), get(row, CONV.row_first), get(row, CONV.row_step), get(row, CONV.row_tap)
        low, high = 0, taps_a  # rows of taps that meet x, and not only padding
        for g in range(groups):
            for block in range(first_block, last_block):
                o = min(block * LANES, lanes - LANES)
                for i in range(0, rows, R):
                    i = min(i, rows - R)
                    if x_rows > 0:
                        top = row_first + SIDE * (begin + i) * row_step
                        low, high = met(top, top + (HIGH - 1) * row_step, row_tap, taps_a, x_rows)
                    for j in range(0, columns, C):
                        j = min(j, columns - C)
                        acc = zeros(y, N, W)
                        p, q = xo + g * x_group + SIDE * (i * iy + j * ix), g * w_group + block * w_panel
                        if LISTED:
                            for t in range(low * taps_b * terms, high * taps_b * terms):
                                at, v = p + get(places, 2 * t), q + get(places, 2 * t + 1)
                                if STEP:
                                    acc = outer_fma(acc, scalars(x, at, HIGH, iy, WIDE, STEP), loads(w, v, 1, 0, 1, 0, V, W))
                                else:
                                    acc = outer_fma(acc, scalars(x, at, HIGH, iy, WIDE, ix), loads(w, v, 1, 0, 1, 0, V, W))
                        else:
                            for a in range(low, high):
                                for b in range(taps_b):
                                    at, v = p + a * ta + b * tb, q + a * wa + b * wb
                                    for c in range(terms):
                                        if STEP:
                                            acc = outer_fma(acc, scalars(x, at, HIGH, iy, WIDE, STEP), loads(w, v, 1, 0, 1, 0, V, W))
                                        else:
                                            acc = outer_fma(acc, scalars(x, at, HIGH, iy, WIDE, ix), loads(w, v, 1, 0, 1, 0, V, W))
                                        at += tc
                                        v += w_term
                        lane = g * lanes + o
                        to = yo + i * oy + j * ox + lane
                        if POOL:
                            store_largest(acc, bias, lane, relus, y, to, oy, ox, asked, winner)
                        else:
                            added, masked = (begin + i) * before_y + j * before_x + lane, (begin + i) * passed_y + j * passed_x + lane
                            acc = finished(acc, bias, lane, add_to, before, added, before_y, before_x, relus, mask, passed, masked, passed_y, passed_x)
                            stores(y, to, R, oy, C, ox, V, W, acc)

    return kernel


def conv_batch(C, V, W, STEP, POOL, T):
    """As conv, for small images: one pixel of C images at a time, so every tap that meets nothing but padding is left out, of rows and of
    columns. In a tile of neighbouring pixels some of them need it. STEP: see pixel_step; here it is the step between images.
    POOL: as in conv_pool, and the winners' images lie as far apart as y's. A window's sums wait in scratch memory, `sums`, until all
    four are there.

    A block of V * W lanes goes over all images while its weights are in the second cache.
    """
    N, LANES, ITEM, SIDE = C * V, V * W, np.dtype(T).itemsize, 2 if POOL else 1
    finished, store_largest = finishing(1, C, V, W, T), pooling(1, 1, V, W, T)

    def kernel(row, image, slot, chunk, share, shares):
        images, rows, columns, lanes, relus = get(row, CONV.images), get(row, CONV.outputs), get(row, CONV.columns), get(row, CONV.lanes), get(row, CONV.relu)
        taps_a, taps_b, terms, w_panel = get(row, CONV.taps_a), get(row, CONV.taps_b), get(row, CONV.terms), get(row, CONV.w_panel)
        ta, tb, tc, wa, wb, w_term = get(row, CONV.ta), get(row, CONV.tb), get(row, CONV.tc), get(row, CONV.wa), get(row, CONV.wb), get(row, CONV.w_term)
        iy, ix, oy, ox = get(row, CONV.iy), get(row, CONV.ix), get(row, CONV.oy), get(row, CONV.ox)
        x, x_image, w, bias = place(row, CONV.x, image, slot, T), get(row, CONV.x_image) // ITEM, pointer(get(row, CONV.w), T), get(row, CONV.bias)
        y, y_image, add_to, mask = place(row, CONV.y, image, slot, T), get(row, CONV.y_image) // ITEM, get(row, CONV.add), get(row, CONV.mask)
        before, before_image, before_y, before_x = place(row, CONV.add, image, slot, T), get(row, CONV.add_image) // ITEM, get(row, CONV.add_y), get(row, CONV.add_x)
        passed, passed_image, passed_y, passed_x = place(row, CONV.mask, image, slot, T), get(row, CONV.mask_image) // ITEM, get(row, CONV.mask_y), get(row, CONV.mask_x)
        winner, asked, sums = place(row, CONV.winner, image, slot, T), get(row, CONV.winner), pointer(get(row, CONV.sums) + slot * get(row, CONV.sums_slot), T)
        x_rows, row_first, row_step, row_tap = get(row, CONV.x_rows), get(row, CONV.row_first), get(row, CONV.row_step), get(row, CONV.row_tap)
        x_columns, column_first, column_step, column_tap = get(row, CONV.x_columns), get(row, CONV.column_first), get(row, CONV.column_step), get(row, CONV.column_tap)
        top, bottom, left, right = 0, taps_a, 0, taps_b  # taps that meet x
        one_run = tb == terms * tc and wb == terms * w_term  # the taps of a row, of images and weights alike
        tiles = (images + C - 1) // C
        units = (lanes + LANES - 1) // LANES * tiles
        for unit in range(units * share // shares, units * (share + 1) // shares):
            o, n, q = min(unit // tiles * LANES, lanes - LANES), min(unit % tiles * C, images - C), unit // tiles * w_panel
            for pixel in range(rows * columns * SIDE * SIDE):
                place_of_y, p = pixel // (SIDE * SIDE), pixel % (SIDE * SIDE)
                i, j = place_of_y // columns, place_of_y % columns
                down, across = SIDE * i + p // SIDE, SIDE * j + p % SIDE
                if x_rows > 0:
                    top, bottom = met(row_first + down * row_step, row_first + down * row_step, row_tap, taps_a, x_rows)
                if x_columns > 0:
                    left, right = met(column_first + across * column_step, column_first + across * column_step, column_tap, taps_b, x_columns)
                acc, start, last, length = zeros(y, N, W), n * x_image + down * iy + across * ix, right, terms
                if one_run:
                    last, length = left + 1, terms * (right - left)
                for a in range(top, bottom):
                    for b in range(left, last):
                        at, v = start + a * ta + b * tb, q + a * wa + b * wb
                        for c in range(length):
                            if STEP:
                                acc = outer_fma(acc, scalars(x, at, 1, 0, C, STEP), loads(w, v, 1, 0, 1, 0, V, W))
                            else:
                                acc = outer_fma(acc, scalars(x, at, 1, 0, C, x_image), loads(w, v, 1, 0, 1, 0, V, W))
                            at += tc
                            v += w_term
                to = n * y_image + i * oy + j * ox + o
                if POOL:
                    stores(sums, p * C * LANES, 1, 0, C, LANES, V, W, acc)
                    if p == 3:
                        for m in range(C):
                            window = loads(sums, m * LANES, 2, 2 * C * LANES, 2, C * LANES, V, W)
                            store_largest(window, bias, o, relus, y, to + m * y_image, oy, ox, asked, winner)
                else:
                    added, masked = n * before_image + i * before_y + j * before_x + o, n * passed_image + i * passed_y + j * passed_x + o
                    acc = finished(acc, bias, o, add_to, before, added, 0, before_image, relus, mask, passed, masked, 0, passed_image)
                    stores(y, to, 1, 0, C, y_image, V, W, acc)

    return kernel


def conv_dw(HIGH, WIDE, V, W, T):
    """HIGH x WIDE places of x times V * W channels of dy: sums over the pixels of an image, added to the chunk's. images: that many
    instead of one, `together` at a time, whose sums stay in registers: of a small image they would be in memory more than not."""
    PLACES, LANES, ITEM = HIGH * WIDE, V * W, np.dtype(T).itemsize
    N, NUMBERS = PLACES * V, PLACES * LANES

    def kernel(row, image, slot, chunk, share, shares):
        height, columns, outer, inner, length = get(row, DW.height), get(row, DW.columns), get(row, DW.outer), get(row, DW.inner), get(row, DW.length)
        ta, tb, tr, tj = get(row, DW.ta), get(row, DW.tb), get(row, DW.tr), get(row, DW.tj)
        iy, ix, gy, gx = get(row, DW.iy), get(row, DW.ix), get(row, DW.gy), get(row, DW.gx)
        groups, lanes, x_group, block = get(row, DW.groups), get(row, DW.lanes), get(row, DW.x_group), get(row, DW.block)
        x, dy = place(row, DW.x, image, slot, T), place(row, DW.dy, image, slot, T)
        partial, adds = sums_of(row, DW.sums, image, chunk, T)
        x_rows, row_first, row_step, row_tap = get(row, DW.x_rows), get(row, DW.row_first), get(row, DW.row_step), get(row, DW.row_tap)
        x_columns, column_first, column_step, column_tap = get(row, DW.x_columns), get(row, DW.column_first), get(row, DW.column_step), get(row, DW.column_tap)
        images, together, x_image, dy_image = max(1, get(row, DW.images)), max(1, get(row, DW.together)), get(row, DW.x_image) // ITEM, get(row, DW.dy_image) // ITEM
        top, bottom, left, right = 0, height, 0, columns  # pixels of dy that meet one of x by a tap
        blocks, runs = (lanes + LANES - 1) // LANES, (length + WIDE - 1) // WIDE
        units = groups * blocks * outer * inner * runs  # the order of tiles in memory: groups, channels, then places of x
        begin, end = units * share // shares, units * (share + 1) // shares
        for start in range(0, images, together):
            stop = min(start + together, images)
            for first in range(0, height, block):  # rows of x and dy that stay in the first cache for all tiles
                last = min(first + block, height)
                for row_of_tiles in range(begin // runs, (end + runs - 1) // runs):
                    rest, b = row_of_tiles // inner, row_of_tiles % inner
                    rest, a = rest // outer, rest % outer
                    g, o = rest // blocks, min(rest % blocks * LANES, lanes - LANES)
                    if x_rows > 0:
                        top, bottom = inside(row_first + a * row_tap, row_step, height, x_rows)
                    if x_columns > 0:
                        left, right = inside(column_first + b * column_tap, column_step, columns, x_columns)
                    for unit in range(max(begin, row_of_tiles * runs), min(end, row_of_tiles * runs + runs)):
                        at = g * x_group + a * ta + b * tb + min((unit - row_of_tiles * runs) * WIDE, length - WIDE) * tj
                        d = unit * NUMBERS
                        fetch(partial, d, 1, 0, NUMBERS, 1)
                        acc = zeros(partial, N, W)
                        for n in range(start, stop):
                            for i in range(max(first, top), min(last, bottom)):
                                p, q = n * x_image + at + i * iy + left * ix, n * dy_image + i * gy + left * gx + g * lanes + o
                                for j in range(left, right):
                                    acc = outer_fma(acc, scalars(x, p, HIGH, tr, WIDE, tj), loads(dy, q, 1, 0, 1, 0, V, W))
                                    p += ix
                                    q += gx
                        if adds or start > 0 or first > 0:
                            acc = add(acc, loads(partial, d, 1, 0, PLACES, LANES, V, W))
                        stores(partial, d, 1, 0, PLACES, LANES, V, W, acc)

    return kernel
