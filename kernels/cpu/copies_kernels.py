"""Images and weights into the order in which tiles read them, and back: the code of these kernels, which tiles.py lists.
Imported when one must be compiled."""

from __future__ import annotations

from functools import cache

import numpy as np

from tinynet.kernels.cpu.jit import inline
from tinynet.kernels.cpu.simd import add, any_bit, transposed, unlike, zeros
from tinynet.kernels.cpu.simd_memory import get, loads, loads_of_two, pointer, put, stores, stores_to_two, strided
from tinynet.kernels.cpu.target import TARGET
from tinynet.kernels.cpu.tiles import GATHER, PATCHES, PLACES

KILOBYTE = 256  # numbers

# --- places in memory ---------------------------------------------------------------------------------------


@inline
def place(row, k, image, slot, T):
    """Three numbers of a row, an address and the bytes from one slot and one image to the next, as this image's memory."""
    return pointer(get(row, k) + slot * get(row, k + 1) + image * get(row, k + 2), T)


@inline
def sums_of(row, k, image, chunk, T):
    """Four numbers of a row, an address, the bytes from chunk to chunk, how many images and chunks there are: this chunk's sums, and whether
    they are to be added to. Those of its first image are not: there is nothing yet."""
    return pointer(get(row, k) + chunk * get(row, k + 1), T), image > get(row, k + 2) * chunk // get(row, k + 3)


# --- images -------------------------------------------------------------------------------------------------


