"""Ops that follow each other in a captured function and are one kernel: values and gradients are those of the ops, bit for bit on whole numbers."""

from __future__ import annotations


import numpy as np
import pytest
from ready import READY

import tinynet
from tinynet import functional as F
from tinynet.devices import to_host
from tinynet.op import OPS, op

pytestmark = pytest.mark.parametrize("device", READY)
ONE = "are one kernel"


class Block:
    """One or two convolutions with ReLU and pooling around them, and a loss that is a sum of whole numbers."""

    def __init__(self, device: str, after, layout: str = "NCHW", biased: bool = True):
        rng = np.random.default_rng(5)
        whole = lambda *shape: tinynet.tensor(rng.integers(-2, 3, shape).astype(np.float32), device=device, requires_grad=True)
        self.first, self.bias, self.second, self.after, self.layout = whole(8, 4, 3, 3), whole(8) if biased else None, whole(9, 8, 2, 2), after, layout
        self.parameters = [p for p in (self.first, self.bias, self.second) if p is not None]
        x = rng.integers(-2, 3, (2, 4, 12, 14)).astype(np.float32)
        self.x = tinynet.tensor(x if layout == "NCHW" else np.ascontiguousarray(x.transpose(0, 2, 3, 1)), device=device)

    def forward(self, x):
        x = self.after(F.conv2d(x, self.first, self.bias, padding=1, layout=self.layout))
        return self.after(F.conv2d(x, self.second, layout=self.layout))

    def loss(self, x):
        for p in self.parameters:
            p.grad = None
        loss = (self.forward(x) * 0.5).sum()
        loss.backward()
        return loss

    def results(self, step) -> list[np.ndarray]:
        value = step(self.x)
        return [value.numpy(), *(to_host(p.grad) for p in self.parameters)]


def pool(x, layout: str = "NCHW", size: int = 2, **options):
    return F.max_pool2d(x, size, layout=layout, **options)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("relu_first", [True, False], ids=["relu first", "pooling first"])
def test_a_run_is_one_kernel_forward_and_passes_the_same_gradients_on(device, relu_first, layout):
    after = (lambda z: pool(F.relu(z), layout)) if relu_first else (lambda z: F.relu(pool(z, layout)))
    for biased in (True, False):
        block = Block(device, after, layout, biased)
        step = tinynet.compile(block.loss)
        for _ in range(2):
            for got, want in zip(block.results(step), block.results(block.loss), strict=True):
                np.testing.assert_array_equal(got, want)
        assert step.explain().count(ONE) == 2


def test_a_bias_that_is_an_op_of_its_own_is_part_of_the_run(device):
    block = Block(device, F.relu, biased=False)
    bias = tinynet.tensor(np.arange(8, dtype=np.float32) - 4, device=device, requires_grad=True)
    block.parameters = [block.first, bias]
    block.forward = lambda x: pool(F.relu(F.bias_add(F.conv2d(x, block.first, padding=1), bias)))
    step = tinynet.compile(block.loss)
    for got, want in zip(block.results(step), block.results(block.loss), strict=True):
        np.testing.assert_array_equal(got, want)
    assert "conv2d + bias_add + relu + max_pool2d are one kernel" in step.explain()


def test_inference_is_fused_too(device):
    block = Block(device, lambda z: pool(F.relu(z)))
    forward = tinynet.compile(block.forward)
    with tinynet.no_grad():
        np.testing.assert_array_equal(forward(block.x).numpy(), block.forward(block.x).numpy())
    assert forward.explain().count(ONE) == 2


OTHERS = {
    "without relu": lambda z: pool(z),
    "without pooling": F.relu,
    "windows of 3 x 3": lambda z: pool(F.relu(z), size=3),
    "a stride of 1": lambda z: pool(F.relu(z), stride=1),
    "with padding": lambda z: pool(F.relu(z), padding=1),
    "dilated": lambda z: pool(F.relu(z), stride=2, dilation=2),
    "the convolution is read twice": lambda z: pool(F.relu(z)) + pool(z),
    "relu is read twice": lambda z: pool(y := F.relu(z)) + y[:, :, ::2, ::2][:, :, : y.shape[2] // 2, : y.shape[3] // 2],
    "twice relu": lambda z: F.relu(F.relu(z)),
    "an op between": lambda z: pool(F.relu(z) * 2.0),
}


@pytest.mark.parametrize("after", OTHERS.values(), ids=OTHERS)
def test_what_is_no_such_run_stays_as_it_is(device, after):
    block = Block(device, after)
    step = tinynet.compile(block.loss)
    for _ in range(2):  # captured, and replayed
        for got, want in zip(block.results(step), block.results(block.loss), strict=True):
            np.testing.assert_array_equal(got, want)
    assert ONE not in step.explain()


def negative_part():
    """An op of a user's own, which happens to be called like one of tinynet's."""

    @op
    def relu(k, x):
        return k.xp.minimum(x, 0)

    @relu.gradient("x")
    def _(k, dy, *, x):
        return dy * (x < 0)

    return relu


def test_an_op_of_somebody_else_is_no_part_of_a_run_whatever_its_name(device, monkeypatch):
    monkeypatch.setitem(OPS, "relu", OPS["relu"])  # registered under its name, and taken back with the test
    theirs = negative_part()
    block = Block(device, lambda z: pool(theirs(z)))
    step = tinynet.compile(block.loss)
    for _ in range(2):
        for got, want in zip(block.results(step), block.results(block.loss), strict=True):
            np.testing.assert_array_equal(got, want)
    assert ONE not in step.explain()


def test_a_result_that_is_handed_out_ends_a_run(device):
    block = Block(device, None)
    function = tinynet.compile(lambda x: (y := F.relu(F.conv2d(x, block.first, block.bias)), pool(y)))
    with tinynet.no_grad():
        y, pooled = function(block.x)
        np.testing.assert_array_equal(pooled.numpy(), pool(y).numpy())
    assert ONE not in function.explain()


def test_numbers_that_are_no_numbers_pass(device):
    block = Block(device, lambda z: pool(F.relu(z)))
    x = block.x.numpy()
    x[0, :, 3, 4], x[1, :, 5, 5] = np.nan, np.inf
    block.x = tinynet.tensor(x, device=device)
    with np.errstate(invalid="ignore"), tinynet.no_grad():
        want = block.forward(block.x).numpy()
        np.testing.assert_array_equal(tinynet.compile(block.forward)(block.x).numpy(), want)
    assert np.isnan(want).any() and np.isfinite(want).any()
