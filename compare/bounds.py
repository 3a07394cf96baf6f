"""How far a float32 run of a network may be from the truth: derived layer by layer, never guessed.

The truth is the network in float64 on the reference kernels. Beside each value runs a bound on
|what a float32 implementation computes - value|, through the forward and the backward pass, in two parts.

`error`: rounding. One sum of n products, y = sum x_t * w_t, in any order, errs by at most

    rho(n) * sum |x_t||w_t|,    rho(n) = min(gamma_n, max(16, 2 sqrt(n)) u),  u = 2^-24,  gamma_n = n u / (1 - n u)

(gamma_n: N. Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1; the other limit is
where sums that are long but honest stop, measured at 0.9 sqrt(n) for the worst order). Errors that come in
from the layer before are sums of many roundings that know nothing of each other, so they are carried on as
standard deviations are, root of the sum of squares, error_y^2 = sum error_x^2 w^2 (N. Higham, T. Mary, "A new
approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41(5), 2019). Added up without
signs they would grow by sqrt(n) more in every layer and allow anything after three of them.

`jump`: decisions. ReLU and max-pooling pass values on unchanged, but backward they choose, and a choice
between values that are equal within their errors may fall either way: the whole gradient is there or it is
not, jump_y = sum jump_x |w|. Nothing can be said of the gradients behind such a near tie, so `settled_batch`
picks images on which a network has none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinynet.compare.networks import Conv, Dense, Flatten, MaxPool, Network, ReLU
from tinynet.dispatch import kernels
from tinynet.geometry import Window, taps
from tinynet.oracle.bounds import U32 as U
from tinynet.oracle.bounds import gate

EXP_LOG = 4.0  # error of one exp or log, in units of u: what vector libraries guarantee

_k = kernels("reference")


def rho(n):
    """Rounding of a sum of n terms, relative to the sum of their magnitudes: the oracle's gate; n may be an array."""
    return gate(n) * U


@dataclass(frozen=True)
class Approx:
    """A value in float64, and the two parts of the bound on what float32 makes of it."""

    value: np.ndarray
    error: np.ndarray
    jump: np.ndarray

    @property
    def bound(self) -> np.ndarray:
        return self.error + self.jump

    @property
    def size(self) -> np.ndarray:
        """A bound on the computed value's magnitude."""
        return np.abs(self.value) + self.bound

    def map(self, function) -> "Approx":
        """The same selection or rearrangement of all three."""
        return Approx(function(self.value), function(self.error), function(self.jump))


def exactly(array: np.ndarray) -> Approx:
    value = np.asarray(array, np.float64)
    return Approx(value, np.zeros_like(value), np.zeros_like(value))


@dataclass(frozen=True)
class Truth:
    """What a peer must return for one network and one batch, and how near; images are under `input`.

    near_ties: for each image, how many of its `choices` lie within rounding.
    """

    output: Approx
    loss: Approx
    gradients: dict[str, Approx]
    near_ties: np.ndarray
    choices: int


def settled_batch(network: Network, state: dict[str, np.ndarray], images: np.ndarray, size: int) -> np.ndarray:
    """Indices of the first `size` images on which no choice of ReLU or max-pooling is a near tie.

    Raises ValueError if there are not so many.
    """
    found: list[int] = []
    for start in range(0, len(images), size):
        run = _Run(state)
        run.forward(network, images[start : start + size])
        found.extend(start + np.flatnonzero(run.near_ties == 0))
        if len(found) >= size:
            return np.array(found[:size])
    raise ValueError(f"settled_batch: only {len(found)} of {len(images)} images have no near tie in network {network.name!r}, {size} are needed; give more images")


