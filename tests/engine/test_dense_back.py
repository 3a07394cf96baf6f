"""A dense layer's backward and its step in one pass over the weights: the kernel by hand, and in networks that are compiled."""

from __future__ import annotations

import numpy as np
import pytest
from kernels_by_hand import assert_same, whole_numbers
from trainings import training

import tinynet
from tinynet import nn, optim
from tinynet.kernels.cpu import program, threads, tiles
from tinynet.kernels.cpu.network_layers import MANY_OUTPUTS, MANY_ROWS
from tinynet.kernels.cpu.program import address_of, compiled, named

DTYPES = (np.float32, np.float64)


class Layer:
    """Rows that lie apart, as in a program's memory; whole numbers, so that every order of a sum is exact."""

    def __init__(self, rows: int, columns: int, terms: int, dtype, rng):
        self.rows, self.columns, self.terms = rows, columns, terms
        self.dy, self.x = np.full((rows, terms + 5), 99, dtype), np.full((rows, columns + 3), 99, dtype)
        self.dy[:, :terms], self.x[:, :columns] = whole_numbers(rng, (rows, terms), dtype), whole_numbers(rng, (rows, columns), dtype)
        self.w, self.mask = whole_numbers(rng, (terms, columns), dtype), whole_numbers(rng, (rows, columns), dtype)
        self.dx = np.full((rows, columns + 1), 7, dtype)

    def play(self, shares: int = 1, rate: float = 0.5, decay: float = 0.0, masked: bool = False, fault: int = 0):
        """Plays it; what w was before."""
        before, hyper, faulty, item = self.w.copy(), np.array([rate, decay]), np.array([fault]), self.w.itemsize
        kernel, tile, blocks = tiles.best_dense_back(self.rows, self.columns, self.w.dtype.type, shares)
        panels = np.full((threads.count(), blocks.get("term_block", 0) * tile[2] * tile[3]), 99, self.w.dtype)
        numbers = dict(
            rows=self.rows, columns=self.columns, terms=self.terms, **blocks, dy=address_of(self.dy), dy_row=self.dy.strides[0] // item, w=address_of(self.w),
            x=address_of(self.x), x_row=self.x.strides[0] // item, dx=address_of(self.dx), dx_row=self.dx.strides[0] // item, hyper=address_of(hyper), fault=address_of(faulty), panel=address_of(panels), panel_slot=panels.strides[0],
        )  # fmt: skip
        if masked:
            numbers.update(mask=address_of(self.mask), mask_row=self.columns)
        program.run([named(compiled(kernel, *tile, self.w.dtype.type), tiles.DENSE_BACK, numbers)], 1, 1, shares)
        return before


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("rows, columns, terms", [(9, 48, 10), (12, 64, 16), (17, 1056, 33), (32, 544, 5), (11, 16, 1), (21, 32, 9), (10, 64, 150), (9, 1024, 70), (1, 192, 10), (1, 48, 3), (2, 1056, 9), (3, 16, 1), (6, 64, 21)])
@pytest.mark.parametrize("shares", [1, 3])
def test_both_results_are_those_of_two_products(rows, columns, terms, shares, dtype, rng):
    for masked, decay in ((False, 0.0), (True, 0.5)):
        layer = Layer(rows, columns, terms, dtype, rng)
        w = layer.play(shares, 0.25, decay, masked)
        dy, x = layer.dy[:, :terms], layer.x[:, :columns]
        assert_same(layer.dx[:, :columns], np.where(layer.mask > 0, dy @ w, 0) if masked else dy @ w)
        assert_same(layer.w, w - dtype(0.25) * (dy.T @ x + dtype(decay) * w))
        assert (layer.dx[:, columns:] == 7).all(), "written behind a row"


@pytest.mark.parametrize("rows", [2, 9])
def test_a_fault_keeps_the_weights(rows, rng):
    layer = Layer(rows, 64, 21, np.float32, rng)
    w = layer.play(fault=1)
    assert_same(layer.w, w)
    assert_same(layer.dx[:, :64], layer.dy[:, :21] @ w)


@pytest.mark.parametrize("rows, columns", [(7, 64), (8, 64), (32, 1001), (1, 1001), (4096, 4096)])
def test_it_is_left_alone_where_two_products_are_as_good_or_no_tile_fits(rows, columns):
    assert tiles.best_dense_back(rows, columns, np.float32, 2) is None


@pytest.mark.parametrize("slots", [1, 2, 4, 16])
@pytest.mark.parametrize("columns", [512, 544, 4096])
@pytest.mark.parametrize("rows", [1, 16])
def test_every_thread_has_columns(rows, columns, slots):
    _, (*_, vectors, lanes), blocks = tiles.best_dense_back(rows, columns, np.float32, slots)
    step = blocks["column_block"]
    assert step % (vectors * lanes) == 0 and -(-columns // step) >= min(slots, columns // (3 * vectors * lanes))


@pytest.mark.parametrize("images, decay", [(12, 0.0), (12, 0.01), (1, 0.0), (3, 0.01)])
def test_a_network_takes_the_same_steps_with_it(images, decay):
    """Ten steps, beside the engine's own; gradients are computed when they are asked for."""

    def model():
        tinynet.manual_seed(2)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16 * 16, 160), nn.ReLU(), nn.Linear(160, 7))

    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((images, 3, 18, 18)).astype(np.float32), rng.integers(0, 7, images)) for _ in range(10)]
    models = [model(), model()]
    steps = [training(m, optim.SGD(m.parameters(), lr=0.05, weight_decay=decay)) for m in models]
    fast = tinynet.compile(steps[0])
    for x, y in batches:
        got, want = fast(x, y).item(), steps[1](x, y).item()
        assert abs(got - want) < 1e-4 * max(1, abs(want))
    taken = 1 if images > tiles.FEW else 2  # dense layers: of many images the first, whose weights are large
    assert fast.explain().count("gradient of the rows, step of SGD of the weights") == taken
    for p, q in zip(*(m.parameters() for m in models)):
        np.testing.assert_allclose(p.numpy(), q.numpy(), rtol=0, atol=2e-5)
        np.testing.assert_allclose(p.grad, q.grad, rtol=0, atol=2e-5)


@pytest.mark.parametrize("images", [MANY_ROWS - 1, MANY_ROWS])
@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW])
def test_small_layers_of_many_images_take_them_together(kind, images):
    """Ten steps, beside the engine's own: products of matrices, where fewer images go through all layers one by one."""

    def model():
        tinynet.manual_seed(3)
        return nn.Sequential(nn.Linear(24, MANY_OUTPUTS), nn.ReLU(), nn.Linear(MANY_OUTPUTS, 49), nn.ReLU(), nn.Linear(49, MANY_OUTPUTS - 1))

    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((images, 24)).astype(np.float32), rng.integers(0, MANY_OUTPUTS - 1, images)) for _ in range(10)]
    models = [model(), model()]
    steps = [training(m, kind(m.parameters(), lr=0.01)) for m in models]
    fast = tinynet.compile(steps[0])
    for x, y in batches:
        got, want = fast(x, y).item(), steps[1](x, y).item()
        assert abs(got - want) < 1e-4 * max(1, abs(want))
    together = [line for line in fast.explain().splitlines() if "linear + bias + relu" in line or "phase" in line]
    assert (any(": once" in line and "linear" in after for line, after in zip(together, together[1:]))) is (images == MANY_ROWS), fast.explain()
    for p, q in zip(*(m.parameters() for m in models)):
        np.testing.assert_allclose(p.numpy(), q.numpy(), rtol=0, atol=2e-5)
