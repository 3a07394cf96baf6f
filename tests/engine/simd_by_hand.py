"""A kernel of one row, for tests of what it is made of."""

from __future__ import annotations

import numpy as np

from tinynet.kernels.cpu.program import address_of, compiled, row, run

DTYPES = [np.float32, np.float64]
WIDTHS = [2, 4, 8, 16]


def play(factory, constants, out, *inputs):
    """Runs the kernel factory(*constants) once: its row holds the addresses of the inputs, then of the output."""
    run([row(compiled(factory, *constants), *(address_of(a) for a in (*inputs, out)))], 1, 1)
    return out
