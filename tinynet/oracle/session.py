"""What the fixture `oracle` is: the module with one run's seed and strictness, which counts what it judges and saves what fails."""

from __future__ import annotations

import ast
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np

from tinynet import oracle
from tinynet.oracle.bounds import dtype_of
from tinynet.oracle.casebook import Case
from tinynet.oracle.checking import Report
from tinynet.oracle.verdict import Verdict


def seed_of(nodeid: str, seed: int) -> list[int]:
    """Another seed for every test, and for every --oracle-seed."""
    return [seed, crc32(nodeid.encode())]


class Session:
    """Has everything that `tinynet.oracle` has. In `check`, `judge` and the assertions, seed and strict are the run's
    unless the test gives its own.

    count(cases), tell(text): told how many cases were judged, and where failing ones were saved.
    """

    def __init__(self, nodeid: str, seed: int, strict: bool, folder: str | None, count: Callable[[int], None], tell: Callable[[str], None]):
        self.nodeid, self.seed, self.strict = nodeid, seed, strict
        self._folder = None if folder is None else Path(folder)
        self._count, self._tell, self._judged = count, tell, 0

    def __getattr__(self, name: str):
        return getattr(oracle, name)

    def judge(self, got, want, **options) -> Verdict:
        verdict = oracle.judge(got, want, **{"strict": self.strict, **options})
        self._count(1)
        if self._folder is not None and not verdict and verdict.evidence is not None:
            self._judged += 1
            self._write(f"{self.nodeid}-judge-{self._judged}", _evidence(verdict))
        return verdict

    def check(self, fn, name: str, **options) -> Report:
        report = oracle.check(fn, name, **{"strict": self.strict, "seed": self.seed, **options})
        self._count(len(report))
        if self._folder is not None:
            for row in report.failures:
                self._save(row)
        return report

    def assert_matches(self, got, want, *, name: str = "", **options) -> Verdict:
        verdict = self.judge(got, want, **options)
        if not verdict:
            raise AssertionError(f"{name}: {verdict.explain()}" if name else verdict.explain())
        return verdict

    def assert_op(self, fn, name: str, **options) -> Report:
        report = self.check(fn, name, **options)
        if not report:
            raise AssertionError(report.explain())
        return report

    def gradcheck(self, fn, inputs, **options):
        report = oracle.gradcheck(fn, inputs, **{"seed": self.seed, **options})
        self._count(len(report.lines) + len(report.failures))
        return report

    def _save(self, row) -> None:
        """The case as npz: its inputs and parameters, what came, the truth, and the line that makes it again."""
        spread = "" if row.contiguous else "-not-contiguous"
        path = self._write(f"{self.nodeid}-{row.case.name}-{row.case.id}{spread}", {**_evidence(row.verdict), **described(row.case)})
        self._tell(f"to repeat: {row.case.repeat() if not row.case.given else f'oracle.load_case({str(path)!r})'}")

    def _write(self, name: str, arrays: dict) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / (re.sub(r"[^\w.-]+", "_", name) + ".npz")
        handle, unfinished = tempfile.mkstemp(dir=self._folder, suffix=".unfinished")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **{key: _storable(a) for key, a in arrays.items()})
            os.replace(unfinished, path)
        finally:
            Path(unfinished).unlink(missing_ok=True)
        self._tell(f"saved {path}")
        return path


def _evidence(verdict: Verdict | None) -> dict:
    if verdict is None or verdict.evidence is None:
        return {}
    return {"got": verdict.evidence.got, "want": verdict.evidence.want.value, "gauge": verdict.evidence.want.gauge, "explanation": np.array(verdict.explain())}


def _storable(array) -> np.ndarray:
    """npz knows numpy's own dtypes: a bfloat16 is kept as its 16 bits, and the case says what they are."""
    array = np.asarray(array)
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def described(case: Case) -> dict:
    """A case as arrays and strings, which `load_case` reads."""
    arrays, parameters = case.inputs()
    words = {"name": case.name, "label": case.label, "kind": case.kind, "dtype": case.dtype, "zeros": case.zeros, "arrays": len(arrays), "parameters": {k: v.item() if isinstance(v, np.generic) else v for k, v in parameters.items()}}
    held = {f"input_{i}": a for i, a in enumerate(arrays) if a is not None}
    return {**held, "case": np.array(repr(words)), "repeat": np.array(case.repeat())}


def load_case(path) -> Case:
    """The case of a file that --oracle-save-failures has written."""
    with np.load(path) as file:
        if "case" not in file:
            raise ValueError(f"oracle.load_case: {path} holds no case; files of `judge` have got, want and gauge alone")
        words = ast.literal_eval(str(file["case"]))
        bits = np.dtype(np.uint16)
        arrays = [file[f"input_{i}"] if f"input_{i}" in file else None for i in range(words["arrays"])]
        arrays = [a.view(dtype_of("bfloat16")) if a is not None and a.dtype == bits and words["dtype"] == "bfloat16" else a for a in arrays]
    return Case.of(words["name"], *arrays, label=words["label"], kind=words["kind"], zeros=words["zeros"], **words["parameters"])
