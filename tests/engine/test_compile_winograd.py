"""tinynet.compile(math="winograd"): whole networks, as near to the truth as its tiles can be."""

from __future__ import annotations

import numpy as np
import pytest
from trainings import all_of
from whole_networks import Residual

import tinynet
from tinynet.kernels.cpu import threads, tiles_winograd
from tinynet.nn import Conv2d, Flatten, MaxPool2d, ReLU, Sequential

NETWORKS = {
    "pooled": (lambda: Sequential(Conv2d(3, 16, 3), ReLU(), Conv2d(16, 24, 3), ReLU(), MaxPool2d(2)), (3, 17, 15)),
    "padded": (lambda: Sequential(Conv2d(16, 17, 3, padding=1), ReLU(), Conv2d(17, 32, 3, padding=1), ReLU(), MaxPool2d(2)), (16, 12, 13)),
    "residual": (lambda: Sequential(Conv2d(3, 16, 3, padding=1), ReLU(), Residual(16), Residual(16)), (3, 8, 9)),
    "NHWC": (lambda: Sequential(Conv2d(16, 20, 3, padding=1, layout="NHWC"), ReLU(), Conv2d(20, 16, 3, layout="NHWC"), Flatten()), (9, 16, 16)),
}  # fmt: skip


def in_real_numbers(model, rng):
    """The model, with parameters that keep what passes through them of one size."""
    for p in model.parameters():
        p.data = (rng.standard_normal(p.shape) / np.sqrt(max(1, np.prod(p.shape[1:])))).astype(np.float32)
    return model


def dy_of(dtype):
    return lambda shape: np.random.default_rng(3).standard_normal(shape).astype(dtype)


def assert_near_the_truth(model, got: dict, eager: dict, truth_of) -> None:
    """Tiles of 4 x 4 lose up to 4 bits (tiles_winograd.py) to a direct sum, each layer: so 16 times the engine's own error. truth_of: the
    same of the model in float64."""
    for p in model.parameters():
        p.data = p.data.astype(np.float64)
    for name, want in truth_of().items():
        error, own = (np.linalg.norm((a[name] - want).ravel()) for a in (got, eager))
        assert error <= 16 * own + 16 * 2.0**-24 * np.linalg.norm(want.ravel()), (name, error, own)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_right_as_a_whole(name, count):
    rng, (make, shape) = np.random.default_rng(len(name)), NETWORKS[name]
    model, x = in_real_numbers(make(), rng), rng.standard_normal((count, *shape)).astype(np.float32)
    fast = tinynet.compile(model, math="winograd")
    eager = all_of(model, model, x, dy_of(np.float32))
    all_of(model, fast, x, dy_of(np.float32))
    got = all_of(model, fast, x, dy_of(np.float32))
    assert "Winograd" in fast.explain()
    assert_near_the_truth(model, got, eager, lambda: all_of(model, model, x.astype(np.float64), dy_of(np.float64)))


@pytest.mark.parametrize("count", [1, 3, 9])
@pytest.mark.parametrize("size, relu, bias", [((8, 8), True, True), ((10, 14), True, True), ((10, 13), False, True), ((8, 12), True, False)])
def test_a_pooled_first_layer_whose_images_need_no_gradient(size, relu, bias, count, monkeypatch):
    """Then nobody reads what lies before pooling, and it is made on the way. No bit depends on how many threads there are."""
    rng = np.random.default_rng(count)
    layers = Conv2d(3, 17, 3, padding=1, bias=bias), *([ReLU()] if relu else []), MaxPool2d(2), Conv2d(17, 20, 3, padding=1), ReLU(), Flatten()
    model, x = in_real_numbers(Sequential(*layers), rng), rng.standard_normal((count, 3, *size)).astype(np.float32)

    def gradients(call, dtype=np.float32) -> dict:
        for p in model.parameters():
            p.grad = None
        y = call(tinynet.Tensor(x.astype(dtype)))
        y.backward(dy_of(dtype)(y.shape))
        return {name: p.grad for name, p in model.named_parameters()}

    eager, found = gradients(model), []
    for slots in (1, 2, 4):
        monkeypatch.setattr(threads, "count", lambda slots=slots: slots)
        fast = tinynet.compile(model, math="winograd")
        gradients(fast)
        found.append(gradients(fast))  # in memory that holds another call's sums
        assert "gradients to the winners and of the weights, Winograd" in fast.explain()
    assert_near_the_truth(model, found[0], eager, lambda: gradients(model, np.float64))
    for other in found[1:]:
        for name, want in found[0].items():
            np.testing.assert_array_equal(other[name], want, err_msg=name)


@pytest.mark.parametrize("name", ["padded", "residual", "NHWC"])
def test_one_image_trains_weights_without_their_matrices_in_memory_and_no_bit_changes(name, monkeypatch):
    """On any number of threads."""
    rng, (make, shape) = np.random.default_rng(len(name)), NETWORKS[name]
    model, x = in_real_numbers(make(), rng), rng.standard_normal((1, *shape)).astype(np.float32)

    def found(slots: int, outweigh: bool):
        monkeypatch.setattr(threads, "count", lambda: slots)
        monkeypatch.setattr(tiles_winograd, "weights_outweigh", lambda *sizes: outweigh)
        fast = tinynet.compile(model, math="winograd")
        all_of(model, fast, x, dy_of(np.float32))
        assert ("sums of chunks, transformed back" in fast.explain()) is not outweigh
        return all_of(model, fast, x, dy_of(np.float32))

    want = found(2, False)
    for slots in (1, 2, 4):
        for key, got in found(slots, True).items():
            np.testing.assert_array_equal(got, want[key], err_msg=key)


@pytest.mark.parametrize("sizes, outweigh", [((4, 16, 16, 64, 64, 64), True), ((4, 32, 32, 64, 64, 64), True), ((4, 32, 32, 64, 64, 56), False), ((4, 8, 8, 4, 3, 64), False)], ids=str)
def test_weights_outweigh_an_image_where_they_have_more_matrices(sizes, outweigh):
    """16 or 64 tiles of 64 channels, and 64 x 64 or 64 x 56 weights; three channels' weights stay in registers anyway."""
    assert tiles_winograd.weights_outweigh(*sizes) is outweigh


def test_weights_that_are_not_trained_are_transformed_once_and_kept():
    model, x = Sequential(Conv2d(16, 32, 3, padding=1), ReLU()), np.ones((1, 16, 8, 8), np.float32)
    fast = tinynet.compile(model, math="winograd")
    with tinynet.no_grad():
        fast(x)
        assert "weights, transformed" in fast.explain()
