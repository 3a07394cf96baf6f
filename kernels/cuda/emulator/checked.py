"""Checked mode: `with checked() as found:` watches every launch inside, on numpy arrays, in this thread.

    with checked(seed=1) as found:
        kernels("cuda-emulator").matmul(a, b)
    found.faults      a sentence each; the `with` itself raises KernelFault if there are any
    found.launches    what each launch asked of memory (Counted)

Threads and blocks run in a random order of that seed. Arrays are copied into memory with nothing beside them, so that
one element too far is noticed, and copied back. What is wrong is found by checker.cpp.
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import numpy as np

from tinynet.kernels.cuda.emulator.faults import KernelFault, source_line, told

GAP = 1 << 16  # bytes of nobody's memory around each array
_watching: ContextVar["Watch | None"] = ContextVar("tinynet_watching", default=None)


def watching() -> "Watch | None":
    return _watching.get()


@dataclass(frozen=True)
class Place:
    """One load or store of a kernel. By warps: requests; lanes that took part in them; transactions (global memory: sectors
    of 32 bytes, shared memory: passes over its banks), and the least that could have done."""

    line: str
    memory: str  # "global" or "shared"
    writes: bool
    bytes: int  # of one lane
    requests: int
    lanes: int
    transactions: int
    least: int


@dataclass(frozen=True)
class Counted:
    """What one launch asked of memory. It is structure, not time."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    barriers: int  # in all blocks together
    places: tuple[Place, ...]

    def total(self, memory: str, what: str) -> int:
        return sum(getattr(place, what) for place in self.places if place.memory == memory)

    @property
    def bytes_moved(self) -> int:
        """Between global memory and the multiprocessors, without caches: sectors times 32."""
        return 32 * self.total("global", "transactions")


def _root(a: np.ndarray) -> np.ndarray:
    """The array whose memory this one is a part of."""
    return _root(a.base) if isinstance(a.base, np.ndarray) else a


@dataclass
class Watch:
    seed: int
    faults: list[str] = field(default_factory=list)
    launches: list[Counted] = field(default_factory=list)

    def next_order(self) -> int:
        return self.seed + len(self.launches)

    @contextmanager
    def guarded(self, arguments):
        """Copies of the arrays' memory: {place of the argument: its address}, [(start, bytes)]. Copied back at the end."""
        offsets: dict[int, int] = {}
        extents: list[list] = []  # [low, high, [places]]: what overlaps stays together
        for place, value in enumerate(arguments):
            if isinstance(value, np.ndarray):
                low, high = np.lib.array_utils.byte_bounds(value)
                offsets[place] = low - _root(value).ctypes.data
                together = [e for e in extents if low < e[1] and e[0] < high]
                merged = [min([low, *(e[0] for e in together)]), max([high, *(e[1] for e in together)]), [place, *(p for e in together for p in e[2])]]
                extents = [e for e in extents if e not in together] + [merged]
        starts, memory, back = {}, [], []
        for low, high, places in sorted(extents, key=lambda e: min(e[2])):
            room = np.empty(high - low + 2 * GAP, np.uint8)
            start = room.ctypes.data + GAP
            start += (offsets[min(places)] - start) % 256  # whole arrays start at multiples of 256 bytes, as on a GPU
            ctypes.memmove(start, low, high - low)
            memory.append((start, high - low))
            starts.update((place, start + arguments[place].ctypes.data - low) for place in places)
            back.append((low, start, high - low, room))
        yield starts, memory
        for low, start, size, _ in back:
            ctypes.memmove(low, start, size)

    def launched(self, kernel, grid, block, barriers, sites, faults, library: str) -> None:
        places = tuple(
            Place(source_line(library, s.at), ("global", "shared")[s.shared], bool(s.writes), s.size, s.requests, s.lanes, s.transactions, s.least) for s in sites
        )
        self.launches.append(Counted(kernel, grid, block, barriers, places))
        self.faults += told(faults, kernel, library)


@contextmanager
def checked(seed: int = 0, raises: bool = True):
    """Watches all launches inside. Raises KernelFault at its end where there were faults, unless told not to."""
    watch = Watch(seed)
    token = _watching.set(watch)
    try:
        yield watch
    finally:
        _watching.reset(token)
    if raises and watch.faults:
        raise KernelFault(watch.faults)
