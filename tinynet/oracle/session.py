"""What the fixture `oracle` is: the module with one run's seed and strictness, which counts what it judges and saves what fails."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np

from tinynet import oracle
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
        self._count, self._tell = count, tell

    def __getattr__(self, name: str):
        return getattr(oracle, name)

    def judge(self, got, want, **options) -> Verdict:
        verdict = oracle.judge(got, want, **{"strict": self.strict, **options})
        self._count(1)
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
        """The case as npz: inputs, parameters, what came, the truth, and the line that makes it again."""
        arrays, parameters = row.case.inputs()
        held = {f"input_{i}": a for i, a in enumerate(arrays) if a is not None}
        if row.verdict is not None and row.verdict.evidence is not None:
            held |= {"got": row.verdict.evidence.got, "want": row.verdict.evidence.want.value, "gauge": row.verdict.evidence.want.gauge}
        repeat = f"{row.case.repeat()}; parameters: {parameters!r}"
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / (re.sub(r"[^\w.-]+", "_", f"{self.nodeid}-{row.case.name}-{row.case.id}") + ".npz")
        handle, unfinished = tempfile.mkstemp(dir=self._folder, suffix=".unfinished")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, repeat=np.array(repeat), **held)
            os.replace(unfinished, path)
        finally:
            Path(unfinished).unlink(missing_ok=True)
        self._tell(f"saved {path}; to repeat: {row.case.repeat()}")
