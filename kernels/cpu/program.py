"""Programs: a table of rows, each the address of a compiled kernel and the numbers it is called with.

Compiling takes half a second, so nothing is compiled for a shape: a kernel is compiled for what must be
constant (the tile that fills the registers, the dtype) and reads everything else, sizes, steps and addresses,
from its row. So a few dozen kernels serve every layer of every network, and are kept on disk.

    kernel(row, image, part, share, shares)

A program runs over images. Their range is cut into `chunks`, and the work on each image into `shares`; each
pair is a *part* that one thread plays from its first row to its last, with scratch memory of its own. Parts
never wait for each other, so a program gives the same bits on any number of threads.
"""

from __future__ import annotations

import hashlib
import threading
from functools import cache
from pathlib import Path

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core.ccallback import CFunc
from numba.core.typing import signature
from numba.extending import intrinsic

from tinynet.kernels.cpu import simd
from tinynet.kernels.cpu.jit import announced, launched_safely

ROW = 32  # numbers in a row of a table: the kernel's address, then what it reads
_ABI = signature(types.void, types.CPointer(types.int64), types.int64, types.int64, types.int64, types.int64)
# What numba's cache can't see: the layer that kernels are generated from, and the vectors it was asked for.
_STAMP = hashlib.sha256(Path(simd.__file__).read_bytes() + simd.TARGET.name.encode()).hexdigest()[:8]
_kept: list[CFunc] = []  # compiled code lives as long as its CFunc


class _Kernel(CFunc):
    def _compile_uncached(self):
        with announced(f"{self.__name__} for the CPU"):
            return super()._compile_uncached()


@cache
def compiled(factory, *constants) -> int:
    """The address of the kernel that factory(*constants) makes; compiled once, then from disk.

    constants: ints and numpy's float types. (numba keys its cache on them, and on the name: so a name says
    all, or two kernels on disk would be taken for each other.)
    """
    function = factory(*constants)
    words = [factory.__name__, *(c.__name__ if isinstance(c, type) else str(c) for c in constants)]
    function.__name__ = "_".join(words)
    function.__qualname__ = f"{function.__name__}_{_STAMP}"
    kernel = _Kernel(function, (_ABI.args, _ABI.return_type), {}, {"error_model": "numpy", "nopython": True})
    kernel.enable_caching()
    kernel.compile()
    _kept.append(kernel)
    return kernel.address


def row(address: int, *numbers: int) -> list[int]:
    return [address, *numbers, *[0] * (ROW - 1 - len(numbers))]


@intrinsic
def _call(typing, table, r, image, part, share, shares):
    """Calls the kernel whose row begins at table[r]."""

    def generate(context, builder, signature, arguments):
        array, r, *numbers = arguments
        i64 = ir.IntType(64)
        start = builder.gep(context.make_array(signature.args[0])(context, builder, array).data, [r])
        kind = ir.FunctionType(ir.VoidType(), [i64.as_pointer(), i64, i64, i64, i64])
        function = builder.inttoptr(builder.load(start), kind.as_pointer())
        builder.call(function, [builder.gep(start, [ir.Constant(i64, 1)]), *numbers])
        return context.get_dummy_value()

    return types.void(table, types.int64, types.int64, types.int64, types.int64, types.int64), generate


@njit(nogil=True, cache=True, error_model="numpy")
def _play(table, first, last, part, share, shares):
    for image in range(first, last):
        for r in range(0, table.size, ROW):
            _call(table, r, image, part, share, shares)


@launched_safely
@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def _run(table, images, chunks, shares):
    for i in prange(chunks * shares):
        part = np.int64(i)  # prange's own index is unsigned, and would turn offsets into floats
        chunk, share = part // shares, part % shares
        _play(table, images * chunk // chunks, images * (chunk + 1) // chunks, part, share, shares)


def run(rows: list[list[int]], images: int, chunks: int, shares: int = 1) -> None:
    """Plays the rows for every image; see the top of this file."""
    if images:
        _run(np.array([number for r in rows for number in r], np.int64), images, chunks, shares)


class _Scratch(threading.local):
    memory = np.empty(0, np.uint8)


_scratch = _Scratch()
LINE = 64  # bytes of a cache line


def scratch(elements: int, dtype) -> np.ndarray:
    """Memory for one call, aligned to cache lines; the next call in this thread gets the same."""
    wanted = elements * np.dtype(dtype).itemsize + LINE
    if _scratch.memory.size < wanted:
        _scratch.memory = np.empty(wanted, np.uint8)
    memory = _scratch.memory
    start = -address_of(memory) % LINE
    return memory[start : start + elements * np.dtype(dtype).itemsize].view(dtype)


def address_of(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def lines(elements: int, dtype) -> int:
    """`elements`, rounded up to whole cache lines."""
    per_line = LINE // np.dtype(dtype).itemsize
    return -(-elements // per_line) * per_line
