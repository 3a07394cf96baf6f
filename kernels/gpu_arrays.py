"""Arrays in the memory of GPUs: whose they are, on which GPU they lie, and what is said where its memory runs out.

CuPy computes on one GPU at a time: `Current` chooses it. `Graph` is a CUDA graph, for compiled functions.
"""

from __future__ import annotations

import re
from contextlib import suppress

import numpy as np


def name_of(gpu: int) -> str:
    """The device that this GPU is."""
    return f"cuda:{gpu}" if gpu else "cuda"


def on_gpu(values) -> bool:
    """Whether these are an array in a GPU's memory: CuPy's, or that of any library that speaks DLPack or CUDA's array interface."""
    if isinstance(values, np.ndarray):
        return False
    speaks = getattr(values, "__dlpack_device__", None)
    return speaks()[0] == 2 if speaks else hasattr(values, "__cuda_array_interface__")  # 2: CUDA, in DLPack


def shared(array):
    """A GPU's array as CuPy's, of the same memory: torch's, say."""
    import cupy

    if isinstance(array, cupy.ndarray):
        return array
    return cupy.from_dlpack(array) if hasattr(array, "__dlpack__") else cupy.asarray(array)


class Current:
    """`with Current(1, cupy):` makes GPU 1 the one that CuPy computes on. Where its memory runs out, MemoryError says what was asked
    for, and what is free."""

    def __init__(self, number: int, cupy):
        self.number, self.cupy, self.device = number, cupy, cupy.cuda.Device(number)

    def __enter__(self):
        self.device.__enter__()
        return self.cupy

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is not None and issubclass(kind, self.cupy.cuda.memory.OutOfMemoryError):
                raise MemoryError(self._short(error)) from None
        finally:
            self.device.__exit__(kind, error, trace)

    def _short(self, error) -> str:
        asked = re.search(r"[\d,]+ (?=bytes)", str(error))  # the first number that CuPy names
        (free, total), pool = self.cupy.cuda.runtime.memGetInfo(), self.cupy.get_default_memory_pool()
        return (
            f"GPU {self.number} is out of memory: {_size(int(asked[0].replace(',', '')))} were asked for; of its {_size(total)}, {_size(free)} are free, and "
            f"{_size(pool.used_bytes())} hold this process's arrays; use smaller batches, or let go of tensors that are not needed, or end what else runs on this GPU"
        )


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


class Graph:
    """What `work()` launches, written down by CUDA instead of run; `launch` runs all of it, on the current stream.

    Its arrays come from a pool of its own, which nobody else gets memory from: what a launch writes, it writes there again.
    """

    def __init__(self, cupy, work):
        self.pool = cupy.cuda.MemoryPool()
        stream = cupy.cuda.Stream(non_blocking=True)
        with cupy.cuda.using_allocator(self.pool.malloc), stream:
            stream.begin_capture()
            try:
                work()
            except BaseException:
                with suppress(cupy.cuda.runtime.CUDARuntimeError):  # that the capture is broken: what broke it is raised
                    stream.end_capture()
                raise
            self.graph = stream.end_capture()

    def launch(self) -> None:
        self.graph.launch()
