"""The CUDA devices: what is missing is said in plain words, and no array gets to a device that can't read it."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

import tinynet
from tinynet.cli import app
from tinynet.kernels.cuda import gpu
from tinynet.kernels.cuda.emulator import build


class Driver:
    """A driver that answers as told: the status of every call, its version, how many GPUs there are."""

    def __init__(self, status: int = 0, version: int = 0, count: int = 1):
        def answer(value):
            def call(pointer):
                pointer._obj.value = value
                return status

            return call

        self.cuInit, self.cuDriverGetVersion, self.cuDeviceGetCount = lambda flags: status, answer(version), answer(count)


def no_driver(name):
    raise OSError(name)


@pytest.mark.parametrize(
    "driver, cupy, said",
    [
        (no_driver, True, "no driver of NVIDIA's is installed (libcuda.so.1 is missing); install a GPU and its driver, or use device 'cuda-emulator', which runs the same kernels on the CPU"),
        (lambda _: Driver(status=100), True, "NVIDIA's driver finds no GPU that it can use (cuInit: error 100); install a GPU"),
        (lambda _: Driver(version=12040, count=0), True, "NVIDIA's driver finds no GPU; install"),
        (lambda _: Driver(version=12040), False, "CuPy is not installed; the driver runs CUDA 12.4, so pip install cupy-cuda12x"),
        (lambda _: Driver(version=13020), False, "CuPy is not installed; the driver runs CUDA 13.2, so pip install cupy-cuda13x"),
        (lambda _: Driver(version=11080), False, "the driver is too old for it (CUDA 11.8); install a driver for CUDA 12 or later, then pip install cupy-cuda12x"),
        (lambda _: Driver(version=12040), True, None),
    ],
)
def test_a_gpu_that_can_not_be_used_says_what_is_missing(driver, cupy, said, monkeypatch):
    monkeypatch.setattr(gpu.ctypes, "CDLL", driver)
    monkeypatch.setattr(gpu, "find_spec", lambda name: object() if cupy else None)
    gpu.driver.cache_clear()
    try:
        found = tinynet.devices()["cuda"]
        assert found is None if said is None else said in found
    finally:
        gpu.driver.cache_clear()


@pytest.mark.skipif(tinynet.devices()["cuda"] is None, reason="there is a GPU here")
def test_without_a_gpu_a_tensor_on_it_is_an_error_that_names_the_emulator():
    with pytest.raises(RuntimeError, match="device 'cuda' can't be used: .* or use device 'cuda-emulator'"):
        tinynet.tensor([1.0], device="cuda")
    with pytest.raises(RuntimeError, match="device 'cuda' can't be used"):
        tinynet.tensor([1.0]).to("cuda")


def test_an_array_of_the_host_is_no_tensor_of_the_gpu():
    with pytest.raises(TypeError, match=r"Tensor: numpy arrays do not lie in the memory of device 'cuda'; tinynet.tensor\(values, device='cuda'\) copies it there"):
        tinynet.Tensor(np.ones(3, np.float32), device="cuda")


@pytest.mark.skipif(build.reason() is not None, reason="there is no compiler to take away")
def test_without_a_compiler_it_says_what_to_install(python):
    code = """
import numpy as np, tinynet
print(tinynet.devices()["cuda-emulator"])
tinynet.functional.matmul(*(tinynet.tensor(np.ones((2, 2), "f4"), device="cuda-emulator") for _ in "ab"))
"""
    done = python(code, PATH="/nowhere")
    assert done.stdout.startswith("g++ is not installed; Debian and Ubuntu: apt-get install g++")
    assert "RuntimeError: device 'cuda-emulator' can't compile matmul.cu: g++ is not installed" in done.stderr


def test_the_emulator_is_for_linux(monkeypatch):
    monkeypatch.setattr(build.sys, "platform", "win32")
    assert tinynet.devices()["cuda-emulator"] == "the emulator runs on Linux alone, not on win32; install it in a Linux container or WSL"


def test_the_doctor_says_it_in_one_line_each_and_is_content_without_a_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "reason", lambda *_: "no driver")
    monkeypatch.setattr(build, "reason", lambda: "no g++")
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0 and "device cuda: no driver\n" in done.output and "device cuda-emulator: no g++\n" in done.output
