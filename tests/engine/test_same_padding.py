"""padding="same" is TensorFlow's rule: by hand, and by TensorFlow itself."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
from kernels_by_hand import assert_same, reals

from tinynet import functional as F
from tinynet import oracle, tensor
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

    options = dict(stride=strides, padding="same", dilation=dilations, layout="NHWC")
    oracle.assert_matches(theirs.numpy(), oracle.reference.conv2d(x, weight, **options), max_zero_share=1.0)
    if dilations != (1, 1):
        return  # TensorFlow's CPU has no gradients of a dilated convolution
    dx, dfilters = (g.numpy() for g in tape.gradient(loss, [images, filters]))
    want = oracle.reference.conv2d_grad(dy, x, weight, **options)
    for got, truth in zip((dx, dfilters.transpose(3, 2, 0, 1)), want):
        oracle.assert_matches(got, truth, max_zero_share=1.0)


@pytest.mark.parametrize("h,w,kernel,strides,dilations", [c for c in CASES if c[4] == (1, 1)], ids=str)
def test_pooling_same_is_tensorflows(h, w, kernel, strides, dilations, rng):
    """TensorFlow's average leaves the padding out of the count: count_include_pad=False."""
    x = reals(rng, (2, h, w, 3), np.float64)
    most = F.max_pool2d(tensor(x), kernel, stride=strides, padding="same", layout="NHWC")
    assert_same(most.numpy(), tf.nn.max_pool2d(tf.constant(x), kernel, strides, "SAME").numpy())
    mean = tf.nn.avg_pool2d(tf.constant(x), kernel, strides, "SAME").numpy()
    oracle.assert_matches(mean, oracle.reference.avg_pool2d(x, kernel_size=kernel, stride=strides, padding="same", count_include_pad=False, layout="NHWC"), max_zero_share=1.0)
