"""max_pool2d: the largest value of each window.

    y[n,c,i,j] = max over u,v of x[n, c, i*s + u*d - p, j*s + v*d - p]          (padding counts as -inf)

The gradient goes to the place that won, the first in row-major order among equals; a NaN wins over
any number and is passed on. stride is the kernel size unless given; padding as in conv2d.
`ceil_mode` keeps the last, incomplete window (PyTorch's rule).
"""

from tinynet.geometry import PoolWindow, checked
from tinynet.op import op


@op(positional=("kernel_size",))
def max_pool2d(k, x, kernel_size, *, stride=None, padding=0, dilation=1, ceil_mode=False, layout="NCHW"):
    window = checked(PoolWindow, x.shape, kernel_size, stride, padding, ceil_mode, layout, "max_pool2d", dilation)
    y, argmax = k.max_pool2d(x, **window)
    return y, {"argmax": argmax, "x_shape": x.shape}


@max_pool2d.gradient("x")
def _(k, dy, *, argmax, x_shape, layout):
    return k.max_pool2d_dx(dy, argmax, x_shape=x_shape, layout=layout)


@max_pool2d.samples
def _(rng):
    yield (2, 3, 8, 6), dict(kernel_size=2)
    yield (2, 3, 7, 5), dict(kernel_size=(3, 2), stride=(2, 1), padding="same")
    yield (2, 7, 5, 3), dict(kernel_size=(2, 3), stride=2, padding=((1, 0), (1, 2)), layout="NHWC")
    yield (1, 2, 9, 8), dict(kernel_size=2, stride=3, dilation=(3, 2), ceil_mode=True)
