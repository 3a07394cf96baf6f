"""1,797 handwritten digits, which come inside scikit-learn: nothing is downloaded.

The images are 8 x 8 with 17 shades (E. Alpaydin, C. Kaynak, "Optical Recognition of
Handwritten Digits", UCI Machine Learning Repository, 1998). They are scaled to 32 x 32 by
linear interpolation between pixel centres, repeated in three channels, and split once and
for all: 1,437 for training and 360 held out, every class in the same proportion.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SIZE = 32
HELD_OUT = 360


class Split(NamedTuple):
    """images (N, 3, 32, 32) float32 in [0, 1]; classes (N,) int64."""

    images: np.ndarray
    classes: np.ndarray


def load_digits() -> tuple[Split, Split]:
    """(training, held_out): 1,437 and 360 images. Raises ModuleNotFoundError without scikit-learn."""
    try:
        from sklearn import datasets
    except ModuleNotFoundError:
        raise ModuleNotFoundError("the digits come with scikit-learn, which is not installed; pip install scikit-learn", name="sklearn") from None
    raw = datasets.load_digits()
    classes = raw.target.astype(np.int64)
    images = np.repeat(enlarge(raw.images / 16.0)[:, None], 3, axis=1).astype(np.float32)
    held_out = held_out_mask(classes)
    return Split(images[~held_out], classes[~held_out]), Split(images[held_out], classes[held_out])


def enlarge(images: np.ndarray) -> np.ndarray:
    """(N, 8, 8) to (N, 32, 32), linearly: both axes are one small matrix product."""
    before = images.shape[1]
    centre = (np.arange(SIZE) + 0.5) * before / SIZE - 0.5  # of each new pixel, in old pixels
    distance = np.abs(np.clip(centre, 0, before - 1)[:, None] - np.arange(before))
    weights = np.maximum(1.0 - distance, 0.0)
    return weights @ images @ weights.T


def held_out_mask(classes: np.ndarray) -> np.ndarray:
    """Which images are held out: the same share of every class, evenly spaced in the order they come in.

    No random numbers: the split is the same on every machine and with every version of numpy.
    """
    labels, counts = np.unique(classes, return_counts=True)
    exact = counts * HELD_OUT / len(classes)
    quota = np.floor(exact).astype(int)
    # the largest remainders get the images that rounding down left over
    for label in np.argsort(quota - exact, kind="stable")[: HELD_OUT - quota.sum()]:
        quota[label] += 1
    mask = np.zeros(len(classes), bool)
    for label, count, held in zip(labels, counts, quota):
        places = ((np.arange(held) + 0.5) * count / held).astype(int)
        mask[np.flatnonzero(classes == label)[places]] = True
    return mask
