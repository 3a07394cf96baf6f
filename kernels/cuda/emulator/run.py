"""Launches on the emulator: numpy arrays in, a library's kernel called, and what went wrong in plain words.

Next on the walk: emulator.cpp, which runs it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from ctypes import POINTER, Structure, byref, c_char_p, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from math import prod

import numpy as np

from tinynet.kernels.cuda.emulator import build, checked
from tinynet.kernels.cuda.emulator.faults import Fault, KernelFault, told
from tinynet.kernels.cuda.launch import Source, sizes

FAULTS, SITES = 16, 256  # that one launch reports


class Array(Structure):
    _fields_ = [("start", c_uint64), ("bytes", c_uint64)]


class Site(Structure):
    """emulator.h, Site: one load or store in the code, and what a launch asked of it."""

    _fields_ = [("at", c_uint64), ("shared", c_int32), ("writes", c_int32), ("size", c_int32), ("unused", c_int32),
                ("requests", c_int64), ("lanes", c_int64), ("transactions", c_int64), ("least", c_int64)]  # fmt: skip


class Launch(Structure):
    """emulator.h, Launch."""

    _fields_ = [
        ("blocks", c_uint32 * 3), ("threads", c_uint32 * 3), ("shared", c_uint64), ("workers", c_int32), ("order", c_int32),
        ("arrays", POINTER(Array)), ("array_count", c_int32), ("fault_room", c_int32), ("fault_count", c_int32), ("site_room", c_int32),
        ("site_count", c_int32), ("unused", c_int32), ("faults", POINTER(Fault)), ("sites", POINTER(Site)), ("barriers", c_int64), ("block_count", c_int64),
    ]  # fmt: skip


class Kernel(Structure):
    """device.h, Kernel."""

    _fields_ = [("name", c_char_p), ("signature", c_char_p), ("call", c_void_p)]


_SCALARS = {
    "i": (ctypes.c_int, "an int", np.int32), "u": (ctypes.c_uint, "an unsigned", np.uint32), "q": (ctypes.c_longlong, "a long long", np.int64),
    "f": (ctypes.c_float, "a float", np.float32), "d": (ctypes.c_double, "a double", np.float64),
}  # fmt: skip
_one_at_a_time = threading.RLock()  # compiles, and runs in checked mode


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def kernel(like: np.ndarray, source: Source, words: tuple[str, ...], name: str):
    """launch.kernel's for numpy arrays."""

    def launch(grid, block, arguments, shared: int = 0) -> None:
        blocks, threads = sizes(name, grid, block)
        if not 0 <= shared <= build.MOST_SHARED:
            raise ValueError(f"{name}: a block has at most {build.MOST_SHARED} bytes of shared memory; got {shared}")
        watch = checked.watching()
        with _one_at_a_time:
            library = build.library(source, words, watch is not None)
        entry = _entry(library, source, name)
        letters = entry.signature.decode()
        if len(arguments) != len(letters):
            raise TypeError(f"{name} takes {len(letters)} arguments; got {len(arguments)}")
        values = [_value(name, place, letter, value) for place, (letter, value) in enumerate(zip(letters, arguments))]
        how = Launch(blocks, threads, shared, 1 if watch else min(_cores(), prod(blocks)), -1)
        if watch is None:
            if faults := told(_run(library, entry, how, values), name, library._name):
                raise KernelFault(faults)
            return
        sites = (Site * SITES)()
        how.sites, how.site_room = sites, SITES
        with _one_at_a_time, watch.guarded(arguments) as (starts, memory):  # the checker is one a library
            values = [ctypes.c_void_p(starts[place]) if place in starts else value for place, value in enumerate(values)]
            how.arrays, how.array_count = (Array * max(1, len(memory)))(*memory), len(memory)
            how.order = watch.next_order()
            faults = _run(library, entry, how, values)
        watch.launched(name, blocks, threads, how.barriers, sites[: how.site_count], faults, library._name)

    return launch


def _entry(library: ctypes.CDLL, source: Source, name: str) -> Kernel:
    table, known = ctypes.cast(library.emulator_kernels, POINTER(Kernel)), []
    while entry := table[len(known)].name:
        if entry.decode() == name:
            return table[len(known)]
        known.append(entry.decode())
    raise LookupError(f'{source.name} has no kernel {name!r}; compiled like this it has {", ".join(known) or "none"} (written extern "C" __global__ void name(...))')


def _value(name: str, place: int, letter: str, value):
    """An argument as C gets it. Raises TypeError or OverflowError for what the kernel can't take."""

    def wrong(wanted: str) -> TypeError:
        return TypeError(f"{name}: argument {place} must be {wanted}; got {type(value).__name__}{f' {value}' if np.isscalar(value) else ''}")

    if letter == "P":
        if value is not None and not isinstance(value, np.ndarray):
            raise wrong("a numpy array or None")
        return ctypes.c_void_p(None if value is None else value.ctypes.data)
    if letter == "?":
        raise TypeError(f"{name}: argument {place} is of a type that can't be given from Python; kernels take pointers, int, unsigned, long long, float and double")
    kind, word, scalar = _SCALARS[letter]
    whole = letter in "iuq" and isinstance(value, (int, np.integer))
    if not whole and not isinstance(value, scalar):
        raise wrong(f"{word}: {'a Python int' if letter in 'iuq' else f'np.{scalar.__name__}'}")
    made = kind(value.item() if isinstance(value, np.generic) else value)
    if whole and made.value != value:
        raise OverflowError(f"{name}: argument {place} is {word}, which can't hold {value}")
    return made


def _run(library: ctypes.CDLL, entry: Kernel, how: Launch, values: list) -> list[Fault]:
    faults = (Fault * FAULTS)()
    how.faults, how.fault_room = faults, FAULTS
    pointers = (c_void_p * max(1, len(values)))(*(ctypes.addressof(v) for v in values))
    if library.emulator_launch(byref(entry), byref(how), pointers) == 2:
        raise MemoryError(f"{entry.name.decode()}: no memory for the stacks of {prod(how.threads)} threads")
    return faults[: how.fault_count]
