"""The steps of optimisers, the definition."""

from __future__ import annotations

import numpy as np

from tinynet.kernels.contract import implements


@implements("sgd_step", device="reference", variant="numpy")
def sgd_step(w, g, v, *, lr, momentum, nesterov, weight_decay, out):
    step = g + weight_decay * w if weight_decay else g
    if momentum:
        out, velocity = out
        np.add(momentum * v, step, out=velocity)
        step = step + momentum * velocity if nesterov else velocity
    np.subtract(w, lr * step, out=out)


@implements("adam_step", device="reference", variant="numpy")
def adam_step(w, g, m, s, *, t, lr, betas, eps, weight_decay, decoupled, out):
    weights, first, second = out
    b1, b2 = betas
    if weight_decay and decoupled:
        w = w * (1 - lr * weight_decay)
    elif weight_decay:
        g = g + weight_decay * w
    np.add(b1 * m, (1 - b1) * g, out=first)
    np.add(b2 * s, (1 - b2) * g * g, out=second)
    np.subtract(w, lr / (1 - b1**t) * first / (np.sqrt(second / (1 - b2**t)) + eps), out=weights)
