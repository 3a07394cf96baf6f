"""`oracle.reference`: the truth of every kernel and op by name, as `Bounded`.

    want = oracle.reference.conv2d(x, weight, bias, padding="same")
    verdict = oracle.judge(my_kernel(x, weight, bias), want)

`<name>(*inputs, **parameters)` is an op or a kernel of the contract, `<op>_grad(dy, *inputs,
wrt=None, **parameters)` its gradients. All take `dtype=`, the result's, where it is not the inputs'.
"""

from __future__ import annotations

from tinynet.oracle import truth_fused, truth_kernels, truth_losses, truth_ops
from tinynet.oracle.truth_fused import conv2d_relu_max_pool2d
from tinynet.oracle.truth_kernels import (
    avg_pool2d, avg_pool2d_dx, avg_pool2d_grad, conv2d, conv2d_db, conv2d_dw, conv2d_dx, conv2d_grad,
    matmul, max_pool2d, max_pool2d_dx, max_pool2d_grad,
)  # fmt: skip
from tinynet.oracle.truth_losses import (
    adam_step, adamw_step, cross_entropy, cross_entropy_grad, log_softmax, log_softmax_grad,
    nll_loss, nll_loss_grad, sgd_step, softmax, softmax_cross_entropy, softmax_grad,
)  # fmt: skip
from tinynet.oracle.truth_ops import (
    add, add_grad, bias_add, bias_add_grad, divide, divide_grad, exp, exp_grad, flatten, flatten_grad, linear,
    linear_grad, log, log_grad, matmul_grad, max, max_grad, mean, mean_grad, multiply, multiply_grad, negative,
    negative_grad, permute, permute_grad, power, power_grad, relu, relu_dx, relu_grad, reshape, reshape_grad, sqrt,
    sqrt_grad, subtract, subtract_grad, sum, sum_grad,
)  # fmt: skip

NAMES = tuple(
    name
    for module in (truth_kernels, truth_fused, truth_ops, truth_losses)
    for name, value in vars(module).items()
    if name in globals() and getattr(value, "__module__", None) == module.__name__
)
__all__ = list(NAMES)


def find(name: str):
    """The reference function of a name; an error that lists the names if there is none."""
    if name not in NAMES:
        raise ValueError(f"oracle.reference has no {name!r}; the names are {', '.join(NAMES)}")
    return globals()[name]
