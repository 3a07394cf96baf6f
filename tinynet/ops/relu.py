"""relu: y = max(x, 0).

dx = dy where x > 0, else 0: ReLU'(0) = 0. A NaN is passed on.
"""

from tinynet.op import op
from tinynet.tensor import Tensor


@op
def relu(k, x):
    return k.xp.maximum(x, 0)


@relu.gradient("x")
def _(k, dy, *, out):
    return k.xp.where(out > 0, dy, 0)  # not dy * mask: inf * 0 would be NaN


Tensor.relu = relu


@relu.samples
def _(rng):
    yield (3, 4, 5), {}
    yield rng.integers(-2, 3, (4, 6)).astype("float64"), {}
