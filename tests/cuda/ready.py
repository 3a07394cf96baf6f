"""The CUDA devices as parameters of a test: one that is not here is skipped, with the reason."""

from __future__ import annotations

import pytest

import tinynet

READY = [pytest.param(name, marks=() if why is None else pytest.mark.skip(reason=f"not run on {name}: {why}")) for name, why in tinynet.devices().items() if name in ("cuda", "cuda-emulator")]
