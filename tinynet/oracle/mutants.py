"""Who checks the checker? The published list of planted faults, and which checks notice each of them.

    print(oracle.kill_table())                 # every fault: how the oracle caught it, and who would have let it through
    oracle.assert_sensitive(my_test, "conv2d") # your own test against the faults of one name

The usual checks beside the oracle are given more than they ask for: every case of the built-in
table with finite reals, not the one shape that a test has. Each is what it is in the wild:

    torch    |got - want| <= 1e-5 + 1.3e-6 |want|     torch.testing.assert_close, float32's defaults
    1e-2     |got - want| <= 1e-2 + 1e-2 |want|       KernelBench, flashinfer-bench and others
    ones     as torch, with a cotangent of ones       gradients in tinygrad, DeZero, minitorch and others
    sampled  one random element a case, within 1e-2   minitorch's grad_check
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from tinynet.oracle import casebook, reference
from tinynet.oracle.asserting import honest_function
from tinynet.oracle.calls import completed
from tinynet.oracle.casebook import Case
from tinynet.oracle.checking import check
from tinynet.oracle.faults import Fresh
from tinynet.oracle.faults_fused import FAULTS as FUSED
from tinynet.oracle.faults_kernels import FAULTS as KERNELS
from tinynet.oracle.faults_ops import FAULTS as OPS

FAULTS = {**KERNELS, **FUSED, **OPS}

USUAL = ("torch", "1e-2", "ones", "sampled")


@dataclass(frozen=True)
class Mutant:
    """An implementation of `op` with one planted fault, with the signature of `op`."""

    op: str
    fault: str
    planted: Callable | Fresh

    @property
    def name(self) -> str:
        return f"{self.op}: {self.fault}"

    @property
    def fn(self) -> Callable:
        """The faulty function, called as the honest one is: what has a default may be left out. (Or a test would
        "notice" a fault for its signature.) A new one at each access if it keeps a state."""
        planted = self.planted.make() if isinstance(self.planted, Fresh) else self.planted

        def fault(*arrays, **parameters):
            arrays, parameters = completed(self.op, arrays, parameters)
            return planted(*arrays, **parameters)

        fault.__name__ = f"{self.op}_with_a_fault"
        return fault


@dataclass(frozen=True)
class Kill:
    """One row of the table. caught: the oracle's case and band, empty if it let the fault through.

    usual: for each of the usual checks if it noticed; None where it does not apply (cotangents
    of ones are for gradients).
    """

    mutant: Mutant
    caught: str
    usual: dict[str, bool | None]

    def __bool__(self) -> bool:
        return bool(self.caught)


@dataclass(frozen=True)
class KillTable:
    """True if every fault was caught."""

    rows: tuple[Kill, ...]

    def __bool__(self) -> bool:
        return bool(self.rows) and all(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def survivors(self) -> list[str]:
        return [row.mutant.name for row in self.rows if not row]

    def missed_by(self, check: str) -> list[str]:
        """The faults that one of the usual checks lets through."""
        return [row.mutant.name for row in self.rows if row.usual[check] is False]

    def markdown(self) -> str:
        lines = [f"| kernel or op | fault | the oracle | {' | '.join(USUAL)} |", f"|---|---|---|{'---|' * len(USUAL)}"]
        words = {True: "caught", False: "**missed**", None: ""}
        for row in self.rows:
            lines.append(f"| {row.mutant.op} | {row.mutant.fault} | {row.caught or '**missed**'} | {' | '.join(words[row.usual[c]] for c in USUAL)} |")
        return "\n".join(lines)

    def __str__(self) -> str:
        width = max((len(row.mutant.name) for row in self.rows), default=0)
        marks = {True: "caught", False: "MISSED", None: "-"}
        lines = [f"{'planted fault':{width}}  {'oracle':28} {' '.join(f'{c:8}' for c in USUAL)}"]
        lines += [f"{row.mutant.name:{width}}  {row.caught or 'MISSED':28} {' '.join(f'{marks[row.usual[c]]:8}' for c in USUAL)}" for row in self.rows]
        missed = ", ".join(f"{c} {len(self.missed_by(c))} of {sum(r.usual[c] is not None for r in self.rows)}" for c in USUAL)
        return "\n".join([*lines, f"{len(self)} planted faults; the oracle missed {len(self.survivors)}; let through by: {missed}"])


def mutants_of(name: str) -> list[Mutant]:
    """The planted faults of one kernel or op; empty if none are published for it."""
    reference.find(name)
    return [Mutant(name, fault, planted) for fault, planted in FAULTS.get(name, {}).items()]


def all_mutants() -> list[Mutant]:
    return [mutant for name in FAULTS for mutant in mutants_of(name)]


def kill_table(names=None, *, seed: int = 0) -> KillTable:
    """Runs every planted fault (or those of `names`) through the oracle's built-in cases, until one notices, and
    through the usual checks."""
    chosen = all_mutants() if names is None else [m for name in ([names] if isinstance(names, str) else names) for m in mutants_of(name)]
    return KillTable(tuple(_row(mutant, seed) for mutant in chosen))


def _row(mutant: Mutant, seed: int) -> Kill:
    with np.errstate(all="ignore"):
        report = check(mutant.fn, mutant.op, seed=seed, fail_fast=True)
        first = next(iter(report.failures), None)
        caught = "" if first is None else f"{'FINDING' if first.verdict else first.band}, {first.case.id}"
        return Kill(mutant, caught, {"torch": _usual(mutant, seed, _torch), "1e-2": _usual(mutant, seed, _hundredth), "ones": _with_ones(mutant, seed), "sampled": _usual(mutant, seed, _sampled)})


# --- the usual checks: do they notice? -----------------------------------------------------------


def _close(got, want, rtol: float, atol: float) -> bool:
    if got.shape != want.shape or got.dtype != want.dtype:
        return False
    return bool(np.all(np.abs(got.astype(np.float64) - want) <= atol + rtol * np.abs(want.astype(np.float64))))


def _torch(got, want, rng) -> bool:
    return _close(got, want, 1.3e-6, 1e-5)


def _hundredth(got, want, rng) -> bool:
    return _close(got, want, 1e-2, 1e-2)


def _sampled(got, want, rng) -> bool:
    if got.shape != want.shape or not want.size:
        return got.shape == want.shape
    at = tuple(rng.integers(0, size) for size in want.shape)
    return _close(got[at], want[at], 1e-2, 1e-2)


def _plain_cases(name: str, seed: int) -> list[Case]:
    """What a careful test would use: random reals, whole batches."""
    return [case for case in casebook.cases(name, seed=seed, kinds=("reals", "unique")) if "empty" not in case.label]


def _usual(mutant: Mutant, seed: int, same, change=lambda arrays: arrays) -> bool:
    fn, honest = mutant.fn, honest_function(mutant.op)
    rng = np.random.default_rng([seed, crc32(mutant.name.encode())])
    for case in _plain_cases(mutant.op, seed):
        arrays, parameters = case.inputs()
        arrays = change(arrays)
        want = honest(*(None if a is None else a.copy() for a in arrays), **parameters)
        try:
            got = fn(*(None if a is None else a.copy() for a in arrays), **parameters)
        except Exception:  # a fault that raises is seen by every check
            return True
        gots, wants = (x if isinstance(x, tuple) else (x,) for x in (got, want))
        if len(gots) != len(wants) or not all(same(np.asarray(g), np.asarray(w), rng) for g, w in zip(gots, wants)):
            return True
    return False


def _with_ones(mutant: Mutant, seed: int) -> bool | None:
    gradient = mutant.op.endswith("_grad") or mutant.op.startswith(("conv2d_d", "max_pool2d_d", "avg_pool2d_d"))
    if not gradient:
        return None
    return _usual(mutant, seed, _torch, lambda arrays: (np.ones_like(arrays[0]), *arrays[1:]))


def _page() -> str:
    table = kill_table()
    counts = "; ".join(f"{c}: {len(table.missed_by(c))} of {sum(row.usual[c] is not None for row in table.rows)}" for c in USUAL)
    return "\n".join([
        "# Planted faults, and who notices them", "",
        f"{len(table)} faults; the oracle misses {len(table.survivors)}. Let through by the usual checks: {counts}. What these are: `tinynet/oracle/mutants.py`.",
        "They are given every case of the built-in table with finite reals; a test with one shape notices less.", "",
        "Written by `python -m tinynet.oracle.mutants > docs/planted-faults.md`.", "", table.markdown(),
    ])  # fmt: skip


if __name__ == "__main__":
    print(_page())
