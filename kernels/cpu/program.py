"""Programs: tables of rows, each the address of a compiled kernel and the numbers it is called with.

Compiling takes half a second, so nothing is compiled for a shape: a kernel is compiled for what must be
constant (the tile that fills the registers, the dtype) and reads everything else, sizes, steps and addresses,
from its row. So a few dozen kernels serve every layer of every network, and are kept on disk.

    kernel(row, image, slot, chunk, share, shares)

A program is a list of phases, and a phase a list of rows that run over images: their range is cut into `chunks`,
and the work on each image into `shares`; each pair is a part that one thread plays from its first row to its
last. `slot` is the thread's own number, and so which scratch memory is its own; sums over images are kept a
chunk. The parts of a phase never wait for each other; a phase begins when all parts of the one before are done.
Chunks and shares are chosen from shapes alone wherever they decide in which order numbers are added: so a program
gives the same bits on any number of threads.
"""

from __future__ import annotations

import hashlib
import threading
from collections import namedtuple
from functools import cache
from pathlib import Path

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.ccallback import CFunc
from numba.core.typing import signature
from numba.extending import intrinsic

from tinynet.kernels.cpu import simd, threads
from tinynet.kernels.cpu.jit import announced
from tinynet.kernels.cpu.threads import ASLEEP, GENERATION, INSIDE, JOB, OPEN, atomic_add, atomic_get, atomic_swap, give_way, peek, poke

ROW = 48  # numbers in a row of a table: the kernel's address, then what it reads
_ABI = signature(types.void, types.CPointer(types.int64), *[types.int64] * 5)
# What numba's cache can't see: what kernels take from other files, and the vectors that were asked for.
_STAMP = hashlib.sha256(b"".join(Path(simd.__file__).with_name(n).read_bytes() for n in ("simd.py", "tiles.py")) + simd.TARGET.name.encode()).hexdigest()[:8]
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


def fields(names: str):
    """The numbers of a kernel's row by name: `F = fields("rows columns ...")`, and in the kernel `get(row, F.rows)`."""
    words = names.split()
    assert len(words) < ROW and len(set(words)) == len(words), f"{len(words)} numbers, or one twice"
    return namedtuple("Fields", words)(*range(len(words)))


def named(address: int, names, numbers: dict) -> list:
    """A row whose numbers are given by name; what is not given is 0.

    `numbers` may give a whole place in memory under one name: a tuple stands for that number and the ones that follow it.
    """
    found = [0] * (ROW - 1)
    for name, value in numbers.items():
        at = getattr(names, name)
        for i, number in enumerate(value if isinstance(value, tuple) else (value,)):
            found[at + i] = number
    return [address, *found]


@intrinsic
def _call(typing, row, image, slot, chunk, share, shares):
    """Calls the kernel whose row begins at the address `row`."""

    def generate(context, builder, signature, arguments):
        row, *numbers = arguments
        i64 = ir.IntType(64)
        start = builder.inttoptr(row, i64.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [i64.as_pointer(), *[i64] * 5])
        function = builder.inttoptr(builder.load(start), kind.as_pointer())
        builder.call(function, [builder.gep(start, [ir.Constant(i64, 1)]), *numbers])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), generate


# --- playing one ----------------------------------------------------------------------------------------
# A table in memory: the number of phases, then HEAD numbers for each, then the rows of all.

HEAD = 8  # of a phase: the address of its first row, rows, images, chunks, shares; how many parts are taken, and done
_FIRST, _ROWS, _IMAGES, _CHUNKS, _SHARES, _TAKEN, _DONE = range(7)
_WAIT = 2_000  # looks before a waiting thread offers its processor to others


