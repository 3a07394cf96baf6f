"""The kernel that a profile puts between the steps of a program (profile.py), and the clock that it reads. Imported when it must be compiled."""

from __future__ import annotations

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tinynet.kernels.cpu.jit import inline
from tinynet.kernels.cpu.layers import STAMP
from tinynet.kernels.cpu.simd_memory import get, pointer, put


@intrinsic
def ticks(typing):
    """The processor's counter of time: the same on all its cores, in a unit of its own, read in a few nanoseconds."""

    def generate(context, builder, signature, arguments):
        i64, module = ir.IntType(64), builder.module
        if binding.get_process_triple().startswith(("aarch64", "arm64")):  # there the counter of cycles is not for everyone to read
            kind = ir.FunctionType(i64, [ir.MetaDataType()])
            return builder.call(cgutils.get_or_insert_function(module, kind, "llvm.read_volatile_register.i64"), [module.add_metadata(["cntvct_el0"])])
        return builder.call(cgutils.get_or_insert_function(module, ir.FunctionType(i64, []), "llvm.readcyclecounter"), [])

    return types.int64(), generate


@inline
def _stamps(row, slot):
    return pointer(get(row, STAMP.stamps) + slot * get(row, STAMP.stamps_slot), np.int64)


def stamp():
    """Adds the ticks since this thread's last stamp to its number `step`, and remembers when this one was; with step 0 it does
    only that."""

    def kernel(row, image, slot, chunk, share, shares):
        stamps, step, now = _stamps(row, slot), get(row, STAMP.step), ticks()
        if step > 0:
            put(stamps, step, get(stamps, step) + now - get(stamps, 0))
        put(stamps, 0, now)

    return kernel
