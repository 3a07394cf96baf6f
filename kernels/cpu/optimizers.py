"""The steps of optimisers, in place, on all threads: each number of w, g and the state goes through the registers once. Their
kernels (loss_kernels.py) are those of compiled networks.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from tinynet.kernels.contract import implements
from tinynet.kernels.cpu import layers, threads
from tinynet.kernels.cpu.program import ARRAYS, KEPT, Prepared, compiled, named, pieces

WEIGHTS, GRADIENT, *STATE = ARRAYS  # where a call's arrays lie (program.Prepared); after those of the state the optimiser's numbers


@implements("sgd_step", device="cpu", variant="simd", default=True)
def sgd_step(w, g, v, *, lr, momentum, nesterov, weight_decay, out):
    weights, velocity = out if momentum else (out, None)
    _begin(weights, w)
    _begin(velocity, v)
    hyper = np.array([lr, weight_decay, momentum, nesterov, 0.0])
    if momentum:
        _step(layers.momentum, w.size, w.dtype.type, 1, 4, threads.count())(weights, np.ascontiguousarray(g), velocity, hyper)
    else:
        _step(layers.sgd, w.size, w.dtype.type, 0, 4, threads.count())(weights, np.ascontiguousarray(g), hyper)


@implements("adam_step", device="cpu", variant="simd", default=True)
def adam_step(w, g, m, s, *, t, lr, betas, eps, weight_decay, decoupled, out):
    weights, first, second = out
    _begin(weights, w)
    _begin(first, m)
    _begin(second, s)
    b1, b2 = betas
    decay, keeps = (0.0, 1 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
    hyper = np.array([lr / (1 - b1**t), 1 - b2**t, b1, b2, eps, decay, keeps, 1 - b1, 1 - b2, 0.0])
    _step(layers.adam, w.size, w.dtype.type, 2, 9, threads.count())(weights, np.ascontiguousarray(g), first, second, hyper)


def _begin(after, before) -> None:
    """What will be updated starts as what was: usually it is that."""
    if after is not before:
        after[...] = before


@lru_cache(KEPT)
def _step(kernel, count: int, dtype, kept: int, numbers: int, slots: int) -> Prepared:
    """kept: arrays of state. After the optimiser's numbers comes a 0: no fault, so the step is taken."""
    state, hyper = dict(zip(("first", "second"), STATE[:kept])), STATE[kept]
    found = dict(count=count, w=WEIGHTS, g=GRADIENT, hyper=hyper, fault=hyper + 8 * numbers, **state)
    return Prepared([([named(compiled(kernel, dtype), layers.UPDATE, found)], 1, 1, pieces(count, slots))], 0, dtype, 2 * (2 + kept) * count)
