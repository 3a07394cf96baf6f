"""The ops, one a file (or a few that belong together): the formula, what is computed, and what each
input's gradient is.

To add one, write such a file and name it below; `functional`, the tests on every backend
and `Tensor` find it from there.
"""

from tinynet.ops import (
    add,
    avg_pool2d,
    bias_add,
    conv2d,
    cross_entropy,
    elementwise,
    getitem,
    linear,
    log_softmax,
    matmul,
    max,
    max_pool2d,
    multiply,
    nll_loss,
    permute,
    reduce,
    relu,
    reshape,
    softmax,
    transfer,
)
