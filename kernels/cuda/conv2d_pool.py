"""Convolution, bias, ReLU and max-pooling of 2 x 2 in one launch: what conv2d.cu's `direct` and `registers` do when pooled.

The convolution's own result is never in memory: of four numbers one is written, and which it was. So the gradient at it is
max-pooling's (pool2d.py), and behind that come the convolution's gradients, as always. Where the windows fill few blocks, each of the
blocks has a part of the sums, as in conv2d.py, and what follows is done by a second kernel, which adds them up.
"""

from __future__ import annotations

from dataclasses import replace

from tinynet.geometry import nchw, output_size
from tinynet.kernels.cuda import conv2d
from tinynet.kernels.cuda.both import implements_on_both
from tinynet.kernels.cuda.launch import contiguous, empty, in_elements, kernel, real


def _register(variant: str, default: bool = False) -> None:
    @implements_on_both("conv2d_relu_max_pool2d", variant=variant, default=default)
    def conv2d_relu_max_pool2d(x, weight, bias, *, stride, padding, dilation, groups, layout, out):
        y, argmax = out
        real("conv2d_relu_max_pool2d", y.dtype)
        if y.size == 0:
            return
        bias = contiguous(bias)
        (c,) = conv2d.forward(in_elements(x), in_elements(weight), bias, stride, padding, dilation, groups, layout, y[None])
        columns = output_size(nchw(x.shape, layout)[3], weight.shape[3], stride[1], dilation[1], padding[1])
        c = replace(c, argmax=argmax, z_columns=columns)
        conv2d.check_sizes("conv2d_relu_max_pool2d", [c])
        chosen, tile, count, each = conv2d.plan(variant, c)
        if count == 1:
            conv2d.launch(chosen, tile, c, each)
            return
        last = layout == "NHWC"
        fours = empty(y, count, *y.shape[:3], 4, y.shape[3]) if last else empty(y, count, *y.shape, 4)  # as in conv2d.cu
        parts = conv2d.by_group(fours[..., 0, :] if last else fours[..., 0], groups, layout)
        c = conv2d.laid_out(chosen, replace(c, bias=None, argmax=None, y=parts, fours=fours))
        conv2d.launch(chosen, tile, c, each)
        run = kernel(y, conv2d.FILE, "conv2d_pool_parts", **conv2d.form_of(c, tile[0]))
        _, outs, rows, wide = nchw(y.shape, layout)
        run((-(-y.size // 256),), (256,), (fours, count, y.size, bias, outs, rows, wide, columns, y, argmax))


_register("direct")
_register("registers", default=True)
