"""What a correct result may differ by: number formats, gamma_n, the gate, and `Bounded`.

A sum of n products, in any order, with or without FMA, rounded to nearest, obeys

    |got - truth| <= gamma_n * gauge,      gamma_n = n*u / (1 - n*u),
    gauge = the same sum over absolute values,   u = 2^-p (p bits of significand).

Source: N. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1;
the gauge is that of the reference BLAS testers. So errors are counted in units of u * gauge:
r = |got - truth| / (u * gauge) is independent of the data's scale, and r > gamma_n / u is
impossible for a correct sum, whatever its order.

Next on the walk: reference.py, where each op gets its gauge; verdict.py, where r is judged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Format:
    """A binary floating-point format: p bits of significand, normal numbers from 2^least to below 2^(most+1)."""

    name: str
    p: int
    least: int
    most: int

    @property
    def u(self) -> float:
        """The unit roundoff: the largest relative error of one rounding to nearest."""
        return 2.0**-self.p

    @property
    def tiny(self) -> float:
        """The smallest positive (subnormal) number."""
        return 2.0 ** (self.least - self.p + 1)

    @property
    def normal(self) -> float:
        """The smallest normal number: what is smaller may be flushed to zero by some processors."""
        return 2.0**self.least

    @property
    def max(self) -> float:
        return (2.0 - 2.0 ** (1 - self.p)) * 2.0**self.most


FORMATS = {
    f.name: f
    for f in (Format("float16", 11, -14, 15), Format("bfloat16", 8, -126, 127), Format("float32", 24, -126, 127), Format("float64", 53, -1022, 1023))
}
U16, UB16, U32, U64 = (FORMATS[name].u for name in ("float16", "bfloat16", "float32", "float64"))


def format_of(dtype, where: str) -> Format:
    """The format of a dtype, by its name ("bfloat16" needs no import of ml_dtypes)."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None) or np.dtype(dtype).name
    if name not in FORMATS:
        raise TypeError(f"{where}: the dtype must be one of {', '.join(FORMATS)}; got {name}")
    return FORMATS[name]


def dtype_of(name: str) -> np.dtype:
    """The numpy dtype of a format's name. bfloat16 is not numpy's own: it comes from ml_dtypes."""
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        raise ImportError("bfloat16 numpy arrays need the package ml_dtypes: pip install ml_dtypes") from None
    return np.dtype(ml_dtypes.bfloat16)


def rounded(value: np.ndarray, fmt: Format) -> np.ndarray:
    """float64 values rounded to nearest, ties to even, in `fmt`: as float64, infinite where they overflow."""
    value = np.asarray(value, np.float64)
    if fmt.p == 53:
        return value
    with np.errstate(over="ignore", invalid="ignore"):
        _, exponent = np.frexp(value)  # |value| in [2^(exponent-1), 2^exponent)
        step = np.maximum(exponent, fmt.least + 1) - fmt.p  # the spacing of fmt there is 2^step
        near = np.ldexp(np.rint(np.ldexp(value, -step)), step)
        return np.where(np.abs(near) > fmt.max, np.copysign(np.inf, near), near)


def gamma(n, u: float = U32):
    """gamma_n = n*u / (1 - n*u); infinite where n*u >= 1, where no bound of this kind exists."""
    nu = np.asarray(n, np.float64) * u
    with np.errstate(divide="ignore"):
        found = np.where(nu < 1, nu / np.maximum(1 - nu, 0), np.inf)
    return float(found) if found.ndim == 0 else found


def gate(n, *, zero_mean: bool = False, u: float = U32, c: float = 16.0, k: float = 2.0):
    """The largest r of an honest implementation: min(gamma_n / u, c), or on arbitrary data min(gamma_n / u, max(c, k*sqrt(n))).

    c = 16 is the reference BLAS's gate, on data whose sums have mean zero: there rounding errors
    cancel, and the reference kernels' r stays below 6 at any n. All-positive data reach
    0.89*sqrt(n) in the worst order (sequential): k = 2. The measurements: research, section 1.3.
    """
    n = np.asarray(n, np.float64)
    honest = np.full(n.shape, float(c)) if zero_mean else np.maximum(c, k * np.sqrt(n))
    found = np.minimum(gamma(n, u) / u, honest)
    return float(found) if found.ndim == 0 else found


def proof_bound(n, u: float = U32):
    """The r that no order of summation can exceed: gamma_n / u, and n itself where n*u is not small.

    n*u, without a denominator, holds for any n: C.-P. Jeannerod, S. Rump, "Improved error bounds for inner
    products in floating-point arithmetic", SIAM J. Matrix Anal. Appl. 34(2), 2013.
    """
    n = np.asarray(n, np.float64)
    found = np.where(n * u > 0.1, n, gamma(n, u) / u)
    return float(found) if found.ndim == 0 else found


