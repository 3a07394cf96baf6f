"""Views that let the definitions below be written once, for NCHW."""

from __future__ import annotations

import numpy as np


def as_nchw(a: np.ndarray, layout: str) -> np.ndarray:
    """The array with its axes in the order NCHW: a view, so that writing to it writes to `a`."""
    return a if layout == "NCHW" else a.transpose(0, 3, 1, 2)


def padded(x: np.ndarray, padding, value: float = 0.0) -> np.ndarray:
    """NCHW images with `value` around them."""
    return np.pad(x, ((0, 0), (0, 0), *padding), constant_values=value)


def cropped(x: np.ndarray, padding) -> np.ndarray:
    """The inverse of `padded`: a view of the images alone."""
    (top, bottom), (left, right) = padding
    rows, columns = x.shape[2:]
    return x[:, :, top : rows - bottom, left : columns - right]
