"""permute: the axes in another order, and transpose, which exchanges two.

The gradient is dy with the axes put back: exactly, with no rounding.
"""

import numpy as np

from tinynet.geometry import axes_of
from tinynet.op import op
from tinynet.ops.reshape import several
from tinynet.tensor import Tensor


@op(also="iub")
def permute(k, x, *, axes):
    axes = axes_of(tuple(axes), x.shape, "permute")
    if len(axes) != x.ndim:
        raise ValueError(f"permute: axes must name each of the {x.ndim} axes of x once (x is {x.shape}); got {axes}")
    return x.transpose(axes), {"back": tuple(np.argsort(axes))}


@permute.gradient("x")
def _(k, dy, *, back):
    return dy.transpose(back)


def transpose(x, first=-2, second=-1):
    """The tensor with two axes exchanged."""
    first, second = (axes_of(axis, x.shape, "transpose")[0] for axis in (first, second))
    axes = list(range(x.ndim))
    axes[first], axes[second] = second, first
    return permute(x, axes=axes)


Tensor.permute = lambda x, *axes: permute(x, axes=several(axes))
Tensor.transpose = transpose


@permute.samples
def _(rng):
    yield (2, 3, 4), dict(axes=(2, 0, 1))
    yield (2, 3, 4), dict(axes=(-1, 1, 0))
