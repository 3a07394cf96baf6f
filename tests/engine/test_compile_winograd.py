"""tinynet.compile(math="winograd"): whole networks, as near to the truth as its tiles can be."""

from __future__ import annotations

import numpy as np
import pytest
from trainings import all_of
from whole_networks import Residual

import tinynet
from tinynet.kernels.cpu import network_winograd, threads, tiles_winograd
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


def weights_gradients(model, call, x) -> dict:
    """What is left of a call whose images need no gradient."""
    for p in model.parameters():
        p.grad = None
    y = call(tinynet.Tensor(x))
    y.backward(dy_of(x.dtype)(y.shape))
    return {name: p.grad for name, p in model.named_parameters()}


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

    eager, found = weights_gradients(model, model, x), []
    for slots in (1, 2, 4):
        monkeypatch.setattr(threads, "count", lambda slots=slots: slots)
        fast = tinynet.compile(model, math="winograd")
        weights_gradients(model, fast, x)
        found.append(weights_gradients(model, fast, x))  # in memory that holds another call's sums
        assert "gradients to the winners and of the weights, Winograd" in fast.explain()
    assert_near_the_truth(model, found[0], eager, lambda: weights_gradients(model, model, x.astype(np.float64)))
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
        monkeypatch.setattr(tiles_winograd, "weights_outweigh", lambda m, rows, columns, channels, terms, lanes: outweigh and terms > tiles_winograd.FEW)  # fewer never do
        fast = tinynet.compile(model, math="winograd")
        all_of(model, fast, x, dy_of(np.float32))
        assert ("sums of chunks, transformed back (x" in fast.explain()) is not outweigh, "of all layers, or of a first one with few terms at most"
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


def over_the_batch(monkeypatch, tiles: int = 20) -> None:
    """Layers of any size are taken as those are whose weights are many: so many tiles of several images share what is made of them."""
    monkeypatch.setattr(network_winograd, "MATRICES", 0)
    monkeypatch.setattr(network_winograd, "SUMS", 0)
    monkeypatch.setattr(tiles_winograd, "TOGETHER", tiles)


@pytest.mark.parametrize("name, count", [("padded", 9), ("residual", 2), ("NHWC", 9)])
def test_layers_of_many_weights_run_over_the_batch(name, count, monkeypatch):
    """As near to the truth; no bit depends on how many threads there are."""
    rng, (make, shape) = np.random.default_rng(len(name)), NETWORKS[name]
    model, x = in_real_numbers(make(), rng), rng.standard_normal((count, *shape)).astype(np.float32)
    over_the_batch(monkeypatch)
    eager, found = all_of(model, model, x, dy_of(np.float32)), []
    for slots in (1, 2):
        monkeypatch.setattr(threads, "count", lambda slots=slots: slots)
        fast = tinynet.compile(model, math="winograd")
        all_of(model, fast, x, dy_of(np.float32))
        found.append(all_of(model, fast, x, dy_of(np.float32)))  # in memory that holds another call's sums
        assert "gradient of the weights, Winograd" in fast.explain() and "over the batch" in fast.explain()
    for other in found[1:]:
        for key, want in found[0].items():
            np.testing.assert_array_equal(other[key], want, err_msg=key)
    assert_near_the_truth(model, found[0], eager, lambda: all_of(model, model, x.astype(np.float64), dy_of(np.float64)))


@pytest.mark.parametrize("name, count", [("padded", 1), ("padded", 9), ("NHWC", 2)])
def test_results_are_the_same_bits_over_the_batch_and_image_by_image(name, count, monkeypatch):
    rng, (make, shape) = np.random.default_rng(len(name)), NETWORKS[name]
    model, x = in_real_numbers(make(), rng), rng.standard_normal((count, *shape)).astype(np.float32)
    with tinynet.no_grad():
        want = tinynet.compile(model, math="winograd")(x).data
        over_the_batch(monkeypatch)
        fast = tinynet.compile(model, math="winograd")
        for scale in (1, 1, -2):  # the second call finds its weights unchanged, the third does not
            for p in model.parameters():
                p.data *= np.float32(scale)
            got = fast(x).data
            np.testing.assert_array_equal(got, want if scale == 1 else tinynet.compile(model, math="winograd")(x).data)
    assert "weights, transformed" not in fast.explain()


def test_a_pooled_first_layer_of_many_weights_sums_its_bias_once(monkeypatch):
    """Its gradient is summed by one kernel for all images, those of layers behind it a chunk of images at a time."""
    rng = np.random.default_rng(5)
    model = in_real_numbers(Sequential(Conv2d(16, 24, 3, padding=1), ReLU(), MaxPool2d(2), Conv2d(24, 16, 3), Flatten()), rng)
    x = rng.standard_normal((9, 16, 8, 8)).astype(np.float32)

    over_the_batch(monkeypatch)
    eager, fast = weights_gradients(model, model, x), tinynet.compile(model, math="winograd")
    weights_gradients(model, fast, x)
    got = weights_gradients(model, fast, x)
    assert "gradients to the winners and of the weights, Winograd 4 x 4, over the batch" in fast.explain()
    assert_near_the_truth(model, got, eager, lambda: weights_gradients(model, model, x.astype(np.float64)))
