"""padding="same" is TensorFlow's rule: by hand, and by TensorFlow itself."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
from bounds import assert_close, assert_same
from kernels_by_hand import reals

from tinynet import functional as F
from tinynet import tensor
from tinynet.geometry import same

tf = pytest.importorskip("tensorflow")

# size, kernel, stride, dilation -> (before, after), worked out on paper:
# outputs = ceil(size / stride), total = max((outputs - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
BY_HAND = [
    ((32, 3, 1, 1), (1, 1)),
    ((32, 2, 2, 1), (0, 0)),
    ((5, 2, 2, 1), (0, 1)),  # 3 outputs reach 6 rows: the one that is missing comes at the bottom
    ((6, 3, 2, 1), (0, 1)),
    ((7, 3, 2, 1), (1, 1)),
    ((4, 4, 1, 1), (1, 2)),
    ((5, 1, 3, 1), (0, 0)),
    ((10, 1, 3, 1), (0, 0)),
    ((9, 2, 4, 1), (0, 1)),
    ((8, 3, 1, 2), (2, 2)),
    ((8, 2, 1, 3), (1, 2)),
    ((1, 5, 1, 1), (2, 2)),
    ((2, 5, 3, 1), (1, 2)),
]


@pytest.mark.parametrize("arguments,expected", BY_HAND, ids=str)
def test_by_hand(arguments, expected):
    assert same(*arguments) == expected


def geometries():
    rng = np.random.default_rng(7)
    while True:
        h, w = (int(v) for v in rng.integers(1, 12, 2))
        kernel = tuple(int(v) for v in rng.integers(1, 5, 2))
        strides, dilations = (tuple(int(v) for v in rng.integers(1, 4, 2)) for _ in range(2))
        if rng.integers(2):
            strides = (1, 1)
        else:
            dilations = (1, 1)  # TensorFlow refuses both at once
        yield h, w, kernel, strides, dilations


CASES = [case for case, _ in zip(geometries(), range(40))]


@pytest.mark.parametrize("h,w,kernel,strides,dilations", CASES, ids=str)
def test_conv2d_same_is_tensorflows(h, w, kernel, strides, dilations, rng):
    x, weight = reals(rng, (2, h, w, 3), np.float64), reals(rng, (4, 3, *kernel), np.float64)
    filters = tf.constant(weight.transpose(2, 3, 1, 0))
    with tf.GradientTape() as tape:
        images = tf.constant(x)
        tape.watch([images, filters])
        theirs = tf.nn.conv2d(images, filters, strides, "SAME", dilations=dilations)
        dy = reals(rng, tuple(theirs.shape), np.float64)
        loss = tf.reduce_sum(theirs * dy)

    ours = [tensor(a, requires_grad=True) for a in (x, weight)]
    options = dict(stride=strides, padding="same", dilation=dilations, layout="NHWC")
    y = F.conv2d(*ours, **options)
    y.backward(dy)
    gauges = [tensor(np.abs(a), requires_grad=True) for a in (x, weight)]
    gauge = F.conv2d(*gauges, **options)
    gauge.backward(np.abs(dy))

    assert_close(y.numpy(), theirs.numpy(), gauge.numpy(), 3 * kernel[0] * kernel[1])
    if dilations != (1, 1):
        return  # TensorFlow's CPU has no gradients of a dilated convolution
    dx, dfilters = (g.numpy() for g in tape.gradient(loss, [images, filters]))
    assert_close(ours[0].grad, dx, gauges[0].grad, 4 * kernel[0] * kernel[1])
    assert_close(ours[1].grad, dfilters.transpose(3, 2, 0, 1), gauges[1].grad, dy.size)


@pytest.mark.parametrize("h,w,kernel,strides,dilations", [c for c in CASES if c[4] == (1, 1)], ids=str)
def test_pooling_same_is_tensorflows(h, w, kernel, strides, dilations, rng):
    """TensorFlow's average leaves the padding out of the count: count_include_pad=False."""
    x = reals(rng, (2, h, w, 3), np.float64)
    most = F.max_pool2d(tensor(x), kernel, stride=strides, padding="same", layout="NHWC")
    assert_same(most.numpy(), tf.nn.max_pool2d(tf.constant(x), kernel, strides, "SAME").numpy())
    mean, gauge = (F.avg_pool2d(tensor(a), kernel, stride=strides, padding="same", count_include_pad=False, layout="NHWC").numpy() for a in (x, np.abs(x)))
    assert_close(mean, tf.nn.avg_pool2d(tf.constant(x), kernel, strides, "SAME").numpy(), gauge, kernel[0] * kernel[1] + 1)
