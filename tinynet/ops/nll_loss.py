"""nll_loss: the negative log-likelihood of classes, from log-probabilities.

    l_n = -log_probabilities[n, target[n]];   the mean or the sum over n, or each ("none")

log_probabilities (N, C), target (N,) class indices. The mean of no images is NaN.
"""

import numpy as np

from tinynet.op import op


def checked(xp, name: str, target, x):
    """x, after a look at the classes of its rows. A GPU's are not looked at, since that would be to wait for it: a row of x is NaN where
    its class is none."""
    rows, classes = x.shape
    if target.dtype.kind not in "iu" or target.shape != (rows,):
        raise ValueError(f"{name}: target must be ({rows},) integers, one class for each row; got {target.dtype} of shape {target.shape}")
    if not isinstance(target, np.ndarray):
        return xp.where(((target >= 0) & (target < classes))[:, None], x, xp.nan)
    if rows and (target.min() < 0 or target.max() >= classes):
        raise ValueError(f"{name}: classes run from 0 to {classes - 1}; target holds {int(target.min())} to {int(target.max())}")
    return x


def check_rows(name: str, x) -> None:
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"{name}: expected (rows, classes) with at least one class; got shape {x.shape}")


def reduced(name: str, losses, reduction: str):
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if reduction == "mean":
        # 0/0 on purpose, without numpy's warning about the mean of nothing
        return losses.sum() / losses.size if losses.size else losses.sum() * float("nan")
    raise ValueError(f'{name}: reduction must be "mean", "sum" or "none"; got {reduction!r}')


def each(dy, rows: int, reduction: str):
    """The gradient of each row's loss, as a column."""
    if reduction == "none":
        return dy[:, None]
    return dy / rows if reduction == "mean" and rows else dy


@op(integer_inputs=("target",))
def nll_loss(k, log_probabilities, target, *, reduction="mean"):
    check_rows("nll_loss", log_probabilities)
    picked = checked(k.xp, "nll_loss", target, log_probabilities)[k.xp.arange(len(target)), target]
    return reduced("nll_loss", -picked, reduction), {"shape": log_probabilities.shape}


@nll_loss.gradient("log_probabilities")
def _(k, dy, *, target, shape, reduction):
    dx = k.xp.zeros(shape, dy.dtype)
    dx[k.xp.arange(len(target)), target] = -each(dy, len(target), reduction).reshape(-1)
    return dx


@nll_loss.samples
def _(rng):
    for reduction in ("mean", "sum", "none"):
        yield (4, 5), rng.integers(0, 5, 4), dict(reduction=reduction)
