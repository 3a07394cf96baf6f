"""The ops under one roof: `from tinynet import functional as F`. Each is documented in its file under ops/."""

from tinynet.ops.avg_pool2d import avg_pool2d
from tinynet.ops.bias_add import bias_add
from tinynet.ops.conv2d import conv2d
from tinynet.ops.cross_entropy import cross_entropy
from tinynet.ops.linear import linear
from tinynet.ops.log_softmax import log_softmax
from tinynet.ops.matmul import matmul
from tinynet.ops.max_pool2d import max_pool2d
from tinynet.ops.nll_loss import nll_loss
from tinynet.ops.relu import relu
from tinynet.ops.reshape import flatten
from tinynet.ops.softmax import softmax

__all__ = [
    "avg_pool2d",
    "bias_add",
    "conv2d",
    "cross_entropy",
    "flatten",
    "linear",
    "log_softmax",
    "matmul",
    "max_pool2d",
    "nll_loss",
    "relu",
    "softmax",
]
