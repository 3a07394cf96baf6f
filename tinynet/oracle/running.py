"""Running error bounds: a formula is written once, and computed three ways.

`evaluate(formula, ...)` runs `formula(m, *arrays)`, whose arithmetic goes through `m`:

* DOUBLES    float64: the truth for float32 and narrower candidates.
* DECIMALS   50 decimal digits: the truth for float64 candidates.
* `Running`  numbers that carry a rigorous bound of their error in units of u, rounding by
             rounding, second-order terms and underflow included (Wilkinson's running error
             analysis; Higham, section 3.3). The bound does not depend on the order of a sum. It is
             computed twice: as far as honest sums go (the gate), and as far as any can (the proof).

exp and log are assumed right within K = 4 units in the last place, the largest error of
numpy, libm, SVML, Eigen, SLEEF and CUDA's accurate versions, and sqrt within one: IEEE 754
wants it rounded correctly, but PyTorch's on the CPU (MKL's vector library) errs by up to 0.74
ulp, in 14 of 100 numbers. Parameters (a learning rate) may be rounded to the candidate's format once.
"""

from __future__ import annotations

import decimal
from decimal import Decimal

import numpy as np

from tinynet.oracle.bounds import Bounded, Format

K = 4.0  # ulps of exp and log; one ulp is at most 2u


class Doubles:
    """The arithmetic of numpy's float64."""

    exp, log, sqrt = staticmethod(np.exp), staticmethod(np.log), staticmethod(np.sqrt)

    @staticmethod
    def number(value: float):
        return float(value)

    @staticmethod
    def array(a):
        return np.asarray(a, np.float64)


def _each(f):
    lifted = np.frompyfunc(f, 1, 1)
    return staticmethod(lambda a: np.asarray(lifted(a), object))


class Decimals:
    """The same on arrays of Decimal."""

    exp, log, sqrt = _each(Decimal.exp), _each(Decimal.ln), _each(Decimal.sqrt)
    array = _each(lambda v: Decimal(float(v)))
    number = staticmethod(lambda value: Decimal(float(value)))


class Running:
    """A float64 value and a bound of |computed - exact|, in units of u, of whoever computes it in `fmt`.

    honest: the bound of sums is the gate's, min(count - 1, max(16, 2 sqrt(count))), as for sums of products
    (bounds.py); else it is the proof's, count - 1, which holds for any count (Jeannerod and Rump, 2013).
    """

    __array_ufunc__ = None
    fmt: Format

    def __init__(self, value, error, fmt, honest=False):
        self.value, self.error, self.fmt, self.honest = np.asarray(value, np.float64), error, fmt, honest

    def _new(self, value, error, roundings=1.0):
        """The result of an operation that carries `error` over and rounds: the computed number, at most
        |value| + u*error, gets a relative error of u, or of half the smallest number if it is subnormal."""
        size = np.abs(value) + self.fmt.u * error
        error = error + roundings * (size + self.fmt.tiny / self.fmt.u)
        return Running(value, np.where(np.isinf(value), 0.0, error), self.fmt, self.honest)  # infinity minus something is infinity, exactly

    def _pair(self, other):
        return other if isinstance(other, Running) else Running(other, 0.0, self.fmt, self.honest)

    def __add__(self, other):
        other = self._pair(other)
        return self._new(self.value + other.value, self.error + other.error)

    def __sub__(self, other):
        other = self._pair(other)
        return self._new(self.value - other.value, self.error + other.error)

    def __rsub__(self, other):
        return self._pair(other) - self

    def __neg__(self):
        return Running(-self.value, self.error, self.fmt, self.honest)

    def __mul__(self, other):
        other = self._pair(other)
        carried = np.abs(self.value) * other.error + np.abs(other.value) * self.error
        return self._new(self.value * other.value, carried + self.fmt.u * self.error * other.error)

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other):
        other = self._pair(other)
        room = np.abs(other.value) - self.fmt.u * other.error
        value = self.value / other.value
        carried = np.where(room > 0, (self.error + np.abs(value) * other.error) / np.where(room > 0, room, 1.0), np.inf)
        return self._new(value, carried)

    def __rtruediv__(self, other):
        return self._pair(other) / self

    def __pow__(self, exponent):
        """Either one good pow, or exp(exponent * log x), whichever is worse."""
        exponent = exponent.value if isinstance(exponent, Running) else exponent
        logs = np.abs(exponent * np.log(np.where(self.value == 0, 1.0, np.abs(self.value))))
        value = self.value**exponent
        return self._new(value, np.abs(value) * (np.abs(exponent) * np.where(self.error == 0, 0.0, self.error / np.abs(self.value)) + (2 * K + 2) * (logs + 1)))

    def sum(self, axis=None, keepdims=False):
        total = self.value.sum(axis=axis, keepdims=keepdims)
        count = self.value.size // max(total.size, 1) if total.size else 1
        errors = np.broadcast_to(self.error, self.value.shape).sum(axis=axis, keepdims=keepdims)
        gauge = np.abs(self.value).sum(axis=axis, keepdims=keepdims) + self.fmt.u * errors
        roundings = max(count - 1, 0)
        if self.honest:
            roundings = min(roundings, max(16.0, 2.0 * np.sqrt(count)))
        return Running(total, errors + gauge * roundings, self.fmt, self.honest)

    def max(self, axis=None, keepdims=False, initial=-np.inf):
        """A selection: only exact inputs have one here."""
        return Running(self.value.max(axis=axis, keepdims=keepdims, initial=initial), 0.0, self.fmt, self.honest)

    def reshape(self, *shape):
        return Running(self.value.reshape(*shape), np.broadcast_to(self.error, self.value.shape).reshape(*shape), self.fmt, self.honest)

    def __getitem__(self, index):
        return Running(self.value[index], np.broadcast_to(self.error, self.value.shape)[index], self.fmt, self.honest)


