"""`check(fn, name)`: one function against the whole table of a kernel or op.

Each case is run on private copies, before its truth is computed. Beside the verdict on the
numbers, a case fails with a *finding* if an input was written, if a result is an input's or
the last result's memory, or if a second call on equal inputs gives other bits. One case of
each name is also run on inputs that are not contiguous: they must work or be refused with an
error, never give other numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np

from tinynet.oracle import casebook, reference
from tinynet.oracle.adapters import Adapter, adapter, tree
from tinynet.oracle.bounds import Bounded, format_of
from tinynet.oracle.calls import input_names
from tinynet.oracle.casebook import Case
from tinynet.oracle.verdict import Band, Verdict, judge, to_numpy

VIEWS = {"flatten", "reshape", "permute", "flatten_grad", "reshape_grad", "permute_grad", "add_grad", "subtract_grad", "sum_grad", "bias_add_grad"}  # may give back an input's memory
REFUSALS = (ValueError, TypeError, NotImplementedError, BufferError, RuntimeError)


@dataclass(frozen=True, eq=False)
class Row:
    """One case of a report: passed if there is a verdict that is true, no finding and no error."""

    case: Case
    verdict: Verdict | None
    findings: tuple[str, ...] = ()
    error: str = ""
    seconds: float = 0.0
    contiguous: bool = True

    def __bool__(self) -> bool:
        return bool(self.verdict) and not self.findings and not self.error

    @property
    def band(self) -> str:
        return "ERROR" if self.verdict is None else str(self.verdict.band)


@dataclass(frozen=True, eq=False)
class Report:
    """The rows of one check. True only if at least one case ran, and every one passed."""

    name: str
    rows: list[Row] = field(default_factory=list)
    seed: int = 0
    dtype: str = "float32"
    function: str = ""

    def __bool__(self) -> bool:
        return bool(self.rows) and all(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def failures(self) -> list[Row]:
        return [row for row in self.rows if not row]

    @property
    def r_max(self) -> float:
        """The largest r of the rows that passed: how good an implementation is."""
        return max((row.verdict.r_max for row in self.rows if row), default=0.0)

    @property
    def seconds(self) -> float:
        return sum(row.seconds for row in self.rows)

    def explain(self) -> str:
        from tinynet.oracle.explain import explain_report

        return explain_report(self)

    def html(self) -> str:
        """A self-contained page: every case, and a map of the errors of those that failed."""
        from tinynet.oracle.errormap import page

        return page(self)

    def __str__(self) -> str:
        return self.explain()


def check(
    fn: Callable, name: str, *, cases=None, seed: int = 0, adapt=None, dtype="float32", strict: bool = True,
    flush: bool | None = None, norm: float | None = None, twice: bool = True, strided: bool = True, fail_fast: bool = False,
) -> Report:  # fmt: skip
    """Runs `fn` on every case of `name` and judges each result.

    fn:     takes the arrays of `name` in order and its parameters by keyword (the contract's
            signature, without `out`), and returns the result, or a tuple of them.
    cases:  Case objects; or a function of a Case that says which of the table to run; None: all.
    seed:   of the built-in table. Another seed gives other numbers in the same geometries.
    adapt:  "torch", "tensorflow", "jax", "cupy", or (into, out), functions on one array.
    dtype:  of the built-in table: float32, float64, float16 or bfloat16.
    strict: LOOSE is a failure.
    flush:  the function may flush subnormal numbers to zero; None: as the adapter's library does.
    norm:   judge sums by norm: ||got - truth||_2 <= norm * ||gauge||_2 (Winograd, FFT, TF32); None: as
            fn.norm says, which a variant declares with @implements(..., norm=...). Whole numbers must then still come out right when rounded.
    twice:  call again on equal inputs, and compare bits. strided: run the non-contiguous case.
    fail_fast: stop at the first case that fails.
    """
    reference.find(name)
    if not callable(fn):
        raise TypeError(f"oracle.check: fn must be a function with the signature of {name}; got {type(fn).__name__}")
    table = _chosen(cases, name, seed, dtype)
    norm = getattr(fn, "norm", None) if norm is None else norm  # as a variant of a kernel declares it
    run = _Run(fn, name, adapter(adapt), strict, flush, norm, twice)
    rows = []
    for case in table:
        rows.append(run.row(case))
        if fail_fast and not rows[-1]:
            break
    first = next((case for case in table if case.kind in ("reals", "unique", "user")), None) if strided else None
    if first is not None and run.adapter.strided and not (fail_fast and rows and not rows[-1]):
        rows.append(run.strided_row(first))
    judged = sorted({case.dtype for case in table}) or [format_of(dtype, "oracle.check").name]
    return Report(name, rows, seed, ", ".join(judged), getattr(fn, "__name__", type(fn).__name__))


def _chosen(cases, name: str, seed: int, dtype) -> list[Case]:
    if cases is None or callable(cases):
        table = casebook.cases(name, seed=seed, dtype=dtype)
        return table if cases is None else [case for case in table if cases(case)]
    table = [cases] if isinstance(cases, Case) else list(cases)
    for case in table:
        if not isinstance(case, Case) or case.name != name:
            raise TypeError(f"oracle.check: cases must be oracle.Case objects for {name}, or a function of one; got {case!r:.200}")
    return table


class _Run:
    def __init__(self, fn, name, found: Adapter, strict, flush, norm, twice):
        self.fn, self.name, self.adapter, self.strict, self.norm, self.twice = fn, name, found, strict, norm, twice
        self.flush = found.flushes if flush is None else flush
        self.previous = None  # the last answer, to recognise it when it comes again

    def row(self, case: Case, spread: bool = False) -> Row:
        start = perf_counter()
        arrays, parameters = case.inputs()
        given = tuple(_apart(a) if spread else None if a is None else a.copy() for a in arrays)
        try:
            native = tree(self.adapter.into, given)
            got = tree(self._out, _results(self.fn(*native, **parameters)))
        except Exception as error:
            if spread and isinstance(error, REFUSALS):
                return Row(case, Verdict(Band.OK, self.strict, note=f"refused inputs that are not contiguous: {error}"), contiguous=False, seconds=perf_counter() - start)
            message = f"{type(error).__name__}: {error}"
            return Row(case, None, error=message, seconds=perf_counter() - start, contiguous=not spread)
        findings = self._findings(arrays, given, native, parameters, got) if not spread else []
        want = case.want((arrays, parameters))
        kept = tree(np.copy, got)
        verdict = self._judge(got, want, case)
        self.previous = kept
        return Row(case, verdict, tuple(findings), seconds=perf_counter() - start, contiguous=not spread)

    def strided_row(self, case: Case) -> Row:
        return self.row(case, spread=True)

    def _out(self, value):
        return to_numpy(self.adapter.out(value))

    def _judge(self, got, want, case: Case) -> Verdict:
        wants = want if isinstance(want, tuple) else (want,)
        gots = got if isinstance(got, tuple) else (got,)
        if self.norm is not None:
            wants = tuple(w if w.value.dtype.kind in "iub" else _by_norm(w, self.norm) for w in wants)
        verdict = judge(
            got, wants if isinstance(want, tuple) else wants[0], strict=self.strict, zero_mean=case.zero_mean,
            max_zero_share=1.0 if case.zeros else 0.9, flush=self.flush, case=case, previous=self.previous,
        )  # fmt: skip
        if self.norm is not None and case.kind == "ints" and verdict:
            off = [g for g, w in zip(gots, wants) if w.integral and np.any(np.abs(np.asarray(g, np.float64) - w.value) >= 0.5)]
            if off:
                return judge(off[0], next(w.exactly() for g, w in zip(gots, wants) if g is off[0]), strict=self.strict, case=case)
        return verdict

    def _findings(self, arrays, given, native, parameters, got) -> list[str]:
        """What is wrong beside the numbers."""
        found = []
        names = input_names(self.name)
        for i, (before, after, array) in enumerate(zip(arrays, given, native)):
            if before is None:
                continue
            # numpy's and torch's arrays share memory with `given`; other libraries may also have changed the dtype
            seen = after if self.adapter.strided else self._out(array)
            if (seen.dtype, seen.shape) == (before.dtype, before.shape) and seen.tobytes() != before.tobytes():
                found.append(f"wrote into its input {names[i] if i < len(names) else i}: {_changed(before, seen)}; inputs must stay as they are")
        results = got if isinstance(got, tuple) else (got,)
        if self.name not in VIEWS:
            for i, a in enumerate(given):
                if a is not None and any(np.may_share_memory(r, a) and r.size for r in results):
                    found.append(f"the result is memory of input {names[i] if i < len(names) else i}: it must be an array of its own")
        if not self.twice:
            return found
        snapshot = [r.tobytes() for r in results]
        again = tuple(None if a is None else a.copy() for a in arrays)
        try:
            second = tree(self._out, self.fn(*tree(self.adapter.into, again), **parameters))
        except Exception as error:
            return [*found, f"a second call on equal inputs raised {type(error).__name__}: {error}"]
        seconds = second if isinstance(second, tuple) else (second,)
        if any(r.size and s.size and np.may_share_memory(r, s) for r, s in zip(results, seconds)) and self.name not in VIEWS:
            found.append("the second call's result is the first one's memory: results must be fresh arrays, or the first is overwritten")
        elif [r.tobytes() for r in results] != snapshot:
            found.append("the first result changed during the second call: results must be fresh arrays")
        elif [s.tobytes() for s in seconds] != snapshot:
            found.append("two calls on equal inputs gave different bits: uninitialised memory, a race, or a state that is kept")
        return found


def _results(got):
    """What the function returned, if it is an array or a tuple of them."""
    for result in got if isinstance(got, (tuple, list)) else (got,):
        if result is None or isinstance(result, (tuple, list, dict, str)):
            what = "None" if got is None else f"{type(got).__name__} with {type(result).__name__} in it" if isinstance(got, (tuple, list)) else type(got).__name__
            raise TypeError(f"the function returned {what}; expected an array, or a tuple of them (a kernel that fills `out` is wrapped with oracle.with_out)")
    return got


def _by_norm(want: Bounded, norm: float) -> Bounded:
    return replace(want.with_norm(norm), exact=False) if want.integral else want


def _apart(a: np.ndarray | None) -> np.ndarray | None:
    """The same array, its elements two apart on the last axis, NaN (or 0) in between."""
    if a is None or a.ndim == 0:
        return a
    filler = np.nan if a.dtype.kind not in "iub" else 0
    wide = np.full((*a.shape[:-1], 2 * a.shape[-1]), filler, a.dtype)
    view = wide[..., ::2]
    view[...] = a
    return view


def _changed(before: np.ndarray, after: np.ndarray) -> str:
    bits = [np.ascontiguousarray(a).view(np.uint8).reshape(a.size, a.itemsize) for a in (before, after)]
    different = np.any(bits[0] != bits[1], axis=1)
    at = tuple(int(i) for i in np.unravel_index(different.argmax(), before.shape))
    return f"{int(different.sum())} of {before.size} elements changed, like {at} from {before[at]} to {after[at]}"
