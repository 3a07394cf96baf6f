"""The truth of softmax, log-softmax, the losses, and the optimisers' steps, with running bounds.

With d = x - max x, S = sum of e^d and K ulps for exp and log, to first order in u:

    log_softmax   u|d_j| + eS + 2K u|log S| + u|y_j|,     eS = sum(e^d (u|d| + 2K u)) / S + (classes-1) u
    softmax       p_j (u|d_j| + 2K u + eS + u)

(Blanchard, D. and N. Higham, IMA JNA 41(4), 2021.) running.py derives these from the formulas
below, rounding by rounding. log_softmax may also be written x - (max + log S); the bound
covers both. e^(log_softmax) as softmax is less accurate, and is right only in gradients.
"""

from __future__ import annotations

import numpy as np

from tinynet.oracle.bounds import Bounded
from tinynet.oracle.running import evaluate
from tinynet.oracle.truth_kernels import chosen, floats


def _shifted(m, x, axis):
    largest = x.max(axis=axis, keepdims=True)
    d = x - largest
    e = m.exp(d)
    return largest, d, e, e.sum(axis=axis, keepdims=True)


def _softmax(m, x, axis):
    """e^d / S, or e^d times 1/S."""
    _, _, e, total = _shifted(m, x, axis)
    return e / total


def _softmax_by_reciprocal(m, x, axis):
    _, _, e, total = _shifted(m, x, axis)
    return e * (m.number(1) / total)


def _log_softmax(m, x, axis):
    _, d, _, total = _shifted(m, x, axis)
    return d - m.log(total)


def _log_softmax_by_lse(m, x, axis):
    largest, _, _, total = _shifted(m, x, axis)
    return x - (largest + m.log(total))


_LOGS = (_log_softmax, _log_softmax_by_lse)


def _classes(x, axis) -> int:
    return 8 + (x.shape[axis] if x.ndim else 1)


def softmax(x, axis=-1, *, dtype=None) -> Bounded:
    (x,), fmt = floats("oracle.reference.softmax", dtype, x=x)
    forms = [lambda m, x: _softmax_by_reciprocal(m, x, axis)]
    return evaluate(lambda m, x: _softmax(m, x, axis), fmt, x, forms=forms, underflows=_classes(x, axis))


def softmax_grad(dy, x, axis=-1, *, dtype=None) -> Bounded:
    """y_j (dy_j - sum of dy_t y_t), from x."""
    (dy, x), fmt = floats("oracle.reference.softmax_grad", dtype, dy=dy, x=x)

    def of(softmax):
        def formula(m, dy, x):
            y = softmax(m, x, axis)
            return y * (dy - (dy * y).sum(axis=axis, keepdims=True))

        def expanded(m, dy, x):
            y = softmax(m, x, axis)
            return y * dy - y * (dy * y).sum(axis=axis, keepdims=True)

        return formula, expanded

    exponentials = [lambda m, x, axis, f=f: m.exp(f(m, x, axis)) for f in _LOGS]
    forms = [form for f in (_softmax, _softmax_by_reciprocal, *exponentials) for form in of(f)]
    return evaluate(forms[0], fmt, dy, x, forms=forms[1:], underflows=_classes(x, axis))


def log_softmax(x, axis=-1, *, dtype=None) -> Bounded:
    (x,), fmt = floats("oracle.reference.log_softmax", dtype, x=x)
    first, second = (lambda m, x, f=f: f(m, x, axis) for f in _LOGS)
    return evaluate(first, fmt, x, forms=[second], underflows=_classes(x, axis))


def log_softmax_grad(dy, x, axis=-1, *, dtype=None) -> Bounded:
    """dy_j - softmax_j * sum of dy, from x."""
    (dy, x), fmt = floats("oracle.reference.log_softmax_grad", dtype, dy=dy, x=x)
    forms = [lambda m, dy, x, f=f: dy - f(m, x, axis) * dy.sum(axis=axis, keepdims=True) for f in _probabilities()]
    return evaluate(forms[0], fmt, dy, x, forms=forms[1:], underflows=_classes(x, axis))


