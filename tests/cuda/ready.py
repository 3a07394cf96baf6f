"""The CUDA devices as parameters of tests: those that are not ready here are skipped, with the reason."""

from __future__ import annotations

import pytest

import tinynet

READY = [pytest.param(name, marks=() if why is None else pytest.mark.skip(reason=f"not run on {name}: {why}")) for name, why in tinynet.devices().items() if name.startswith("cuda")]
