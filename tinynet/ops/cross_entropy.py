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
    if target.dtype.kind in "iu":
        losses, dlogits = k.softmax_cross_entropy(checked(k.xp, "cross_entropy", target, logits), target)
        saved = {"dlogits": dlogits, "log_p": None}
    elif target.shape != logits.shape or target.dtype != logits.dtype:
        raise ValueError(f"cross_entropy: target must be ({len(logits)},) class indices or {logits.dtype} probabilities {logits.shape}; got {target.dtype} of shape {target.shape}")
    else:
        log_p = log_probabilities(k.xp, logits, -1)
        losses = -(target * log_p).sum(axis=1)
        saved = {"dlogits": None, "log_p": log_p}
    return reduced("cross_entropy", losses, reduction), saved


@cross_entropy.gradient("logits")
def _(k, dy, *, target, dlogits, log_p, reduction):
    dl = each(dy, len(target), reduction)
    if dlogits is not None:
        return dlogits * dl
    return (k.xp.exp(log_p) * target.sum(axis=1, keepdims=True) - target) * dl


@cross_entropy.gradient("target")
def _(k, dy, *, log_p, reduction):
    return -log_p * each(dy, len(log_p), reduction)


@cross_entropy.samples
def _(rng):
    for reduction in ("mean", "sum", "none"):
        yield (4, 5), rng.integers(0, 5, 4), dict(reduction=reduction)
    yield (4, 5), rng.dirichlet([1.0] * 5, 4), {}
