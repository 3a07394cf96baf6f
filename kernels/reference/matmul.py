"""Matrix product, the definition: numpy's own."""

from __future__ import annotations

import numpy as np

from tinynet.kernels.contract import implements


@implements("matmul", device="reference", variant="numpy")
def matmul(a, b, *, out):
    np.matmul(a, b, out=out)
