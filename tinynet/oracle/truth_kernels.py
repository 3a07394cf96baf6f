"""The truth of every kernel in the contract: the reference kernels in float64, and their gauges.

    value = kernel(x, weight),  gauge = kernel(|x|, |weight|),  n = terms of the longest sum

For float64 candidates the same kernels run on slices without any rounding (extended.py). The
arguments are the contract's, in the friendly forms of functional too: a stride may be an int,
padding may be "same".
"""

from __future__ import annotations

from math import prod

import numpy as np

import tinynet.kernels.reference  # noqa: F401  (registers the kernels below)
from tinynet.geometry import PoolWindow, Window, check_images, in_layout, nchw, output_size
from tinynet.kernels.contract import CONTRACTS, IMPLEMENTATIONS
from tinynet.kernels.reference.layout import as_nchw
from tinynet.kernels.reference.pool2d import counts, with_room
from tinynet.oracle import extended
from tinynet.oracle.bounds import Bounded, Format, format_of
from tinynet.oracle.verdict import to_numpy


def floats(where: str, dtype, **arrays) -> tuple[list, Format]:
    """The arrays on the host, and the format that they (or `dtype`) say the result has."""
    found = [None if a is None else to_numpy(a) for a in arrays.values()]
    names = {a.dtype.name for a in found if a is not None}
    if dtype is not None:
        return found, format_of(dtype, where)
    if len(names) != 1:
        given = ", ".join(f"{name} {a.dtype.name}" for name, a in zip(arrays, found) if a is not None)
        raise TypeError(f"{where}: the inputs must have one dtype, or say the result's with dtype=; got {given}")
    return found, format_of(names.pop(), where)


def run(name: str, *arrays, **parameters):
    """The reference kernel `name` on float64 arrays; outputs are made, and poisoned with NaN."""
    outputs = tuple(np.empty(shape, dtype) for shape, dtype in CONTRACTS[name].spec(*arrays, **parameters).outputs)
    for out in outputs:
        if out.dtype.kind == "f":
            out.fill(np.nan)
    out = outputs if len(outputs) > 1 else outputs[0]
    with np.errstate(all="ignore"):
        IMPLEMENTATIONS[name, "reference"]["numpy"].function(*arrays, **parameters, out=out)
    return out


def products(f, a, b, n: int, fmt: Format, rest=None) -> Bounded:
    """Bounded of f(a, b) + rest, where f sums at most n products; a result of integers is one of integers."""
    a, b = (np.asarray(v, np.float64) for v in (a, b))
    with np.errstate(all="ignore"):
        gauge = f(np.abs(a), np.abs(b))
        value, low = (f(a, b), None) if fmt.p < 53 else extended.bilinear(f, a, b, n)
        if rest is not None:
            rest = np.asarray(rest, np.float64)
            gauge = gauge + np.abs(rest)
            plain = value + rest
            if low is not None:
                value, low = extended.add_up([value, np.broadcast_to(rest, value.shape), low])
                low = np.where(np.isfinite(low), low, 0.0)
            value = plain if low is None else np.where(np.isfinite(plain), value, plain)
    return Bounded(value, _usable(gauge), n + (rest is not None), low=low, dtype=fmt.name, integral=True)


def sums(f, a, n, fmt: Format, most: int) -> Bounded:
    """Bounded of f(a), where f adds at most `most` elements: n roundings, one fewer than elements."""
    a = np.asarray(a, np.float64)
    with np.errstate(all="ignore"):
        gauge = f(np.abs(a))
        value, low = (f(a), None) if fmt.p < 53 else extended.linear(f, a, most)
    return Bounded(value, _usable(gauge), n, low=low, dtype=fmt.name, integral=True)


def quotient(total, low, count, fmt: Format):
    """(total + low) / count as (value, low), for whole numbers `count`; low is None for narrow candidates."""
    with np.errstate(all="ignore"):
        plain = np.asarray(total / count)
        if fmt.p < 53:
            return plain, None
        value, rest = extended.divided(total, 0.0 if low is None else low, np.asarray(count, np.float64))
        usable = np.isfinite(plain) & np.isfinite(value) & np.isfinite(rest)
        return np.where(usable, value, plain), np.where(usable, rest, 0.0)


def _usable(gauge):
    """Where an input is NaN or infinite the truth is too, and is judged by equality: no gauge there."""
    return np.where(np.isnan(gauge), np.inf, gauge)


# --- convolution ---------------------------------------------------------------------------------


