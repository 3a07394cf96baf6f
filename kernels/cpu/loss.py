"""Softmax and cross-entropy in one: three passes over a row of logits, which stays in the first cache: its largest, the sum of
exponentials, the probabilities. Its kernel (loss_kernels.py) is that of compiled networks, with all rows scaled by 1.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from tinynet.kernels.contract import implements
from tinynet.kernels.cpu import layers, threads
from tinynet.kernels.cpu.program import ARRAYS, KEPT, Prepared, compiled, named

LOGITS, TARGET, LOSS, DLOGITS, CONSTANTS = ARRAYS  # where a call's arrays lie (program.Prepared)
# The scale of the gradient; and, in the two numbers from byte 8 on, the place where compiled programs report a wrong class.
_constants = {T: np.array([1, 0, 0, 0], T) for T in (np.float32, np.float64)}


@implements("softmax_cross_entropy", device="cpu", variant="simd", default=True)
def softmax_cross_entropy(logits, target, *, out):
    loss, dlogits = out
    if len(logits):
        logits, target = np.ascontiguousarray(logits), np.ascontiguousarray(target, np.int64)
        _rows(*logits.shape, logits.dtype.type, threads.count())(logits, target, loss, dlogits, _constants[logits.dtype.type])


@lru_cache(KEPT)
def _rows(rows: int, classes: int, dtype, slots: int) -> Prepared:
    item = np.dtype(dtype).itemsize
    row = classes * item
    numbers = dict(count=classes, x=(LOGITS, 0, row), dx=(DLOGITS, 0, row), target=(TARGET, 0, 8), loss=(LOSS, 0, item), scale=CONSTANTS, fault=CONSTANTS + 8)
    kernel = named(compiled(layers.cross_entropy, dtype), layers.ROWS, numbers)
    return Prepared([([kernel], rows, min(rows, 4 * slots), 1)], 0, dtype, 40 * rows * classes)  # an exponential is many operations
