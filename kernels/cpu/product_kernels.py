"""The code of the matrix products of tiles.py, which says what their rows hold. Imported when one must be compiled."""

from __future__ import annotations

from functools import cache

import numpy as np

from tinynet.kernels.cpu.jit import inline, inline_as_written
from tinynet.kernels.cpu.simd import add, full, kept, multiply, outer_fma, product, relu, sums, zeros
from tinynet.kernels.cpu.simd_memory import fetch, firsts, get, loads, pointer, put, scalars, stores
from tinynet.kernels.cpu.target import LINE
from tinynet.kernels.cpu.tiles import DENSE_BACK, DOTS, GEMM
from tinynet.kernels.cpu.copies_kernels import transpose, place


def gemm(R, V, W, T):
    """R rows of c, V * W columns at a time: c[i, :] += a[i, t] * b[t, :]. Then bias, ReLU and ReLU's mask as in `conv`."""
    N, LANES = R * V, V * W

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, terms = get(row, GEMM.rows), get(row, GEMM.columns), get(row, GEMM.terms)
        a, a_row, a_term = place(row, GEMM.a, image, slot, T), get(row, GEMM.a_row), get(row, GEMM.a_term)
        b, b_term = place(row, GEMM.b, image, slot, T), get(row, GEMM.b_term)
        c, c_row = place(row, GEMM.c, image, slot, T), get(row, GEMM.c_row)
        bias, relus, mask = get(row, GEMM.bias), get(row, GEMM.relu), get(row, GEMM.mask)
        passed, passed_row = place(row, GEMM.mask, image, slot, T), get(row, GEMM.mask_row)
        column_block, term_block, rows_first = get(row, GEMM.column_block), get(row, GEMM.term_block), get(row, GEMM.rows_first)
        high = (rows + R - 1) // R
        for block in range(share, (columns + column_block - 1) // column_block, shares):
            left = block * column_block
            wide = (min(column_block, columns - left) + LANES - 1) // LANES
            for first in range(0, terms, term_block):
                last = min(first + term_block, terms)
                for n in range(high * wide):
                    if rows_first != 0:
                        i, o = n // wide * R, left + n % wide * LANES
                    else:
                        i, o = n % high * R, left + n // high * LANES
                    i, o = min(i, rows - R), min(o, columns - LANES)
                    acc, p, q, at = zeros(c, N, W), i * a_row + first * a_term, first * b_term + o, i * c_row + o
                    if first > 0:  # go on where the block before stopped: so blocks change no bit
                        acc = loads(c, at, R, c_row, 1, 0, V, W)
                    for t in range(first, last):
                        acc = outer_fma(acc, scalars(a, p, R, a_row, 1, 0), loads(b, q, 1, 0, 1, 0, V, W))
                        p += a_term
                        q += b_term
                    if last == terms:
                        if bias != 0:
                            acc = add(acc, loads(pointer(bias, T), o, 1, 0, 1, 0, V, W))
                        if relus != 0:
                            acc = relu(acc)
                        if mask != 0:
                            acc = kept(acc, loads(passed, i * passed_row + o, R, passed_row, 1, 0, V, W))
                    stores(c, at, R, c_row, 1, 0, V, W, acc)

    return kernel


@inline
def _block(b_term, b_column, first, depth, left, wide):
    """Where so many terms of so many columns lie in b: (the first number, from one run of numbers side by side to the next, numbers in a
    run, runs). Of no columns: one number that is there."""
    if wide <= 0:
        return 0, 0, 1, 1
    if b_term == 1:
        return left * b_column + first, b_column, depth, wide
    return first * b_term + left, b_term, wide, depth


@cache
def _step_of_sgd(W):
    """w + rate * (g + decay * w) for registers of weights w and their gradient g, with the same roundings wherever a step is taken."""

    @inline_as_written
    def stepped(p, w, g, rate, decay):
        if decay != 0:
            g = add(g, multiply(w, full(p, decay, 1, W)))
        return add(w, multiply(g, full(p, rate, 1, W)))

    return stepped


def gemm_packed(R, V, W, T):
    """As gemm, for many rows: what the multiply-adds read again and again is packed first, in the order in which they read it.

    Of b, `column_block` columns x `term_block` terms at a time become panels, [term][V * W columns], which stay in the second
    cache while `row_block` rows of c use them; one panel, and R rows of a, are in the first. A row of a large matrix begins a
    page after the one before, and rows that are a power of two apart share one place in the cache: read in place, b
    would come from memory for every R rows. R rows of a are packed too, unless their terms lie side by side. The sums of the terms so
    far wait in `partial`, never in c, so tiles may be moved back over each other. (Goto and van de Geijn, ACM TOMS 34(3), 2008.)

    Packing would wait for memory, and so would writing c: so what is packed next is fetched while the multiply-adds run, two lines every
    PIECE terms (asked for in the innermost loop, they cost the sums their registers), and a tile of c before the last of its terms.

    hyper: c is a matrix of weights, of which the sum is the gradient, and a step of SGD is taken at once: see layers.sgd, of
    which this is the one without momentum.
    """
    N, LANES, PIECE, STRETCH, stepped = R * V, V * W, 8, 2 * LINE // np.dtype(T).itemsize, _step_of_sgd(W)

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, terms = get(row, GEMM.rows), get(row, GEMM.columns), get(row, GEMM.terms)
        a, a_row, a_term = place(row, GEMM.a, image, slot, T), get(row, GEMM.a_row), get(row, GEMM.a_term)
        b, b_term, b_column = place(row, GEMM.b, image, slot, T), get(row, GEMM.b_term), get(row, GEMM.b_column)
        c, c_row = place(row, GEMM.c, image, slot, T), get(row, GEMM.c_row)
        bias, relus, mask, hyper = get(row, GEMM.bias), get(row, GEMM.relu), get(row, GEMM.mask), get(row, GEMM.hyper)
        passed, passed_row = place(row, GEMM.mask, image, slot, T), get(row, GEMM.mask_row)
        panels = pointer(get(row, GEMM.panel) + slot * get(row, GEMM.panel_slot), T)
        packed, partial = get(row, GEMM.packed), get(row, GEMM.partial)  # where they begin, behind the panels
        column_block, row_block, term_block = get(row, GEMM.column_block), get(row, GEMM.row_block), get(row, GEMM.term_block)
        rate, decay = T(0), T(0)
        if hyper != 0:
            if get(pointer(get(row, GEMM.fault), np.int64), 0) != 0:
                return
            rate, decay = -T(get(pointer(hyper, np.float64), 0)), T(get(pointer(hyper, np.float64), 1))
        down, across = (rows + row_block - 1) // row_block, (columns + column_block - 1) // column_block
        for block in range(share, down * across, shares):
            top, left = block % down * row_block, block // down * column_block
            high, wide = (min(row_block, rows - top) + R - 1) // R, (min(column_block, columns - left) + LANES - 1) // LANES
            for first in range(0, terms, term_block):
                depth = min(term_block, terms - first)
                for j in range(wide):
                    o, panel = min(left + j * LANES, columns - LANES), j * term_block * LANES
                    if b_term == 1:
                        transpose(b, o * b_column + first, b_column, panels, panel, LANES, LANES, depth)
                    else:
                        for t in range(depth):
                            stores(panels, panel + t * LANES, 1, 0, 1, 0, V, W, loads(b, (first + t) * b_term + o, 1, 0, 1, 0, V, W))
                later, aside = first + term_block, left  # what is packed next
                if later >= terms:
                    later, aside = 0, (block + shares) // down * column_block
                ahead, step, run, runs = _block(b_term, b_column, later, min(term_block, terms - later), aside, min(column_block, columns - aside))
                along, deep = 0, depth >= 32  # the multiply-adds of fewer terms are over before a line has come
                for n in range(high):
                    i = min(top + n * R, rows - R)
                    start, factors, start_row, start_term = i * a_row + first * a_term, a, a_row, a_term
                    if a_term != 1:
                        for t in range(depth):
                            for r in range(R):
                                put(panels, packed + t * R + r, get(a, start + r * a_row + t * a_term))
                        start, factors, start_row, start_term = packed, panels, 1, R
                    for j in range(wide):
                        o, p, q, kept_at = min(left + j * LANES, columns - LANES), start, j * term_block * LANES, partial
                        if term_block < terms:
                            kept_at += (n * wide + j) * N * W
                        acc, at = zeros(c, N, W), i * c_row + o
                        if first > 0:
                            acc = loads(panels, kept_at, R, LANES, 1, 0, V, W)
                        if deep and first + depth >= terms:
                            fetch(c, at, R, c_row, LANES, 1)
                        for begun in range(0, depth, PIECE):
                            if deep:
                                fetch(b, ahead + along, 1, 0, STRETCH, 0)
                                along += STRETCH
                                if along >= run:
                                    along = 0
                                    if runs > 1:
                                        runs -= 1
                                        ahead += step
                            for t in range(begun, min(begun + PIECE, depth)):
                                acc = outer_fma(acc, scalars(factors, p, R, start_row, 1, 0), loads(panels, q, 1, 0, 1, 0, V, W))
                                p += start_term
                                q += LANES
                        if first + depth < terms:
                            stores(panels, kept_at, R, LANES, 1, 0, V, W, acc)
                            continue
                        if hyper != 0:
                            known_rows, known = top + n * R - i, left + j * LANES - o
                            if known_rows > 0 or known > 0:  # moved back over weights that were stepped already
                                stores(panels, kept_at, R, LANES, 1, 0, V, W, acc)
                                for r in range(known_rows, R):
                                    for l in range(known, LANES):
                                        w = get(c, at + r * c_row + l)
                                        put(c, at + r * c_row + l, w + rate * (get(panels, kept_at + r * LANES + l) + decay * w))
                                continue
                            acc = stepped(c, loads(c, at, R, c_row, 1, 0, V, W), acc, rate, decay)
                        if bias != 0:
                            acc = add(acc, loads(pointer(bias, T), o, 1, 0, 1, 0, V, W))
                        if relus != 0:
                            acc = relu(acc)
                        if mask != 0:
                            acc = kept(acc, loads(passed, i * passed_row + o, R, passed_row, 1, 0, V, W))
                        stores(c, at, R, c_row, 1, 0, V, W, acc)

    return kernel


@cache
def _rows_back(R, V, W, COPIES):
    """Adds dy[i ... i + R, first ... last] @ w[first ... last, o ... o + V * W] to dx at row i, column o; of the first terms it is the sum.
    These weights are read from the panel or, where it COPIES, as they lie, and become the panel: multiply-adds don't wait for that."""
    N, LANES = R * V, V * W

    @inline
    def tile(dy, dy_row, w, columns, panel, dx, dx_row, i, o, first, last):
        at, p, q, place = i * dx_row + o, i * dy_row + first, 0, first * columns + o
        acc = zeros(dx, N, W)
        if first > 0:
            acc = loads(dx, at, R, dx_row, 1, 0, V, W)
        for t in range(first, last):
            if COPIES:
                ws = loads(w, place, 1, 0, 1, 0, V, W)
                stores(panel, q, 1, 0, 1, 0, V, W, ws)
                place += columns
            else:
                ws = loads(panel, q, 1, 0, 1, 0, V, W)
            acc = outer_fma(acc, scalars(dy, p, R, dy_row, 1, 0), ws)
            p += 1
            q += LANES
        stores(dx, at, R, dx_row, 1, 0, V, W, acc)

    return tile


@cache
def _stepped(R, V, W):
    """A step of SGD for w[t ... t + R, o ... o + V * W], whose gradient is dy[:, t ...]^T @ x[:, o ...], over `rows` images.
    panel: where they are read. ahead: from there to the weights that are read next."""
    N, LANES, stepped = R * V, V * W, _step_of_sgd(W)

    @inline
    def tile(dy, dy_row, x, x_row, panel, at_panel, w, columns, t, o, rows, rate, decay, ahead):
        at, p, q = t * columns + o, t, o
        fetch(w, at + ahead, R, columns, LANES, 1)
        acc = zeros(w, N, W)
        for n in range(rows):
            acc = outer_fma(acc, scalars(dy, p, R, 1, 1, 0), loads(x, q, 1, 0, 1, 0, V, W))
            p += dy_row
            q += x_row
        stores(w, at, R, columns, 1, 0, V, W, stepped(w, loads(panel, at_panel, R, LANES, 1, 0, V, W), acc, rate, decay))

    return tile


@cache
def _dense_arrays(T):
    """What the rows of both kernels below say: arrays with their steps, what a step of SGD multiplies by, and whether there is a fault."""

    @inline
    def arrays(row):
        dy, dy_row, w = pointer(get(row, DENSE_BACK.dy), T), get(row, DENSE_BACK.dy_row), pointer(get(row, DENSE_BACK.w), T)
        x, x_row = pointer(get(row, DENSE_BACK.x), T), get(row, DENSE_BACK.x_row)
        dx, dx_row = pointer(get(row, DENSE_BACK.dx), T), get(row, DENSE_BACK.dx_row)
        mask, passed, passed_row = get(row, DENSE_BACK.mask), pointer(get(row, DENSE_BACK.mask), T), get(row, DENSE_BACK.mask_row)
        hyper, fault = pointer(get(row, DENSE_BACK.hyper), np.float64), get(pointer(get(row, DENSE_BACK.fault), np.int64), 0)
        return dy, dy_row, w, x, x_row, dx, dx_row, mask, passed, passed_row, -T(get(hyper, 0)), T(get(hyper, 1)), fault

    return arrays


def dense_back(R, S, V, W, T):
    """A dense layer's backward, and its step of SGD, in one pass over its weights: dx = dy @ w (and ReLU's mask), then
    w -= rate * (dy^T @ x + decay * w), `term_block` rows of w and V * W columns at a time, a panel. So weights that come from memory
    come once. R rows of dx are computed at once, and S of w. panel: scratch memory that holds a copy of it (rows of w that are pages
    apart share a place in the first cache), made while the first R rows of dx are computed.

    V * W divides the columns and `column_block`, such blocks are shared. There are R rows at least; a remainder of R or S rows is done row
    by row: nothing may be added twice.
    """
    LANES = V * W
    first_rows_back, rows_back, row_back = _rows_back(R, V, W, True), _rows_back(R, V, W, False), _rows_back(1, V, W, False)
    stepped, one_stepped, arrays = _stepped(S, V, W), _stepped(1, V, W), _dense_arrays(T)

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, terms, block = get(row, DENSE_BACK.rows), get(row, DENSE_BACK.columns), get(row, DENSE_BACK.terms), get(row, DENSE_BACK.term_block)
        dy, dy_row, w, x, x_row, dx, dx_row, mask, passed, passed_row, rate, decay, fault = arrays(row)
        column_block, panel = get(row, DENSE_BACK.column_block), pointer(get(row, DENSE_BACK.panel) + slot * get(row, DENSE_BACK.panel_slot), T)
        for left in range(share * column_block, columns, shares * column_block):
            right = min(left + column_block, columns)
            for first in range(0, terms, block):
                last = min(first + block, terms)
                for o in range(left, right, LANES):
                    ahead = LANES if o + LANES < right else block * columns + left - o
                    first_rows_back(dy, dy_row, w, columns, panel, dx, dx_row, 0, o, first, last)
                    for i in range(R, rows - R + 1, R):
                        rows_back(dy, dy_row, w, columns, panel, dx, dx_row, i, o, first, last)
                    for i in range(rows // R * R, rows):
                        row_back(dy, dy_row, w, columns, panel, dx, dx_row, i, o, first, last)
                    if fault != 0:
                        continue
                    for t in range(first, last - S + 1, S):
                        stepped(dy, dy_row, x, x_row, panel, (t - first) * LANES, w, columns, t, o, rows, rate, decay, ahead)
                    for t in range(first + (last - first) // S * S, last):
                        one_stepped(dy, dy_row, x, x_row, panel, (t - first) * LANES, w, columns, t, o, rows, rate, decay, ahead)
            for i in range(rows if mask != 0 else 0):
                for o in range(left, right, LANES):
                    at = i * dx_row + o
                    stores(dx, at, 1, 0, 1, 0, V, W, kept(loads(dx, at, 1, 0, 1, 0, V, W), loads(passed, i * passed_row + o, 1, 0, 1, 0, V, W)))

    return kernel


@cache
def _row_back_and_stepped(R, S, V, W):
    """For R images and rows t ... t + S of w, o ... o + V * W: adds dy @ w to dx (the first rows: puts it there), and, unless there is a `fault`,
    takes the step of SGD. Each weight is loaded and stored once."""
    N, stepped = R * V, _step_of_sgd(W)

    @inline
    def tile(dy, dy_row, x, x_row, w, columns, dx, dx_row, t, o, rate, decay, fault):
        acc, xs = zeros(dx, N, W), loads(x, o, R, x_row, 1, 0, V, W)
        if t > 0:
            acc = loads(dx, o, R, dx_row, 1, 0, V, W)
        for s in range(S):
            at = (t + s) * columns + o
            ws, ds = loads(w, at, 1, 0, 1, 0, V, W), scalars(dy, t + s, 1, 0, R, dy_row)
            acc = outer_fma(acc, ds, ws)
            if fault == 0:
                stores(w, at, 1, 0, 1, 0, V, W, stepped(w, ws, product(zeros(w, V, W), ds, xs, R), rate, decay))
        stores(dx, o, R, dx_row, 1, 0, V, W, acc)

    return tile


def dense_back_few(R, S, V, W, T):
    """As dense_back, of R rows: so few that they wait for nothing but memory. w is read, and written, along S of its rows at a time.
    V * W divides the columns."""
    LANES, arrays = V * W, _dense_arrays(T)
    some, one = _row_back_and_stepped(R, S, V, W), _row_back_and_stepped(R, 1, V, W)

    def kernel(row, image, slot, chunk, share, shares):
        columns, terms, block = get(row, DENSE_BACK.columns), get(row, DENSE_BACK.terms), get(row, DENSE_BACK.column_block)
        dy, dy_row, w, x, x_row, dx, dx_row, mask, passed, passed_row, rate, decay, fault = arrays(row)
        for left in range(share * block, columns, shares * block):
            right, whole = min(left + block, columns), terms // S * S
            for t in range(0, whole, S):
                for o in range(left, right, LANES):
                    some(dy, dy_row, x, x_row, w, columns, dx, dx_row, t, o, rate, decay, fault)
            for t in range(whole, terms):
                for o in range(left, right, LANES):
                    one(dy, dy_row, x, x_row, w, columns, dx, dx_row, t, o, rate, decay, fault)
            if mask != 0:
                for o in range(left, right, LANES):
                    stores(dx, o, R, dx_row, 1, 0, V, W, kept(loads(dx, o, R, dx_row, 1, 0, V, W), loads(passed, o, R, passed_row, 1, 0, V, W)))

    return kernel


def dots(R, C, W, T):
    """R x C dot products side by side: both factors lie along the terms, which fill the lanes; the last may fill them in part. Then bias
    and ReLU."""
    N = R * C

    def kernel(row, image, slot, chunk, share, shares):
        rows, columns, terms = get(row, DOTS.rows), get(row, DOTS.columns), get(row, DOTS.terms)
        a, a_row = place(row, DOTS.a, image, slot, T), get(row, DOTS.a_row)
        b, b_row = place(row, DOTS.b, image, slot, T), get(row, DOTS.b_row)
        c, c_row = place(row, DOTS.c, image, slot, T), get(row, DOTS.c_row)
        high, row_shares = get(row, DOTS.stay), get(row, DOTS.row_shares)  # stay: rows of a that stay in the second cache
        bias, relus = get(row, DOTS.bias), get(row, DOTS.relu)
        column_shares = shares // row_shares
        top, bottom = rows * (share // column_shares) // row_shares, rows * (share // column_shares + 1) // row_shares
        blocks = (columns + C - 1) // C  # shared by the tile; the last one is moved back, into a neighbour's if need be: equal numbers
        left, right = blocks * (share % column_shares) // column_shares * C, blocks * (share % column_shares + 1) // column_shares * C
        whole = terms // W * W
        for first in range(top, bottom, high):
            last = min(first + high, bottom)
            for j in range(left, right, C):
                j = min(j, columns - C)
                for i in range(first, last, R):
                    i = max(min(i, last - R), top)
                    acc, p, q = zeros(c, N, W), i * a_row, j * b_row
                    for t in range(0, whole, W):
                        acc = outer_fma(acc, loads(a, p + t, R, a_row, 1, 0, 1, W), loads(b, q + t, C, b_row, 1, 0, 1, W))
                    if whole < terms:
                        acc = outer_fma(acc, firsts(a, p + whole, terms - whole, R, a_row, W), firsts(b, q + whole, terms - whole, C, b_row, W))
                    totals = sums(acc)
                    for r in range(R):
                        for s in range(C):
                            total = totals[r * C + s]
                            if bias != 0:
                                total += get(pointer(bias, T), j + s)
                            put(c, (i + r) * c_row + j + s, T(0) if relus != 0 and total < 0 else total)

    return kernel