@inline
def inside(first, step, count, size):
    """Of the places first, first + step, ...: the first and the last + 1 that lie in 0 ... size - 1."""
    low = 0 if first >= 0 else (-first + step - 1) // step
    return low, max(low, min(count, (size - first + step - 1) // step))


@inline
def zero(y, at, count):
    for j in range(count):
        put(y, at + j, 0.0)


@inline
def copy(x, source, y, target, count):
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
        y = place(row, 15, image, slot, T)
        begin, end = outputs * share // shares, outputs * (share + 1) // shares
        if get(row, 18) != 0:  # every part needs the whole image
            begin, end = 0, outputs
        first, rows = begin * step - top, (end - begin - 1) * step + count
        for plane in range(planes):
            for r in range(rows):
                target, source = plane * y_plane + r * y_row, first + r
                if source < 0 or source >= height:
                    zero(y, target, left + run + right)
                else:
                    zero(y, target, left)
                    copy(x, image * x_image + plane * x_plane + source * x_row, y, target + left, run)
                    zero(y, target + left + run, right)

    return kernel


@inline
def transpose(x, source, x_step, y, target, y_step, rows, columns):
    """y[c, r] = x[r, c], in squares of 8 x 8 or 4 x 4; the last squares are moved back until they fit.

    Down a column of y's squares, so that its lines are written as a whole, where its rows are multiples of a kilobyte apart: they share so
    few places in the first cache that lines of which a half is written would be gone before the other half is. Else along x's rows.
    """
    if rows >= 8 and columns >= 8:
        squared = columns - 1 if columns % 8 == 1 else columns  # 9 or 25 taps: one more than squares
        outer, outer_x, outer_y, inner, inner_x, inner_y = rows, x_step, 1, squared, 1, y_step
        if y_step % KILOBYTE == 0:
            outer, outer_x, outer_y, inner, inner_x, inner_y = squared, 1, y_step, rows, x_step, 1
        for a in range(0, outer, 8):
            a = min(a, outer - 8)
            for b in range(0, inner, 8):
                b = min(b, inner - 8)
                square = loads(x, source + a * outer_x + b * inner_x, 8, x_step, 1, 0, 1, 8)
                stores(y, target + a * outer_y + b * inner_y, 8, y_step, 1, 0, 1, 8, transposed(square))
        for r in range(0, rows if squared < columns else 0, 8):
            r = min(r, rows - 8)
            stores(y, target + squared * y_step + r, 1, 0, 1, 0, 1, 8, strided(x, source + r * x_step + squared, x_step, 8))
        return
    if columns == 1 and x_step == 1:
        copy(x, source, y, target, rows)
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


@inline
def next_square(n, count, run, q, r):
    """Of a square that begins at the n-th of `count` numbers in runs, 8 behind the last one (of run q, at its number r - 8): where it begins,
    in which run, and at which number of it. The last is moved back until it fits; only it needs a division."""
    if n > count - 8:
        return count - 8, (count - 8) // run, (count - 8) % run
    return (n, q, r) if r < run else (n, q + 1, r - run)


@inline
def transpose_to_runs(x, source, x_step, y, target, y_run, y_step, rows, runs, run):
    """y[q, c, r] = x[r, q * run + c]: as `transpose` of each run, but squares go over their ends."""
    if rows < 8 or run < 8:
        for q in range(runs):
            transpose(x, source + q * run, x_step, y, target + q * y_run, y_step, rows, run)
        return
    q, first = 0, -8
    for c in range(0, runs * run, 8):
        c, q, first = next_square(c, runs * run, run, q, first + 8)
        for r in range(0, rows, 8):
            r = min(r, rows - 8)
            square = loads(x, source + r * x_step + c, 8, x_step, 1, 0, 1, 8)
            stores_to_two(y, target + q * y_run + first * y_step + r, y_step, run - first, y_run - run * y_step, transposed(square))


@inline
def transpose_from_runs(x, source, x_run, x_step, y, target, y_step, runs, run, columns):
    """y[c, q * run + r] = x[q, r, c]: the other way."""
    if columns < 8 or run < 8:
        for q in range(runs):
            transpose(x, source + q * x_run, x_step, y, target + q * run, y_step, run, columns)
        return
    q, first = 0, -8
    for r in range(0, runs * run, 8):
        r, q, first = next_square(r, runs * run, run, q, first + 8)
        for c in range(0, columns, 8):
            c = min(c, columns - 8)
            square = loads_of_two(x, source + q * x_run + first * x_step + c, 8, x_step, run - first, x_run - run * x_step, 8)
            stores(y, target + c * y_step + r, 8, y_step, 1, 0, 1, 8, transposed(square))


def leave(T):
    """A share's pixels x channels in scratch memory, as rows of an NCHW image."""

    def kernel(row, image, slot, chunk, share, shares):
        outputs, step, height, width, channels = get(row, 0), get(row, 1), get(row, 2), get(row, 3), get(row, 4)
        x = pointer(get(row, 5) + slot * get(row, 6), T)
        y, y_image, y_channel = pointer(get(row, 7), T), get(row, 8), get(row, 9)
        begin, end = outputs * share // shares * step, min(outputs * (share + 1) // shares * step, height)
        pixels, target = (end - begin) * width, image * y_image + begin * width
        transpose(x, 0, channels, y, target, y_channel, pixels, channels)

    return kernel


def leave_few(T):
    """The same for groups of a few channels, which a tile has widened to 4 lanes; to images of any layout.

    All 4 lanes of a pixel (NHWC), or of 4 pixels, turned (NCHW), are stored at once: those that are not there lie where the next
    groups' belong, which are written after them. What no group follows goes number by number.
    """

    def kernel(row, image, slot, chunk, share, shares):
        outputs, step, height, width = get(row, 0), get(row, 1), get(row, 2), get(row, 3)
        groups, count, pitch = get(row, 4), get(row, 5), get(row, 6)
        x = pointer(get(row, 7) + slot * get(row, 8), T)
        y, y_channel, y_pixel = pointer(get(row, 9), T), get(row, 11), get(row, 12)
        begin, end = outputs * share // shares * step, min(outputs * (share + 1) // shares * step, height)
        target, pixels = image * get(row, 10) + begin * width * y_pixel, (end - begin) * width
        followed = max(groups - 3 // count, 0)
        for first in range(0, pixels, 64):  # so many that all their lanes stay in the first cache
            last = min(first + 64, pixels)
            if y_channel == 1:
                moved = last
                for p in range(first, last):
                    for g in range(followed):
                        stores(y, target + p * y_pixel + g * count, 1, 0, 1, 0, 1, 4, loads(x, p * pitch + g * 4, 1, 0, 1, 0, 1, 4))
            else:
                moved = first + (last - first) // 4 * 4
                for g in range(followed):
                    for p in range(first, moved, 4):
                        stores(y, target + p + g * count * y_channel, 4, y_channel, 1, 0, 1, 4, transposed(loads(x, p * pitch + g * 4, 4, pitch, 1, 0, 1, 4)))
            for g in range(groups):
                for o in range(count):
                    for p in range(moved if g < followed else first, last):
                        put(y, target + p * y_pixel + (g * count + o) * y_channel, get(x, p * pitch + g * 4 + o))

    return kernel


def turn_few(T):
    """An image of any layout as pixels x lanes in scratch memory, each group of a few channels widened with zeros."""

    def kernel(row, image, slot, chunk, share, shares):
        groups, count, pixels, pitch = get(row, 0), get(row, 1), get(row, 2), get(row, 3)
        x, x_channel, x_pixel = pointer(get(row, 4), T), get(row, 6), get(row, 7)
        y, source = place(row, 8, image, slot, T), image * get(row, 5)
        lanes = pitch // groups
        for first in range(0, pixels, 64):  # so many that all their lanes stay in the first cache
            last = min(first + 64, pixels)
            zero(y, first * pitch, (last - first) * pitch)
            for g in range(groups):
                for o in range(count):
                    channel = source + (g * count + o) * x_channel
                    for p in range(first, last):
                        put(y, p * pitch + g * lanes + o, get(x, channel + p * x_pixel))

    return kernel


def turn(T):
    """An NCHW image as pixels x channels in scratch memory."""

    def kernel(row, image, slot, chunk, share, shares):
        channels, pixels = get(row, 0), get(row, 1)
        x, x_image, x_channel = pointer(get(row, 2), T), get(row, 3), get(row, 4)
        y = place(row, 5, image, slot, T)
        transpose(x, image * x_image, x_channel, y, 0, channels, channels, pixels)

    return kernel


def places(T):
    """What `conv_pool` says of its windows, as places in the convolution's plane, in images of any layout."""

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, groups, count, lanes, width = get(row, PLACES.rows), get(row, PLACES.columns), get(row, PLACES.groups), get(row, PLACES.count), get(row, PLACES.lanes), get(row, PLACES.width)
        winner, x_row = place(row, PLACES.x, image, slot, T), get(row, PLACES.x_row)
        y, y_channel, y_column = place(row, PLACES.y, image, slot, np.int32), get(row, PLACES.y_channel), get(row, PLACES.y_column)
        begin, end = rows * share // shares, rows * (share + 1) // shares
        first = begin * get(row, PLACES.x_first)
        for g in range(groups):
            for o in range(count):
                for i in range(begin, end):
                    at, to = first + (i - begin) * x_row + g * lanes + o, (g * count + o) * y_channel + i * columns * y_column
                    for j in range(columns):
                        which = np.int32(get(winner, at + j * groups * lanes))
                        put(y, to + j * y_column, np.int32(-1) if which < 0 else np.int32((2 * i + which // 2) * width + 2 * j + which % 2))

    return kernel


def patches(T):
    """im2col: y[pixel, channel, tap] = x where that output's window has it. x begins in its halo, and lies channel by channel."""

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, channels, kr, kc = get(row, PATCHES.rows), get(row, PATCHES.columns), get(row, PATCHES.channels), get(row, PATCHES.kr), get(row, PATCHES.kc)
        x, y, taps = place(row, PATCHES.x, image, slot, T), place(row, PATCHES.y, image, slot, T), kr * kc
        iy, ix = get(row, PATCHES.sr) * get(row, PATCHES.x_y), get(row, PATCHES.sc) * get(row, PATCHES.x_x)
        ta, tb = get(row, PATCHES.dr) * get(row, PATCHES.x_y), get(row, PATCHES.dc) * get(row, PATCHES.x_x)
        first, last = channels * share // shares, channels * (share + 1) // shares
        for pixel in range(rows * columns):
            at, to = pixel // columns * iy + pixel % columns * ix + first, (pixel * channels + first) * taps
            for a in range(kr):
                transpose(x, at + a * ta, tb, y, to + a * kc, taps, kc, last - first)

    return kernel


def patches_back(T):
    """col2im: each number of x is the sum of all that `patches` would copy it to. add: another gradient of x, from which to start;
    mask: where it is not > 0, x becomes 0."""

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, channels, kr, kc = get(row, PATCHES.rows), get(row, PATCHES.columns), get(row, PATCHES.channels), get(row, PATCHES.kr), get(row, PATCHES.kc)
        height, width, sr, sc, dr, dc = get(row, PATCHES.height), get(row, PATCHES.width), get(row, PATCHES.sr), get(row, PATCHES.sc), get(row, PATCHES.dr), get(row, PATCHES.dc)
        x, x_y, x_x = place(row, PATCHES.x, image, slot, T), get(row, PATCHES.x_y), get(row, PATCHES.x_x)
        y, taps, top, left = place(row, PATCHES.y, image, slot, T), kr * kc, get(row, PATCHES.top), get(row, PATCHES.left)
        add_to, before, before_y, before_x = get(row, PATCHES.add), place(row, PATCHES.add, image, slot, T), get(row, PATCHES.add_y), get(row, PATCHES.add_x)
        mask, passed, passed_y, passed_x = get(row, PATCHES.mask), place(row, PATCHES.mask, image, slot, T), get(row, PATCHES.mask_y), get(row, PATCHES.mask_x)
        first, last = channels * share // shares, channels * (share + 1) // shares
        for h in range(height):
            for l in range(width):
                if add_to == 0:
                    zero(x, h * x_y + l * x_x + first, last - first)
                else:
                    copy(before, h * before_y + l * before_x + first, x, h * x_y + l * x_x + first, last - first)
        for pixel in range(rows * columns):
            h, l, at = pixel // columns * sr - top, pixel % columns * sc - left, pixel * channels * taps
            u0, u1 = inside(h, dr, kr, height)
            v0, v1 = inside(l, dc, kc, width)
            for u in range(u0, u1):
                for v in range(v0, v1):
                    to, tap = (h + u * dr) * x_y + (l + v * dc) * x_x, at + u * kc + v
                    for c in range(first, last):
                        put(x, to + c, get(x, to + c) + get(y, tap + c * taps))
        if mask != 0:
            for h in range(height):
                for l in range(width):
                    for c in range(first, last):
                        if not get(passed, h * passed_y + l * passed_x + c) > 0:
                            put(x, h * x_y + l * x_x + c, 0.0)

    return kernel


# --- weights: into the order in which a tile reads them, and back ------------------------------------------------


@cache
def changes(T):
    """changed(w, seen, ...): whether runs of numbers at the address w differ in any bit from what was seen of them; then they are seen now."""
    BITS, W = np.int32 if T is np.float32 else np.int64, TARGET.lanes(T)

    @inline
    def changed(w, seen, at, runs, step, length):
        now, before, few = pointer(w, T), pointer(seen, T), 0
        bits = zeros(now, 1, W)
        if step == length:
            runs, length = 1, runs * length
        for first in range(at, at + runs * step, step):
            if length < W:
                for i in range(first, first + length):
                    few |= get(pointer(w, BITS), i) ^ get(pointer(seen, BITS), i)
            else:
                for i in range(first, first + length, W):
                    i = min(i, first + length - W)
                    bits = unlike(bits, loads(now, i, 1, 0, 1, 0, 1, W), loads(before, i, 1, 0, 1, 0, 1, W))
        if few == 0 and not any_bit(bits):
            return False
        for first in range(at, at + runs * step, step):
            for i in range(first, first + length):
                put(pointer(seen, BITS), i, get(pointer(w, BITS), i))
        return True

    return changed


def gather(W, T):
    """Adds the chunks' sums of `conv_dw`, and puts each where its weight is.

    A chunk's sums lie as (groups, lane blocks, outer taps, inner taps, blocks of the run, high, wide, vectors), a tile each
    for the first five. Tiles that were moved back overlap: what they share is equal, and written twice.

    In y the taps of a channel, or the places of a run, lie side by side, and one output's weights are far from the next one's. So squares
    of 8 outputs are turned, and a part has all taps of its channels, for W outputs: threads that share lines of the cache would fetch
    them from each other again and again.
    """

    def kernel(row, image, slot, chunk, share, shares):
        x, chunks, x_chunk, units = pointer(get(row, GATHER.x), T), get(row, GATHER.chunks), get(row, GATHER.x_chunk), get(row, GATHER.units)
        count, lanes, vectors, high, wide = get(row, GATHER.count), get(row, GATHER.lanes), get(row, GATHER.vectors), get(row, GATHER.high), get(row, GATHER.wide)
        outer, inner, length = get(row, GATHER.outer), get(row, GATHER.inner), get(row, GATHER.length)
        y, y_channel, y_high, y_wide = pointer(get(row, GATHER.y), T), get(row, GATHER.y_channel), get(row, GATHER.y_high), get(row, GATHER.y_wide)
        y_outer, y_inner = get(row, GATHER.y_outer), get(row, GATHER.y_inner)
        blocks, runs, taps = (lanes + vectors - 1) // vectors, (length + wide - 1) // wide, outer * inner
        x_tap, x_high, x_wide, pieces = runs * high * wide * vectors, wide * vectors, vectors, vectors // W
        parts = units // taps * pieces
        if wide == 1:  # a run cut into single places is one block as well
            parts, runs, wide, x_wide = parts // runs, 1, length, high * vectors
        for part in range(parts * share // shares, parts * (share + 1) // shares):
            rest, r = part // runs, part % runs
            block, lane = rest // pieces, rest % pieces * W
            g, first = block // blocks, min(block % blocks * vectors, lanes - vectors)
            to = (g * count + first + lane) * y_channel + min(r * wide, length - wide) * y_wide
            start, outputs = block * taps * x_tap + r * high * wide * vectors + lane, min(W, count - first - lane)
            for t in range(taps if chunks > 1 else 0):
                for place in range(high * wide):
                    at = start + t * x_tap + place * vectors
                    total = loads(x, at, 1, 0, 1, 0, 1, W)
                    for c in range(1, chunks):
                        total = add(total, loads(x, c * x_chunk + at, 1, 0, 1, 0, 1, W))
                    stores(x, at, 1, 0, 1, 0, 1, W, total)
            for left in range(0, outputs, 8):
                here, wanted = start + left, min(outputs - left, 8)
                if y_wide == 1:
                    for n in range(taps * high):
                        t, h = n // high, n % high
                        target = to + left * y_channel + t // inner * y_outer + t % inner * y_inner + h * y_high
                        transpose(x, here + t * x_tap + h * x_high, x_wide, y, target, y_channel, wide, wanted)
                else:  # y_outer is inner, y_inner 1 and y_wide all taps
                    transpose_from_runs(x, here, x_wide, x_tap, y, to + left * y_channel, y_channel, wide, taps, wanted)

    return kernel
