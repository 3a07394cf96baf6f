"""Benchmarks: no time without a proof, turns that are fair, a roofline that nothing beats. (No times are tested.)"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tinynet.bench.kernels import layers, measure
from tinynet.bench.roofline import Roofline
from tinynet.bench.roofline import measure as roofline
from tinynet.bench.timing import in_turns
from tinynet.kernels.contract import CONTRACTS, IMPLEMENTATIONS, implements

ROOF = Roofline(2, "float32", 1e12, {1.0: 1e12})


def test_candidates_take_turns_and_every_round_is_kept():
    calls = []
    found = in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=5, block_s=0.0)
    assert all(len(times.rounds) == 5 and times.spread[0] <= times.median <= times.spread[1] for times in found.values())
    assert calls.count("a") == calls.count("b") == 1 + 5 * 2
    assert "ab" in "".join(calls) and "ba" in "".join(calls)


@pytest.mark.parametrize("network", ["keras", "tensorflow"])
def test_the_layers_of_a_network_are_all_its_kernels(network):
    works = list(layers(network, 2, np.random.default_rng(0)))
    assert {work.name for work in works} == set(CONTRACTS) - {"avg_pool2d", "avg_pool2d_dx"}
    assert all(work.spec.flops > 0 and work.moved > 0 for work in works)


def test_every_variant_is_proved_on_the_shape_before_it_is_timed():
    work = next(work for work in layers("keras", 1, np.random.default_rng(0)) if work.name == "matmul")

    @implements("matmul", device="cpu", variant="wrong")
    def wrong(a, b, *, out):
        np.matmul(a, b, out=out)
        out *= np.float32(1.001)

    try:
        rows = {row.variant: row for row in measure(work, ROOF, rounds=3, block_s=0.0)}
    finally:
        del IMPLEMENTATIONS["matmul", "cpu"]["wrong"]
    assert rows["wrong"].seconds is None and rows["wrong"].verdict in ("WRONG", "LOOSE")
    assert rows["simd"].seconds > 0 and rows["simd"].gflops > 0


def test_the_roofline_is_measured():
    found = roofline(np.float32, sizes=(0.25,))
    assert 1e9 < found.peak < 1e14 and 1e8 < found.bandwidth[0.25] < 1e13
    assert found.least(10**9, 1) == pytest.approx(10**9 / found.peak)


def test_the_command_prints_rows_as_json():
    done = subprocess.run(
        [sys.executable, "-c", "from tinynet.cli import main; main()", "bench", "kernels", "--networks", "keras", "--batch-sizes", "1", "--only", "matmul", "--rounds", "3", "--json"],
        capture_output=True, text=True, env={**os.environ, "TINYNET_QUIET": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {row["variant"] for row in rows} == {"simd", "loops"} and all(row["seconds"] > 0 and row["share_of_roofline"] < 1.1 for row in rows)
