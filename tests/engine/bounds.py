"""How far two results of one sum may lie apart: derived, never guessed (research/oracle.md, 1.3).

A sum of n rounded terms, in any order, with or without FMA, errs by at most gamma_n * G, where
G, the gauge, is the same sum over absolute values and gamma_n = n u / (1 - n u). Two results that
both err differ by at most the two bounds together. Where u * G underflows, n steps of the
smallest subnormal come on top.
"""

from __future__ import annotations

import numpy as np

EXP_LOG = 8.0  # error of one exp, log or pow in units of u: 4 ulp, what vector libraries guarantee


def unit(dtype) -> float:
    """Half the distance from 1 to the next number: the relative error of one rounding."""
    return float(np.finfo(dtype).eps) / 2


def gamma(n, u: float):
    return n * u / (1 - n * u)


def excess(got, want, gauge, n) -> float:
    """max |got - want| over what rounding may do to both of them; right if it is at most 1.

    NaN and infinities must be in the same places; where they are, rounding plays no role.
    """
    got, want, gauge = np.asarray(got), np.asarray(want), np.abs(np.asarray(gauge, np.float64))
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    special = ~np.isfinite(want)
    np.testing.assert_array_equal(np.where(np.isfinite(got), 0, got), np.where(special, want, 0), err_msg="NaN or infinity in the wrong place")
    allowed = sum(gamma(n, unit(a.dtype)) * gauge + n * np.finfo(a.dtype).smallest_subnormal.astype(float) for a in (got, want))
    difference = np.abs(np.where(special, 0, got).astype(np.float64) - np.where(special, 0, want).astype(np.float64))
    over = np.where(difference == 0, 0.0, difference / np.where(allowed == 0, np.finfo(float).tiny, allowed))
    return float(over.max(initial=0.0))


def assert_close(got, want, gauge, n, what: str = "") -> None:
    """got and want are the same sum of n roundings, in their own precisions."""
    found = excess(got, want, gauge, n)
    assert found <= 1, f"{what}: {found:.3g} times what rounding allows (n = {n}, {np.asarray(got).dtype} against {np.asarray(want).dtype})"


def assert_same(got, want, what: str = "") -> None:
    """Bit for bit, NaN equal to NaN."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype, f"{what}: dtype {got.dtype}, expected {want.dtype}"
    np.testing.assert_array_equal(got, want, err_msg=what)
