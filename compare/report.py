"""The result as pages: report.json (all of it), report.md and report.html (one file, no network)."""

from __future__ import annotations

import base64
import io
import json
import os
from importlib.resources import files
from importlib.util import find_spec
from math import isfinite
from pathlib import Path

from tinynet.compare.job import WANTED_ACCURACY

LISTINGS = (
    ("TensorFlow", "tensorflow_listing.py", "tinynet, functional", "tinynet_functional.py"),
    ("Keras", "keras_listing.py", "tinynet, Sequential", "tinynet_sequential.py"),
    ("PyTorch", "pytorch_listing.py", "tinynet, Module", "tinynet_module.py"),
)


def write(result: dict, out: Path) -> Path:
    """Writes the three files, each whole or not at all; returns the page's path."""
    view = summary(result)
    replace(out / "report.json", as_json(result, indent=1))
    replace(out / "report.md", _template("report.md.jinja", view, escape=False))
    replace(out / "report.html", _template("report.html.jinja", {**view, "plots": plots(result), "listings": listings(), "style": _style()}, escape=True))
    return out / "report.html"


def check_ready() -> None:
    """Raises ModuleNotFoundError, before hours of work and not after them, if a page could not be made."""
    for name in ("jinja2", "matplotlib", "pygments"):
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"the report needs {name}, which is not installed; pip install {name}", name=name)


