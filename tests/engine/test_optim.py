"""Optimisers: each step within the oracle's bound, ten steps as PyTorch makes them, in place and nothing else touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tinynet import Parameter, optim, oracle

OPTIONS = {
    "plain": (optim.SGD, torch.optim.SGD, dict(lr=0.1)),
    "momentum": (optim.SGD, torch.optim.SGD, dict(lr=0.1, momentum=0.9)),
    "nesterov": (optim.SGD, torch.optim.SGD, dict(lr=0.05, momentum=0.8, nesterov=True)),
    "SGD with weight decay": (optim.SGD, torch.optim.SGD, dict(lr=0.1, momentum=0.9, weight_decay=0.01)),
    "Adam": (optim.Adam, torch.optim.Adam, dict(lr=0.01)),
    "Adam with weight decay": (optim.Adam, torch.optim.Adam, dict(lr=0.01, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1)),
    "AdamW": (optim.AdamW, torch.optim.AdamW, dict(lr=0.01, weight_decay=0.1)),
}


def truth(ours, w, g, state):
    """What the oracle says that one step makes of w, and of the optimiser's state."""
    options = dict(lr=ours.lr, weight_decay=ours.weight_decay)
    if isinstance(ours, optim.SGD):
        found = oracle.reference.sgd_step(w, g, state.get("v"), momentum=ours.momentum, nesterov=ours.nesterov, **options)
        return found if isinstance(found, tuple) else (found,)
    zeros = np.zeros_like(w)
    step = oracle.reference.adamw_step if ours.decoupled else oracle.reference.adam_step
    return step(w, g, state.get("m", zeros), state.get("s", zeros), t=state.get("t", 0) + 1, betas=ours.betas, eps=ours.eps, **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", OPTIONS)
def test_every_step_is_within_the_oracles_bound(name, dtype, rng):
    make, _, options = OPTIONS[name]
    p = Parameter(rng.standard_normal((4, 5)).astype(dtype))
    ours = make([p], **options)
    for _ in range(4):
        p.grad = rng.standard_normal((4, 5)).astype(dtype)
        before = {key: np.copy(value) if isinstance(value, np.ndarray) else value for key, value in ours.state[0].items()}
        want = truth(ours, p.data.copy(), p.grad.copy(), before)
        ours.step()
        state = [ours.state[0][key] for key in ("v", "m", "s") if key in ours.state[0]]
        for got, bounded in zip([p.data, *state], want, strict=True):
            oracle.assert_matches(got, bounded, name=name)


@pytest.mark.parametrize("name", OPTIONS)
def test_pytorchs_steps_are_accepted_by_the_same_truths(name, rng):
    """One formula, PyTorch's and ours: its steps from its own state lie within the same bounds."""
    make, theirs, options = OPTIONS[name]
    p = torch.nn.Parameter(torch.tensor(rng.standard_normal((3, 4))))
    ours, other = make([Parameter(p.detach().numpy())], **options), theirs([p], **options)
    names = {"momentum_buffer": "v", "exp_avg": "m", "exp_avg_sq": "s", "step": "t"}
    for _ in range(10):
        p.grad = torch.tensor(rng.standard_normal((3, 4)))
        state = {names[key]: value.detach().numpy().copy() for key, value in other.state[p].items() if value is not None}
        want = truth(ours, p.detach().numpy().copy(), p.grad.numpy().copy(), {**state, "t": int(state.get("t", 0))})
        other.step()
        oracle.assert_matches(p.detach().numpy(), want[0], name=name)


def test_defaults_are_pytorchs():
    for make, theirs in ((optim.Adam, torch.optim.Adam), (optim.AdamW, torch.optim.AdamW)):
        ours, other = make([Parameter([1.0])]), theirs([torch.nn.Parameter(torch.ones(1))]).defaults
        assert (ours.lr, ours.betas, ours.eps, ours.weight_decay) == (other["lr"], other["betas"], other["eps"], other["weight_decay"])


@pytest.mark.parametrize("name", OPTIONS)
def test_updates_are_in_place_and_leave_the_gradient_alone(name, rng):
    make, _, options = OPTIONS[name]
    p, without = Parameter(rng.standard_normal(5)), Parameter(np.ones(3))
    memory, gradient = p.data, rng.standard_normal(5)
    p.grad = gradient.copy()
    ours = make([p, without], **options)
    ours.step()
    assert p.data is memory and (p.grad == gradient).all()
    assert (without.data == 1).all() and not ours.state[1], "a parameter without a gradient stays, weight decay or not"
    ours.zero_grad()
    assert p.grad is None


def test_a_large_parameter_is_updated_all_over(rng):
    """It is done in pieces: the last one is shorter, and none is left out."""
    for name, (make, _, options) in OPTIONS.items():
        w = rng.standard_normal((300, 1201))
        whole, parts = Parameter(w), [Parameter(row) for row in w]
        g = rng.standard_normal(w.shape)
        optimizers = make([whole], **options), make(parts, **options)
        for _ in range(3):
            whole.grad = g.copy()
            for part, row in zip(parts, g):
                part.grad = row.copy()
            for optimizer in optimizers:
                optimizer.step()
        assert np.array_equal(whole.data, np.stack([part.data for part in parts])), name


def test_a_parameter_whose_array_is_not_contiguous_is_updated_in_place():
    p = Parameter(np.ones((3, 4)))
    p.data = np.ones((4, 3)).T
    memory, p.grad = p.data, np.ones((3, 4))
    optim.SGD([p], lr=0.5).step()
    assert p.data is memory and (memory == 0.5).all()


def test_an_optimiser_without_an_update_says_so():
    p = Parameter([1.0])
    p.grad = np.ones(1, np.float32)
    with pytest.raises(TypeError, match=r"Optimizer has no update\(\)"):
        optim.Optimizer([p]).step()
