"""Pooling: cpu and reference hold against the contract's definition, written out in plain loops, and against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from geometries import Pooling, from_nchw, has_windows_in_the_padding_alone, pooling, to_nchw
from kernels_by_hand import assert_honest, assert_same, reals, run, truth, whole_numbers

from tinynet import oracle
from tinynet.geometry import nchw

SEEDS = range(100)
DTYPES = (np.float32, np.float64)
DEVICES = ("cpu", "reference")
PATHS = ("cpu.simd", "cpu.loops", "reference")  # of max_pool2d

NAMED = {
    "one pixel": Pooling((1, 1, 1, 1), dict(kernel_size=1)),
    "one channel": Pooling((2, 1, 5, 6), dict(kernel_size=(2, 3), stride=1)),
    "odd size, floor": Pooling((2, 3, 7, 5), dict(kernel_size=2)),
    "odd size, ceil": Pooling((2, 3, 7, 5), dict(kernel_size=2, ceil_mode=True)),
    "same": Pooling((1, 7, 5, 3), dict(kernel_size=2, stride=2, padding="same", layout="NHWC")),
    "windows in the padding alone": Pooling((1, 2, 3, 3), dict(kernel_size=2, stride=1, padding=4)),
    "windows below the image alone": Pooling((1, 2, 3, 3), dict(kernel_size=2, stride=2, padding=((0, 5), (0, 5)), ceil_mode=True)),
    "no images": Pooling((0, 3, 6, 5), dict(kernel_size=2)),
    "no images, NHWC": Pooling((0, 6, 5, 3), dict(kernel_size=2, layout="NHWC")),
    "stride larger than the kernel": Pooling((2, 2, 9, 10), dict(kernel_size=2, stride=(3, 4))),
    "the article's": Pooling((2, 32, 30, 30), dict(kernel_size=2)),
}


def cases(average: bool):
    named = {name: Pooling(p.x_shape, {**p.options, "count_include_pad": i % 2 == 0}) if average else p for i, (name, p) in enumerate(NAMED.items())}
    return [pytest.param(p, id=name) for name, p in named.items()] + [pytest.param(pooling(seed, average), id=f"seed {seed}") for seed in SEEDS]


def windows(size: int, e: int, s: int, d: int, pad, ceil_mode: bool):
    """Along one axis: for each output, the places of its window (those outside of the image too)."""
    places = [[start + u * d for u in range(e)] for start in range(-pad[0], size + pad[1], s)]
    complete = [window for window in places if window[-1] < size + pad[1]]
    rows_are_left = complete[-1][-1] < size + pad[1] - 1
    more = [window for window in places[len(complete) :] if window[0] < size]
    return complete + more[:1] if ceil_mode and rows_are_left else complete


def defined(x, window, pick):
    """The contract's definition in plain loops: `pick(inside, padded, values)` for each window of each plane.

    inside: the places (h, w) that lie in the image; padded: how many lie in the padded image.
    """
    images = to_nchw(x, window["layout"])
    n, c, h, w = images.shape
    (top, bottom), (left, right) = window["padding"]
    axes = [
        windows(size, e, s, d, p, window["ceil_mode"])
        for size, e, s, d, p in zip((h, w), window["kernel_size"], window["stride"], window.get("dilation", (1, 1)), window["padding"])
    ]
    y = np.empty((n, c, len(axes[0]), len(axes[1])), x.dtype)
    extra = np.empty(y.shape, np.int32)
    for i, rows in enumerate(axes[0]):
        for j, columns in enumerate(axes[1]):
            inside = [(a, b) for a in rows for b in columns if 0 <= a < h and 0 <= b < w]
            padded = sum(-top <= a < h + bottom and -left <= b < w + right for a in rows for b in columns)
            for plane in np.ndindex(n, c):
                y[plane][i, j], extra[plane][i, j] = pick(inside, padded, images[plane])
    return from_nchw(y, window["layout"]), from_nchw(extra, window["layout"])


def largest(inside, padded, image):
    best, place = -np.inf, -1
    for a, b in inside:
        value = image[a, b]
        if place < 0 or value > best or (np.isnan(value) and not np.isnan(best)):
            best, place = value, a * image.shape[1] + b
    return best, place


def with_ties_and_specials(rng, shape, dtype):
    """Few different values, so that windows tie, and some NaN and infinities."""
    x = rng.integers(-2, 3, shape).astype(dtype)
    x[rng.random(shape) < 0.1] = -np.inf
    x[rng.random(shape) < 0.05] = np.nan
    x[rng.random(shape) < 0.05] = np.inf
    return x


# --- max-pooling: selections, so bit for bit ---------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", cases(average=False))
def test_max_pooling_is_its_definition(case, path, rng):
    window = case.window()
    for dtype, fill in ((np.float32, with_ties_and_specials), (np.float64, reals)):
        x = fill(rng, case.x_shape, dtype)
        y, argmax = run("max_pool2d", path, x, **window)
        want, places = defined(x, window, largest)
        assert_same(y, want, f"{path}: {case}")
        assert_same(argmax, places, f"{path}, argmax: {case}")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("case", cases(average=False))
def test_max_pooling_gives_the_gradient_to_the_winners(case, dtype, rng):
    window = case.window()
    x = with_ties_and_specials(rng, case.x_shape, dtype)
    y, argmax = run("max_pool2d", "reference", x, **window)
    parameters = dict(x_shape=x.shape, layout=window["layout"])
    whole, dy = whole_numbers(rng, y.shape, dtype), reals(rng, y.shape, dtype)

    want = np.zeros(to_nchw(x, window["layout"]).shape, dtype)
    flat = want.reshape(*want.shape[:2], want.shape[2] * want.shape[3])
    for index, place in np.ndenumerate(to_nchw(argmax, window["layout"])):
        if place >= 0:
            flat[(*index[:2], place)] += to_nchw(whole, window["layout"])[index]
    for device in DEVICES:
        assert_same(run("max_pool2d_dx", device, whole, argmax, **parameters), from_nchw(want, window["layout"]), f"{device}: {case}")
        assert_honest("max_pool2d_dx", device, dy, argmax, **parameters)


@pytest.mark.parametrize("case", cases(average=False))
def test_max_pooling_agrees_with_torch(case, rng):
    """On different values: torch, too, takes the first of equals, but the last NaN."""
    window = case.window()
    if window["padding"] != ((0, 0), (0, 0)):  # torch has no ceil_mode with padding on four sides
        window["ceil_mode"] = False
    x = rng.permutation(np.prod(case.x_shape, dtype=int)).reshape(case.x_shape).astype(np.float64)
    (top, bottom), (left, right) = window["padding"]
    leaf = torch.tensor(to_nchw(x, window["layout"]), requires_grad=True)
    padded = torch.nn.functional.pad(leaf, (left, right, top, bottom), value=-np.inf)
    theirs = torch.nn.functional.max_pool2d(padded, window["kernel_size"], window["stride"], dilation=window["dilation"], ceil_mode=window["ceil_mode"])
    y, argmax = run("max_pool2d", "reference", x, **window)
    assert_same(to_nchw(y, window["layout"]), theirs.detach().numpy(), str(case))

    dy = np.where(argmax >= 0, whole_numbers(rng, y.shape, np.float64), 0)
    theirs.backward(torch.tensor(to_nchw(dy, window["layout"])))
    ours = run("max_pool2d_dx", "reference", dy, argmax, x_shape=x.shape, layout=window["layout"])
    assert_same(to_nchw(ours, window["layout"]), leaf.grad.numpy(), str(case))


@pytest.mark.parametrize("device", PATHS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_max_pooling_at_ties_nan_and_minus_infinity(layout, device):
    window = dict(kernel_size=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)), dilation=(1, 1), ceil_mode=False, layout=layout)
    nan, inf = np.nan, np.inf
    blocks = {  # a window in row-major order: what wins, and which of the four
        (1, 1, 1, 1): (1, 0),
        (0, 2, 2, 0): (2, 1),
        (0, 0, 3, 3): (3, 2),
        (nan, 5, 1, 2): (nan, 0),
        (5, nan, 1, nan): (nan, 1),
        (inf, 1, 1, nan): (nan, 3),
        (-inf, -inf, -inf, -inf): (-inf, 0),
        (-inf, -inf, -5, -inf): (-5, 2),
        (-0.0, 0.0, 0.0, -0.0): (0, 0),
    }
    for block, (value, place) in blocks.items():
        for dtype in DTYPES:
            x = from_nchw(np.array(block, dtype).reshape(1, 1, 2, 2), layout)
            y, argmax = run("max_pool2d", device, x, **window)
            assert_same(y.reshape(()), np.array(value, dtype), f"{block}")
            assert argmax.item() == place, f"{block}: {argmax.item()}"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_window_in_the_padding_alone_is_minus_infinity_and_takes_no_gradient(layout, device):
    case = Pooling((1, 2, 2, 1) if layout == "NHWC" else (1, 1, 2, 2), dict(kernel_size=1, stride=1, padding=1, layout=layout))
    x = np.full(case.x_shape, -np.inf, np.float32)
    y, argmax = run("max_pool2d", device, x, **case.window())
    assert (y == -np.inf).all()
    assert argmax.reshape(4, 4).tolist() == [[-1, -1, -1, -1], [-1, 0, 1, -1], [-1, 2, 3, -1], [-1, -1, -1, -1]]
    dx = run("max_pool2d_dx", device, np.ones_like(y), argmax, x_shape=x.shape, layout=layout)
    assert_same(dx, np.ones_like(x))


# --- average-pooling ---------------------------------------------------------------------------------------


def average_calls(case: Pooling, x, dy):
    window = case.window()
    return [("avg_pool2d", (x,), window), ("avg_pool2d_dx", (dy,), dict(window, x_shape=x.shape))]


def averaged_shape(case: Pooling):
    window = case.window()
    return defined(np.zeros(case.x_shape, np.float32), window, lambda *_: (0, 0))[0].shape


@pytest.mark.parametrize("case", cases(average=True))
def test_the_truth_of_average_pooling_is_its_definition(case, rng):
    window = case.window()
    include = window["count_include_pad"]

    def mean(inside, padded, image):
        count = padded if include else len(inside)
        return sum(image[place] for place in inside) / max(count, 1), 0

    x = reals(rng, case.x_shape, np.float64)
    oracle.assert_matches(defined(x, window, mean)[0], truth("avg_pool2d", x, **window), name=str(case), max_zero_share=1.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("case", cases(average=True))
def test_the_oracle_accepts_average_pooling(case, dtype, rng):
    x, dy = reals(rng, case.x_shape, dtype), reals(rng, averaged_shape(case), dtype)
    for name, arrays, parameters in average_calls(case, x, dy):
        for device in DEVICES:
            assert_honest(name, device, *arrays, **parameters)


@pytest.mark.parametrize("case", cases(average=True))
def test_the_truth_of_the_gradient_is_the_transpose_of_the_forwards(case, rng):
    """<dy, A x> = <A' dy, x> for the linear map A that average-pooling is: no second definition is needed.

    Exactly, in whole numbers: x and dy are multiples of the product of all counts that a window can have."""
    window = case.window()
    counts = np.lcm.reduce(np.arange(1, window["kernel_size"][0] * window["kernel_size"][1] + 1))
    x = whole_numbers(rng, case.x_shape, np.float64) * counts
    dy = whole_numbers(rng, averaged_shape(case), np.float64) * counts
    (name, _, _), (name_dx, _, window_dx) = average_calls(case, x, dy)
    for device in DEVICES:
        y, dx = run(name, device, x, **window), run(name_dx, device, dy, **window_dx)
        assert (dy * y).sum() == (dx * x).sum()


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("ceil_mode", [True, False])
@pytest.mark.parametrize("kernel,stride,padding", [(2, 2, 0), (3, 2, 1), ((3, 2), (2, 3), (1, 0)), (4, 3, 2), ((1, 4), 1, (0, 2))], ids=str)
def test_torchs_average_pooling_is_accepted_by_the_same_truths(kernel, stride, padding, ceil_mode, include, rng):
    case = Pooling((2, 3, 8, 7), dict(kernel_size=kernel, stride=stride, padding=padding, ceil_mode=ceil_mode, count_include_pad=include))
    x, dy = reals(rng, case.x_shape, np.float64), reals(rng, averaged_shape(case), np.float64)
    leaf = torch.tensor(x, requires_grad=True)
    theirs = torch.nn.functional.avg_pool2d(leaf, kernel, stride, padding, ceil_mode, include)
    theirs.backward(torch.tensor(dy))
    for (name, arrays, parameters), got in zip(average_calls(case, x, dy), (theirs.detach().numpy(), leaf.grad.numpy())):
        oracle.assert_matches(got, truth(name, *arrays, **parameters), name=f"{name}: {case}")


# --- both --------------------------------------------------------------------------------------------------


def test_the_seeds_reach_every_case():
    drawn = [pooling(seed) for seed in SEEDS]
    wanted = {
        "ceil_mode": lambda p, w: w["ceil_mode"],
        "same": lambda p, w: p.options["padding"] == "same",
        "unequal sides": lambda p, w: any(a != b for a, b in w["padding"]),
        "dilation": lambda p, w: max(w["dilation"]) > 1,
        "overlapping windows": lambda p, w: any(s < e for s, e in zip(w["stride"], w["kernel_size"])),
        "gaps between windows": lambda p, w: any(s > e for s, e in zip(w["stride"], w["kernel_size"])),
        "windows in the padding alone": lambda p, w: has_windows_in_the_padding_alone(p),
        "an empty batch": lambda p, w: p.x_shape[0] == 0,
        "NHWC": lambda p, w: w["layout"] == "NHWC",
        "one row or column": lambda p, w: 1 in nchw(p.x_shape, w["layout"])[2:],
    }
    missing = [name for name, has in wanted.items() if sum(has(p, p.window()) for p in drawn) < 3]
    assert not missing


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_memory_layout_of_the_inputs_does_not_matter(layout, device, rng):
    from tinynet.dispatch import kernels

    k = kernels(device)
    x = from_nchw(whole_numbers(rng, (2, 3, 7, 6), np.float32), layout)
    case = Pooling(x.shape, dict(kernel_size=(2, 3), stride=2, padding=1, layout=layout))
    strided, reversed_x, fortran = np.repeat(x, 2, axis=3)[..., ::2], np.ascontiguousarray(x[:, ::-1])[:, ::-1], np.asfortranarray(x)
    y, argmax = k.max_pool2d(x, **case.window())
    average = Pooling(x.shape, {**case.options, "count_include_pad": True}).window()
    for form in (strided, reversed_x, fortran):
        got = k.max_pool2d(form, **case.window())
        assert_same(got[0], y)
        assert_same(got[1], argmax)
        assert_same(k.avg_pool2d(form, **average), k.avg_pool2d(x, **average))
    dx = k.max_pool2d_dx(y, argmax, x_shape=x.shape, layout=layout)
    assert_same(k.max_pool2d_dx(np.asfortranarray(y), np.asfortranarray(argmax), x_shape=x.shape, layout=layout), dx)
    assert_same(k.avg_pool2d_dx(np.asfortranarray(y), x_shape=x.shape, **average), k.avg_pool2d_dx(y, x_shape=x.shape, **average))


def test_places_in_a_plane_are_exact_beyond_what_float32_counts():
    x = np.zeros((1, 1, 4100, 4097), np.float32)
    place = 4098 * 4097 + 4095  # odd, and more than 2^24
    x.ravel()[place] = 1
    y, argmax = run("max_pool2d", "cpu", x, kernel_size=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)), dilation=(1, 1), ceil_mode=False, layout="NCHW")
    assert argmax.ravel()[y.argmax()] == place
