"""Between memory and registers: what simd.py's tiles are loaded from and stored to, number by number, side by side or strided, and what is
fetched before it is needed. simd.py says what a place is."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, intrinsic, lower_getattr_generic, models, register_model, typeof_impl

from tinynet.kernels.cpu.rows import Fields
from tinynet.kernels.cpu.target import LINE
from tinynet.kernels.cpu.vectors import BYTES, I32, I64, broadcast, constant, element_of, i64, load_vector, offsets, packed, parts_of, store_vector, suffix, tile_of


class _Places(types.Dummy):
    """The type of a kernel's fields: what each is called is in the type, so nothing is left of them when the kernel runs."""

    def __init__(self, fields: Fields):
        self.fields = fields
        super().__init__(f"Fields({fields})")


register_model(_Places)(models.OpaqueModel)


@typeof_impl.register(Fields)
def _type_of(fields, context):
    return _Places(fields)


@infer_getattr
class _PlacesOf(AttributeTemplate):
    key = _Places

    def generic_resolve(self, places, name):
        return types.int64 if name in vars(places.fields) else None


@lower_getattr_generic(_Places)
def _place_of(context, builder, places, value, name):
    return i64(getattr(places.fields, name))


@intrinsic
def pointer(typing, address, dtype):
    """The memory at `address` (an int) as numbers of `dtype`."""
    element = dtype.instance_type

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(element).as_pointer())

    return types.CPointer(element)(types.int64, dtype), generate


@intrinsic
def get(typing, p, i):
    """The number at p[i]."""

    def generate(context, builder, signature, arguments):
        return builder.load(builder.gep(arguments[0], [arguments[1]]))

    return element_of(p)(p, types.int64), generate


@intrinsic
def put(typing, p, i, value):
    """p[i] = value."""

    def generate(context, builder, signature, arguments):
        builder.store(arguments[2], builder.gep(arguments[0], [arguments[1]]))
        return context.get_dummy_value()

    return types.void(p, types.int64, element_of(p)), generate


@intrinsic(prefer_literal=True)
def loads(typing, p, i, rows, row_step, columns, column_step, vectors, w):
    """`vectors` registers side by side in memory, at each of rows x columns places."""
    r, c, v, lanes = (constant(k, n) for k, n in ((rows, "rows"), (columns, "columns"), (vectors, "vectors"), (w, "w")))
    tile = tile_of(element_of(p), r * c * v, lanes)

    def generate(context, builder, signature, arguments):
        start = builder.gep(arguments[0], [arguments[1]])
        vector = context.get_value_type(tile.dtype)
        places = offsets(builder, r, arguments[3], c, arguments[5])
        return packed(builder, [load_vector(builder, builder.gep(start, [builder.add(place, i64(k * lanes))]), vector) for place in places for k in range(v)])

    return tile(p, types.int64, rows, types.int64, columns, types.int64, vectors, w), generate


def _in_two_runs(builder, p, i, step, end, jump, count):
    """Places from p[i] on, `step` apart, and all from number `end` on `jump` further."""
    for k in range(count):
        place = builder.add(i, builder.mul(step, i64(k)))
        yield builder.gep(p, [builder.select(builder.icmp_signed("<", i64(k), end), place, builder.add(place, jump))])


@intrinsic(prefer_literal=True)
def loads_of_two(typing, p, i, rows, row_step, end, jump, w):
    """One register at each of `rows` places, the last ones of a run and the first ones of the next: from number `end` on all are `jump` further."""
    r, lanes = constant(rows, "rows"), constant(w, "w")
    tile = tile_of(element_of(p), r, lanes)

    def generate(context, builder, signature, arguments):
        p, i, _, step, end, jump, _ = arguments
        return packed(builder, [load_vector(builder, place, context.get_value_type(tile.dtype)) for place in _in_two_runs(builder, p, i, step, end, jump, r)])

    return tile(p, types.int64, rows, types.int64, types.int64, types.int64, w), generate


@intrinsic
def stores_to_two(typing, p, i, row_step, end, jump, tile):
    """The inverse of `loads_of_two`."""

    def generate(context, builder, signature, arguments):
        p, i, step, end, jump, tile = arguments
        vectors = parts_of(builder, tile)
        for vector, place in zip(vectors, _in_two_runs(builder, p, i, step, end, jump, len(vectors))):
            store_vector(builder, vector, place)
        return context.get_dummy_value()

    return types.void(p, types.int64, types.int64, types.int64, types.int64, tile), generate


