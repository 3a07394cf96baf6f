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
