"""The code of those who play programs (program.py): compiled like kernels, and called from Python. Imported when it must be compiled."""

from __future__ import annotations

import os

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tinynet.kernels.cpu.jit import inline
from tinynet.kernels.cpu.rows import A_LINE, ASLEEP, BED, BITS, CHUNKS, FIRST, GENERATION, HEAD, HEADS, IMAGES, INSIDE, JOB, JOB_TURN, LED, MARKS, MOST_ARRAYS, OPEN, OWNERS, PHASES, ROW, ROWS, SHARED, SHARES, TURN, WORKER

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
def atomic_put(typing, address, index, value):
    """address[index] = value, seen by others after all that was written before."""

    def generate(context, builder, signature, arguments):
        address, index, value = arguments
        builder.store_atomic(value, _place(builder, address, index), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def atomic_change(typing, address, index, before, value):
    """address[index] = value, if it was `before`: whether it was."""

    def generate(context, builder, signature, arguments):
        address, index, before, value = arguments
        return builder.extract_value(builder.cmpxchg(_place(builder, address, index), before, value, "seq_cst", "seq_cst"), 1)

    return types.boolean(*[types.int64] * 4), generate


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


@intrinsic
def pause(typing):
    """A moment of nothing: two processors may be one core's two threads, where a loop that only looks takes half of the
    core from the one who works."""

    def generate(context, builder, signature, arguments):
        machine = binding.get_process_triple().split("-")[0]
        if machine in ("x86_64", "i386", "i686", "amd64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        elif machine in ("aarch64", "arm64"):
            kind = ir.FunctionType(ir.VoidType(), [ir.IntType(32)])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.aarch64.hint"), [ir.Constant(ir.IntType(32), 1)])  # yield
        return context.get_dummy_value()

    return types.void(), generate


# Gives the processor to another thread: the one that we wait for may have none.
give_way = types.ExternalFunction("SwitchToThread" if os.name == "nt" else "sched_yield", types.int32())

# Python's own locks, on every system, by their addresses; neither of these asks for the interpreter.
lie_down = types.ExternalFunction("PyThread_acquire_lock", types.int32(types.intp, types.int32))
wake = types.ExternalFunction("PyThread_release_lock", types.void(types.intp))

# --- playing a program ----------------------------------------------------------------------------------

_WAIT = 500  # looks before a waiting thread offers its processor to others


@inline
def _wait(looks):
    pause()
    if looks > _WAIT:
        give_way()
    return looks + 1


@inline
def _take(taken, turn, parts):
    """Which of an owner's parts is ours, of so many; -1 if none is left."""
    while True:
        seen = atomic_get(taken, 0)
        part = seen - (turn << BITS) if seen >> BITS == turn else 0
        if part >= parts:
            return -1
        if atomic_change(taken, 0, seen, (turn << BITS) + part + 1):
            return part


@inline
def _play(table, turn, slot):
    # To hear from another core takes 30 ns, where cores have no cache in common 170; and a line that two cores have read takes 8 or 30 ns to
    # write, ten times as long as one that only its writer has. So a thread begins with the parts that are its own in every call, which
    # read and overwrite what it wrote itself, and takes others' when it has none left. What has one part the caller does, and the
    # others leave when only such phases are left.
    phases = peek(table, PHASES if slot == 0 else SHARED)
    for p in range(phases):
        head = table + 8 * (HEADS + p * HEAD)
        first, rows, images = table + 8 * peek(head, FIRST), peek(head, ROWS), peek(head, IMAGES)
        chunks, shares, owners, done = peek(head, CHUNKS), peek(head, SHARES), peek(head, OWNERS), table + 8 * peek(head, MARKS)
        parts = chunks * shares
        for n in range(owners if slot == 0 or parts > 1 else 0):
            owner = (slot + n) % owners
            begin, end = parts * owner // owners, parts * (owner + 1) // owners
            while atomic_get(done, 0) < turn * parts:
                part = _take(done + 8 * A_LINE * (1 + owner), turn, end - begin)
                if part < 0:
                    break
                chunk, share = (begin + part) // shares, (begin + part) % shares
                for image in range(images * chunk // chunks, images * (chunk + 1) // chunks):
                    for r in range(rows):
                        _call(first + 8 * ROW * r, image, slot, chunk, share, shares)
                atomic_add(done, 0, 1)
        looks = 0
        while atomic_get(done, 0) < turn * parts and (slot == 0 or p < phases - 1):
            looks = _wait(looks)


@inline
def _turn(table):
    """The next turn's number."""
    turn = peek(table, TURN) + 1
    poke(table, TURN, turn)
    return turn


def alone(table):
    _play(table, _turn(table), 0)
    return 0


def lead(board, table, slots):
    """Puts a program on the board, wakes who sleeps, and plays along until the program is over and every worker has left it. While
    another thread leads, the workers are its own, and this one plays alone."""
    turn = _turn(table)
    if atomic_swap(board, LED, 1) != 0:
        _play(table, turn, 0)
        return 0
    poke(board, JOB, table)
    poke(board, JOB_TURN, turn)
    atomic_put(board, OPEN, slots)
    atomic_add(board, GENERATION, 1)
    for slot in range(1, slots):
        worker = board + 8 * WORKER * slot
        if atomic_get(worker, ASLEEP) != 0 and atomic_swap(worker, ASLEEP, 0) != 0:
            wake(peek(worker, BED))
    _play(table, turn, 0)
    atomic_swap(board, OPEN, 0)
    for slot in range(1, slots):
        looks = 0
        while atomic_get(board + 8 * WORKER * slot, INSIDE) > 0:
            looks = _wait(looks)
    atomic_put(board, LED, 0)
    return 0


# --- eager calls -------------------------------------------------------------------------------------------

# numpy's array object is a header, as of any object, and then the address of its memory. Reading it there takes 0.1 us;
# array.__array_interface__, which builds a dict, 1.6.
_MEMORY = object.__basicsize__ // 8


def memory_of(array):
    """Where the memory of an array begins, by the array's id, which is the address of numpy's object."""
    return peek(array, _MEMORY)


def point(aims, array):
    """Makes tables look at an array. aims: how many of their numbers are addresses in it, then for each its own address, and how far
    into the array it points."""
    for i in range(peek(aims, 0)):
        poke(peek(aims, 1 + 2 * i), 0, peek(array, _MEMORY) + peek(aims, 2 + 2 * i))
    return 0


@inline
def _aim(table, patch, a, b, c, d, e, scratch):
    for i in range(peek(patch, 0)):
        place, which, offset = peek(patch, 1 + 3 * i), peek(patch, 2 + 3 * i), peek(patch, 3 + 3 * i)
        array = a if which == 0 else b if which == 1 else c if which == 2 else d if which == 3 else e
        poke(table, place, offset + (scratch if which == MOST_ARRAYS else peek(array, _MEMORY)))


def aim(table, patch, a, b, c, d, e, scratch):
    """Fills in where a call's arrays lie. a to e: ids; patch: how many numbers of the table are addresses, then for each its
    place, which array it means (the last: scratch), and the offset from there."""
    _aim(table, patch, a, b, c, d, e, scratch)
    return 0


def aim_alone(table, patch, a, b, c, d, e, scratch):
    """The same, and plays the table on this thread."""
    _aim(table, patch, a, b, c, d, e, scratch)
    _play(table, _turn(table), 0)
    return 0


# --- workers ----------------------------------------------------------------------------------------------


@inline
def _drowsy(board, worker, seen):
    """A worker has waited long enough: whether it must now sleep on its lock. A program may have come that moment: then
    either it takes its own name off again, or the caller already has, and will release the lock."""
    atomic_swap(worker, ASLEEP, 1)
    return atomic_get(board, GENERATION) == seen or atomic_swap(worker, ASLEEP, 0) == 0


def serve(board, slot, patience):
    """What a worker does, until the process ends. It never goes back to Python: there it would wait for the interpreter, which who plays one
    short program after the other gives away for too short a time each to be caught."""
    worker, seen, looks = board + 8 * WORKER * slot, 0, 0
    atomic_swap(worker, ASLEEP, 0)
    while True:
        generation = atomic_get(board, GENERATION)
        if generation == seen:
            pause()
            looks += 1
            if looks % 64 == 0:
                give_way()  # other libraries' threads may want this processor
            if looks > patience:
                if _drowsy(board, worker, seen) and lie_down(peek(worker, BED), 1) == 0:
                    return 0  # no lock: the others do without this one
                looks = 0
            continue
        seen, looks = generation, 0
        # First inside, then look whether it is open: the caller closes first, then looks who is inside.
        atomic_swap(worker, INSIDE, 1)
        if atomic_get(board, OPEN) > slot:
            _play(peek(board, JOB), peek(board, JOB_TURN), slot)
        atomic_put(worker, INSIDE, 0)