def _probabilities():
    """softmax in all the ways in which gradients compute it."""
    return [_softmax, _softmax_by_reciprocal, *(lambda m, x, axis, f=f: m.exp(f(m, x, axis)) for f in _LOGS)]


# --- losses --------------------------------------------------------------------------------------


def _target(where, target, logits):
    """(classes, None) or (None, probabilities)."""
    target = np.asarray(target)
    if logits.ndim != 2:
        raise ValueError(f"{where}: expected (rows, classes); got shape {logits.shape}")
    if target.dtype.kind in "iu":
        if target.shape != logits.shape[:1] or np.any(target < 0) or np.any(target >= logits.shape[1]):
            raise ValueError(f"{where}: target must be ({logits.shape[0]},) classes from 0 to {logits.shape[1] - 1}; got {target.dtype} of shape {target.shape}")
        return target, None
    if target.shape != logits.shape:
        raise ValueError(f"{where}: target must be classes ({logits.shape[0]},) or probabilities {logits.shape}; got shape {target.shape}")
    return None, target


def _reduced(m, losses, rows, reduction, where):
    if reduction == "none":
        return losses
    if reduction not in ("mean", "sum"):
        raise ValueError(f'{where}: reduction must be "mean", "sum" or "none"; got {reduction!r}')
    total = losses.sum()
    if reduction == "sum":
        return total
    return total / m.number(rows) if rows else total * m.number(np.nan)


def _by_reciprocal(m, losses, rows, reduction, where):
    """mean as a sum times 1/N, or as a sum of losses times 1/N."""
    return (losses * (m.number(1) / m.number(rows))).sum() if reduction == "mean" and rows else _reduced(m, losses, rows, reduction, where)


def cross_entropy(logits, target, *, reduction="mean", dtype=None) -> Bounded:
    """l_n = - sum of target * log_softmax(logits); the mean, the sum, or each."""
    (logits,), fmt = floats("oracle.reference.cross_entropy", dtype, logits=logits)
    where, rows = "oracle.reference.cross_entropy", len(logits)
    classes, soft = _target(where, target, logits)

    def losses(m, x, t, logs):
        y = logs(m, x, -1)
        return -y[np.arange(rows), classes] if soft is None else -(t * y).sum(axis=1)

    arrays = (logits, logits if soft is None else soft)
    forms = [lambda m, x, t, f=f, r=r: r(m, losses(m, x, t, f), rows, reduction, where) for f in _LOGS for r in (_reduced, _by_reciprocal)]
    return evaluate(forms[0], fmt, *arrays, forms=forms[1:], underflows=_classes(logits, 1) + rows)


def cross_entropy_grad(dy, logits, target, *, reduction="mean", wrt=None, dtype=None):
    """dlogits = (softmax * sum_j target - target) * dy (/ N for the mean); dy is a number, or one for each row.

    For a target of probabilities (dlogits, dtarget), with dtarget = -log_softmax * dy (/ N).
    """
    (dy, logits), fmt = floats("oracle.reference.cross_entropy_grad", dtype, dy=dy, logits=logits)
    where, rows = "oracle.reference.cross_entropy_grad", len(logits)
    classes, soft = _target(where, target, logits)
    hot = np.zeros(logits.shape) if soft is None else soft
    if soft is None:
        hot[np.arange(rows), classes] = 1
    spread = np.broadcast_to(np.reshape(dy, (-1, 1)) if reduction == "none" else dy, logits.shape)
    scale = rows if reduction == "mean" and rows else 1

    def formula(m, dy, x, t, f, dividing):
        p = f(m, x, -1)
        difference = p * t.sum(axis=1, keepdims=True) - t if soft is not None else p - t
        if dividing:
            return difference * (dy / m.number(scale))
        return difference * dy * (m.number(1) / m.number(scale))

    def at_target(m, dy, x, f):
        return -f(m, x, -1) * (dy / m.number(scale))

    forms = [lambda m, dy, x, t, f=f, way=way: formula(m, dy, x, t, f, way) for f in _probabilities() for way in (True, False)]
    found = {"logits": lambda: evaluate(forms[0], fmt, spread, logits, hot, forms=forms[1:], underflows=_classes(logits, 1))}
    if soft is not None:
        first, second = (lambda m, dy, x, f=f: at_target(m, dy, x, f) for f in _LOGS)
        found["target"] = lambda: evaluate(first, fmt, spread, logits, forms=[second], underflows=_classes(logits, 1))
    return chosen("cross_entropy_grad", found, wrt)


