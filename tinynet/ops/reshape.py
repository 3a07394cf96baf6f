"""reshape and flatten: the same numbers in the same order, on other axes.

The gradient is dy on the axes of x: exactly, with no rounding.
"""

from math import prod

from tinynet.op import op
from tinynet.tensor import Tensor


@op(also="iub")
def reshape(k, x, *, shape):
    try:
        return x.reshape(shape), {"before": x.shape}
    except (TypeError, ValueError):
        raise ValueError(f"reshape: x {x.shape} has {x.size} elements and can't become {shape}; the lengths must multiply to as many, and one may be -1") from None


@reshape.gradient("x")
def _(k, dy, *, before):
    return dy.reshape(before)


@op(also="iub", positional=("start",))
def flatten(k, x, start=1):
    """The axes from `start` on as one: (N, C, H, W) becomes (N, C*H*W)."""
    if not 0 <= start < x.ndim:
        raise ValueError(f"flatten: start must be an axis of x, from 0 to {x.ndim - 1} (x is {x.shape}); got {start}")
    return x.reshape(*x.shape[:start], prod(x.shape[start:])), {"before": x.shape}


@flatten.gradient("x")
def _(k, dy, *, before):
    return dy.reshape(before)


def several(values: tuple):
    """t.reshape(2, 3) and t.reshape((2, 3)) mean the same."""
    return values[0] if len(values) == 1 and isinstance(values[0], (tuple, list)) else values


Tensor.reshape = lambda x, *shape: reshape(x, shape=several(shape))
Tensor.flatten = flatten


@reshape.samples
def _(rng):
    yield (2, 3, 4), dict(shape=(4, -1))


@flatten.samples
def _(rng):
    yield (2, 3, 4), {}
    yield (2, 3, 4, 5), dict(start=2)
