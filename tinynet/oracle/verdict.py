"""`judge(got, want)`: how far a result is from the truth, and whether rounding can explain it.

    r = |got - truth| / (u * gauge),    u of got's own dtype

EXACT   the truth, rounded once, everywhere
OK      r up to the gate: as good as honest implementations are
LOOSE   beyond the gate, up to gamma_n / u: some order of summation could, a naive loop does better
WRONG   beyond gamma_n / u: no order of summation in this precision can, so this is a proof
SHAPE, DTYPE, NONFINITE: not comparable; NaN or infinite where the truth is not, or the reverse
MISTRUSTED: nothing was wrong, but the truth is zero almost everywhere, so the check means nothing

A verdict is true for EXACT and OK, and for LOOSE too with `strict=False`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from tinynet.oracle.bounds import FORMATS, Bounded, Format, gamma, gate, proof_bound, rounded


FEW = 8  # a handful of results may all be 0 by chance: of fewer nothing is said


class Band(str, Enum):
    EXACT = "exact"
    OK = "ok"
    MISTRUSTED = "mistrusted"
    LOOSE = "loose"
    WRONG = "wrong"
    NONFINITE = "nonfinite"
    DTYPE = "dtype"
    SHAPE = "shape"

    def __str__(self) -> str:
        return self.name

    @property
    def severity(self) -> int:
        return list(Band).index(self)


@dataclass(frozen=True, eq=False)
class Evidence:
    """The arrays behind a verdict, for explain and the error map."""

    got: np.ndarray
    want: Bounded
    bad: np.ndarray | None = None  # beyond the gate
    ratio: np.ndarray | None = None  # r, infinite where nothing but the exact value is right
    case: object = None  # the Case, if there was one: its inputs allow hypotheses
    previous: np.ndarray | None = None  # the candidate's answer to the call before


@dataclass(frozen=True, eq=False)
class Verdict:
    """band, the numbers at the worst element, and how the whole result looks.

    r_max, r_rms:  over all elements whose truth is finite.
    limit, proof:  the gate and gamma_n / u at the worst element.
    worst, got, want:  its index, the result there and the truth.
    n_bad, size:   elements beyond the gate, and all.
    effective_bits:  the precision that zero-mean data show: 24 for float32, about 11 for TF32
                   inputs, 8 for bfloat16; the format's own p where nothing can be said.
    zero_share:    elements whose truth is 0 (or has no bound), where a result of zeros passes.
    norm:          (measured, stated bound) of the norm-wise class, else None.
    note:          for SHAPE, DTYPE and the like: expected, found, what to do.
    """

    band: Band
    strict: bool = True
    label: str = ""
    dtype: str = ""
    r_max: float = 0.0
    r_rms: float = 0.0
    limit: float = 0.0
    proof: float = 0.0
    worst: tuple[int, ...] | None = None
    got: float | int | None = None
    want: float | int | None = None
    n_bad: int = 0
    size: int = 0
    effective_bits: float = 0.0
    zero_share: float = 0.0
    norm: tuple[float, float] | None = None
    note: str = ""
    evidence: Evidence | None = field(default=None, repr=False)

    def __bool__(self) -> bool:
        return self.band in (Band.EXACT, Band.OK) or (self.band is Band.LOOSE and not self.strict)

    def explain(self) -> str:
        """A few lines: what is wrong where, in which pattern, and what would make it right."""
        from tinynet.oracle.explain import explain_verdict

        return explain_verdict(self)

    def __str__(self) -> str:
        return self.explain()


def judge(got, want, *, strict=True, zero_mean=False, max_zero_share=0.9, flush=None, case=None, previous=None) -> Verdict:
    """Judges a result against its truth.

    got:     an array of numpy or any library (torch, TensorFlow, JAX, CuPy), or a tuple of them.
    want:    a Bounded from oracle.reference, or a tuple of as many: then the worst verdict counts.
    strict:  LOOSE does not pass.
    zero_mean:  the inputs have mean zero by construction: the gate is 16 at any n.
    max_zero_share: beyond this share of zeros in the truth (of 8 elements or more), a pass is MISTRUSTED.
    flush:   the candidate may flush subnormal numbers to zero; None: if its array's library does
             (TensorFlow and JAX do on the CPU).
    case:    the oracle.Case that the result answers, for hypotheses about what went wrong.
    previous: the candidate's last answer, to recognise a stale one.
    """
    if isinstance(want, (tuple, list)):
        if not isinstance(got, (tuple, list)) or len(got) != len(want):
            given = f"{len(got)} results" if isinstance(got, (tuple, list)) else f"one {type(got).__name__}"
            names = ", ".join(w.label or str(i) for i, w in enumerate(want))
            return Verdict(Band.SHAPE, strict, note=f"expected a tuple of {len(want)} results ({names}); got {given}")
        before = previous if isinstance(previous, (tuple, list)) and len(previous) == len(want) else [None] * len(want)
        options = dict(strict=strict, zero_mean=zero_mean, max_zero_share=max_zero_share, flush=flush, case=case)
        found = [judge(g, w, previous=p, **options) for g, w, p in zip(got, want, before)]
        return max(found, key=lambda v: (not v, v.band.severity))
    if not isinstance(want, Bounded):
        raise TypeError(f"oracle.judge: want must be a Bounded, from oracle.reference.<name>(...); got {type(want).__name__}")
    if isinstance(got, tuple):
        return Verdict(Band.SHAPE, strict, want.label, note=f"expected one result{_named(want)}; got a tuple of {len(got)}")
    flush = _flushes(got) if flush is None else flush
    previous = None if isinstance(previous, (tuple, list)) else previous
    got = to_numpy(got)
    if got.dtype == object:
        return Verdict(Band.DTYPE, strict, want.label, note=f"expected an array{_named(want)}; got {got!r:.200}, which numpy can't read as numbers")
    evidence = Evidence(got, want, case=case, previous=previous)
    basic = dict(strict=strict, label=want.label, dtype=got.dtype.name, size=want.value.size, evidence=evidence)
    if got.shape != want.shape:
        return Verdict(Band.SHAPE, note=_shape_note(got.shape, want.shape), **basic)
    if want.value.dtype.kind in "iub":
        if got.dtype.kind not in "iu":
            return Verdict(Band.DTYPE, note=f"expected integers; got {got.dtype.name}", **basic)
        return _judge_integers(got, want, basic)
    if got.dtype.name not in FORMATS or want.dtype not in (None, got.dtype.name):
        advice = "; a result in another precision on purpose is judged with want.in_dtype(...)" if got.dtype.name in FORMATS else ""
        return Verdict(Band.DTYPE, note=f"expected {want.dtype or 'a float dtype'}; got {got.dtype.name}{advice}", **basic)
    return _judge_floats(got, want, FORMATS[got.dtype.name], zero_mean, max_zero_share, flush, basic)


def _judge_integers(got, want: Bounded, basic) -> Verdict:
    bad = got.astype(np.int64) != want.value
    if want.accepts is not None:
        bad &= ~want.accepts(got)
    found = dict(basic, evidence=Evidence(got, want, bad, np.where(bad, np.inf, 0.0), *_context(basic)), n_bad=int(bad.sum()))
    if not bad.any():
        return Verdict(Band.EXACT, **found)
    worst = tuple(int(i) for i in np.unravel_index(bad.argmax(), bad.shape))
    return Verdict(Band.WRONG, r_max=np.inf, worst=worst, got=int(got[worst]), want=int(want.value[worst]), **found)


def _context(basic):
    return basic["evidence"].case, basic["evidence"].previous


def _judge_floats(got, want: Bounded, fmt: Format, zero_mean, max_zero_share, flush, basic) -> Verdict:
    value, gauge = want.value, want.gauge
    wide = got.astype(np.float64)
    near = rounded(value, fmt)
    n = np.broadcast_to(want.n, value.shape)
    with np.errstate(all="ignore"):
        # ±0 count as equal: IEEE's ==. A truth that overflows in this format is that infinity.
        same = (wide == near) | (np.isnan(wide) & np.isnan(value))
        error = np.abs(wide - value) if want.low is None else np.abs((wide - value) - want.low)
        underflows = n if want.underflows is None else want.underflows
        # Who flushes also flushes inputs: terms of a subnormal number and a factor of at most 16.
        error = np.where(gauge > 0, np.maximum(error - underflows * (16 * fmt.normal if flush else fmt.tiny), 0.0), error)
        finite = np.isfinite(wide) & np.isfinite(value)
        ratio = np.where(error == 0, 0.0, error / (fmt.u * gauge))  # error > 0 with gauge 0: infinite
        ratio = np.where(same, 0.0, np.where(finite, ratio, np.inf))
        # The float64 truth has rounding errors of its own; an extended one has none that matters.
        slack = 0.0 if want.low is not None else gamma(n, 2.0**-53) / fmt.u
        proof = (proof_bound(n, fmt.u) if want.proof is None else np.broadcast_to(want.proof, value.shape)) + slack
        limit = np.minimum(gate(n, zero_mean=zero_mean, u=fmt.u) + slack, proof)
        if want.exact:
            proof = limit = np.zeros(value.shape)
            ratio = np.where(same, 0.0, np.where(finite, np.abs(wide - near) / (fmt.u * np.abs(near)), np.inf))
        bad = ratio > limit
        # Sums that may overflow on the way in some order: infinite or NaN is legal, and never good.
        overflow = ~same & ~np.isfinite(wide) & np.isfinite(value) & (gauge * want.peak * (1 + n * fmt.u) >= fmt.max) & (not want.exact)
        astray = ~same & ~finite & ~overflow
    unjudged = (near == 0) | (np.isinf(gauge) & np.isfinite(value))
    share = float(unjudged.mean()) if value.size else 0.0
    judged = ratio[finite]
    found = dict(
        basic,
        evidence=Evidence(got, want, bad, ratio, *_context(basic)),
        r_max=float(ratio.max(initial=0.0)),
        r_rms=float(np.sqrt(np.mean(judged**2))) if judged.size else 0.0,
        n_bad=int(bad.sum()),
        effective_bits=_effective_bits(ratio[finite & (gauge > 0)], n[finite & (gauge > 0)], fmt),
        zero_share=share,
    )
    if want.norm is not None and not astray.any():
        if overflow.any():
            return Verdict(Band.LOOSE, note=f"{int(overflow.sum())} of {value.size} overflowed on the way: legal, and never good", **found)
        return _judge_norm(wide, want, found, max_zero_share)
    if value.size:
        with np.errstate(over="ignore"):
            share_of_limit = np.where(ratio == 0, 0.0, ratio / np.maximum(limit, 1e-300))
        worst = np.unravel_index(np.argmax(astray if astray.any() else share_of_limit), value.shape)
        at = tuple(int(i) for i in worst)
        found |= dict(worst=at, got=float(wide[at]), want=float(near[at]) if want.exact else float(value[at]))
        found |= dict(limit=float(np.broadcast_to(limit, value.shape)[at]), proof=float(np.broadcast_to(proof, value.shape)[at]))
    if astray.any():
        return Verdict(Band.NONFINITE, note=f"{int(astray.sum())} of {value.size} are NaN or infinite where the truth is not, or the reverse", **found)
    if np.any(((ratio > proof) | np.isinf(ratio)) & ~overflow):
        return Verdict(Band.WRONG, **found)
    if bad.any():
        return Verdict(Band.LOOSE, **found)
    if share > max_zero_share and value.size >= FEW:
        return _mistrusted(found, share, max_zero_share)
    return Verdict(Band.EXACT if same.all() else Band.OK, **found)


def _mistrusted(found, share, max_zero_share) -> Verdict:
    note = f"{share:.0%} of the truth is zero or has no bound (limit {max_zero_share:.0%}): a result of zeros would nearly pass; use other inputs, or raise max_zero_share if zeros are right"
    return Verdict(Band.MISTRUSTED, note=note, **found)


def _judge_norm(wide, want: Bounded, found, max_zero_share) -> Verdict:
    """The norm-wise class: ||got - truth||_2 against a stated share of ||gauge||_2."""
    usable = np.isfinite(want.value) & np.isfinite(wide) & np.isfinite(want.gauge)
    scale = float(np.linalg.norm(want.gauge[usable]))
    with np.errstate(invalid="ignore"):
        off = np.where(usable, wide - want.value, 0.0)
    error = float(np.linalg.norm(off))
    measured = error / scale if scale else (0.0 if error == 0 else np.inf)
    found |= dict(norm=(measured, want.norm), n_bad=0 if measured <= want.norm else found["n_bad"])
    if usable.any():
        at = tuple(int(i) for i in np.unravel_index(np.argmax(np.where(usable, np.abs(off), -1)), wide.shape))
        found |= dict(worst=at, got=float(wide[at]), want=float(want.value[at]))
    if measured > want.norm:
        return Verdict(Band.WRONG, **found)
    if found["zero_share"] > max_zero_share and wide.size >= FEW:
        return _mistrusted(found, found["zero_share"], max_zero_share)
    return Verdict(Band.EXACT if error == 0 else Band.OK, **found)


def _effective_bits(ratio, n, fmt: Format) -> float:
    """p - log2(median(r) * sqrt(n) / 0.65), at most p. On zero-mean data an input with b bits gives an error of
    about 0.65 * 2^-b * gauge / sqrt(n); research, section 1.3, measured 10.2 to 11.1 for TF32's 11."""
    if not ratio.size:
        return float(fmt.p)
    lost = np.median(ratio) * np.sqrt(np.median(n)) / 0.65
    return float(np.clip(fmt.p - np.log2(lost), 0.0, fmt.p)) if lost > 0 else float(fmt.p)


