"""The page on the oracle: its examples run, and the published table is the one that the code makes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tinynet import oracle

DOCS = Path(__file__).parents[2] / "docs"
BLOCKS = re.findall(r"^(#+ [^\n]+)|^```python\n(.*?)^```", (DOCS / "oracle.md").read_text("utf-8"), re.M | re.S)


def examples():
    """(the heading above, the code)"""
    heading = ""
    for title, code in BLOCKS:
        heading = title.strip("# ") or heading
        if code:
            yield pytest.param(heading, code, id=heading)


def gpu_missing() -> str:
    """Why a CuPy example can't run here; empty if it can."""
    try:
        import cupy

        return "" if cupy.cuda.runtime.getDeviceCount() else "there is no GPU"
    except ModuleNotFoundError:
        return "CuPy is not installed"
    except Exception as error:  # CuPy's own errors, which need CuPy to be named
        return f"CuPy finds no GPU: {error}"


@pytest.mark.parametrize(("heading", "code"), list(examples()))
def test_an_example_runs_as_it_stands(heading, code):
    if "cupy" in code and (reason := gpu_missing()):
        compile(code, heading, "exec")
        pytest.skip(f"shown, not run: {reason}")
    exec(compile(code, heading, "exec"), {})


def test_all_three_kinds_of_users_have_an_example():
    assert {"A numba kernel", "A torch function", "A CuPy kernel"} <= {p.values[0] for p in examples()}


def test_the_published_table_of_planted_faults_is_todays():
    table = oracle.kill_table()
    published = (DOCS / "planted-faults.md").read_text("utf-8")
    assert table.markdown() in published, "run `python -m tinynet.oracle.mutants > docs/planted-faults.md`"
    assert f"{len(table)} planted faults" in (DOCS / "oracle.md").read_text("utf-8")
