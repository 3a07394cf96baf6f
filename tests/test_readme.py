"""What the README shows runs as it stands, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "docs/compile.md", "docs/cuda.md")


def blocks():
    for page in PAGES:
        for i, code in enumerate(re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.M | re.S)):
            yield pytest.param(code, id=f"{page} {i}")


@pytest.mark.parametrize("code", list(blocks()))
def test_an_example_runs(code):
    from tinynet.kernels.contract import IMPLEMENTATIONS
    from tinynet.dispatch import variants

    variants("matmul", "cpu")  # the real ones first
    try:
        exec(compile(code, "example", "exec"), {})
    finally:
        for found in IMPLEMENTATIONS.values():
            found.pop("mine", None)


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page):
    text = (ROOT / page).read_text("utf-8")
    named = set(re.findall(r"\]\(([\w./-]+)\)", text)) | {p for p in re.findall(r"`([\w./-]+/[\w./-]+)`", text) if p.split("/")[0] in ("tinynet", "kernels", "compare", "tests", "docs")}
    assert named
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing, missing
