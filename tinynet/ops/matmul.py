"""matmul: the matrix product, for a batch of matrices too.

    c[..., i, j] = sum over t of a[..., i, t] * b[..., t, j]
    da = dc b^T,  db = a^T dc

a (..., I, T), b (..., T, J); leading axes broadcast against each other. Vectors are refused:
whether one means a row or a column is the caller's to say, with reshape.
"""

from tinynet.op import op
from tinynet.tensor import Tensor


def product(k, a, b):
    """k.matmul with the leading axes made equal, as the contract wants them."""
    if a.shape[:-2] != b.shape[:-2]:
        try:
            batch = k.xp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        except ValueError:
            raise ValueError(f"matmul: the batches {a.shape[:-2]} and {b.shape[:-2]} don't fit (a is {a.shape}, b is {b.shape}); from the last axis on they must be equal or 1") from None
        a = k.xp.broadcast_to(a, batch + a.shape[-2:])
        b = k.xp.broadcast_to(b, batch + b.shape[-2:])
    return k.matmul(a, b)


def transposed(a):
    return a.swapaxes(-1, -2)


@op
def matmul(k, a, b):
    if a.ndim < 2 or b.ndim < 2:
        raise ValueError(f"matmul: needs two tensors of at least 2 axes; got {a.shape} and {b.shape}; make a vector a row with reshape(1, -1) or a column with reshape(-1, 1)")
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matmul: a has {a.shape[-1]} columns, b has {b.shape[-2]} rows (a is {a.shape}, b is {b.shape}); they must be equal: transpose one?")
    return product(k, a, b)


@matmul.gradient("a")
def _(k, dy, *, b):
    return product(k, dy, transposed(b))


@matmul.gradient("b")
def _(k, dy, *, a):
    return product(k, transposed(a), dy)


Tensor.__matmul__ = matmul
Tensor.__rmatmul__ = lambda b, a: matmul(a, b)


@matmul.samples
def _(rng):
    yield (3, 5), (5, 4), {}
    yield (2, 3, 5), (2, 5, 4), {}
    yield (2, 1, 3, 5), (4, 5, 2), {}
