"""A vector register as a type of numba, and the small steps in LLVM's words of which the operations on registers are made (simd.py,
simd_memory.py)."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import models, register_model


class Vec(types.Type):
    """One vector register of `lanes` numbers."""

    def __init__(self, dtype: types.Float, lanes: int):
        self.dtype, self.lanes = dtype, lanes
        super().__init__(f"Vec({dtype}, {lanes})")


@register_model(Vec)
class _VecModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        element = ir.FloatType() if fe_type.dtype is types.float32 else ir.DoubleType()
        super().__init__(manager, fe_type, ir.VectorType(element, fe_type.lanes))


def tile_of(dtype, count: int, lanes: int):
    """The type of a tile."""
    return types.UniTuple(Vec(dtype, lanes), count)


def constant(kind, what: str) -> int:
    """The value of a constant argument. (It stays in the signature that the intrinsic returns: numba keeps one
    implementation a signature.)"""
    if not isinstance(kind, types.IntegerLiteral):
        raise TypingError(f"simd: {what} must be a constant when the kernel is compiled; got {kind}")
    return kind.literal_value


def element_of(pointer) -> types.Float:
    """The type of what is there."""
    if not isinstance(pointer, types.CPointer):
        raise TypingError(f"simd: expected a pointer, from simd_memory.pointer(address, dtype); got {pointer}")
    return pointer.dtype


# --- small steps in LLVM's words -----------------------------------------------------------------------

I32, I64, BYTES = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()


def i64(number: int):
    return ir.Constant(I64, number)


def parts_of(builder, tile) -> list:
    """The registers of a tile, or the scalars."""
    return [builder.extract_value(tile, i) for i in range(tile.type.count)]


def packed(builder, vectors: list):
    """The inverse."""
    tile = ir.Constant(ir.ArrayType(vectors[0].type, len(vectors)), ir.Undefined)
    for i, vector in enumerate(vectors):
        tile = builder.insert_value(tile, vector, i)
    return tile


def load_vector(builder, place, vector):
    align = 4 if isinstance(vector.element, ir.FloatType) else 8  # any element's address will do
    return builder.load(builder.bitcast(place, vector.as_pointer()), align=align)


def store_vector(builder, value, place):
    align = 4 if isinstance(value.type.element, ir.FloatType) else 8
    builder.store(value, builder.bitcast(place, value.type.as_pointer()), align=align)


def broadcast(builder, scalar, vector):
    """A register of that type with the scalar in all lanes."""
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count))


def suffix(vector) -> str:
    """How LLVM ends the name of an operation on such registers."""
    return f"v{vector.count}f{32 if isinstance(vector.element, ir.FloatType) else 64}"


def multiply_add(builder, x, y, z):
    """x * y + z"""
    kind = ir.FunctionType(x.type, [x.type] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.{suffix(x.type)}"), [x, y, z])


def offsets(builder, rows: int, row_step, columns: int, column_step) -> list:
    """row * row_step + column * column_step for every place, row by row."""
    return [builder.add(builder.mul(row_step, i64(r)), builder.mul(column_step, i64(c))) for r in range(rows) for c in range(columns)]
