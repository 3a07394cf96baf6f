"""The truth of functional's pointwise ops, copies, reductions and dense layers, and of their gradients.

* Copies and selections (flatten, relu, max) are exact; so is one +, -, * or /: IEEE 754
  rounds it correctly, and float64 rounded to float32 is the same number (53 >= 2*24 + 2 bits;
  Figueroa 1995). For float64 candidates numpy's own operation is that number.
* sum, mean, linear, matmul: gauge and n, as for the kernels.
* The rest (exp, log, sqrt, power, gradients with several roundings): running bounds.

A gradient is called as `<op>_grad(dy, *inputs, wrt=None, **parameters)`: one Bounded, or a
tuple in the order of the inputs, or the one that `wrt` names. Broadcast inputs get sums.
"""

from __future__ import annotations

from builtins import max as most  # `max` and `sum` are ops below
from functools import partial
from math import prod

import numpy as np

from tinynet.oracle.bounds import Bounded
from tinynet.oracle.running import evaluate
from tinynet.oracle.truth_kernels import chosen, floats, matmul, products, quotient, sums

# --- copies and selections -----------------------------------------------------------------------


def _copy(value, fmt) -> Bounded:
    value = np.asarray(value, np.float64)
    return Bounded(value, np.abs(value), 0, exact=True, dtype=fmt.name)


def relu(x, *, dtype=None) -> Bounded:
    """max(x, 0), exact; NaN is passed on."""
    (x,), fmt = floats("oracle.reference.relu", dtype, x=x)
    return _copy(np.maximum(x.astype(np.float64), 0), fmt)


def relu_dx(dy, x, *, dtype=None) -> Bounded:
    """The contract's kernel: relu_grad, also from y in place of x."""
    return relu_grad(dy, x, dtype=dtype)


def relu_grad(dy, x, *, dtype=None) -> Bounded:
    """dy where x > 0, else 0 (so 0 at x = 0), exact."""
    (dy, x), fmt = floats("oracle.reference.relu_grad", dtype, dy=dy, x=x)
    return _copy(np.where(x.astype(np.float64) > 0, dy.astype(np.float64), 0), fmt)


def reshape(x, *, shape, dtype=None) -> Bounded:
    (x,), fmt = floats("oracle.reference.reshape", dtype, x=x)
    return _copy(x.astype(np.float64).reshape(shape), fmt)


def reshape_grad(dy, x, *, shape=None, dtype=None) -> Bounded:
    return reshape(dy, shape=np.shape(x), dtype=dtype)


def flatten(x, start: int = 1, *, dtype=None) -> Bounded:
    """(N, C, H, W) as (N, C*H*W)."""
    shape = np.shape(x)
    return reshape(x, shape=(*shape[:start], prod(shape[start:])), dtype=dtype)


def flatten_grad(dy, x, start: int = 1, *, dtype=None) -> Bounded:
    return reshape(dy, shape=np.shape(x), dtype=dtype)


def permute(x, *, axes, dtype=None) -> Bounded:
    (x,), fmt = floats("oracle.reference.permute", dtype, x=x)
    return _copy(x.astype(np.float64).transpose(axes), fmt)


def permute_grad(dy, x, *, axes, dtype=None) -> Bounded:
    return permute(dy, axes=tuple(np.argsort([a % np.ndim(x) for a in axes])), dtype=dtype)


# --- one rounding --------------------------------------------------------------------------------


def _single(where, f, dtype, **arrays) -> Bounded:
    found, fmt = floats(where, dtype, **arrays)
    with np.errstate(all="ignore"):
        value = f(*(a.astype(np.float64) for a in found))
    return _copy(value, fmt)


def add(x, y, *, dtype=None) -> Bounded:
    return _single("oracle.reference.add", np.add, dtype, x=x, y=y)


def subtract(x, y, *, dtype=None) -> Bounded:
    return _single("oracle.reference.subtract", np.subtract, dtype, x=x, y=y)


