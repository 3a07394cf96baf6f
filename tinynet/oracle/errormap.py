"""`report.html()`: one self-contained page with every case and a map of the errors of those that failed."""

from __future__ import annotations

from html import escape

import numpy as np

from tinynet.oracle.patterns import axis_names

MOST_CELLS = 48  # along one side of a plane; larger planes show the worst of each block
MOST_PLANES = 6
MOST_MAPS = 12
SIDE = 9  # pixels of a cell

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1c2430;background:#fff}
pre{background:#f4f6f8;padding:.8rem;overflow-x:auto;white-space:pre-wrap}section{border-top:1px solid #ccd3da;padding:.6rem 0}
.bad{color:#a01919}.good{color:#156b32}ul{columns:2 24rem}figure{display:inline-block;margin:.4rem 1rem .4rem 0}figcaption{font-size:12px;color:#516070}
@media(prefers-color-scheme:dark){body{background:#14181d;color:#dde3ea}pre{background:#1e242b}.bad{color:#ff8a80}.good{color:#7fd99a}figcaption{color:#9fb0c0}section{border-color:#39434d}}"""


def page(report) -> str:
    failures = report.failures
    outcome = f"<p class='bad'>{len(failures)} of {len(report)} cases failed</p>" if failures or not report else f"<p class='good'>all {len(report)} cases passed</p>"
    rows = "".join(
        f"<li class='{'good' if row else 'bad'}'>{escape(row.case.id)}: {escape(row.band)}{_r(row)}</li>" for row in report.rows
    )
    maps = "".join(_section(row) for row in failures[:MOST_MAPS])
    more = f"<p>and {len(failures) - MOST_MAPS} more failures</p>" if len(failures) > MOST_MAPS else ""
    title = escape(f"{report.name}, {report.dtype}, seed {report.seed}")
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{title}</h1>{outcome}<pre>{escape(report.explain())}</pre>{maps}{more}<h2>All cases</h2><ul>{rows}</ul></body></html>"
    )


def _r(row) -> str:
    return f", r = {row.verdict.r_max:.3g} (gate {row.verdict.limit:.3g})" if row.verdict is not None and np.isfinite(row.verdict.r_max) else ""


def _section(row) -> str:
    text = row.error or "\n".join([*row.findings, row.verdict.explain() if not row.verdict else ""])
    drawn = error_map(row.verdict) if row.verdict is not None else ""
    return f"<section><h2>{escape(row.case.id)}</h2><pre>{escape(text)}</pre>{drawn}</section>"


def error_map(verdict) -> str:
    """The planes of the last two axes (of images: rows and columns) with the largest errors, as inline SVG."""
    evidence = verdict.evidence
    if evidence is None or evidence.ratio is None or evidence.ratio.size == 0:
        return ""
    names = axis_names(evidence.case, evidence.ratio.shape, verdict.label)
    ratio = np.where(np.isnan(evidence.ratio), np.inf, np.atleast_1d(evidence.ratio))
    bad = np.atleast_1d(evidence.bad)
    planes = ("row", "column") if {"row", "column"} <= set(names) else names[-2:]
    order = [i for i, name in enumerate(names) if name not in planes] + [i for i, name in enumerate(names) if name in planes]
    if ratio.ndim > 1:
        ratio, bad, names = ratio.transpose(order), bad.transpose(order), tuple(names[i] for i in order)
    else:
        ratio, bad, names = ratio[None], bad[None], ("", *(names or ("place",)))
    outer = ratio.shape[:-2]
    flat, flat_bad = ratio.reshape(-1, *ratio.shape[-2:]), bad.reshape(-1, *bad.shape[-2:])
    worst = np.argsort(-flat_bad.sum(axis=(1, 2)), kind="stable")[:MOST_PLANES]
    figures = []
    for index in sorted(worst):
        at = np.unravel_index(index, outer) if outer else ()
        caption = ", ".join(f"{name} {int(i)}" for name, i in zip(names, at)) or "the result"
        figures.append(f"<figure>{_svg(flat[index], verdict.limit)}<figcaption>{escape(caption)}; {escape(names[-2])}s down, {escape(names[-1])}s across; {int(flat_bad[index].sum())} wrong</figcaption></figure>")
    return "".join(figures) + "<p><small>grey: exact; blue: rounding within the gate; from orange to red: beyond it, by powers of ten</small></p>"


def _svg(plane: np.ndarray, limit: float) -> str:
    steps = [max(1, -(-size // MOST_CELLS)) for size in plane.shape]
    blocks = plane[:: steps[0], :: steps[1]]
    if max(steps) > 1:
        blocks = np.array([[plane[i : i + steps[0], j : j + steps[1]].max() for j in range(0, plane.shape[1], steps[1])] for i in range(0, plane.shape[0], steps[0])])
    rows, columns = blocks.shape
    cells = "".join(
        f"<rect x='{j * SIDE}' y='{i * SIDE}' width='{SIDE - 1}' height='{SIDE - 1}' fill='{_colour(blocks[i, j], limit)}'><title>{i * steps[0]}, {j * steps[1]}: r = {blocks[i, j]:.3g}</title></rect>"
        for i in range(rows)
        for j in range(columns)
    )
    return f"<svg xmlns='http://www.w3.org/2000/svg' width='{columns * SIDE}' height='{rows * SIDE}' role='img' aria-label='error map'>{cells}</svg>"


def _colour(r: float, limit: float) -> str:
    if r == 0:
        return "#c9cfd6"
    if r <= limit:
        return "#6fa8dc"
    powers = np.log10(r / limit) if np.isfinite(r) and limit > 0 else 6
    return ("#f6b26b", "#e69138", "#e0662e", "#cc3b22", "#a61c1c", "#7a0f0f")[int(np.clip(powers, 0, 5))]
