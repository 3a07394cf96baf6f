"""Planted faults in functional's ops, in their gradients, and in the optimisers' steps; made as in faults_kernels.py."""

from __future__ import annotations

import numpy as np

from tinynet.oracle import reference
from tinynet.oracle.asserting import honest_function
from tinynet.oracle.faults import half_sums, overwriting, scaled, short_inputs, skipped

_names = (
    "linear", "linear_grad", "matmul_grad", "bias_add", "bias_add_grad", "relu", "relu_dx", "relu_grad", "softmax", "softmax_grad", "log_softmax",
    "log_softmax_grad", "cross_entropy", "cross_entropy_grad", "nll_loss", "nll_loss_grad", "max_pool2d", "max_pool2d_grad", "avg_pool2d_grad",
    "conv2d_grad", "sum", "mean", "max", "max_grad", "mean_grad", "flatten", "permute", "permute_grad", "add_grad", "multiply_grad", "divide_grad",
    "exp_grad", "log_grad", "sqrt_grad", "power_grad", "softmax_cross_entropy", "sgd_step", "adam_step", "adamw_step",
)  # fmt: skip
h = {name: honest_function(name) for name in _names}

# --- dense layers --------------------------------------------------------------------------------


def _part(f, index: int, change):
    """One of the results of f changed."""
    def fault(*arrays, **parameters):
        found = f(*arrays, **parameters)
        return tuple(change(r, *arrays) if i == index and i < len(found) else r for i, r in enumerate(found))

    return fault


def _share(result, *arrays):
    return (result / np.float32(max(len(arrays[0]), 1))).astype(result.dtype)


LINEAR = {
    "the bias is missing": lambda x, w, b: h["linear"](x, w, None),
    "the weight's memory is read as (in, out)": lambda x, w, b: h["linear"](x, w.reshape(w.shape[::-1]).T.copy(), b),
    "inputs of 11 bits (TF32)": short_inputs(h["linear"]),
    "the last output is never written": skipped(h["linear"], (..., -1)),
}
LINEAR_GRAD = {
    "dbias is a mean over the batch": _part(h["linear_grad"], 2, _share),
    "dweight is transposed in memory": _part(h["linear_grad"], 1, lambda r, *_: np.ascontiguousarray(r.T).reshape(r.shape)),
    "dx takes the weight's memory as (in, out)": lambda dy, x, w, b: (h["linear_grad"](dy, x, w.reshape(w.shape[::-1]).T.copy(), b)[0], *h["linear_grad"](dy, x, w, b)[1:]),
}
MATMUL_GRAD = {
    "db is that of a transposed a": _part(h["matmul_grad"], 1, lambda r, *_: np.ascontiguousarray(r.swapaxes(-1, -2)).reshape(r.shape)),
    "a gradient of zeros": _part(h["matmul_grad"], 0, lambda r, *_: np.zeros_like(r)),
}
CONV2D_GRAD = {
    "dbias is summed over the images alone, then divided": _part(h["conv2d_grad"], 2, _share),
    "dx is that of the flipped kernel": lambda dy, x, w, b, **p: (h["conv2d_grad"](dy, x, np.ascontiguousarray(w[..., ::-1, ::-1]), b, **p)[0], *h["conv2d_grad"](dy, x, w, b, **p)[1:]),
}
BIAS_ADD_GRAD = {"dbias is a mean over the batch": _part(h["bias_add_grad"], 1, _share)}

# --- selections ----------------------------------------------------------------------------------


def _max_to_all(dy, x, *, layout, **parameters):
    """Every maximum of a window gets its gradient, not the first alone."""
    from tinynet.kernels.reference.layout import as_nchw, cropped, padded
    from tinynet.kernels.reference.pool2d import with_room
    from tinynet.geometry import PoolWindow, taps

    window = PoolWindow(x.shape, where="max_pool2d", layout=layout, **{"stride": None, "padding": 0, "ceil_mode": False, "dilation": 1, **parameters})
    y = as_nchw(h["max_pool2d"](x, layout=layout, **parameters)[0], layout)
    images, shares = as_nchw(x, layout), as_nchw(dy, layout)
    room = with_room(window["padding"], images.shape[2:], window["kernel_size"], window["stride"], window["dilation"], y.shape[2:])
    wide, total = padded(images, room, -np.inf), padded(np.zeros_like(images), room)
    for _, _, rows, columns in taps(window["kernel_size"], window["stride"], window["dilation"], y.shape[2:]):
        total[..., rows, columns] += np.where(wide[..., rows, columns] == y, shares, 0).astype(dy.dtype)
    dx = cropped(total, room)
    return np.ascontiguousarray(dx if layout == "NCHW" else dx.transpose(0, 2, 3, 1))