def multiply(x, y, *, dtype=None) -> Bounded:
    return _single("oracle.reference.multiply", np.multiply, dtype, x=x, y=y)


def divide(x, y, *, dtype=None) -> Bounded:
    return _single("oracle.reference.divide", np.divide, dtype, x=x, y=y)


def negative(x, *, dtype=None) -> Bounded:
    return _single("oracle.reference.negative", np.negative, dtype, x=x)


def bias_add(x, bias, *, layout="NCHW", dtype=None) -> Bounded:
    """x + bias at every place, rounded once."""
    x, bias = np.asarray(x), np.asarray(bias)
    axis = 1 if layout == "NCHW" else x.ndim - 1
    if x.ndim < 2 or bias.shape != (x.shape[axis],):
        raise ValueError(f"oracle.reference.bias_add: bias must have one value for each channel of x {x.shape} ({layout}); got shape {bias.shape}")
    return add(x, bias.reshape(-1, *[1] * (x.ndim - 1 - axis)), dtype=dtype)


def bias_add_grad(dy, x, bias, *, layout="NCHW", wrt=None, dtype=None):
    (dy,), fmt = floats("oracle.reference.bias_add_grad", dtype, dy=dy)
    axes = tuple(a for a in range(dy.ndim) if a != (1 if layout == "NCHW" else dy.ndim - 1))
    return chosen("bias_add_grad", {"x": lambda: _copy(dy, fmt), "bias": lambda: _total(dy, axes, False, fmt)}, wrt)


# --- running bounds ------------------------------------------------------------------------------


def exp(x, *, dtype=None) -> Bounded:
    (x,), fmt = floats("oracle.reference.exp", dtype, x=x)
    return evaluate(lambda m, x: m.exp(x), fmt, x)


def log(x, *, dtype=None) -> Bounded:
    (x,), fmt = floats("oracle.reference.log", dtype, x=x)
    return evaluate(lambda m, x: m.log(x), fmt, x)


def sqrt(x, *, dtype=None) -> Bounded:
    """Within one unit in the last place (running.py says why not exact)."""
    (x,), fmt = floats("oracle.reference.sqrt", dtype, x=x)
    return evaluate(lambda m, x: m.sqrt(x), fmt, x)


def power(x, exponent, *, dtype=None) -> Bounded:
    """x ** exponent, by a good pow or by exp(exponent * log x)."""
    (x,), fmt = floats("oracle.reference.power", dtype, x=x)
    return evaluate(lambda m, x: x ** m.number(exponent), fmt, x)


def _unbroadcast(dy, shape):
    """The sum over the axes along which an input of `shape` was repeated."""
    value = getattr(dy, "value", dy)
    extra = value.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(extra + i for i, size in enumerate(shape) if size == 1 and value.shape[extra + i] != 1)
    return dy.sum(axis=axes, keepdims=True).reshape(shape) if axes else dy


def _gradients(name, dy, dtype, wrt, formulas, **inputs):
    """Gradients by running bounds: {input: (formula(m, dy, *inputs), other forms ...)}; integers may not be inputs."""
    (dy, *found), fmt = floats(f"oracle.reference.{name}", dtype, dy=dy, **inputs)

    def make(key):
        shape = inputs[key].shape if hasattr(inputs[key], "shape") else np.shape(inputs[key])
        forms = [lambda m, *a, f=f: _unbroadcast(f(m, *a), shape) for f in formulas[key]]
        return evaluate(forms[0], fmt, dy, *found, forms=forms[1:])

    return chosen(name, {key: partial(make, key) for key in formulas}, wrt)


def add_grad(dy, x, y, *, wrt=None, dtype=None):
    return _gradients("add_grad", dy, dtype, wrt, {"x": [lambda m, dy, x, y: dy], "y": [lambda m, dy, x, y: dy]}, x=x, y=y)


