"""Honest implementations are never refused, whatever their order of summation: over 2,000 random cases.

Each order is a real one: a naive loop, the same backwards, halves added up pairwise, blocks, numpy's BLAS, fused
multiply-adds, torch, TensorFlow, and our own CPU kernels. The cases are drawn from seeds, the same in every run.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import peers_as_kernels
import pytest

from tinynet import oracle
from tinynet.dispatch import find
from tinynet.geometry import taps
from tinynet.kernels.reference.layout import as_nchw, padded
from tinynet.oracle import check

# --- sums of products in every order: terms (..., n) -> their sum ----------------------------------------------------


def naive(terms):
    return terms.cumsum(axis=-1, dtype=terms.dtype)[..., -1]


def backwards(terms):
    return naive(terms[..., ::-1])


def pairwise(terms):
    while terms.shape[-1] > 1:
        if terms.shape[-1] % 2:
            terms = np.concatenate([terms, np.zeros_like(terms[..., :1])], axis=-1)
        terms = terms[..., 0::2] + terms[..., 1::2]
    return terms[..., 0]


def blocked(terms):
    """Lanes of eight, as a vector register sums."""
    missing = -terms.shape[-1] % 8
    lanes = np.concatenate([terms, np.zeros((*terms.shape[:-1], missing), terms.dtype)], axis=-1)
    return pairwise(naive(lanes.reshape(*lanes.shape[:-1], -1, 8).swapaxes(-1, -2)))


ORDERS = {"naive": naive, "backwards": backwards, "pairwise": pairwise, "blocked": blocked}


def matmul_by(order):
    return lambda a, b: order(a[..., :, None, :] * b.swapaxes(-1, -2)[..., None, :, :])


def fused(a, b):
    """c = fma(a, b, c): each step exact in wide arithmetic, rounded once."""
    c = np.zeros((*a.shape[:-1], b.shape[-1]), a.dtype)
    wide = np.float64 if a.dtype == np.float32 else np.longdouble
    for t in range(a.shape[-1]):
        c = (a[..., t : t + 1].astype(wide) * b[..., t : t + 1, :] + c).astype(a.dtype)
    return c


def conv2d_by(order):
    """All products of a window side by side, then added up in the given order, the bias last."""

    def conv2d(x, weight, bias, *, stride, padding, dilation, groups, layout):
        images = padded(as_nchw(x, layout), padding)
        k, c, kh, kw = weight.shape
        i, j = ((size - d * (e - 1) - 1) // s + 1 for size, e, s, d in zip(images.shape[2:], (kh, kw), stride, dilation))
        windows = np.stack([images[:, :, rows, columns] for _, _, rows, columns in taps((kh, kw), stride, dilation, (i, j))], axis=-1)
        windows = windows.reshape(len(x), groups, 1, c, i, j, kh * kw)
        filters = weight.reshape(1, groups, k // groups, c, 1, 1, kh * kw)
        terms = np.moveaxis(windows * filters, 3, -1).reshape(len(x), k, i, j, -1)
        y = order(terms) if bias is None else order(terms) + bias[:, None, None]
        return np.ascontiguousarray(y if layout == "NCHW" else y.transpose(0, 2, 3, 1))

    return conv2d


# --- our own kernels, and frameworks -----------------------------------------------------------------------------------

KERNELS = ("conv2d", "conv2d_dx", "conv2d_dw", "conv2d_db", "max_pool2d", "max_pool2d_dx", "avg_pool2d", "avg_pool2d_dx", "matmul")


def cpu(name):
    return lambda: oracle.with_out(find(name, "cpu").function, name)


def torchs(name):
    return lambda: peers_as_kernels.torch_functions()[name]


def tensorflows(name):
    return lambda: peers_as_kernels.tensorflow_functions()[name]


# --- the plan: (who, name, how many cases, makes the function, check's options) -----------------------------------------

PLAN = [(f"numpy, {order}", name, 60, lambda by=by, order=order: by(ORDERS[order]), {}) for order in ORDERS for name, by in (("matmul", matmul_by), ("conv2d", conv2d_by))]
PLAN += [("fused multiply-adds", "matmul", 60, lambda: fused, dict(dtype=dtype)) for dtype in ("float32", "float64", "float16")]
PLAN += [("BLAS", "matmul", 60, lambda: np.matmul, dict(dtype=dtype)) for dtype in ("float32", "float64")]
PLAN += [("cpu", name, 60, cpu(name), dict(dtype=dtype)) for name in KERNELS for dtype in ("float32", "float64")]
PLAN += [("torch", name, 60, torchs(name), dict(adapt="torch")) for name in ("conv2d", "conv2d_dx", "conv2d_dw", "conv2d_db", "matmul", "max_pool2d")]
PLAN += [("TensorFlow", name, 40, tensorflows(name), dict(adapt="tensorflow")) for name in ("conv2d", "matmul", "softmax", "log_softmax")]


def test_the_plan_has_more_than_two_thousand_cases():
    assert sum(count for _, _, count, _, _ in PLAN) >= 2_000


@pytest.mark.parametrize("number", range(len(PLAN)), ids=lambda i: f"{PLAN[i][0]} {PLAN[i][1]} {PLAN[i][4].get('dtype', '')}")
def test_an_honest_implementation_is_never_refused(number):
    who, name, count, make, options = PLAN[number]
    cases = oracle.random_cases(name, 2 * count, seed=20 + number, dtype=options.get("dtype", "float32"))
    # torch pads on four sides only through a wider image, and counts what ceil_mode leaves over from there.
    cases = [case for case in cases if who != "torch" or "ceil_mode=True" not in case.label][:count]
    with np.errstate(all="ignore"):
        report = check(make(), name, cases=cases, strided=False, twice=False, **options)
    assert report, report.explain()
    assert len(report) == count
