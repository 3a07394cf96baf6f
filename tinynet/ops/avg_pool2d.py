"""avg_pool2d: the mean of each window.

    y[n,c,i,j] = sum over u,v of x[n, c, i*s + u - p, j*s + v - p] / count(i, j)       (padding counts as 0)

count(i, j) is how many places of the window lie in the padded image or, with
`count_include_pad=False`, in the image itself. stride is the kernel size unless given.
"""

from tinynet.geometry import PoolWindow, checked
from tinynet.op import op


@op(positional=("kernel_size",))
def avg_pool2d(k, x, kernel_size, *, stride=None, padding=0, ceil_mode=False, count_include_pad=True, layout="NCHW"):
    window = checked(PoolWindow, x.shape, kernel_size, stride, padding, ceil_mode, layout, "avg_pool2d")
    window["count_include_pad"] = bool(count_include_pad)
    return k.avg_pool2d(x, **window), {"window": window, "x_shape": x.shape}


@avg_pool2d.gradient("x")
def _(k, dy, *, x_shape, window):
    return k.avg_pool2d_dx(dy, x_shape=x_shape, **window)


@avg_pool2d.samples
def _(rng):
    yield (2, 3, 8, 6), dict(kernel_size=2)
    yield (2, 3, 7, 5), dict(kernel_size=(3, 2), stride=(2, 1), padding="same", count_include_pad=False)
    yield (2, 7, 5, 3), dict(kernel_size=(2, 3), stride=2, padding=((1, 0), (1, 2)), layout="NHWC")
    yield (1, 2, 9, 8), dict(kernel_size=3, stride=2, padding=1, ceil_mode=True)
