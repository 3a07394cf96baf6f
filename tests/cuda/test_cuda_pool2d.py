"""Pooling on CUDA's devices: the oracle accepts every variant, in every geometry and memory layout. On a GPU too, where there is one."""

from __future__ import annotations

import numpy as np
import pytest
from ready import READY, judged

import tinynet
from tinynet import functional as F
from tinynet import oracle
from tinynet.devices import array_module, to_host
from tinynet.dispatch import kernels, use, variants
from tinynet.geometry import PoolWindow
from tinynet.kernels.cuda import pool2d
from tinynet.kernels.cuda.emulator import build
from tinynet.kernels.cuda.emulator.checked import checked
from tinynet.kernels.cuda.launch import divisor

VARIANTS = {"max_pool2d": ["separable", "simple"], "max_pool2d_dx": ["near", "simple"], "avg_pool2d": ["separable", "simple"], "avg_pool2d_dx": ["separable", "simple"]}  # the default first
EVERY = [pytest.param(name, variant, id=f"{name}-{variant}") for name, both in VARIANTS.items() for variant in both]
EMULATED = pytest.mark.skipif(build.reason() is not None, reason=f"no emulator here: {build.reason()}")


def windows(shape, kernel_size, *, stride=None, padding=0, dilation=1, ceil_mode=False, layout="NCHW") -> dict:
    return dict(PoolWindow(shape, kernel_size, stride, padding, ceil_mode, layout, "max_pool2d", dilation))


def averages(shape, *arguments, count_include_pad=True, **options) -> dict:
    window = windows(shape, *arguments, **options)
    del window["dilation"]
    return {**window, "count_include_pad": count_include_pad}


def calls(x, dy_of, window: dict) -> list[tuple]:
    """Each kernel on these images and windows: (name, arrays, parameters, what the reference returns); dy_of fills a shape."""
    reference, average = kernels("reference"), {k: v for k, v in window.items() if k != "dilation"}
    y, argmax = reference.max_pool2d(x, **window)
    found = [("max_pool2d", (x,), window), ("max_pool2d_dx", (dy_of(y.shape), argmax), dict(x_shape=x.shape, layout=window["layout"]))]
    if window["dilation"] == (1, 1):
        for include in (True, False):
            found += [("avg_pool2d", (x,), dict(average, count_include_pad=include)), ("avg_pool2d_dx", (dy_of(y.shape),), dict(average, x_shape=x.shape, count_include_pad=include))]
    return [(name, arrays, parameters, getattr(reference, name)(*arrays, **parameters)) for name, arrays, parameters in found]


def run(device: str, name: str, variant: str, arrays, parameters):
    """What a variant returns, as numpy's: one array, or a tuple."""
    with use(**{name: f"{device}.{variant}"}):
        found = getattr(kernels(device), name)(*(array_module(device).asarray(a) if isinstance(a, np.ndarray) else a for a in arrays), **parameters)
    return tuple(map(to_host, found)) if isinstance(found, tuple) else to_host(found)


def agree(name: str, got, want, arrays, parameters) -> bool:
    """Selections bit for bit; sums as the oracle judges them."""
    if name == "max_pool2d":
        return all(np.array_equal(g, w, equal_nan=g.dtype.kind == "f") for g, w in zip(got, want))
    return bool(oracle.judge(got, getattr(oracle.reference, name)(*arrays, **parameters), max_zero_share=1.0))


def whole(rng, shape, dtype=np.float32) -> np.ndarray:
    return rng.integers(-8, 9, shape).astype(dtype)


def test_the_variants_are_those_of_the_story_on_both_devices():
    for name, both in VARIANTS.items():
        assert variants(name, "cuda") == variants(name, "cuda-emulator") == both


@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name, variant", EVERY)
def test_the_oracle_accepts_every_variant(name, variant, dtype, device):
    report = judged(name, variant, device, dtype=dtype)
    assert report and len(report) >= 40, report.explain()
    drawn = judged(name, variant, device, dtype=dtype, cases=oracle.random_cases(name, 60, seed=2, dtype=dtype), seed=2)
    assert drawn, drawn.explain()