def _outputs(where: str, dy, x_shape, weight_shape, window: Window) -> None:
    n, _, *sizes = nchw(tuple(x_shape), window["layout"])
    axes = zip(sizes, weight_shape[2:], window["stride"], window["dilation"], window["padding"])
    wanted = in_layout(n, weight_shape[0], *(output_size(*axis) for axis in axes), window["layout"])
    if dy.shape != wanted:
        raise ValueError(f"{where}: dy must have the shape of conv2d's result, {wanted}; got {dy.shape}")


def conv2d(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, layout="NCHW", dtype=None) -> Bounded:
    """y = conv2d(x, weight) + bias; gauge conv2d(|x|, |weight|) + |bias|; n = C/groups * kh * kw (+ 1 with a bias)."""
    (x, weight, bias), fmt = floats("oracle.reference.conv2d", dtype, x=x, weight=weight, bias=bias)
    window = Window(x.shape, weight.shape, stride, padding, dilation, groups, layout, "oracle.reference.conv2d")
    rest = None
    if bias is not None:
        rest = np.asarray(bias, np.float64).reshape(-1, *([1, 1] if layout == "NCHW" else []))
    return products(lambda a, b: run("conv2d", a, b, None, **window), x, weight, prod(weight.shape[1:]), fmt, rest)


def conv2d_dx(dy, weight, *, x_shape, stride=1, padding=0, dilation=1, groups=1, layout="NCHW", dtype=None) -> Bounded:
    """The gradient at x; gauge conv2d_dx(|dy|, |weight|); n = K/groups * kh * kw (fewer at borders and for strides > 1)."""
    (dy, weight), fmt = floats("oracle.reference.conv2d_dx", dtype, dy=dy, weight=weight)
    window = Window(tuple(x_shape), weight.shape, stride, padding, dilation, groups, layout, "oracle.reference.conv2d_dx")
    _outputs("oracle.reference.conv2d_dx", dy, x_shape, weight.shape, window)
    n = weight.shape[0] // groups * prod(weight.shape[2:])
    return products(lambda a, b: run("conv2d_dx", a, b, x_shape=tuple(x_shape), **window), dy, weight, n, fmt)


def conv2d_dw(dy, x, *, weight_shape, stride=1, padding=0, dilation=1, groups=1, layout="NCHW", dtype=None) -> Bounded:
    """The gradient at the weight; gauge conv2d_dw(|dy|, |x|); n = N * OH * OW."""
    (dy, x), fmt = floats("oracle.reference.conv2d_dw", dtype, dy=dy, x=x)
    weight_shape = tuple(weight_shape)
    window = Window(x.shape, weight_shape, stride, padding, dilation, groups, layout, "oracle.reference.conv2d_dw")
    _outputs("oracle.reference.conv2d_dw", dy, x.shape, weight_shape, window)
    n, _, i, j = nchw(dy.shape, layout)
    return products(lambda a, b: run("conv2d_dw", a, b, weight_shape=weight_shape, **window), dy, x, n * i * j, fmt)


def conv2d_db(dy, *, layout="NCHW", dtype=None) -> Bounded:
    """The gradient at the bias: the sum of each channel; gauge the sum of |dy|; n = N * OH * OW - 1 additions."""
    (dy,), fmt = floats("oracle.reference.conv2d_db", dtype, dy=dy)
    check_images(dy.shape, layout, "oracle.reference.conv2d_db", "dy")
    n, _, i, j = nchw(dy.shape, layout)
    return sums(lambda a: run("conv2d_db", a, layout=layout), dy, max(n * i * j - 1, 0), fmt, n * i * j)


def conv2d_grad(dy, x, weight, bias=None, *, wrt=None, stride=1, padding=0, dilation=1, groups=1, layout="NCHW", dtype=None):
    """(dx, dweight) or (dx, dweight, dbias); or the one that `wrt` names."""
    window = dict(stride=stride, padding=padding, dilation=dilation, groups=groups, layout=layout, dtype=dtype)
    x, weight = np.asarray(x), np.asarray(weight)
    found = {
        "x": lambda: conv2d_dx(dy, weight, x_shape=x.shape, **window),
        "weight": lambda: conv2d_dw(dy, x, weight_shape=weight.shape, **window),
    }
    if bias is not None:
        found["bias"] = lambda: conv2d_db(dy, layout=layout, dtype=dtype)
    return chosen("conv2d_grad", found, wrt)


