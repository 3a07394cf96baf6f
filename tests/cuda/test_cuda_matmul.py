"""matmul on CUDA's devices: the oracle accepts every variant, in every shape and memory layout. On a GPU too, where there is one."""

from __future__ import annotations

from itertools import product as product_of

import numpy as np
import pytest
from ready import READY, judged

import tinynet
from tinynet import functional as F
from tinynet.devices import array_module, to_host
from tinynet.dispatch import kernels, use, variants
from tinynet.kernels.cuda import matmul
from tinynet.kernels.cuda.sums import split_of
from tinynet.kernels.cuda.emulator import build
from tinynet.kernels.cuda.emulator.checked import checked

VARIANTS = ["vectors", "naive", "tiles", "registers", "async"]  # the default first
FAST = ["vectors", "async"]


def whole(rng, shape, dtype=np.float32) -> np.ndarray:
    return rng.integers(-8, 9, shape).astype(dtype)


def product(device: str, variant: str, a, b):
    with use(matmul=f"{device}.{variant}"):
        return kernels(device).matmul(a, b)


def test_the_variants_are_those_of_the_story_on_both_devices():
    assert variants("matmul", "cuda") == variants("matmul", "cuda-emulator") == VARIANTS


@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_oracle_accepts_every_variant(variant, dtype, device):
    large = device == "cuda" or (variant, dtype) == ("vectors", "float32")  # the emulator sums 100,000 terms once: it takes long
    report = judged("matmul", variant, device, dtype=dtype, cases=lambda case: large or "large" not in case.label)
    assert report, report.explain()
    assert len(report) > 20


# Around where blocks are cut: 8 x 32, 16 x 16, 64 x 64, and steps of 8 and 16 terms; sizes of which four divide all or none.
SHAPES = [(1, 1, 1), (8, 16, 32), (9, 17, 33), (64, 8, 64), (65, 9, 67), (64, 24, 128), (3, 100, 5), (100, 1, 100), (68, 12, 60)]


def layouts(m):
    """The same matrix in the ways it may lie: by rows, by columns, a part of a larger one, every second element, backwards."""
    xp = np if isinstance(m, np.ndarray) else __import__("cupy")
    wide = xp.zeros((m.shape[0] + 3, m.shape[1] + 8), m.dtype)
    wide[2:-1, 4:-4] = m
    shifted = xp.zeros((m.shape[0], m.shape[1] + 1), m.dtype)
    shifted[:, 1:] = m
    return {
        "rows": m, "columns": xp.ascontiguousarray(m.T).T, "part": wide[2:-1, 4:-4], "shifted": shifted[:, 1:],
        "apart": xp.repeat(xp.repeat(m, 2, 0), 3, 1)[::2, ::3], "backwards": xp.ascontiguousarray(m[::-1, ::-1])[::-1, ::-1],
    }  # fmt: skip


@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_in_every_layout(shape, device, rng):
    i, t, j = shape
    xp = array_module(device)
    a, b = whole(rng, (i, t)), whole(rng, (t, j))
    want = a @ b
    rights = layouts(xp.asarray(b))
    for number, (left_name, left) in enumerate(layouts(xp.asarray(a)).items()):
        for turn in range(3):  # half of the pairs: with each shape others
            right_name = list(rights)[(number + 2 * turn + i) % len(rights)]
            for variant in FAST if turn else VARIANTS:
                got = to_host(product(device, variant, left, rights[right_name]))
                assert np.array_equal(got, want), f"{variant}: {i} x {t} by {left_name}, {t} x {j} by {right_name}"


@pytest.mark.parametrize("device", READY)
def test_large_blocks_as_a_gpu_gets_them(device, rng, monkeypatch):
    monkeypatch.setattr(matmul, "ENOUGH_BLOCKS", 1)
    xp = array_module(device)
    for shape in ((200, 40, 136), (130, 9, 131)):
        a, b = whole(rng, shape[:2]), whole(rng, shape[1:])
        assert matmul.tile_of((1, shape[0], shape[2])) == 128
        for variant in FAST:
            assert np.array_equal(to_host(product(device, variant, xp.asarray(a), xp.asarray(b))), a @ b), variant


@pytest.mark.parametrize("device", READY)
def test_batches_in_any_order_and_shared_by_strides_of_zero(device, rng):
    xp = array_module(device)
    a, b = xp.asarray(whole(rng, (2, 3, 6, 8))), xp.asarray(whole(rng, (2, 3, 8, 4)))
    for variant in VARIANTS:
        for left, right in ((a, b), (a.swapaxes(0, 1), b.swapaxes(0, 1)), (a[::-1], b[::-1]), (a, xp.broadcast_to(b[0, 0], b.shape)), (a[:, :1], b[:, :1])):
            got = product(device, variant, left, right)
            assert np.array_equal(to_host(got), to_host(left) @ to_host(right)), variant


