"""Planted faults in the contract's kernels: what goes wrong when kernels are written, one mistake each.

`FAULTS[name]` maps a fault's words to a function with the signature of `name`. Each is the truth
itself, rounded once, with that one mistake in it: so a check that lets it pass is blind to the
mistake, and to nothing else. faults.py has the mistakes that any kernel can have, faults_ops.py those of the ops;
mutants.py runs them.
"""

from __future__ import annotations

from math import prod

import numpy as np

from tinynet.geometry import nchw
from tinynet.oracle.asserting import honest_function
from tinynet.oracle.faults import dtype_of, half_sums, overwriting, scaled, short_inputs, skipped, stale

conv2d, conv2d_dx, conv2d_dw, conv2d_db = (honest_function(name) for name in ("conv2d", "conv2d_dx", "conv2d_dw", "conv2d_db"))
max_pool2d, max_pool2d_dx = honest_function("max_pool2d"), honest_function("max_pool2d_dx")
avg_pool2d, avg_pool2d_dx, matmul = honest_function("avg_pool2d"), honest_function("avg_pool2d_dx"), honest_function("matmul")

# --- convolution ---------------------------------------------------------------------------------


def _with(f, place: int, change):
    """f with the array at `place` changed."""
    return lambda *arrays, **parameters: f(*(change(a) if i == place and a is not None else a for i, a in enumerate(arrays)), **parameters)


def _without_last_tap(weight):
    weight = weight.copy()
    weight[..., -1, -1] = 0
    return weight


def _exchanged(weight):
    """kh and kw exchanged in memory: the wrong filter, of the right shape."""
    return weight.swapaxes(2, 3).reshape(weight.shape)


def _in_and_out(weight):
    return weight.swapaxes(0, 1).reshape(weight.shape)


def _shifted(f):
    """The image lies one row too low in its padding."""

    def fault(*arrays, padding, **parameters):
        (top, bottom), columns = padding
        moved = (top + 1, bottom - 1) if bottom else (top - 1, bottom + 1) if top else (top, bottom)
        return f(*arrays, padding=(moved, columns), **parameters)

    return fault


def _other_side(f):
    """The odd row and column of padding at the top and left, not at the bottom and right."""
    return lambda *arrays, padding, **parameters: f(*arrays, padding=tuple(side[::-1] for side in padding), **parameters)


def _one_for_both(f, key: str):
    """The columns' stride (or dilation) is that of the rows, where the result still has its shape."""

    def fault(*arrays, **parameters):
        wrong = {**parameters, key: (parameters[key][0],) * 2}
        right = f(*arrays, **parameters)
        try:
            found = f(*arrays, **wrong)
        except ValueError:  # no window fits so
            return right
        return found if found.shape == right.shape else _fitted(found, right)

    return fault


def _ignored(f, key: str):
    """Stride or dilation 1, whatever was asked; cropped to the shape that was wanted."""

    def fault(*arrays, **parameters):
        right = f(*arrays, **parameters)
        if max(parameters[key]) == 1:
            return right
        try:
            return _fitted(f(*arrays, **{**parameters, key: (1, 1)}), right)
        except ValueError:
            return right * 0

    return fault


def _fitted(found, like):
    """As much of `found` as fits into the shape of `like`, zeros elsewhere."""
    y = np.zeros_like(like)
    part = tuple(slice(min(a, b)) for a, b in zip(found.shape, like.shape))
    y[part] = found[part]
    return y


