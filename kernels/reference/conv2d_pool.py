"""Convolution, rectification and pooling in one, the definition: the three, one after the other."""

from __future__ import annotations

import numpy as np

from tinynet.kernels.contract import CONTRACTS, implements
from tinynet.kernels.reference.conv2d import conv2d
from tinynet.kernels.reference.pool2d import max_pool2d

TOUCHING = dict(kernel_size=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)), dilation=(1, 1), ceil_mode=False)


@implements("conv2d_relu_max_pool2d", device="reference", variant="numpy")
def conv2d_relu_max_pool2d(x, weight, bias, *, stride, padding, dilation, groups, layout, out):
    y, argmax = out
    window = dict(stride=stride, padding=padding, dilation=dilation, groups=groups, layout=layout)
    ((shape, dtype),) = CONTRACTS["conv2d"].spec(x, weight, bias, **window).outputs
    z = np.empty(shape, dtype)
    conv2d(x, weight, bias, **window, out=z)
    max_pool2d(z, **TOUCHING, layout=layout, out=out)
    argmax[~(y > 0)] = -1
    y[y < 0] = 0
