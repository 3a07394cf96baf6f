"""Softmax and cross-entropy on a GPU: who launches what of loss.cu, which tells the story of its variants.

Logits and targets come with their strides, whatever they are. Copied is only what no stride can say: numbers that don't lie
at multiples of their size, and classes that are no int64.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tinynet.kernels.cuda.both import implements_on_both
from tinynet.kernels.cuda.launch import REALS, kernel, real, strided

FILE = Path(__file__).with_suffix(".cu")
THREADS = 256  # of a block, as in loss.cu
A_WARPS_CLASSES = 256  # as many as a warp keeps in registers: from there on each thread of a block has a number too


def units():
    """All that can be compiled of loss.cu: macros, and the threads in a block of each kernel."""
    for number in REALS.values():
        yield {"REAL": number}, {f"softmax_cross_entropy_{who}": THREADS for who in ("simple", "warp", "block")}


def occupancy_rows() -> list[tuple[str, str, dict, int]]:
    """What docs/cuda.md shows of them: title, kernel, macros, threads in a block."""
    shown = [("float", "simple"), ("float", "warp"), ("float", "block"), ("double", "warp"), ("double", "block")]
    return [(f"softmax_cross_entropy {who}, {number}", f"softmax_cross_entropy_{who}", {"REAL": number}, THREADS) for number, who in shown]


def lanes_for(classes: int) -> int:
    """How many lanes of a warp a row gets: a power of two that holds its classes, 32 at most."""
    return min(32, 1 << (classes - 1).bit_length())


def _launch(who: str, logits, target, out, rows_of_a_block: int, *more) -> None:
    loss, dlogits = out
    number = real("softmax_cross_entropy", dlogits.dtype)
    rows, classes = dlogits.shape
    if not rows:
        return
    logits, logits_strides = strided(logits)
    target, target_strides = strided(target.astype(np.int64, copy=False))
    run = kernel(dlogits, FILE, f"softmax_cross_entropy_{who}", REAL=number)
    run((-(-rows // rows_of_a_block),), (THREADS,), (logits, *logits_strides, target, *target_strides, loss, dlogits, rows, classes, *more))


@implements_on_both("softmax_cross_entropy", variant="simple")
def softmax_cross_entropy_simple(logits, target, *, out):
    _launch("simple", logits, target, out, THREADS)


@implements_on_both("softmax_cross_entropy", variant="warp")
def softmax_cross_entropy_warp(logits, target, *, out):
    _launch("warp", logits, target, out, THREADS // 32, 32)


@implements_on_both("softmax_cross_entropy", variant="block")
def softmax_cross_entropy_block(logits, target, *, out):
    _launch("block", logits, target, out, 1)


@implements_on_both("softmax_cross_entropy", variant="fitting", default=True)
def softmax_cross_entropy_fitting(logits, target, *, out):
    classes = logits.shape[1]
    if classes > A_WARPS_CLASSES:
        _launch("block", logits, target, out, 1)
    else:
        _launch("warp", logits, target, out, THREADS // lanes_for(classes), lanes_for(classes))