def chosen(where: str, gradients: dict, wrt: str | None):
    """The gradients of all inputs in order, or the one asked for."""
    if wrt is not None and wrt not in gradients:
        raise ValueError(f"oracle.reference.{where}: wrt must be one of {', '.join(gradients)}; got {wrt!r}")
    if wrt is not None:
        return gradients[wrt]()
    found = tuple(make().named(f"d{name}") for name, make in gradients.items())
    return found if len(found) > 1 else found[0]


# --- matrix product ------------------------------------------------------------------------------


def matmul(a, b, *, dtype=None) -> Bounded:
    """c = a @ b, leading axes broadcast; gauge |a| @ |b|; n = the inner length."""
    (a, b), fmt = floats("oracle.reference.matmul", dtype, a=a, b=b)
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"oracle.reference.matmul: needs (..., I, T) and (..., T, J); got {a.shape} and {b.shape}")
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = np.broadcast_to(a, batch + a.shape[-2:]), np.broadcast_to(b, batch + b.shape[-2:])
    return products(lambda p, q: run("matmul", p, q), a, b, a.shape[-1], fmt)


# --- pooling -------------------------------------------------------------------------------------


def max_pool2d(x, *, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, layout="NCHW", ties="first", dtype=None):
    """(y, argmax), both exact. ties="any" accepts the place of any of the window's largest numbers (or NaNs)."""
    (x,), fmt = floats("oracle.reference.max_pool2d", dtype, x=x)
    if ties not in ("first", "any"):
        raise ValueError(f'oracle.reference.max_pool2d: ties must be "first" or "any"; got {ties!r}')
    window = PoolWindow(x.shape, kernel_size, stride, padding, ceil_mode, layout, "oracle.reference.max_pool2d", dilation)
    x = x.astype(np.float64)
    y, argmax = run("max_pool2d", x, **window)
    accepts = (lambda got: _is_maximum(got, x, y, window)) if ties == "any" else None
    return Bounded(y, np.abs(y), 0, exact=True, dtype=fmt.name, label="y"), Bounded(argmax, exact=True, accepts=accepts, label="argmax")


