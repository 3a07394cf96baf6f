"""conv2d: slide K filters over N images.

    y[n,k,i,j] = bias[k] + sum over c,u,v of x[n, c, i*s + u*d - p, j*s + v*d - p] * weight[k,c,u,v]

(cross-correlation, as in every framework; the kernel is not flipped). Each output is linear in x and
in weight, so each gradient is the same sum with the roles exchanged: for every triple (input place,
tap, output place) that meets in the forward, dx takes dy * weight and dweight takes dy * x.

x (N, C, H, W) or (N, H, W, C) by `layout`; weight (K, C/groups, kh, kw); bias (K,) or None.
stride, dilation: an int or (rows, columns). padding: an int, (rows, columns), "same" (TensorFlow's
rule), "valid", or ((top, bottom), (left, right)). groups: channels in groups that don't mix.
Raises ValueError where the shapes don't fit, TypeError where the dtypes don't.

Next on the walk: dispatch.py, who answers when `k.conv2d` is called.
"""

from tinynet.geometry import Window, checked
from tinynet.op import op


@op
def conv2d(k, x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, layout="NCHW"):
    window = checked(Window, x.shape, weight.shape, stride, padding, dilation, groups, layout)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"conv2d: bias must have shape {weight.shape[:1]}, one value for each filter; got {bias.shape}")
    return k.conv2d(x, weight, bias, **window), {"window": window, "x_shape": x.shape, "weight_shape": weight.shape}


@conv2d.gradient("x")
def _(k, dy, *, weight, x_shape, window):
    return k.conv2d_dx(dy, weight, x_shape=x_shape, **window)


@conv2d.gradient("weight")
def _(k, dy, *, x, weight_shape, window):
    return k.conv2d_dw(dy, x, weight_shape=weight_shape, **window)


@conv2d.gradient("bias")
def _(k, dy, *, layout):
    return k.conv2d_db(dy, layout=layout)


@conv2d.samples
def _(rng):
    yield (2, 3, 7, 5), (4, 3, 3, 2), (4,), dict(stride=(2, 1), padding="same")
    yield (2, 7, 5, 3), (4, 3, 3, 2), (4,), dict(padding=((0, 2), (1, 0)), layout="NHWC")
    yield (3, 4, 9, 6), (6, 2, 2, 3), None, dict(dilation=(2, 1), groups=2, padding=(1, 2))
    yield (1, 3, 8, 7), (3, 1, 3, 3), (3,), dict(groups=3, stride=3, padding="valid")
