"""Our own threads: they start on a program within a microsecond, survive a fork, and never change a result.

numba's parallel loops take 2 us to start (100 and more where OpenMP is missing) and end the process that
uses them after a fork. A network at one image runs in 20. So here is what is left of a thread pool when
programs (program.py) are all it runs:

* The work of a phase is cut into parts. Threads *take* parts, one after the other, by adding 1 to a counter;
  what is taken twice, or never, can't be.
* Nobody waits for a thread, only for parts that were taken: a phase is over when all its parts are done. So a
  thread that wakes late, or never, costs speed and nothing else.
* Between programs a worker spins for a moment, for the next one comes soon; then it sleeps on a lock.

If two Python threads run programs at once, the first has the workers and the other plays alone.

Next on the walk: program.py.
"""

from __future__ import annotations

import os
import threading

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

PATIENCE = 60_000  # looks at the board, of some nanoseconds each, before a worker sleeps: longer, and it stands in the way of other libraries' threads

# --- atomic steps on memory ---------------------------------------------------------------------------


def _place(builder, address, index):
    return builder.gep(builder.inttoptr(address, ir.IntType(64).as_pointer()), [index])


def _atomic(operation: str, text: str):
    def typed(typing, address, index, value):
        def generate(context, builder, signature, arguments):
            address, index, value = arguments
            return builder.atomic_rmw(operation, _place(builder, address, index), value, "seq_cst")

        return types.int64(types.int64, types.int64, types.int64), generate

    typed.__name__, typed.__doc__ = f"atomic_{operation}", text
    return intrinsic(typed)


atomic_add = _atomic("add", "Adds to the int64 at address[index]; what was there before.")
atomic_swap = _atomic("xchg", "Puts a value at address[index]; what was there before.")


@intrinsic
def atomic_get(typing, address, index):
    """The int64 at address[index], as the latest writer left it."""

    def generate(context, builder, signature, arguments):
        return builder.load_atomic(_place(builder, *arguments), "seq_cst", 8)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def peek(typing, address, index):
    """The int64 at address[index]."""

    def generate(context, builder, signature, arguments):
        return builder.load(_place(builder, *arguments))

    return types.int64(types.int64, types.int64), generate


@intrinsic
def poke(typing, address, index, value):
    """address[index] = value"""

    def generate(context, builder, signature, arguments):
        builder.store(arguments[2], _place(builder, arguments[0], arguments[1]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


# Gives the processor to another thread: the one that we wait for may have none.
give_way = types.ExternalFunction("SwitchToThread" if os.name == "nt" else "sched_yield", types.int32())

# --- the board: what workers and the caller tell each other -------------------------------------------------

# each on a cache line of its own
GENERATION, OPEN, INSIDE, JOB, ASLEEP = 0, 8, 16, 24, 32  # ASLEEP: one line a worker from here on

_MOST = 256


@numba.njit(nogil=True, cache=True)
def _rouse(board, slot):
    """Whether the worker sleeps, or is about to: then the one who asks must release its lock."""
    return atomic_swap(board, ASLEEP + 8 * slot, 0)


@numba.njit(nogil=True)
def drowsy(board, slot, seen):
    """A worker has waited long enough: whether it must now sleep on its lock. A program may have come that moment: then
    either it takes its own name off again, or the caller already has, and will release the lock."""
    atomic_swap(board, ASLEEP + 8 * slot, 1)
    return atomic_get(board, GENERATION) == seen or atomic_swap(board, ASLEEP + 8 * slot, 0) == 0


class _Pool:
    """The workers of this process."""

    def __init__(self):
        self.board = np.zeros(ASLEEP + 8 * _MOST, np.int64)
        self.address = self.board.__array_interface__["data"][0]
        self.mutex = threading.Lock()  # who holds it has the workers
        self.beds: list[threading.Lock] = []  # a worker sleeps until its lock is released

    def grow(self, workers: int, serve) -> None:
        while len(self.beds) < workers:
            bed = threading.Lock()
            bed.acquire()
            self.beds.append(bed)
            threading.Thread(target=_work, args=(self, len(self.beds), bed, serve), daemon=True, name=f"tinynet-{len(self.beds)}").start()

    def wake(self, workers: int) -> None:
        for slot, bed in enumerate(self.beds[:workers], 1):
            if _rouse(self.address, slot):
                bed.release()


def _work(pool: _Pool, slot: int, bed: threading.Lock, serve) -> None:
    seen = 0
    while True:
        seen = serve(pool.address, slot, seen, PATIENCE)
        bed.acquire()


_pool = _Pool()


def pool() -> _Pool:
    return _pool


def _forget() -> None:
    """A child process has none of its parent's threads."""
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


numba.get_num_threads()  # loads numba's threads, and with them what answers below
_get_num_threads = types.ExternalFunction("get_num_threads", types.int32())


@numba.njit(cache=True)
def count():
    """How many threads programs run on: numba's setting (NUMBA_NUM_THREADS, numba.set_num_threads)."""
    return min(_get_num_threads(), _MOST)  # 0.1 us; numba.get_num_threads() takes 1.1
