"""cross_entropy: how surprised softmax(logits) is by the target; softmax and loss in one.

    l_n = - sum over j of target[n,j] * log_softmax(logits)[n,j];   the mean or the sum over n, or each
    dlogits[n] = (softmax(logits)[n] * sum_j target[n,j] - target[n]) * dl_n

logits (N, C); target: classes (N,), which stand for rows that are 1 at the class and 0 elsewhere,
or probabilities (N, C) of the logits' dtype.
"""

from tinynet.op import op
from tinynet.ops.log_softmax import log_probabilities
from tinynet.ops.nll_loss import check_rows, checked, each, reduced


@op(integer_inputs=("target",))
def cross_entropy(k, logits, target, *, reduction="mean"):
    check_rows("cross_entropy", logits)
    rows, classes = logits.shape
    log_p = log_probabilities(k.xp, logits, -1)
    if target.dtype.kind in "iu":
        log_p = checked(k.xp, "cross_entropy", target, log_p)
        losses = -log_p[k.xp.arange(rows), target]
    elif target.shape != logits.shape or target.dtype != logits.dtype:
        raise ValueError(f"cross_entropy: target must be ({rows},) class indices or {logits.dtype} probabilities {logits.shape}; got {target.dtype} of shape {target.shape}")
    else:
        losses = -(target * log_p).sum(axis=1)
    return reduced("cross_entropy", losses, reduction), {"log_p": log_p}


@cross_entropy.gradient("logits")
def _(k, dy, *, target, log_p, reduction):
    rows = len(log_p)
    dx = k.xp.exp(log_p)
    if target.ndim == 1:
        dx[k.xp.arange(rows), target] -= 1
    else:
        dx = dx * target.sum(axis=1, keepdims=True) - target
    dx *= each(dy, rows, reduction)
    return dx


@cross_entropy.gradient("target")
def _(k, dy, *, log_p, reduction):
    return -log_p * each(dy, len(log_p), reduction)


@cross_entropy.samples
def _(rng):
    for reduction in ("mean", "sum", "none"):
        yield (4, 5), rng.integers(0, 5, 4), dict(reduction=reduction)
    yield (4, 5), rng.dirichlet([1.0] * 5, 4), {}