# Where a separable kernel cuts its part: along a row, along channels, down lines; and windows that leave gaps, or hold the whole image
SHAPES = {
    "rows of many parts": ((1, 2, 5, 700), 3, dict(stride=2, padding=1)),
    "rows of whole warps": ((2, 1, 4, 1200), 2, {}),
    "many channels": ((1, 5, 7, 70), 2, dict(layout="NHWC", stride=1)),
    "channels in layers, columns in parts": ((2, 3, 90, 40), (3, 2), dict(layout="NHWC", stride=(1, 2))),
    "three channels": ((2, 9, 11, 3), 3, dict(layout="NHWC", stride=2, padding=1)),
    "small planes": ((3, 17, 3, 3), 2, dict(stride=1)),
    "a stride larger than the window": ((2, 3, 20, 33), (2, 3), dict(stride=(5, 7))),
    "the whole image": ((3, 4, 9, 8), (9, 8), {}),
    "dilated": ((2, 3, 14, 40), 3, dict(dilation=(2, 5), stride=2)),
    "padding on four sides": ((1, 3, 8, 9), 3, dict(stride=2, padding=((1, 2), (0, 3)))),
    "an incomplete window": ((2, 2, 7, 8), 3, dict(stride=3, padding=1, ceil_mode=True)),
    "windows in the padding alone": ((1, 2, 3, 3), 2, dict(stride=1, padding=4)),
    "no images": ((0, 3, 6, 5), 2, {}),
}


@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize("shape, size, options", SHAPES.values(), ids=SHAPES)
def test_every_kind_of_part(shape, size, options, device, rng):
    x = whole(rng, shape)
    x[rng.random(shape) < 0.02] = np.nan
    x[rng.random(shape) < 0.1] = -np.inf
    for name, arrays, parameters, want in calls(x, lambda like: whole(rng, like), windows(shape, size, **options)):
        if name == "avg_pool2d":  # whose sums are of numbers
            arrays = (np.nan_to_num(x, neginf=0),)
        for variant in VARIANTS[name]:
            assert agree(name, run(device, name, variant, arrays, parameters), want, arrays, parameters), f"{name} {variant}"


@pytest.mark.parametrize("device", READY)
def test_ties_nan_and_infinities(device):
    """The first of equals in row-major order, though a column is gone down before the next."""
    nan, inf = np.nan, np.inf
    numbers = [(1, 1, 1, 1), (0, 2, 2, 0), (0, 0, 3, 3), (0, 5, 5, 5), (-0.0, 0.0, 0.0, -0.0)]
    for block in [*numbers, (nan, 5, 1, 2), (5, nan, 1, nan), (1, nan, nan, 1), (inf, 1, 1, nan), (-inf,) * 4, (-inf, -inf, -5, -inf)]:
        for dtype in (np.float32, np.float64):
            x = np.array(block, dtype).reshape(1, 1, 2, 2)
            want = kernels("reference").max_pool2d(x, **windows(x.shape, 2))
            for variant in VARIANTS["max_pool2d"]:
                y, argmax = run(device, "max_pool2d", variant, (x,), windows(x.shape, 2))
                assert y.tobytes() == want[0].tobytes() and argmax.item() == want[1].item(), (block, variant)


def lying(a) -> dict:
    """The same images in the ways they may lie: the other layout, a part of larger ones, every second one, backwards."""
    xp = np if isinstance(a, np.ndarray) else __import__("cupy")
    wide = xp.zeros(tuple(n + 3 for n in a.shape), a.dtype)
    wide[1:-2, 2:-1, 1:-2, 2:-1] = a
    return {
        "the other layout": xp.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2), "a part": wide[1:-2, 2:-1, 1:-2, 2:-1],
        "apart": xp.repeat(a, 2, 3)[..., ::2], "backwards": xp.ascontiguousarray(a[::-1, :, ::-1, ::-1])[::-1, :, ::-1, ::-1],
    }  # fmt: skip


@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize("name, variant", EVERY)
def test_inputs_in_any_memory_order(name, variant, device, rng):
    xp = array_module(device)
    for layout in ("NCHW", "NHWC"):
        x = whole(rng, (2, 3, 7, 6))
        (arrays, parameters, want), *_ = [rest for found, *rest in calls(x, lambda like: whole(rng, like), windows(x.shape, 3, stride=2, padding=1, layout=layout)) if found == name]
        for ways in zip(*(lying(xp.asarray(a)).items() for a in arrays)):
            assert agree(name, run(device, name, variant, [m for _, m in ways], parameters), want, arrays, parameters), (layout, ways[0][0])


