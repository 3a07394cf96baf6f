"""Convolution, ReLU and max-pooling in one kernel: right in every geometry, and what the three give one after the other."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tinynet import oracle
from tinynet.dispatch import find, kernels, use, variants
from tinynet.geometry import Window, in_layout
from tinynet.kernels.contract import CONTRACTS
from tinynet.kernels.cpu import threads

NAME = "conv2d_relu_max_pool2d"
VARIANTS = ["simd", "apart"]
LAYOUTS = ("NCHW", "NHWC")
# Remainders of every tile: windows of a row, channels, groups of a few channels; strides and dilations; rows that threads share.
GEOMETRIES = [
    dict(x=(1, 3, 8, 8), k=16, kernel=(3, 3)),
    dict(x=(2, 5, 7, 9), k=19, kernel=(3, 2), padding=((1, 0), (2, 1))),
    dict(x=(1, 1, 31, 3), k=1, kernel=(2, 2)),
    dict(x=(3, 16, 12, 29), k=32, kernel=(3, 3), padding="same"),
    dict(x=(2, 7, 15, 16), k=10, kernel=(5, 3), stride=(2, 1), padding=2),
    dict(x=(2, 4, 13, 11), k=6, kernel=(3, 2), dilation=(2, 3), padding=1),
    dict(x=(2, 6, 9, 8), k=9, kernel=(2, 3), groups=3, padding=1),
    dict(x=(2, 24, 6, 6), k=24, kernel=(3, 3), groups=2, stride=1, padding=1),
    dict(x=(1, 8, 6, 7), k=8, kernel=(3, 3), groups=8, padding=1),
    dict(x=(19, 3, 4, 4), k=5, kernel=(1, 1)),
    dict(x=(1, 40, 33, 20), k=48, kernel=(3, 3), padding=1),
    dict(x=(1, 31, 6, 6), k=8, kernel=(4, 4)),  # 496 terms, which are listed
    dict(x=(1, 31, 7, 6), k=8, kernel=(4, 5), padding=(0, 1)),  # 620, which are not
]
IDS = [" ".join(f"{key}={value}" for key, value in g.items()).replace(" ", "_") for g in GEOMETRIES]


def call(rng, x, k, kernel, layout, dtype=np.float32, bias=True, **geometry):
    """Small whole numbers, so that every order of summation gives the same bits and many numbers are equal."""
    geometry = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **geometry}
    whole = lambda *shape: rng.integers(-2, 3, shape).astype(dtype)
    images, weight = whole(*in_layout(*x, layout)), whole(k, x[1] // geometry["groups"], *kernel)
    return (images, weight, whole(k) if bias else None), Window(images.shape, weight.shape, layout=layout, **geometry)


def by(path: str, arrays, window):
    with use(**{NAME: path}):
        return getattr(kernels("cpu"), NAME)(*arrays, **window)


def test_the_fused_kernel_is_the_default():
    assert variants(NAME, "cpu") == VARIANTS


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_oracle_accepts_it(dtype, variant):
    oracle.assert_op(oracle.with_out(find(NAME, f"cpu.{variant}"), NAME), NAME, dtype=dtype)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=IDS)
def test_every_geometry_is_bit_for_bit_the_definition_in_both_layouts(geometry, rng):
    dtypes = (np.float32, np.float64) if geometry in GEOMETRIES[:3] else (np.float32,)  # each tile is compiled for each
    for layout, dtype, bias in product(LAYOUTS, dtypes, (True, False)):
        arrays, window = call(rng, layout=layout, dtype=dtype, bias=bias, **geometry)
        want = by("reference", arrays, window)
        for variant in VARIANTS:
            for got, right in zip(by(f"cpu.{variant}", arrays, window), want, strict=True):
                np.testing.assert_array_equal(got, right, err_msg=f"{variant}, {layout}, {dtype.__name__}")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_argmax_leads_the_gradient_through_pooling_and_relu(layout, rng):
    arrays, window = call(rng, (2, 5, 9, 8), 6, (3, 3), layout, padding=1)
    k = kernels("reference")
    ((shape, _),) = CONTRACTS["conv2d"].spec(*arrays, **window).outputs
    z = k.conv2d(*arrays, **window)
    pooling = dict(kernel_size=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)), dilation=(1, 1), ceil_mode=False, layout=layout)
    _, apart = k.max_pool2d(np.maximum(z, 0), **pooling)
    _, argmax = by("cpu.simd", arrays, window)
    dy = rng.standard_normal(argmax.shape).astype(np.float32)
    want = k.relu_dx(k.max_pool2d_dx(dy, apart, x_shape=shape, layout=layout), z)
    np.testing.assert_array_equal(k.max_pool2d_dx(dy, argmax, x_shape=shape, layout=layout), want)
    assert (argmax == -1).any() and (argmax >= 0).any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_number_of_threads_changes_nothing(layout, rng, monkeypatch):
    (x, weight, bias), window = call(rng, (1, 8, 24, 22), 16, (3, 3), layout, padding=1)
    x = rng.standard_normal(x.shape).astype(np.float32)
    want = by("cpu.simd", (x, weight, bias), window)
    for count in (1, 3, 7):
        monkeypatch.setattr(threads, "count", lambda: count)
        for got, right in zip(by("cpu.simd", (x, weight, bias), window), want, strict=True):
            np.testing.assert_array_equal(got, right)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_images_and_no_windows(variant, rng):
    for x in ((0, 3, 8, 8), (2, 3, 3, 9)):
        y, argmax = by(f"cpu.{variant}", *call(rng, x, 4, (3, 3), "NCHW"))
        assert y.size == argmax.size == 0
