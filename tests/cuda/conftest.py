"""The last lines of a run say what of CUDA was proved on a GPU, what on the emulator, and what the real compiler took."""

from __future__ import annotations

import tinynet
from tinynet.kernels.cuda import occupancy


def pytest_terminal_summary(terminalreporter):
    passed = [report.nodeid for report in terminalreporter.stats.get("passed", []) if report.when == "call" and "tests/cuda/" in report.nodeid]
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
