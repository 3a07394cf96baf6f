"""The code of probabilities, losses and optimisers' updates, whose rows layers.py describes. Imported when one must be compiled."""

from __future__ import annotations

import numpy as np

from tinynet.kernels.cpu.exponential import exp
from tinynet.kernels.cpu.jit import inline
from tinynet.kernels.cpu.layers import ROWS, UPDATE
from tinynet.kernels.cpu.simd import add, full, largest, maximum, multiply, sums, zeros
from tinynet.kernels.cpu.simd_memory import get, loads, pointer, put, stores
from tinynet.kernels.cpu.copies_kernels import place

# --- rows: probabilities and losses ----------------------------------------------------------------------------------------

LANES = 8  # of the passes over a row, on every processor: so it gives the same bits everywhere


@inline
def _one(x, j):
    """A number as a register of one lane: what is left at the end of a row goes through the same operations."""
    return loads(x, j, 1, 0, 1, 0, 1, 1)


@inline
def _some(x, j):
    return loads(x, j, 1, 0, 1, 0, 1, LANES)


@inline
def _largest(x, count):
    """The largest of a row; a NaN wins."""
    best = _one(x, 0)
    if count >= LANES:
        many = _some(x, 0)
        for j in range(LANES, count, LANES):
            many = maximum(many, _some(x, min(j, count - LANES)))
        return largest(many)
    for j in range(1, count):
        best = maximum(best, _one(x, j))
    return largest(best)


@inline
def _exponentials(x, m, y, count, keep):
    """The sum of e^(x_j - m); and each of these numbers in y, if they are to be kept."""
    total, less = zeros(x, 1, LANES), full(x, -m, 1, LANES)
    end = count // LANES * LANES
    for j in range(0, end, LANES):
        e = exp(add(_some(x, j), less))
        total = add(total, e)
        if keep:
            stores(y, j, 1, 0, 1, 0, 1, LANES, e)
    found = sums(total)[0]
    for j in range(end, count):
        e = sums(exp(add(_one(x, j), full(x, -m, 1, 1))))[0]
        found += e
        if keep:
            put(y, j, e)
    return found


@inline
def _sum_of_products(a, b, count):
    total = zeros(a, 1, LANES)
    end = count // LANES * LANES
    for j in range(0, end, LANES):
        total = add(total, multiply(_some(a, j), _some(b, j)))
    found = sums(total)[0]
    for j in range(end, count):
        found += get(a, j) * get(b, j)
    return found


def softmax(T):
    """y_j = e^(x_j - m) / sum of e^(x_i - m), m the largest."""

    def kernel(row, image, slot, chunk, share, shares):
        if share != 0:
            return
        count, x, y = get(row, ROWS.count), place(row, ROWS.x, image, slot, T), place(row, ROWS.y, image, slot, T)
        total = _exponentials(x, _largest(x, count), y, count, True)
        for j in range(count):
            put(y, j, get(y, j) / total)

    return kernel


def softmax_back(T):
    """dx_j = y_j (dy_j - sum of dy_i y_i)"""

    def kernel(row, image, slot, chunk, share, shares):
        if share != 0:
            return
        count, y = get(row, ROWS.count), place(row, ROWS.y, image, slot, T)
        dy, dx = place(row, ROWS.dy, image, slot, T), place(row, ROWS.dx, image, slot, T)
        total = _sum_of_products(dy, y, count)
        for j in range(count):
            put(dx, j, get(y, j) * (get(dy, j) - total))

    return kernel


def log_softmax(T):
    """y_j = x_j - m - log(sum of e^(x_i - m)), m the largest."""

    def kernel(row, image, slot, chunk, share, shares):
        if share != 0:
            return
        count, x, y = get(row, ROWS.count), place(row, ROWS.x, image, slot, T), place(row, ROWS.y, image, slot, T)
        m = _largest(x, count)
        total = np.log(_exponentials(x, m, y, count, False))
        for j in range(count):
            put(y, j, (get(x, j) - m) - total)

    return kernel


def log_softmax_back(T):
    """dx_j = dy_j - e^(y_j) sum of dy_i"""

    def kernel(row, image, slot, chunk, share, shares):
        if share != 0:
            return
        count, y = get(row, ROWS.count), place(row, ROWS.y, image, slot, T)
        dy, dx, total = place(row, ROWS.dy, image, slot, T), place(row, ROWS.dx, image, slot, T), T(0)
        for j in range(count):
            total += get(dy, j)
        _exponentials(y, T(0), dx, count, True)
        for j in range(count):
            put(dx, j, get(dy, j) - get(dx, j) * total)

    return kernel