@intrinsic(prefer_literal=True)
def firsts(typing, p, i, count, rows, row_step, w):
    """A register at each of `rows` places, of which the first `count` numbers are there; the others are 0, and memory is not read for them."""
    r, lanes = constant(rows, "rows"), constant(w, "w")
    tile = tile_of(element_of(p), r, lanes)

    def generate(context, builder, signature, arguments):
        start, vector = builder.gep(arguments[0], [arguments[1]]), context.get_value_type(tile.dtype)
        lane = ir.VectorType(I64, lanes)
        there = builder.icmp_signed("<", ir.Constant(lane, list(range(lanes))), broadcast(builder, arguments[2], lane))
        kind = ir.FunctionType(vector, [vector.as_pointer(), I32, there.type, vector])
        load = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.{suffix(vector)}.p0")
        align = ir.Constant(I32, 4 if isinstance(vector.element, ir.FloatType) else 8)
        places = [builder.bitcast(builder.gep(start, [place]), vector.as_pointer()) for place in offsets(builder, r, arguments[4], 1, i64(0))]
        return packed(builder, [builder.call(load, [place, align, there, ir.Constant(vector, None)]) for place in places])

    return tile(p, types.int64, types.int64, rows, types.int64, w), generate


@intrinsic(prefer_literal=True)
def fetch(typing, p, i, rows, row_step, count, written):
    """Asks for the cache lines of `count` numbers at each of `rows` places: for the first cache if they will be `written` soon, which is
    1 or 0, else for the second. Who needs a number from memory waits for hundreds of multiply-adds; who has asked for its line before
    does not, and asking costs no more than a load. Any address will do: nothing is read."""
    r, n, write = (constant(k, what) for k, what in ((rows, "rows"), (count, "count"), (written, "written")))

    def generate(context, builder, signature, arguments):
        start, item = builder.gep(arguments[0], [arguments[1]]), element_of(p).bitwidth // 8
        kind = ir.FunctionType(ir.VoidType(), [BYTES, I32, I32, I32])
        ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        for place in offsets(builder, r, arguments[3], 1, i64(0)):
            for k in sorted({*range(0, n, LINE // item), n - 1}):  # the last one: it need not begin where a line does
                line = builder.bitcast(builder.gep(start, [builder.add(place, i64(k))]), BYTES)
                builder.call(ask, [line, *(ir.Constant(I32, number) for number in (write, 2 + write, 1))])  # written, how near, data
        return context.get_dummy_value()

    return types.void(p, types.int64, rows, types.int64, count, written), generate


def _lanes(builder, x, y, order):
    """A register of these numbers of x and, counted on behind them, of y."""
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(order)), list(order)))


def _exchanged(builder, blocks: list, w: int) -> list:
    """For each c below n, the number of blocks, a register of every n-th piece of w lanes from piece c on. n: a power of 2."""
    whole = blocks[0].type.count
    orders = [[at + k for at in range(odd * w, 2 * whole, 2 * w) for k in range(w)] for odd in (0, 1)]
    for _ in range(len(blocks).bit_length() - 1):  # the even pieces of each pair in one register, the odd ones in another
        blocks = [_lanes(builder, x, y, order) for order in orders for x, y in zip(blocks[::2], blocks[1::2])]
    return blocks


@intrinsic(prefer_literal=True)
def windows(typing, p, i, rows, row_step, columns, apart, abreast, w):
    """`abreast` windows of rows x columns pixels, each `apart` pixels to the right of the one before: a register for each pixel of a window.
    A pixel is w numbers, and pixels of a row lie side by side: so as many as a register holds are read at once, and sorted by window.

    apart, abreast: powers of 2; columns: from `apart` to twice as many.
    """
    r, c, step, n, lanes = (constant(k, what) for k, what in ((rows, "rows"), (columns, "columns"), (apart, "apart"), (abreast, "abreast"), (w, "w")))
    if step & (step - 1) or n & (n - 1) or not step <= c <= 2 * step:
        raise TypingError(f"simd_memory.windows: {n} windows of {c} columns can't be {step} apart; apart and abreast must be powers of 2, and columns from apart to twice as many")
    tile = tile_of(element_of(p), r * c, n * lanes)

    def generate(context, builder, signature, arguments):
        whole = context.get_value_type(tile.dtype)
        piece = ir.VectorType(whole.element, lanes)

        def read(row: int, pixel: int, vector):
            place = builder.add(builder.add(arguments[1], builder.mul(arguments[3], i64(row))), i64(pixel * lanes))
            return load_vector(builder, builder.gep(arguments[0], [place]), vector)

        found = []
        for row in range(r):
            registers: list = []
            for first in range(0, step, n):
                registers += _exchanged(builder, [read(row, first + k * max(step, n), whole) for k in range(min(step, n))], lanes)
            for pixel in range(step, c):  # what the window to the right has `apart` pixels before; and the last window's own
                last = read(row, pixel + step * (n - 1), piece)
                last = _lanes(builder, last, last, [k % lanes for k in range(n * lanes)])
                registers.append(_lanes(builder, registers[pixel - step], last, range(lanes, lanes + n * lanes)))
            found += registers
        return packed(builder, found)

    return tile(p, types.int64, rows, types.int64, columns, apart, abreast, w), generate


