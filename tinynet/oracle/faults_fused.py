"""Planted faults in kernels that do what several did, as in faults_kernels.py: most are mistakes where the parts meet."""

from __future__ import annotations

import numpy as np

from tinynet.geometry import nchw
from tinynet.kernels.reference.conv2d_pool import TOUCHING
from tinynet.oracle.asserting import honest_function
from tinynet.oracle.faults import short_inputs
from tinynet.oracle.faults_kernels import _other_side, _shifted, _with, _without_last_tap, avg_pool2d, conv2d, max_pool2d

fused = honest_function("conv2d_relu_max_pool2d")


def _of_z(change):
    """(y, argmax) of the convolution z, by change(z, layout)."""
    return lambda *arrays, layout, **parameters: change(conv2d(*arrays, layout=layout, **parameters), layout)


def _rectified(y, argmax):
    return np.maximum(y, 0).astype(y.dtype), np.where(y > 0, argmax, -1).astype(np.int32)


def _pooled(z, layout):
    return max_pool2d(z, **TOUCHING, layout=layout)


def _last_of_equals(z, layout):
    """z backwards, cut to whole windows: what came last comes first."""
    axes = (2, 3) if layout == "NCHW" else (1, 2)
    height, width = (z.shape[axis] // 2 * 2 for axis in axes)
    whole = z[:, :, :height, :width] if layout == "NCHW" else z[:, :height, :width]
    y, place = _pooled(np.flip(whole, axes).copy(), layout)
    place = height * width - 1 - np.flip(place, axes)
    return _rectified(np.flip(y, axes).copy(), place // width * z.shape[axes[1]] + place % width)


def _first_row_alone(z, layout):
    """The second row of each window is forgotten."""
    z = z.copy()
    z[(slice(None), slice(None), slice(1, None, 2)) if layout == "NCHW" else (slice(None), slice(1, None, 2))] = -np.inf
    return _rectified(*_pooled(z, layout))


def _in_whole_windows(z, layout):
    """Places count in rows as long as all windows: right where the convolution's rows are even."""
    y, argmax = _rectified(*_pooled(z, layout))
    width = nchw(z.shape, layout)[3]
    row, column = argmax // width, argmax % width
    return y, np.where(argmax < 0, -1, row * (width // 2 * 2) + column).astype(np.int32)


def _rectified_first(z, layout):
    """ReLU comes first, and the place of a 0 is handed on as that of any other number."""
    return _pooled(np.maximum(z, 0).astype(z.dtype), layout)


def _unrectified(z, layout):
    return _pooled(z, layout)


def _mean(z, layout):
    mean = avg_pool2d(z, kernel_size=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)), ceil_mode=False, count_include_pad=True, layout=layout)
    return np.maximum(mean, 0).astype(z.dtype), _rectified(*_pooled(z, layout))[1]


def _of_y(change):
    """The right results, y changed."""

    def fault(*arrays, **parameters):
        y, argmax = fused(*arrays, **parameters)
        return change(y), argmax

    return fault


FAULTS = {
    "conv2d_relu_max_pool2d": {
        "no ReLU": _of_z(_unrectified),
        "a gradient passes where ReLU stops it": _of_z(_rectified_first),
        "the last of equals wins": _of_z(_last_of_equals),
        "the second row of each window is forgotten": _of_z(_first_row_alone),
        "places count in whole windows": _of_z(_in_whole_windows),
        "the mean, not the largest": _of_z(_mean),
        "the bias is left out": _with(fused, 2, lambda bias: bias * 0),
        "the last tap is dropped": _with(fused, 1, _without_last_tap),
        "padding is off by one": _shifted(fused),
        "padding is on the wrong side": _other_side(fused),
        "1.001 times the truth": _of_y(lambda y: y * np.float32(1.001).astype(y.dtype)),
        "inputs of 11 bits (TF32)": short_inputs(fused),
    }
}
