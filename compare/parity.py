"""Does a peer compute the same network? State, output, loss and every gradient against the float64 truth.

The images are training digits with a little grain: 0.9 * digit + 0.1 * noise. Without it, equal windows of
an image's flat parts tie exactly, and which one wins is a convention, not arithmetic.
"""

from __future__ import annotations

import numpy as np

from tinynet.compare import bounds
from tinynet.compare.networks import Network
from tinynet.data import Split

CANDIDATES = 400


def grainy(images: np.ndarray, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).random(images.shape)
    return (0.9 * images + 0.1 * noise).astype(np.float32)


def batch(network: Network, state, training: Split, size: int) -> tuple[np.ndarray, np.ndarray, int]:
    """`size` images and classes on which the network has no near tie, and how many images were looked at."""
    images = grainy(training.images[:CANDIDATES])
    chosen = bounds.settled_batch(network, state, images, size)
    return images[chosen], training.classes[:CANDIDATES][chosen], int(chosen[-1]) + 1


def checks(state, truth: bounds.Truth, result: dict) -> list[dict]:
    """One row for each tensor: its largest error, the bound there, and the worst share of the bound."""
    same = all(np.array_equal(result["state"][name], value) and result["state"][name].dtype == value.dtype for name, value in state.items())
    rows = [{"name": "state round trip", "error": 0.0 if same else float("inf"), "bound": 0.0, "ratio": 0.0 if same else float("inf"), "ok": same}]
    rows.append(_row("output", result["output"], truth.output))
    rows.append(_row("loss", np.asarray(result["loss"]), truth.loss))
    rows += [_row(f"gradient of {name}", result["gradients"].get(name), want) for name, want in truth.gradients.items()]
    return rows


def _row(name: str, got, want: bounds.Approx) -> dict:
    if got is None or got.shape != want.value.shape or not np.isfinite(got).all():
        return {"name": name, "error": float("inf"), "bound": float(want.bound.max()), "ratio": float("inf"), "ok": False}
    error = np.abs(got - want.value)
    share = np.divide(error, want.bound, out=np.where(error > 0, np.inf, 0.0), where=want.bound > 0)
    return {"name": name, "error": float(error.max()), "bound": float(want.bound.max()), "ratio": float(share.max()), "ok": bool((error <= want.bound).all())}