def _max_to_last(dy, x, *, layout, padding=0, **parameters):
    axes = (2, 3) if layout == "NCHW" else (1, 2)
    sides = tuple(side[::-1] for side in padding)
    if h["max_pool2d"](np.flip(x, axes), padding=sides, layout=layout, **parameters)[0].shape != dy.shape:
        return h["max_pool2d_grad"](dy, x, padding=padding, layout=layout, **parameters)
    return np.flip(h["max_pool2d_grad"](np.flip(dy, axes), np.flip(x, axes), padding=sides, layout=layout, **parameters), axes).copy()


def _shared_among(dy, x, axis=None, *, keepdims=False):
    """The gradient is split among equal maxima, as TensorFlow's reduce_max does."""
    most = x.max(axis=axis, keepdims=True)
    dy = dy if keepdims or axis is None else np.expand_dims(dy, axis)
    hit = x == most
    return (np.where(hit, np.reshape(dy, most.shape) if axis is None else dy, 0) / hit.sum(axis=axis, keepdims=True)).astype(x.dtype)


RELU = {"NaN is swallowed": lambda x: np.where(x > 0, x, 0).astype(x.dtype), "it leaks": lambda x: np.where(x > 0, x, x * np.float32(1e-3)).astype(x.dtype), "it works in place": overwriting(h["relu"])}
RELU_GRAD = {"ReLU'(0) = 1": lambda dy, x: np.where(x >= 0, dy, 0).astype(dy.dtype), "ReLU'(0) = 1/2": lambda dy, x: (dy * ((np.sign(x) + 1) / 2)).astype(dy.dtype)}
RELU_DX = {
    "the mask is the gradient's sign": lambda dy, x: np.where(dy > 0, dy, 0).astype(dy.dtype),
    "a product with the mask": lambda dy, x: (dy * (x >= 0)).astype(dy.dtype),
}
MAX_POOL2D_GRAD = {"every maximum gets the gradient": _max_to_all, "of equal maxima the last gets it": _max_to_last}
AVG_POOL2D_GRAD = {"1.001 times the truth": scaled(h["avg_pool2d_grad"], 1.001)}
MAX = {"NaN or not, the first element": lambda x, axis=None, keepdims=False: h["max"](np.abs(x), axis, keepdims=keepdims)}
MAX_GRAD = {"equal maxima share the gradient": _shared_among}

# --- softmax and losses --------------------------------------------------------------------------


def _softmax_without_max(x, axis=-1):
    with np.errstate(all="ignore"):
        e = np.exp(x)
        return e / e.sum(axis=axis, keepdims=True)


def _log_of_softmax(x, axis=-1):
    with np.errstate(all="ignore"):
        return np.log(h["softmax"](x, axis))


def _over_all(f):
    """Along the last axis, whichever was asked."""
    return lambda *arrays, axis=-1: f(*arrays, axis=-1)


def _clipped(logits, target, *, reduction):
    """-log of a probability that is kept above 1e-7, as Keras does."""
    p = np.clip(h["softmax"](logits), np.float32(1e-7), None)
    losses = -np.log(p[np.arange(len(p)), target]) if target.ndim == 1 else -(target * np.log(p)).sum(axis=1)
    return {"none": losses, "sum": losses.sum(), "mean": losses.mean() if len(losses) else losses.sum() * np.float32(np.nan)}[reduction].astype(logits.dtype)


def _other_reduction(f, place: int):
    """A sum where the mean was asked, in the loss or in its gradient: /N is missing."""
    def fault(*arrays, reduction):
        return f(*arrays, reduction="sum" if reduction == "mean" else reduction)

    return fault


def _without_target(dy, logits, target, *, reduction):
    """The last row's target is never subtracted."""
    def first(found):
        return found if not isinstance(found, tuple) else found[0]

    right = h["cross_entropy_grad"](dy, logits, target, reduction=reduction)
    dx = first(right).copy()
    if len(dx):
        scale = np.broadcast_to(dy, (len(dx),))[-1] / (len(dx) if reduction == "mean" else 1)
        dx[-1] += scale * (np.eye(dx.shape[1], dtype=dx.dtype)[target[-1]] if target.ndim == 1 else target[-1])
    return (dx, *right[1:]) if isinstance(right, tuple) else dx


def _diagonal_only(dy, x, axis=-1):
    y = h["softmax"](x, axis)
    return (dy * y * (1 - y)).astype(x.dtype)


