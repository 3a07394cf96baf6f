"""max: the largest along an axis; a NaN is larger than any number.

dx = dy at the first maximum, 0 elsewhere. axis: None (all) or an int; keepdims as in numpy.
"""

from tinynet.geometry import axes_of
from tinynet.op import op
from tinynet.tensor import Tensor


@op(also="iu", positional=("axis",))
def max(k, x, *, axis=None, keepdims=False):
    if isinstance(axis, (tuple, list)):
        raise ValueError(f"max: axis must be None or an int; got {axis!r}; reshape the axes into one first")
    axes = axes_of(axis, x.shape, "max")
    if 0 in [x.shape[a] for a in axes]:
        raise ValueError(f"max: there is no largest of no elements (x is {x.shape}, axis is {axis})")
    return x.max(axis=axes, keepdims=keepdims)


@max.gradient("x")
def _(k, dy, *, x, axis, keepdims):
    xp = k.xp
    dx = xp.zeros(x.shape, dy.dtype)
    if axis is None:
        dx.reshape(-1)[x.argmax()] = dy.reshape(())
        return dx
    place = xp.expand_dims(x.argmax(axis=axis), axis)
    xp.put_along_axis(dx, place, dy if keepdims else xp.expand_dims(dy, axis), axis)
    return dx


Tensor.max = max


@max.samples
def _(rng):
    yield (2, 3, 4), {}
    yield (2, 3, 4), dict(axis=1)
    yield (2, 3, 4), dict(axis=-1, keepdims=True)
