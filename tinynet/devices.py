"""Where tinynet computes: the devices, what each needs, and what to do where that is missing.

Next on the walk: dispatch.py, which asks a device's backend for kernels.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import numpy as np

from tinynet.kernels.gpu_arrays import Current, name_of, on_gpu, shared


@dataclass(frozen=True)
class Device:
    """One place to compute. `needs`: a package that its backend imports, or a module of ours that knows more about what is
    missing; its arrays live in `memory`; `gpu` is the number of its GPU."""

    backend: str
    needs: str
    memory: str
    gpu: int | None = None

    @property
    def reason(self) -> str | None:
        """Why the device can't be used here, and what to do; None if it can."""
        if self.needs.startswith("tinynet"):
            return import_module(self.needs).reason(*(() if self.gpu is None else (self.gpu,)))
        try:
            found = find_spec(self.needs) is not None
        except (ImportError, ValueError):  # a package that is half there
            found = False
        return None if found else f"{self.needs} is not installed; pip install {self.needs}"


DEVICES = {
    "cpu": Device("tinynet.kernels.cpu", "numba", "host"),  # kernels compiled by numba
    "reference": Device("tinynet.kernels.reference", "numpy", "host"),  # numpy, the executable definition
    "cuda": Device("tinynet.kernels.cuda", "tinynet.kernels.cuda.gpu", "cuda", 0),  # kernels in CUDA C++, on a GPU through CuPy
    "cuda-emulator": Device("tinynet.kernels.cuda", "tinynet.kernels.cuda.emulator.build", "host"),  # the same, compiled by g++, for learning and tests
}


def devices() -> dict[str, str | None]:
    """Every device by name, with None if it is ready or the reason why it is not."""
    return {name: check_device(name).reason for name in (*DEVICES, *map(name_of, range(1, import_module(DEVICES["cuda"].needs).count())))}


def check_device(name: str) -> Device:
    if name in DEVICES:
        return DEVICES[name]
    if isinstance(name, str) and re.fullmatch(r"cuda:[1-9][0-9]*", name):
        return replace(DEVICES["cuda"], gpu=int(name[5:]))
    raise ValueError(f"there is no device {name!r}; choose from {', '.join(map(repr, DEVICES))}; GPUs beside the first are 'cuda:1' and so on")


@cache
def here(device: str):
    """`with here(device) as xp:` is around whatever makes arrays, or computes with them: CuPy does so on one GPU at a time."""
    gpu, xp = check_device(device).gpu, array_module(device)
    return nullcontext(xp) if gpu is None else Current(gpu, xp)


def beside(array):
    """`here` of the device where an array lies."""
    return here("cpu" if isinstance(array, np.ndarray) else name_of(array.device.id))


def array_module(device: str):
    """The numpy of the device: numpy, or CuPy. Raises RuntimeError where there is no GPU."""
    if check_device(device).memory == "host":
        return np
    if why := check_device(device).reason:
        raise RuntimeError(f"device {device!r} can't be used: {why}")
    return import_module("cupy")


def to_host(array) -> np.ndarray:
    """The array as numpy's; not copied if it is already on the host."""
    return array if type(array) is np.ndarray else shared(array).get() if on_gpu(array) else np.asarray(array)


def moved(array, device: str):
    """The array in the device's memory; not copied if it lies there."""
    if check_device(device).memory == "host":
        return to_host(array)
    with here(device) as xp:
        array = shared(array) if on_gpu(array) else xp.asarray(array)
        return array if name_of(array.device.id) == device else array.copy()


def home_of(array, device: str) -> str:
    """The device of a tensor with this array: as it was named or, where it was left at `cpu`, the GPU of a GPU's array.

    Raises TypeError for an array that the named device can't read.
    """
    lies = None if isinstance(array, np.ndarray) else name_of(array.device.id)
    home = lies if lies and device == "cpu" else device
    if (check_device(home).memory == "cuda") != (lies is not None) or lies not in (None, home):
        raise TypeError(f"Tensor: {f'an array on {lies!r} does' if lies else 'numpy arrays do'} not lie in the memory of device {device!r}; tinynet.tensor(values, device={device!r}) copies it there")
    return home
