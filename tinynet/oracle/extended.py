"""Truth beyond float64, for float64 candidates: the same reference kernels, without rounding.

numpy's longdouble would do on x86 Linux and is float64 itself on Windows and on Apple's arm64;
so one portable way is used everywhere:

* Sums of products: the error-free slicing of Ozaki, Ogita, Oishi and Rump (Numerical
  Algorithms 59, 2012). An array is cut into slices of so few bits that every sum the float64
  kernel forms from two slices is exact, in any order and on any BLAS; the slices' results are
  then added up as pairs (value, low) with about 106 bits.
* Formulas with exp, log, sqrt and division: Python's decimal with 50 digits (see running.py).

Both are tested against fractions.Fraction.
"""

from __future__ import annotations

from math import ceil, log2

import numpy as np

MOST_SLICES = 8  # at least 8 * (53 - 20) / 2 = 132 bits below the largest number


def two_sum(a, b):
    """a + b = s + e exactly (Knuth)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def add_up(parts) -> tuple[np.ndarray, np.ndarray]:
    """The sum of arrays as (value, low), value the nearest float64."""
    high, low = 0.0, 0.0
    for part in parts:
        high, error = two_sum(high, part)
        low = low + error
    return two_sum(high, low)


def split(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a as two halves of at most 26 bits (Veltkamp), for numbers that 2^27 times don't overflow."""
    shifted = a * 134217729.0
    high = shifted - (shifted - a)
    return high, a - high


def divided(a: np.ndarray, low: np.ndarray, by: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(a + low) / by as (value, low), for whole numbers `by` below 2^26."""
    q = a / by
    high, rest = split(q)
    remainder = ((a - high * by) - rest * by) + low  # both products are exact
    return two_sum(q, remainder / by)


def slices(a: np.ndarray, bits: int) -> tuple[list[np.ndarray], bool]:
    """Arrays that add up to `a` exactly, and whether each holds whole numbers <= 2^bits times a power of 2: if the
    numbers of `a` are further apart than MOST_SLICES reach, a last one holds what remains."""
    found, rest = [], a
    for _ in range(MOST_SLICES):
        largest = np.abs(rest).max(initial=0.0)
        if largest == 0:
            break
        step = max(int(np.frexp(largest)[1]) - bits, -1074)
        part = np.ldexp(np.rint(np.ldexp(rest, -step)), step)
        found.append(part)
        rest = rest - part
    whole = not np.any(rest)
    if not whole:
        found.append(rest)
    return found or [a], whole


def _finite(a: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(a), a, 0.0)


def completed(plain: np.ndarray, parts) -> tuple[np.ndarray, np.ndarray]:
    """The exact sum of parts; where the plain result is NaN or infinite, that."""
    with np.errstate(all="ignore"):
        value, low = add_up(parts)
    finite = np.isfinite(plain) & np.isfinite(value) & np.isfinite(low)
    return np.where(finite, value, plain), np.where(finite, low, 0.0)


def linear(f, a: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """f(a) as (value, low), for a float64 kernel f that sums at most n elements. low is None if it is not exact."""
    parts, whole = slices(_finite(a), 52 - ceil(log2(max(n, 1))))
    value, low = completed(f(a), [f(s) for s in parts])
    return value, low if whole else None


def bilinear(f, a: np.ndarray, b: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """f(a, b) as (value, low), for a float64 kernel f that sums at most n products. low is None if it is not exact."""
    bits = (52 - ceil(log2(max(n, 1)))) // 2
    (parts, whole), (others, whole_too) = slices(_finite(a), bits), slices(_finite(b), bits)
    value, low = completed(f(a, b), [f(s, t) for s in parts for t in others])
    return value, low if whole and whole_too else None
