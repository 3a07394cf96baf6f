"""The processor, as far as kernels care: its vectors, its registers, its cache lines."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from llvmlite import binding


@dataclass(frozen=True)
class Target:
    """bits: of one vector register. registers: how many there are. name: what makes it so."""

    name: str
    bits: int
    registers: int

    def __str__(self) -> str:
        return f"{self.name}, {self.bits} bits"

    def lanes(self, dtype) -> int:
        return self.bits // (8 * np.dtype(dtype).itemsize)


TARGETS = {t.name: t for t in (Target("avx512", 512, 32), Target("avx2", 256, 16), Target("neon", 128, 32), Target("sse2", 128, 16))}


def _detected() -> Target:
    """The widest vectors of this processor; TINYNET_SIMD=avx2 and the like choose narrower ones."""
    wanted = os.environ.get("TINYNET_SIMD", "")
    if wanted:
        if wanted not in TARGETS:
            raise ValueError(f"TINYNET_SIMD: there is no target {wanted!r}; choose from {', '.join(TARGETS)}")
        return TARGETS[wanted]
    features = binding.get_host_cpu_features()
    if features.get("avx512f") and features.get("avx512vl"):
        return TARGETS["avx512"]
    if features.get("avx2") and features.get("fma"):
        return TARGETS["avx2"]
    return TARGETS["neon" if "neon" in features or binding.get_process_triple().startswith(("aarch64", "arm64")) else "sse2"]


TARGET = _detected()

LINE = 64  # bytes of a cache line


def lines(elements: int, dtype) -> int:
    """`elements`, rounded up to whole cache lines."""
    per_line = LINE // np.dtype(dtype).itemsize
    return -(-elements // per_line) * per_line
