"""linear: a dense layer.

    y[n,k] = bias[k] + sum over t of x[n,t] * weight[k,t]
    dx = dy weight,  dweight = dy^T x,  dbias = sum over n of dy

x (..., T), weight (K, T) in every layout, bias (K,) or None.
"""

from math import prod

from tinynet.op import op


def rows(a):
    """All leading axes as one."""
    return a if a.ndim == 2 else a.reshape(prod(a.shape[:-1]), a.shape[-1])


@op
def linear(k, x, weight, bias=None):
    if weight.ndim != 2:
        raise ValueError(f"linear: weight must have 2 axes (out, in); got shape {weight.shape}")
    if x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear: weight takes {weight.shape[1]} features, x has {x.shape[-1] if x.ndim else 'no axis'} (x is {x.shape}, weight is {weight.shape}: (out, in)); flatten x first?")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear: bias must have shape {weight.shape[:1]}, one value for each output; got {bias.shape}")
    y = k.matmul(rows(x), weight.T)
    if bias is not None:
        y += bias
    return y if x.ndim == 2 else y.reshape(*x.shape[:-1], weight.shape[0]), {"x_shape": x.shape}


@linear.gradient("x")
def _(k, dy, *, weight, x_shape):
    return k.matmul(rows(dy), weight).reshape(x_shape)


@linear.gradient("weight")
def _(k, dy, *, x):
    return k.matmul(rows(dy).T, rows(x))


@linear.gradient("bias")
def _(k, dy):
    return rows(dy).sum(axis=0)


@linear.samples
def _(rng):
    yield (5, 3), (4, 3), (4,), {}
    yield (2, 3, 5), (4, 5), None, {}
