"""The article's TensorFlow network on tinynet, in the same functional style: SAME padding, NHWC, lists of weights."""

from tinynet import functional as F


def conv2d(x, W, b, strides=1):
    x = F.conv2d(x, W, stride=strides, padding="same", layout="NHWC")
    x = F.bias_add(x, b, layout="NHWC")
    return F.relu(x)


def maxpool2d(x, k=2):
    return F.max_pool2d(x, k, stride=k, padding="same", layout="NHWC")


def conv_net(x, weights, biases):
    conv1 = conv2d(x, weights[0], biases[0])
    conv1 = maxpool2d(conv1, k=2)
    conv2 = conv2d(conv1, weights[1], biases[1])
    conv2 = maxpool2d(conv2, k=2)
    fc1 = F.flatten(conv2)
    fc1 = F.linear(fc1, weights[2], biases[2])
    fc1 = F.relu(fc1)
    out = F.linear(fc1, weights[3], biases[3])
    return out


def cost(pred, y):
    return F.cross_entropy(pred, y)
