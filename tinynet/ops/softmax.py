"""softmax: y_j = exp(x_j - m) / sum over t of exp(x_t - m), along `axis`.

m is the largest x of the row: it changes nothing on paper and keeps exp from overflowing.
dx_j = y_j * (dy_j - sum over t of dy_t * y_t).
"""

from tinynet.geometry import check_one_axis
from tinynet.op import op
from tinynet.tensor import Tensor


@op(positional=("axis",))
def softmax(k, x, *, axis=-1):
    check_one_axis(axis, x.shape, "softmax")
    exponentials = k.xp.exp(x - x.max(axis=axis, keepdims=True) if x.shape[axis] else x)
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


@softmax.gradient("x")
def _(k, dy, *, out, axis):
    return out * (dy - (dy * out).sum(axis=axis, keepdims=True))


Tensor.softmax = softmax


@softmax.samples
def _(rng):
    yield (3, 5), {}
    yield (2, 4, 3), dict(axis=1)
