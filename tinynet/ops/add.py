"""add, subtract and negative: x + y, x - y, -x, element by element.

Operands broadcast as in numpy; tape.py sums a gradient over the axes along which its input
was repeated. A Python number takes the tensor's dtype and gets no gradient.
"""

from tinynet.op import op
from tinynet.tensor import Tensor


@op(also="iu", numbers=True)
def add(k, x, y):
    return x + y


@add.gradient("x")
def _(k, dy):
    return dy


@add.gradient("y")
def _(k, dy):
    return dy


@op(also="iu", numbers=True)
def subtract(k, x, y):
    return x - y


@subtract.gradient("x")
def _(k, dy):
    return dy


@subtract.gradient("y")
def _(k, dy):
    return -dy


@op(also="iu")
def negative(k, x):
    return -x


@negative.gradient("x")
def _(k, dy):
    return -dy


Tensor.__add__ = Tensor.__radd__ = add
Tensor.__sub__ = subtract
Tensor.__rsub__ = lambda y, x: subtract(x, y)
Tensor.__neg__ = negative


@add.samples
@subtract.samples
def _(rng):
    yield (2, 3, 4), (2, 3, 4), {}
    yield (2, 3, 4), (3, 1), {}
    yield (1, 4), (2, 3, 1), {}
    yield (), (2, 3), {}


@negative.samples
def _(rng):
    yield (3, 4), {}
