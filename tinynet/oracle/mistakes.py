"""The usual mistakes of each kernel and op: `FAMILIES[name](name, arrays, parameters)` yields (text, make),
where make() is the truth with that mistake in it. hypotheses.py compares them with a wrong result.

A make() may raise ValueError, TypeError or IndexError where its mistake is impossible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tinynet.geometry import nchw, output_size, reach
from tinynet.oracle import reference
from tinynet.oracle.bounds import Bounded
from tinynet.oracle.truth_kernels import window_sums

Alternative = tuple[str, Callable[[], object]]

# --- convolution ---------------------------------------------------------------------------------


def _convolution(name, arrays, parameters) -> Iterator[Alternative]:
    truth = reference.find(name)

    def with_(changed=None, **other):
        given = list(arrays)
        for i, a in (changed or {}).items():
            given[i] = a
        return truth(*given, **{**parameters, **other})

    if name == "conv2d_dw":
        right = with_()
        yield "the kernel is flipped (a convolution in place of the cross-correlation)", lambda: right.moved(lambda a: a[..., ::-1, ::-1])
        yield "the kernel's rows and columns are swapped", lambda: right.moved(lambda a: a.swapaxes(2, 3))
        yield "the weight's in and out channels are swapped", lambda: right.moved(lambda a: a.swapaxes(0, 1))
    else:
        weight = arrays[1]
        yield "the kernel is flipped (a convolution in place of the cross-correlation)", lambda: with_({1: weight[..., ::-1, ::-1]})
        yield "the kernel's rows are flipped", lambda: with_({1: weight[..., ::-1, :]})
        yield "the kernel's columns are flipped", lambda: with_({1: weight[..., ::-1]})
        yield "the kernel's rows and columns are swapped", lambda: with_({1: weight.swapaxes(2, 3)})
        yield "the weight's in and out channels are swapped", lambda: with_({1: weight.swapaxes(0, 1)})
        yield "the weight is read as (kh, kw, in, out)", lambda: with_({1: weight.reshape(weight.shape[2], weight.shape[3], weight.shape[1], weight.shape[0]).transpose(3, 2, 0, 1)})
        yield "the weight is read as (out, kh, kw, in)", lambda: with_({1: weight.reshape(weight.shape[0], weight.shape[2], weight.shape[3], weight.shape[1]).transpose(0, 3, 1, 2)})
    if name == "conv2d" and arrays[2] is not None:
        yield "the bias is missing", lambda: with_({2: np.zeros_like(arrays[2])})
        yield "the bias is added twice", lambda: with_({2: 2 * arrays[2]})
    (top, bottom), (left, right_) = parameters["padding"]
    if (top, left) != (bottom, right_):
        yield "padding is on the wrong side (top and bottom, left and right exchanged)", lambda: with_(padding=((bottom, top), (right_, left)))
    yield from _shifted_padding(with_, parameters["padding"])
    if name == "conv2d" and any(top_left for side in parameters["padding"] for top_left in side):
        yield "padding is ignored", lambda: with_(padding=0)
    layout, data = parameters["layout"], 0
    other = "NHWC" if layout == "NCHW" else "NCHW"
    yield f"{layout} images are read as {other}", lambda: with_({data: _reread(arrays[data], layout)})
    if parameters["groups"] > 1:
        yield "groups are ignored: every filter reads the first group's channels", lambda: _first_group(name, arrays, parameters)
    for key, text in (("dilation", "dilation is ignored"), ("stride", "stride is ignored")):
        if max(parameters[key]) > 1:
            if name == "conv2d":
                yield text, lambda key=key: with_(**{key: (1, 1)})
            yield text, lambda key=key: _fitted(name, arrays, parameters, **{key: (1, 1)})
        if parameters[key][0] != parameters[key][1]:
            yield f"{key}'s rows and columns are swapped", lambda key=key: _fitted(name, arrays, parameters, **{key: parameters[key][::-1]})
            yield f"{key} of the rows is used for both axes", lambda key=key: _fitted(name, arrays, parameters, **{key: (parameters[key][0],) * 2})
            yield f"{key} of the columns is used for both axes", lambda key=key: _fitted(name, arrays, parameters, **{key: (parameters[key][1],) * 2})


def _shifted_padding(with_, padding) -> Iterator[Alternative]:
    for text, rows, columns in (
        ("padding off by one: the image lies one row and column too low and right", 1, 1), ("padding off by one: the image lies one row too low", 1, 0),
        ("padding off by one: the image lies one column too far right", 0, 1), ("padding off by one: the image lies one row and column too high and left", -1, -1),
        ("padding off by one: the image lies one row too high", -1, 0), ("padding off by one: the image lies one column too far left", 0, -1),
    ):  # fmt: skip
        moved = tuple((before + by, after - by) for (before, after), by in zip(padding, (rows, columns)))
        if min(min(side) for side in moved) >= 0:
            yield text, lambda moved=moved: with_(padding=moved)


def _reread(a, layout):
    """The array's memory, taken for the other layout, in this layout again."""
    n, c, h, w = nchw(a.shape, layout)
    return a.reshape(n, h, w, c).transpose(0, 3, 1, 2) if layout == "NCHW" else a.reshape(n, c, h, w).transpose(0, 2, 3, 1)


