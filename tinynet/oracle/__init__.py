"""The oracle: a verdict on numbers whose tolerance is derived, for anybody's tests. numpy alone.

    want = oracle.reference.conv2d(x, weight, bias, padding="same")    # the truth, and how far rounding may lead
    oracle.assert_matches(my_conv2d(x, weight, bias), want)            # or judge(got, want) -> Verdict

    report = oracle.check(my_conv2d, "conv2d")                         # the whole built-in table
    assert report, report.explain()

bounds.py derives the rule, reference.py has the truths, verdict.py judges, checking.py runs a
table of cases (casebook.py), explain.py says what is wrong, and mutants.py holds planted faults
that prove it notices. Everything is loaded when it is used.
"""

from __future__ import annotations

from importlib import import_module

_HOME = {
    "Band": "verdict",
    "Bounded": "bounds",
    "Case": "casebook",
    "Report": "checking",
    "Verdict": "verdict",
    "assert_matches": "asserting",
    "assert_op": "asserting",
    "assert_sensitive": "asserting",
    "case": "casebook",
    "cases": "casebook",
    "check": "checking",
    "gamma": "bounds",
    "gate": "bounds",
    "gradcheck": "gradchecking",
    "honest_function": "asserting",
    "judge": "verdict",
    "kill_table": "mutants",
    "load_case": "session",
    "mutants_of": "mutants",
    "names": "casebook",
    "random_cases": "random_geometry",
    "with_out": "adapters",
}
_MODULES = ("adapters", "bounds", "casebook", "errormap", "inputs", "reference", "verdict")

__all__ = sorted({*_HOME, "inputs", "reference"})


def __getattr__(name: str):
    if name in _HOME:
        found = getattr(import_module(f"tinynet.oracle.{_HOME[name]}"), name)
    elif name in _MODULES:
        found = import_module(f"tinynet.oracle.{name}")
    else:
        raise AttributeError(f"tinynet.oracle has no {name!r}; it has {', '.join(__all__)}")
    globals()[name] = found
    return found


def __dir__():
    return sorted({*globals(), *__all__})