@EMULATED
def test_numbers_at_no_multiple_of_their_size_are_copied(rng):
    room = np.zeros(4 * 2 * 36 + 1, np.uint8)
    x = room[1:].view(np.float32).reshape(1, 2, 6, 6)
    x[...] = whole(rng, x.shape)
    y, _ = run("cuda-emulator", "max_pool2d", "separable", (x,), windows(x.shape, 2))
    assert np.array_equal(y, kernels("reference").max_pool2d(x, **windows(x.shape, 2))[0])


@pytest.mark.parametrize("device", READY)
def test_the_gradient_finds_whatever_argmax_says(device, rng):
    """Also an argmax that no windows make: any place, one place for all, none; and a stride that nobody guesses."""
    shape, outputs = (2, 3, 6, 7), (2, 3, 5, 4)
    dy = whole(rng, outputs)
    for argmax in (rng.integers(-1, 42, outputs), np.full(outputs, 41), np.full(outputs, 0), np.full(outputs, -1), np.flip(np.arange(20).reshape(5, 4)) + np.zeros(outputs)):
        arrays, parameters = (dy, argmax.astype(np.int32)), dict(x_shape=shape, layout="NCHW")
        want = kernels("reference").max_pool2d_dx(*arrays, **parameters)
        for variant in VARIANTS["max_pool2d_dx"]:
            assert np.array_equal(run(device, "max_pool2d_dx", variant, arrays, parameters), want), variant


@pytest.mark.parametrize("device", READY)
def test_a_batch_of_more_than_a_launch_counts_goes_by_several(device, rng, monkeypatch):
    monkeypatch.setattr(pool2d, "MOST", 100)
    x = whole(rng, (5, 1, 6, 6))  # 36 numbers an image: two images a launch
    for name, arrays, parameters, want in calls(x, lambda like: whole(rng, like), windows(x.shape, 2)):
        for variant in VARIANTS[name]:
            assert agree(name, run(device, name, variant, arrays, parameters), want, arrays, parameters), (name, variant)
    monkeypatch.setattr(pool2d, "MOST", 30)
    with pytest.raises(ValueError, match="max_pool2d: an image has 36 numbers; the CUDA kernels count up to 30"):
        run(device, "max_pool2d", "simple", (x,), windows(x.shape, 1))


@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_ops_and_their_gradients(layout, device, rng):
    values = whole(rng, (2, 6, 6, 6))
    for pool in (F.max_pool2d, F.avg_pool2d):
        found = []
        for place in (device, "reference"):
            x = tinynet.tensor(values, device=place, requires_grad=True)
            y = pool(x, 3, stride=2, padding=1, layout=layout)
            (y * y).sum().backward()
            assert y.device == place
            found.append((y.numpy(), to_host(x.grad)))
        for got, want in zip(*found):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)  # sums of a few whole numbers over 9, in another order


# --- how a launch is cut ---------------------------------------------------------------------------------------------------