def softmax_cross_entropy(logits, target, *, dtype=None) -> tuple[Bounded, Bounded]:
    """(loss, dlogits): each row's loss, and its gradient softmax - 1 at the row's class, as the contract's kernel returns them."""
    where = "oracle.reference.softmax_cross_entropy"
    (x,), fmt = floats(where, dtype, logits=logits)
    classes, soft = _target(where, target, x)
    if soft is not None:
        raise ValueError(f"{where}: target must be ({len(x)},) classes; got probabilities")
    hot = np.zeros(x.shape)
    hot[np.arange(len(x)), classes] = 1
    forms = [lambda m, x, t, f=f: f(m, x, -1) - t for f in _probabilities()]
    gradient = evaluate(forms[0], fmt, x, hot, forms=forms[1:], underflows=_classes(x, 1))
    return cross_entropy(x, classes, reduction="none", dtype=fmt.name).named("loss"), gradient.named("dlogits")


def nll_loss(log_probabilities, target, *, reduction="mean", dtype=None) -> Bounded:
    """l_n = -log_probabilities[n, target[n]]; the mean, the sum, or each (then exact)."""
    (x,), fmt = floats("oracle.reference.nll_loss", dtype, log_probabilities=log_probabilities)
    where, rows = "oracle.reference.nll_loss", len(x)
    classes, soft = _target(where, target, x)
    if soft is not None:
        raise ValueError(f"{where}: target must be ({rows},) classes; got probabilities")
    forms = [lambda m, x, r=r: r(m, -x[np.arange(rows), classes], rows, reduction, where) for r in (_reduced, _by_reciprocal)]
    found = evaluate(forms[0], fmt, x, forms=forms[1:], underflows=rows)
    return found.exactly() if reduction == "none" else found


def nll_loss_grad(dy, log_probabilities, target, *, reduction="mean", dtype=None) -> Bounded:
    """-dy (/ N for the mean) at each row's class, 0 elsewhere."""
    (dy, x), fmt = floats("oracle.reference.nll_loss_grad", dtype, dy=dy, log_probabilities=log_probabilities)
    rows = len(x)
    classes, _ = _target("oracle.reference.nll_loss_grad", target, x)
    picked = np.zeros(x.shape)
    picked[np.arange(rows), classes] = np.broadcast_to(-dy.astype(np.float64), (rows,))
    if reduction != "mean" or not rows:
        return Bounded(picked, np.abs(picked), 0, exact=True, dtype=fmt.name)
    return evaluate(lambda m, dy: dy / m.number(rows), fmt, picked, forms=[lambda m, dy: dy * (m.number(1) / m.number(rows))])


# --- optimisers ----------------------------------------------------------------------------------


