"""Our own threads: they start on a program within a microsecond, survive a fork, and never change a result.

numba's parallel loops take 2 us to start (100 and more where OpenMP is missing) and end the process that
uses them after a fork. A network at one image runs in 20. So here is what is left of a thread pool when
programs (program.py) are all it runs:

* The work of a phase is cut into parts. Each thread *takes* its own first, the same in every call: what they read and
  overwrite then lies in its core's cache. Who has none left takes others'. Taking adds 1 to the owner's counter, if it
  still is what it was before: so none is taken twice, and none is left.
* Nobody waits for a worker, only for parts that were taken: a phase is over when all its parts are done. So a
  worker that wakes late, or never, costs speed and nothing else.
* Between programs a worker spins for a moment, for the next one comes soon; then it sleeps on a lock. It never needs the
  interpreter again, which has one lock for all threads.

If two Python threads run programs at once, the first has the workers and the other plays alone.

Next on the walk: program.py.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from functools import cache

import numpy as np

from tinynet.kernels.cpu.objects import numba_setting
from tinynet.kernels.cpu.rows import A_LINE, ASLEEP, BED, WORKER
from tinynet.kernels.cpu.target import LINE

PATIENCE = 15_000  # looks at the board before a worker sleeps: longer, and it stands in the way of other libraries' threads

_MOST = 256


class _Pool:
    """The workers of this process."""

    def __init__(self):
        memory = np.zeros(WORKER * (1 + _MOST) + A_LINE, np.int64)
        self.board = memory[-memory.__array_interface__["data"][0] % LINE // memory.itemsize :]
        self.address = self.board.__array_interface__["data"][0]
        self.growing = threading.Lock()
        self.workers = 0

    def grow(self, workers: int, serve) -> None:
        """Starts threads, and waits until they have begun."""
        with self.growing:
            while self.workers < workers:
                slot = self.workers + 1
                worker = self.board[WORKER * slot :]
                worker[BED], worker[ASLEEP] = _bed(), 1
                try:
                    threading.Thread(target=_work, args=(self, slot, serve), daemon=True, name=f"tinynet-{slot}").start()
                    while worker[ASLEEP]:
                        time.sleep(0)
                finally:
                    self.workers = slot  # one that can't be started is an error once, and then done without


def _work(pool: _Pool, slot: int, serve) -> None:
    serve(pool.address, slot, PATIENCE)  # and so the board lives as long as this


def _bed() -> int:
    """The address of a lock that is taken: who wants it sleeps until it is released."""
    api = ctypes.pythonapi
    api.PyThread_allocate_lock.restype = ctypes.c_void_p
    lock = api.PyThread_allocate_lock()
    if lock is None:
        raise MemoryError("threads: there is no memory for another lock")
    api.PyThread_acquire_lock(ctypes.c_void_p(lock), 1)
    return lock


_pool = _Pool()


def pool() -> _Pool:
    return _pool


def _forget() -> None:
    """A child process has none of its parent's threads."""
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


_ask_numba = None  # numba's own function, when numba has been imported


def count() -> int:
    """How many threads programs run on: numba's setting (NUMBA_NUM_THREADS, numba.set_num_threads)."""
    global _ask_numba
    if _ask_numba is None:
        parallel = sys.modules.get("numba.np.ufunc.parallel")
        if parallel is None:
            return _count_at_start()
        parallel.get_num_threads()  # makes sure, at every call, that numba's own threads have started: what it asks then is quicker
        _ask_numba = getattr(parallel, "_get_num_threads", parallel.get_num_threads)
    found = _ask_numba()
    return found if found < _MOST else _MOST


@cache
def _count_at_start() -> int:
    """What numba would say if it were imported now."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(int(numba_setting("NUM_THREADS") or there), _MOST)
