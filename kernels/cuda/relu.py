"""ReLU's gradient on a GPU: who launches what of relu.cu. (ReLU itself is the array module's maximum.)"""

from __future__ import annotations

from pathlib import Path

from tinynet.kernels.cuda.both import implements_on_both
from tinynet.kernels.cuda.launch import REALS, contiguous, kernel, real
from tinynet.kernels.cuda.optimizers import MOST_BLOCKS

FILE = Path(__file__).with_suffix(".cu")
THREADS = 256  # of a block, as in relu.cu


def units():
    """All that can be compiled of relu.cu: macros, and the threads in a block of each kernel."""
    for number in REALS.values():
        yield {"REAL": number}, {"relu_dx_simple": THREADS}


def occupancy_rows() -> list[tuple[str, str, dict, int]]:
    """What docs/cuda.md shows of them: title, kernel, macros, threads in a block."""
    return [("relu_dx simple, float", "relu_dx_simple", {"REAL": "float"}, THREADS)]


@implements_on_both("relu_dx", variant="simple")
def relu_dx(dy, x, *, out):
    word = real("relu_dx", out.dtype)
    if out.size:
        blocks = min(-(-out.size // THREADS), MOST_BLOCKS)
        kernel(out, FILE, "relu_dx_simple", REAL=word)((blocks,), (THREADS,), (contiguous(dy), contiguous(x), out, out.size))
