"""A verdict and a report in a few lines of plain text."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from tinynet.oracle import hypotheses
from tinynet.oracle.bounds import FORMATS
from tinynet.oracle.patterns import axis_names, describe
from tinynet.oracle.verdict import Band, Verdict

_MEANING = {
    Band.EXACT: "the truth, rounded once, everywhere",
    Band.OK: "as close as honest implementations are",
    Band.LOOSE: "beyond the gate: some order of summation could give this, a plain loop does better",
    Band.WRONG: "no order of summation in {dtype} can give this",
    Band.NONFINITE: "NaN or infinite in the wrong places",
    Band.DTYPE: "the wrong dtype",
    Band.SHAPE: "the wrong shape",
    Band.MISTRUSTED: "nothing wrong was found, and the check means nothing",
}


def explain_verdict(verdict: Verdict) -> str:
    lines = [_headline(verdict)]
    if verdict.note:
        lines.append(verdict.note)
    if verdict.worst is not None and not (verdict and verdict.band is Band.EXACT):
        lines.append(_worst(verdict))
    if verdict.norm is not None:
        lines.append(f"by norm: ||error|| / ||gauge|| = {verdict.norm[0]:.3g}, stated bound {verdict.norm[1]:.3g}")
    if not verdict and verdict.evidence is not None and verdict.band in (Band.LOOSE, Band.WRONG, Band.NONFINITE, Band.SHAPE):
        lines += _about_failures(verdict)
    return "\n  ".join(lines)


def _headline(verdict: Verdict) -> str:
    evidence, case = verdict.evidence, verdict.evidence.case if verdict.evidence else None
    subject = " ".join(filter(None, (str(case) if case else "", verdict.label)))
    if evidence is not None and evidence.want.exact and verdict.band is Band.WRONG:
        meaning = "these must be exact (a copy, a choice, one rounding, or sums of whole numbers)"
    else:
        meaning = _MEANING[verdict.band].format(dtype=verdict.dtype or "this precision")
    count = f"; {verdict.n_bad:,} of {verdict.size:,} elements" if verdict.n_bad else f"; all {verdict.size:,} elements" if verdict else ""
    if verdict and verdict.size == 0:
        count = "; there are no elements, so only shape and dtype were compared"
    return f"{subject}{': ' if subject else ''}{verdict.band}: {meaning}{count}"


def _number(value) -> str:
    return f"{value}" if isinstance(value, int) else f"{value:.9g}"


def _worst(verdict: Verdict) -> str:
    evidence = verdict.evidence
    names = axis_names(evidence.case, evidence.want.shape, verdict.label) if evidence.case is not None else ()
    place = f" ({', '.join(f'{name} {i}' for name, i in zip(names, verdict.worst))})" if names and "axis" not in names[0] else ""
    at = f"worst at {list(verdict.worst)}{place}: got {_number(verdict.got)}, truth {_number(verdict.want)}"
    if evidence.want.exact or verdict.norm is not None or evidence.want.value.dtype.kind in "iub":
        return at
    r = evidence.ratio[verdict.worst]
    if np.isinf(r):
        return at + (", where only the exact value is right" if np.isfinite(verdict.got) and evidence.want.gauge[verdict.worst] == 0 else "")
    return f"{at}, r = {r:.3g} (gate {verdict.limit:.4g}, proof bound {verdict.proof:.4g}; rms over all {verdict.r_rms:.2g})"


def _about_failures(verdict: Verdict) -> list[str]:
    evidence, found = verdict.evidence, []
    fmt = FORMATS.get(verdict.dtype)
    real = evidence.case is not None and evidence.case.kind in ("reals", "unique")
    if fmt is not None and real and not evidence.want.exact and 5 < verdict.effective_bits < fmt.p - 8 and verdict.n_bad > 0.8 * verdict.size:
        found.append(f"effective bits: {verdict.effective_bits:.1f} of {fmt.p}")
    if evidence.bad is not None and evidence.bad.any():
        names = axis_names(evidence.case, evidence.want.shape, verdict.label)
        if where := describe(evidence.bad, names):
            found.append(f"where: {where}")
    if guess := hypotheses.best(verdict):
        found.append(f"it would be right if: {guess}")
    return found


def explain_report(report) -> str:
    """The outcome; for failures the cases, one of them in detail, and the line that repeats it."""
    title = f"{report.name}{f' ({report.function})' if report.function else ''}, {report.dtype}, seed {report.seed}"
    if not report.rows:
        return f"{title}: NO CASES ran, so nothing is known; give at least one"
    failures = report.failures
    if not failures:
        return f"{title}: passed all {len(report)} cases, largest r {report.r_max:.2f}, {report.seconds:.1f} s"
    lines = [f"{title}: FAILED {len(failures)} of {len(report)} cases"]
    for i, row in enumerate(failures[:8]):
        lines.append(f"  {row.case.id}{'' if row.contiguous else ', inputs not contiguous'}: {row.error or row.band}{_count(row)}")
        lines += [f"    {finding}" for finding in row.findings if i < 3]
    if len(failures) > 8:
        lines.append(f"  and {len(failures) - 8} more")
    wrong = sorted((row for row in failures if row.verdict is not None and not row.verdict), key=lambda row: row.verdict.size)
    if wrong:
        row, tried, explained = _telling(wrong)
        lines.append("in detail: " + row.verdict.explain().replace("\n", "\n  "))
        if explained:
            lines.append(f"    (so for {explained} of {tried} failing cases tried)")
        lines.append(f"to repeat: {row.case.repeat()}")
    else:
        lines.append(f"to repeat: {failures[0].case.repeat()}")
    return "\n".join(lines)


def _count(row) -> str:
    if row.verdict is None or row.verdict:
        return ""
    return f", {row.verdict.n_bad:,} of {row.verdict.size:,} elements" if row.verdict.n_bad else f", {row.verdict.note}" if row.verdict.note else ""


def _telling(wrong) -> tuple:
    """(the row to show, cases tried, cases that its hypothesis explains). Of small failing cases one that the most
    common hypothesis explains; if none explains half of them, one that fails in part, for its pattern."""
    candidates = [row for row in wrong if row.verdict.size >= 8 and row.case.kind not in ("special", "subnormal")][:8] or wrong[:8]
    guesses = [hypotheses.best(row.verdict) for row in candidates]
    kinds = [re.sub(r"[\d.e+-]+", "#", guess) for guess in guesses]  # "1/3 of the truth" and "1/5 of the truth" are one kind
    counts = Counter(filter(None, kinds)).most_common(1)
    if counts and 2 * counts[0][1] >= len(candidates):
        kind, count = counts[0]
        return candidates[kinds.index(kind)], len(candidates), count
    partly = [row for row in candidates if 0 < row.verdict.n_bad < row.verdict.size]
    return (partly or candidates)[-1], len(candidates), 0
