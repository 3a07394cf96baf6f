"""The dense part of the article's networks on CUDA's devices: forward, loss, gradients and steps, each held against the truth.

From the device's own weights before a step the loss and its gradients are computed again by `reference` in float64; and what
the step made of weights, gradients and state must lie within the oracle's bounds.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from ready import READY

import tinynet
from tinynet import functional as F
from tinynet import optim, oracle
from tinynet.compare.networks import Dense, canonical_state, get
from tinynet.devices import array_module, to_host
from tinynet.op import OPS

TIGHT = 5e-6  # of the largest number of an array: what 4096 terms of a sum, and two layers more, make of 6e-8


def loss_of(parameters, x, target):
    for place in range(0, len(parameters), 2):
        x = F.linear(x if place == 0 else F.relu(x), *parameters[place : place + 2])
    return F.cross_entropy(x, target)


def truth(arrays, x, target):
    parameters = [tinynet.tensor(a.astype(np.float64), device="reference", requires_grad=True) for a in arrays]
    loss = loss_of(parameters, tinynet.tensor(x.astype(np.float64), device="reference"), tinynet.tensor(target, device="reference"))
    loss.backward()
    return loss.numpy(), [p.grad for p in parameters]


def stepped(optimizer, w, g, state):
    """What the oracle says of one step."""
    options = dict(lr=optimizer.lr, weight_decay=optimizer.weight_decay)
    if isinstance(optimizer, optim.SGD):
        return oracle.reference.sgd_step(w, g, state["v"], momentum=optimizer.momentum, nesterov=optimizer.nesterov, **options)
    return oracle.reference.adam_step(w, g, state["m"], state["s"], t=state["t"] + 1, betas=optimizer.betas, eps=optimizer.eps, decoupled=optimizer.decoupled, **options)


@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize(
    "network, make, steps",
    [
        ("keras", lambda p: optim.SGD(p, lr=0.001, momentum=0.9, nesterov=True, weight_decay=0.01), 3),
        ("keras", lambda p: optim.AdamW(p, lr=0.0005), 3),
        ("tensorflow", lambda p: optim.Adam(p, lr=0.00002), 2),
    ],
    ids=["keras, SGD", "keras, AdamW", "tensorflow, Adam"],
)
def test_the_dense_part_of_a_network_trains(network, make, steps, device, rng):
    layers = [layer for layer in get(network).layers if isinstance(layer, Dense)]
    state = canonical_state(get(network))
    parameters = [tinynet.tensor(state[f"{layer.name}.{what}"], device=device, requires_grad=True) for layer in layers for what in ("weight", "bias")]
    x, target = rng.standard_normal((4, layers[0].in_features)).astype(np.float32), rng.integers(0, 10, 4)
    optimizer = make(parameters)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(parameters, tinynet.tensor(x, device=device), tinynet.tensor(target, device=device))
        loss.backward()
        losses.append(loss.item())
        before = [to_host(p.data).copy() for p in parameters]
        states = [{name: value if name == "t" else to_host(value).copy() for name, value in optimizer.state_of(place).items()} for place in range(len(parameters))]
        want, gradients = truth(before, x, target)
        assert abs(losses[-1] - want) <= TIGHT * want
        for p, gradient in zip(parameters, gradients, strict=True):
            assert np.abs(to_host(p.grad) - gradient).max() <= TIGHT * np.abs(gradient).max()
        optimizer.step()
        for place, p in enumerate(parameters):
            after = [p.data, *(value for name, value in optimizer.state[place].items() if name != "t")]
            for got, bounded in zip(after, stepped(optimizer, before[place], to_host(p.grad), states[place]), strict=True):
                oracle.assert_matches(to_host(got), bounded, max_zero_share=1)
    assert losses == sorted(losses, reverse=True), "every step on the same images makes the loss smaller"


@pytest.mark.parametrize("device", READY)
def test_relus_gradient_is_dy_or_nothing_bit_by_bit(device):
    def gradient(dy, x):
        x = tinynet.Tensor(x, device=device, requires_grad=True)
        F.relu(x).backward(dy)
        return x.grad

    report = oracle.check(gradient, "relu_grad", adapt="cupy" if device == "cuda" else None)
    assert report, report.explain()
    values = np.array([-np.inf, -1, -0.0, 0.0, 1e-45, 1, np.inf, np.nan], np.float32)
    x, dy = map(array_module(device).asarray, np.meshgrid(values, values))
    dx, dy, x = to_host(gradient(dy, x)), to_host(dy), to_host(x)
    assert np.array_equal(dx.view(np.int32), np.where(x > 0, dy.view(np.int32), 0))


def test_relus_gradient_in_the_form_for_gpus_is_the_same():
    function, _ = OPS["relu"].gradients["x"]
    values = np.array([-np.inf, -1, -0.0, 0.0, 1e-45, 1, np.inf, np.nan], np.float32)
    out, dy = np.meshgrid(np.maximum(values, 0), values)
    forms = [function(SimpleNamespace(xp=xp), dy, out=out) for xp in (np, SimpleNamespace(where=np.where))]
    assert np.array_equal(*(dx.view(np.int32) for dx in forms)) and forms[1].dtype == np.float32
