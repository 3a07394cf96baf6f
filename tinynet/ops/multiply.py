"""multiply, divide and power: x * y, x / y, x ** exponent, element by element.

    z = x * y:   dx = dz * y,  dy = dz * x
    z = x / y:   dx = dz / y,  dy = -dz * z / y
    z = x ** n:  dx = dz * n * x ** (n - 1), which is 0 for n = 0

Operands broadcast, and numbers are taken, as in add.py.
"""

import numpy as np

from tinynet.op import op
from tinynet.tensor import Tensor


@op(also="iu", numbers=True)
def multiply(k, x, y):
    return x * y


@multiply.gradient("x")
def _(k, dy, *, y):
    return dy * y


@multiply.gradient("y")
def _(k, dy, *, x):
    return dy * x


@op(numbers=True)
def divide(k, x, y):
    return x / y


@divide.gradient("x")
def _(k, dy, *, y):
    return dy / y


@divide.gradient("y")
def _(k, dy, *, out, y):
    return -dy * out / y


@op(positional=("exponent",))
def power(k, x, exponent):
    if not isinstance(exponent, (int, float, np.number)):
        raise TypeError(f"power: the exponent must be a number; got {type(exponent).__name__}; use (y * x.log()).exp() for a tensor")
    exponent = exponent.item() if isinstance(exponent, np.number) else exponent  # numpy's would change the dtype
    return x**exponent, {"exponent": exponent}


@power.gradient("x")
def _(k, dy, *, x, exponent):
    return dy * exponent * x ** (exponent - 1) if exponent else k.xp.zeros_like(x)


Tensor.__mul__ = Tensor.__rmul__ = multiply
Tensor.__truediv__ = divide
Tensor.__rtruediv__ = lambda y, x: divide(x, y)
Tensor.__pow__ = power


@multiply.samples
@divide.samples
def _(rng):
    yield (2, 3, 4), rng.uniform(0.5, 2.0, (2, 3, 4)), {}
    yield (2, 3, 4), rng.uniform(0.5, 2.0, (3, 1)), {}
    yield (1, 4), rng.uniform(0.5, 2.0, (2, 3, 1)), {}
    yield (), rng.uniform(0.5, 2.0, (2, 3)), {}


@power.samples
def _(rng):
    for exponent in (3, 2.5, -1, 0):
        yield rng.uniform(0.5, 2.0, (3, 4)), dict(exponent=exponent)