def as_json(result: dict, indent: int | None = None) -> str:
    """The result as JSON, which has no infinity and no NaN: they become null, beside the verdict that says why."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and not isfinite(value) else value

    return json.dumps(plain(result), indent=indent, allow_nan=False)


def replace(path: Path, text: str) -> None:
    """Writes the file, whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def _template(name: str, values: dict, escape: bool) -> str:
    import jinja2

    environment = jinja2.Environment(autoescape=escape, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(time=seconds, number=number, line=lambda text: " ".join(str(text).split()).replace("|", "\\|"))
    return environment.from_string((files("tinynet.compare") / "templates" / name).read_text("utf-8")).render(values)


def seconds(value: float) -> str:
    """1.23 s, 4.56 ms, 78.9 us."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-6:.3g} us"


def number(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}" if 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"


def summary(result: dict) -> dict:
    """The tables that all three forms of the report show, from the raw result."""
    parity = []
    for row in result["parity"]:
        worst = max(row["checks"], key=lambda c: (not c["ok"], c["ratio"]))
        parity.append({**row, "ok": all(c["ok"] for c in row["checks"]), "worst": worst, "count": len(row["checks"])})
    wrong = [{**row, "explanation": c["explanation"]} for row in parity for c in row["checks"] if not c["ok"]]
    return {"result": result, "parity": parity, "wrong": wrong, "errors": errors(result), "speed": speed_tables(result), "claims": claims(result), "wanted": WANTED_ACCURACY}


def errors(result: dict) -> list[dict]:
    """For each network, one line a tensor: the bound, and every peer's largest error beside tinynet's."""
    tables = []
    for network in result["networks"]:
        rows = [r for r in result["parity"] if r["network"] == network]
        rows.sort(key=lambda r: r["peer"] != "tinynet")
        if not rows:
            continue
        columns = [f"{r['peer']} {r['mode']}" for r in rows]
        lines = []
        for i, check in enumerate(rows[0]["checks"]):
            lines.append({"name": check["name"], "bound": check["bound"], "cells": [r["checks"][i] for r in rows]})
        tables.append({"network": network, "columns": columns, "lines": lines, **result["networks"][network]})
    return tables


def speed_tables(result: dict) -> list[dict]:
    tables = []
    sizes = sorted({r["batch"] for r in result["speed"]})
    for network in result["networks"]:
        for kind in ("forward", "training"):
            rows = {}
            for r in result["speed"]:
                if (r["network"], r["kind"]) == (network, kind):
                    rows.setdefault(f"{r['peer']} {r['mode']}", {})[r["batch"]] = r
            best = {s: min((cells[s]["median_s"] for cells in rows.values() if s in cells), default=None) for s in sizes}
            if rows:
                tables.append({"network": network, "kind": kind, "sizes": sizes, "rows": rows, "best": best})
    return tables


def fastest(result: dict, peer: str, network: str, kind: str, size: int) -> float | None:
    times = [r["median_s"] for r in result["speed"] if (r["peer"], r["network"], r["kind"], r["batch"]) == (peer, network, kind, size)]
    return min(times, default=None)


def claims(result: dict) -> list[dict]:
    """What the article says of speed, and whether it holds here: training steps, each framework's fastest mode, on one network."""
    found = []
    sizes = sorted({r["batch"] for r in result["speed"]})
    for network in result["networks"]:
        for size in sizes[-1:]:
            t, k, p = (fastest(result, name, network, "training", size) for name in ("tensorflow", "keras", "pytorch"))
            if t and p:
                ratio = max(t, p) / min(t, p)
                found.append({"claim": "TensorFlow and PyTorch are almost the same", "holds": ratio <= 1.2, "where": f"network {network}, training steps of {size}", "figure": f"{seconds(t)} and {seconds(p)}, a ratio of {ratio:.2f} (almost the same: up to 1.2)"})
            if t and k and p:
                found.append({"claim": "Keras is slower", "holds": k > max(t, p), "where": f"network {network}, training steps of {size}", "figure": f"Keras {seconds(k)}, TensorFlow {seconds(t)}, PyTorch {seconds(p)}"})
    return found


# --- plots and listings --------------------------------------------------------------------------------


def _line(label: str) -> dict:
    """How a peer's line of times is drawn: tinynet's black and thick, dashed where it is not compiled; the others' in matplotlib's colours."""
    if not label.startswith("tinynet"):
        return dict(linewidth=1.2)
    return dict(linewidth=2.4, color="black", zorder=5, linestyle="-" if label.endswith("compiled") else "--")


def plots(result: dict) -> list[dict]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    made = []
    for table in speed_tables(result):
        figure, axes = plt.subplots(figsize=(6.4, 3.8))
        for label, cells in table["rows"].items():
            sizes = sorted(cells)
            axes.plot(sizes, [cells[s]["median_s"] / s * 1e6 for s in sizes], marker="o", markersize=3, label=label, **_line(label))
        axes.set(xscale="log", yscale="log", xlabel="images in a batch", ylabel="microseconds an image", title=f"network {table['network']}, {table['kind']}")
        axes.set_xticks(table["sizes"], table["sizes"])
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, ncol=2)
        made.append({"title": f"Time an image, network {table['network']}, {table['kind']}", "data": _png(figure)})
    for network in result["networks"]:
        rows = [r for r in result["training"] if r["network"] == network]
        if not rows:
            continue
        figure, axes = plt.subplots(figsize=(6.4, 3.8))
        for r in rows:
            style = dict(linewidth=2.2, color="black", alpha=0.8) if r["peer"] == "tinynet" else dict(linewidth=1.0)
            axes.plot(range(1, len(r["losses"]) + 1), r["losses"], label=f"{r['peer']} {r['mode']}", **style)
        axes.set(xlabel="step", ylabel="loss", title=f"training network {network} from the same weights and batches")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
        made.append({"title": f"Loss, network {network}", "data": _png(figure)})
    return made


def _png(figure) -> str:
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def listings() -> list[dict]:
    """The article's three descriptions, each beside the same network on tinynet; from the files that are run."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    folder = files("tinynet.compare.peers") / "listings"

    def code(name: str) -> str:
        return highlight((folder / name).read_text("utf-8"), PythonLexer(), HtmlFormatter(nowrap=False))

    return [{"left": left, "left_code": code(a), "right": right, "right_code": code(b)} for left, a, right, b in LISTINGS]


def _style() -> str:
    from pygments.formatters import HtmlFormatter

    return HtmlFormatter(style="default").get_style_defs(".highlight")