def sgd_step(w, g, v=None, *, lr, momentum=0.0, nesterov=False, weight_decay=0.0, wrt=None, dtype=None):
    """v' = momentum*v + (g + weight_decay*w);  w' = w - lr*v'  (Nesterov: w - lr*(g + momentum*v')).

    Returns w' alone without momentum, else (w', v'); v = None is zeros. lr, momentum and
    weight_decay are numbers as given, which the candidate may round to its format.
    """
    (w, g, v), fmt = floats("oracle.reference.sgd_step", dtype, w=w, g=g, v=v)
    v = np.zeros(w.shape) if v is None else v

    def velocity(m, w, g, v):
        decayed = g + m.number(weight_decay) * w if weight_decay else g
        return (m.number(momentum) * v + decayed if momentum else decayed), decayed

    def weights(m, w, g, v):
        moved, decayed = velocity(m, w, g, v)
        direction = decayed + m.number(momentum) * moved if nesterov else moved
        return w - m.number(lr) * direction

    found = {"w": lambda: evaluate(weights, fmt, w, g, v)}
    if momentum:
        found["v"] = lambda: evaluate(lambda m, *a: velocity(m, *a)[0], fmt, w, g, v)
    return chosen("sgd_step", found, wrt)


def adam_step(w, g, m, s, *, t, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled=False, wrt=None, dtype=None):
    """(w', m', s') of step number t = 1, 2, ... :

        m' = b1*m + (1-b1)*g;  s' = b2*s + (1-b2)*g*g;  w' = w - lr * m'/(1-b1^t) / (sqrt(s'/(1-b2^t)) + eps)

    weight_decay*w is added to g first, or (decoupled, AdamW) w is multiplied by 1 - lr*weight_decay.
    1-b and 1-b^t are numbers computed in double precision, as every framework does; 1.f - b2 in
    float32 loses ten bits of them and is refused. Bounds cover PyTorch's form and Kingma's.
    """
    (w, g, m, s), fmt = floats("oracle.reference.adam_step", dtype, w=w, g=g, m=m, s=s)
    b1, b2 = betas
    first, second = 1 - b1**t, 1 - b2**t

    def moments(k, w, g, m, s):
        if weight_decay and not decoupled:
            g = g + k.number(weight_decay) * w
        return k.number(b1) * m + k.number(1 - b1) * g, k.number(b2) * s + k.number(1 - b2) * g * g

    def lerped(k, w, g, m, s):
        """m + (1-b1)*(g - m), as PyTorch writes it."""
        if weight_decay and not decoupled:
            g = g + k.number(weight_decay) * w
        return m + k.number(1 - b1) * (g - m), k.number(b2) * s + k.number(1 - b2) * (g * g)

    def kingma(k, w, g, m, s, of=moments):
        m, s = of(k, w, g, m, s)
        w = w * k.number(1 - lr * weight_decay) if weight_decay and decoupled else w
        return w - k.number(lr) * (m / k.number(first) / (k.sqrt(s / k.number(second)) + k.number(eps)))

    def pytorch(k, w, g, m, s, of=moments):
        m, s = of(k, w, g, m, s)
        w = w - k.number(lr * weight_decay) * w if weight_decay and decoupled else w
        return w - k.number(lr / first) * m / (k.sqrt(s) / k.number(second**0.5) + k.number(eps))

    arrays = (w, g, m, s)
    found = {
        "w": lambda: evaluate(kingma, fmt, *arrays, forms=[pytorch, lambda k, *a: kingma(k, *a, lerped), lambda k, *a: pytorch(k, *a, lerped)]),
        "m": lambda: evaluate(lambda k, *a: moments(k, *a)[0], fmt, *arrays, forms=[lambda k, *a: lerped(k, *a)[0]]),
        "s": lambda: evaluate(lambda k, *a: moments(k, *a)[1], fmt, *arrays, forms=[lambda k, *a: lerped(k, *a)[1]]),
    }
    return chosen("adam_step", found, wrt)


def adamw_step(w, g, m, s, *, t, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, wrt=None, dtype=None):
    """adam_step with decoupled weight decay."""
    return adam_step(w, g, m, s, t=t, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, decoupled=True, wrt=wrt, dtype=dtype)
