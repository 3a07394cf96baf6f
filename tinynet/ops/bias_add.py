"""bias_add: one value for each channel, added at every place.

    y[n,k,i,j] = x[n,k,i,j] + bias[k]

x is a batch of images in `layout`, or rows (N, K); bias (K,).
"""

from tinynet.geometry import check_layout
from tinynet.op import op


def _channel_axis(x, layout: str) -> int:
    check_layout(layout, "bias_add")
    return 1 if layout == "NCHW" else x.ndim - 1


@op
def bias_add(k, x, bias, *, layout="NCHW"):
    if x.ndim < 2:
        raise ValueError(f"bias_add: x must have an axis of channels after the batch; got shape {x.shape}")
    axis = _channel_axis(x, layout)
    if bias.shape != (x.shape[axis],):
        raise ValueError(f"bias_add: bias must have shape ({x.shape[axis]},), one value for each channel of x {x.shape} ({layout}); got {bias.shape}")
    return x + bias.reshape(-1, *[1] * (x.ndim - 1 - axis)), {"axis": axis}


@bias_add.gradient("x")
def _(k, dy):
    return dy


@bias_add.gradient("bias")
def _(k, dy, *, axis):
    return dy.sum(axis=tuple(a for a in range(dy.ndim) if a != axis))


@bias_add.samples
def _(rng):
    yield (2, 3, 4, 5), (3,), {}
    yield (2, 4, 5, 3), (3,), dict(layout="NHWC")
    yield (4, 3), (3,), {}
