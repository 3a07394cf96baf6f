"""The gradients of a convolution's bias and of max-pooling as programs: a training step is complete without `loops`.

    db[k]       = sum of dy[n, k, i, j]       NCHW: a channel's planes; NHWC: pixels, all channels side by side
    dx[argmax] += dy                          a plane (NHWC: an image) is one task
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from tinynet.geometry import nchw
from tinynet.kernels.contract import implements
from tinynet.kernels.cpu import layers, threads, tiles
from tinynet.kernels.cpu.program import STAND_IN, Prepared, compiled, named, row

KEPT = 256  # prepared calls of each kind
MOST_PARTS, LEAST_PIXELS = 32, 256  # parts of an NHWC image that have sums of their own, and pixels of a part


@implements("conv2d_db", device="cpu", variant="simd", default=True)
def conv2d_db(dy, *, layout, out):
    _sums(dy.shape, dy.dtype.type, layout, threads.count())(np.ascontiguousarray(dy), out)


@lru_cache(KEPT)
def _sums(shape, dtype, layout, slots) -> Prepared:
    n, k, h, w = nchw(shape, layout)
    dy, db, partial = (i * STAND_IN for i in (1, 2, 3))
    if layout == "NCHW":
        kernel = row(compiled(tiles.plane_sums, tiles.widths(dtype)[0], dtype), n, h * w, dy, k * h * w, db)
        return Prepared([([kernel], k, min(k, 64), 1)], 0, dtype, n * k * h * w)
    parts = max(1, min(MOST_PARTS, n * h * w // LEAST_PIXELS))  # from shapes alone: they decide in which order numbers are added
    pixels = row(compiled(tiles.pixel_sums, dtype), n * h * w, parts, k, dy, partial)
    total = named(compiled(layers.row_sums, dtype), layers.FEATURES, dict(count=k, images=parts, dy=partial, dy_row=k, y=db))
    return Prepared([([pixels], parts, parts, 1), ([total], 1, 1, 1)], parts * k, dtype, n * k * h * w)


@implements("max_pool2d_dx", device="cpu", variant="simd", default=True)
def max_pool2d_dx(dy, argmax, *, x_shape, layout, out):
    _scattered(dy.shape, x_shape, dy.dtype.type, layout, threads.count())(np.ascontiguousarray(dy), np.ascontiguousarray(argmax), out)


@lru_cache(KEPT)
def _scattered(shape, x_shape, dtype, layout, slots) -> Prepared:
    (n, c, h, w), (_, _, i, j) = nchw(x_shape, layout), nchw(shape, layout)
    tasks, channels = (n * c, 1) if layout == "NCHW" else (n, c)
    kernel = row(compiled(tiles.scatter, int(channels == 1), dtype), i * j, h * w, channels, *(a * STAND_IN for a in (1, 2, 3)))
    return Prepared([([kernel], tasks, min(tasks, 64), 1)], 0, dtype, n * c * (h * w + 4 * i * j))