def _first_group(name, arrays, parameters):
    axis = 1 if parameters["layout"] == "NCHW" else 3
    groups = parameters["groups"]
    if name != "conv2d":
        raise ValueError("only the forward pass has an obvious form of this mistake")
    x = np.take(arrays[0], range(arrays[0].shape[axis] // groups), axis=axis)
    return reference.conv2d(x, *arrays[1:], **{**parameters, "groups": 1})


def _fitted(name, arrays, parameters, **wrong):
    """The kernel with another stride or dilation, and the result's shape unchanged: the image is cropped or padded at the bottom and right."""
    layout = parameters["layout"]
    kernel = parameters["weight_shape"][2:] if name == "conv2d_dw" else arrays[1].shape[2:]
    x_shape = parameters["x_shape"] if name == "conv2d_dx" else arrays[1 if name == "conv2d_dw" else 0].shape
    sizes, mistaken = nchw(x_shape, layout)[2:], {**parameters, **wrong}
    axes = zip(sizes, kernel, parameters["stride"], parameters["dilation"], parameters["padding"])
    padding, keep = [], []
    for (size, e, s, d, sides), stride, dilation in zip(axes, mistaken["stride"], mistaken["dilation"]):
        before, outputs = sides[0], output_size(size, e, s, d, sides)
        after = (outputs - 1) * stride + reach(e, dilation) - size - before
        padding.append((before, max(after, 0)))
        keep.append(size + min(after, 0))
    parameters = {**mistaken, "padding": tuple(padding)}
    axes = (2, 3) if layout == "NCHW" else (1, 2)
    crop = tuple(slice(keep[axes.index(a)]) if a in axes else slice(None) for a in range(4))
    if name == "conv2d":
        return reference.conv2d(arrays[0][crop], *arrays[1:], **parameters)
    if name == "conv2d_dw":
        return reference.conv2d_dw(arrays[0], arrays[1][crop], **parameters)
    small = tuple(keep[axes.index(a)] if a in axes else size for a, size in enumerate(x_shape))
    found = reference.conv2d_dx(*arrays, **{**parameters, "x_shape": small})
    rest = [(0, size - s) for size, s in zip(x_shape, small)]
    return found.moved(lambda a: np.pad(a, rest))


# --- pooling, products, losses -------------------------------------------------------------------


def _max_pooling(name, arrays, parameters) -> Iterator[Alternative]:
    x = arrays[0].astype(np.float64)
    axes = (2, 3) if parameters["layout"] == "NCHW" else (1, 2)
    turned = {**parameters, "padding": tuple(side[::-1] for side in parameters["padding"])}

    def last():
        y, place = reference.max_pool2d(np.flip(x, axes), **turned)
        size = x.shape[axes[0]] * x.shape[axes[1]]
        return y.moved(lambda a: np.flip(a, axes)), place.moved(lambda a: np.where(a < 0, -1, size - 1 - np.flip(a, axes)))

    def zero_padded():
        sides = [parameters["padding"][axes.index(a)] if a in axes else (0, 0) for a in range(4)]
        y, _ = reference.max_pool2d(np.pad(x, sides), **{**parameters, "padding": ((0, 0), (0, 0))}, dtype=arrays[0].dtype.name)
        return y

    yield "of equal maxima the last is taken, not the first", last
    yield "the padding counts as 0, not as -inf", zero_padded


def _max_pooling_dx(name, arrays, parameters) -> Iterator[Alternative]:
    dy, argmax = arrays[:2]

    def overwritten():
        n, c, h, w = nchw(parameters["x_shape"], parameters["layout"])
        order = (lambda a: a) if parameters["layout"] == "NCHW" else (lambda a: a.transpose(0, 3, 1, 2))
        flat, places, values = np.zeros((n, c, h * w)), order(argmax).reshape(n, c, -1), order(dy).astype(np.float64).reshape(n, c, -1)
        for i, j in np.ndindex(n, c):
            inside = places[i, j] >= 0
            flat[i, j, places[i, j][inside]] = values[i, j][inside]
        dx = flat.reshape(n, c, h, w)
        return Bounded(dx if parameters["layout"] == "NCHW" else dx.transpose(0, 2, 3, 1), exact=True)

    yield "windows that share a maximum overwrite each other in place of adding up", overwritten


def _max_pooling_grad(name, arrays, parameters) -> Iterator[Alternative]:
    dy, x = (a.astype(np.float64) for a in arrays)
    axes = (2, 3) if parameters["layout"] == "NCHW" else (1, 2)
    turned = {**parameters, "padding": tuple(side[::-1] for side in parameters["padding"])}

    def to_last():
        return reference.max_pool2d_grad(np.flip(dy, axes), np.flip(x, axes), **turned, dtype=arrays[0].dtype.name).moved(lambda a: np.flip(a, axes))

    yield "of equal maxima the last gets the gradient, not the first", to_last


def _averaging(name, arrays, parameters) -> Iterator[Alternative]:
    other = not parameters["count_include_pad"]
    yield f"as with count_include_pad={other}", lambda: reference.find(name)(*arrays, **{**parameters, "count_include_pad": other})
    if name == "avg_pool2d":
        size = parameters["kernel_size"][0] * parameters["kernel_size"][1]
        right = reference.avg_pool2d(*arrays, **parameters)

        def by_kernel():
            x = arrays[0].astype(np.float64)
            return Bounded(window_sums(x, right.value, parameters) / size, window_sums(np.abs(x), right.value, parameters) / size, right.n)

        yield "divided by the kernel's size everywhere, not by the count of each window", by_kernel


def _matrix_product(name, arrays, parameters) -> Iterator[Alternative]:
    a, b = arrays
    yield "a is transposed", lambda: reference.matmul(a.swapaxes(-1, -2), b)
    yield "b is transposed", lambda: reference.matmul(a, b.swapaxes(-1, -2))
    yield "the factors are exchanged: b @ a", lambda: reference.matmul(b, a)
    yield "a's memory is read in the other order (column-major)", lambda: reference.matmul(a.swapaxes(-1, -2).reshape(a.shape), b)
    yield "b's memory is read in the other order (column-major)", lambda: reference.matmul(a, b.swapaxes(-1, -2).reshape(b.shape))


def _linear(name, arrays, parameters) -> Iterator[Alternative]:
    x, weight, bias = arrays
    yield "the weight is transposed", lambda: reference.linear(x, weight.T, bias)
    yield "the weight's memory is read as (in, out)", lambda: reference.linear(x, weight.reshape(weight.shape[::-1]).T, bias)
    if bias is not None:
        yield "the bias is missing", lambda: reference.linear(x, weight)
        yield "the bias is added twice", lambda: reference.linear(x, weight, 2 * bias)


def _relu_grad(name, arrays, parameters) -> Iterator[Alternative]:
    dy, x = arrays
    yield "ReLU'(0) = 1, not 0", lambda: Bounded(np.where(x >= 0, dy, 0), exact=True)
    yield "the gradient is passed on where x <= 0 too", lambda: Bounded(dy, exact=True)


def _softmax(name, arrays, parameters) -> Iterator[Alternative]:
    for axis in range(-arrays[-1].ndim, 0):
        yield f"along axis {axis}", lambda axis=axis: reference.find(name)(*arrays, **{**parameters, "axis": axis})


def _losses(name, arrays, parameters) -> Iterator[Alternative]:
    for reduction in {"mean", "sum", "none"} - {parameters["reduction"]}:
        yield f'as with reduction="{reduction}"', lambda r=reduction: reference.find(name)(*arrays, **{**parameters, "reduction": r})
    if name == "cross_entropy":
        x = arrays[0]
        yield "softmax was applied to the logits first", lambda: reference.cross_entropy(reference.softmax(x).value.astype(x.dtype), arrays[1], **parameters)


FAMILIES = {
    **dict.fromkeys(("conv2d", "conv2d_dx", "conv2d_dw"), _convolution),
    "max_pool2d": _max_pooling,
    "max_pool2d_dx": _max_pooling_dx,
    "max_pool2d_grad": _max_pooling_grad,
    **dict.fromkeys(("avg_pool2d", "avg_pool2d_dx"), _averaging),
    "matmul": _matrix_product,
    "linear": _linear,
    "relu_grad": _relu_grad,
    **dict.fromkeys(("softmax", "log_softmax", "softmax_grad", "log_softmax_grad"), _softmax),
    **dict.fromkeys(("cross_entropy", "nll_loss", "cross_entropy_grad", "nll_loss_grad"), _losses),
}
