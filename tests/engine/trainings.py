"""What tests of compiled functions share: all gradients of a model, and a small classifier with its training step."""

from __future__ import annotations

import numpy as np

import tinynet
from tinynet import functional as F
from tinynet import optim
from tinynet.nn import Conv2d, Flatten, Linear, MaxPool2d, Module, ReLU, Sequential


def all_of(model, call, x, dy_of) -> dict[str, np.ndarray]:
    """The result and every gradient, of parameters and images."""
    for p in model.parameters():
        p.grad = None
    x = tinynet.Tensor(x, requires_grad=True)
    y = call(x)
    y.backward(dy_of(y.shape))
    return {"result": y.numpy(), "images": x.grad, **{n: p.grad for n, p in model.named_parameters()}}


def whole_numbers(shape) -> np.ndarray:
    return np.random.default_rng(5).integers(-2, 3, shape).astype(np.float32)


# --- training a classifier ---------------------------------------------------------------------------------------


def classifier(dtype=np.float32) -> Module:
    tinynet.manual_seed(1)
    model = Sequential(Conv2d(3, 8, 3), ReLU(), MaxPool2d(2), Conv2d(8, 6, 3, padding=1), ReLU(), MaxPool2d(2), Flatten(), Linear(54, 20), ReLU(), Linear(20, 5))
    for p in model.parameters():
        p.data = p.data.astype(dtype)
    return model


def training(model, optimizer, loss_of=lambda output, y: F.cross_entropy(output, y)):
    def step(x, y):
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "Nesterov": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda p: optim.Adam(p, lr=1e-2, weight_decay=1e-2),
    "AdamW": lambda p: optim.AdamW(p, lr=1e-2, weight_decay=1e-1),
}
LOSSES = {
    "cross_entropy": lambda output, y: F.cross_entropy(output, y),
    "summed": lambda output, y: F.cross_entropy(output, y, reduction="sum"),
    "log_softmax": lambda output, y: F.nll_loss(F.log_softmax(output), y),
    "log of softmax": lambda output, y: F.nll_loss(F.softmax(output).log(), y),
}


def batch(count=6, dtype=np.float32):
    rng = np.random.default_rng(2)
    return rng.standard_normal((count, 3, 14, 14)).astype(dtype), rng.integers(0, 5, count)


def ten_steps(make_optimizer, compiled: bool, dtype=np.float32, loss_of=LOSSES["cross_entropy"], count=6):
    model = classifier(dtype)
    step = training(model, make_optimizer(list(model.parameters())), loss_of)
    step = tinynet.compile(step) if compiled else step
    losses = [step(*batch(count, dtype)).item() for _ in range(10)]
    if compiled:
        assert "op by op" not in step.explain(), step.explain()
    return losses, model.state_dict()
