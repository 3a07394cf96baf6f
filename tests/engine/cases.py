"""The samples of every op, filled with numbers; what torch calls each op; and how far each may round.

A bound is `units * u`: for each output and gradient the number of roundings on its longest chain
times its gauge, the same computation on absolute values (bounds.py). Softmax and the losses have
the bounds that research/oracle.md derives.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from bounds import EXP_LOG

from tinynet.geometry import PoolWindow, Window
from tinynet.op import OPS

EXACT = {"relu", "reshape", "flatten", "permute", "getitem", "max", "max_pool2d", "move", "astype", "negative"}  # copies and selections
ONE_ROUNDING = {"add", "subtract", "multiply", "divide", "sqrt", "bias_add"}  # so the rounded exact result


@dataclass(frozen=True)
class Case:
    op: str
    number: int
    inputs: tuple  # float32 arrays, integer arrays, or None
    parameters: dict

    def __str__(self) -> str:
        return f"{self.op} {self.number}"

    @property
    def floats(self) -> list[int]:
        """The inputs that have a gradient."""
        return [i for i, a in enumerate(self.inputs) if a is not None and a.dtype.kind == "f"]


def all_cases() -> list[Case]:
    found = []
    for name, op in sorted(OPS.items()):
        if op.make_samples is None:
            continue
        rng = np.random.default_rng(len(name))
        for number, (*inputs, parameters) in enumerate(op.make_samples(rng)):
            inputs += [None] * (len(op.inputs) - len(inputs))
            found.append(Case(name, number, tuple(_filled(rng, value) for value in inputs), parameters))
    return found


def _filled(rng, value):
    if isinstance(value, tuple):
        value = rng.standard_normal(value)
    return value.astype(np.float32) if value is not None and value.dtype.kind == "f" else value


# --- torch -------------------------------------------------------------------------------------------------

_t = torch.nn.functional


def _images(function):
    """A torch function on NCHW images as one on images in `layout`."""

    def call(x, *rest, layout="NCHW", **parameters):
        if layout == "NCHW":
            return function(x, *rest, **parameters)
        return function(x.permute(0, 3, 1, 2), *rest, **parameters).permute(0, 2, 3, 1)

    return call


def _padded(x, padding, value=0.0):
    (top, bottom), (left, right) = padding
    return _t.pad(x, (left, right, top, bottom), value=value)


@_images
def _conv2d(x, weight, bias, *, stride=1, padding=0, dilation=1, groups=1):
    window = Window(tuple(x.shape), tuple(weight.shape), stride, padding, dilation, groups, "NCHW")
    return _t.conv2d(_padded(x, window["padding"]), weight, bias, window["stride"], 0, window["dilation"], groups)


@_images
def _max_pool2d(x, *, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    window = PoolWindow(tuple(x.shape), kernel_size, stride, padding, ceil_mode, "NCHW", "max_pool2d", dilation)
    return _t.max_pool2d(_padded(x, window["padding"], -np.inf), kernel_size, window["stride"], 0, dilation, ceil_mode)


@_images
def _avg_pool2d(x, *, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
    if isinstance(padding, int):
        return _t.avg_pool2d(x, kernel_size, stride, padding, ceil_mode, count_include_pad)
    window = PoolWindow(tuple(x.shape), kernel_size, stride, padding, ceil_mode, "NCHW", "avg_pool2d")
    mean = lambda images: _t.avg_pool2d(_padded(images, window["padding"]), kernel_size, window["stride"])  # noqa: E731
    return mean(x) if count_include_pad else mean(x) / mean(torch.ones_like(x))


def _bias_add(x, bias, *, layout="NCHW"):
    return x + bias.reshape(-1, *[1] * (x.ndim - 2)) if layout == "NCHW" else x + bias


def _max(x, *, axis=None, keepdims=False):
    return x.max() if axis is None else x.max(dim=axis, keepdim=keepdims).values


TORCH = {
    "add": torch.add,
    "subtract": torch.subtract,
    "negative": torch.negative,
    "multiply": torch.multiply,
    "divide": torch.divide,
    "power": lambda x, *, exponent: x**exponent,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "relu": torch.relu,
    "sum": lambda x, *, axis=None, keepdims=False: torch.sum(x, axis, keepdims),
    "mean": lambda x, *, axis=None, keepdims=False: torch.mean(x, axis, keepdims),
    "max": _max,
    "reshape": lambda x, *, shape: x.reshape(shape),
    "flatten": lambda x, *, start=1: torch.flatten(x, start),
    "permute": lambda x, *, axes: x.permute(axes),
    "getitem": lambda x, *, index: x[index],
    "astype": lambda x, *, dtype: x.to(torch.from_numpy(np.zeros(0, dtype)).dtype),
    "matmul": torch.matmul,
    "linear": _t.linear,
    "bias_add": _bias_add,
    "conv2d": _conv2d,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "softmax": lambda x, *, axis=-1: torch.softmax(x, axis),
    "log_softmax": lambda x, *, axis=-1: torch.log_softmax(x, axis),
    "cross_entropy": lambda logits, target, *, reduction="mean": _t.cross_entropy(logits, target, reduction=reduction),
    "nll_loss": lambda log_p, target, *, reduction="mean": _t.nll_loss(log_p, target, reduction=reduction),
}

# --- how far each may round --------------------------------------------------------------------------------


def units(case: Case, inputs: list, run) -> tuple[np.ndarray, list[np.ndarray]]:
    """The bound of the result and of each gradient, in units of u.

    inputs: the case's, in float64; run(inputs) -> (result, gradients) is the reference on them
    with a cotangent that `run` holds.
    """
    special = {"softmax": _softmax, "log_softmax": _log_softmax, "cross_entropy": _cross_entropy}.get(case.op)
    if special:
        return special(case, inputs, run)
    y, _ = run(inputs)
    if case.op not in EXACT:  # what is selected depends on the signs
        inputs = [a if a is None or a.dtype.kind != "f" else np.abs(a) for a in inputs]
    gauge, gradient_gauges = run(inputs, absolute=True)
    forward, backward = _roundings(case, inputs, y.size)
    return np.abs(y if case.op in ONE_ROUNDING else gauge) * forward, [np.abs(g) * n for g, n in zip(gradient_gauges, backward)]


def _roundings(case: Case, inputs: list, outputs: int) -> tuple[float, list[float]]:
    """n of the result, and of each gradient. Where an input was broadcast, its gradient is also a sum
    over all outputs at most."""
    op, size = case.op, [a.size for a in inputs if a is not None]
    if op in EXACT:
        return 0, [outputs if op in ("getitem", "max_pool2d") else 0]  # where places are taken twice, dx is a sum
    if op == "conv2d":
        weight = inputs[1].shape
        n = prod(weight[1:])
        return n + 1, [weight[0] // case.parameters.get("groups", 1) * prod(weight[2:]), outputs // weight[0], outputs // weight[0]]
    if op in ("linear", "matmul"):
        t = inputs[0].shape[-1]
        return t + 1, [inputs[1].size, outputs, outputs]
    if op in ("sum", "mean"):
        return size[0] // max(outputs, 1) + 1, [1]
    if op == "avg_pool2d":
        e = case.parameters["kernel_size"]
        n = e * e if isinstance(e, int) else e[0] * e[1]
        return n + 1, [n + 1]
    return {
        "add": (1, [outputs, outputs]),
        "subtract": (1, [outputs, outputs]),
        "bias_add": (1, [0, outputs]),
        "multiply": (1, [outputs + 1, outputs + 1]),
        "divide": (1, [outputs + 1, outputs + 3]),
        "power": (EXP_LOG, [EXP_LOG + 2]),
        "exp": (EXP_LOG, [EXP_LOG + 1]),
        "log": (EXP_LOG, [1]),
        "sqrt": (1, [2]),
        "nll_loss": (size[-1] + 1, [2]),
    }[op]


def _softmax(case, inputs, run):
    """p_j (u |d_j| + K u + relative error of the sum + u), d = x - max."""
    axis = case.parameters.get("axis", -1)
    y, (dx,) = run(inputs)
    relative = _softmax_error(inputs[0], axis)
    dy = run.cotangent
    through = y * (np.abs(dy) + (np.abs(dy) * y).sum(axis=axis, keepdims=True))
    return y * relative, [through * (3 * relative.max() + y.shape[axis] + 3)]


def _softmax_error(x, axis):
    d = np.abs(x - x.max(axis=axis, keepdims=True))
    each = d + EXP_LOG  # of one exponential: the rounding of d, and exp's own
    p = np.exp(-d)
    of_the_sum = (p * each).sum(axis=axis, keepdims=True) / p.sum(axis=axis, keepdims=True) + x.shape[axis] - 1
    return each + of_the_sum + 1


def _log_softmax_error(x, axis):
    """u |d_j| + error of the sum + K u |log S| + u |y_j|."""
    d = np.abs(x - x.max(axis=axis, keepdims=True))
    p = np.exp(-d)
    total = p.sum(axis=axis, keepdims=True)
    of_the_sum = (p * (d + EXP_LOG)).sum(axis=axis, keepdims=True) / total + x.shape[axis] - 1
    return d + of_the_sum + EXP_LOG * np.abs(np.log(total)) + np.abs(d + np.log(total))


def _log_softmax(case, inputs, run):
    axis = case.parameters.get("axis", -1)
    y, _ = run(inputs)
    error, dy = _log_softmax_error(inputs[0], axis), np.abs(run.cotangent)
    through = dy + np.exp(y) * dy.sum(axis=axis, keepdims=True)
    return error, [through * (error.max() + EXP_LOG + y.shape[axis] + 2)]


def _cross_entropy(case, inputs, run):
    logits, target = inputs
    losses, gradients = run(inputs)
    rows, classes = logits.shape
    error = _log_softmax_error(logits, 1)
    log_p = logits - logits.max(axis=1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    weights = np.eye(classes)[target] if target.ndim == 1 else target
    per_row = (weights * (error + classes * np.abs(log_p))).sum(axis=1)
    scale = np.abs(run.cotangent) / (rows if case.parameters.get("reduction", "mean") == "mean" else 1) * np.ones(rows)
    size = np.abs((weights * log_p).sum(axis=1))
    if case.parameters.get("reduction", "mean") == "none":
        loss = per_row
    else:
        loss = (per_row + (rows + 1) * size).sum() / (rows if case.parameters.get("reduction", "mean") == "mean" else 1)
    p = np.exp(log_p)
    found = [(p * (error.max() + EXP_LOG + classes + 4) + 4 * weights) * scale[:, None]]
    if target.ndim == 2:
        found.append((error + 4 * np.abs(log_p)) * scale[:, None])
    return np.asarray(loss), found