def _loss_without_max(logits, target):
    """As if the largest logit were not taken off first: exp overflows, or all of a row is 0."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        e = np.exp(logits)
        total = e.sum(axis=1, keepdims=True)
        p = e / total
        loss = np.log(total[:, 0]) - logits[np.arange(len(logits)), target]
    p[np.arange(len(logits)), target] -= 1
    return loss.astype(logits.dtype), p.astype(logits.dtype)


def _over_classes(log_probabilities, target, *, reduction):
    found = h["nll_loss"](log_probabilities, target, reduction=reduction)
    return (found / np.float32(log_probabilities.shape[1])).astype(found.dtype) if reduction == "mean" else found


SOFTMAX = {"without its max": _softmax_without_max, "along the last axis, always": _over_all(h["softmax"]), "inputs of 8 bits (bfloat16)": short_inputs(h["softmax"], "bfloat16")}
SOFTMAX_GRAD = {"the diagonal of the Jacobian alone": _diagonal_only, "twice the truth": scaled(h["softmax_grad"], 2.0), "the sign is wrong": scaled(h["softmax_grad"], -1.0)}
LOG_SOFTMAX = {"the log of a softmax": _log_of_softmax, "along the last axis, always": _over_all(h["log_softmax"])}
LOG_SOFTMAX_GRAD = {"the sum over the classes is missing": lambda dy, x, axis=-1: dy.copy(), "1.001 times the truth": scaled(h["log_softmax_grad"], 1.001)}
CROSS_ENTROPY = {
    "a clipped log": _clipped,
    "/N is missing": _other_reduction(h["cross_entropy"], 0),
    "softmax was applied before": lambda logits, target, *, reduction: h["cross_entropy"](h["softmax"](logits), target, reduction=reduction),
    "sums in float16": half_sums(h["cross_entropy"]),
}
CROSS_ENTROPY_GRAD = {"/N is missing": _other_reduction(h["cross_entropy_grad"], 1), "the last row's target is left out": _without_target}
SOFTMAX_CROSS_ENTROPY = {
    "exponentials of the logits themselves": _loss_without_max,
    "the loss of the class before": lambda logits, target: (h["softmax_cross_entropy"](logits, (target - 1) % logits.shape[1])[0], h["softmax_cross_entropy"](logits, target)[1]),
    "dlogits is the softmax alone": lambda logits, target: (h["softmax_cross_entropy"](logits, target)[0], h["softmax"](logits)),
    "dlogits is that of the mean": _part(h["softmax_cross_entropy"], 1, _share),
}
NLL_LOSS = {"a mean over the classes too": _over_classes, "the sign is wrong": lambda p, t, *, reduction: -h["nll_loss"](p, t, reduction=reduction)}
NLL_LOSS_GRAD = {"/N is missing": _other_reduction(h["nll_loss_grad"], 1)}

# --- copies, reductions, elements ----------------------------------------------------------------


def _channels_last(x, start=1):
    moved = np.moveaxis(x, 1, -1) if x.ndim == 4 and start == 1 else x
    return np.ascontiguousarray(moved).reshape(*x.shape[:start], -1) if x.size else x.reshape(h["flatten"](x, start).shape)


def _one_short(x, axis=None, *, keepdims=False):
    """Divided by count - 1, as a variance would be."""
    found = h["mean"](x, axis, keepdims=keepdims)
    count = x.size // max(found.size, 1)
    return (found * np.float32(count / max(count - 1, 1))).astype(x.dtype)


def _last_left_out(x, axis=None, *, keepdims=False):
    x = x.copy()
    x[(..., -1)] = 0
    return h["sum"](x, axis, keepdims=keepdims)


FLATTEN = {"in the order rows, columns, channels": _channels_last}
PERMUTE = {"axes are inverted": lambda x, *, axes: np.ascontiguousarray(np.transpose(x, np.argsort(axes))).reshape(h["permute"](x, axes=axes).shape)}
PERMUTE_GRAD = {"permuted once more, not back": lambda dy, x, *, axes: np.ascontiguousarray(dy.transpose(axes)).reshape(x.shape)}
SUM = {"the last element is left out": _last_left_out, "sums in float16": half_sums(h["sum"])}
MEAN = {"divided by N - 1": _one_short}
MEAN_GRAD = {"the division is missing": lambda dy, x, axis=None, *, keepdims=False: honest_function("sum_grad")(dy, x, axis, keepdims=keepdims)}
ADD_GRAD = {"a broadcast gradient is a mean": _part(h["add_grad"], 1, lambda r, dy, *_: (r * np.float32(r.size / max(dy.size, 1))).astype(r.dtype))}
MULTIPLY_GRAD = {"dx and dy are exchanged where they can be": lambda dy, x, y: h["multiply_grad"](dy, y, x) if x.shape == y.shape else h["multiply_grad"](dy, x, y)}
DIVIDE_GRAD = {"the minus is missing": _part(h["divide_grad"], 1, lambda r, *_: -r)}
EXP_GRAD = {"the derivative of exp is x": lambda dy, x: (dy * x).astype(x.dtype)}
LOG_GRAD = {"1.001 times the truth": scaled(h["log_grad"], 1.001)}
SQRT_GRAD = {"the 2 is missing": scaled(h["sqrt_grad"], 2.0)}
POWER_GRAD = {"the exponent is not lowered": lambda dy, x, *, exponent: (dy * exponent * np.power(x, exponent)).astype(x.dtype)}

# --- optimisers ----------------------------------------------------------------------------------


def _rate_inside(w, g, v, *, lr, momentum=0.0, **options):
    """v = momentum * v + lr * g; w -= v: another optimiser as soon as the rate changes, and another v at once."""
    found = h["sgd_step"](w, g, None if v is None else v / np.float32(lr), lr=lr, momentum=momentum, **options)
    return (found[0], (found[1] * np.float32(lr)).astype(w.dtype)) if isinstance(found, tuple) else found


def _without_correction(w, g, m, s, *, t, **options):
    """The first steps' bias is left in: as if a million steps had gone before."""
    return h["adam_step"](w, g, m, s, t=10**6, **options)


