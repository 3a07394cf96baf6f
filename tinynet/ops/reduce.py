"""sum and mean along axes, through the device's array module.

    sum: dx = dy everywhere        mean: dx = dy / count everywhere

axis: None (all), an int or a tuple of them; keepdims as in numpy.
"""

from math import prod

from tinynet.geometry import axes_of
from tinynet.op import op
from tinynet.tensor import Tensor


def spread(xp, dy, shape, axes):
    """dy of a reduced result, repeated along the reduced axes."""
    kept = [1 if a in axes else n for a, n in enumerate(shape)]
    return xp.broadcast_to(dy.reshape(kept), shape)


@op(also="iu", positional=("axis",))
def sum(k, x, *, axis=None, keepdims=False):
    axes = axes_of(axis, x.shape, "sum")
    # numpy would widen small integers; dtype= keeps the promise that an op never changes it
    return x.sum(axis=axes, keepdims=keepdims, dtype=x.dtype), {"shape": x.shape, "axes": axes}


@sum.gradient("x")
def _(k, dy, *, shape, axes):
    return spread(k.xp, dy, shape, axes)


@op(positional=("axis",))
def mean(k, x, *, axis=None, keepdims=False):
    axes = axes_of(axis, x.shape, "mean")
    count = prod(x.shape[a] for a in axes)
    total = x.sum(axis=axes, keepdims=keepdims)
    # the mean of nothing is 0/0; so said without numpy's warning
    return total / count if count else total * float("nan"), {"shape": x.shape, "axes": axes, "count": count}


@mean.gradient("x")
def _(k, dy, *, shape, axes, count):
    return spread(k.xp, dy / count if count else dy, shape, axes)


Tensor.sum, Tensor.mean = sum, mean


@sum.samples
@mean.samples
def _(rng):
    yield (2, 3, 4), {}
    yield (2, 3, 4), dict(axis=1)
    yield (2, 3, 4), dict(axis=-1, keepdims=True)
    yield (2, 3, 4), dict(axis=(0, 2))
