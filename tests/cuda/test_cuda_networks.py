"""The article's networks on CUDA's devices, whole, and their dense parts: forward, loss, gradients and steps, each held against the truth.

From the device's own weights before a step the truth of loss and gradients is computed again, with the bounds that compare
derives for whole networks; and what the step makes of weights, gradients and state must lie within the oracle's.
"""

from __future__ import annotations

import numpy as np
import pytest
from ready import READY, judged

import tinynet
from tinynet import functional as F
from tinynet import optim, oracle
from tinynet.compare.bounds import truth
from tinynet.compare.networks import CLASSES, IMAGE, Conv, Dense, Flatten, MaxPool, Network, ReLU, canonical_state, get
from tinynet.devices import array_module, to_host
from tinynet.kernels.cuda.emulator.checked import checked


def dense_part(name: str) -> Network:
    layers = get(name).layers
    first = [isinstance(layer, Dense) for layer in layers].index(True)
    return Network(f"the dense part of {name}", layers[first:], "logits")


def whole(name: str) -> Network:
    return Network(name, get(name).layers, "logits")


def loss_of(network: Network, parameters, x, target):
    for layer in network.layers:
        if isinstance(layer, ReLU):
            x = F.relu(x)
        elif isinstance(layer, MaxPool):
            x = F.max_pool2d(x, layer.size)
        elif isinstance(layer, Flatten):
            x = F.flatten(x)
        else:
            weight, bias = parameters[f"{layer.name}.weight"], parameters[f"{layer.name}.bias"]
            x = F.linear(x, weight, bias) if isinstance(layer, Dense) else F.conv2d(x, weight, bias, padding=layer.padding)
    return F.cross_entropy(x, target)


def some(array) -> np.ndarray:
    """A copy of every 101st number of a large array: a step does each by itself, and the truth of millions takes long."""
    return to_host(array).reshape(-1)[:: 101 if array.size > 100_000 else 1].copy()


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
        (whole("keras"), lambda p: optim.SGD(p, lr=0.001, momentum=0.9), 3),
        (whole("tensorflow"), lambda p: optim.SGD(p, lr=0.001, momentum=0.9), 3),
        (dense_part("keras"), lambda p: optim.SGD(p, lr=0.001, momentum=0.9, nesterov=True, weight_decay=0.01), 3),
        (dense_part("keras"), lambda p: optim.AdamW(p, lr=0.0005), 3),
        (dense_part("tensorflow"), lambda p: optim.Adam(p, lr=0.00002), 2),
    ],
    ids=["keras, whole", "tensorflow, whole", "keras, SGD", "keras, AdamW", "tensorflow, Adam"],
)
def test_a_network_trains(network, make, steps, device, rng):
    state = canonical_state(network)
    parameters = {key: tinynet.tensor(state[key], device=device, requires_grad=True) for key in network.parameters()}
    shape = (2, *IMAGE) if isinstance(network.layers[0], Conv) else (4, network.layers[0].in_features)
    x, target = rng.standard_normal(shape).astype(np.float32), rng.integers(0, CLASSES, shape[0])
    optimizer = make(list(parameters.values()))
    losses = []
    for _ in range(steps):
        before = {key: to_host(p.data).copy() for key, p in parameters.items()}
        optimizer.zero_grad()
        loss = loss_of(network, parameters, tinynet.tensor(x, device=device), tinynet.tensor(target, device=device))
        loss.backward()
        want = truth(network, before, x, target)
        losses.append(loss.item())
        assert abs(losses[-1] - want.loss.value) <= want.loss.bound
        for key, p in parameters.items():
            assert (np.abs(to_host(p.grad) - want.gradients[key].value) <= want.gradients[key].bound).all(), key
        states = [{what: value if what == "t" else some(value) for what, value in optimizer.state_of(place).items()} for place in range(len(parameters))]
        optimizer.step()
        for state, after, (key, p) in zip(states, optimizer.state, parameters.items(), strict=True):
            changed = [some(p.data), *(some(value) for what, value in after.items() if what != "t")]
            for got, bounded in zip(changed, stepped(optimizer, some(before[key]), some(p.grad), state), strict=True):
                oracle.assert_matches(got, bounded, max_zero_share=1, name=key)  # a gradient is 0 behind a ReLU
    assert losses == sorted(losses, reverse=True), "every step on the same images makes the loss smaller"


@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize("network", [whole("keras"), whole("tensorflow")], ids=lambda network: network.name)
def test_a_compiled_network_with_its_convolutions_fused_is_within_its_bounds(network, device, rng):
    state = canonical_state(network)
    parameters = {key: tinynet.tensor(state[key], device=device, requires_grad=True) for key in network.parameters()}
    x, target = rng.standard_normal((2, *IMAGE)).astype(np.float32), rng.integers(0, CLASSES, 2)

    def step(x, target):
        for p in parameters.values():
            p.grad = None
        loss = loss_of(network, parameters, x, target)
        loss.backward()
        return loss

    step = tinynet.compile(step)
    loss, want = step(tinynet.tensor(x, device=device), tinynet.tensor(target, device=device)), truth(network, state, x, target)
    assert step.explain().count("conv2d + relu + max_pool2d are one kernel") == sum(isinstance(layer, MaxPool) for layer in network.layers)
    assert abs(loss.item() - want.loss.value) <= want.loss.bound
    for key, p in parameters.items():
        assert (np.abs(to_host(p.grad) - want.gradients[key].value) <= want.gradients[key].bound).all(), key


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


@pytest.mark.parametrize("device", READY)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_oracle_accepts_relus_gradient(dtype, device):
    with checked(1):
        report = judged("relu_dx", "simple", device, dtype=dtype)
    assert report, report.explain()