def _is_maximum(got, x, y, window) -> np.ndarray:
    """Where `got` is the place of a number equal to y, inside its window."""
    layout = window["layout"]
    x, y, got = (as_nchw(a, layout) for a in (x, y, np.asarray(got)))
    n, c, h, w = x.shape
    inside = (got >= 0) & (got < h * w)
    place = np.where(inside, got, 0)
    value = np.take_along_axis(x.reshape(n, c, -1), place.reshape(n, c, -1), axis=2).reshape(y.shape)
    for axis, at in ((2, place // w), (3, place % w)):
        e, s, d = (window[key][axis - 2] for key in ("kernel_size", "stride", "dilation"))
        first = np.arange(y.shape[axis]).reshape([-1 if a == axis else 1 for a in range(4)]) * s - window["padding"][axis - 2][0]
        inside &= (at >= first) & (at - first <= d * (e - 1)) & ((at - first) % d == 0)
    right = inside & ((value == y) | (np.isnan(value) & np.isnan(y)))
    return right if layout == "NCHW" else right.transpose(0, 2, 3, 1)


def max_pool2d_dx(dy, argmax, *, x_shape, layout="NCHW", dtype=None) -> Bounded:
    """dx = the sum of the dy whose argmax is there; n = their number - 1 (so 0: exact, where windows don't share)."""
    (dy,), fmt = floats("oracle.reference.max_pool2d_dx", dtype, dy=dy)
    argmax, x_shape = np.asarray(argmax), tuple(x_shape)
    if argmax.shape != dy.shape or argmax.dtype.kind not in "iu":
        raise ValueError(f"oracle.reference.max_pool2d_dx: argmax must be integers of dy's shape {dy.shape}; got {argmax.dtype} of shape {argmax.shape}")
    met = run("max_pool2d_dx", np.ones(dy.shape), argmax, x_shape=x_shape, layout=layout)
    most = int(met.max(initial=1))
    return sums(lambda a: run("max_pool2d_dx", a, argmax, x_shape=x_shape, layout=layout), dy, np.maximum(met - 1, 0), fmt, most)


def max_pool2d_grad(dy, x, *, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, layout="NCHW", dtype=None) -> Bounded:
    """The gradient at x: each dy goes to the first maximum of its window."""
    x = np.asarray(x)
    _, argmax = max_pool2d(x, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode, layout=layout)
    return max_pool2d_dx(dy, argmax.value, x_shape=x.shape, layout=layout, dtype=dtype)


def avg_pool2d(x, *, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, layout="NCHW", dtype=None) -> Bounded:
    """The mean of each window; gauge avg_pool2d(|x|); n = kh*kw - 1 additions and 2 roundings of the division (or of 1/count)."""
    (x,), fmt = floats("oracle.reference.avg_pool2d", dtype, x=x)
    window = _averaging(x.shape, kernel_size, stride, padding, ceil_mode, count_include_pad, layout, "avg_pool2d")
    x = x.astype(np.float64)
    kernel = prod(window["kernel_size"])
    value, low = run("avg_pool2d", x, **window), None
    if fmt.p == 53:
        plain = value
        total = extended.linear(lambda a: window_sums(a, plain, window), x, kernel)
        if total[1] is not None:
            value, low = quotient(*total, _counts(x.shape, plain.shape, window), fmt)
    gauge = _usable(run("avg_pool2d", np.abs(x), **window))
    return Bounded(value, gauge, kernel + 1, low=low, dtype=fmt.name, peak=kernel)


def avg_pool2d_dx(dy, *, x_shape, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, layout="NCHW", dtype=None) -> Bounded:
    """The gradient at x; gauge avg_pool2d_dx(|dy|); n = windows that share a place - 1, and 2 for the division."""
    (dy,), fmt = floats("oracle.reference.avg_pool2d_dx", dtype, dy=dy)
    x_shape = tuple(x_shape)
    window = _averaging(x_shape, kernel_size, stride, padding, ceil_mode, count_include_pad, layout, "avg_pool2d_dx")
    dy = dy.astype(np.float64)
    overlap = prod(-(-e // s) for e, s in zip(window["kernel_size"], window["stride"]))
    value, low = run("avg_pool2d_dx", dy, x_shape=x_shape, **window), None
    if fmt.p == 53:
        share = quotient(dy, None, _counts(x_shape, dy.shape, window), fmt)
        pairs = [extended.linear(lambda a: _window_spread(a, x_shape, window), part, overlap) for part in share]
        if all(rest is not None for _, rest in pairs):
            value, low = extended.completed(value, [part for pair in pairs for part in pair])
    gauge = _usable(run("avg_pool2d_dx", np.abs(dy), x_shape=x_shape, **window))
    return Bounded(value, gauge, overlap + 1, low=low, dtype=fmt.name)


def avg_pool2d_grad(dy, x, *, dtype=None, **window) -> Bounded:
    """The gradient at x, which only depends on x's shape."""
    return avg_pool2d_dx(dy, x_shape=np.asarray(x).shape, dtype=dtype, **window)


def _averaging(x_shape, kernel_size, stride, padding, ceil_mode, count_include_pad, layout, name) -> PoolWindow:
    window = PoolWindow(x_shape, kernel_size, stride, padding, ceil_mode, layout, f"oracle.reference.{name}")
    window["count_include_pad"] = bool(count_include_pad)
    return window


def _depthwise(x_shape, y_shape, window) -> tuple[np.ndarray, dict]:
    """Sums of windows as a convolution, channel by channel with a kernel of ones: no division in it."""
    layout, kernel, stride = window["layout"], window["kernel_size"], window["stride"]
    _, channels, *sizes = nchw(x_shape, layout)
    room = with_room(window["padding"], sizes, kernel, stride, (1, 1), nchw(y_shape, layout)[2:])
    parameters = dict(stride=stride, padding=room, dilation=(1, 1), groups=channels, layout=layout)
    return np.ones((channels, 1, *kernel)), parameters


def window_sums(x, y, window) -> np.ndarray:
    ones, parameters = _depthwise(x.shape, y.shape, window)
    i, j = nchw(y.shape, window["layout"])[2:]
    total = as_nchw(run("conv2d", x, ones, None, **parameters), window["layout"])[:, :, :i, :j]
    return total if window["layout"] == "NCHW" else total.transpose(0, 2, 3, 1)


def _window_spread(dy, x_shape, window) -> np.ndarray:
    ones, parameters = _depthwise(x_shape, dy.shape, window)
    return run("conv2d_dx", dy, ones, x_shape=x_shape, **parameters)


def _counts(x_shape, y_shape, window) -> np.ndarray:
    layout = window["layout"]
    outputs = nchw(y_shape, layout)[2:]
    found = counts(nchw(x_shape, layout)[2:], window["kernel_size"], window["stride"], window["padding"], window["count_include_pad"], outputs)
    return found if layout == "NCHW" else found[:, :, None]
