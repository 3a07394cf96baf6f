"""Mistakes that any kernel can have: each takes an honest function and gives it with that mistake."""

from __future__ import annotations

import numpy as np

from tinynet.oracle.bounds import FORMATS, rounded


def scaled(f, factor: float):
    """The result times a factor near 1: a constant that was typed wrong."""
    return lambda *arrays, **parameters: (f(*arrays, **parameters) * np.float32(factor)).astype(dtype_of(arrays))


def dtype_of(arrays):
    return next(a.dtype for a in arrays if a is not None and a.dtype.kind not in "iub")


def skipped(f, index):
    """The elements at `index` of the result are never written: they hold zeros."""

    def fault(*arrays, **parameters):
        y = f(*arrays, **parameters)
        if y.ndim:
            y[index if y.ndim > 1 or not isinstance(index, tuple) else index[-1]] = 0
        return y

    return fault


class Fresh:
    """A fault that keeps a state: made anew for each check."""

    def __init__(self, make):
        self.make = make


def stale(f):
    """The answer to the first call with these shapes is given again: a cache without the contents in its key."""

    def make():
        kept: dict = {}

        def fault(*arrays, **parameters):
            key = (*(None if a is None else a.shape for a in arrays), str(parameters))
            return kept.setdefault(key, f(*arrays, **parameters)).copy()

        return fault

    return Fresh(make)


def overwriting(f):
    """The first input serves as work space."""

    def fault(*arrays, **parameters):
        y = f(*arrays, **parameters)
        if arrays[0].size:
            arrays[0].reshape(-1)[0] += 1
        return y

    return fault


def short_inputs(f, fmt: str = "", bits: int = 11, count: int = 2):
    """The factors are rounded to fewer bits before they are multiplied: TF32 has 11, bfloat16 8."""

    def cut(a):
        if fmt:
            return rounded(a, FORMATS[fmt]).astype(a.dtype)
        mantissa, exponent = np.frexp(a.astype(np.float64))
        return np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits).astype(a.dtype)

    def fault(*arrays, **parameters):
        return f(*(cut(a) if i < count and a is not None else a for i, a in enumerate(arrays)), **parameters)

    return fault


def half_sums(f):
    """The sum is kept in float16 on its way: here, rounded to it once, the least that this can do."""

    def fault(*arrays, **parameters):
        with np.errstate(over="ignore"):
            y = f(*arrays, **parameters)
            return y.astype(np.float16).astype(y.dtype)

    return fault
