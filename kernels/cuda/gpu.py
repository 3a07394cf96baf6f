"""The GPU's side of launch.py: NVRTC compiles through CuPy, which keeps what it compiled on disk.

A launch goes to CuPy's current stream of the arrays' device, and returns before it has run: nothing here waits for the
GPU or copies.

Next on the walk: emulator/run.py, the same without a GPU.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from importlib.util import find_spec

from tinynet.kernels.cuda.launch import Source, sizes

OPTIONS = ("--std=c++17",)
STATIC_LIMIT = 48 << 10  # bytes of shared memory that a kernel gets without asking


@cache
def driver() -> tuple[int, int, int] | str:
    """The newest CUDA that the driver runs, and the number of its GPUs: (12, 4, 1); or why there is no GPU to be used."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "no driver of NVIDIA's is installed (libcuda.so.1 is missing)"
    version, count = ctypes.c_int(), ctypes.c_int()
    if status := cuda.cuInit(0) or cuda.cuDriverGetVersion(ctypes.byref(version)) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return f"NVIDIA's driver finds no GPU that it can use (cuInit: error {status})"
    return (version.value // 1000, version.value % 1000 // 10, count.value) if count.value else "NVIDIA's driver finds no GPU"


def count() -> int:
    """GPUs that the driver finds."""
    found = driver()
    return 0 if isinstance(found, str) else found[2]


def reason(number: int = 0) -> str | None:
    """Why no kernel can run on this GPU, and what to install; None if it can."""
    found = driver()
    if isinstance(found, str):
        return f"{found}; install a GPU and its driver, or use device 'cuda-emulator', which runs the same kernels on the CPU"
    if number >= found[2]:
        return f"NVIDIA's driver finds {found[2]} GPU{'s' if found[2] > 1 else ''}: {', '.join(repr(f'cuda:{i}' if i else 'cuda') for i in range(found[2]))}"
    if find_spec("cupy") is not None:
        return None
    if found[0] < 12:
        return f"CuPy is not installed, and the driver is too old for it (CUDA {found[0]}.{found[1]}); install a driver for CUDA 12 or later, then pip install cupy-cuda12x"
    return f"CuPy is not installed; the driver runs CUDA {found[0]}.{found[1]}, so pip install cupy-cuda{min(found[0], 13)}x"


@cache
def _function(source: Source, words: tuple[str, ...], name: str, device: int):
    """The kernel on one device, which must be the current one."""
    import cupy

    module = cupy.RawModule(code=source.code, options=OPTIONS + words, backend="nvrtc")
    try:
        return module.get_function(name)
    except cupy.cuda.compiler.CompileException as error:
        raise RuntimeError(f"{source.name} does not compile for this GPU: {error}") from None


def kernel(like, source: Source, words: tuple[str, ...], name: str):
    def launch(grid, block, arguments, shared: int = 0) -> None:
        blocks, threads = sizes(name, grid, block)
        with like.device:
            function = _function(source, words, name, like.device.id)
            if shared > STATIC_LIMIT:
                function.max_dynamic_shared_size_bytes = shared
            function(blocks, threads, arguments, shared_mem=shared)

    return launch
