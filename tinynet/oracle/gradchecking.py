"""`gradcheck(fn, inputs)`: gradients against central differences, with an error bar in place of a flat 1e-3.

With a random cotangent v (never all ones: those hide mistakes that cancel in a plain sum) and a
random direction d at one input at a time, f(t) = sum of v * fn(x + t*d) has the derivative
sum of grad * d. It is estimated from six points by two formulas, of order 4 and 6; with step h

    |derivative - D6| <= |D6 - D4|  +  2 * (16 u sum|v * y| + noise) / h
                          truncation      rounding

noise is what f shows when t moves by a hair (so a function that computes in float32 inside is seen
to). The step with the smallest bar is taken from a ladder. A gradient is wrong beyond its bar, and
the check is undecided if the bar is too wide to mean anything. Where the one-sided slopes differ
at every step the function has a kink at x (ReLU at 0, a tie in max-pooling): then x is moved
aside a little, and the report says so. Source of the ladder: Ridders (1982); of the noise
estimate: Moré and Wild, SIAM J. Sci. Comput. 33 (2011).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tinynet.oracle.patterns import describe
from tinynet.tensor import Tensor

STEPS = tuple(2.0**-k for k in (6, 8, 10, 13, 16, 19))
CLEAR = 1e-5  # a bar wider than this share of sum|grad * d| decides nothing
MOVES = 4
MOST_ELEMENTS = 2000


@dataclass(frozen=True)
class Estimate:
    """A derivative and its error bar; kink: the slopes from both sides differ at the smallest steps."""

    value: float
    bar: float
    kink: bool


@dataclass(frozen=True)
class GradReport:
    """True if every gradient lies within its error bar, and every bar is narrow enough to decide."""

    lines: tuple[str, ...] = field(default=())
    failures: tuple[str, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())

    def __bool__(self) -> bool:
        return bool(self.lines) and not self.failures

    def explain(self) -> str:
        state = "gradcheck: passed" if self else "gradcheck: FAILED" if self.failures else "gradcheck: NOTHING was checked: no input of floats"
        return "\n  ".join([state, *(self.failures or self.lines), *self.notes])

    __str__ = explain


def gradcheck(fn: Callable[..., Tensor], inputs: Sequence, *, seed: int = 0, directions: int = 2, device: str = "reference") -> GradReport:
    """Checks the gradients of `fn(*tensors) -> Tensor`, in float64.

    inputs: arrays (or Tensors, or numbers); those of floats are checked, integers are passed on
    as they are. directions: random directions at each input. device: where the tensors live.
    """
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(x.numpy() if isinstance(x, Tensor) else x) for x in inputs]
    arrays = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]
    checked = [i for i, a in enumerate(arrays) if a.dtype.kind == "f" and a.size]
    lines, failures, notes = [], [], []
    for move in range(MOVES + 1):
        problem = _Problem(fn, arrays, checked, rng, device)
        estimates = [(i, *problem.estimate(i, rng)) for i in checked for _ in range(directions)]
        kinks = sorted({i for i, _, estimate in estimates if estimate.kink})
        if not kinks or move == MOVES:
            break
        notes.append(f"input {', '.join(map(str, kinks))}: a kink at the given values (equal maxima, or ReLU at 0); checked beside it")
        arrays = [a + 1e-2 * (1 + np.abs(a)) * rng.standard_normal(a.shape) if i in kinks else a for i, a in enumerate(arrays)]
    for i, direction, estimate in estimates:
        gradient = problem.gradients[i]
        if gradient is None:
            failures.append(f"input {i}: no gradient arrived, though it is {arrays[i].dtype} and requires one")
            continue
        analytic, scale = float(np.sum(gradient * direction)), float(np.sum(np.abs(gradient * direction)))
        text = f"input {i}: gradient along a random direction {analytic:.12g}, differences {estimate.value:.12g} ± {estimate.bar:.2g}"
        # Sums of the gradient's own rounding errors: it was computed in float64 too.
        bar = estimate.bar + 1e3 * 2.0**-53 * scale
        if not np.isfinite(estimate.value + estimate.bar):
            failures.append(f"{text}: undecided, the function is not finite around these inputs; give inputs inside its domain")
        elif not np.isfinite(analytic) or abs(analytic - estimate.value) > bar:
            failures.append(text + problem.locate(i))
        elif estimate.kink:
            failures.append(f"{text}: undecided, there is a kink wherever the input was moved; give inputs away from it (unique values, none at 0)")
        elif estimate.bar > CLEAR * max(scale, abs(estimate.value), problem.floor):
            failures.append(f"{text}: undecided, the bar is too wide: the function is not smooth near these inputs, or computes in a lower precision inside")
        else:
            lines.append(text)
    return GradReport(tuple(lines), tuple(dict.fromkeys(failures)), tuple(dict.fromkeys(notes)))


class _Problem:
    """fn at given inputs with a random cotangent: its value along lines, and its gradients."""

    def __init__(self, fn, arrays, checked, rng, device):
        self.fn, self.arrays, self.device = fn, arrays, device
        tensors = [Tensor(a.copy(), requires_grad=i in checked, device=device) for i, a in enumerate(arrays)]
        y = fn(*tensors)
        if not isinstance(y, Tensor):
            raise TypeError(f"oracle.gradcheck: fn must return a Tensor; got {type(y).__name__}")
        if y.dtype != np.float64:
            raise TypeError(f"oracle.gradcheck: with float64 inputs fn returned {y.dtype}: it computes in a lower precision, where differences mean little; keep the dtype of the inputs")
        value = np.asarray(y.numpy())
        if not value.size:
            raise ValueError(f"oracle.gradcheck: fn returned no elements (shape {value.shape}), so there is nothing to check; give larger inputs")
        self.cotangent = rng.uniform(0.5, 1.5, value.shape) * rng.choice([-1.0, 1.0], value.shape)
        self.scale = float(np.sum(np.abs(self.cotangent * value)))
        if y.requires_grad:
            y.backward(self.cotangent.copy())
        self.gradients = [None if t.grad is None else np.asarray(t.grad) for t in tensors]
        self.floor = 1e-3 * self.scale  # a derivative below this is as good as none

    def along(self, i: int, direction: np.ndarray, t: float) -> float:
        moved = [a + t * direction if j == i else a for j, a in enumerate(self.arrays)]
        y = self.fn(*(Tensor(a.copy(), device=self.device) for a in moved))
        return float(np.sum(self.cotangent * np.asarray(y.numpy())))

    def estimate(self, i: int, rng) -> tuple[np.ndarray, Estimate]:
        direction = rng.standard_normal(self.arrays[i].shape)
        return direction, self.derivative(i, direction / max(float(np.abs(direction).max()), 1e-300), float(np.abs(direction).max()))

    def derivative(self, i: int, unit: np.ndarray, length: float) -> Estimate:
        """The derivative along `unit` (largest entry 1) times `length`."""
        hair = 2.0**-40
        near = [self.along(i, unit, k * hair) for k in range(-3, 4)]
        noise = float(np.abs(np.diff(near, 3)).max()) / np.sqrt(20)  # third differences of noise s have size sqrt(20) s
        rounding = 16 * 2.0**-53 * self.scale + noise
        best, gaps = None, []
        for h in STEPS:
            f = {k: self.along(i, unit, k * h) for k in (-3, -2, -1, 1, 2, 3)}
            d1, d2, d3 = (f[k] - f[-k] for k in (1, 2, 3))
            fourth, sixth = (8 * d1 - d2) / (12 * h), (45 * d1 - 9 * d2 + d3) / (60 * h)
            bar = abs(sixth - fourth) + 2 * rounding / h
            if not np.isfinite(sixth + bar):
                continue  # the step leaves the function's domain: log, sqrt near 0
            gaps.append((abs(f[1] + f[-1] - 2 * near[3]) / h, 4 * rounding / h))
            if best is None or bar < best[1]:
                best = sixth, bar
        if len(gaps) < 3:
            return Estimate(np.nan, np.inf, False)
        # The slopes right and left differ by h * f'': smaller with h. At a kink they keep their difference.
        (large, _), (small, noise_small) = gaps[min(1, len(gaps) - 3)], gaps[-2]
        kink = small > 10 * noise_small and small > 0.3 * large and small > 1e-7 * max(abs(best[0]), 0.1 * self.floor)
        return Estimate(best[0] * length, best[1] * length, kink)

    def locate(self, i: int) -> str:
        """Element by element: how many are wrong, the worst of them, and the pattern."""
        a, gradient = self.arrays[i], self.gradients[i]
        if a.size > MOST_ELEMENTS:
            return f" (more than {MOST_ELEMENTS} elements: not looked at one by one)"
        numeric, bars = np.zeros(a.shape), np.zeros(a.shape)
        for at in np.ndindex(a.shape):
            unit = np.zeros(a.shape)
            unit[at] = 1.0
            found = self.derivative(i, unit, 1.0)
            numeric[at], bars[at] = found.value, found.bar
        off = np.abs(gradient - numeric)
        bad = ~(off <= bars + 1e3 * 2.0**-53 * np.abs(gradient))
        if not bad.any():
            return "; each element alone lies within its bar"
        worst = tuple(int(k) for k in np.unravel_index(np.argmax(np.where(bad, np.where(np.isnan(off), np.inf, off), -1)), a.shape))
        factor = np.median(gradient[bad & (numeric != 0)] / numeric[bad & (numeric != 0)]) if np.any(bad & (numeric != 0)) else np.nan
        # a constant factor, if it leaves nothing of the difference to explain
        same = np.isfinite(factor) and bad.all() and np.abs(gradient - factor * numeric).max() < 0.01 * off.max()
        where = describe(bad, tuple(f"axis {k} place" for k in range(a.ndim)))
        text = f"; {int(bad.sum())} of {a.size} elements are wrong, like {list(worst)}: got {gradient[worst]:.9g}, differences {numeric[worst]:.9g}"
        return text + (f"; every gradient is {factor:.9g} times the right one" if same else f"; {where}" if where else "")
