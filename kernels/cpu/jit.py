"""How kernels are compiled: numba's settings, the announcement, and what arrays look like to a kernel.

fastmath is off but for `contract`: a multiplication and an addition may become one FMA, which
only removes a rounding. Sums that a loop carries in one scalar (dot products) also allow
`reassoc`, so that they can run in vector lanes; the oracle's bound holds for any order.
"""

from __future__ import annotations

import threading
from functools import cache, wraps

import numba
import numpy as np
from numba.core import event

from tinynet.kernels.kept import announced

_SETTINGS = dict(nogil=True, error_model="numpy")

# A loop body that other kernels call, compiled into them. numba keeps none of these on disk: it would ask whether their own file has
# changed, not whether what they are made of has (the length of a table's row, an operation of simd.py). Who calls them is kept.
# A function that makes one, of a tile's constants, is cached: so it is compiled once for all kernels that call it.
# _nrt: they own no memory, so no references are counted. numba would look for some in every register of every tile.
_WITHIN = dict(no_cpython_wrapper=True, no_cfunc_wrapper=True, _nrt=False, **_SETTINGS)
inline = numba.njit(fastmath={"contract"}, **_WITHIN)
# The same, but a call in machine code, too: then registers are shared out for it alone. Where a kernel has much else to remember, LLVM
# keeps the addresses of a large tile in memory otherwise, and reads each of them before what lies there.
APART = "_apart"  # by which the compiler knows one


def apart(function):
    function.__qualname__ += APART
    return inline(function)


# As in a kernel itself nothing becomes an FMA but what says so: for what must have the same bits wherever it is computed. (Said
# outright: left out, fastmath would be that of whoever calls it first.)
inline_as_written = numba.njit(fastmath=False, **_WITHIN)


@cache
def _one_at_a_time() -> threading.Lock | None:
    """numba's workqueue, which it takes where there is no OpenMP, ends the process when two Python threads launch at once:
    there, one waits for the other."""
    numba.get_num_threads()  # loads the layer
    return threading.Lock() if numba.threading_layer() == "workqueue" else None


def launched_safely(kernel):
    """The kernel, which two Python threads may launch at once."""
    lock = _one_at_a_time()
    if lock is None:
        return kernel

    @wraps(kernel)
    def launch(*arguments):
        with lock:
            return kernel(*arguments)

    return launch


def parallel(function):
    """A kernel: its prange loop runs on all threads."""
    return launched_safely(numba.njit(parallel=True, cache=True, fastmath={"contract"}, **_SETTINGS)(function))


def parallel_dot(function):
    """A kernel with sums that a loop carries in one scalar."""
    return launched_safely(numba.njit(parallel=True, cache=True, fastmath={"contract", "reassoc", "nsz"}, **_SETTINGS)(function))


def readable(a: np.ndarray) -> np.ndarray:
    """The array as every kernel gets its inputs: contiguous and read-only.

    numba compiles anew for each kind of array, and refuses to compile a kernel that writes
    to a read-only one: so there is one compilation a dtype, and the contract's "inputs are
    never written" is checked by the compiler.
    """
    view = np.ascontiguousarray(a).view()
    view.flags.writeable = False
    return view


def chunks(count: int, least: int) -> int:
    """Into how many parts to cut `count` equal pieces of work, each at least `least` long. Parts have sums of their own, so
    their number, and with it the order of every sum, may not depend on the number of threads."""
    return max(1, min(32, count // max(least, 1)))


class _Listener(event.Listener):
    """Announces what numba compiles of ours."""

    def __init__(self):
        self.open: list = []

    def notify(self, happened):
        # every compilation in the process comes by here: other people's functions may have no module at all
        if (happened.data["dispatcher"].py_func.__module__ or "").startswith("tinynet.kernels"):
            super().notify(happened)

    def on_start(self, happened):
        self.open.append(announced(_title(happened)))
        self.open[-1].__enter__()

    def on_end(self, happened):
        self.open.pop().__exit__(None, None, None)


def _title(happened) -> str:
    function = happened.data["dispatcher"].py_func
    kinds = {str(a.dtype) for a in happened.data["args"] if hasattr(a, "dtype")} & {"float32", "float64"}
    return f"{function.__module__.rpartition('.')[2]}.{function.__name__} for the CPU" + "".join(f", {k}" for k in sorted(kinds))


event.register("numba:compile", _Listener())
