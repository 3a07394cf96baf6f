"""Compiled convolutions of small images, whose weights may be larger than a cache: the same numbers, however work and memory are divided."""

from __future__ import annotations

import numpy as np
import pytest
from kernels_by_hand import assert_same, whole_numbers
from trainings import training
from whole_networks import kernels, network_of, results, same_bits

import tinynet
from tinynet import functional as F
from tinynet.kernels.cpu import network_convolution, threads, tiles
from tinynet.nn import Conv2d, Flatten, Linear, MaxPool2d, Module, ReLU, Sequential


class Residual(Module):
    """Its first convolution's result has two readers, so that gradients are added and masked."""

    def __init__(self):
        self.first, self.middle, self.last = Conv2d(24, 40, 3, padding=1), Conv2d(40, 40, 3, padding=1), Conv2d(40, 16, 3, padding=1)

    def forward(self, x):
        h = F.relu(self.first(x))
        return self.last(F.relu(self.middle(h) + h))


def heavy(channels: int) -> list[Module]:
    """A layer that runs over all images in any case, so that others may."""
    return [Conv2d(channels, 20, 1), ReLU(), Flatten(), Linear(20 * 9, 600), Linear(600, 4)]


# name -> (layers, the shape of an image, how many kernels take an image's pixels over the batch)
NETWORKS = {
    "3 x 3": (lambda: Sequential(Conv2d(16, 40, 3, padding=1), ReLU(), Conv2d(40, 24, 3, padding=1), ReLU(), *heavy(24)), (16, 3, 3), 4),
    "5 x 5, on 7 x 5 pixels": (lambda: Sequential(Conv2d(18, 33, 5, padding=2), ReLU(), Conv2d(33, 17, (5, 3)), ReLU(), *heavy(17)), (18, 7, 5), 2),
    "a residual": (lambda: Sequential(Residual(), ReLU(), *heavy(16)), (24, 3, 3), 6),
    "a stride": (lambda: Sequential(Conv2d(16, 24, 3, stride=2, padding=1), ReLU(), *heavy(24)), (16, 6, 5), 1 + 4),
    "a stride and a dilation": (lambda: Sequential(Conv2d(16, 24, 3, stride=(1, 2), dilation=2, padding=2), ReLU(), *heavy(24)), (16, 3, 5), 1 + 2),
    "maxima": (lambda: Sequential(Conv2d(16, 40, 3, padding=1), ReLU(), MaxPool2d(2), *heavy(40)), (16, 6, 6), 2),
    "maxima without ReLU, of an odd number of columns": (lambda: Sequential(Conv2d(18, 33, 5, padding=2), MaxPool2d(2), *heavy(33)), (18, 6, 7), 2),
    "a padding for windows of nothing": (lambda: Sequential(Conv2d(16, 24, 3, padding=((3, 0), (1, 1))), ReLU(), *heavy(24)), (16, 2, 3), 2),
}  # fmt: skip


@pytest.mark.parametrize("name, images, dtype", [*((name, 27, np.float32) for name in NETWORKS), ("3 x 3", 16, np.float32), ("maxima", 16, np.float64)])
def test_pixels_over_the_batch_come_out_bit_for_bit(name, images, dtype):
    make, shape, count = NETWORKS[name]
    assert kernels(same_bits(make(), (images, *shape), dtype)).count(tiles.conv_batch) == count


def test_a_few_images_are_taken_one_by_one():
    make, shape, _ = NETWORKS["3 x 3"]
    assert tiles.conv_batch not in kernels(same_bits(make(), (15, *shape)))


def test_many_weights_are_reason_enough(monkeypatch):
    """With no other layer over all images, forward and the images' gradient; but not of larger images."""
    model, shape = Sequential(Conv2d(16, 24, 3, padding=1), ReLU(), MaxPool2d(2)), (20, 16, 10, 10)
    assert tiles.conv_batch not in kernels(same_bits(model, shape))
    monkeypatch.setattr(network_convolution, "MANY_WEIGHTS", 4 * 24 * 16 * 9)
    assert kernels(same_bits(model, shape)).count(tiles.conv_batch) == 2
    monkeypatch.setattr(network_convolution, "MIDDLING_IMAGE", 99)
    assert tiles.conv_batch not in kernels(same_bits(model, shape))


