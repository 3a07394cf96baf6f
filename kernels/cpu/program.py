"""Programs: tables of rows, each the address of a compiled kernel and the numbers it is called with.

Compiling takes a second, so nothing is compiled for a shape: a kernel is compiled for what must be
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

import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from tinynet.kernels.cpu import objects, threads
from tinynet.kernels.cpu.rows import A_LINE, HEAD, HEADS, MOST_ARRAYS, PHASES, ROW, SHARED, Factory, named, row  # noqa: F401  (named: beside row, for those who make rows)
from tinynet.kernels.cpu.target import LINE, lines  # noqa: F401  (lines: as above)


made: dict[int, tuple] = {}  # address of a kernel -> (factory, constants): what it is, for those who time a program


@cache
def compiled(factory, *constants) -> int:
    """The address of the kernel that factory(*constants) makes; compiled once, then from disk (objects.py).

    constants: ints and numpy's float types. With the factory's name and its file they say all that the kernel is made of.
    """
    source = factory.source if isinstance(factory, Factory) else Path(factory.__code__.co_filename)
    name = factory.name if isinstance(factory, Factory) else factory.__name__
    words = [f"{source.stem}.{name}", *(c.__name__ if isinstance(c, type) else str(c) for c in constants)]

    def make(symbol: str):
        from tinynet.kernels.cpu import compiler

        return compiler.kernel(factory(*constants), symbol)

    address = objects.address("_".join(words), source, make)
    made[address] = factory, constants
    return address


# --- playing one ----------------------------------------------------------------------------------------


@cache
def _players() -> SimpleNamespace:
    """The functions of players.py by name."""
    playing, brief = dict(alone=1, lead=3, serve=3, aim_alone=8), dict(aim=8, point=2, memory_of=1)
    return SimpleNamespace(**{name: _player(name, count, name in brief) for name, count in {**playing, **brief}.items()})


def _player(name: str, count: int, brief: bool):
    """A function of players.py with so many arguments."""

    def make(symbol: str):
        from tinynet.kernels.cpu import compiler, players

        return compiler.for_python(getattr(players, name), count, brief, symbol)

    return objects.python_function(name, objects.address(f"players.{name}", objects.FOLDER / "players.py", make))


def play(table: int, slots: int) -> None:
    """Plays the table at an address on at most `slots` threads; its kernels see slots below that number."""
    if slots == 1:
        _players().alone(table)
        return
    pool = threads.pool()
    if pool.workers < slots - 1:
        pool.grow(slots - 1, _players().serve)
    _players().lead(pool.address, table, slots)


def table_of(phases: list[tuple[list[list[int]], int, int, int]], slots: int | None = None) -> np.ndarray:
    """The table of phases: (rows, images, chunks, shares) each. slots: how many threads have parts of their own; all, if left out."""
    first = HEADS + HEAD * len(phases)
    marks = first + ROW * sum(len(rows) for rows, *_ in phases)
    heads, numbers, shared = [], [], 0
    for p, (rows, images, chunks, shares) in enumerate(phases):
        owners = min(chunks * shares, slots or threads.count())
        heads += [first, len(rows), images, chunks, shares, owners, marks, 0]
        numbers += [number for r in rows for number in r]
        first, marks = first + ROW * len(rows), marks + A_LINE * (1 + owners)
        shared = p + 1 if chunks * shares > 1 else shared
    table = _lined(marks)
    table[PHASES], table[SHARED] = len(phases), shared
    table[HEADS : HEADS + len(heads) + len(numbers)] = heads + numbers
    return table


def copy_of(table: np.ndarray) -> np.ndarray:
    """A table of its own for another call, which begins with a cache line as every table does."""
    copy = _lined(table.size)
    copy[:] = table
    return copy


def _lined(count: int) -> np.ndarray:
    """So many numbers, 0, from the start of a cache line on."""
    memory = np.zeros(count + A_LINE, np.int64)
    start = -address_of(memory) % LINE // memory.itemsize
    return memory[start : start + count]


def run(rows: list[list[int]], images: int, chunks: int, shares: int = 1) -> None:
    """A program of one phase; see the top of this file."""
    if images:
        table = table_of([(rows, images, chunks, shares)])
        play(address_of(table), min(threads.count(), chunks * shares))


WORTH_THREADS = 200_000  # operations: two microseconds of one thread
STAND_IN = 1 << 44  # bytes: i * STAND_IN stands for the address of a call's i-th array, until the array is there
_PAST = STAND_IN // 2
ARRAYS, SCRATCH = tuple(i * STAND_IN for i in range(1, MOST_ARRAYS + 1)), (MOST_ARRAYS + 1) * STAND_IN
KEPT = 256  # prepared calls of each kind of kernel


def pieces(count: int, slots: int) -> int:
    """The shares of a pass over so many numbers, each of them by itself: a few for each thread, none of less than 64 KiB of float32."""
    return max(1, min(count >> 14, 16 * slots))


class Prepared:
    """A program for arrays of one geometry, which need not be there when it is made: only their addresses are filled in at a call.

    phases: as in `table_of`, with stand-ins for addresses: ARRAYS, and SCRATCH for `elements` numbers of scratch memory.
    work: operations in all; a call of few is played by one thread, for the others would come too late.
    """

    def __init__(self, phases: list, elements: int, dtype, work: float):
        self.bytes = elements * np.dtype(dtype).itemsize
        self.slots = min(threads.count(), max(chunks * shares for _, _, chunks, shares in phases)) if work >= WORTH_THREADS else 1
        self.template = table_of(phases)
        first = HEADS + HEAD * len(phases)
        places = np.arange(first, self.template.size)
        numbers = self.template[first:]
        there = (numbers > _PAST) & ((places - first) % ROW != 0)  # a row begins with its kernel's address, which is real
        which = (numbers[there] + _PAST) // STAND_IN - 1
        self.patch = np.concatenate([[there.sum()], np.stack([places[there], which, numbers[there] - (which + 1) * STAND_IN], 1).ravel()])
        self.patch_address = address_of(self.patch)
        self.free: list[tuple[np.ndarray, int]] = []  # tables that no call is using

    def __call__(self, a: np.ndarray, b: np.ndarray | None = None, c: np.ndarray | None = None, d: np.ndarray | None = None, e: np.ndarray | None = None) -> None:
        """The arrays in the order of their stand-ins, the first first. They must be contiguous, or as they were prepared for."""
        players, memory = _players(), scratch_address(self.bytes) if self.bytes else 0
        table, address = self.free.pop() if self.free else self._copy()
        ids = id(a), 0 if b is None else id(b), 0 if c is None else id(c), 0 if d is None else id(d), 0 if e is None else id(e)
        if self.slots == 1:
            players.aim_alone(address, self.patch_address, *ids, memory)
        else:
            players.aim(address, self.patch_address, *ids, memory)
            play(address, self.slots)
        self.free.append((table, address))

    def _copy(self) -> tuple[np.ndarray, int]:
        table = copy_of(self.template)
        return table, address_of(table)


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


def address_of(array: np.ndarray) -> int:
    """Where the array's memory begins."""
    return _players().memory_of(id(array))


def pointing() -> Callable[[int, int], int]:
    """point(aims, id of an array): makes tables look at that array, which must live as long as they are used. aims: the address of a
    list as `aimed` makes it."""
    return _players().point


def aimed(places: list[tuple[np.ndarray, int, int]]) -> np.ndarray:
    """Where `point` writes: (table, place in it, bytes from an array's start) of every number that is an address in one array."""
    return np.array([len(places), *(n for table, place, offset in places for n in (address_of(table) + 8 * place, offset))], np.int64)
