"""What all tests share: random numbers that repeat, fresh processes, and last lines that say what of CUDA was proved, and where."""

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


def pytest_terminal_summary(terminalreporter):
    """What of CUDA was proved on a GPU, what on the emulator, and what the real compiler took. (Here, since a folder's own conftest
    is read by the workers, and these lines are the chief's.)"""
    import tinynet
    from tinynet.kernels.cuda import occupancy

    reports = [report for status in ("passed", "failed", "skipped") for report in terminalreporter.stats.get(status, []) if "tests/cuda/" in report.nodeid]
    if not reports:
        return  # a run of other tests
    passed = [report.nodeid for report in reports if report.passed and report.when == "call"]
    missing = tinynet.devices()
    on_gpu = sum(node.endswith("-cuda]") or "[cuda]" in node for node in passed)
    emulated = sum("cuda-emulator" in node or any(f"test_{name}.py" in node for name in ("emulator", "checked", "counts")) for node in passed)
    stood_in = sum("test_gpus.py" in node or "stand-in" in node for node in passed)
    compiled = sum("test_nvrtc.py" in node for node in passed)
    say = terminalreporter.write_line
    say(f"CUDA on a GPU: {f'{on_gpu} tests passed' if on_gpu else 'nothing was verified'}{'' if missing['cuda'] is None else ': ' + missing['cuda'].partition(';')[0]}")
    say(f"CUDA on the emulator: {f'{emulated} tests passed' if emulated else 'nothing was verified'}{'' if missing['cuda-emulator'] is None else ': ' + missing['cuda-emulator']}")
    say(f"CUDA around the kernels (several GPUs, graphs), on a stand-in for CuPy: {f'{stood_in} tests passed' if stood_in else 'nothing was verified'}")
    say(f"CUDA compiled by NVRTC: {f'{compiled} tests passed' if compiled else 'nothing was verified'}{'' if occupancy.reason() is None else ': ' + occupancy.reason()}")
