"""Compiled convolutions whose large weights serve few pixels: products with the weights as they lie, which give the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
from kernels_by_hand import assert_same, whole_numbers
from trainings import training
from whole_networks import in_whole_numbers, kernels, network_of, results, same_bits

import tinynet
from tinynet import functional as F
from tinynet import optim
from tinynet.kernels.cpu import threads, tiles
from tinynet.kernels.cpu.fuse import FEW_PIXELS
from tinynet.nn import Conv2d, Flatten, Linear, MaxPool2d, Module, ReLU, Sequential


class Residual(Module):
    """A large convolution with another branch added to it."""

    def __init__(self):
        self.first, self.middle, self.last = Conv2d(8, 110, 3, padding=1), Conv2d(110, 110, 3, padding=1), Conv2d(110, 6, 1)

    def forward(self, x):
        h = F.relu(self.first(x))
        return self.last(F.relu(self.middle(h) + h))


class Branches(Module):
    """Two large convolutions of one value, whose gradient is the sum of what both give."""

    def __init__(self):
        self.first, self.left, self.right = Conv2d(8, 110, 1), Conv2d(110, 104, 3, padding=1), Conv2d(110, 104, 3, padding=1)

    def forward(self, x):
        h = F.relu(self.first(x))
        return self.left(h) + self.right(h)


# name -> (layers, the shape of an image, images, how many convolutions are im2col)
NETWORKS = {
    "padding, and none": (lambda: Sequential(Conv2d(120, 104, 3, padding=1), ReLU(), Conv2d(104, 130, 3), ReLU(), Flatten(), Linear(130 * 6, 4)), (120, 4, 5), 2, 2),
    "one image of many pixels": (lambda: Sequential(Conv2d(100, 112, 3, padding=1), ReLU()), (100, 11, 11), 1, 1),
    "strides and dilations": (lambda: Sequential(Conv2d(90, 100, (3, 4), stride=(2, 3), dilation=(1, 2), padding=((2, 1), (0, 3)))), (90, 7, 10), 3, 1),
    "windows of nothing but padding": (lambda: Sequential(Conv2d(110, 104, 3, padding=((3, 0), (1, 4)))), (110, 2, 3), 2, 1),
    "1 x 1, no bias": (lambda: Sequential(Conv2d(330, 310, 1, bias=False), ReLU()), (330, 3, 2), 4, 1),
    "one pixel, few outputs": (lambda: Sequential(Conv2d(2300, 5, 3)), (2300, 3, 3), 1, 1),
    "a residual": (Residual, (8, 3, 4), 3, 1),
    "two branches": (Branches, (8, 3, 4), 3, 2),
    "pooling behind it": (lambda: Sequential(Conv2d(104, 110, 3, padding=1), ReLU(), MaxPool2d(2), Conv2d(110, 12, 1)), (104, 4, 6), 2, 1),
    "NHWC": (lambda: Sequential(Conv2d(104, 110, 3, padding=1, layout="NHWC"), ReLU(), Conv2d(110, 120, (2, 4), layout="NHWC"), ReLU()), (4, 5, 104), 2, 2),
}  # fmt: skip


@pytest.mark.parametrize("name, dtype", [*((name, np.float32) for name in NETWORKS), ("padding, and none", np.float64), ("a residual", np.float64)])
def test_products_with_patches_come_out_bit_for_bit(name, dtype):
    make, shape, images, count = NETWORKS[name]
    found = kernels(same_bits(make(), (images, *shape), dtype))
    assert found.count(tiles.patches) == found.count(tiles.patches_back) == count


def test_images_that_need_no_gradient_get_none():
    model = Sequential(Conv2d(104, 110, 3))
    x, dy = in_whole_numbers(model, (2, 104, 4, 4), np.float32)
    x.requires_grad = False
    fast = tinynet.compile(model)
    for got, wanted in zip(results(model, fast, x, dy)[2:], results(model, model, x, dy)[2:], strict=True):
        assert_same(got, wanted)
    assert kernels(network_of(fast)).count(tiles.patches_back) == 0


FEW = FEW_PIXELS // 12  # images


@pytest.mark.parametrize(
    "images, trains, math, expected",
    [(FEW, False, "strict", True), (FEW + 1, False, "strict", False), (10, True, "strict", True), (11, True, "strict", False), (FEW, True, "winograd", True), (FEW + 1, True, "winograd", False)],
)
def test_it_is_for_few_pixels_more_of_them_in_training_except_by_winograd(images, trains, math, expected):
    """12 pixels an image."""
    model = Sequential(Conv2d(104, 110, 3, padding=1))
    x, dy = in_whole_numbers(model, (images, 104, 3, 4), np.float32)
    fast = tinynet.compile(model, math=math)
    if trains:
        results(model, fast, x, dy)
    else:
        with tinynet.no_grad():
            assert_same(fast(x).numpy(), model(x).numpy())
    assert (tiles.patches in kernels(network_of(fast))) == expected


@pytest.mark.parametrize("rows, expected", [(1, True), (3, True), (4, False)])
def test_images_too_small_for_winograd_go_by_im2col_in_training_in_either_math(rows, expected):
    """From 49 to 128 pixels together, which Winograd's algorithm would take."""
    model = Sequential(Conv2d(104, 110, 3, padding=1))
    x, dy = in_whole_numbers(model, (100 // rows**2, 104, rows, rows), np.float32)
    fast = tinynet.compile(model, math="winograd")
    results(model, fast, x, dy)
    assert (tiles.patches in kernels(network_of(fast))) == expected


OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "AdamW": lambda p: optim.AdamW(p, lr=1e-2, eps=1e-3),  # a small eps would make a step of each rounding error
}


def trained(optimizer: str, compiled: bool, images: int = 3):
    tinynet.manual_seed(0)
    model = Sequential(Conv2d(20, 104, 3, padding=1), ReLU(), Conv2d(104, 110, 3, padding=1), ReLU(), Flatten(), Linear(110 * 9, 4))
    step = training(model, OPTIMIZERS[optimizer](model.parameters()))
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((images, 20, 3, 3)).astype(np.float32), rng.integers(0, 4, images)
    fast = tinynet.compile(step) if compiled else step
    for _ in range(3):
        fast(x, y)
    return model, fast


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_leads_to_the_same_weights_and_gradients(optimizer, images):
    """One image: 9 pixels, of which rows of dx and steps of SGD are computed in one pass; 27 of three images too."""
    (want, _), (got, fast) = trained(optimizer, False, images), trained(optimizer, True, images)
    assert tiles.patches_back in kernels(network_of(fast))
    for p, q in zip(want.parameters(), got.parameters(), strict=True):
        np.testing.assert_allclose(q.data, p.data, rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(q.grad, p.grad, rtol=1e-3, atol=1e-6)


def test_the_number_of_threads_decides_about_no_bit(monkeypatch):
    def weights(slots: int) -> dict:
        monkeypatch.setattr(threads, "count", lambda: slots)
        return trained("SGD", True)[0].state_dict()

    alone = weights(1)
    for slots in (2, 4):
        for name, got in weights(slots).items():
            assert_same(got, alone[name])


def test_weights_changed_from_outside_are_seen():
    model = Sequential(Conv2d(104, 110, 3))
    x = whole_numbers(np.random.default_rng(0), (1, 104, 4, 4), np.float32)
    fast = tinynet.compile(model)
    with tinynet.no_grad():
        before = fast(x).numpy().copy()
        model[0].weight.data *= 2
        model[0].bias.data *= 2
        np.testing.assert_allclose(fast(x).numpy(), 2 * before, rtol=1e-6)