@pytest.mark.parametrize("device", READY)
def test_few_blocks_of_many_terms_are_split_and_give_the_same_bits_again(device, rng):
    xp = array_module(device)
    for left, right in (((10, 1000), (1000, 12)), ((66, 509), (509, 7)), ((2, 3, 5, 300), (2, 3, 300, 8))):
        a, b = whole(rng, left), whole(rng, right)
        reals = [xp.asarray(rng.standard_normal(m.shape).astype(np.float32)) for m in (a, b)]
        for variant in FAST:
            assert np.array_equal(to_host(product(device, variant, xp.asarray(a), xp.asarray(b))), a @ b), f"{left} by {right}"
            assert np.array_equal(*(to_host(product(device, variant, *reals)) for _ in range(2)))


def test_how_sums_are_split():
    assert split_of(1000, 8, 1, 128) == (7, 144), "at least 128 terms each"
    assert split_of(1000, 8, 64, 128) == (4, 256), "256 blocks are enough"
    assert split_of(255, 8, 1, 128) == (1, 256) and split_of(10**6, 8, 200, 128) == (1, 10**6)
    for terms, step, blocks, least in product_of(range(1, 400, 7), (1, 8, 16), (1, 5, 100, 300), (1, 64)):
        parts, each = split_of(terms, step, blocks, least)
        assert each % step == 0 and (parts - 1) * each < terms <= parts * each and (parts == 1 or parts * blocks <= 256), "no part is empty"


@pytest.mark.parametrize("device", READY)
def test_the_op_and_its_gradients(device, rng):
    x, weight, dy = whole(rng, (5, 12)), whole(rng, (8, 12)), whole(rng, (5, 8))
    x, weight = (tinynet.tensor(m, device=device, requires_grad=True) for m in (x, weight))
    y = F.linear(x, weight)
    y.backward(array_module(device).asarray(dy))
    assert y.device == device and np.array_equal(y.numpy(), x.numpy() @ weight.numpy().T)
    assert np.array_equal(to_host(x.grad), dy @ weight.numpy()) and np.array_equal(to_host(weight.grad), dy.T @ x.numpy())


def test_the_form_is_the_one_that_memory_allows():
    def form(a, b, columns=8, start=0):
        c = np.empty(a.shape[1] * columns + start, np.float32)[start:].reshape(1, a.shape[1], columns)
        return tuple(matmul.form_of(a, b, c).values())

    a, b = np.empty((1, 8, 8), np.float32), np.empty((1, 8, 8), np.float32)
    across = lambda m: m.swapaxes(1, 2)
    assert form(a, b) == (1, 0, 1) and form(across(a), b) == (0, 0, 1) and form(a, across(b)) == (1, 1, 1) and form(across(a), across(b)) == (0, 1, 1)
    assert form(a, b, columns=7)[2] == 0, "c's rows start anywhere"
    assert form(a, b, start=1)[2] == 0 and form(a, b, start=4)[2] == 1, "c starts anywhere"
    assert form(np.empty((1, 8, 9), np.float32)[:, :, :8], b)[2] == 0, "a's rows start anywhere"
    assert form(np.empty((1, 8, 12), np.float32)[:, :, 1:9], b)[2] == 0, "a starts anywhere"
    assert form(np.empty((1, 8, 12), np.float32)[:, :, 4:], b)[2] == 1


def test_other_types_are_refused():
    a = np.ones((2, 2), np.float16)
    with pytest.raises(TypeError, match="matmul: float16 has no CUDA kernel; use float32 or float64"):
        matmul.matmul_vectors(a, a, out=np.empty((2, 2), np.float16))


@pytest.mark.skipif(build.reason() is not None, reason=f"no emulator here: {build.reason()}")
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_clean_in_checked_mode(variant, rng):
    """No race, nothing out of bounds, no barrier missed: in random orders of threads and blocks, and at every kind of edge."""
    for seed, (i, t, j) in enumerate([(64, 24, 64), (66, 40, 50), (65, 9, 67), (3, 1, 130), (5, 300, 6)]):
        for orders in ("CC", "FF") if seed % 2 else ("CF", "FC"):
            a, b = (np.asarray(whole(rng, shape), order=order) for shape, order in zip(((i, t), (t, j)), orders))
            with checked(seed):
                got = product("cuda-emulator", variant, a, b)
            assert np.array_equal(got, a @ b)
