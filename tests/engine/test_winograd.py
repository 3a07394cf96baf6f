"""Winograd's convolution: its matrices, its tiles, and its variants at sizes that do not fit."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from geometries import Convolution
from kernels_by_hand import assert_same, reals, run, truth, whole_numbers

from tinynet import oracle
from tinynet.dispatch import find
from tinynet.kernels.cpu import tiles_winograd
from tinynet.kernels.cpu.conv2d_winograd import NORM, NORM_DW, NORM_DX, VARIANTS
from tinynet.kernels.cpu.target import TARGET
from tinynet.kernels.cpu.tiles_winograd import Tiles, WeightsTiles

DTYPES = (np.float32, np.float64)
PLAIN = dict(stride=1, dilation=1, groups=1)
CASES = {
    "one channel, one tile": Convolution((1, 1, 6, 6), (1, 1, 3, 3), False, dict(PLAIN, padding=0, layout="NCHW")),
    "a remainder of 1 and of 3": Convolution((2, 3, 7, 9), (5, 3, 3, 3), True, dict(PLAIN, padding=1, layout="NCHW")),
    "a remainder of 2, NHWC": Convolution((3, 10, 6, 8), (16, 8, 3, 3), True, dict(PLAIN, padding=1, layout="NHWC")),
    "odd channels": Convolution((2, 17, 8, 5), (19, 17, 3, 3), True, dict(PLAIN, padding="same", layout="NCHW")),
    "odd channels, NHWC": Convolution((2, 8, 5, 17), (19, 17, 3, 3), False, dict(PLAIN, padding="same", layout="NHWC")),
    "24 lanes to 40": Convolution((2, 24, 6, 6), (40, 24, 3, 3), True, dict(PLAIN, padding=1, layout="NCHW")),
    "four sides": Convolution((2, 9, 8, 4), (6, 4, 3, 3), True, dict(PLAIN, padding=((2, 0), (1, 2)), layout="NHWC")),
    "wide": Convolution((1, 2, 4, 37), (5, 2, 3, 3), True, dict(PLAIN, padding=1, layout="NCHW")),
    "no padding: dy has fewer tiles": Convolution((2, 20, 6, 8), (17, 20, 3, 3), True, dict(PLAIN, padding=0, layout="NCHW")),
    "no padding, NHWC, several blocks": Convolution((2, 18, 18, 33), (128, 33, 3, 3), True, dict(PLAIN, padding=0, layout="NHWC")),
    "padding on one side": Convolution((1, 5, 9, 9), (24, 5, 3, 3), True, dict(PLAIN, padding=((0, 1), (1, 0)), layout="NCHW")),
    "several blocks of tiles": Convolution((2, 33, 39, 31), (36, 33, 3, 3), True, dict(PLAIN, padding=1, layout="NCHW")),
    "many images": Convolution((19, 8, 8, 8), (12, 8, 3, 3), True, dict(PLAIN, padding=1, layout="NCHW")),
}  # fmt: skip
IN_FLOAT64 = "a remainder of 1 and of 3", "odd channels, NHWC", "no padding: dy has fewer tiles", "several blocks of tiles"
OTHERS = {
    "5 x 3": Convolution((2, 3, 9, 8), (4, 3, 5, 3), True, dict(PLAIN, padding=1, layout="NCHW")),
    "stride": Convolution((2, 3, 9, 8), (4, 3, 3, 3), True, dict(PLAIN, stride=(1, 2), padding=1, layout="NCHW")),
    "dilation": Convolution((2, 3, 9, 8), (4, 3, 3, 3), True, dict(PLAIN, dilation=(2, 1), padding=1, layout="NCHW")),
    "groups": Convolution((2, 4, 9, 8), (4, 2, 3, 3), True, dict(PLAIN, groups=2, padding=1, layout="NCHW")),
    "one pixel": Convolution((2, 4, 1, 1), (4, 4, 3, 3), True, dict(PLAIN, padding=1, layout="NCHW")),
    "no images": Convolution((0, 4, 8, 8), (4, 4, 3, 3), True, dict(PLAIN, padding=1, layout="NCHW")),
}  # fmt: skip


def calls(case: Convolution, rng, fill, dtype):
    """conv2d and its two gradients: name, arrays, parameters."""
    x, weight = fill(rng, case.x_shape, dtype), fill(rng, case.weight_shape, dtype)
    bias = fill(rng, case.weight_shape[:1], dtype) if case.bias else None
    dy = fill(rng, run("conv2d", "reference", x, weight, bias, **case.window).shape, dtype)
    return [
        ("conv2d", (x, weight, bias), case.window),
        ("conv2d_dx", (dy, weight), dict(case.window, x_shape=x.shape)),
        ("conv2d_dw", (dy, x), dict(case.window, weight_shape=weight.shape)),
    ]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case, dtype", [*((name, np.float32) for name in CASES), *((name, np.float64) for name in IN_FLOAT64)])
def test_any_size_is_as_near_to_the_truth_as_promised(case, dtype, variant, rng):
    """The bounds are in units of float32's rounding: float64 must be nearer by the ratio of the two. (Each form takes a second or two to compile.)"""
    for name, arrays, parameters in calls(CASES[case], rng, reals, dtype):
        norm = find(name, f"cpu.{variant}").norm * (1 if dtype is np.float32 else 2.0**-29)
        verdict = oracle.judge(run(name, f"cpu.{variant}", *arrays, **parameters), truth(name, *arrays, **parameters).with_norm(norm))
        assert verdict, f"{name}: {verdict}"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_whole_numbers_come_out_right_when_rounded(case, variant, rng):
    for name, arrays, parameters in calls(case, rng, whole_numbers, np.float32):
        assert_same(np.rint(run(name, f"cpu.{variant}", *arrays, **parameters)), run(name, "reference", *arrays, **parameters), name)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", OTHERS.values(), ids=OTHERS)
