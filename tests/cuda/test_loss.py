"""softmax_cross_entropy on CUDA's devices: the oracle accepts every variant, for any number of classes, however arrays lie."""

from __future__ import annotations

import numpy as np
import pytest
from ready import READY, judged

import tinynet
from tinynet import functional as F
from tinynet import oracle
from tinynet.devices import array_module, to_host
from tinynet.dispatch import find, variants
from tinynet.kernels.cuda import loss
from tinynet.kernels.cuda.emulator import build
from tinynet.kernels.cuda.emulator.checked import checked

VARIANTS = ["fitting", "simple", "warp", "block"]  # the default first
emulated = pytest.mark.skipif(build.reason() is not None, reason=f"no emulator here: {build.reason()}")


def run(device: str, variant: str, logits, target):
    """loss and dlogits on the host. What a kernel leaves out stays -1, which is neither a loss nor a gradient of these tests."""
    xp = array_module(device)
    out = xp.full(len(logits), -1, logits.dtype), xp.full(logits.shape, -1, logits.dtype)
    find("softmax_cross_entropy", f"{device}.{variant}").function(logits, target, out=out)
    return tuple(map(to_host, out))


def rows(rng, count: int, classes: int, dtype=np.float32):
    return (3 * rng.standard_normal((count, classes))).astype(dtype), rng.integers(0, classes, count)


def test_the_variants_are_those_of_the_story_on_both_devices():
    assert variants("softmax_cross_entropy", "cuda") == variants("softmax_cross_entropy", "cuda-emulator") == VARIANTS


@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_oracle_accepts_every_variant(variant, dtype, device):
    report = judged("softmax_cross_entropy", variant, device, dtype=dtype)
    assert report, report.explain()
    assert len(report) > 10


# Around where rows are cut: 32 lanes, 8 numbers in the registers of each lane or of each thread of a block.
CLASSES = [1, 2, 3, 8, 9, 10, 31, 33, 100, 255, 256, 257, 511, 2048, 2049, 2400]


@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize("classes", CLASSES)
def test_any_number_of_classes(classes, device, rng):
    xp = array_module(device)
    for count in (1, 7, 37) if classes < 100 else (3,):
        logits, target = rows(rng, count, classes)
        target[0] = classes - 1
        want = oracle.reference.softmax_cross_entropy(logits, target)
        for variant in VARIANTS:
            for got, bounded in zip(run(device, variant, xp.asarray(logits), xp.asarray(target)), want, strict=True):
                oracle.assert_matches(got, bounded, max_zero_share=1 if classes == 1 else 0.9, name=f"{variant}, {count} x {classes}")


@pytest.mark.parametrize("device", READY)
def test_a_row_gets_the_same_bits_whatever_is_around_it(device, rng):
    xp = array_module(device)
    for classes in (10, 40, 300):
        logits, target = map(xp.asarray, rows(rng, 70, classes))
        for variant in VARIANTS:
            together = run(device, variant, logits, target)
            for some in (slice(0, 70), slice(5, 6), slice(9, 42)):
                for got, want in zip(run(device, variant, logits[some], target[some]), together, strict=True):
                    assert np.array_equal(got, want[some]), f"{variant}, {classes} classes, rows {some}"


def layouts(logits, target):
    """The same numbers in the ways they may lie."""
    xp = np if isinstance(logits, np.ndarray) else __import__("cupy")
    count, classes = logits.shape
    wide, apart = xp.zeros((count + 1, classes + 5), logits.dtype), xp.zeros((count, 2), target.dtype)
    wide[1:, 3:-2], apart[:, 1] = logits, target
    found = {
        "by columns, narrow classes": (xp.asarray(logits.T.copy()).T, target.astype(xp.int32)),
        "a part of others": (wide[1:, 3:-2], apart[:, 1]),
        "every second, backwards": (xp.repeat(logits[::-1, ::-1], 2, 1)[::-1, ::-2], target[::-1].copy()[::-1]),
    }
    if xp is np:  # no GPU reads numbers that don't lie at multiples of their size
        rows_apart, odd = np.zeros((count, 4 * classes + 3), np.uint8), np.zeros(8 * count + 1, np.uint8)
        rows_apart[:, : 4 * classes], odd[1:] = logits.view(np.uint8), target.view(np.uint8)
        found["at odd addresses"] = rows_apart[:, : 4 * classes].view(np.float32), odd[1:].view(np.int64)
    return found


