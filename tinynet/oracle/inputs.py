"""Inputs that show bugs: whole numbers whose sums are exact in any order, and reals of mean zero.

Whole numbers: if n * max|a| * max|b| <= 2^p, every partial sum of products is a whole number
that the format holds exactly. Then no order of summation rounds at all, all of them give the
same bits, and a structural bug is a difference of at least 1 (oneDNN's benchdnn works so).
They cannot show lost precision; reals do. So every check uses both.
"""

from __future__ import annotations

import numpy as np

from tinynet.oracle.bounds import dtype_of, format_of


def ints(rng: np.random.Generator, shape, *, n: int, dtype="float32", other: int = 1, most: int = 8) -> np.ndarray:
    """Whole numbers without 0, so large that sums of n of them, each times at most `other`, are exact.

    Where even n ones are too many for the format (float16: 2048, bfloat16: 256), most are 0: the
    share of others is a quarter of what fits, and check() asks for exact bits only if all sums fit.
    """
    p = format_of(dtype, "oracle.inputs.ints").p
    largest = int(min(most, 2**p // max(n * other, 1)))
    values = rng.integers(1, max(largest, 1) + 1, shape) * rng.choice([-1, 1], shape)
    if largest < 1:
        values = values * (rng.random(shape) < 2**p / (4 * n * other))
    return np.asarray(values).astype(dtype_of(dtype))


def factors(rng: np.random.Generator, a_shape, b_shape, *, n: int, dtype="float32") -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of whole numbers for sums of n products: n * max|a| * max|b| <= 2^p."""
    p = format_of(dtype, "oracle.inputs.factors").p
    share = int(np.clip(np.sqrt(2**p / max(n, 1)), 1, 8))
    a = ints(rng, a_shape, n=n, dtype=dtype, other=share, most=share)
    return a, ints(rng, b_shape, n=1, dtype=dtype, most=share)


def reals(rng: np.random.Generator, shape, *, dtype="float32", scale: float = 1.0) -> np.ndarray:
    """Normal numbers of mean zero."""
    return (rng.standard_normal(shape) * scale).astype(dtype_of(dtype))


def positive(rng: np.random.Generator, shape, *, dtype="float32") -> np.ndarray:
    """Between 0.5 and 2, for logarithms, roots and divisors."""
    return rng.uniform(0.5, 2.0, shape).astype(dtype_of(dtype))


def unique(rng: np.random.Generator, shape, *, dtype="float32") -> np.ndarray:
    """Numbers no two of which are equal or near: whole steps in random order, around zero (for selections).

    Formats with few bits repeat them once they run out (2^p); then only near places differ for sure.
    """
    size = int(np.prod(shape))
    steps = min(size, 2 ** format_of(dtype, "oracle.inputs.unique").p)
    ranks = np.arange(size) % max(steps, 1) - steps // 2
    return rng.permutation(ranks).reshape(shape).astype(dtype_of(dtype))


def ties(rng: np.random.Generator, shape, *, dtype="float32") -> np.ndarray:
    """Few different numbers, so that most windows hold their largest more than once."""
    return rng.integers(-1, 2, shape).astype(dtype_of(dtype))


def special(rng: np.random.Generator, shape, *, dtype="float32") -> np.ndarray:
    """Reals with a few NaN, both infinities and zeros of both signs; never in the majority."""
    a = reals(rng, shape, dtype=dtype)
    flat = a.reshape(-1)
    count = min(5, flat.size // 8)
    places = rng.choice(flat.size, count, replace=False) if count else []
    for place, value in zip(places, (np.nan, np.inf, -np.inf, -0.0, 0.0)):
        flat[place] = value
    return a


def subnormal(rng: np.random.Generator, shape, *, dtype="float32") -> np.ndarray:
    """Whole multiples of the format's smallest number, below its smallest normal one."""
    fmt = format_of(dtype, "oracle.inputs.subnormal")
    most = 2 ** (fmt.p - 2)
    return (rng.integers(-most, most + 1, shape) * fmt.tiny).astype(dtype_of(dtype))
