"""Which implementation answers: use(...), then TINYNET_KERNELS, then the device's default; and nothing in silence."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import tinynet
from tinynet import functional as F
from tinynet.dispatch import find, from_environment, implementation, variants
from tinynet.kernels.contract import IMPLEMENTATIONS, implements


@pytest.fixture
def mine():
    """A variant of our own that counts its calls."""
    calls = []

    @implements("matmul", device="cpu", variant="mine")
    def matmul(a, b, *, out):
        calls.append(a.shape)
        np.matmul(a, b, out=out)

    yield calls
    del IMPLEMENTATIONS["matmul", "cpu"]["mine"]


@pytest.fixture
def environment(monkeypatch):
    """Sets TINYNET_KERNELS as if the process had been started with it."""

    def start(text: str) -> None:
        monkeypatch.setenv("TINYNET_KERNELS", text)
        from_environment.cache_clear()

    yield start
    from_environment.cache_clear()


A = np.ones((2, 3), np.float32)


def test_a_kernel_is_exchanged_in_a_live_network_and_the_rest_stays(mine):
    model = tinynet.nn.Linear(3, 4)
    with tinynet.use(matmul="cpu.mine"):
        model(A).sum().backward()
        assert implementation("conv2d", "cpu").path == find("conv2d", "cpu").path
    assert mine == [(2, 3), (4, 2)]  # forward, and the weight's gradient
    model(A)
    assert len(mine) == 2


def test_the_innermost_use_counts_and_the_outer_one_comes_back(mine):
    with tinynet.use(matmul="reference", conv2d="reference"):
        with tinynet.use(matmul="cpu.mine"):
            assert implementation("matmul", "cpu").path == "cpu.mine"
            assert implementation("conv2d", "cpu").device == "reference"
        assert implementation("matmul", "cpu").device == "reference"
    assert implementation("matmul", "cpu").path == find("matmul", "cpu").path


def test_a_use_counts_in_its_thread_alone():
    seen = []
    with tinynet.use(matmul="reference"):
        thread = threading.Thread(target=lambda: seen.append(implementation("matmul", "cpu").device))
        thread.start(), thread.join()
    assert seen == ["cpu"]


def test_the_environment_chooses_where_no_use_does(environment, mine):
    environment(" matmul = cpu.mine , conv2d_dw=reference")
    F.matmul(A, A.T)
    assert len(mine) == 1 and implementation("conv2d_dw", "cpu").device == "reference"
    with tinynet.use(matmul="reference"):
        F.matmul(A, A.T)
    assert len(mine) == 1
    environment("")
    F.matmul(A, A.T)
    assert len(mine) == 1


@pytest.mark.parametrize("text, said", [("matmul", "expected entries like conv2d=cpu.loops"), ("matmul=cpu.none", "TINYNET_KERNELS: kernel matmul has no variant 'cpu.none'"), ("conv3d=cpu", "TINYNET_KERNELS: there is no kernel 'conv3d'")])
def test_a_wrong_environment_says_so(environment, text, said):
    environment(text)
    with pytest.raises(ValueError, match=said):
        F.matmul(A, A.T)


def test_the_first_variant_of_a_device_is_its_default():
    for name in ("conv2d", "matmul", "max_pool2d"):
        assert find(name, "cpu").variant == variants(name, "cpu")[0]


def test_devices_say_why_they_are_not_ready():
    assert tinynet.devices()["reference"] is None
    for reason in tinynet.devices().values():
        assert reason is None or "install" in reason
