"""Convolution, bias, ReLU and max-pooling of 2 x 2 in one launch: what conv2d.cu's `direct` and `registers` do when pooled.

The convolution's own result is never in memory: of four numbers one is written, and which it was. So the gradient at it is
max-pooling's (pool2d.py), and behind that come the convolution's gradients, as always.
"""

from __future__ import annotations

from dataclasses import replace

from tinynet.geometry import nchw, output_size
from tinynet.kernels.cuda import conv2d
from tinynet.kernels.cuda.both import implements_on_both
from tinynet.kernels.cuda.launch import contiguous, in_elements, real


def _register(variant: str, default: bool = False) -> None:
    @implements_on_both("conv2d_relu_max_pool2d", variant=variant, default=default)
    def conv2d_relu_max_pool2d(x, weight, bias, *, stride, padding, dilation, groups, layout, out):
        y, argmax = out
        real("conv2d_relu_max_pool2d", y.dtype)
        if y.size == 0:
            return
        (c,) = conv2d.forward(in_elements(x), in_elements(weight), contiguous(bias), stride, padding, dilation, groups, layout, y[None])
        columns = output_size(nchw(x.shape, layout)[3], weight.shape[3], stride[1], dilation[1], padding[1])
        c = replace(c, argmax=argmax, z_columns=columns)
        conv2d.check_sizes("conv2d_relu_max_pool2d", [c])
        kernel, tile, _, each = conv2d.plan(variant, c)
        conv2d.launch(kernel, tile, c, each)


_register("direct")
_register("registers", default=True)