@intrinsic(prefer_literal=True)
def strided(typing, p, i, step, w):
    """One register of every `step`-th number from p[i] on. Nothing before the first or behind the last is read."""
    lanes = constant(w, "w")
    tile = tile_of(element_of(p), 1, lanes)
    known = step.literal_value if isinstance(step, types.IntegerLiteral) else 0

    def generate(context, builder, signature, arguments):
        p, i, step, _ = arguments
        vector = context.get_value_type(tile.dtype)

        def registers(first, between, count):
            return [load_vector(builder, builder.gep(p, [builder.add(first, builder.mul(between, i64(k)))]), vector) for k in range(count)]

        if known == 1 or lanes == 1:
            return packed(builder, registers(i, step, 1))
        if known == 2:  # two registers that meet in one number hold all that is wanted, and its neighbours
            picked = [2 * k if 2 * k < lanes else 2 * k + 1 for k in range(lanes)]
            return packed(builder, [builder.shuffle_vector(*registers(i, i64(lanes - 1), 2), ir.Constant(ir.VectorType(I32, lanes), picked))])
        found, *others = registers(i, builder.sub(step, i64(1)), lanes)  # where each one's place is what is wanted: picking that is cheaper than moving it
        for k, other in enumerate(others, 1):
            found = builder.shuffle_vector(found, other, ir.Constant(ir.VectorType(I32, lanes), [j if j < k else lanes + j for j in range(lanes)]))
        return packed(builder, [found])

    return tile(p, types.int64, step, w), generate


@intrinsic
def together(typing, p, i, tile):
    """The first numbers of all registers, then their second ones, and so on, from p[i] on: the inverse of `strided`, of as many as its step."""

    def generate(context, builder, signature, arguments):
        registers = parts_of(builder, arguments[2])
        n, lanes = len(registers), tile.dtype.lanes
        whole = registers[0]
        for k in range(1, n):  # side by side: a register more each time, the new one widened to what is there already
            widened = builder.shuffle_vector(registers[k], ir.Constant(registers[k].type, ir.Undefined), ir.Constant(ir.VectorType(I32, k * lanes), [j % lanes for j in range(k * lanes)]))
            whole = builder.shuffle_vector(whole, widened, ir.Constant(ir.VectorType(I32, (k + 1) * lanes), list(range((k + 1) * lanes))))
        order = [k * lanes + j for j in range(lanes) for k in range(n)]
        mixed = builder.shuffle_vector(whole, ir.Constant(whole.type, ir.Undefined), ir.Constant(ir.VectorType(I32, n * lanes), order))
        store_vector(builder, mixed, builder.gep(arguments[0], [arguments[1]]))
        return context.get_dummy_value()

    return types.void(p, types.int64, tile), generate


@intrinsic
def put_whole(typing, p, i, step, tile, start):
    """p[i ...] = start + the numbers of each register, which are whole, as int32; `step` from one register's place to the next."""

    def generate(context, builder, signature, arguments):
        p, i, step, tile, start = arguments
        kind = ir.VectorType(I32, signature.args[3].dtype.lanes)
        start = broadcast(builder, builder.trunc(start, I32), kind)
        for k, vector in enumerate(parts_of(builder, tile)):
            place = builder.gep(p, [builder.add(i, builder.mul(step, i64(k)))])
            builder.store(builder.add(builder.fptosi(vector, kind), start), builder.bitcast(place, kind.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.CPointer(types.int32), types.int64, types.int64, tile, types.int64), generate


@intrinsic(prefer_literal=True)
def scalars(typing, p, i, rows, row_step, columns, column_step):
    """The one number at each of rows x columns places."""
    r, c = (constant(k, n) for k, n in ((rows, "rows"), (columns, "columns")))

    def generate(context, builder, signature, arguments):
        start = builder.gep(arguments[0], [arguments[1]])
        return packed(builder, [builder.load(builder.gep(start, [place])) for place in offsets(builder, r, arguments[3], c, arguments[5])])

    return types.UniTuple(element_of(p), r * c)(p, types.int64, rows, types.int64, columns, types.int64), generate


@intrinsic(prefer_literal=True)
def stores(typing, p, i, rows, row_step, columns, column_step, vectors, w, tile):
    """The inverse of `loads`."""
    r, c, v, lanes = (constant(k, n) for k, n in ((rows, "rows"), (columns, "columns"), (vectors, "vectors"), (w, "w")))
    if tile.count != r * c * v or tile.dtype.lanes != lanes:
        raise TypingError(f"simd_memory.stores: {r} x {c} places of {v} vectors of {lanes} lanes can't hold {tile}")

    def generate(context, builder, signature, arguments):
        start = builder.gep(arguments[0], [arguments[1]])
        vectors_left = iter(parts_of(builder, arguments[8]))
        for place in offsets(builder, r, arguments[3], c, arguments[5]):
            for k in range(v):
                store_vector(builder, next(vectors_left), builder.gep(start, [builder.add(place, i64(k * lanes))]))
        return context.get_dummy_value()

    return types.void(p, types.int64, rows, types.int64, columns, types.int64, vectors, w, tile), generate
