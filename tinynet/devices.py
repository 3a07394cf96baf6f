"""Where tinynet computes: the devices, what each needs, and what to do where that is missing.

Next on the walk: dispatch.py, which asks a device's backend for kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import numpy as np


@dataclass(frozen=True)
class Device:
    """One place to compute. `needs`: a package that its backend imports, or a module of ours that knows more about what is
    missing; its arrays live in `memory`."""

    backend: str
    needs: str
    memory: str

    @property
    def reason(self) -> str | None:
        """Why the device can't be used here, and what to do; None if it can."""
        if self.needs.startswith("tinynet"):
            return import_module(self.needs).reason()
        try:
            found = find_spec(self.needs) is not None
        except (ImportError, ValueError):  # a package that is half there
            found = False
        return None if found else f"{self.needs} is not installed; pip install {self.needs}"


DEVICES = {
    "cpu": Device("tinynet.kernels.cpu", "numba", "host"),  # kernels compiled by numba
    "reference": Device("tinynet.kernels.reference", "numpy", "host"),  # numpy, the executable definition
    "cuda": Device("tinynet.kernels.cuda", "tinynet.kernels.cuda.gpu", "cuda"),  # kernels in CUDA C++, on a GPU through CuPy
    "cuda-emulator": Device("tinynet.kernels.cuda", "tinynet.kernels.cuda.emulator.build", "host"),  # the same, compiled by g++, for learning and tests
}


def devices() -> dict[str, str | None]:
    """Every device by name, with None if it is ready or the reason why it is not."""
    return {name: device.reason for name, device in DEVICES.items()}


def check_device(name: str) -> Device:
    if name not in DEVICES:
        raise ValueError(f"there is no device {name!r}; choose from {', '.join(map(repr, DEVICES))}")
    return DEVICES[name]


def array_module(device: str):
    """The numpy of the device: numpy, or CuPy. Raises RuntimeError where there is no GPU."""
    if check_device(device).memory == "host":
        return np
    if why := DEVICES[device].reason:
        raise RuntimeError(f"device {device!r} can't be used: {why}")
    return import_module("cupy")


def to_host(array) -> np.ndarray:
    """The array as numpy's; not copied if it is already on the host."""
    return array.get() if hasattr(array, "__cuda_array_interface__") else np.asarray(array)


def from_host(array: np.ndarray, device: str):
    """The array in the device's memory; not copied if that is the host's."""
    return array if check_device(device).memory == "host" else array_module(device).asarray(array)


def home_of(array, device: str) -> str:
    """The device of a tensor with this array: as it was named, or `cuda` for a GPU's array where it was left at `cpu`.

    Raises TypeError for an array that the named device can't read.
    """
    on_gpu = not isinstance(array, np.ndarray)
    home = "cuda" if on_gpu and device == "cpu" else device
    if on_gpu != (check_device(home).memory == "cuda"):
        raise TypeError(f"Tensor: {type(array).__module__} arrays don't lie in the memory of device {device!r}; tinynet.tensor(values, device={device!r}) copies them there")
    return home
