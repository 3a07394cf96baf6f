"""relu: y = max(x, 0).

dx = dy where x > 0, else 0: ReLU'(0) = 0. A NaN is passed on.
"""

from tinynet.op import op
from tinynet.tensor import Tensor


@op
def relu(k, x):
    out = k.xp.zeros(x.shape, x.dtype)  # numpy compares two arrays twice as fast as an array and a number
    return k.xp.maximum(x, out, out=out)


@relu.gradient("x")
def _(k, dy, *, out):
    return k.relu_dx(dy, out)


Tensor.relu = relu


@relu.samples
def _(rng):
    yield (3, 4, 5), {}
    yield rng.integers(-2, 3, (4, 6)).astype("float64"), {}