def _named(want: Bounded) -> str:
    return f" for {want.label}" if want.label else ""


def _shape_note(got, want) -> str:
    note = f"expected shape {want}; got {got}"
    if sorted(got) == sorted(want):
        return note + ": the same sizes in another order; are axes swapped, or is the layout another?"
    if np.prod(got) == np.prod(want):
        return note + ": the same number of elements; a reshape is missing"
    if len(got) == len(want):
        off = {g - w for g, w in zip(got, want) if g != w}
        return note + (": off by one; floor or ceil in the output size, or a row of padding?" if off <= {-1, 1} else "")
    return note


def _library(array) -> str:
    """The adapter of an array's library; empty if there is none."""
    name = type(array).__module__.partition(".")[0]
    return {"jaxlib": "jax"}.get(name, name) if name in ("torch", "cupy", "tensorflow", "jax", "jaxlib") else ""


def _flushes(array) -> bool:
    from tinynet.oracle.adapters import ADAPTERS

    return bool(_library(array)) and ADAPTERS[_library(array)].flushes


def to_numpy(array) -> np.ndarray:
    """Any library's array on the host, without a copy where it can be shared."""
    if isinstance(array, np.ndarray):
        return array
    if _library(array):
        from tinynet.oracle.adapters import ADAPTERS

        return ADAPTERS[_library(array)].out(array)
    if hasattr(array, "__array__") or isinstance(array, (int, float, list, np.generic)):
        return np.asarray(array)
    return np.from_dlpack(array) if hasattr(array, "__dlpack__") else np.asarray(array, object)