def log(T):
    """y_j = log(x_j)"""

    def kernel(row, image, slot, chunk, share, shares):
        count, x, y = get(row, ROWS.count), place(row, ROWS.x, image, slot, T), place(row, ROWS.y, image, slot, T)
        for j in range(count * share // shares, count * (share + 1) // shares):
            put(y, j, np.log(get(x, j)))

    return kernel


def log_back(T):
    """dx_j = dy_j / x_j"""

    def kernel(row, image, slot, chunk, share, shares):
        count, x = get(row, ROWS.count), place(row, ROWS.x, image, slot, T)
        dy, dx = place(row, ROWS.dy, image, slot, T), place(row, ROWS.dx, image, slot, T)
        for j in range(count * share // shares, count * (share + 1) // shares):
            put(dx, j, get(dy, j) / get(x, j))

    return kernel


def nll_loss(T):
    """loss = -x[target]; dx = -scale at the target, else 0. A target that is no class raises the fault: then no weight may change."""

    def kernel(row, image, slot, chunk, share, shares):
        if share != 0:
            return
        count, x, dx, gradient = get(row, ROWS.count), place(row, ROWS.x, image, slot, T), place(row, ROWS.dx, image, slot, T), get(row, ROWS.dx)
        scale = get(pointer(get(row, ROWS.scale), T), 0)
        target = get(place(row, ROWS.target, image, slot, np.int64), 0)
        if target < 0 or target >= count:
            put(pointer(get(row, ROWS.fault), np.int64), 0, 1)
            return
        put(place(row, ROWS.loss, image, slot, T), 0, -get(x, target))
        if gradient != 0:
            for j in range(count):
                put(dx, j, 0.0)
            put(dx, target, -scale)

    return kernel


def cross_entropy(T):
    """loss = -log softmax(x)[target]; dx = (softmax(x) - 1 at the target) * scale. The fault as in nll_loss."""

    def kernel(row, image, slot, chunk, share, shares):
        if share != 0:
            return
        count, x, dx, gradient = get(row, ROWS.count), place(row, ROWS.x, image, slot, T), place(row, ROWS.dx, image, slot, T), get(row, ROWS.dx)
        scale = get(pointer(get(row, ROWS.scale), T), 0)
        target = get(place(row, ROWS.target, image, slot, np.int64), 0)
        if target < 0 or target >= count:
            put(pointer(get(row, ROWS.fault), np.int64), 0, 1)
            return
        m = _largest(x, count)
        total = _exponentials(x, m, dx, count, gradient != 0)
        put(place(row, ROWS.loss, image, slot, T), 0, np.log(total) - (get(x, target) - m))
        if gradient != 0:
            for j in range(count):
                put(dx, j, get(dx, j) / total * scale)
            put(dx, target, get(dx, target) - scale)

    return kernel


def total(T):
    """The sum of `count` numbers, each `y_image` bytes after the one before, times `scale`: the loss of a batch."""

    def kernel(row, image, slot, chunk, share, shares):
        if share != 0:
            return
        found = T(0)
        for n in range(get(row, ROWS.count)):
            found += get(pointer(get(row, ROWS.loss) + n * get(row, ROWS.loss_image), T), 0)
        put(pointer(get(row, ROWS.y), T), 0, found * get(pointer(get(row, ROWS.scale), T), 0))

    return kernel


# --- optimisers ------------------------------------------------------------------------------------------------------------


def sgd(T):
    """w -= lr * (g + decay * w). See optim.py. hyper: lr, decay."""

    def kernel(row, image, slot, chunk, share, shares):
        if get(pointer(get(row, UPDATE.fault), np.int64), 0) != 0:
            return
        count, w, g, hyper = get(row, UPDATE.count), pointer(get(row, UPDATE.w), T), pointer(get(row, UPDATE.g), T), pointer(get(row, UPDATE.hyper), np.float64)
        lr, decay = T(get(hyper, 0)), T(get(hyper, 1))
        for i in range(count * share // shares, count * (share + 1) // shares):
            step = get(g, i) + decay * get(w, i) if decay != 0 else get(g, i)
            put(w, i, get(w, i) - lr * step)

    return kernel


def momentum(T):
    """g += decay * w;  v = momentum * v + g;  w -= lr * (g + momentum * v with Nesterov, else v). See optim.py.

    hyper: lr, decay, momentum, nesterov. first: v.
    """

    def kernel(row, image, slot, chunk, share, shares):
        if get(pointer(get(row, UPDATE.fault), np.int64), 0) != 0:
            return
        count, w, g, v = get(row, UPDATE.count), pointer(get(row, UPDATE.w), T), pointer(get(row, UPDATE.g), T), pointer(get(row, UPDATE.first), T)
        hyper = pointer(get(row, UPDATE.hyper), np.float64)
        lr, decay, keeps, nesterov = T(get(hyper, 0)), T(get(hyper, 1)), T(get(hyper, 2)), get(hyper, 3)
        for i in range(count * share // shares, count * (share + 1) // shares):
            step = get(g, i) + decay * get(w, i) if decay != 0 else get(g, i)
            speed = keeps * get(v, i) + step
            put(v, i, speed)
            put(w, i, get(w, i) - lr * (step + keeps * speed if nesterov != 0 else speed))

    return kernel


def adam(T):
    """m = b1 m + (1 - b1) g;  s = b2 s + (1 - b2) g^2;  w -= lr / c1 * m / (sqrt(s / c2) + eps), c = 1 - b^t. See optim.py.

    hyper: lr / c1, c2, b1, b2, eps, what g gets of w (Adam), what w keeps (AdamW), 1 - b1, 1 - b2. first: m, second: s.
    """

    def kernel(row, image, slot, chunk, share, shares):
        if get(pointer(get(row, UPDATE.fault), np.int64), 0) != 0:
            return
        count, w, g, m, s = get(row, UPDATE.count), pointer(get(row, UPDATE.w), T), pointer(get(row, UPDATE.g), T), pointer(get(row, UPDATE.first), T), pointer(get(row, UPDATE.second), T)
        hyper = pointer(get(row, UPDATE.hyper), np.float64)
        lr, c2, b1, b2, eps = T(get(hyper, 0)), T(get(hyper, 1)), T(get(hyper, 2)), T(get(hyper, 3)), T(get(hyper, 4))
        decay, keeps, new1, new2 = T(get(hyper, 5)), T(get(hyper, 6)), T(get(hyper, 7)), T(get(hyper, 8))
        for i in range(count * share // shares, count * (share + 1) // shares):
            value = get(w, i)
            step = get(g, i) + decay * value if decay != 0 else get(g, i)
            first = b1 * get(m, i) + new1 * step
            second = b2 * get(s, i) + new2 * step * step
            put(m, i, first)
            put(s, i, second)
            put(w, i, keeps * value - lr * first / (np.sqrt(second / c2) + eps))

    return kernel
