"""`judge` and `check` as assertions, and `assert_sensitive`: does a test of your own notice planted faults?"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tinynet.oracle import reference
from tinynet.oracle.bounds import Bounded, dtype_of, format_of, rounded
from tinynet.oracle.checking import Report, check
from tinynet.oracle.verdict import Verdict, judge


def assert_matches(got, want, *, strict: bool = True, zero_mean: bool = False, max_zero_share: float = 0.9, flush: bool | None = None, name: str = "") -> Verdict:
    """`judge`, as an assertion: AssertionError with the explanation. Returns the verdict."""
    verdict = judge(got, want, strict=strict, zero_mean=zero_mean, max_zero_share=max_zero_share, flush=flush)
    if not verdict:
        raise AssertionError(f"{name}: {verdict.explain()}" if name else verdict.explain())
    return verdict


def assert_op(fn: Callable, name: str, **options) -> Report:
    """`check`, as an assertion, with check's options. Returns the report."""
    report = check(fn, name, **options)
    if not report:
        raise AssertionError(report.explain())
    return report


def assert_sensitive(check: Callable[[Callable], object], name: str | None = None, *, mutants: Iterable | None = None, honest: Callable | None = None) -> list[str]:
    """Asserts that your own test notices planted faults. Returns the names of those it was tried on.

    check:   your test, as a function of the implementation it tests. It must accept the honest
             one, and for every mutant raise or return something false (None is no answer: passed).
    name:    the kernel or op whose published mutants are used, and whose reference is the honest one.
    mutants: (name, function) pairs, a mapping, or objects with `name` and `fn`, in place of those.
    honest:  another correct implementation; needed with `mutants` and no name.
    """
    if mutants is None:
        if name is None:
            raise TypeError("oracle.assert_sensitive: say which mutants to use: a kernel's or op's name, like assert_sensitive(check, 'conv2d'), or mutants=")
        from tinynet.oracle.mutants import mutants_of

        mutants = mutants_of(name)
    pairs = [_mutant(m) for m in (mutants.items() if hasattr(mutants, "items") else mutants)]
    if not pairs:
        raise ValueError(f"oracle.assert_sensitive: there are no mutants{f' of {name}' if name else ''}: nothing would be tested")
    if honest is None and name is None:
        raise TypeError("oracle.assert_sensitive: a test that fails on everything notices everything; say which implementation is correct: honest=, or the name of a kernel or op")
    honest = honest or honest_function(name)
    if reason := _refusal(check, honest):
        raise AssertionError(f"the test refuses a correct implementation: {reason}")
    survivors = [label for label, fn in pairs if not _refusal(check, fn)]
    if survivors:
        raise AssertionError(f"the test lets {len(survivors)} of {len(pairs)} planted faults pass: {', '.join(survivors)}")
    return [label for label, _ in pairs]


def honest_function(name: str) -> Callable:
    """The oracle's own truth as an implementation: rounded once to the result's dtype."""
    def rounded_truth(want: Bounded):
        if want.value.dtype.kind in "iub":
            return want.value.copy()
        return rounded(want.value, format_of(want.dtype, "oracle")).astype(dtype_of(want.dtype))

    def honest(*arrays, **parameters):
        want = reference.find(name)(*arrays, **parameters)
        return tuple(map(rounded_truth, want)) if isinstance(want, tuple) else rounded_truth(want)

    honest.__name__ = f"honest_{name}"
    return honest


def _mutant(entry) -> tuple[str, Callable]:
    if isinstance(entry, tuple) and len(entry) == 2:
        return entry
    if hasattr(entry, "name") and hasattr(entry, "fn"):
        return entry.name, entry.fn
    raise TypeError(f"oracle.assert_sensitive: a mutant is a (name, function) pair or has `name` and `fn`; got {entry!r:.200}")


def _refusal(check, fn) -> str:
    """Why the test refused `fn`; empty if it passed."""
    try:
        answer = check(fn)
    except BaseException as error:  # pytest's own failures are no Exceptions
        if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
            raise
        return f"{type(error).__name__}: {error}"
    return "" if answer is None or answer else f"it returned {answer!r:.200}"
