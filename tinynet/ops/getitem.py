"""getitem: part of a tensor, by numpy's rules: y = x[index].

dx holds dy at the places that were taken, added up where one was taken twice, and 0 elsewhere.
index: ints, slices, None, `...`, arrays of places or masks, and tuples of them; a tensor counts as its array.
"""

import numpy as np

from tinynet.op import op
from tinynet.tensor import Tensor


@op(also="iub")
def getitem(k, x, *, index):
    index = _own(index, k.xp.asarray)  # to where x lies
    return x[index], {"shape": x.shape, "index": index}


@getitem.gradient("x")
def _(k, dy, *, index, shape):
    dx = k.xp.zeros(shape, dy.dtype)
    if all(i is None or i is Ellipsis or isinstance(i, (int, slice)) for i in (index if isinstance(index, tuple) else (index,))):
        dx[index] = dy
    else:
        k.xp.add.at(dx, index, dy)  # an array of places may name one twice
    return dx


def _own(index, array=np.array):
    """The index with all arrays in it, and what counts as one, made anew: as nobody else can edit it before backward."""
    if isinstance(index, tuple):
        return tuple(_own(i, array) for i in index)
    return array(index) if isinstance(index, (Tensor, np.ndarray, list)) else index


Tensor.__getitem__ = lambda x, index: getitem(x, index=_own(index))


@getitem.samples
def _(rng):
    yield (4, 5), dict(index=(slice(1, None), slice(None, None, 2)))
    yield (4, 5), dict(index=(..., None, 2))
    yield (4, 5), dict(index=np.array([0, 2, 2]))
    yield (4, 5), dict(index=(np.array([0, 3, 3]), np.array([1, 4, 4])))
