"""relu: y = max(x, 0).

dx = dy where x > 0, else 0: ReLU'(0) = 0. A NaN is passed on.
"""

import numpy as np

from tinynet.op import op
from tinynet.tensor import Tensor


@op
def relu(k, x):
    out = k.xp.zeros(x.shape, x.dtype)  # numpy compares two arrays twice as fast as an array and a number
    return k.xp.maximum(x, out, out=out)


@relu.gradient("x")
def _(k, dy, *, out):
    # A product with the mask would make NaN of inf * 0.
    if k.xp is not np:
        return k.xp.where(out > 0, dy, dy.dtype.type(0))  # on a GPU each line is a pass over memory: two, not four
    # numpy's where() branches at every element, five times as slow as to keep all bits of dy or none.
    bits = k.xp.dtype(f"i{dy.dtype.itemsize}")
    kept = (out > 0).astype(bits)
    kept *= -1
    kept &= dy.view(bits)
    return kept.view(dy.dtype)


Tensor.relu = relu


@relu.samples
def _(rng):
    yield (3, 4, 5), {}
    yield rng.integers(-2, 3, (4, 6)).astype("float64"), {}
