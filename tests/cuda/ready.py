"""What tests of CUDA kernels share: the devices as parameters (one that is not here is skipped, with the reason), and the oracle's word on a variant."""

from __future__ import annotations

import pytest

import tinynet
from tinynet import oracle
from tinynet.dispatch import find, kernels, use

READY = [pytest.param(name, marks=() if why is None else pytest.mark.skip(reason=f"not run on {name}: {why}")) for name, why in tinynet.devices().items() if name in ("cuda", "cuda-emulator")]


def judged(name: str, variant: str, device: str, *, seed: int = 1, **how):
    """The oracle's report on one variant of a kernel: with outputs of its own that are poisoned or, on a GPU, as an op runs it."""
    if device != "cuda":
        return oracle.check(oracle.with_out(find(name, f"{device}.{variant}"), name), name, seed=seed, **how)

    def run(*arrays, **parameters):
        with use(**{name: f"cuda.{variant}"}):
            return getattr(kernels("cuda"), name)(*arrays, **parameters)

    return oracle.check(run, name, adapt="cupy", seed=seed, **how)