def test_what_is_not_a_number_wins_its_window(monkeypatch):
    """Also where it is the last of four, or the first: the windows before and behind the one that holds nothing else."""
    monkeypatch.setattr(network_convolution, "MANY_WEIGHTS", 0)
    model = Sequential(Conv2d(16, 24, 3, padding=1), ReLU(), MaxPool2d(2))
    x = np.random.default_rng(5).standard_normal((20, 16, 10, 10)).astype(np.float32)
    x[3, :, 4, 4] = x[7, :, 5, 5] = np.nan
    fast = tinynet.compile(model)
    with tinynet.no_grad():
        got, want = np.isnan(fast(x).numpy()), np.isnan(model(x).numpy())
    assert_same(got, want)
    assert want.sum() == 2 * 4 * 24, "of two images the windows of rows and columns 3 to 5, or 4 to 6"
    assert tiles.conv_batch in kernels(network_of(fast))


@pytest.mark.parametrize("name", ["a residual", "maxima"])
def test_the_number_of_threads_decides_about_no_bit(name, monkeypatch):
    make, shape, _ = NETWORKS[name]
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((37, *shape)).astype(np.float32), rng.integers(0, 4, 37)

    def weights(slots: int) -> dict:
        monkeypatch.setattr(threads, "count", lambda: slots)
        tinynet.manual_seed(0)
        model = make()
        step = tinynet.compile(training(model, tinynet.optim.SGD(model.parameters(), lr=0.1)))
        for _ in range(3):
            step(x, y)
        return model.state_dict()

    alone = weights(1)
    for slots in (2, 4):
        for name, got in weights(slots).items():
            assert_same(got, alone[name])


def test_columns_of_padding_are_left_out_too():
    """An infinite weight that meets nothing but zeros of padding: 0 * inf would be NaN."""
    model = Sequential(Conv2d(16, 16, 3, padding=1, bias=False), Flatten(), Linear(48, 2000), Linear(2000, 4))
    weight = model[0].weight.data
    weight[...] = 1
    weight[:, :, :, [0, 2]] = np.inf
    fast = tinynet.compile(model)
    with tinynet.no_grad():
        assert np.isfinite(fast(np.ones((20, 16, 3, 1), np.float32)).numpy()).all()
    assert tiles.conv_batch in kernels(network_of(fast))


@pytest.mark.parametrize("images", [16, 40])
def test_the_weights_gradient_of_many_images_is_one_sum(images):
    """Sums of 16 images at a time stay in registers; there is one memory for them, not one for each chunk of images."""
    model = Sequential(Conv2d(96, 128, 3, padding=1), ReLU(), Conv2d(128, 16, 3, stride=2), Flatten())
    network = same_bits(model, (images, 96, 5, 4))
    assert sorted(m.copies for m in network.sums) == [1, network.chunks, network.chunks, network.chunks]


def test_weights_larger_than_a_cache_are_gone_over_lane_by_lane():
    """The same sums, whoever computes which lanes. (Of fewer images they would be products with patches: test_im2col.py.)"""
    model = Sequential(Conv2d(120, 136, 3, padding=1), ReLU(), Conv2d(136, 130, 3, stride=2, padding=1))
    rng = np.random.default_rng(3)
    for p in model.parameters():
        p.data[...] = whole_numbers(rng, p.shape, np.float32)
    x = tinynet.tensor(whole_numbers(rng, (15, 120, 6, 5), np.float32), requires_grad=True)
    dy = whole_numbers(rng, model(x).shape, np.float32)
    fast = tinynet.compile(model)
    for got, want in zip(results(model, fast, x, dy), results(model, model, x, dy), strict=True):
        assert_same(got, want)
    found = [numbers for program in network_of(fast).phases for steps, *_ in program for step in steps for _, _, numbers in step.build()]
    assert sum(numbers.get("by_lanes", 0) > 1 for numbers in found) == 2 + 1 + 4, "two forward; dx of the first, and of the second one for each phase of its strides"
