"""The number of threads changes how fast a kernel is, and not one bit of what it computes."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from kernels_by_hand import assert_same, run

from tinynet import oracle
from tinynet.dispatch import variants
from tinynet.kernels.contract import CONTRACTS


@pytest.fixture
def threads():
    yield numba.set_num_threads
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)


@pytest.mark.parametrize("name", CONTRACTS)
def test_results_are_the_same_on_any_number_of_threads(name, threads):
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("this machine has one core, so there is nothing to compare")
    for variant in variants(name, "cpu"):
        for case in oracle.random_cases(name, 12, seed=31):
            arrays, parameters = case.inputs()
            found = []
            for count in (1, 2):
                threads(count)
                found.append(run(name, f"cpu.{variant}", *arrays, **parameters))
            for one, two in zip(*(f if isinstance(f, tuple) else (f,) for f in found)):
                assert_same(one, two, f"cpu.{variant}: {case}")


def test_long_sums_too(threads):
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("this machine has one core, so there is nothing to compare")
    rng = np.random.default_rng(0)
    for layout in ("NCHW", "NHWC"):
        dy = rng.standard_normal((17, 5, 40, 31)).astype(np.float32)
        found = []
        for count in (1, 2):
            threads(count)
            found.append(run("conv2d_db", "cpu", dy, layout=layout))
        assert_same(*found)


STEP = dict(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
ADAM = dict(t=3, lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01)
PASSES = {
    "relu_dx": ("relu_dx", 2, {}), "sgd": ("sgd_step", 2, dict(STEP, momentum=0.0, nesterov=False)), "momentum": ("sgd_step", 3, dict(STEP, nesterov=False)),
    "Nesterov": ("sgd_step", 3, STEP), "Adam": ("adam_step", 4, dict(ADAM, decoupled=False)), "AdamW": ("adam_step", 4, dict(ADAM, decoupled=True)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda d: d.__name__)
@pytest.mark.parametrize("which", PASSES)
def test_a_pass_over_many_numbers_is_that_over_each_of_its_pieces(which, dtype, rng):
    """So many that threads share them, at boundaries that no vector divides."""
    name, count, parameters = PASSES[which]
    arrays = [np.abs(rng.standard_normal(150_001)).astype(dtype) - (dtype(0.5) if i < 2 else dtype(0)) for i in range(count)]
    arrays += [None] * (name == "sgd_step" and count == 2)
    cut = [None if a is None else a[i : i + 1_999] for i in range(0, 150_001, 1_999) for a in arrays]
    parts = [run(name, "cpu", *cut[i : i + len(arrays)], **parameters) for i in range(0, len(cut), len(arrays))]
    whole = run(name, "cpu", *arrays, **parameters)
    for place, output in enumerate(whole if isinstance(whole, tuple) else (whole,)):
        assert_same(output, np.concatenate([p[place] if isinstance(p, tuple) else p for p in parts]), which)
