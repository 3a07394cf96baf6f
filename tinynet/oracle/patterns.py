"""Where the wrong elements are: on a border, in the last channels, in one tile, in every second row."""

from __future__ import annotations

import numpy as np

_IMAGES = {"NCHW": ("image", "channel", "row", "column"), "NHWC": ("image", "row", "column", "channel")}
_ON_IMAGES = ("conv2d", "conv2d_dx", "max_pool2d", "max_pool2d_dx", "max_pool2d_grad", "avg_pool2d", "avg_pool2d_dx", "avg_pool2d_grad", "bias_add")


def axis_names(case, shape: tuple[int, ...], label: str = "") -> tuple[str, ...]:
    """What each axis of a result is called, as far as the case's name tells."""
    name = getattr(case, "name", "")
    layout = case.inputs()[1].get("layout", "NCHW") if name else "NCHW"
    if len(shape) == 4 and (name in _ON_IMAGES or name.startswith("conv2d") and label == "dx"):
        return _IMAGES[layout]
    if name == "conv2d_dw" or name == "conv2d_grad" and label == "dweight":
        return "filter", "channel", "kernel row", "kernel column"
    if name == "conv2d_db" or label == "dbias":
        return ("channel",)
    if len(shape) >= 2 and (name.startswith(("matmul", "linear")) or name in ("softmax", "log_softmax", "cross_entropy_grad")):
        return (*(f"batch axis {i}" for i in range(len(shape) - 2)), "row", "column")
    return tuple(f"axis {i} place" for i in range(len(shape)))


def describe(bad: np.ndarray, names: tuple[str, ...]) -> str:
    """One line about a mask of wrong elements; empty if there is nothing to say."""
    if bad.size < 2 or not bad.any():
        return ""
    if bad.all():
        return "everywhere"
    found, ranges = [], 0
    for axis, name in enumerate(names):
        hit = bad.any(axis=tuple(a for a in range(bad.ndim) if a != axis))
        if hit.all():
            continue
        text, is_range = _along(np.flatnonzero(hit), len(hit), name)
        ranges += is_range
        if text:
            found.append(text)
    inside = bad
    for axis, hit_axis in enumerate(names):
        hits = np.flatnonzero(bad.any(axis=tuple(a for a in range(bad.ndim) if a != axis)))
        inside = np.take(inside, hits, axis=axis)
    border = _border(bad, names)
    if border and not any("row" in text or "column" in text for text in found):
        found.append(border)
    if not found:
        return f"scattered over the whole result ({bad.mean():.0%} of it)"
    dense = "all of it" if inside.all() else f"{inside.mean():.0%} of that part"
    return f"{'one tile: ' if ranges >= 2 else ''}only {', '.join(found)} ({dense if not border else f'{bad.mean():.0%} of the result'})"


def _along(hits: np.ndarray, size: int, name: str) -> tuple[str, bool]:
    """What a set of indices along one axis is, and if it is one range."""
    first, last, count = int(hits[0]), int(hits[-1]), len(hits)
    steps = np.diff(hits)
    plural = f"{name}s"
    if count == 1:
        which = "the last " if first == size - 1 else "the first " if first == 0 else ""
        return f"{which}{name} ({first} of 0..{size - 1})", True
    if np.all(steps == 1):
        if last == size - 1:
            return f"the last {count} of {size} {plural} (from {first} on)", True
        return (f"the first {count} of {size} {plural}" if first == 0 else f"{plural} {first} to {last} of 0..{size - 1}"), True
    if np.all(steps == steps[0]) and first < steps[0] and size - 1 - last < steps[0]:
        word = {2: "every second", 3: "every third"}.get(int(steps[0]), f"every {steps[0]}th")
        return f"{word} {name}, from {first} on", False
    if first == 0 and last == size - 1 and np.count_nonzero(steps > 1) == 1:
        return f"the {plural} at both ends", False
    return "", False


def _border(bad: np.ndarray, names: tuple[str, ...]) -> str:
    """Are all wrong elements within a few rows and columns of the edge?"""
    axes = [i for i, name in enumerate(names) if name in ("row", "column")]
    if len(axes) != 2 or min(bad.shape[a] for a in axes) < 3:
        return ""
    for width in range(1, (min(bad.shape[a] for a in axes) - 1) // 2 + 1):
        inner = tuple(slice(width, bad.shape[a] - width) if a in axes else slice(None) for a in range(bad.ndim))
        if not bad[inner].any():
            return f"the border of the image, {width} wide"
    return ""
