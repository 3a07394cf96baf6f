"""What a kernel did wrong, in words: who, where in the source, and what it should have been."""

from __future__ import annotations

import re
import subprocess
from ctypes import Structure, c_char_p, c_int32, c_int64, c_uint32, c_uint64
from functools import lru_cache
from pathlib import Path


class Three(Structure):
    _fields_ = [("x", c_uint32), ("y", c_uint32), ("z", c_uint32)]

    def __str__(self) -> str:
        return f"({self.x}, {self.y}, {self.z})"


class Fault(Structure):
    """emulator.h, Fault."""

    _fields_ = [
        ("kind", c_int32), ("detail", c_int32), ("block", Three), ("thread", Three), ("other_block", Three), ("other_thread", Three),
        ("at", c_uint64), ("other_at", c_uint64), ("array", c_int32), ("size", c_int32), ("offset", c_int64), ("file", c_char_p), ("line", c_int32), ("times", c_int32),
    ]  # fmt: skip


KINDS = ("race", "out of bounds", "index", "never written", "barrier missed", "barriers differ", "inactive lane", "stack", "misaligned")


class KernelFault(RuntimeError):
    """A kernel that does what CUDA forbids. `faults` has a line of text for each."""

    def __init__(self, faults: list[str]):
        super().__init__("\n".join(faults))
        self.faults = faults


@lru_cache(4096)
def source_line(library: str, at: int) -> str:
    """file:line of a place in the code: the innermost one that is not the emulator's own."""
    if not at:
        return "its end"  # of a thread that has returned
    # A return address lies behind its call, which may be the next line's: one byte before it is the call.
    done = subprocess.run(["addr2line", "-e", library, "-i", hex(at - 1)], capture_output=True, text=True, check=True)
    lines = [line.split(" (")[0] for line in done.stdout.splitlines()]
    mine = [line for line in lines if Path(line.rpartition(":")[0]).name not in ("device.h", "async_copy.cuh", "??")]
    return Path(mine[0]).name if mine else "an unknown place"


FIXED, DYNAMIC = -1, -2  # emulator.h: whose memory, where it is no argument's


@lru_cache(64)
def shared_variables(library: str) -> list[tuple[int, str]]:
    """Where each static shared variable starts, and its name."""
    done = subprocess.run(["readelf", "-sW", library], capture_output=True, text=True, check=True)
    found = [(int(words[1], 16), words[7]) for line in done.stdout.splitlines() if len(words := line.split()) == 8 and words[3] == "TLS"]
    # A static variable of kernel k called tile is _ZZ1kE4tile
    return sorted((start, name[1]) for start, symbol in found if (name := re.search(r"E\d+([A-Za-z_]\w*)$", symbol)))


def shared_place(library: str, which: int, offset: int) -> str:
    if which == DYNAMIC:
        return f"byte {offset} of the dynamic shared memory"
    before = [(start, name) for start, name in shared_variables(library) if start <= offset]
    return f"byte {offset - before[-1][0]} of shared {before[-1][1]}" if before else "shared memory"


def described(fault: Fault, kernel: str, library: str) -> str:
    """One sentence, and where."""
    me, other = f"thread {fault.thread} of block {fault.block}", f"thread {fault.other_thread} of block {fault.other_block}"
    memory = f"byte {fault.offset} of argument {fault.array}'s memory" if fault.array >= 0 else shared_place(library, fault.array, fault.offset)
    at = f"{Path(fault.file.decode()).name}:{fault.line}" if fault.file else source_line(library, fault.at)
    there = source_line(library, fault.other_at)
    kind = KINDS[fault.kind]
    if kind == "race":
        does, did = ("writes", "reads")[not fault.detail & 1], ("wrote", "read")[not fault.detail & 2]
        order = "nothing orders two blocks of one launch" if str(fault.block) != str(fault.other_block) else "no barrier lies between"
        text = f"race: {me} {does} {memory}, which {other} {did} at {there}; {order}"
    elif kind == "out of bounds":
        text = f"out of bounds: {me} {'writes' if fault.detail else 'reads'} {fault.size} bytes at {memory}"
    elif kind == "index":
        text = f"out of bounds: {me} uses index {fault.offset}, which the array does not have"
    elif kind == "never written":
        text = f"never written: {me} reads {memory}, which nobody wrote"
    elif kind == "barrier missed":
        text = f"barrier missed: {me} waits, {other} never comes: it is at {there}"
    elif kind == "barriers differ":
        text = f"barriers differ: {me} waits here, {other} at {there}; all threads of a block must reach the same one"
    elif kind == "inactive lane":
        text = f"inactive lane: {me} waits for lane {fault.detail} or takes its value, which takes no part here" + (f": {other} is at {there}" if fault.other_at else "")
    elif kind == "misaligned":
        text = f"misaligned: {me} {'writes' if fault.detail else 'reads'} {fault.size} bytes at {memory}, no multiple of {fault.size}"
    else:
        text = f"stack: {me} needs more than the emulator's 64 KiB for its local variables"
    again = f" ({fault.times} times)" if fault.times > 1 else ""
    return f"{kernel}, {at}: {text}{again}"


def told(faults, kernel: str, library: str) -> list[str]:
    """A sentence for each of them, less those that are none: one barrier, which the compiler wrote twice."""
    twice = lambda fault: KINDS[fault.kind] == "barriers differ" and source_line(library, fault.at) == source_line(library, fault.other_at)
    return [described(fault, kernel, library) for fault in faults if not twice(fault)]
