"""What would make a wrong result right: the truth is computed with one mistake in it, and compared.

`best(verdict)` tries, in this order: the call before (stale output), the mistakes that the
kernel's inputs allow (flipped kernel, missing bias, padding on the other side ...), inputs with
fewer bits, a constant factor, and the same numbers in another order. The first that the result
meets within rounding is the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, permutations

import numpy as np

from tinynet.oracle import reference
from tinynet.oracle.calls import completed
from tinynet.oracle.bounds import FORMATS, Bounded, rounded
from tinynet.oracle.mistakes import FAMILIES
from tinynet.oracle.verdict import Band, Verdict, judge

IMPOSSIBLE = (ValueError, TypeError, IndexError)  # a mistake that can't be made here: shapes don't fit
LARGEST = 1_000_000  # elements beyond which nothing is tried: an explanation must not take minutes

Alternative = tuple[str, Callable[[], object]]


def best(verdict: Verdict) -> str:
    """The mistake that explains the result; empty if none of the known ones does."""
    evidence = verdict.evidence
    if evidence is None or verdict or evidence.got.size == 0 or evidence.got.size > LARGEST:
        return ""
    if verdict.band in (Band.DTYPE, Band.MISTRUSTED) or evidence.got.dtype.kind not in "fiuV":
        return ""
    got, want = evidence.got, evidence.want
    if simple := _simple(got, want, evidence.previous):
        return simple
    for text, make in _all(evidence.case, got, want):
        try:
            with np.errstate(all="ignore"):
                other = make()
        except IMPOSSIBLE:
            continue
        if _meets(got, _matching(other, want)):
            return text
    return ""


def _matching(other, want: Bounded):
    """Of several results the one that was judged."""
    if isinstance(other, tuple):
        other = next((o for o in other if o.label == want.label), None)
    return other


def _meets(got, other) -> bool:
    if other is None or other.shape != got.shape:
        return False
    if not isinstance(other, Bounded):
        return False
    return judge(got, other, max_zero_share=1.0).band in (Band.EXACT, Band.OK)


def _simple(got, want: Bounded, previous) -> str:
    if previous is not None and previous.shape == got.shape and previous.dtype == got.dtype and previous.tobytes() == got.tobytes():
        return "a stale output: it is the answer to the call before, bit for bit"
    if got.dtype.kind in "iub":
        return ""
    wide = got.astype(np.float64)
    if np.isnan(wide).all():
        return "never written: all NaN, as outputs are poisoned"
    if not wide.any():
        return "never computed: all zeros"
    return ""


def _all(case, got, want: Bounded) -> Iterator[Alternative]:
    if case is not None:
        arrays, parameters = completed(case.name, *case.inputs())
        family = FAMILIES.get(case.name)
        if family is not None:
            yield from family(case.name, arrays, parameters)
        yield from _fewer_bits(case.name, arrays, parameters, case.dtype)
    if got.dtype.kind not in "iub" and got.shape == want.shape:
        yield from _factors(got, want)
    yield from _moves(want)


# --- mistakes in any op --------------------------------------------------------------------------


def _fewer_bits(name, arrays, parameters, dtype) -> Iterator[Alternative]:
    def shortened(cut):
        factors = arrays[:2] if name in ("conv2d", "linear") else arrays  # a bias is added, not multiplied
        cut_ones = (a if a is None or a.dtype.kind in "iub" else cut(a.astype(np.float64)).astype(a.dtype) for a in factors)
        return (*cut_ones, *arrays[len(factors) :])

    def keep(bits, way):
        def cut(a):
            mantissa, exponent = np.frexp(a)
            return np.ldexp(way(np.ldexp(mantissa, bits)), exponent - bits)

        return cut

    kinds = {
        "TF32 (11 bits)": (11, keep(11, np.rint)),
        "TF32 (11 bits, cut off)": (11, keep(11, np.trunc)),
        "bfloat16 (8 bits)": (8, lambda a: rounded(a, FORMATS["bfloat16"])),
        "bfloat16 (8 bits, cut off)": (8, keep(8, np.trunc)),
        "float16": (11, lambda a: rounded(a, FORMATS["float16"])),
        "float32": (24, lambda a: rounded(a, FORMATS["float32"])),
    }
    for kind, (bits, cut) in kinds.items():
        if bits >= FORMATS[dtype].p:
            continue
        yield f"inputs rounded to {kind} before they are multiplied", lambda cut=cut: reference.find(name)(*shortened(cut), **parameters)


def _factors(got, want: Bounded) -> Iterator[Alternative]:
    wide = got.astype(np.float64)
    clear = np.isfinite(wide) & np.isfinite(want.value) & (np.abs(want.value) > 0.05 * want.gauge)
    if not clear.any():
        return
    factor = float(np.median(wide[clear] / want.value[clear]))
    for m in {round(factor), round(1 / factor) if factor else 0} - {0, 1}:
        if m == -1:
            yield "the sign is wrong: every value is -1 times the truth", lambda: want.scaled(-1.0)
        elif abs(factor - m) < 1e-3 * abs(m):
            why = "a term is counted twice, or the result was added to the one before" if m == 2 else "a division is missing (a sum instead of a mean)"
            yield f"every value is {m} times the truth: {why}", lambda m=m: want.scaled(float(m))
        elif abs(factor * m - 1) < 1e-3:
            yield f"every value is 1/{m} of the truth: a mean instead of a sum, or divided twice", lambda m=m: want.scaled(1.0 / m)
    if want.value.size > 2 and abs(factor - 1) > 1e-5:
        yield f"every value is {factor:.7g} times the truth", lambda: want.scaled(factor)


def _moves(want: Bounded) -> Iterator[Alternative]:
    """The same numbers in another order: axes exchanged or turned around."""
    shape, axes = want.shape, tuple(range(want.value.ndim))
    if len(axes) > 5:
        return
    for order in permutations(axes):
        if order != axes:
            text = f"the same numbers with the axes in the order {order} (layout, flatten order or H and W swapped)"
            yield text, lambda order=order: want.moved(lambda a: a.transpose(order).reshape(shape))
            yield text, lambda order=order: want.moved(lambda a: a.transpose(order))
    for count in (1, 2):
        for chosen in combinations(axes, count):
            yield f"the same numbers turned around along axis {' and '.join(map(str, chosen))}", lambda chosen=chosen: want.moved(lambda a: np.flip(a, chosen))
