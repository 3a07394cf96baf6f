"""One image that threads share: by rows, or by lanes where its weights are more than the pixels that they meet. No bit depends on it."""

from __future__ import annotations

import numpy as np
import pytest
from kernels_by_hand import assert_same
from trainings import training
from whole_networks import network_of

import tinynet
from tinynet.kernels.cpu import threads, tiles
from tinynet.kernels.cpu.program import made
from tinynet.nn import Conv2d, Flatten, Linear, MaxPool2d, Module, ReLU, Sequential


def deep() -> Module:
    """Rows first, then lanes, of odd numbers: a maximum, a stride and a kernel without padding among them."""
    return Sequential(
        Conv2d(3, 20, 3, padding=1), ReLU(), MaxPool2d(2), Conv2d(20, 40, 3, padding=1), ReLU(), Conv2d(40, 72, 3, padding=1), ReLU(), MaxPool2d(2),
        Conv2d(72, 67, 3, stride=2, padding=1), ReLU(), Conv2d(67, 33, 2), ReLU(), Flatten(), Linear(33 * 4, 5),
    )  # fmt: skip


def cuts(network) -> list[tuple[bool, int]]:
    """Of every convolution and gradient of images, in order: whether it is cut by lanes, and into how many shares."""
    found = []
    for program in network.phases:
        for steps, _, _, shares in program:
            for step in steps:
                rows = [numbers for address, _, numbers in step.build() if made[address][0] in (tiles.conv, tiles.conv_pool)]
                found += [(bool(rows[0]["by_lanes"]), shares)] if rows else []
    return found


def trained(slots: int, monkeypatch):
    """(parameters and gradients after some steps at one image; the network that made them)."""
    monkeypatch.setattr(threads, "count", lambda: slots)
    tinynet.manual_seed(0)
    model, rng = deep(), np.random.default_rng(0)
    step = tinynet.compile(training(model, tinynet.optim.SGD(model.parameters(), lr=0.1)))
    for _ in range(3):
        step(rng.standard_normal((1, 3, 23, 22)).astype(np.float32), rng.integers(0, 5, 1))
    return [array.copy() for p in model.parameters() for array in (p.numpy(), p.grad)], network_of(step)


def test_layers_of_many_weights_are_cut_by_lanes_and_only_those(monkeypatch):
    _, network = trained(2, monkeypatch)
    shared = [by_lanes for by_lanes, shares in cuts(network) if shares == 2]
    assert shared[0] is False and shared.count(True) >= 6, "the first has 23 x 22 pixels; forward and backward of the others"


def test_a_call_without_training_is_cut_by_rows(monkeypatch):
    """Its weights are packed once."""
    monkeypatch.setattr(threads, "count", lambda: 2)
    fast = tinynet.compile(deep())
    with tinynet.no_grad():
        fast(np.ones((1, 3, 23, 22), np.float32))
    assert not any(by_lanes for by_lanes, _ in cuts(network_of(fast)))


@pytest.mark.parametrize("slots", [2, 3, 4])
def test_the_number_of_threads_decides_about_no_bit_of_one_image(slots, monkeypatch):
    alone, _ = trained(1, monkeypatch)
    together, _ = trained(slots, monkeypatch)
    for got, want in zip(together, alone, strict=True):
        assert_same(got, want)
