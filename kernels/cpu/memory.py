"""The memory of a program, laid out once: buffers of images with halos, and where kernels find them.

A buffer's halo is what its readers ask for while a program is planned (`need`), so addresses and steps are known
only when the plan is complete: until then a place is an `At`, a buffer and a pixel of it.

A buffer that lives within one phase has one image's memory a thread (a slot); one that is read in a later phase has
memory for every image. Both are three numbers to a kernel: address, bytes a slot, bytes an image (tiles.place).
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

import numpy as np

from tinynet.kernels.cpu.program import LINE, address_of, aimed, copy_of, pointing


def lanes_of(channels: int) -> int:
    """Channels as kernels compute them: none are left over at the end of a vector; those that are not there stay 0."""
    return 4 if channels <= 4 else -(-channels // 8) * 8


class Memory:
    """`count` numbers of the program's own, or `copies` times as many, `step` bytes from one to the next."""

    def __init__(self, count: int, what: str, copies: int = 1):
        self.count, self.what, self.copies = count, what, copies
        self.offset = self.step = 0  # bytes, once it is laid out
        self.slot = self.image = 0

    def size(self) -> int:
        return self.count


class Buffer(Memory):
    """One image, or one row of numbers (a pixel of many channels): rows x columns pixels with a halo around them."""

    def __init__(self, channels: int, rows: int = 1, columns: int = 1, planar: bool = False, what: str = ""):
        super().__init__(0, what)
        self.channels, self.rows, self.columns, self.planar = channels, rows, columns, planar
        self.halo = [0, 0, 0, 0]  # top, bottom, left, right
        self.phases: set[int] = set()  # in which it is read or written
        self.kept = False  # for every image, whatever the phases

    def need(self, top: int, bottom: int, left: int, right: int) -> None:
        self.halo[:] = [max(have, wanted) for have, wanted in zip(self.halo, (top, bottom, left, right))]

    @property
    def lanes(self) -> int:
        return self.channels if self.planar else lanes_of(self.channels)

    @property
    def x(self) -> int:
        """From one pixel of a row to the next. (A multiple of 128 numbers would put every pixel into the same few sets of the cache.)"""
        return 1 if self.planar else self.lanes + (16 if self.lanes % 128 == 0 else 0)

    @property
    def y(self) -> int:
        return (self.halo[2] + self.columns + self.halo[3]) * self.x

    @property
    def channel(self) -> int:
        return (self.halo[0] + self.rows + self.halo[1]) * self.y if self.planar else 1

    def size(self) -> int:
        return self.channels * self.channel if self.planar else (self.halo[0] + self.rows + self.halo[1]) * self.y

    def start(self, i: int = 0, j: int = 0) -> int:
        return (self.halo[0] + i) * self.y + (self.halo[2] + j) * self.x


class Rows(Memory):
    """A matrix of `rows` rows of `count` numbers, one after the other; `image` is from row to row."""

    def __init__(self, rows: int, count: int, item: int, what: str):
        super().__init__(rows * count, what)
        self.image = count * item


class Outside:
    """An array of the caller's: value `key` of the graph, or a name of something that is made for every call."""

    def __init__(self, key, image: int = 0):
        self.key, self.image, self.slot = key, image, 0  # image: bytes


@dataclass(frozen=True)
class At:
    """A place: `offset` numbers into a memory, or a pixel of a buffer. As three numbers of a row, or with `alone` one."""

    memory: Memory | Outside
    offset: int = 0
    i: int = 0
    j: int = 0
    alone: bool = False

    def numbers_in(self) -> int:
        return self.offset + (self.memory.start(self.i, self.j) if isinstance(self.memory, Buffer) else 0)


def lay_out(memories: list[Memory], images: int, slots: int, item: int) -> int:
    """Gives every memory its place; the size of the arena in bytes."""
    end = 0

    def aligned(size: int) -> int:
        size = -(-size // LINE) * LINE
        return size + LINE if size % 4096 == 0 and size else size  # equal places of two images must not share a cache set

    for m in memories:
        size = aligned(m.size() * item)
        m.offset = end
        if not isinstance(m, Buffer):
            m.step = size
            end += size * m.copies
        elif m.kept or len(m.phases) > 1:
            m.image, m.slot = size, 0
            end += size * images
    # What a thread needs for one image lies together.
    inside = [m for m in memories if isinstance(m, Buffer) and not m.kept and len(m.phases) <= 1]
    slot = sum(aligned(m.size() * item) for m in inside)
    slot = slot + LINE if slot % 4096 == 0 else slot
    at = end
    for m in inside:
        m.offset, m.slot, m.image = at, slot, 0
        at += aligned(m.size() * item)
    return end + slot * slots + LINE


@dataclass
class Program:
    """A table, and the places in it that hold addresses.

    own: (place, bytes from the arena's start). outside: key -> [(place, bytes from the array's start)].
    """

    table: np.ndarray
    own: list[tuple[int, int]]
    outside: dict


def _pages(size: int) -> np.ndarray:
    """So many zeros that come from the system, and go back to it with whoever has them last: the heap keeps what it gets back (heap.py), and
    writes zeros into all of what was used before."""
    if os.name == "nt":
        return np.zeros(size, np.uint8)
    pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # Python's default would be shared with a forked process
    if size >= 4 << 20 and hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)  # as numpy does
    return np.frombuffer(pages, np.uint8)


class Arena:
    """The memory of a program, and tables whose addresses are in it. Calls that run at once have one each."""

    def __init__(self, size: int, programs: list[Program]):
        memory = _pages(size + LINE)
        self.memory = memory[-address_of(memory) % LINE :]
        self.base = address_of(self.memory)
        self.tables: list[np.ndarray] = []
        self.addresses: list[int] = []
        self.outside: dict = {}  # key -> [(table, place, offset)]
        self.lists: dict[object, np.ndarray] = {}  # key -> these, for `point`; made when first needed
        self.aims: dict[object, int] = {}  # key -> the address of that
        self.point = pointing()
        self.bound: dict = {}  # key -> the array at whose address its kernels look: kept alive by that
        self.version: object = None  # see fused.py
        for program in programs:
            self.add(program)

    def add(self, program: Program) -> int:
        """The program's table in this memory: its address."""
        table = copy_of(program.table)
        address = address_of(table)
        for place, offset in program.own:
            table[place] = self.base + offset
        for key, places in program.outside.items():
            self.outside.setdefault(key, []).extend((table, place, offset) for place, offset in places)
            self.aims.pop(key, None)
            if key in self.bound:
                self.point(self._aims(key), id(self.bound[key]))
        self.tables.append(table)
        self.addresses.append(address)
        return address

    def view(self, m: Memory, dtype, shape: tuple[int, ...]) -> np.ndarray:
        """A memory as an array."""
        count = int(np.prod(shape))
        return self.memory[m.offset : m.offset + count * np.dtype(dtype).itemsize].view(dtype).reshape(shape)

    def bind(self, key, array: np.ndarray) -> None:
        """Makes kernels look at the array for what is outside."""
        if self.bound.get(key) is not array:
            self.bind_new(key, array)

    def bind_new(self, key, array: np.ndarray) -> None:
        """The same, of an array that was not bound before."""
        self.bound[key] = array
        self.point(self.aims.get(key) or self._aims(key), id(array))

    def _aims(self, key) -> int:
        self.lists[key] = aimed(self.outside.get(key, []))
        found = self.aims[key] = address_of(self.lists[key])
        return found
