"""Who runs a kernel: the implementations of each device (devices.py), and how to choose another one.

An op asks the namespace `k` of its tensors' device for a kernel by name. Which function
answers: `with use(conv2d="cpu.loops")` first, then the environment variable TINYNET_KERNELS
("conv2d=cpu.loops,matmul=reference"), then the device's default, which its backend registers
first. Nothing falls back in silence: what can't be run is an error that says why.

Next on the walk: kernels/contract.py, what every kernel promises.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from functools import cache
from importlib import import_module

import numpy as np

from tinynet.devices import DEVICES, array_module, check_device, here
from tinynet.kernels.contract import CONTRACTS, IMPLEMENTATIONS


_loaded: set[str] = set()  # devices whose backend is imported, and so registered


def _registered(device: str) -> dict:
    if device not in _loaded:
        try:
            import_module(check_device(device).backend)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("tinynet"):
                raise
            raise ModuleNotFoundError(
                f"device {device!r} needs {error.name}, which is not installed; pip install {error.name}, or compute on device 'reference' (numpy alone): tensor(..., device='reference') or .to('reference')",
                name=error.name,
            ) from None
        _loaded.add(device)
    return IMPLEMENTATIONS


def variants(name: str, device: str) -> list[str]:
    """The variants of a kernel on a device, the default first."""
    return list(_registered(device).get((name, device), {}))


def find(name: str, path: str):
    """The implementation that `path` ("reference", "cpu.loops") means for kernel `name`."""
    if name not in CONTRACTS:
        raise ValueError(f"there is no kernel {name!r}; the kernels are {', '.join(CONTRACTS)}")
    if not isinstance(path, str):
        raise TypeError(f"{name}: a kernel is chosen by its path, reference or cpu.loops for example; got {path!r}")
    device, _, variant = path.partition(".")
    found = _registered(device).get((name, device), {})
    if not found:
        able = sorted({d for n, d in IMPLEMENTATIONS if n == name})
        raise LookupError(f"device {device!r} has no kernel {name!r}; {', '.join(able) or 'no device that is loaded'} has one")
    if variant and variant not in found:
        raise ValueError(f"kernel {name} has no variant {path!r}; on {device} there are {', '.join(i.path for i in found.values())}")
    return found[variant] if variant else next(iter(found.values()))


# One entry for each `with use(...)` around us, the innermost last, with what the outer ones chose
_chosen: ContextVar[tuple[dict, ...]] = ContextVar("tinynet_kernels", default=({},))


class use:
    """`with use(conv2d="cpu.loops", conv2d_dw="reference"):` runs these kernels in place of the defaults,
    in this thread. Raises ValueError at once for a kernel, device or variant that doesn't exist.
    """

    def __init__(self, **choices: str):
        self.choices = {name: find(name, path) for name, path in choices.items()}

    def __enter__(self):
        around = _chosen.get()
        _chosen.set((*around, {**around[-1], **self.choices}))
        return self

    def __exit__(self, *_):
        _chosen.set(_chosen.get()[:-1])


@cache
def from_environment() -> dict:
    """What TINYNET_KERNELS chooses. Read once: looking it up takes a microsecond, a third of a launch."""
    choices = {}
    for entry in filter(None, map(str.strip, os.environ.get("TINYNET_KERNELS", "").split(","))):
        name, equals, path = map(str.strip, entry.partition("="))
        try:
            if not equals:
                raise ValueError(f"expected entries like conv2d=cpu.loops, separated by commas; got {entry!r}")
            choices[name] = find(name, path)
        except (ValueError, LookupError) as error:
            raise ValueError(f"TINYNET_KERNELS: {error.args[0]}") from None
    return choices


choices = _chosen.get  # choices() is another object whenever other kernels are chosen


def chosen_by_hand() -> bool:
    return bool(_chosen.get()[-1] or from_environment())


def implementation(name: str, device: str):
    """The implementation that answers for kernel `name` on `device` now; all GPUs are `cuda` here."""
    chosen = _chosen.get()[-1].get(name) or from_environment().get(name)
    if chosen is None:
        found = _registered(device).get((name, device))
        return next(iter(found.values())) if found else find(name, device)  # which says why there is none
    if chosen.device != device and DEVICES[chosen.device].memory != DEVICES[device].memory:
        raise ValueError(f"{name}: {chosen.path} was chosen, which can't read the tensors' memory on {device}; move them with .to({chosen.device!r})")
    return chosen


class Kernels:
    """The `k` that an op sees: `k.conv2d(x, weight, bias, stride=...)` runs a kernel and returns its outputs, which are new
    arrays unless `out` gives them; `k.xp` is the array module."""

    def __init__(self, device: str):
        self.device, self.xp, self.here = device, array_module(device), here(device)

    def __getattr__(self, name: str):
        if name not in CONTRACTS:
            raise AttributeError(f"there is no kernel {name!r}; the kernels are {', '.join(CONTRACTS)}")
        spec, kind, empty = CONTRACTS[name].spec, self.device.partition(":")[0], self.xp.empty
        known = {}  # outputs of calls that came before, by all that they depend on

        def launch(*arrays, out=None, **parameters):
            if out is None:
                call = (*[None if a is None else (a.shape, a.dtype) for a in arrays], *parameters.items())
                if (outputs := known.get(call)) is None:
                    if len(known) == 512:
                        known.clear()
                    outputs = known[call] = spec(*arrays, **parameters).outputs
                out = tuple(empty(shape, dtype) for shape, dtype in outputs) if len(outputs) > 1 else empty(*outputs[0])
            implementation(name, kind).function(*arrays, **parameters, out=out)
            return out

        def launch_there(*arrays, **options):
            with self.here:
                return launch(*arrays, **options)

        found = self.__dict__[name] = launch if self.xp is np else launch_there  # found at once from now on
        return found


_kernels: dict[str, Kernels] = {}


def kernels(device: str) -> Kernels:
    if device not in _kernels:
        _kernels[device] = Kernels(device)
    return _kernels[device]
