"""Functions of each element: exp, log and sqrt, through the device's array module.

    exp: dx = dy * y        log: dx = dy / x        sqrt: dx = dy / (2 y)
"""

from tinynet.op import op
from tinynet.tensor import Tensor


@op
def exp(k, x):
    return k.xp.exp(x)


@exp.gradient("x")
def _(k, dy, *, out):
    return dy * out


@op
def log(k, x):
    return k.xp.log(x)


@log.gradient("x")
def _(k, dy, *, x):
    return dy / x


@op
def sqrt(k, x):
    return k.xp.sqrt(x)


@sqrt.gradient("x")
def _(k, dy, *, out):
    return dy / (2 * out)


Tensor.exp, Tensor.log, Tensor.sqrt = exp, log, sqrt


@exp.samples
@log.samples
@sqrt.samples
def _(rng):
    yield rng.uniform(0.5, 2.0, (3, 4)), {}
