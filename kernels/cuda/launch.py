"""Launches: the one way from Python to a kernel in a .cu file, on a GPU or on the emulator.

    kernel(out, FILE, "matmul_tiles", REAL="float")(grid, block, (a, b, out, rows), shared=0)

The arrays say where: numpy's run on the emulator (emulator/run.py), CuPy's on their GPU (gpu.py). So a launcher is
written once. Arguments are arrays, None (a null pointer), Python ints (int or long long), and numpy scalars for
floating-point numbers; both sides read them in the same way.

Next on the walk: matmul.cu.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from math import prod
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
_INCLUDE = re.compile(r'^#include "([\w./]+)"$', re.M)


@dataclass(frozen=True)
class Source:
    """The text of a .cu file with our headers in it: all that a compiler needs, and all that its output depends on."""

    name: str
    text: str

    def __post_init__(self):
        if not self.text.strip():
            raise ValueError(f"{self.name} is empty; a source is the text of a .cu file, Source.read(path) reads one")

    @staticmethod
    @cache
    def read(path: Path) -> "Source":
        return Source(path.name, _with_includes(path.name, path.read_text("utf-8")))

    @property
    def code(self) -> str:
        """The text as compilers get it: what they say names the file."""
        return f'#line 1 "{self.name}"\n{self.text}'


def _with_includes(name: str, text: str) -> str:
    """The text with each `#include "header.cuh"` replaced by that file: neither NVRTC nor CuPy's cache needs to find it."""

    def include(found: re.Match) -> str:
        header = (FOLDER / found[1]).read_text("utf-8")
        line = text.count("\n", 0, found.start()) + 2
        return f'#line 1 "{found[1]}"\n{_with_includes(found[1], header)}\n#line {line} "{name}"'

    return _INCLUDE.sub(include, text)


def kernel(like, file: Path | Source, name: str, **defines):
    """The kernel `name` of a .cu file, compiled with these macros for where the array `like` lies.

    Returns launch(grid, block, arguments, shared=0): grid and block are up to three numbers, shared the bytes of dynamic
    shared memory. Raises RuntimeError with the compiler's words where it doesn't compile.
    """
    source = file if isinstance(file, Source) else Source.read(file)
    words = tuple(f"-D{key}={value}" for key, value in sorted(defines.items()))
    if isinstance(like, np.ndarray):
        from tinynet.kernels.cuda.emulator import run as backend
    else:
        from tinynet.kernels.cuda import gpu as backend
    return backend.kernel(like, source, words, name)


MOST_THREADS = 1024  # in a block
MOST_BLOCKS = (2**31 - 1, 65535, 65535)


def sizes(name: str, grid, block) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """A grid and a block as three numbers each. Raises ValueError for what no GPU can launch."""
    blocks, threads = _in_three(name, "grid", grid), _in_three(name, "block", block)
    if any(n > most for n, most in zip(blocks, MOST_BLOCKS)):
        raise ValueError(f"{name}: a grid has at most {MOST_BLOCKS} blocks; got {blocks}; give each block more to do, or launch several times")
    if prod(threads) > MOST_THREADS or threads[2] > 64:
        raise ValueError(f"{name}: a block has at most {MOST_THREADS} threads, 64 of them along z; got {threads}, which is {prod(threads)}")
    return blocks, threads


def _in_three(name: str, what: str, extents) -> tuple[int, int, int]:
    if not 1 <= len(extents) <= 3 or any(int(n) != n or n < 1 for n in extents):
        raise ValueError(f"{name}: a {what} is one to three whole numbers of at least 1; got {tuple(extents)}")
    return tuple(int(n) for n in (*extents, 1, 1)[:3])


def address(array) -> int:
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr


def empty(like, *shape: int):
    """Memory for a kernel's own use, where the array `like` lies and of its type; on a GPU from CuPy's pool."""
    if isinstance(like, np.ndarray):
        return np.empty(shape, like.dtype)
    import cupy

    with like.device:
        return cupy.empty(shape, like.dtype)


# --- operands: arrays that a kernel reads wherever they lie -------------------------------------------------------------

REALS = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}  # what kernels compute in


def real(name: str, dtype) -> str:
    """What the numbers of kernel `name` are in C. Raises TypeError for a dtype that it doesn't compute in."""
    if dtype not in REALS:
        raise TypeError(f"{name}: {dtype} has no CUDA kernel; use float32 or float64")
    return REALS[dtype]


def in_elements(array):
    """The array, or a copy where its numbers don't lie at multiples of their size: strides are whole numbers of elements."""
    if address(array) % array.itemsize or any(s % array.itemsize for s in array.strides):
        return array.copy()
    return array


def strides_of(array) -> list[int]:
    return [s // array.itemsize for s in array.strides]


def strided(array) -> tuple:
    """The array (or a copy: in_elements) and its strides in elements."""
    array = in_elements(array)
    return array, strides_of(array)


def contiguous(a):
    """The array, or a copy whose numbers lie side by side, at multiples of their size; None stays."""
    return a if a is None or a.flags.c_contiguous and address(a) % a.itemsize == 0 else a.copy()


@lru_cache(4096)
def divisor(n: int) -> int:
    """A number to divide by, as division.cuh reads it."""
    shift = 31 + (n - 1).bit_length()
    return shift << 32 | -(-(1 << shift) // n)
