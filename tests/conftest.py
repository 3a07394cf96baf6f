"""What all tests share: random numbers that repeat, and fresh processes."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib

# Threads of OpenMP that wait by spinning take the cores from whoever shares this machine, and then wait
# for them in turn: a launch of 20 us becomes one of 8 ms. Read when libgomp is loaded, so set before it is.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest


@pytest.fixture
def rng(request) -> np.random.Generator:
    """Random numbers of the test's own: the same in every run, other ones in every test."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def python():
    """`python(code, **environment)` runs code in a fresh interpreter and returns the finished process."""

    def run(code: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
        )

    return run