def subtract_grad(dy, x, y, *, wrt=None, dtype=None):
    return _gradients("subtract_grad", dy, dtype, wrt, {"x": [lambda m, dy, x, y: dy], "y": [lambda m, dy, x, y: -dy]}, x=x, y=y)


def multiply_grad(dy, x, y, *, wrt=None, dtype=None):
    return _gradients("multiply_grad", dy, dtype, wrt, {"x": [lambda m, dy, x, y: dy * y], "y": [lambda m, dy, x, y: dy * x]}, x=x, y=y)


def divide_grad(dy, x, y, *, wrt=None, dtype=None):
    at_y = [lambda m, dy, x, y: -dy * (x / y) / y, lambda m, dy, x, y: -dy * x / (y * y), lambda m, dy, x, y: -dy * (x / (y * y))]
    one = [lambda m, dy, x, y: dy / y, lambda m, dy, x, y: dy * (m.number(1) / y)]
    return _gradients("divide_grad", dy, dtype, wrt, {"x": one, "y": at_y}, x=x, y=y)


def negative_grad(dy, x, *, dtype=None) -> Bounded:
    return negative(dy, dtype=dtype)


def power_grad(dy, x, exponent, *, dtype=None):
    if exponent == 0:
        return multiply(dy, np.zeros_like(dy), dtype=dtype)
    return _gradients("power_grad", dy, dtype, None, {"x": [lambda m, dy, x: dy * m.number(exponent) * x ** m.number(exponent - 1)]}, x=x)


def exp_grad(dy, x, *, dtype=None):
    return _gradients("exp_grad", dy, dtype, None, {"x": [lambda m, dy, x: dy * m.exp(x)]}, x=x)


def log_grad(dy, x, *, dtype=None):
    return _gradients("log_grad", dy, dtype, None, {"x": [lambda m, dy, x: dy / x, lambda m, dy, x: dy * (m.number(1) / x)]}, x=x)


def sqrt_grad(dy, x, *, dtype=None):
    forms = [lambda m, dy, x: dy / (m.number(2) * m.sqrt(x)), lambda m, dy, x: dy * (m.number(0.5) / m.sqrt(x))]
    return _gradients("sqrt_grad", dy, dtype, None, {"x": forms}, x=x)


# --- reductions ----------------------------------------------------------------------------------


def _total(x, axis, keepdims, fmt) -> Bounded:
    count = np.size(x) // most(np.asarray(x).sum(axis=axis).size, 1)
    return sums(lambda a: np.asarray(a.sum(axis=axis, keepdims=keepdims)), x, most(count - 1, 0), fmt, count)


def sum(x, axis=None, *, keepdims=False, dtype=None) -> Bounded:
    """gauge: the sum of |x|; n = count - 1 additions."""
    (x,), fmt = floats("oracle.reference.sum", dtype, x=x)
    return _total(x, axis, keepdims, fmt)


def mean(x, axis=None, *, keepdims=False, dtype=None) -> Bounded:
    """sum / count; gauge: the mean of |x|; n = count - 1 additions and 2 roundings of the division (or of 1/count)."""
    (x,), fmt = floats("oracle.reference.mean", dtype, x=x)
    count = x.size // most(np.asarray(x.sum(axis=axis)).size, 1)
    total = _total(x, axis, keepdims, fmt)
    exact = fmt.p < 53 or total.low is not None
    value, low = quotient(total.value, total.low, count, fmt) if exact else (total.value / count, None)
    return Bounded(value, total.gauge / count, count + 1, low=low, dtype=fmt.name, peak=count)


def max(x, axis=None, *, keepdims=False, dtype=None) -> Bounded:
    (x,), fmt = floats("oracle.reference.max", dtype, x=x)
    return _copy(x.astype(np.float64).max(axis=axis, keepdims=keepdims), fmt)


def _spread(dy, shape, axis, keepdims):
    if axis is not None and not keepdims:
        dy = np.expand_dims(dy, tuple(a % len(shape) for a in (axis if isinstance(axis, tuple) else (axis,))))
    return np.broadcast_to(dy, shape)


