"""What tests of compiled networks share: a residual block, networks in whole numbers, played by the engine and compiled, and which
kernels play them."""

from __future__ import annotations

import numpy as np
from kernels_by_hand import assert_same, whole_numbers

import tinynet
from tinynet import functional as F
from tinynet.kernels.cpu.program import made
from tinynet.nn import Conv2d, Module


class Residual(Module):
    """relu(x + conv(relu(conv(x))))"""

    def __init__(self, channels: int, layout: str = "NCHW"):
        self.first = Conv2d(channels, channels, 3, padding=1, layout=layout)
        self.second = Conv2d(channels, channels, 3, padding=1, layout=layout)

    def forward(self, x):
        return F.relu(self.second(F.relu(self.first(x))) + x)


def results(model, function, x, dy) -> list[np.ndarray]:
    """Of a forward and a backward pass, everything."""
    for t in (x, *model.parameters()):
        t.grad = None
    y = function(x)
    y.backward(dy)
    return [y.numpy(), x.grad, *(p.grad for p in model.parameters())]


def network_of(fast):
    return next(iter(fast.plans.values())).programs[0].network


def kernels(network) -> list:
    return [made[address][0] for program in network.phases for steps, *_ in program for step in steps for address, *_ in step.build()]


def in_whole_numbers(model, shape, dtype):
    """Images and a gradient of the result; the model's parameters become whole numbers too, most of them 0."""
    rng = np.random.default_rng(3)
    for p in model.parameters():
        p.data = rng.integers(-1, 2, p.shape).astype(dtype) * (rng.random(p.shape) < 0.1)
    x = tinynet.tensor(whole_numbers(rng, shape, dtype), requires_grad=True)
    return x, rng.integers(-1, 2, model(x).shape).astype(dtype)


def same_bits(model, shape, dtype=np.float32):
    """The compiled model's network, once it has given twice what the engine gives."""
    x, dy = in_whole_numbers(model, shape, dtype)
    fast, want = tinynet.compile(model), results(model, model, x, dy)
    assert all(np.abs(a).max() < 2**24 for a in want), "where float32 counts one by one"
    for _ in range(2):
        for got, wanted in zip(results(model, fast, x, dy), want, strict=True):
            assert_same(got, wanted)
    return network_of(fast)