@pytest.mark.parametrize("device", READY)
def test_any_layout_gives_the_same_bits(device, rng):
    xp = array_module(device)
    for classes in (10, 70):
        logits, target = map(xp.asarray, rows(rng, 9, classes))
        for variant in VARIANTS:
            want = run(device, variant, logits, target)
            for how, arrays in layouts(logits, target).items():
                assert all(map(np.array_equal, run(device, variant, *arrays), want)), f"{variant}, {classes} classes, {how}"
    same, target = xp.broadcast_to(logits[:1], logits.shape), xp.broadcast_to(target[:1], target.shape)
    one = run(device, "fitting", logits[:1], target[:1])
    assert all((got == alone).all() for got, alone in zip(run(device, "fitting", same, target), one, strict=True)), "strides of zero"


@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_nan_and_infinities_spoil_their_own_row_alone(variant, device, rng):
    xp = array_module(device)
    for classes in (10, 300):
        logits, target = rows(rng, 6, classes)
        whole = [0, 4, 5]
        want = oracle.reference.softmax_cross_entropy(logits[whole], target[whole])
        logits[1, 3], logits[2, :], logits[3, 4] = np.nan, -np.inf, np.inf
        for got, bounded in zip(run(device, variant, xp.asarray(logits), xp.asarray(target)), want, strict=True):
            assert np.isnan(got[1:4]).all()
            oracle.assert_matches(got[whole], bounded, name=variant)


@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_class_of_minus_infinity_has_no_probability(variant, device, rng):
    xp = array_module(device)
    for classes in (10, 300):
        logits, target = rows(rng, 5, classes)
        target[:] = 3
        want = oracle.reference.softmax_cross_entropy(logits[:, 2:], target - 2)
        logits[:, :2] = -np.inf
        losses, dlogits = run(device, variant, xp.asarray(logits), xp.asarray(target))
        assert (dlogits[:, :2] == 0).all()
        oracle.assert_matches(losses, want[0], name=variant), oracle.assert_matches(dlogits[:, 2:], want[1], name=variant)


@pytest.mark.parametrize("device", READY)
def test_a_batch_of_nothing(device):
    xp = array_module(device)
    for classes in (0, 5):
        for variant in VARIANTS:
            got = run(device, variant, xp.empty((0, classes), np.float32), xp.empty(0, np.int64))
            assert [a.shape for a in got] == [(0,), (0, classes)]


@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_op_and_its_gradient(reduction, device, rng):
    logits, target = rows(rng, 6, 10)
    dy = rng.standard_normal(6).astype(np.float32) if reduction == "none" else np.float32(1)
    x = tinynet.tensor(logits, device=device, requires_grad=True)
    y = F.cross_entropy(x, tinynet.tensor(target, device=device), reduction=reduction)
    y.backward(array_module(device).asarray(dy))
    assert y.device == device
    oracle.assert_matches(y.numpy(), oracle.reference.cross_entropy(logits, target, reduction=reduction))
    oracle.assert_matches(to_host(x.grad), oracle.reference.cross_entropy_grad(dy, logits, target, reduction=reduction))


def test_lanes_are_as_many_as_hold_the_classes():
    assert [loss.lanes_for(n) for n in (1, 2, 3, 8, 9, 10, 16, 17, 32, 33, 256)] == [1, 2, 4, 8, 16, 16, 16, 32, 32, 32, 32]


@emulated
@pytest.mark.parametrize("classes, kernel, blocks", [(1, "warp", 1), (10, "warp", 5), (17, "warp", 9), (256, "warp", 9), (257, "block", 70)])
def test_the_default_fits_the_row(classes, kernel, blocks, rng):
    with checked() as found:
        run("cuda-emulator", "fitting", *rows(rng, 70, classes))
    assert [(launch.kernel, launch.grid) for launch in found.launches] == [(f"softmax_cross_entropy_{kernel}", (blocks, 1, 1))]


@emulated
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_clean_in_checked_mode(variant, rng):
    """No race, nothing out of bounds, no lane or barrier missed: in random orders of threads and blocks, and at every kind of edge."""
    for seed, (count, classes) in enumerate([(1, 1), (33, 3), (50, 10), (9, 40), (2, 257), (2, 2100)]):
        logits, target = rows(rng, count, classes)
        if seed % 2:
            logits, target = np.asfortranarray(logits), np.repeat(target, 2)[::2]
        with checked(seed):
            watched = run("cuda-emulator", variant, logits, target)
        for got, bounded in zip(watched, oracle.reference.softmax_cross_entropy(logits, target), strict=True):
            oracle.assert_matches(got, bounded, max_zero_share=1 if classes == 1 else 0.9)


def test_other_types_are_refused():
    logits, target = np.ones((2, 3), np.float16), np.zeros(2, np.int64)
    with pytest.raises(TypeError, match="softmax_cross_entropy: float16 has no CUDA kernel; use float32 or float64"):
        run("cuda-emulator", "fitting", logits, target)
