"""From a function to object code, by numba: imported when something is not on disk (objects.py).

numba compiles a function for its own callers: with wrappers for Python and C, in an engine of its own, and with a way out
for exceptions. A kernel has none of these. Its code is taken when it is complete and not yet optimised, gets one entry with
a plain C signature, and everything else becomes private to it: so LLVM optimises once, what was inlined is
dropped, and nothing in the object file can meet its namesake in another.
"""

from __future__ import annotations

import gc
import re
from contextlib import contextmanager
from functools import partial

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils, registry
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import _FunctionCompiler

from tinynet.kernels.cpu.jit import APART

# A loop's start at a whole cache line. At 16 bytes, which is usual, a kernel's innermost loop took up to a seventh longer on Zen 3 whenever a
# change elsewhere had moved it: the processor keeps decoded instructions by lines of code.
if binding.get_process_triple().startswith("x86_64"):
    binding.set_option("tinynet", "-x86-experimental-pref-innermost-loop-alignment=6")

_I64 = ir.IntType(64)
_OBJECT = ir.IntType(8).as_pointer()
_ROW_AND_FIVE = [types.CPointer(types.int64), *[types.int64] * 5]  # a kernel's arguments


class _Bare(_FunctionCompiler):
    """numba's compiler of one function, which leaves out wrappers and does not finish."""

    def _customize_flags(self, flags):
        flags.no_cpython_wrapper = flags.no_cfunc_wrapper = flags.no_compile = True
        return flags


def kernel(function, symbol: str) -> tuple[bytes, list[str]]:
    """function(row, image, slot, chunk, share, shares) as void symbol(int64 *row, int64 image, ...)."""
    return _compiled(function, _ROW_AND_FIVE, types.none, symbol, _called_from_c)


def kernel_text(function, symbol: str = "kernel") -> str:
    """The same as LLVM's text, optimised: what becomes of a tile, for whoever wants to read it."""
    return str(_optimised(function, _ROW_AND_FIVE, types.none, symbol, _called_from_c)[1])


def kernel_assembly(function, symbol: str = "kernel") -> str:
    """The same as the processor's instructions."""
    with global_compiler_lock:
        library, module = _optimised(function, _ROW_AND_FIVE, types.none, symbol, _called_from_c)
        return library.codegen._tm.emit_assembly(module)


def for_python(function, count: int, brief: bool, symbol: str) -> tuple[bytes, list[str]]:
    """A function of `count` int64 that returns int64, as symbol(self, arguments, count) of Python's METH_FASTCALL. Python's lock
    is released while it runs, unless it is so brief that giving the lock away and asking for it again would take longer."""
    return _compiled(function, [types.int64] * count, types.int64, symbol, partial(_called_from_python, brief))


@contextmanager
def _uncollected():
    """Without Python's garbage collector, which finds little in what numba makes, and takes an eighth of the time to look."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _compiled(function, arguments: list, result, symbol: str, entry) -> tuple[bytes, list[str]]:
    """(object code, names of the functions outside that it calls)."""
    with global_compiler_lock, _uncollected():
        library, module = _optimised(function, arguments, result, symbol, entry)
        needs = [f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")]
        return library.codegen._tm.emit_object(module), needs


def _optimised(function, arguments: list, result, symbol: str, entry) -> tuple:
    """(numba's library, the one module in it)."""
    with global_compiler_lock:
        options = {"error_model": "numpy", "nopython": True, "_nrt": False}  # _nrt: see jit.inline
        found = _Bare(function, registry.cpu_target, options, {}, Compiler).compile(tuple(arguments), result)
        library, context = found.library, found.target_context
        outer = library.create_ir_module(symbol)
        native = ir.Function(outer, context.call_conv.get_function_type(found.fndesc.restype, found.fndesc.argtypes), found.fndesc.llvm_func_name)

        def call(builder, values):
            status, value = context.call_conv.call_function(builder, native, found.fndesc.restype, found.fndesc.argtypes, values)
            with builder.if_then(status.is_error, likely=False):
                # Only a step of 0 in a `range` gets here: a mistake in a planner, which nobody could catch on this thread.
                builder.call(builder.module.declare_intrinsic("llvm.trap", (), ir.FunctionType(ir.VoidType(), ())), [])
                builder.unreachable()
            return value

        entry(outer, symbol, [context.get_value_type(a) for a in arguments], call)
        library.add_ir_module(outer)
        module = library._final_module
        for other in dict.fromkeys(library._linking_libraries):
            module.link_in(other._get_module_for_linking(), preserve=True)
        for part in (*module.functions, *module.global_variables):
            if not part.is_declaration and part.name != symbol:
                part.linkage = "internal"
        for part in module.functions:
            if not part.is_declaration and APART in part.name:
                part.add_function_attribute("noinline")
        library._final_module = module = _not_unrolled(module)
        library._optimize_final_module()
        module.verify()
        return library, module


def _not_unrolled(module):
    """The module with a note on each branch, which LLVM reads where one closes a loop: not to be unrolled if the number of turns is known
    only when it runs.

    For some processors (AMD's Zen 3 and later) LLVM unrolls even a loop whose turn is a tile's multiply-adds. These need no company: where
    they fill the registers, copies of them keep sums in memory.
    """
    text = str(module)
    free = 1 + max((int(n) for n in re.findall(r"^!(\d+) =", text, re.M)), default=-1)
    text = re.sub(r"^( +br .*)$", rf"\1, !llvm.loop !{free}", text, flags=re.M)
    marked = binding.parse_assembly(f'{text}\n!{free} = distinct !{{!{free}, !{free + 1}}}\n!{free + 1} = !{{!"llvm.loop.unroll.runtime.disable"}}\n')
    marked.name = module.name
    return marked


def _called_from_c(module, symbol: str, kinds: list, call) -> None:
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), symbol)
    builder = ir.IRBuilder(function.append_basic_block())
    call(builder, function.args)
    builder.ret_void()


def _called_from_python(brief: bool, module, symbol: str, kinds: list, call) -> None:
    function = ir.Function(module, ir.FunctionType(_OBJECT, [_OBJECT, _OBJECT.as_pointer(), _I64]), symbol)
    builder = ir.IRBuilder(function.append_basic_block())

    def python(name: str, result, *values):
        return builder.call(cgutils.get_or_insert_function(module, ir.FunctionType(result, [v.type for v in values]), name), values)

    _, given, count = function.args
    with builder.if_then(builder.icmp_signed("!=", count, _I64(len(kinds))), likely=False):
        python("PyErr_BadArgument", ir.IntType(32))
        builder.ret(_OBJECT(None))
    values = [python("PyLong_AsLongLong", _I64, builder.load(builder.gep(given, [_I64(i)]))) for i in range(len(kinds))]
    with builder.if_then(builder.icmp_unsigned("!=", python("PyErr_Occurred", _OBJECT), _OBJECT(None)), likely=False):
        builder.ret(_OBJECT(None))
    state = None if brief else python("PyEval_SaveThread", _OBJECT)
    value = call(builder, values)
    if not brief:
        python("PyEval_RestoreThread", ir.VoidType(), state)
    builder.ret(python("PyLong_FromLongLong", _OBJECT, value))
