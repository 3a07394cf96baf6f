"""conv2d and its three gradients: the CPU kernels hold against the reference, the reference against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from geometries import Convolution, convolution, from_nchw, to_nchw
from kernels_by_hand import assert_honest, assert_same, reals, run, truth, whole_numbers

from tinynet import oracle
from tinynet.dispatch import find, variants
from tinynet.geometry import nchw
from tinynet.kernels.contract import CONTRACTS
from tinynet.kernels.cpu import tiles

SEEDS = range(120)
DTYPES = (np.float32, np.float64)

# Cases that must never depend on the luck of a seed.
NAMED = {
    "one pixel": Convolution((1, 1, 1, 1), (1, 1, 1, 1), True, dict(stride=1, padding=0, dilation=1, groups=1, layout="NCHW")),
    "one pixel, kernel over its padding": Convolution((2, 1, 1, 1), (3, 1, 3, 3), True, dict(stride=1, padding=1, dilation=1, groups=1, layout="NCHW")),
    "depthwise": Convolution((2, 5, 6, 7), (5, 1, 3, 3), True, dict(stride=1, padding="same", dilation=1, groups=5, layout="NCHW")),
    "depthwise, NHWC, stride 2": Convolution((2, 6, 7, 5), (5, 1, 3, 3), True, dict(stride=2, padding="same", dilation=1, groups=5, layout="NHWC")),
    "depthwise with 3 filters a channel": Convolution((2, 4, 6, 7), (12, 1, 3, 2), False, dict(stride=1, padding=1, dilation=1, groups=4, layout="NCHW")),
    "17 channels to 19": Convolution((2, 17, 5, 5), (19, 17, 3, 3), True, dict(stride=1, padding=1, dilation=1, groups=1, layout="NCHW")),
    "stride larger than the kernel": Convolution((2, 3, 11, 9), (4, 3, 2, 2), True, dict(stride=(3, 4), padding=0, dilation=1, groups=1, layout="NCHW")),
    "padding larger than the kernel": Convolution((1, 2, 3, 3), (3, 2, 2, 2), True, dict(stride=1, padding=4, dilation=1, groups=1, layout="NCHW")),
    "four sides": Convolution((2, 5, 4, 3), (4, 3, 3, 2), True, dict(stride=(2, 1), padding=((0, 3), (2, 1)), dilation=1, groups=1, layout="NHWC")),
    "dilation, groups and stride": Convolution((2, 6, 9, 8), (4, 3, 2, 3), True, dict(stride=(2, 1), padding=((1, 2), (0, 3)), dilation=(3, 2), groups=2, layout="NCHW")),
    "no images": Convolution((0, 3, 6, 5), (4, 3, 3, 3), True, dict(stride=1, padding=0, dilation=1, groups=1, layout="NCHW")),
    "2 KiB from one filter to the next": Convolution((2, 128, 5, 4), (9, 128, 2, 2), True, dict(stride=1, padding=1, dilation=1, groups=1, layout="NCHW")),
    "and in groups": Convolution((1, 7, 6, 64), (70, 32, 4, 4), True, dict(stride=1, padding=1, dilation=1, groups=2, layout="NHWC")),
    "groups of 2, more than 64 pixels": Convolution((1, 10, 9, 10), (10, 2, 1, 1), True, dict(stride=1, padding=0, dilation=1, groups=5, layout="NCHW")),
    "groups of 1 and 3, more than 64 pixels": Convolution((1, 9, 10, 15), (5, 3, 1, 2), True, dict(stride=1, padding=0, dilation=1, groups=5, layout="NHWC")),
    "the article's first layer": Convolution((2, 3, 32, 32), (32, 3, 3, 3), True, dict(stride=1, padding=0, dilation=1, groups=1, layout="NCHW")),
}  # fmt: skip
CASES = [pytest.param(case, id=name) for name, case in NAMED.items()] + [pytest.param(convolution(seed), id=f"seed {seed}") for seed in SEEDS]


def arrays_of(case: Convolution, rng, fill, dtype):
    """x, weight, bias or None, and a cotangent dy."""
    x, weight = fill(rng, case.x_shape, dtype), fill(rng, case.weight_shape, dtype)
    bias = fill(rng, case.weight_shape[:1], dtype) if case.bias else None
    (shape, _), = CONTRACTS["conv2d"].spec(x, weight, bias, **case.window).outputs
    return x, weight, bias, fill(rng, shape, dtype)


def calls(case: Convolution, x, weight, bias, dy):
    """The four kernels of one convolution: name, arrays, parameters."""
    window = case.window
    return [
        ("conv2d", (x, weight, bias), window),
        ("conv2d_dx", (dy, weight), dict(window, x_shape=x.shape)),
        ("conv2d_dw", (dy, x), dict(window, weight_shape=weight.shape)),
        ("conv2d_db", (dy,), dict(layout=window["layout"])),
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("case", CASES)
def test_cpu_kernels_equal_the_reference_on_whole_numbers(case, dtype, rng):
    """Every order of summation is exact on these, so one missing or wrong term would show. (Who is judged by norm may round.)"""
    for name, arrays, parameters in calls(case, *arrays_of(case, rng, whole_numbers, dtype)):
        want = run(name, "reference", *arrays, **parameters)
        for variant in variants(name, "cpu"):
            got = run(name, f"cpu.{variant}", *arrays, **parameters)
            if find(name, f"cpu.{variant}").norm is not None:
                got = np.rint(got)
            assert_same(got, want, f"cpu.{variant}: {name} of {case}")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("case", CASES)
def test_the_oracle_accepts_cpu_and_reference(case, dtype, rng):
    for name, arrays, parameters in calls(case, *arrays_of(case, rng, reals, dtype)):
        for path in ("reference", *(f"cpu.{variant}" for variant in variants(name, "cpu"))):
            assert_honest(name, path, *arrays, **parameters)


@pytest.mark.parametrize("case", CASES)
def test_torch_in_float64_is_accepted_by_the_same_truths(case, rng):
    window, layout = case.window, case.options["layout"]
    x, weight, bias, dy = arrays_of(case, rng, reals, np.float64)
    leaves = [torch.tensor(a, requires_grad=True) for a in (to_nchw(x, layout), weight) + ((bias,) if case.bias else ())]
    (top, bottom), (left, right) = window["padding"]
    images = torch.nn.functional.pad(leaves[0], (left, right, top, bottom))
    y = torch.nn.functional.conv2d(images, leaves[1], *leaves[2:], stride=window["stride"], dilation=window["dilation"], groups=window["groups"])
    y.backward(torch.tensor(to_nchw(dy, layout)))
    theirs = [from_nchw(y.detach().numpy(), layout), from_nchw(leaves[0].grad.numpy(), layout), *(leaf.grad.numpy() for leaf in leaves[1:])]
    for (name, arrays, parameters), got in zip(calls(case, x, weight, bias, dy), theirs):
        oracle.assert_matches(got, truth(name, *arrays, **parameters), name=f"{name} of {case}", max_zero_share=1.0)


def test_the_seeds_reach_every_case():
    """A generator that never draws a case would test nothing of it."""
    drawn = [convolution(seed) for seed in SEEDS]
    windows = [(case, case.window) for case in drawn]
    forms = {"same": 0, "valid": 0, "int": 0, "pair": 0, "four": 0}
    for case in drawn:
        p = case.options["padding"]
        forms[p if isinstance(p, str) else "int" if isinstance(p, int) else "four" if isinstance(p[0], tuple) else "pair"] += 1
    assert min(forms.values()) >= 5, forms
    wanted = {
        "unequal strides": lambda c, w: w["stride"][0] != w["stride"][1],
        "unequal dilations": lambda c, w: w["dilation"][0] != w["dilation"][1],
        "groups": lambda c, w: w["groups"] > 1,
        "depthwise": lambda c, w: w["groups"] > 1 and c.weight_shape[1] == 1,
        "one filter a group": lambda c, w: w["groups"] > 1 and c.weight_shape[0] == w["groups"],
        "an odd number of filters a group": lambda c, w: w["groups"] > 1 and c.weight_shape[0] // w["groups"] % 2 == 1,
        "groups with dilation and stride": lambda c, w: w["groups"] > 1 and max(w["dilation"]) > 1 and max(w["stride"]) > 1,
        "NCHW": lambda c, w: w["layout"] == "NCHW",
        "NHWC": lambda c, w: w["layout"] == "NHWC",
        "padding larger than the kernel": lambda c, w: any(max(p) > (e - 1) * d + 1 for p, e, d in zip(w["padding"], c.weight_shape[2:], w["dilation"])),
        "unequal sides": lambda c, w: any(p[0] != p[1] for p in w["padding"]),
        "one row or column": lambda c, w: 1 in nchw(c.x_shape, w["layout"])[2:],
        "one channel": lambda c, w: nchw(c.x_shape, w["layout"])[1] == 1,
        "an empty batch": lambda c, w: c.x_shape[0] == 0,
        "no bias": lambda c, w: not c.bias,
    }
    missing = [name for name, has in wanted.items() if sum(has(*pair) for pair in windows) < 3]
    assert not missing


@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize("case", [NAMED[name] for name in ("four sides", "dilation, groups and stride", "depthwise")], ids=str)
def test_memory_layout_of_the_inputs_does_not_matter(case, device, rng):
    """Strided, reversed and Fortran-ordered inputs give the same as contiguous ones."""
    from tinynet.dispatch import kernels

    k = kernels(device)
    for name, arrays, parameters in calls(case, *arrays_of(case, rng, whole_numbers, np.float32)):
        want = getattr(k, name)(*arrays, **parameters)
        for form in (spaced, backwards, np.asfortranarray):
            got = getattr(k, name)(*[a if a is None else form(a) for a in arrays], **parameters)
            assert_same(got, want, f"{name}, {form.__name__}")


def spaced(a):
    """The same values, every second number of a larger array."""
    wide = np.full((*a.shape[:-1], 2 * a.shape[-1]), np.nan, a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


def backwards(a):
    """The same values with negative strides."""
    return np.ascontiguousarray(a[::-1])[::-1]


def test_nan_and_infinity_stay_where_they_are_met(rng):
    """One bad pixel reaches the outputs whose windows hold it and no other."""
    x, weight = reals(rng, (1, 2, 6, 6), np.float32), reals(rng, (3, 2, 3, 3), np.float32)
    for bad in (np.nan, np.inf):
        x[0, 1, 2, 3] = bad
        y = run("conv2d", "cpu", x, weight, None, **Convolution(x.shape, weight.shape, False, dict(stride=1, padding=0, dilation=1, groups=1, layout="NCHW")).window)
        met = np.zeros((4, 4), bool)
        met[0:3, 1:4] = True
        assert not np.isfinite(y[0][:, met]).any()
        assert np.isfinite(y[0][:, ~met]).all()


def test_one_compilation_for_each_dtype():
    """A kernel compiled anew for a stride or a layout would make first calls slow for ever."""
    from tinynet.kernels.cpu import conv2d as module

    for function in (module._forward, module._input_gradient, module._weight_gradient, module._enter):
        by_dtype = {}
        for signature in function.signatures:
            by_dtype.setdefault(str(signature[0].dtype), []).append(signature)
        assert all(len(found) <= 2 for found in by_dtype.values()), f"{function.py_func.__name__}: {by_dtype}"


def test_layouts_are_two_views_of_one_convolution(rng):
    """NHWC is NCHW with its axes moved, and nothing else."""
    x, weight, bias = reals(rng, (2, 3, 6, 5), np.float64), reals(rng, (4, 3, 3, 2), np.float64), reals(rng, (4,), np.float64)
    options = dict(stride=(1, 2), padding=((1, 0), (0, 2)), dilation=1, groups=1)
    last = from_nchw(x, "NHWC")
    want = oracle.reference.conv2d(x, weight, bias, **options)
    for device in ("cpu", "reference"):
        y = run("conv2d", device, last, weight, bias, **Convolution(last.shape, weight.shape, True, dict(options, layout="NHWC")).window)
        oracle.assert_matches(to_nchw(y, "NHWC"), want, name=device)


AXES = [(-2, 1, 1, 5, 7, 7), (-1, 1, 1, 3, 3, 3), (-5, 3, 2, 3, 4, 6), (-4, 1, 1, 2, 3, 8), (0, 1, 1, 3, 9, 7), (-3, 2, 3, 4, 6, 5), (2, 1, 2, 1, 3, 2), (0, 1, 1, 0, 3, 2)]


@pytest.mark.parametrize("axis", [tiles.Axis(*numbers) for numbers in AXES], ids=str)
def test_taps_that_meet_an_input_are_counted(axis):
    meets = [[0 <= axis.first + i * axis.step + t * axis.tap < axis.size for t in range(axis.taps)] for i in range(axis.outputs)]
    assert axis.met() == sum(map(sum, meets))
    assert (axis.numbers("row") == {}) == all(map(all, meets))
    for together in range(1, min(3, axis.outputs) + 1):
        starts = [min(i, axis.outputs - together) for i in range(0, axis.outputs, together)]
        exact = [sum(any(row[t] for row in meets[s : s + together]) for t in range(axis.taps)) for s in starts]
        between = [sum(1 for t in range(axis.taps) if any(row[t] for row in meets[s:]) and any(row[t] for row in meets[: s + together])) for s in starts]
        assert sum(exact) <= axis.met(together) <= max(sum(between), sum(exact))


def test_nothing_is_added_for_rows_of_padding():
    """An infinite weight that meets nothing but zeros of padding, and for weights' gradients any pixel that does, is left out: 0 * inf
    would be NaN. (Columns of padding are only left out in weights' gradients: lanes and pixels of a row are computed together.)"""
    window = dict(stride=1, padding=((1, 1), (0, 0)), dilation=1, groups=1, layout="NHWC")
    x, weight = np.ones((2, 1, 9, 8), np.float32), np.ones((16, 8, 3, 3), np.float32)
    weight[:, :, [0, 2]] = np.inf
    y = run("conv2d", "cpu", x, weight, None, **window)
    assert_same(y, np.full((2, 1, 7, 16), 24, np.float32))
    dx = run("conv2d_dx", "cpu", y, weight, **window, x_shape=x.shape)
    assert np.isfinite(dx).all()
    square = dict(window, padding=1)
    dy = np.full((2, 5, 5, 16), 1, np.float32)
    dy[:, 0] = dy[:, :, 0] = np.inf
    dw = run("conv2d_dw", "cpu", dy, np.ones((2, 5, 5, 8), np.float32), **square, weight_shape=(16, 8, 3, 3))
    assert np.isinf(dw[:, :, 1:, :]).all() and np.isinf(dw[:, :, :, 1:]).all(), "its first row or column meets pixels"
    assert_same(dw[:, :, 0, 0], np.full((16, 8), 32, np.float32))
