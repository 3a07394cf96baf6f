"""log_softmax: y_j = (x_j - m) - log(sum over t of exp(x_t - m)), along `axis`, m the largest x.

Not log(softmax(x)): that is -inf where softmax underflows.
dx_j = dy_j - exp(y_j) * sum over t of dy_t.
"""

from tinynet.geometry import check_one_axis
from tinynet.op import op
from tinynet.tensor import Tensor


def log_probabilities(xp, x, axis):
    shifted = x - x.max(axis=axis, keepdims=True) if x.shape[axis] else x
    return shifted - xp.log(xp.exp(shifted).sum(axis=axis, keepdims=True))


@op(positional=("axis",))
def log_softmax(k, x, *, axis=-1):
    check_one_axis(axis, x.shape, "log_softmax")
    return log_probabilities(k.xp, x, axis)


@log_softmax.gradient("x")
def _(k, dy, *, out, axis):
    return dy - k.xp.exp(out) * dy.sum(axis=axis, keepdims=True)


Tensor.log_softmax = log_softmax


@log_softmax.samples
def _(rng):
    yield (3, 5), {}
    yield (2, 4, 3), dict(axis=1)