def _first_group(x, weight, bias, *, groups, layout, **parameters):
    axis = 1 if layout == "NCHW" else 3
    first = np.take(x, range(x.shape[axis] // groups), axis=axis)
    return conv2d(first, weight, bias, groups=1, layout=layout, **parameters)


def _other_layout(x, weight, bias, *, layout, **parameters):
    """NHWC memory is taken for NCHW."""
    if layout == "NCHW":
        return conv2d(x, weight, bias, layout=layout, **parameters)
    n, h, w, c = x.shape
    return conv2d(x.reshape(n, c, h, w).transpose(0, 2, 3, 1), weight, bias, layout=layout, **parameters)


def _bare_border(x, weight, bias, *, padding, layout, **parameters):
    """Places whose window reaches into the padding are never written."""
    y = conv2d(x, weight, bias, padding=padding, layout=layout, **parameters)
    (top, bottom), (left, right) = padding
    images = y if layout == "NCHW" else y.transpose(0, 3, 1, 2)
    for cut, rows in ((min(top, 1), slice(0, 1)), (min(bottom, 1), slice(-1, None))):
        if cut:
            images[:, :, rows] = 0
    for cut, columns in ((min(left, 1), slice(0, 1)), (min(right, 1), slice(-1, None))):
        if cut:
            images[..., columns] = 0
    return y


def _last_channel(f):
    """The last channel of the result: a remainder of the vector width that no loop takes."""

    def fault(*arrays, layout="NCHW", **parameters):
        y = f(*arrays, layout=layout, **parameters)
        y[(slice(None), -1) if layout == "NCHW" else (..., -1)] = 0
        return y

    return fault


def _one_lost(dy, x, **parameters):
    """One place of one image is lost: a race between two threads."""
    dy = dy.copy()
    dy.reshape(-1)[dy.size // 2 : dy.size // 2 + 1] = 0
    return conv2d_dw(dy, x, **parameters)


def _per_image(f, images: int):
    """Divided by the number of images: a mean where a sum was asked."""

    def fault(*arrays, **parameters):
        return (f(*arrays, **parameters) / np.float32(max(len(arrays[images]), 1))).astype(dtype_of(arrays))

    return fault


def _wrong_axis(dy, *, layout):
    n, k, h, w = nchw(dy.shape, layout)
    return dy.reshape(-1, k).sum(axis=0, dtype=dy.dtype) if layout == "NCHW" else dy.reshape(k, -1).sum(axis=1, dtype=dy.dtype)


_LAST_IMAGE, _LAST_COLUMN = (slice(-1, None),), (..., slice(-1, None))

_CONV2D = {
    "the last tap is dropped": _with(conv2d, 1, _without_last_tap),
    "the kernel is flipped": _with(conv2d, 1, lambda w: w[..., ::-1, ::-1]),
    "the kernel's axes are exchanged": _with(conv2d, 1, _exchanged),
    "in and out channels are exchanged": _with(conv2d, 1, _in_and_out),
    "padding is off by one": _shifted(conv2d),
    "SAME pads on the wrong side": _other_side(conv2d),
    "one stride serves both axes": _one_for_both(conv2d, "stride"),
    "dilation is ignored": _ignored(conv2d, "dilation"),
    "groups are ignored": _first_group,
    "NHWC is read as NCHW": _other_layout,
    "the bias is missing": _with(conv2d, 2, np.zeros_like),
    "the bias is added twice": _with(conv2d, 2, lambda b: 2 * b),
    "the last channel is skipped": _last_channel(conv2d),
    "the last image is skipped": skipped(conv2d, _LAST_IMAGE),
    "the border is never written": _bare_border,
    "a stale result": stale(conv2d),
    "the input is overwritten": overwriting(conv2d),
    "1.001 times the truth": scaled(conv2d, 1.001),
    "sums in float16": half_sums(conv2d),
    "inputs of 11 bits (TF32)": short_inputs(conv2d),
}
_CONV2D_DX = {
    "the last tap is dropped": _with(conv2d_dx, 1, _without_last_tap),
    "the kernel is flipped once too often": _with(conv2d_dx, 1, lambda w: w[..., ::-1, ::-1]),
    "the kernel's axes are exchanged": _with(conv2d_dx, 1, _exchanged),
    "padding is off by one": _shifted(conv2d_dx),
    "padding is on the wrong side": _other_side(conv2d_dx),
    "the last channel is skipped": _last_channel(conv2d_dx),
    "the last image is skipped": skipped(conv2d_dx, _LAST_IMAGE),
    "the result is added to what was there": scaled(conv2d_dx, 2.0),
    "the sign is wrong": scaled(conv2d_dx, -1.0),
    "1.001 times the truth": scaled(conv2d_dx, 1.001),
    "inputs of 8 bits (bfloat16)": short_inputs(conv2d_dx, "bfloat16"),
}
_CONV2D_DW = {
    "the kernel is flipped": lambda dy, x, **parameters: conv2d_dw(dy, x, **parameters)[..., ::-1, ::-1].copy(),
    "the kernel's axes are exchanged": lambda dy, x, **parameters: _exchanged(conv2d_dw(dy, x, **parameters)),
    "in and out channels are exchanged": lambda dy, x, **parameters: _in_and_out(conv2d_dw(dy, x, **parameters)),
    "padding is off by one": _shifted(conv2d_dw),
    "a mean over the images": _per_image(conv2d_dw, 0),
    "the last image is left out": lambda dy, x, **parameters: conv2d_dw(dy[:-1], x[:-1], **parameters),
    "one place is lost in a race": _one_lost,
    "1.001 times the truth": scaled(conv2d_dw, 1.001),
    "sums in float16": half_sums(conv2d_dw),
    "inputs of 11 bits (TF32)": short_inputs(conv2d_dw),
}
_CONV2D_DB = {
    "a mean over the images": _per_image(conv2d_db, 0),
    "the last image is left out": lambda dy, *, layout: conv2d_db(dy[:-1], layout=layout),
    "the first row is left out": lambda dy, *, layout: conv2d_db(np.where(_first_row(dy, layout), 0, dy).astype(dy.dtype), layout=layout),
    "the wrong axes are summed": _wrong_axis,
    "sums in float16": half_sums(conv2d_db),
}


def _first_row(dy, layout):
    mask = np.zeros(dy.shape, bool)
    mask[(slice(None), slice(None), 0) if layout == "NCHW" else (slice(None), 0)] = True
    return mask


# --- pooling -------------------------------------------------------------------------------------


def _last_of_equals(x, *, padding, layout, **parameters):
    axes = (2, 3) if layout == "NCHW" else (1, 2)
    y, place = max_pool2d(np.flip(x, axes), padding=tuple(side[::-1] for side in padding), layout=layout, **parameters)
    if y.shape != max_pool2d(x, padding=padding, layout=layout, **parameters)[0].shape:
        return y, place
    size = x.shape[axes[0]] * x.shape[axes[1]]
    return np.flip(y, axes).copy(), np.where(np.flip(place, axes) < 0, -1, size - 1 - np.flip(place, axes)).astype(np.int32)


def _zero_padding(x, *, layout, **parameters):
    """Where a window touches the padding, its largest is at least 0."""
    y, place = max_pool2d(x, layout=layout, **parameters)
    return np.where(_touches_padding(x, layout, parameters) & (y < 0), 0, y).astype(y.dtype), place


def _touches_padding(x, layout, parameters):
    size = prod(parameters["kernel_size"])
    whole = {k: v for k, v in parameters.items() if k != "dilation"}
    if max(parameters.get("dilation", (1, 1))) > 1:
        return np.zeros((), bool)
    inside = avg_pool2d(np.ones_like(x), count_include_pad=True, layout=layout, **whole)
    return inside < 1 - 0.5 / size


def _place_in_window(x, *, kernel_size, layout, **parameters):
    """argmax counts inside its window, not in the plane."""
    y, place = max_pool2d(x, kernel_size=kernel_size, layout=layout, **parameters)
    return y, (place % prod(kernel_size)).astype(np.int32)


def _place_in_padded(x, *, padding, layout, **parameters):
    """argmax counts in the padded image."""
    y, place = max_pool2d(x, padding=padding, layout=layout, **parameters)
    (top, _), (left, right) = padding
    columns = nchw(x.shape, layout)[3]
    moved = (place // columns + top) * (columns + left + right) + place % columns + left
    return y, np.where(place < 0, -1, moved).astype(np.int32)


def _nan_ignored(x, **parameters):
    y, place = max_pool2d(np.where(np.isnan(x), -np.inf, x).astype(x.dtype), **parameters)
    return y, place


def _rows_and_columns(x, *, stride, **parameters):
    right = max_pool2d(x, stride=stride, **parameters)
    try:
        found = max_pool2d(x, stride=stride[::-1], **parameters)
    except ValueError:
        return right
    return tuple(_fitted(f, r) for f, r in zip(found, right))


def _last_pool_column(x, *, layout, **parameters):
    y, place = max_pool2d(x, layout=layout, **parameters)
    (y if layout == "NCHW" else y.transpose(0, 3, 1, 2))[..., -1] = 0
    return y, place


def _sharing_overwrites(dy, argmax, *, x_shape, layout):
    """The last window that chose a place overwrites what others put there."""
    n, c, h, w = nchw(x_shape, layout)
    order = (lambda a: a) if layout == "NCHW" else (lambda a: a.transpose(0, 3, 1, 2))
    flat, places, values = np.zeros((n, c, h * w), dy.dtype), order(argmax).reshape(n, c, -1), order(dy).reshape(n, c, -1)
    for i, j in np.ndindex(n, c):
        inside = places[i, j] >= 0
        flat[i, j, places[i, j][inside]] = values[i, j][inside]
    dx = flat.reshape(n, c, h, w)
    return np.ascontiguousarray(dx if layout == "NCHW" else dx.transpose(0, 2, 3, 1))


def _outside_counts(dy, argmax, *, x_shape, layout):
    """-1, no place at all, is taken as an index: the last place of the plane."""
    last = nchw(x_shape, layout)[2] * nchw(x_shape, layout)[3] - 1
    return max_pool2d_dx(dy, np.where(argmax < 0, last, argmax).astype(np.int32), x_shape=x_shape, layout=layout)


def _one_plane(dy, argmax, *, x_shape, layout):
    """The plane's offset is forgotten: all channels go into the first."""
    axis = 1 if layout == "NCHW" else 3
    dx = max_pool2d_dx(dy, argmax, x_shape=x_shape, layout=layout)
    total = dx.sum(axis=axis, keepdims=True, dtype=dx.dtype)
    return np.concatenate([total, np.zeros_like(np.take(dx, range(1, dx.shape[axis]), axis=axis))], axis=axis)


_MAX_POOL2D = {
    "of equal maxima the last is taken": _last_of_equals,
    "padding counts as 0": _zero_padding,
    "argmax counts inside the window": _place_in_window,
    "argmax counts in the padded image": _place_in_padded,
    "NaN is ignored": _nan_ignored,
    "the stride's axes are exchanged": _rows_and_columns,
    "the last column is never written": _last_pool_column,
}
_MAX_POOL2D_DX = {
    "windows that share a place overwrite": _sharing_overwrites,
    "no place counts as the last one": _outside_counts,
    "all channels go into the first": _one_plane,
    "the last image is skipped": skipped(max_pool2d_dx, _LAST_IMAGE),
    "1.001 times the truth": scaled(max_pool2d_dx, 1.001),
}


def _other_count(f):
    return lambda *arrays, count_include_pad, **parameters: f(*arrays, count_include_pad=not count_include_pad, **parameters)


def _undivided(f):
    return lambda *arrays, kernel_size, **parameters: (f(*arrays, kernel_size=kernel_size, **parameters) * np.float32(prod(kernel_size))).astype(dtype_of(arrays))


_AVG_POOL2D = {
    "padding is counted the other way": _other_count(avg_pool2d),
    "a sum, not a mean": _undivided(avg_pool2d),
    "padding is off by one": _shifted(avg_pool2d),
    "the last column is never written": skipped(avg_pool2d, _LAST_COLUMN),
    "1/count is rounded to float16": scaled(avg_pool2d, float(np.float16(1 / 9)) * 9),
}
_AVG_POOL2D_DX = {
    "padding is counted the other way": _other_count(avg_pool2d_dx),
    "the division is missing": _undivided(avg_pool2d_dx),
    "padding is off by one": _shifted(avg_pool2d_dx),
    "the last image is skipped": skipped(avg_pool2d_dx, _LAST_IMAGE),
}

# --- matrix product ------------------------------------------------------------------------------


def _last_term(a, b):
    a = a.copy()
    a[..., -1:] = 0
    return matmul(a, b)


def _first_of_batch(a, b):
    """The batch's index is forgotten for b."""
    if b.ndim == 2 or not b.size:
        return matmul(a, b)
    first = b.reshape(-1, *b.shape[-2:])[:1]
    return matmul(a, np.broadcast_to(first.reshape(*[1] * (b.ndim - 2), *b.shape[-2:]), b.shape).copy())


def _remainder(a, b):
    """Rows beyond the last whole tile of 4 are left as they were."""
    c = matmul(a, b)
    c[..., c.shape[-2] // 4 * 4 :, :] = 0
    return c


_MATMUL = {
    "a term of the sum is dropped": _last_term,
    "b's memory is read the other way": lambda a, b: matmul(a, b.swapaxes(-1, -2).reshape(b.shape)),
    "the batch's index is forgotten": _first_of_batch,
    "rows beyond the last tile are skipped": _remainder,
    "a stale result": stale(matmul),
    "the input is overwritten": overwriting(matmul),
    "1.001 times the truth": scaled(matmul, 1.001),
    "sums in float16": half_sums(matmul),
    "inputs of 11 bits (TF32)": short_inputs(matmul),
    "inputs of 8 bits (bfloat16)": short_inputs(matmul, "bfloat16"),
}

FAULTS = {
    "conv2d": _CONV2D,
    "conv2d_dx": _CONV2D_DX,
    "conv2d_dw": _CONV2D_DW,
    "conv2d_db": _CONV2D_DB,
    "max_pool2d": _MAX_POOL2D,
    "max_pool2d_dx": _MAX_POOL2D_DX,
    "avg_pool2d": _AVG_POOL2D,
    "avg_pool2d_dx": _AVG_POOL2D_DX,
    "matmul": _MATMUL,
}
