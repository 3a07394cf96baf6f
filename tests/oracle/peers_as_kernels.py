"""Other frameworks' functions with the signatures of the contract, for oracle.check."""

from __future__ import annotations

import numpy as np


def torch_functions():
    import torch
    from torch.nn import functional as F

    def sides(padding):
        return (*padding[1], *padding[0])

    def conv2d(x, weight, bias, *, stride, padding, dilation, groups, layout):
        images = x if layout == "NCHW" else x.permute(0, 3, 1, 2)
        y = F.conv2d(F.pad(images, sides(padding)), weight, bias, stride, 0, dilation, groups)
        return y if layout == "NCHW" else y.permute(0, 2, 3, 1).contiguous()

    def conv2d_dx(dy, weight, *, x_shape, **window):
        x = torch.zeros(x_shape, dtype=dy.dtype, requires_grad=True)
        return torch.autograd.grad(conv2d(x, weight, None, **window), x, dy)[0]

    def conv2d_dw(dy, x, *, weight_shape, **window):
        weight = torch.zeros(weight_shape, dtype=dy.dtype, requires_grad=True)
        return torch.autograd.grad(conv2d(x, weight, None, **window), weight, dy)[0]

    def max_pool2d(x, *, kernel_size, stride, padding, dilation, ceil_mode, layout):
        images = x if layout == "NCHW" else x.permute(0, 3, 1, 2)
        padded = F.pad(images, sides(padding), value=-np.inf)
        y, place = F.max_pool2d(padded, kernel_size, stride, 0, dilation, ceil_mode, return_indices=True)
        (top, _), (left, _) = padding
        row, column = place // padded.shape[3] - top, place % padded.shape[3] - left
        outside = (row < 0) | (row >= images.shape[2]) | (column < 0) | (column >= images.shape[3])  # the window has padding alone
        place = torch.where(outside, -1, row * images.shape[3] + column)
        return tuple(t if layout == "NCHW" else t.permute(0, 2, 3, 1).contiguous() for t in (y, place.int()))

    return {
        "conv2d": conv2d,
        "conv2d_dx": conv2d_dx,
        "conv2d_dw": conv2d_dw,
        "conv2d_db": lambda dy, *, layout: dy.sum((0, 2, 3) if layout == "NCHW" else (0, 1, 2)),
        "max_pool2d": max_pool2d,
        "matmul": torch.matmul,
        "linear": F.linear,
        "relu": F.relu,
        "softmax": lambda x, axis=-1: torch.softmax(x, axis),
        "log_softmax": lambda x, axis=-1: torch.log_softmax(x, axis),
        "cross_entropy": lambda logits, target, reduction: F.cross_entropy(logits, target, reduction=reduction),
        "sqrt": torch.sqrt,
        "divide": torch.div,
        "mean": lambda x, axis=None, keepdims=False: x.mean() if axis is None else x.mean(axis, keepdim=keepdims),
    }


def tensorflow_functions():
    import tensorflow as tf

    def conv2d(x, weight, bias, *, stride, padding, dilation, groups, layout):
        images = x if layout == "NHWC" else tf.transpose(x, (0, 2, 3, 1))
        images = tf.pad(images, ((0, 0), *padding, (0, 0)))
        filters = tf.transpose(weight, (2, 3, 1, 0))
        # TensorFlow's CPU takes one stride for both axes and no groups: convolve densely, group by group, and thin out.
        parts = [tf.nn.convolution(i, f, dilations=dilation) for i, f in zip(tf.split(images, groups, axis=3), tf.split(filters, groups, axis=3))]
        y = tf.concat(parts, axis=3)[:, :: stride[0], :: stride[1]]
        y = y if bias is None else tf.nn.bias_add(y, bias)
        return y if layout == "NHWC" else tf.transpose(y, (0, 3, 1, 2))

    return {
        "conv2d": conv2d,
        "matmul": tf.matmul,
        "softmax": lambda x, axis=-1: tf.nn.softmax(x, axis),
        "log_softmax": lambda x, axis=-1: tf.nn.log_softmax(x, axis),
    }
