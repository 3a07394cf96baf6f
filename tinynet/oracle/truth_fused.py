"""The truth of kernels that do what several did: their bounds are those of the parts, carried on.

    z = conv2d(x, weight, bias), |computed z - z| <= b        then for each window

    y = max(0, the largest z)       errs by at most the largest b: neither max nor ReLU moves two numbers further apart
    argmax                          is right at any z that the largest b on either side lets be the largest; and -1 is, where
                                    it lets all of them be 0
"""

from __future__ import annotations

import numpy as np

from tinynet.geometry import nchw
from tinynet.kernels.reference.conv2d_pool import TOUCHING
from tinynet.kernels.reference.layout import as_nchw
from tinynet.oracle.bounds import Bounded, format_of, gate
from tinynet.oracle.truth_kernels import conv2d, run


def conv2d_relu_max_pool2d(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, layout="NCHW", dtype=None):
    """(y, argmax) of windows of 2 x 2; gauge the largest of conv2d's in each window; n = C/groups * kh * kw (+ 1 with a bias)."""
    z = conv2d(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups, layout=layout, dtype=dtype)
    _, _, rows, columns = nchw(z.shape, layout)
    if min(rows, columns) < 2:
        raise ValueError(f"oracle.reference.conv2d_relu_max_pool2d: no window of 2 x 2 fits into the convolution's {rows} x {columns} results")
    largest, argmax = run("max_pool2d", z.value, **TOUCHING, layout=layout)
    gauge = run("max_pool2d", z.gauge, **TOUCHING, layout=layout)[0]
    with np.errstate(invalid="ignore"):
        y = np.where(largest < 0, 0, largest)
        places = np.where(largest > 0, argmax, -1)
    low = None if z.low is None else np.where(places >= 0, _at(z.low, argmax, layout), 0.0)
    error = gate(z.n, u=format_of(z.dtype, "oracle.reference").u) * format_of(z.dtype, "oracle.reference").u * gauge
    return (
        Bounded(y, gauge, z.n, low=low, dtype=z.dtype, integral=True, label="y"),
        Bounded(places, gauge, exact=True, integral=True, accepts=lambda got: _may_win(got, z.value, largest, error, layout), label="argmax"),
    )


def _at(z, places, layout: str) -> np.ndarray:
    """The number of its plane at each place."""
    z, places = as_nchw(z, layout), as_nchw(places, layout)
    n, c, height, width = z.shape
    found = z[np.arange(n)[:, None, None, None], np.arange(c)[:, None, None], places // width, places % width]
    return found if layout == "NCHW" else found.transpose(0, 2, 3, 1)


def _may_win(got, z, largest, error, layout: str) -> np.ndarray:
    """Where rounding allows the place `got`."""
    got = np.asarray(got, np.int64)
    height, width = nchw(z.shape, layout)[2:]
    rows, columns = (np.arange(n) for n in nchw(got.shape, layout)[2:])
    rows, columns = (rows[:, None], columns) if layout == "NCHW" else (rows[:, None, None], columns[:, None])
    inside = (got >= 0) & (got < height * width) & (got // width // 2 == rows) & (got % width // 2 == columns)
    with np.errstate(invalid="ignore"):
        near = _at(z, np.where(inside, got, 0), layout)
        return np.where(got == -1, largest <= error, inside & (near + 2 * error >= largest) & (near + error > 0))