def truth(network: Network, state: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> Truth:
    """Forward, loss and every gradient of `network` at images x (N, 3, 32, 32) and classes y (N,)."""
    run = _Run(state)
    output, loss, gradient = head(network.output, run.forward(network, x), y)
    for pull in reversed(run.pulls):
        gradient = pull(gradient)
    return Truth(output, loss, {**run.gradients, "input": gradient}, run.near_ties, run.choices)


def step(weight: np.ndarray, gradient: Approx, learning_rate: float) -> Approx:
    """weight - learning_rate * gradient: what the first step of SGD leaves, with momentum or without, as velocities start at 0.

    Three roundings of the product (the rate's, its own, and its share of the difference's), one of the weight.
    """
    weight, moved = weight.astype(np.float64), learning_rate * gradient.size
    error = learning_rate * gradient.error + rho(3) * moved + rho(1) * np.abs(weight)
    return Approx(weight - learning_rate * gradient.value, error, learning_rate * gradient.jump)


def product(apply, terms: int, a: Approx, b: Approx, plus: np.ndarray | None = None) -> Approx:
    """The bilinear map apply(a, b), each output a sum of `terms` products, plus one exact term (a bias)."""
    value = apply(a.value, b.value)
    error2 = apply(a.error**2, b.value**2)
    jump = apply(a.jump, np.abs(b.value))
    if b.bound.any():
        error2 = error2 + apply(a.value**2, b.error**2)
        jump = jump + apply(np.abs(a.value), b.jump) + apply(a.bound, b.bound)
    gauge = apply(a.size, b.size)
    if plus is not None:
        # where all products are exactly 0, as in an image's empty background, a bias is copied and not rounded
        gauge = np.where(gauge > 0, gauge + np.abs(plus), 0)
        value, terms = value + plus, terms + 1
    return Approx(value, np.hypot(np.sqrt(error2), rho(terms) * gauge), jump)


def total(a: Approx, axes) -> Approx:
    """The sum along axes."""
    count = a.value.size // max(a.value.sum(axis=axes).size, 1)
    rounding = rho(count) * a.size.sum(axis=axes)
    return Approx(a.value.sum(axis=axes), np.hypot(np.sqrt((a.error**2).sum(axis=axes)), rounding), a.jump.sum(axis=axes))


class _Run:
    """One pass. Each layer is a method that returns its output and the way back, pull(dy) -> dx."""

    def __init__(self, state):
        self.state = {name: exactly(a) for name, a in state.items()}
        self.gradients: dict[str, Approx] = {}

    def forward(self, network: Network, x) -> Approx:
        value, self.pulls = exactly(x), []
        self.near_ties, self.choices = np.zeros(len(x), int), 0
        for layer in network.layers:
            if isinstance(layer, Conv):
                value, pull = self.conv(layer, value)
            elif isinstance(layer, Dense):
                value, pull = self.dense(layer, value)
            elif isinstance(layer, Flatten):
                value, pull = self.flatten(value)
            elif isinstance(layer, MaxPool):
                value, pull = self.max_pool(layer.size, value)
            else:
                assert isinstance(layer, ReLU)
                value, pull = self.relu(value)
            self.pulls.append(pull)
        return value

    def conv(self, layer: Conv, x: Approx):
        weight, bias = self.state[f"{layer.name}.weight"], self.state[f"{layer.name}.bias"].value
        shape = weight.value.shape
        window = Window(x.value.shape, shape, 1, layer.padding, 1, 1, "NCHW")
        y = product(lambda a, b: _k.conv2d(a, b, None, **window), shape[1] * shape[2] * shape[3], x, weight, bias[:, None, None])

        def pull(dy: Approx) -> Approx:
            places = dy.value.size // shape[0]
            self.gradients[f"{layer.name}.bias"] = total(dy, (0, 2, 3))
            self.gradients[f"{layer.name}.weight"] = product(lambda a, b: _k.conv2d_dw(a, b, weight_shape=shape, **window), places, dy, x)
            return product(lambda a, b: _k.conv2d_dx(a, b, x_shape=x.value.shape, **window), shape[0] * shape[2] * shape[3], dy, weight)

        return y, pull

    def dense(self, layer: Dense, x: Approx):
        weight, bias = self.state[f"{layer.name}.weight"], self.state[f"{layer.name}.bias"].value
        y = product(lambda a, b: a @ b.T, x.value.shape[1], x, weight, bias)

        def pull(dy: Approx) -> Approx:
            self.gradients[f"{layer.name}.bias"] = total(dy, 0)
            self.gradients[f"{layer.name}.weight"] = product(lambda a, b: a.T @ b, len(dy.value), dy, x)
            return product(lambda a, b: a @ b, weight.value.shape[0], dy, weight)

        return y, pull

    def flatten(self, x: Approx):
        shape = x.value.shape
        return x.map(lambda a: a.reshape(len(a), -1)), lambda dy: dy.map(lambda a: a.reshape(shape))

    def relu(self, x: Approx):
        on, undecided = x.value > 0, (np.abs(x.value) <= x.bound) & (x.bound > 0)
        self._count(on, undecided)

        def pull(dy: Approx) -> Approx:
            kept = dy.map(lambda a: np.where(on, a, 0))
            return Approx(kept.value, kept.error, np.where(undecided, dy.size, kept.jump))

        passed = x.map(lambda a: np.where(on | undecided, a, 0))
        return Approx(np.maximum(passed.value, 0), passed.error, passed.jump), pull

    def max_pool(self, s: int, x: Approx):
        outputs = (x.value.shape[2] // s, x.value.shape[3] // s)
        geometry = dict(kernel_size=(s, s), stride=(s, s), padding=((0, 0), (0, 0)), dilation=(1, 1), ceil_mode=False, layout="NCHW")
        best, argmax = _k.max_pool2d(x.value, **geometry)
        floor, _ = _k.max_pool2d(x.value - x.bound, **geometry)  # the least that a window's maximum can be
        rivals = np.zeros(best.shape, int)
        reaches = np.zeros(x.value.shape, bool)
        for _, _, h, w in taps((s, s), (s, s), (1, 1), outputs):
            # What is exactly 0 and exactly equal came out of a ReLU that lets no gradient through: no decision.
            reaches[:, :, h, w] = ((x.value + x.bound)[:, :, h, w] >= floor) & (x.bound[:, :, h, w] > 0)
            rivals += reaches[:, :, h, w]
        undecided = rivals > 1
        self._count(best, undecided)

        def back(a):
            return _k.max_pool2d_dx(a, argmax, x_shape=x.value.shape, layout="NCHW")

        def pull(dy: Approx) -> Approx:
            dx = dy.map(back)
            jump = dx.jump
            for _, _, h, w in taps((s, s), (s, s), (1, 1), outputs):
                jump[:, :, h, w] = np.where(undecided & reaches[:, :, h, w], dy.size, jump[:, :, h, w])
            return Approx(dx.value, dx.error, jump)

        return Approx(best, *(_k.max_pool2d(a, **geometry)[0] for a in (x.error, x.jump))), pull

    def _count(self, choices, undecided) -> None:
        self.choices += choices.size
        self.near_ties += undecided.reshape(len(undecided), -1).sum(axis=1)


def head(kind: str, z: Approx, classes) -> tuple[Approx, Approx, Approx]:
    """(network output, mean cross-entropy, gradient of the logits z).

    The bounds of the shifted forms: P. Blanchard, D. Higham, N. Higham, "Accurately computing the log-sum-exp
    and softmax functions", IMA J. Numer. Anal. 41(4), 2021.
    """
    n, count = z.value.shape
    rows = np.arange(n)
    d = z.value - z.value.max(axis=1, keepdims=True)
    sums = np.exp(d).sum(axis=1, keepdims=True)
    p, log_p = np.exp(d) / sums, d - np.log(sums)
    in_sum = (np.exp(d) * (U * np.abs(d) + 2 * EXP_LOG * U)).sum(axis=1, keepdims=True) / sums + (count - 1) * U
    carried = z.bound + z.bound.max(axis=1, keepdims=True)  # d log_p_j = dz_j - sum over t of p_t dz_t
    log_error = carried + U * np.abs(d) + in_sum + 2 * EXP_LOG * U * np.abs(np.log(sums)) + U * np.abs(log_p)
    p_error = p * np.expm1(carried + U * np.abs(d) + 2 * EXP_LOG * U + in_sum + U) + 2.0**-149
    zero = np.zeros_like(p)
    output = {"logits": z, "log_probabilities": Approx(log_p, log_error, zero), "probabilities": Approx(p, p_error, zero)}[kind]

    losses, each = -log_p[rows, classes], log_error[rows, classes]
    relative = (p_error / p)[rows, classes]
    if kind == "probabilities":  # the logarithm of what was already rounded to a probability
        each = relative / (1 - relative) + EXP_LOG * U * losses
    loss = Approx(losses.mean(), (each + (rho(n) + U) * losses).mean(), np.zeros(()))

    target = np.zeros_like(p)
    target[rows, classes] = 1.0
    # dz = (p - target) / n. Who goes through softmax's own gradient forms p_j (g_j - sum over t of p_t g_t) with
    # g = -target / (n p): the relative error of p at the target enters once more, and a sum over the classes.
    # The errors of one image's classes depend on each other: (sum e_j w_j)^2 <= classes * sum e_j^2 w_j^2 (Cauchy-Schwarz).
    dz_error = np.sqrt(count) * (p_error + (p + target) * (relative[:, None] + rho(count + 4))) / n
    return output, loss, Approx((p - target) / n, dz_error, zero)