def test_parts_fit_and_cover_everything():
    """Every part of a separable kernel: within its room, no column or channel left out, no two numbers in one place."""
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(400):
        columns, inner, size, stride, dilation = (int(rng.integers(1, most)) for most in (900, 130, 12, 9, 5))
        forward, backward = pool2d.forward_part(10**6, columns, inner, size, stride, dilation), pool2d.backward_part(10**6, columns, inner, size, stride)
        for part, by in ((forward, stride), (backward, 1)):
            assert part.lines * part.pitch <= pool2d.ROOM and part.wide * part.across >= columns and part.deep * part.layers >= inner
            w, c = np.meshgrid(np.arange(part.span), np.arange(part.deep), indexing="ij")
            places = w % by * part.gap + w // by * part.deep + c
            assert len(np.unique(places)) == places.size and places.max() < part.pitch
            seen += 1
        assert forward.span == (forward.wide - 1) * stride + (size - 1) * dilation + 1
        assert backward.span >= max(sum(w <= j * stride < w + backward.wide + size - 1 for j in range(w // stride, (w + backward.wide + size) // stride + 1)) for w in range(stride))
    assert seen == 800
    assert pool2d.forward_part(10, 5, 1, 3000, 1, 1) is None, "not one window fits"


@EMULATED
def test_the_simple_kernels_take_what_does_not_fit_or_shares_nothing():
    def launched(name: str, *arrays, **parameters) -> list[str]:
        with checked() as found:
            run("cuda-emulator", name, VARIANTS[name][0], arrays, parameters)
        return [launch.kernel for launch in found.launches]

    x, long = np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 1, 2100), np.float32)
    assert launched("max_pool2d", x, **windows(x.shape, 2)) == ["max_pool2d_separable"]
    assert launched("max_pool2d", long, **windows(long.shape, (1, 2100))) == ["max_pool2d_simple"]
    assert launched("avg_pool2d", long, **averages(long.shape, (1, 2100))) == ["avg_pool2d_simple"]
    assert launched("avg_pool2d_dx", x, **averages((1, 1, 8, 8), 2), x_shape=(1, 1, 8, 8)) == ["avg_pool2d_dx_simple"]
    assert launched("avg_pool2d_dx", x, **averages((1, 1, 6, 6), 3, stride=1), x_shape=(1, 1, 6, 6)) == ["avg_pool2d_dx_separable"]


def test_division_by_a_factor_is_division():
    rng = np.random.default_rng(0)
    for d in [*range(1, 70), *(int(2**e) + k for e in range(7, 31) for k in (-1, 0, 1)), *map(int, rng.integers(1, 2**31, 200))]:
        by = divisor(d)
        assert by < 2**63, "a long long"
        for n in {0, 1, d - 1, d, d + 1, 2**31 - 1, 2**31 - 2, (2**31 - 1) // d * d, (2**31 - 1) // d * d - 1, *map(int, rng.integers(0, 2**31, 20))}:
            if 0 <= n < 2**31:
                assert n * (by % 2**32) >> (by >> 32) == n // d, (n, d)


def test_other_types_are_refused():
    x = np.ones((1, 1, 4, 4), np.float16)
    for name in ("max_pool2d", "avg_pool2d"):
        with pytest.raises(TypeError, match=f"{name}: float16 has no CUDA kernel; use float32 or float64"):
            getattr(kernels("cuda-emulator"), name)(x, **(windows if name == "max_pool2d" else averages)(x.shape, 2))
    with pytest.raises(TypeError, match="max_pool2d_dx: argmax must be int32, as max_pool2d returns it; got int64"):
        kernels("cuda-emulator").max_pool2d_dx(np.ones((1, 1, 2, 2), np.float32), np.zeros((1, 1, 2, 2), np.int64), x_shape=(1, 1, 4, 4), layout="NCHW")


# --- checked mode ----------------------------------------------------------------------------------------------------------


@EMULATED
@pytest.mark.parametrize("name, variant", EVERY)
def test_every_variant_is_clean_in_checked_mode(name, variant, rng):
    """No race, nothing out of bounds, no barrier missed: in random orders of threads and blocks, and at every kind of edge."""
    for seed, (shape, size, options) in enumerate(SHAPES.values()):
        x = whole(rng, shape[:1] + tuple(min(n, 150) for n in shape[1:]))
        for found, arrays, parameters, want in calls(x, lambda like: whole(rng, like), windows(x.shape, size, **options)):
            if found == name:
                with checked(seed):
                    got = run("cuda-emulator", name, variant, arrays, parameters)
                assert agree(name, got, want, arrays, parameters)


@EMULATED
def test_the_order_of_threads_changes_no_bit(rng):
    x = rng.standard_normal((2, 3, 9, 10)).astype(np.float32)
    for name, arrays, parameters, _ in calls(x, lambda like: rng.standard_normal(like).astype(np.float32), windows(x.shape, 3, stride=1)):
        bits = set()
        for seed in (1, 2, 3):
            with checked(seed):
                got = run("cuda-emulator", name, VARIANTS[name][0], arrays, parameters)
            bits.add(b"".join(a.tobytes() for a in (got if isinstance(got, tuple) else (got,))))
        assert len(bits) == 1, name