class Runnings:
    """The arithmetic of Running, for one format."""

    def __init__(self, fmt: Format, honest: bool):
        self.fmt, self.honest = fmt, honest

    def array(self, a):
        return Running(a, 0.0, self.fmt, self.honest)

    def number(self, value):
        return Running(value, np.abs(value), self.fmt, self.honest)

    def exp(self, a: Running):
        u, value = self.fmt.u, np.exp(a.value)
        return a._new(value, value * np.expm1(u * a.error) / u, 2 * K)

    def log(self, a: Running):
        u = self.fmt.u
        share = np.where(a.error == 0, 0.0, u * a.error / a.value)
        carried = np.where(share < 1, -np.log1p(-np.minimum(share, 0.5)), np.inf) / u
        carried = np.where((share >= 0.5) & (share < 1), -np.log1p(-np.where(share < 1, share, 0.0)) / u, carried)
        return a._new(np.log(a.value), carried, 2 * K)

    def sqrt(self, a: Running):
        root, u = np.sqrt(a.value), self.fmt.u
        least = root + np.sqrt(np.maximum(a.value - u * a.error, 0.0))
        at_zero = np.sqrt(u * a.error) / u
        return a._new(root, np.where(least > 0, a.error / np.where(least > 0, least, 1.0), at_zero), 2)


def truth(formula, fmt: Format, *arrays) -> tuple[np.ndarray, np.ndarray | None]:
    """formula(m, *arrays) as (value, low): in float64, and for float64 candidates with 50 digits (low is None otherwise)."""
    with np.errstate(all="ignore"):
        plain = np.asarray(formula(Doubles, *map(Doubles.array, arrays)), np.float64)
        if fmt.p < 53:
            return plain, None
        with decimal.localcontext(decimal.Context(prec=50, Emin=-decimal.MAX_EMAX, Emax=decimal.MAX_EMAX, traps=[])):
            found = np.asarray(formula(Decimals, *(Decimals.array(np.atleast_1d(a)) for a in arrays)), object).reshape(plain.shape)
            value = found.astype(np.float64)
            low = np.asarray(_rest(found, value), object).astype(np.float64)
        usable = np.isfinite(plain) & np.isfinite(value)
        return np.where(usable, value, plain), np.where(usable & np.isfinite(low), low, 0.0)


_rest = np.frompyfunc(lambda exact, near: exact - Decimal(float(near)), 2, 1)


def evaluate(formula, fmt: Format, *arrays, forms=None, underflows: int = 8) -> Bounded:
    """The truth of a formula, and the running bound of whoever computes it in `fmt`.

    forms: other ways to write the same formula that an honest implementation may have chosen;
    the bound is the largest of all.
    """
    value, low = truth(formula, fmt, *arrays)
    gate, proof = (_largest((formula, *(forms or ())), Runnings(fmt, honest), arrays, value.shape) for honest in (True, False))
    with np.errstate(all="ignore"):
        share = np.where(gate > 0, proof / gate, 1.0)
    return Bounded(value, gate, 1, low=low, dtype=fmt.name, underflows=underflows, proof=np.where(np.isnan(share), np.inf, np.maximum(share, 1.0)))


def _largest(forms, m, arrays, shape):
    with np.errstate(all="ignore"):
        bounds = [np.broadcast_to(form(m, *map(m.array, arrays)).error, shape) for form in forms]
    found = np.maximum.reduce(bounds)
    return np.where(np.isnan(found), np.inf, found)