def test_what_they_do_not_take_is_computed_by_simd(case, variant, rng):
    for name, arrays, parameters in calls(case, rng, reals, np.float32):
        assert_same(run(name, f"cpu.{variant}", *arrays, **parameters), run(name, "cpu.simd", *arrays, **parameters), name)


def test_the_bounds_are_not_hollow(rng):
    """Within a factor of 20 of what is measured, so a lost digit shows."""
    case = Convolution((4, 15, 18, 16), (24, 16, 3, 3), False, dict(PLAIN, padding=1, layout="NHWC"))
    for variant, m in VARIANTS.items():
        for name, arrays, parameters in calls(case, rng, reals, np.float32):
            want = truth(name, *arrays, **parameters)
            measured = np.linalg.norm(run(name, f"cpu.{variant}", *arrays, **parameters) - want.value) / np.linalg.norm(want.gauge)
            norm = dict(conv2d=NORM, conv2d_dx=NORM_DX, conv2d_dw=NORM_DW)[name][m]
            assert norm / 100 < measured < norm, (variant, name, measured, norm)


@pytest.mark.parametrize("m", VARIANTS.values())
def test_the_matrices_make_a_convolution(m, rng):
    A, B, G = (np.array(matrices[m]) for matrices in (tiles_winograd.A, tiles_winograd.B, tiles_winograd.G))
    d, g = rng.standard_normal(m + 2), rng.standard_normal(3)
    np.testing.assert_allclose(A.T @ ((G @ g) * (B.T @ d)), np.convolve(d, g[::-1], "valid"), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("target", sorted({"avx2", "neon"} - {TARGET.name}))
def test_kernels_for_other_processors_vectors_are_right_too(target):
    """Compiled for this machine, with the width and the number of registers of another. (Up to a minute each, cold; test_simd.py has all.)"""
    code = """
from tinynet import oracle
from tinynet.dispatch import find
wanted = lambda case: case.inputs()[1]["groups"] == 1 and case.kind in ("ints", "reals") and ("odd" in case.label or "C = " in case.label)
for name in ("conv2d", "conv2d_dx", "conv2d_dw"):
    for variant in ("winograd", "winograd2"):
        report = oracle.check(oracle.with_out(find(name, f"cpu.{variant}"), name), name, cases=wanted)
        assert report and len(report) > 8, report.explain()
"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "TINYNET_SIMD": target, "TINYNET_QUIET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_chosen_tiles_fit_into_the_registers_and_the_cache(dtype):
    for rows, columns, channels, lanes in [(4, 4, 4, 4), (16, 16, 32, 64), (12, 12, 32, 16), (32, 32, 64, 64), (5, 90, 24, 40), (56, 56, 256, 256)]:
        for m in VARIANTS.values():
            for gradient in (False, True):
                tiles = (WeightsTiles if gradient else Tiles)(m, rows, columns, channels, channels, lanes, dtype)
                (_, r, v, w, x), (abreast, few) = tiles.constants[:5], (1, 0) if gradient else tiles.constants[5:7]
                assert r * v + max(few, 1) * v < TARGET.registers and v * w <= lanes and x <= channels
                assert abreast * x <= max(channels, TARGET.lanes(dtype))
                assert not gradient or channels % r == 0 and lanes % (v * w) == 0
                row_of_tiles = (m + 2) ** 2 * -(-columns // m) * (channels + lanes) * np.dtype(dtype).itemsize
                assert tiles.work * np.dtype(dtype).itemsize <= max(tiles_winograd.CACHE, 2 * row_of_tiles) + 36 * 256


def test_groups_of_images_are_of_one_size():
    assert [tiles_winograd.together(images, tiles) for images, tiles in ((32, 4), (33, 4), (3, 4), (1, 4), (5, 64), (5, 100), (7, 20))] == [16, 11, 3, 1, 1, 1, 3]
