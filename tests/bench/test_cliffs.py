"""`tinynet bench cliffs`: neighbours are one step apart, what is compared is what it says, every shape is proved. (No times are tested.)"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tinynet.bench import cliffs, tables
from tinynet.bench.cliffs import FAMILIES, SHORT, Family, Numbers, Pair, Point, Sweep, as_data, excess, text_of, walks
from tinynet.bench.roofline import Roofline
from tinynet.kernels.contract import IMPLEMENTATIONS, implements


def point(seconds: float, least: float, **shape) -> Point:
    return Point(shape or {"size": 1}, least, "GOOD", seconds)


def test_more_work_may_take_as_much_longer_and_less_need_not_be_faster_than_a_calls_fixed_cost():
    assert excess(point(1e-3, 1e-4), point(2e-3, 2e-4)) == pytest.approx(1.0)
    assert excess(point(1e-3, 1e-4), point(5e-3, 1e-4)) == pytest.approx(5.0)
    assert excess(point(1e-3, 1e-4), point(1e-3, 1e-5)) == pytest.approx(10.0)  # the same time for a tenth
    assert excess(point(20e-6, 1e-5), point(20e-6, 1e-6)) == pytest.approx(1.0)  # both are a call's fixed cost
    assert excess(point(20e-6, 1e-5), point(100e-6, 1e-6)) == pytest.approx(5.0)
    assert excess(point(1e-3, 1e-4), point(SHORT, 1e-6)) == pytest.approx(1.0)


@pytest.mark.parametrize("kernel", FAMILIES)
def test_a_walk_changes_one_dimension_and_the_dimensions_are_the_promised_ones(kernel):
    family = FAMILIES[kernel]
    for base in family.bases:
        for name, shapes in walks(family, base):
            assert all({k: v for k, v in shape.items() if k != name} == {k: v for k, v in base.items() if k != name} for shape in shapes)
            assert [shape[name] for shape in shapes] == list(family.dimensions[name])
    if kernel.startswith("conv2d"):
        channels = {3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65}
        assert set(range(1, 41)) <= set(family.dimensions["size"]) and channels <= set(family.dimensions["channels"]) and channels <= set(family.dimensions["filters"])
        assert list(family.dimensions["kernel"]) == list(range(1, 8)) and {1, 8} <= set(family.dimensions["images"]) and {"1", "2", "C/2", "C"} <= set(family.dimensions["groups"])
        assert {(base["layout"], base["images"]) for base in family.bases} == {("NCHW", 1), ("NCHW", 8), ("NHWC", 1), ("NHWC", 8)}


SMALL = dict(images=2, channels=4, filters=6, size=5, kernel=3, stride=1, padding=1, dilation=1, groups="1", layout="NHWC")


@pytest.mark.parametrize("kernel", ["conv2d", "conv2d_dx", "conv2d_dw"])
def test_shapes_become_calls_or_nothing(kernel):
    numbers = Numbers()
    work = cliffs.convolution(kernel, SMALL, numbers)
    assert work.name == kernel and work.parameters["layout"] == "NHWC" and work.spec.flops == 2 * 2 * 5 * 5 * 6 * 4 * 9
    assert cliffs.convolution(kernel, dict(SMALL, size=2, padding=0), numbers) is None  # no window fits
    assert cliffs.convolution(kernel, dict(SMALL, groups="C"), numbers) is None  # 6 filters in 4 groups
    assert cliffs.convolution(kernel, dict(SMALL, groups="C", filters="="), numbers).parameters["groups"] == 4


@pytest.mark.parametrize("kernel", ["max_pool2d", "max_pool2d_dx", "avg_pool2d", "avg_pool2d_dx"])
def test_windows_become_calls_or_nothing(kernel):
    shape = dict(images=2, channels=4, size=7, kernel=3, stride=2, padding=1, dilation=1, ceil_mode=False, layout="NHWC")
    work = cliffs.pooling(kernel, shape, Numbers())
    assert work.name == kernel and [s for s, _ in work.spec.outputs][0] == ((2, 7, 7, 4) if kernel.endswith("dx") else (2, 4, 4, 4))
    assert cliffs.pooling(kernel, dict(shape, kernel=1), Numbers()) is None  # more padding than half a window
    assert (cliffs.pooling(kernel, dict(shape, dilation=2), Numbers()) is None) == kernel.startswith("avg")


def test_numbers_are_different_every_time_and_as_many_as_asked_for():
    numbers = Numbers(count=100_000)
    a, b, large = numbers(3, 4), numbers(3, 4), numbers(400, 400)
    assert a.shape == (3, 4) and not np.array_equal(a, b) and large.shape == (400, 400) and large.dtype == np.float32


def small(kernel: str = "matmul") -> Sweep:
    family = FAMILIES[kernel]
    return Sweep(kernel, Roofline(1, "float32", 1e11, {4.0: 5e10}), Family({"rows": (1, 2, 3), "terms": (4, 5)}, [dict(rows=2, terms=4, columns=4, a="plain", b="turned", batch=1)], family.make))


def test_a_sweep_proves_every_shape_once_and_keeps_all_pairs():
    sweep = small()
    for base in sweep.bases():
        sweep.walk(base)
    assert sweep.timed == 4 and not sweep.wrong and [pair.dimension for pair in sweep.pairs] == ["rows", "rows", "terms"]
    assert all(pair.excess >= excess(pair.slow, pair.fast) for pair in sweep.pairs)
    worst = sweep.worst(2, rounds=1, block_s=0.0, suspect=0.0)
    assert len(worst) == 2 and worst[0].excess >= worst[1].excess
    data = as_data(sweep, worst)
    assert (data["kernel"], data["shapes"], data["neighbours"], len(data["worst"]), data["wrong"]) == ("matmul", 4, 3, 2, [])


def test_a_shape_that_is_wrong_gets_no_time(monkeypatch):
    @implements("matmul", device="cpu", variant="wrong", default=True)
    def wrong(a, b, *, out):
        np.matmul(a, b, out=out)
        if a.shape[-2] == 3:
            out *= np.float32(1.001)

    try:
        sweep = small()
        for base in sweep.bases():
            sweep.walk(base)
    finally:
        del IMPLEMENTATIONS["matmul", "cpu"]["wrong"]
    assert [p.shape["rows"] for p in sweep.wrong] == [3] and sweep.timed == 3 and len(sweep.pairs) == 2
    assert as_data(sweep, [])["wrong"][0]["verdict"] in ("WRONG", "LOOSE")


def test_all_cliffs_are_shown_however_few_are_asked_for(monkeypatch):
    sweep = small()
    sweep.pairs = [Pair("matmul", "rows", point(1e-3, 1e-4, rows=i), point(5e-3, 1e-4, rows=i + 1)) for i in range(3)]
    monkeypatch.setattr(sweep, "_again", lambda pair, rounds, block_s: pair)
    assert len(sweep.worst(1)) == 3


def test_a_pair_reads_as_a_step():
    shape = dict(SMALL, channels=8)
    pair = Pair("conv2d", "channels", point(1e-4, 5e-5, **dict(SMALL, channels=7)), Point(shape, 5e-5, "GOOD", 5e-4))
    text = "\n".join(tables.cliffs("conv2d", [pair], 1234, 99))
    assert "5.0" in text and "channels 7 to 8" in text and "100 us to 500 us" in text and "50.00% to 10.00%" in text and "1,234 shapes, 99 pairs" in text
    assert text_of(shape, "channels") == "2 images, 6 filters, 5x5, kernel 3, stride 1, padding 1, dilation 1, groups 1, NHWC"


def bench(*arguments):
    return subprocess.run([sys.executable, "-c", "from tinynet.cli import main; main()", "bench", "cliffs", *arguments], capture_output=True, text=True, env={**os.environ, "TINYNET_QUIET": "1", "COLUMNS": "300"})


def test_the_command_prints_pairs_as_json():
    done = bench("--only", "matmul", "--bases", "1", "--show", "2", "--json")
    (result,) = json.loads(done.stdout)["kernels"]
    assert result["kernel"] == "matmul" and result["shapes"] > 100 and result["neighbours"] >= result["shapes"] - 10 and len(result["worst"]) >= 2 and result["wrong"] == []
    assert done.returncode == (1 if result["worst"][0]["times_as_long"] > 4 else 0)


def test_a_kernel_that_is_not_walked_is_refused():
    done = bench("--only", "conv3d")
    assert done.returncode == 2 and "there is no kernel 'conv3d'; choose from conv2d, conv2d_dx, conv2d_dw, matmul, max_pool2d, max_pool2d_dx, avg_pool2d, avg_pool2d_dx" in done.stderr
