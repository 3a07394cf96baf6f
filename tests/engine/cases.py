"""The samples of every op, filled with numbers; and what torch calls each op."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tinynet.geometry import PoolWindow, Window
from tinynet.op import OPS

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
