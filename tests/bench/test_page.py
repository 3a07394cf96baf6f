"""`tinynet bench page`: what was measured and written with --json, as a page."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from tinynet.bench import page
from tinynet.bench.networks import GROWTH
from tinynet.bench.peers import CONTESTANTS
from tinynet.cli import app

MACHINE = {"cpu": "a CPU", "vectors": "avx9, 1024 bits", "cores": 2, "memory_gb": 8.0, "python": "3.11.1", "numpy": "2.0"}
HEAD = {"created": "2026-01-02T03:04:05Z", "machine": MACHINE}


def cell(median, status="ok", reason=""):
    return {"status": status, "reason": reason, "median_s": median}


def row(contestant, peak, **cells):
    return {"contestant": contestant, "version": f"{contestant} 1.0", "peak_mb": peak, "cells": {size[1:]: c for size, c in cells.items()}}


def ratio(contestant, size, found, target=None):
    against = {"other": "rival", "ratio": found, "low": found - 0.5, "high": found + 0.5}
    wanted = None if target is None else {"ratio": target, "floor": 0.75 * target, "against": against, "met": found >= target, "floor_met": found >= 0.75 * target, "at_peak": 3.25}
    return {"contestant": contestant, "size": size, **against, "target": wanted}


def networks(sizes=(), busy=1.0):
    cells = {f"s{size}": cell(0.002 * size) for size in sizes or (1, 32)}
    rows = [row("tinynet-compiled", 12.3, **cells), row("rival", None, s1=cell(0.005), s32=cell(None, "failed", "no | room\nleft"))] if not sizes else [row("tinynet-compiled", 12.3, **cells)]
    table = {"title": "net (N)", "kind": "forward", "busy_percent": busy, "sizes": list(sizes or (1, 32)), "rows": rows, "ratios": [ratio("tinynet-compiled", 1, 2.5, 2), ratio("tinynet-compiled", 32, 3.0, 5)]}
    return {"schema": "tinynet.bench.networks/1", **HEAD, "settings": {"sizes": list(sizes), "rounds": 5, "threads": 2, "networks": ["keras"], "kinds": ["training", "forward"], "contestants": list(CONTESTANTS)}, "peak_gflops": 123.4, "tables": [table]}


PROGRAMS = {
    "schema": "tinynet.bench.programs/2", **HEAD, "peak_gflops": 100.0, "threads": 2, "bandwidth_gb_s": {"0.5": 90.0, "64": 10.0},
    "programs": [
        {"network": "net", "images": 3, "run": "sgd", "math": "strict", "wrong": [], "seconds": 1e-3, "stamped": 1.2e-3, "waited": 3e-4, "steps": [
            {"step": "conv1", "on": "3x3", "kernel": "conv", "in_place": 6e-4, "seconds": 5e-4, "share_of_time": 0.5, "gflops": 80.0, "fewer_operations": True, "share_of_bound": 0.8, "bound": "peak"},
            {"step": "copy", "on": "9", "kernel": "copy", "in_place": 3e-4, "seconds": 1e-4, "share_of_time": 0.25, "gflops": None, "fewer_operations": False, "share_of_bound": 0.25, "bound": "bandwidth"}]},
        {"network": "net", "images": 3, "run": "adam", "math": "strict", "wrong": ["the loss errs"], "seconds": None, "stamped": None, "waited": None, "steps": []},
    ],
}  # fmt: skip
SHAPE = {"rows": 4, "terms": 8, "columns": 2, "a": "plain", "b": "plain", "batch": 1}
CLIFFS = {
    "schema": "tinynet.bench.cliffs/1", **HEAD,
    "kernels": [{"kernel": "matmul", "shapes": 1234, "neighbours": 9, "worst": [{"dimension": "rows", "times_as_long": 2.34, "fast": {"shape": SHAPE, "seconds": 1e-4}, "slow": {"shape": {**SHAPE, "rows": 5}, "seconds": 3e-4}}], "wrong": []}],
}  # fmt: skip


def rows_of(text: str) -> list[list[str]]:
    return [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_a_page_of_networks_has_times_peaks_and_ratios_beside_their_targets():
    found = page.page([networks()])
    rows = rows_of(found)
    assert ["tinynet-compiled", "2 ms", "64 ms", "12"] in rows and ["rival", "5 ms", "failed", ""] in rows
    assert ["tinynet-compiled", "**2.50** (2.00 to 3.00) rival; target 2: met", "**3.00** (2.50 to 3.50) rival; target 5: not met, nor the floor of 3.75 (all products at the processor's peak would be 3.25 x)"] in rows
    assert "The processor's peak is 123 GFLOP/s" in found
    assert "* rival, 32 images: failed: no | room left" in found and "a CPU (avx9, 1024 bits), 2 cores" in found and "rival 1.0; tinynet-compiled 1.0." in found
    assert "`tinynet bench networks --networks keras --rounds 5`, 2 threads. 2026-01-02" in found and "Others used" not in found
    assert "Others used 40 % of the machine" in page.page([networks(busy=40.0)])


def test_every_table_has_as_many_cells_in_each_row_as_in_its_head():
    blocks = [block for block in re.split(r"\n\n", page.page([networks(), networks(GROWTH), PROGRAMS, CLIFFS])) if block.startswith("|")]
    assert len(blocks) == 5 and all(len({len(row) for row in rows_of(block)}) == 1 for block in blocks)


def test_growth_is_in_images_a_second():
    found = page.page([networks(GROWTH)])
    assert "`tinynet bench networks --growth --networks keras --rounds 5`" in found and ["tinynet-compiled", *["500"] * len(GROWTH), "12"] in rows_of(found) and "target" not in found


def test_programs_say_what_each_step_reaches():
    rows, found = rows_of(page.page([PROGRAMS])), page.page([PROGRAMS])
    assert ["conv1, 3x3: conv", "50%", "600 us", "500 us", "80*", "80% of peak"] in rows and ["copy, 9: copy", "25%", "300 us", "100 us", "", "25% of bandwidth"] in rows
    assert "### net, 3 images, sgd, strict: 1 ms, 25% of it waiting" in found
    assert "### net, 3 images, adam, strict: wrong: the loss errs" in found and "At most 100 GFLOP/s on 2 threads" in found
    assert "`tinynet bench kernels --compiled --networks net --batch-sizes 3 --runs sgd,adam --maths strict`" in found


def test_cliffs_name_both_neighbours():
    (line,) = [line for line in rows_of(page.page([CLIFFS])) if line[1] == "matmul, of 1,234 shapes"]
    assert line[0].startswith("rows 4 to 5: ") and line[2:] == ["100 us to 300 us", "2.3"]


def test_the_command_writes_one_page_of_several_files(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(networks()))
    (tmp_path / "b.json").write_text(json.dumps(CLIFFS))
    out = tmp_path / "new" / "page.md"
    done = CliRunner().invoke(app, ["bench", "page", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--out", str(out)])
    assert done.exit_code == 0 and done.stdout.strip() == str(out), done.output
    assert out.read_text() == page.page([networks(), CLIFFS]) and [p.name for p in out.parent.iterdir()] == ["page.md"]


@pytest.mark.parametrize("text, said", [("{", "is not JSON"), ("[]", "is no result that a page can show"), ('{"schema": 1}', "(schema 1); those are tinynet.bench.networks/1")])
def test_what_is_no_result_is_refused(text, said, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)):
        page.read(tmp_path / "x.json")
    done = CliRunner().invoke(app, ["bench", "page", str(tmp_path / "x.json"), "--out", str(tmp_path / "page.md")])
    assert done.exit_code == 2 and not (tmp_path / "page.md").exists()
