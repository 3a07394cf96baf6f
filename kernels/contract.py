"""The contract: for each kernel name its arguments, its outputs, its work, and how it is judged.

A kernel is a pure function on arrays. Arrays come first, parameters by keyword, and the
outputs are given by the caller (`out`, one array, or a tuple where there are several):
whoever calls a kernel owns its outputs, which are C-contiguous, and may poison them first.
Inputs lie in memory as they please and are never written. Strides, dilations and kernel
sizes arrive as pairs, padding as ((top, bottom), (left, right)), images in `layout`,
convolution weights as (out, in/groups, kh, kw) in every layout.

Each function below *is* one entry: its signature is the kernels' signature (less `out`),
its docstring the definition, and it returns a `Spec`. Implementations are registered with
`@implements(name, device=..., variant=...)`; the first one of a device is its default, unless another says `default=True`.

Next on the walk: kernels/reference/conv2d.py, the definition as code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from math import prod

import numpy as np

from tinynet.geometry import in_layout, nchw, output_size

INDEX = np.dtype(np.int32)


@dataclass(frozen=True)
class Spec:
    """What one call returns and what it costs.

    outputs: (shape, dtype) of each output array.
    flops:   useful floating-point operations; an addition and a multiplication each count.
    terms:   the longest chain of additions behind one output, the n of the error bound.
    """

    outputs: tuple[tuple[tuple[int, ...], np.dtype], ...]
    flops: int
    terms: int


@dataclass(frozen=True)
class Contract:
    """One kernel name. `judged` is "sum" (rounding is bounded by gamma_n times the gauge) or
    "selection" (values are copied, never computed: bit-exact)."""

    name: str
    spec: Callable[..., Spec]
    judged: str
    arrays: tuple[str, ...]
    parameters: tuple[str, ...]

    @property
    def definition(self) -> str:
        return inspect.getdoc(self.spec) or ""

    def least_bytes(self, arrays, spec: Spec) -> int:
        """Every input read once and every output written once."""
        read = sum(a.nbytes for a in arrays if a is not None)
        return read + sum(prod(shape) * dtype.itemsize for shape, dtype in spec.outputs)


@dataclass(frozen=True)
class Implementation:
    name: str
    device: str
    variant: str
    function: Callable
    norm: float | None = None  # judged by norm, with this bound: for what no bound of each element fits (Winograd)

    @property
    def path(self) -> str:
        return f"{self.device}.{self.variant}"


@dataclass(frozen=True)
class Later:
    """An Implementation that is registered when its module is imported, and that is when somebody asks for its function."""

    name: str
    device: str
    variant: str
    module: str
    norm = None
    path = Implementation.path

    @property
    def function(self) -> Callable:
        import_module(self.module)
        return IMPLEMENTATIONS[self.name, self.device][self.variant].function


CONTRACTS: dict[str, Contract] = {}
IMPLEMENTATIONS: dict[tuple[str, str], dict[str, Implementation | Later]] = {}  # (name, device) -> variant -> implementation


def implemented_later(module: str, *names: str, device: str, variant: str) -> None:
    """Says that a module will implement these kernels when it is imported; until somebody calls one, it is not."""
    for name in names:
        IMPLEMENTATIONS.setdefault((name, device), {})[variant] = Later(name, device, variant, module)


def _contract(judged: str):
    def register(spec):
        parameters = inspect.signature(spec).parameters.values()
        arrays = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
        keywords = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
        CONTRACTS[spec.__name__] = Contract(spec.__name__, spec, judged, arrays, keywords)
        return spec

    return register


def implements(name: str, *, device: str, variant: str, default: bool = False, norm: float | None = None):
    """Registers a function as one way to run the kernel `name`; `default` puts it before those that are there.

    norm: declares that results are right as a whole, ||got - truth||_2 <= norm * ||gauge||_2, and not element by
    element (docs/oracle.md).

    Raises TypeError if its signature is not the contract's with `out` added.
    """
    if name not in CONTRACTS:
        raise ValueError(f"there is no kernel {name!r}; the kernels are {', '.join(CONTRACTS)}")
    contract = CONTRACTS[name]

    def register(function):
        found = inspect.signature(function).parameters.values()
        arrays = tuple(p.name for p in found if p.kind is p.POSITIONAL_OR_KEYWORD)
        keywords = {p.name for p in found if p.kind is p.KEYWORD_ONLY}
        if arrays != contract.arrays or keywords != {*contract.parameters, "out"}:
            raise TypeError(
                f"{device}.{variant}: kernel {name} must have the signature "
                f"({', '.join(contract.arrays)}, *, {', '.join(contract.parameters + ('out',))}); "
                f"got {inspect.signature(function)}"
            )
        variants = IMPLEMENTATIONS.setdefault((name, device), {})
        if variant in variants and not isinstance(variants[variant], Later):
            raise ValueError(f"kernel {name} already has an implementation {device}.{variant}; choose another variant name")
        found = {variant: Implementation(name, device, variant, function, norm)}
        IMPLEMENTATIONS[name, device] = {**found, **variants} if default else {**variants, **found}
        return function

    return register


# --- convolution ---------------------------------------------------------------------------------


@_contract(judged="sum")
def conv2d(x, weight, bias, *, stride, padding, dilation, groups, layout) -> Spec:
    """y[n,k,i,j] = bias[k] + sum over c,u,v of x[n, c, i*s + u*d - p, j*s + v*d - p] * weight[k,c,u,v].

    x outside of the image is 0; c runs over the channels of k's group; bias may be None.
    """
    n, _, h, w = nchw(x.shape, layout)
    k, c, kh, kw = weight.shape
    i = output_size(h, kh, stride[0], dilation[0], padding[0])
    j = output_size(w, kw, stride[1], dilation[1], padding[1])
    terms = c * kh * kw
    return Spec(((in_layout(n, k, i, j, layout), x.dtype),), 2 * n * k * i * j * terms, terms + (bias is not None))


@_contract(judged="sum")
def conv2d_dx(dy, weight, *, x_shape, stride, padding, dilation, groups, layout) -> Spec:
    """dx[n,c,h,w] = sum over k,u,v with i*s + u*d - p = h, j*s + v*d - p = w of dy[n,k,i,j] * weight[k,c,u,v]."""
    k, c, kh, kw = weight.shape
    return Spec(((tuple(x_shape), dy.dtype),), 2 * dy.size * c * kh * kw, k // groups * kh * kw)


@_contract(judged="sum")
def conv2d_dw(dy, x, *, weight_shape, stride, padding, dilation, groups, layout) -> Spec:
    """dweight[k,c,u,v] = sum over n,i,j of dy[n,k,i,j] * x[n, c, i*s + u*d - p, j*s + v*d - p]."""
    n, _, i, j = nchw(dy.shape, layout)
    return Spec(((tuple(weight_shape), dy.dtype),), 2 * dy.size * prod(weight_shape[1:]), n * i * j)


@_contract(judged="sum")
def conv2d_db(dy, *, layout) -> Spec:
    """dbias[k] = sum over n,i,j of dy[n,k,i,j]."""
    n, k, i, j = nchw(dy.shape, layout)
    return Spec((((k,), dy.dtype),), dy.size, n * i * j)


@_contract(judged="sum")
def conv2d_relu_max_pool2d(x, weight, bias, *, stride, padding, dilation, groups, layout) -> Spec:
    """y[n,k,i,j] = the largest z[n,k,2i+a,2j+b] of a, b in 0, 1, or 0 if that is less; z = conv2d(x, weight, bias), of which
    nobody needs more than one in four numbers: a last row or column of z without a partner is not computed.

    argmax (int32) is the place h * columns + w of that z in its plane, the first in row-major order among equals; -1 where it is
    not > 0, as where it is NaN, for there ReLU lets no gradient pass. So max_pool2d_dx(dy, argmax) is the gradient at z.
    """
    (((*sizes,), dtype),) = conv2d(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups, layout=layout).outputs
    n, k, h, w = nchw(tuple(sizes), layout)
    shape, terms = in_layout(n, k, h // 2, w // 2, layout), prod(weight.shape[1:])
    return Spec(((shape, x.dtype), (shape, INDEX)), 4 * prod(shape) * (2 * terms + 1), terms + (bias is not None))


# --- pooling -------------------------------------------------------------------------------------


def _pooled(x_shape, kernel_size, stride, padding, dilation, ceil_mode, layout) -> tuple[int, ...]:
    n, c, *sizes = nchw(x_shape, layout)
    i, j = (output_size(*axis, ceil_mode) for axis in zip(sizes, kernel_size, stride, dilation, padding))
    return in_layout(n, c, i, j, layout)


@_contract(judged="selection")
def max_pool2d(x, *, kernel_size, stride, padding, dilation, ceil_mode, layout) -> Spec:
    """y[n,c,i,j] = the largest x[n, c, i*s + u*d - p, j*s + v*d - p] inside the image; -inf where there is none.

    argmax (int32) is its place h * columns + w in the image's plane, the first in row-major order among
    equals; -1 where the window lies in the padding alone. A NaN is larger than any number: the first one wins.
    """
    shape = _pooled(x.shape, kernel_size, stride, padding, dilation, ceil_mode, layout)
    return Spec(((shape, x.dtype), (shape, INDEX)), prod(shape) * prod(kernel_size), 0)


@_contract(judged="sum")
def max_pool2d_dx(dy, argmax, *, x_shape, layout) -> Spec:
    """dx[n,c,h,w] = sum of the dy[n,c,i,j] whose argmax is (h, w)."""
    # Windows overlap as often as their geometry, unknown here, lets them: at most every output meets one input.
    _, _, i, j = nchw(dy.shape, layout)
    return Spec(((tuple(x_shape), dy.dtype),), dy.size, i * j)


@_contract(judged="sum")
def avg_pool2d(x, *, kernel_size, stride, padding, ceil_mode, count_include_pad, layout) -> Spec:
    """y[n,c,i,j] = sum of the window's x inside the image, over their number, or with `count_include_pad`
    over the number of places of the window in the padded image; 0 where that number is 0."""
    shape = _pooled(x.shape, kernel_size, stride, padding, (1, 1), ceil_mode, layout)
    return Spec(((shape, x.dtype),), prod(shape) * (prod(kernel_size) + 1), prod(kernel_size) + 1)


@_contract(judged="sum")
def avg_pool2d_dx(dy, *, x_shape, kernel_size, stride, padding, ceil_mode, count_include_pad, layout) -> Spec:
    """dx[n,c,h,w] = sum over the windows (i, j) that hold (h, w) of dy[n,c,i,j] / their count in avg_pool2d."""
    overlap = prod(-(-e // s) for e, s in zip(kernel_size, stride))
    return Spec(((tuple(x_shape), dy.dtype),), dy.size * (prod(kernel_size) + 1), overlap + 1)


# --- matrix product ------------------------------------------------------------------------------


@_contract(judged="sum")
def matmul(a, b) -> Spec:
    """c[..., i, j] = sum over t of a[..., i, t] * b[..., t, j]; leading axes of equal length are a batch."""
    *batch, i, t = a.shape
    return Spec((((*batch, i, b.shape[-1]), a.dtype),), 2 * prod(batch) * i * t * b.shape[-1], t)


# --- rectification -------------------------------------------------------------------------------


@_contract(judged="selection")
def relu_dx(dy, x) -> Spec:
    """dx = dy where x > 0, else 0, as where x is NaN. y = relu(x) does for x, since it is > 0 in the same places."""
    return Spec(((dy.shape, dy.dtype),), dy.size, 0)


# --- loss ----------------------------------------------------------------------------------------


@_contract(judged="sum")
def softmax_cross_entropy(logits, target) -> Spec:
    """loss[n] = -log(p[n,target[n]]) and dlogits[n,j] = p[n,j] - (1 where j = target[n], else 0), the gradient of each loss;
    p[n,j] = exp(logits[n,j]) / sum over t of exp(logits[n,t]).

    target (int64) holds classes, from 0 to the number of logits - 1: who calls checks that.
    """
    rows, classes = logits.shape
    return Spec((((rows,), logits.dtype), (logits.shape, logits.dtype)), 5 * logits.size, classes)


# --- optimisers ----------------------------------------------------------------------------------
# Outputs may be the very arrays w, v, m and s: each number is read before it is written.


@_contract(judged="sum")
def sgd_step(w, g, v, *, lr, momentum, nesterov, weight_decay) -> Spec:
    """v' = momentum * v + d and w' = w - lr * v', with d = g + weight_decay * w; with `nesterov` w' = w - lr * (d + momentum * v').

    Without momentum v is None, and w' = w - lr * d is the one output.
    """
    after = (w.shape, w.dtype)
    return Spec((after, after) if momentum else (after,), w.size * (2 + 2 * bool(momentum) + 2 * bool(nesterov) + 2 * bool(weight_decay)), 3)


@_contract(judged="sum")
def adam_step(w, g, m, s, *, t, lr, betas, eps, weight_decay, decoupled) -> Spec:
    """m' = b1 m + (1-b1) g, s' = b2 s + (1-b2) g g, w' = w - lr m'/(1-b1^t) / (sqrt(s'/(1-b2^t)) + eps): step t = 1, 2, ...

    weight_decay * w is added to g first or, `decoupled` (AdamW), w is multiplied by 1 - lr * weight_decay.
    """
    after = (w.shape, w.dtype)
    return Spec((after, after, after), w.size * (12 + 2 * bool(weight_decay)), 3)