def sum_grad(dy, x, axis=None, *, keepdims=False, dtype=None) -> Bounded:
    (dy,), fmt = floats("oracle.reference.sum_grad", dtype, dy=dy)
    return _copy(_spread(dy, np.shape(x), axis, keepdims), fmt)


def mean_grad(dy, x, axis=None, *, keepdims=False, dtype=None) -> Bounded:
    """dy / count everywhere, or dy * (1 / count)."""
    (dy,), fmt = floats("oracle.reference.mean_grad", dtype, dy=dy)
    spread = _spread(dy.astype(np.float64), np.shape(x), axis, keepdims)
    value, low = quotient(spread, None, spread.size // most(dy.size, 1), fmt)
    return Bounded(value, np.abs(value), 2, low=low, dtype=fmt.name)


def max_grad(dy, x, axis=None, *, keepdims=False, dtype=None) -> Bounded:
    """dy at the first maximum."""
    (dy, x), fmt = floats("oracle.reference.max_grad", dtype, dy=dy, x=x)
    x = x.astype(np.float64)
    dx = np.zeros(x.shape)
    if axis is None:
        dx.reshape(-1)[x.argmax()] = float(dy.reshape(()))
    else:
        place = np.expand_dims(x.argmax(axis=axis), axis)
        np.put_along_axis(dx, place, (dy if keepdims else np.expand_dims(dy, axis)).astype(np.float64), axis)
    return _copy(dx, fmt)


# --- dense layers --------------------------------------------------------------------------------


def _rows(a):
    a = np.asarray(a)
    return a.reshape(prod(a.shape[:-1]), a.shape[-1])


def linear(x, weight, bias=None, *, dtype=None) -> Bounded:
    """y = x weight^T + bias; gauge |x| |weight|^T + |bias|; n = features (+ 1 with a bias)."""
    (x, weight, bias), fmt = floats("oracle.reference.linear", dtype, x=x, weight=weight, bias=bias)
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"oracle.reference.linear: needs x (..., T) and weight (K, T); got {x.shape} and {weight.shape}")
    found = products(lambda a, b: a @ b.T, _rows(x), weight, weight.shape[1], fmt, bias)
    return found.moved(lambda a: a.reshape(*x.shape[:-1], weight.shape[0]))


def linear_grad(dy, x, weight, bias=None, *, wrt=None, dtype=None):
    """(dx, dweight) or (dx, dweight, dbias): dy weight, dy^T x, and the sum of dy over the rows."""
    (dy, x, weight, bias), fmt = floats("oracle.reference.linear_grad", dtype, dy=dy, x=x, weight=weight, bias=bias)
    rows = _rows(dy)
    found = {
        "x": lambda: matmul(rows, weight, dtype=fmt.name).moved(lambda a: a.reshape(x.shape)),
        "weight": lambda: matmul(rows.T, _rows(x), dtype=fmt.name),
    }
    if bias is not None:
        found["bias"] = lambda: _total(rows, 0, False, fmt)
    return chosen("linear_grad", found, wrt)


def matmul_grad(dy, a, b, *, wrt=None, dtype=None):
    """(da, db) = (dy b^T, a^T dy), summed over the axes along which one was broadcast."""
    (dy, a, b), fmt = floats("oracle.reference.matmul_grad", dtype, dy=dy, a=a, b=b)
    batch = prod(dy.shape[:-2])

    def share(p, q, shape, n):
        repeats = batch // most(prod(shape[:-2]), 1)
        return products(lambda s, t: _unbroadcast(s @ t, shape), p, q, n * repeats, fmt)

    found = {
        "a": lambda: share(dy, b.swapaxes(-1, -2), a.shape, b.shape[-1]),
        "b": lambda: share(a.swapaxes(-1, -2), dy, b.shape, a.shape[-2]),
    }
    return chosen("matmul_grad", found, wrt)