@njit(nogil=True)
def _play(table, slot):
    for p in range(peek(table, 0)):
        phase = table + 8 * (1 + p * HEAD)
        first, rows, images = peek(phase, _FIRST), peek(phase, _ROWS), peek(phase, _IMAGES)
        chunks, shares = peek(phase, _CHUNKS), peek(phase, _SHARES)
        while True:
            part = atomic_add(phase, _TAKEN, 1)
            if part >= chunks * shares:
                break
            chunk, share = part // shares, part % shares
            for image in range(images * chunk // chunks, images * (chunk + 1) // chunks):
                for r in range(rows):
                    _call(first + 8 * ROW * r, image, slot, chunk, share, shares)
            atomic_add(phase, _DONE, 1)
        looks = 0
        while atomic_get(phase, _DONE) < chunks * shares:
            looks += 1
            if looks > _WAIT:
                give_way()


@njit(nogil=True, cache=True)
def _serve(board, slot, seen, patience):
    """What a worker does until it has waited for too long; the last program that it saw."""
    looks = 0
    while True:
        generation = atomic_get(board, GENERATION)
        if generation == seen:
            looks += 1
            if looks % 256 == 0:
                give_way()  # other libraries' threads may want this processor
            if looks > patience:
                if threads.drowsy(board, slot, seen):
                    return seen
                looks = 0
            continue
        seen, looks = generation, 0
        # First inside, then look whether it is open: the caller closes first, then looks who is inside.
        atomic_add(board, INSIDE, 1)
        if atomic_get(board, OPEN) > slot:
            _play(peek(board, JOB), slot)
        atomic_add(board, INSIDE, -1)


@njit(nogil=True, cache=True)
def _reset(table):
    for p in range(peek(table, 0)):
        poke(table, 1 + p * HEAD + _TAKEN, 0)
        poke(table, 1 + p * HEAD + _DONE, 0)


@njit(nogil=True, cache=True)
def _alone(table):
    _reset(table)
    _play(table, 0)


@njit(nogil=True, cache=True)
def _offer(board, table, slots):
    """Puts a program on the board. How many workers sleep: they must be woken for it."""
    _reset(table)
    poke(board, JOB, table)
    atomic_swap(board, OPEN, slots)
    atomic_add(board, GENERATION, 1)
    asleep = 0
    for slot in range(1, slots):
        asleep += atomic_get(board, ASLEEP + 8 * slot)
    return asleep


@njit(nogil=True, cache=True)
def _lead(board, table):
    """Plays along until the program is over, and every worker has left it."""
    _play(table, 0)
    atomic_swap(board, OPEN, 0)
    while atomic_get(board, INSIDE) > 0:
        give_way()


def play(table: int, slots: int) -> None:
    """Plays the table at an address on at most `slots` threads; its kernels see slots below that number."""
    pool = threads.pool()
    if slots == 1 or not pool.mutex.acquire(False):
        _alone(table)  # other Python threads have the workers
        return
    try:
        if len(pool.beds) < slots - 1:
            pool.grow(slots - 1, _serve)
        if _offer(pool.address, table, slots):
            pool.wake(slots - 1)
        _lead(pool.address, table)
    finally:
        pool.mutex.release()


def table_of(phases: list[tuple[list[list[int]], int, int, int]]) -> np.ndarray:
    """The table of phases: (rows, images, chunks, shares) each."""
    rows = [r for phase, *_ in phases for r in phase]
    table = np.zeros(1 + HEAD * len(phases) + ROW * len(rows), np.int64)
    table[0] = len(phases)
    first = 1 + HEAD * len(phases)
    table[first:] = [number for r in rows for number in r]
    for p, (phase, images, chunks, shares) in enumerate(phases):
        table[1 + p * HEAD : 1 + p * HEAD + 5] = address_of(table) + 8 * first, len(phase), images, chunks, shares
        first += ROW * len(phase)
    return table


def run(rows: list[list[int]], images: int, chunks: int, shares: int = 1) -> None:
    """A program of one phase; see the top of this file."""
    if images:
        table = table_of([(rows, images, chunks, shares)])
        play(address_of(table), min(threads.count(), chunks * shares))


WORTH_THREADS = 200_000  # operations: two microseconds of one thread
STAND_IN = 1 << 44  # bytes: i * STAND_IN stands for the address of a call's i-th array, until the array is there
_PAST = STAND_IN // 2
MOST_ARRAYS = 4  # of a call; its scratch memory comes after them
ARRAYS, SCRATCH = tuple(i * STAND_IN for i in range(1, MOST_ARRAYS + 1)), (MOST_ARRAYS + 1) * STAND_IN
KEPT = 256  # prepared calls of each kind of kernel

# numpy's array object is a header, as of any object, and then the address of its memory. Reading it there takes 0.1 us;
# array.__array_interface__, which builds a dict, 1.6.
_MEMORY = object.__basicsize__ // 8


@njit(nogil=True, cache=True)
def _aim(table, patch, a, b, c, d, scratch):
    """Fills in where a call's arrays lie. a, b, c, d: ids, and so addresses, of numpy's array objects; patch: how many
    numbers of the table are addresses, then for each its place, which array it means (the last: scratch), and the offset from there."""
    for i in range(peek(patch, 0)):
        place, which, offset = peek(patch, 1 + 3 * i), peek(patch, 2 + 3 * i), peek(patch, 3 + 3 * i)
        array = a if which == 0 else b if which == 1 else c if which == 2 else d
        poke(table, place, offset + (scratch if which == MOST_ARRAYS else peek(array, _MEMORY)))


@njit(nogil=True, cache=True)
def _aim_alone(table, patch, a, b, c, d, scratch):
    _aim(table, patch, a, b, c, d, scratch)
    _alone(table)


class Prepared:
    """A program for arrays of one geometry, which need not be there when it is made: only their addresses are filled in at a call.

    phases: as in `table_of`, with stand-ins for addresses: ARRAYS, and SCRATCH for `elements` numbers of scratch memory.
    work: operations in all; a call of few is played by one thread, for the others would come too late.
    """

    def __init__(self, phases: list, elements: int, dtype, work: float):
        self.bytes = elements * np.dtype(dtype).itemsize
        self.slots = min(threads.count(), max(chunks * shares for _, _, chunks, shares in phases)) if work >= WORTH_THREADS else 1
        self.template, self.phases = table_of(phases), len(phases)
        first = 1 + HEAD * len(phases)
        places = np.arange(first, self.template.size)
        numbers = self.template[first:]
        there = (numbers > _PAST) & ((places - first) % ROW != 0)  # a row begins with its kernel's address, which is real
        which = (numbers[there] + _PAST) // STAND_IN - 1
        self.patch = np.concatenate([[there.sum()], np.stack([places[there], which, numbers[there] - (which + 1) * STAND_IN], 1).ravel()])
        self.patch_address = address_of(self.patch)
        self.free: list[tuple[np.ndarray, int]] = []  # tables that no call is using

    def __call__(self, a: np.ndarray, b: np.ndarray | None = None, c: np.ndarray | None = None, d: np.ndarray | None = None) -> None:
        """The arrays in the order of their stand-ins, the first first. They must be contiguous, or as they were prepared for."""
        memory = scratch_address(self.bytes) if self.bytes else 0
        table, address = self.free.pop() if self.free else self._copy()
        ids = id(a), 0 if b is None else id(b), 0 if c is None else id(c), 0 if d is None else id(d)
        if self.slots == 1:
            _aim_alone(address, self.patch_address, *ids, memory)
        else:
            _aim(address, self.patch_address, *ids, memory)
            play(address, self.slots)
        self.free.append((table, address))

    def _copy(self) -> tuple[np.ndarray, int]:
        table = self.template.copy()
        moved = address_of(table) - address_of(self.template)
        for p in range(self.phases):
            table[1 + p * HEAD + _FIRST] += moved
        return table, address_of(table)


LINE = 64  # bytes of a cache line


class _Scratch(threading.local):
    memory, size, address = np.empty(0, np.uint8), 0, 0  # `size` bytes from `address` on, where a cache line begins


_scratch = _Scratch()


def scratch_address(size: int) -> int:
    """Memory for one call, aligned to cache lines, by its address; the next call in this thread gets the same."""
    mine = _scratch
    if mine.size < size:
        mine.memory, mine.size = np.empty(size + LINE, np.uint8), size
        mine.address = -(-address_of(mine.memory) // LINE) * LINE
    return mine.address


@njit(nogil=True, cache=True)
def _memory_of(array):
    return peek(array, _MEMORY)


def address_of(array: np.ndarray) -> int:
    """Where the array's memory begins."""
    return _memory_of(id(array))


def lines(elements: int, dtype) -> int:
    """`elements`, rounded up to whole cache lines."""
    per_line = LINE // np.dtype(dtype).itemsize
    return -(-elements // per_line) * per_line
