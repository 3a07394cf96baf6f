"""Does a peer compute the same network? State, output, loss, every gradient and one step of SGD against the float64 truth.

The step is the one that people train with and that is timed: a graph of its own where a framework compiles it, with updates
that may be fused into gradients nobody else sees.

The images are training digits with a little grain: 0.9 * digit + 0.1 * noise. Without it, equal windows of
an image's flat parts tie exactly, and which one wins is a convention, not arithmetic.
"""

from __future__ import annotations

import numpy as np

from tinynet.compare import bounds
from tinynet.compare.networks import Network
from tinynet.compare.peers import SGD
from tinynet.data import Split
from tinynet.oracle import Bounded, judge
from tinynet.oracle.bounds import U32

CANDIDATES = 400
STEP = SGD(learning_rate=1.0)  # long: a weight's rounding hides less than a hundred-thousandth of its step


def grainy(images: np.ndarray, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).random(images.shape)
    return (0.9 * images + 0.1 * noise).astype(np.float32)


def batch(network: Network, state, training: Split, size: int) -> tuple[np.ndarray, np.ndarray, int]:
    """`size` images and classes on which the network has no near tie, and how many images were looked at."""
    images = grainy(training.images[:CANDIDATES])
    chosen = bounds.settled_batch(network, state, images, size)
    return images[chosen], training.classes[:CANDIDATES][chosen], int(chosen[-1]) + 1


def checks(state, truth: bounds.Truth, result: dict) -> list[dict]:
    """One row for each tensor: its largest error, the bound there, the worst share of the bound, and the oracle's verdict."""
    rows = [_round_trip(state, result["state"]), _row("output", result["output"], truth.output)]
    rows.append(_row("loss", np.float32(result["loss"]), truth.loss))
    rows += [_row(f"gradient of {name}", result["gradients"].get(name), want) for name, want in truth.gradients.items()]
    rows += [_row(f"step of {name}", result["stepped"].get(name), bounds.step(a, truth.gradients[name], STEP.learning_rate)) for name, a in state.items()]
    return rows


def _round_trip(state, back) -> dict:
    """What came back from a peer must be what went in, bit for bit."""
    wrong = [name for name, a in state.items() if name not in back or back[name].dtype != a.dtype or not np.array_equal(back[name], a)]
    explanation = f"{', '.join(wrong)} came back changed" if wrong else ""
    return _as_row("state round trip", 0.0 if not wrong else np.inf, 0.0, 0.0 if not wrong else np.inf, not wrong, "WRONG" if wrong else "EXACT", explanation)


def _row(name: str, got, want: bounds.Approx) -> dict:
    if got is None:
        return _as_row(name, np.inf, want.bound.max(), np.inf, False, "SHAPE", f"{name}: there is none")
    # one rounding of a gauge that is the whole derived bound, in units of u: r is the share of the bound
    truth = Bounded(want.value, want.bound / U32, 1, dtype="float32", label=name)
    verdict = judge(got, truth, max_zero_share=1.0)
    error = np.abs(np.asarray(got, np.float64) - want.value).max() if np.shape(got) == want.value.shape else np.inf
    return _as_row(name, error, want.bound.max(), verdict.r_max if verdict.size and np.isfinite(error) else np.inf, bool(verdict), str(verdict.band), "" if verdict else verdict.explain())


def _as_row(name, error, bound, ratio, ok, band, explanation) -> dict:
    return {"name": name, "error": float(error), "bound": float(bound), "ratio": float(ratio), "ok": ok, "band": band, "explanation": explanation}