@dataclass(frozen=True, eq=False)
class Bounded:
    """A true result, and what a computed one may differ from it by: gamma_n * gauge.

    value:    the truth, float64 (wider floats are split into value + low); integers for places.
    gauge:    float64 of the same shape. Where it is 0, only the exact value is right.
    n:        roundings on the longest chain: an int, or an array for each element. An op whose
              bound was found by following each rounding (softmax, Adam) has it as the gauge, in
              units of u, and n = 1.
    proof:    for those: how many gauges no computation can exceed. None: gamma_n / u.
    peak:     an intermediate result may be so many times the gauge (the sum behind a mean), and overflow.
    exact:    the result must be the truth rounded once: selections, copies, single + - * / sqrt.
    low:      what value lacks of the truth (for float64 candidates), so truth = value + low.
    dtype:    the name of the dtype that the result must have; None accepts any, judged by its own u.
    integral: integer inputs give integer results: where all sums fit into p bits they must be exact.
    underflows: roundings that may underflow, each with an absolute error of the smallest number; n if None.
    norm:     for variants that no componentwise bound fits (Winograd, FFT, TF32): the stated
              bound of ||got - truth||_2 / ||gauge||_2.
    accepts:  for exact results with several right answers: which elements of `got` are right too.
    label:    a name for messages, like "argmax".
    """

    value: np.ndarray
    gauge: np.ndarray | float = 0.0
    n: int | np.ndarray = 0
    exact: bool = False
    low: np.ndarray | None = None
    dtype: str | None = None
    integral: bool = False
    underflows: int | None = None
    proof: np.ndarray | float | None = None
    peak: float = 1.0
    norm: float | None = None
    accepts: Callable[[np.ndarray], np.ndarray] | None = None
    label: str = ""

    def __post_init__(self):
        value = np.asarray(self.value)
        if value.dtype.kind == "f" and value.dtype.itemsize > 8:
            near = value.astype(np.float64)
            with np.errstate(invalid="ignore"):
                self._set("low", np.where(np.isfinite(near), value - near, 0).astype(np.float64))
            value = near
        elif value.dtype.kind not in "iub":
            value = value.astype(np.float64, copy=False)
        self._set("value", value)
        gauge = np.asarray(self.gauge, np.float64)
        try:
            self._set("gauge", np.broadcast_to(gauge, value.shape))
        except ValueError:
            raise ValueError(f"Bounded: gauge must have the value's shape {value.shape}; got {gauge.shape}") from None
        if np.any(self.gauge < 0) or np.any(np.asarray(self.n) < 0):
            raise ValueError("Bounded: gauge and n can't be negative; the gauge is the op on absolute values")

    def _set(self, name, value):
        object.__setattr__(self, name, value)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    def with_norm(self, bound: float) -> "Bounded":
        """The same truth, judged as a whole: ||got - truth||_2 <= bound * ||gauge||_2."""
        if not bound > 0:
            raise ValueError(f"Bounded.with_norm: the bound must be positive, like 2e-5; got {bound!r}")
        return replace(self, norm=float(bound))

    def in_dtype(self, dtype) -> "Bounded":
        """The same truth for a result of another dtype; None for any."""
        return replace(self, dtype=None if dtype is None else format_of(dtype, "Bounded.in_dtype").name)

    def exactly(self) -> "Bounded":
        """The same truth, to be met bit for bit: where rounding would have let others be right, nothing else is."""
        return replace(self, exact=True, accepts=None)

    def named(self, label: str) -> "Bounded":
        return replace(self, label=label)

    def moved(self, f: Callable[[np.ndarray], np.ndarray]) -> "Bounded":
        """The same elements elsewhere: `f` reshapes, transposes or flips an array."""
        low = None if self.low is None else f(self.low)
        proof = f(np.broadcast_to(self.proof, self.shape)) if np.ndim(self.proof) else self.proof
        n = f(np.broadcast_to(self.n, self.shape)) if np.ndim(self.n) else self.n
        return replace(self, value=f(self.value), gauge=f(self.gauge), n=n, low=low, proof=proof)

    def scaled(self, s: float) -> "Bounded":
        """s times the truth, one more rounding allowed."""
        low = None if self.low is None else self.low * s
        return replace(self, value=self.value * s, gauge=self.gauge * abs(s), n=self.n + 1, low=low, exact=False)
