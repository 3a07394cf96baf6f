"""conv2d_relu_max_pool2d on CUDA's devices: the oracle accepts both variants; and every form of the kernel, layout and memory order is right."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from ready import READY, judged
from test_cuda_conv2d import GEOMETRIES, IDS, Case, placements

from tinynet.devices import array_module, to_host
from tinynet.dispatch import kernels, use, variants
from tinynet.kernels.cuda import conv2d
from tinynet.kernels.cuda.emulator import build
from tinynet.kernels.cuda.emulator.checked import checked

NAME, VARIANTS = "conv2d_relu_max_pool2d", ["registers", "direct"]
LAYOUTS = ("NCHW", "NHWC")
# With windows for all of them, and some more: more channels than a block has, and rows and columns without a partner; and, last, sums
# that are split.
POOLED = [
    *GEOMETRIES[:10], dict(x=(1, 4, 9, 7), k=8, kernel=(2, 2), stride=2), dict(x=(2, 8, 9, 11), k=68, kernel=(3, 3)), dict(x=(1, 6, 35, 6), k=11, kernel=(3, 1), padding=1),
    dict(x=(1, 16, 6, 6), k=8, kernel=(3, 3)), dict(x=(1, 15, 6, 7), k=9, kernel=(3, 3)), dict(x=(2, 15, 7, 6), k=41, kernel=(3, 3), padding=1),
]  # fmt: skip


def results(case: Case, variant: str, device: str, placed=lambda array: array) -> list[np.ndarray]:
    xp = array_module(device)
    with use(**{NAME: f"{device}.{variant}"}):
        arrays = (None if a is None else placed(xp.asarray(a)) for a in (case.x, case.weight, case.bias))
        return [to_host(a) for a in getattr(kernels(device), NAME)(*arrays, **case.window)]


def wanted(case: Case) -> tuple[np.ndarray, np.ndarray]:
    return getattr(kernels("reference"), NAME)(case.x, case.weight, case.bias, **case.window)


def same(found, want) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(found, want, strict=True))


def test_the_variants_are_both_ends_of_the_story():
    assert variants(NAME, "cuda") == variants(NAME, "cuda-emulator") == VARIANTS


@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize("variant, dtype", [("registers", "float32"), ("direct", "float32"), ("direct", "float64")])
def test_the_oracle_accepts_every_variant(variant, dtype, device):
    report = judged(NAME, variant, device, dtype=dtype)
    assert report, report.explain()
    assert len(report) > 40


@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize("geometry", POOLED, ids=[*IDS[:10], "odd_both_ways", "68_channels", "a_narrow_image", "parts", "parts_of_odd_channels", "parts_of_more_channels"])
def test_every_geometry_in_both_layouts(geometry, device, rng):
    for layout, variant in product(LAYOUTS, VARIANTS):
        case = Case.of(rng, layout=layout, **geometry)
        assert same(results(case, variant, device), wanted(case)), f"{variant}, {layout}"


def test_those_geometries_run_every_form_of_registers(rng, monkeypatch):
    forms = set()
    monkeypatch.setattr(conv2d, "kernel", lambda out, file, name, **defines: forms.add(tuple(defines.items())) or (lambda *launch: None))
    for geometry, layout in product(POOLED, LAYOUTS):
        results(Case.of(rng, layout=layout, **geometry), "registers", "cuda-emulator")
    assert forms >= {tuple(defines.items()) for defines, _ in conv2d.units() if defines.get("POOL")}


@pytest.mark.parametrize("device", READY)
def test_sums_that_are_split_among_blocks_give_the_same_bits_again(device, rng):
    """Few windows of many terms: with groups, channels that no four divide, and odd sizes; in either layout."""
    for layout, geometry in product(LAYOUTS, (dict(x=(1, 32, 9, 7), k=20, kernel=(3, 3), padding=1), dict(x=(2, 80, 6, 8), k=70, kernel=(2, 3), groups=2), dict(x=(1, 16, 12, 12), k=8, kernel=(5, 5), bias=False))):
        case = Case.of(rng, layout=layout, **geometry)
        (c,) = conv2d.forward(case.x, case.weight, None, *case.window.values(), np.empty((1, *wanted(case)[0].shape), np.float32))
        assert conv2d.plan("registers", replace(c, z_columns=2))[2] > 1, "more than one part"
        assert same(results(case, "registers", device), wanted(case)), (layout, geometry)
        case.x, case.weight = (rng.standard_normal(a.shape).astype(np.float32) for a in (case.x, case.weight))
        assert same(results(case, "registers", device), results(case, "registers", device))
        for got, want in zip(results(case, "registers", device)[:1], wanted(case)):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", READY)
def test_nan_infinity_and_equal_numbers(device, rng):
    for layout, variant in product(LAYOUTS, VARIANTS):
        case = Case.of(rng, (2, 8, 6, 7), 16, (1, 1), layout, bias=False)
        case.weight[...] = np.eye(16, 8, dtype=np.float32)[:, :, None, None]  # z is x, and 8 channels of zeros
        for number in (np.nan, -np.inf, 7.0, -1.0):
            case.x[rng.random(case.x.shape) < 0.2] = number
        case.x[0] = 3  # all equal: the first wins
        with np.errstate(invalid="ignore"):
            want = wanted(case)
        finite = np.isfinite(want[0])  # 0 * nan spreads along the channels, as in the reference
        found = results(case, variant, device)
        assert same(found, want) and finite.any() and not finite.all(), f"{variant}, {layout}"


@pytest.mark.parametrize("device", READY)
def test_inputs_lie_in_memory_as_they_please(device, rng):
    for layout, (way, placed), variant in product(LAYOUTS, placements(array_module(device)).items(), VARIANTS):
        case = Case.of(rng, (2, 8, 5, 8), 12, (3, 2), layout, stride=(1, 2), padding=1)
        assert same(results(case, variant, device, placed), wanted(case)), f"{variant}, {layout}, {way}"


@pytest.mark.parametrize("device", READY)
def test_float64_goes_to_direct(device, rng):
    case = Case.of(rng, (2, 16, 6, 5), 16, (3, 3), dtype=np.float64, padding=1)
    assert same(results(case, "registers", device), wanted(case))


@pytest.mark.parametrize("device", READY)
def test_no_images_and_no_windows(device, rng):
    for geometry in (dict(x=(0, 8, 6, 5), k=12, kernel=(3, 3)), dict(x=(2, 8, 3, 5), k=12, kernel=(3, 3))):
        found = results(Case.of(rng, **geometry), "registers", device)
        assert found[0].size == found[1].size == 0


def test_what_no_kernel_can_take_is_refused(monkeypatch, rng):
    with pytest.raises(TypeError, match="conv2d_relu_max_pool2d: float16 has no CUDA kernel; use float32 or float64"):
        results(Case.of(rng, (1, 2, 4, 4), 2, (1, 1), dtype=np.float16), "direct", "cuda-emulator")
    monkeypatch.setattr(conv2d, "MOST", 50)
    with pytest.raises(ValueError, match="conv2d_relu_max_pool2d: threads count at most 50 places and terms of a sum; got 64 and 8"):
        results(Case.of(rng, (2, 2, 10, 18), 8, (2, 2), stride=2), "registers", "cuda-emulator")


@pytest.mark.skipif(build.reason() is not None, reason=f"no emulator here: {build.reason()}")
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_clean_in_checked_mode(variant, rng):
    """No race, nothing out of bounds, no barrier missed: in random orders of threads and blocks, and at every kind of edge."""
    for seed, (geometry, layout) in enumerate(product((POOLED[2], POOLED[5], POOLED[6], POOLED[11], POOLED[14]), LAYOUTS)):
        case = Case.of(rng, layout=layout, **geometry)
        with checked(seed):
            found = results(case, variant, "cuda-emulator")
        assert same(found, wanted(case)), (geometry, layout)
