"""What the real compiler makes of the .cu files, without a GPU: registers, shared memory, spills, and the occupancy they allow.

NVRTC compiles for a given GPU and says what each kernel needs. A multiprocessor has so many registers, so much shared memory
and so many places for threads and blocks; what runs out first decides how many blocks it holds at once. Occupancy is the
share of its places for threads that are taken then: how much waiting there is to hide behind, not how fast it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from tinynet.kernels.cuda.gpu import OPTIONS
from tinynet.kernels.cuda.launch import Source


@dataclass(frozen=True)
class Multiprocessor:
    """CUDA C++ Programming Guide, "Technical specifications per compute capability"."""

    threads: int
    blocks: int
    shared: int  # bytes for all blocks together
    reserved: int  # bytes of a block that the system takes
    registers: int = 65536


# The GPUs that we compile for: Turing, Ampere (A100), Ampere (RTX 30), Hopper, Blackwell
GPUS = {
    75: Multiprocessor(1024, 16, 64 << 10, 0),
    80: Multiprocessor(2048, 32, 164 << 10, 1024),
    86: Multiprocessor(1536, 16, 100 << 10, 1024),
    90: Multiprocessor(2048, 32, 228 << 10, 1024),
    100: Multiprocessor(2048, 32, 228 << 10, 1024),
}


@dataclass(frozen=True)
class Needs:
    """Of one kernel on one GPU. registers: of a thread; shared, stack: bytes; spills: bytes stored and loaded because
    registers ran out."""

    kernel: str
    gpu: int
    registers: int
    shared: int
    stack: int
    spills: int

    def blocks(self, threads: int, dynamic: int = 0) -> int:
        """How many blocks of so many threads, and bytes of dynamic shared memory, a multiprocessor holds at once."""
        has = GPUS[self.gpu]
        warps = -(-threads // 32)
        a_warp = -(-self.registers * 32 // 256) * 256  # registers are given in groups of 256, places to warps in groups of 4
        shared = -(-(self.shared + dynamic + has.reserved) // 128) * 128
        return min(has.blocks, has.threads // (32 * warps), has.registers // a_warp // 4 * 4 // warps, has.shared // shared if shared else has.blocks)

    def occupancy(self, threads: int, dynamic: int = 0) -> float:
        return self.blocks(threads, dynamic) * -(-threads // 32) * 32 / GPUS[self.gpu].threads


def reason() -> str | None:
    """Why nothing can be compiled for a GPU here, and what to install; None if it can."""
    try:
        _nvrtc().getVersion()
    except (ImportError, RuntimeError) as error:
        return f"NVRTC can't be loaded ({error}); pip install cupy-cuda12x nvidia-cuda-nvrtc-cu12"
    return None


def _nvrtc():
    from cupy_backends.cuda.libs import nvrtc

    return nvrtc


def version() -> tuple[int, int]:
    return tuple(_nvrtc().getVersion())


def gpus() -> list[int]:
    """Those of GPUS that the installed NVRTC knows."""
    return [gpu for gpu in GPUS if gpu in set(_nvrtc().getSupportedArchs())]


def compiled(source: Source, defines: dict, gpu: int) -> dict[str, Needs]:
    """What each kernel of a .cu file needs on this GPU. Raises RuntimeError with NVRTC's words where it doesn't compile."""
    return {needs.kernel: needs for needs in _compiled(source, tuple(f"-D{key}={value}" for key, value in defines.items()), gpu)}


@cache
def _compiled(source: Source, words: tuple[str, ...], gpu: int) -> list[Needs]:
    nvrtc = _nvrtc()
    program = nvrtc.createProgram(source.code, source.name, (), ())
    try:
        nvrtc.compileProgram(program, (*OPTIONS, f"--gpu-architecture=sm_{gpu}", "--ptxas-options=-v", *words))
        return list(_read(nvrtc.getProgramLog(program), gpu))
    except nvrtc.NVRTCError:
        raise RuntimeError(f"{source.name} does not compile for sm_{gpu}; NVRTC says:\n{nvrtc.getProgramLog(program)}") from None
    finally:
        nvrtc.destroyProgram(program)


_KERNEL = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)", re.S
)


def _read(log: str, gpu: int) -> Iterator[Needs]:
    for name, stack, stores, loads, registers, rest in _KERNEL.findall(log):
        shared = re.search(r"(\d+) bytes smem", rest)
        yield Needs(name, gpu, int(registers), int(shared[1]) if shared else 0, int(stack), int(stores) + int(loads))


def table(chosen: list[int] | None = None) -> str:
    """All kernels on these GPUs, or on all that are known, in Markdown: registers of a thread, and occupancy."""
    from tinynet.kernels.cuda import FAMILIES

    chosen = gpus() if chosen is None else chosen
    lines = ["| | threads | shared memory | " + " | ".join(f"sm_{gpu}" for gpu in chosen) + " |", "|---" * (3 + len(chosen)) + "|"]
    for family in FAMILIES:
        for title, kernel, defines, threads in family.occupancy_rows():
            found = [compiled(Source.read(family.FILE), defines, gpu)[kernel] for gpu in chosen]
            cells = [f"{needs.registers}, {needs.occupancy(threads):.0%}" for needs in found]
            lines.append(f"| {title} | {threads} | {found[0].shared / 1024:.1f} KiB | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