def _eps_inside(w, g, m, s, *, t, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled=False):
    """sqrt(s + eps) in place of sqrt(s) + eps."""
    _, m2, s2 = h["adam_step"](w, g, m, s, t=t, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, decoupled=decoupled)
    first, second = 1 - betas[0] ** t, 1 - betas[1] ** t
    step = lr * (m2.astype(np.float64) / first) / np.sqrt(s2.astype(np.float64) / second + eps)
    return (w - step).astype(w.dtype), m2, s2


SGD_STEP = {
    "the rate is inside the velocity": _rate_inside,
    "Nesterov is ignored": lambda w, g, v, *, nesterov=False, **o: h["sgd_step"](w, g, v, **o),
    "weight decay is ignored": lambda w, g, v, *, weight_decay=0.0, **o: h["sgd_step"](w, g, v, **o),
}
ADAM_STEP = {
    "the bias correction is missing": _without_correction,
    "eps is inside the root": _eps_inside,
    "weight decay is decoupled (AdamW)": lambda w, g, m, s, *, decoupled=False, **o: h["adamw_step"](w, g, m, s, **o),
}
ADAMW_STEP = {"weight decay goes through the gradient (Adam)": lambda w, g, m, s, **o: h["adam_step"](w, g, m, s, **{"weight_decay": 0.01, **o})}

_LISTS = dict(
    linear=LINEAR, linear_grad=LINEAR_GRAD, matmul_grad=MATMUL_GRAD, conv2d_grad=CONV2D_GRAD, bias_add_grad=BIAS_ADD_GRAD, relu=RELU, relu_dx=RELU_DX, relu_grad=RELU_GRAD,
    max_pool2d_grad=MAX_POOL2D_GRAD, avg_pool2d_grad=AVG_POOL2D_GRAD, max=MAX, max_grad=MAX_GRAD, softmax=SOFTMAX, softmax_grad=SOFTMAX_GRAD,
    log_softmax=LOG_SOFTMAX, log_softmax_grad=LOG_SOFTMAX_GRAD, cross_entropy=CROSS_ENTROPY, cross_entropy_grad=CROSS_ENTROPY_GRAD, nll_loss=NLL_LOSS,
    nll_loss_grad=NLL_LOSS_GRAD, flatten=FLATTEN, permute=PERMUTE, permute_grad=PERMUTE_GRAD, sum=SUM, mean=MEAN, mean_grad=MEAN_GRAD, add_grad=ADD_GRAD,
    multiply_grad=MULTIPLY_GRAD, divide_grad=DIVIDE_GRAD, exp_grad=EXP_GRAD, log_grad=LOG_GRAD, sqrt_grad=SQRT_GRAD, power_grad=POWER_GRAD,
    softmax_cross_entropy=SOFTMAX_CROSS_ENTROPY, sgd_step=SGD_STEP, adam_step=ADAM_STEP, adamw_step=ADAMW_STEP,
)  # fmt: skip
FAULTS = dict(_LISTS)
assert set(FAULTS) <= set(reference.NAMES)
