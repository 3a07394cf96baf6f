"""Max-pooling of NCHW planes as vector code: windows and strides that are small constants, and lie inside the image.

That is nearly every pooling there is. What is not (padding, dilation, windows that reach past the image,
NHWC, whose channels fill the lanes anyway) is left to `loops`, which pool2d.py holds.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

import numpy as np

from tinynet.kernels.contract import IMPLEMENTATIONS, implements
from tinynet.kernels.cpu import threads, tiles
from tinynet.kernels.cpu.images import shared
from tinynet.kernels.cpu.program import STAND_IN, Prepared, compiled, row

LARGEST = 4  # rows or columns of a window, and steps between windows


def takes(x_shape, kernel_size, stride, padding, dilation, outputs, layout) -> bool:
    inside = all((o - 1) * s + e <= size for o, s, e, size in zip(outputs, stride, kernel_size, x_shape[2:]))
    return layout == "NCHW" and inside and not any(map(any, padding)) and max(dilation) == 1 and max(*kernel_size, *stride) <= LARGEST


@implements("max_pool2d", device="cpu", variant="simd", default=True)
def max_pool2d(x, *, kernel_size, stride, padding, dilation, ceil_mode, layout, out):
    y, argmax = out
    if not takes(x.shape, kernel_size, stride, padding, dilation, y.shape[2:], layout):
        loops = IMPLEMENTATIONS["max_pool2d", "cpu"]["loops"].function
        loops(x, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode, layout=layout, out=out)
        return
    _prepared(x.shape, y.shape, kernel_size, stride, x.dtype.type, threads.count())(np.ascontiguousarray(x), y, argmax)


@lru_cache(256)
def _prepared(x_shape, y_shape, kernel_size, stride, dtype, slots) -> Prepared:
    planes = x_shape[0] * x_shape[1]
    chunks, shares = shared(planes, y_shape[2])
    x, y, argmax = (i * STAND_IN for i in (1, 2, 3))
    kernel = row(compiled(tiles.max_pool, *kernel_size, *stride, dtype), x, y, argmax, *x_shape[2:], *y_shape[2:])
    return Prepared([([kernel], planes, chunks, shares)], 0, dtype, 4 * prod(y_shape) * prod(kernel_size))
