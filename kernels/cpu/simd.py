"""Vector registers as values in numba: the layer on which the fast CPU kernels are written.

A processor multiplies and adds 4, 8 or 16 floats in one instruction, held in a vector register. What
LLVM makes of a plain loop is luck: one shape runs at 94 % of the machine's peak, its neighbour at
5 %, because the accumulators fall out of the registers into memory. So a kernel here says itself what a
register holds:

* `Vec(dtype, lanes)` is a numba type that *is* one vector register (an LLVM vector).
* A *tile* is a tuple of them, like the 24 accumulators of a block of outputs. It is a pure value (SSA),
  never an array, so it cannot live in memory unless the registers run out.
* The functions below are the only ones that touch tiles. Each is unrolled when it is compiled: `n`,
  `w` and the like must be constants (numbers in the source, or in the closure around the kernel).

The innermost loop of every convolution and matrix product is then three lines (conv2d_simd.py):

    acc = zeros(x, ROWS * COLUMNS * VECTORS, W)
    for c in range(channels):
        acc = outer_fma(acc, scalars(x, ...), loads(w, ...))     acc[i, j] += x[i] * w[j]

Memory is a pointer and an offset in elements: `p = pointer(address, dtype)`. A place of a tile is
`offset + row * row_step + column * column_step`; steps may be constants or numbers of the moment.

Next on the walk: conv2d_simd.py.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic, models, register_model

from tinynet.kernels.cpu.target import LINE

# --- the type ----------------------------------------------------------------------------------------


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


def _tile(dtype, count: int, lanes: int):
    return types.UniTuple(Vec(dtype, lanes), count)


def _constant(kind, what: str) -> int:
    """The value of a constant argument. (It stays in the signature that the intrinsic returns: numba keeps one
    implementation a signature.)"""
    if not isinstance(kind, types.IntegerLiteral):
        raise TypingError(f"simd: {what} must be a constant when the kernel is compiled; got {kind}")
    return kind.literal_value


def _element(pointer) -> types.Float:
    if not isinstance(pointer, types.CPointer):
        raise TypingError(f"simd: expected a pointer, from simd.pointer(address, dtype); got {pointer}")
    return pointer.dtype


# --- small steps in LLVM's words -----------------------------------------------------------------------

_I32, _I64, _BYTES = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()


def _i64(number: int):
    return ir.Constant(_I64, number)


def _parts(builder, tile) -> list:
    return [builder.extract_value(tile, i) for i in range(tile.type.count)]


def _packed(builder, vectors: list):
    tile = ir.Constant(ir.ArrayType(vectors[0].type, len(vectors)), ir.Undefined)
    for i, vector in enumerate(vectors):
        tile = builder.insert_value(tile, vector, i)
    return tile


def _load(builder, place, vector):
    align = 4 if isinstance(vector.element, ir.FloatType) else 8  # any element's address will do
    return builder.load(builder.bitcast(place, vector.as_pointer()), align=align)


def _store(builder, value, place):
    align = 4 if isinstance(value.type.element, ir.FloatType) else 8
    builder.store(value, builder.bitcast(place, value.type.as_pointer()), align=align)


def _broadcast(builder, scalar, vector):
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(_I32, vector.count), [0] * vector.count))


def _suffix(vector) -> str:
    return f"v{vector.count}f{32 if isinstance(vector.element, ir.FloatType) else 64}"


def _fma(builder, x, y, z):
    kind = ir.FunctionType(x.type, [x.type] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.{_suffix(x.type)}"), [x, y, z])


def _offsets(builder, rows: int, row_step, columns: int, column_step) -> list:
    """row * row_step + column * column_step for every place, row by row."""
    return [builder.add(builder.mul(row_step, _i64(r)), builder.mul(column_step, _i64(c))) for r in range(rows) for c in range(columns)]


# --- memory ----------------------------------------------------------------------------------------------


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

    return _element(p)(p, types.int64), generate


@intrinsic
def put(typing, p, i, value):
    """p[i] = value."""

    def generate(context, builder, signature, arguments):
        builder.store(arguments[2], builder.gep(arguments[0], [arguments[1]]))
        return context.get_dummy_value()

    return types.void(p, types.int64, _element(p)), generate


@intrinsic(prefer_literal=True)
def loads(typing, p, i, rows, row_step, columns, column_step, vectors, w):
    """`vectors` registers side by side in memory, at each of rows x columns places."""
    r, c, v, lanes = (_constant(k, n) for k, n in ((rows, "rows"), (columns, "columns"), (vectors, "vectors"), (w, "w")))
    tile = _tile(_element(p), r * c * v, lanes)

    def generate(context, builder, signature, arguments):
        start = builder.gep(arguments[0], [arguments[1]])
        vector = context.get_value_type(tile.dtype)
        places = _offsets(builder, r, arguments[3], c, arguments[5])
        return _packed(builder, [_load(builder, builder.gep(start, [builder.add(place, _i64(k * lanes))]), vector) for place in places for k in range(v)])

    return tile(p, types.int64, rows, types.int64, columns, types.int64, vectors, w), generate


@intrinsic(prefer_literal=True)
def firsts(typing, p, i, count, rows, row_step, w):
    """A register at each of `rows` places, of which the first `count` numbers are there; the others are 0, and memory is not read for them."""
    r, lanes = _constant(rows, "rows"), _constant(w, "w")
    tile = _tile(_element(p), r, lanes)

    def generate(context, builder, signature, arguments):
        start, vector = builder.gep(arguments[0], [arguments[1]]), context.get_value_type(tile.dtype)
        lane = ir.VectorType(_I64, lanes)
        there = builder.icmp_signed("<", ir.Constant(lane, list(range(lanes))), _broadcast(builder, arguments[2], lane))
        kind = ir.FunctionType(vector, [vector.as_pointer(), _I32, there.type, vector])
        load = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.{_suffix(vector)}.p0")
        align = ir.Constant(_I32, 4 if isinstance(vector.element, ir.FloatType) else 8)
        places = [builder.bitcast(builder.gep(start, [place]), vector.as_pointer()) for place in _offsets(builder, r, arguments[4], 1, _i64(0))]
        return _packed(builder, [builder.call(load, [place, align, there, ir.Constant(vector, None)]) for place in places])

    return tile(p, types.int64, types.int64, rows, types.int64, w), generate


@intrinsic(prefer_literal=True)
def fetch(typing, p, i, rows, row_step, count, written):
    """Asks for the cache lines of `count` numbers at each of `rows` places: for the first cache if they will be `written` soon, which is
    1 or 0, else for the second. Who needs a number from memory waits for hundreds of multiply-adds; who has asked for its line before
    does not, and asking costs no more than a load. Any address will do: nothing is read."""
    r, n, write = (_constant(k, what) for k, what in ((rows, "rows"), (count, "count"), (written, "written")))

    def generate(context, builder, signature, arguments):
        start, item = builder.gep(arguments[0], [arguments[1]]), _element(p).bitwidth // 8
        kind = ir.FunctionType(ir.VoidType(), [_BYTES, _I32, _I32, _I32])
        ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        for place in _offsets(builder, r, arguments[3], 1, _i64(0)):
            for k in sorted({*range(0, n, LINE // item), n - 1}):  # the last one: it need not begin where a line does
                line = builder.bitcast(builder.gep(start, [builder.add(place, _i64(k))]), _BYTES)
                builder.call(ask, [line, *(ir.Constant(_I32, number) for number in (write, 2 + write, 1))])  # written, how near, data
        return context.get_dummy_value()

    return types.void(p, types.int64, rows, types.int64, count, written), generate


@intrinsic(prefer_literal=True)
def side_by_side(typing, p, i, rows, row_step, columns, column_step, pieces, piece_step, w):
    """One register at each of rows x columns places, made of `pieces` of w lanes that are piece_step apart in memory."""
    r, c, n, lanes = (_constant(k, what) for k, what in ((rows, "rows"), (columns, "columns"), (pieces, "pieces"), (w, "w")))
    if n & (n - 1):
        raise TypingError(f"simd.side_by_side: the number of pieces must be a power of 2; got {n}")
    tile = _tile(_element(p), r * c, n * lanes)

    def generate(context, builder, signature, arguments):
        start = builder.gep(arguments[0], [arguments[1]])
        piece = ir.VectorType(context.get_value_type(tile.dtype).element, lanes)

        def joined(place):
            found = [_load(builder, builder.gep(start, [builder.add(place, builder.mul(arguments[7], _i64(k)))]), piece) for k in range(n)]
            while len(found) > 1:  # pairs, then pairs of pairs
                count = found[0].type.count
                order = ir.Constant(ir.VectorType(_I32, 2 * count), list(range(2 * count)))
                found = [builder.shuffle_vector(a, b, order) for a, b in zip(found[::2], found[1::2])]
            return found[0]

        return _packed(builder, [joined(place) for place in _offsets(builder, r, arguments[3], c, arguments[5])])

    return tile(p, types.int64, rows, types.int64, columns, types.int64, pieces, types.int64, w), generate


@intrinsic(prefer_literal=True)
def strided(typing, p, i, step, w):
    """One register of every `step`-th number from p[i] on. Nothing before the first or behind the last is read."""
    s, lanes = _constant(step, "step"), _constant(w, "w")
    tile = _tile(_element(p), 1, lanes)

    def generate(context, builder, signature, arguments):
        start = builder.gep(arguments[0], [arguments[1]])
        vector = context.get_value_type(tile.dtype)
        if s == 1 or lanes == 1:
            return _packed(builder, [_load(builder, start, vector)])
        if s == 2:  # two registers that meet in one number hold all that is wanted, and its neighbours
            first, second = _load(builder, start, vector), _load(builder, builder.gep(start, [_i64(lanes - 1)]), vector)
            picked = [2 * k if 2 * k < lanes else 2 * k + 1 for k in range(lanes)]
            return _packed(builder, [builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(_I32, lanes), picked))])
        found = ir.Constant(vector, ir.Undefined)
        for k in range(lanes):
            found = builder.insert_element(found, builder.load(builder.gep(start, [_i64(k * s)])), ir.Constant(_I32, k))
        return _packed(builder, [found])

    return tile(p, types.int64, step, w), generate


@intrinsic
def together(typing, p, i, tile):
    """The first numbers of all registers, then their second ones, and so on, from p[i] on: the inverse of `strided`, of as many as its step."""

    def generate(context, builder, signature, arguments):
        registers = _parts(builder, arguments[2])
        n, lanes = len(registers), tile.dtype.lanes
        whole = registers[0]
        for k in range(1, n):  # side by side: a register more each time, the new one widened to what is there already
            widened = builder.shuffle_vector(registers[k], ir.Constant(registers[k].type, ir.Undefined), ir.Constant(ir.VectorType(_I32, k * lanes), [j % lanes for j in range(k * lanes)]))
            whole = builder.shuffle_vector(whole, widened, ir.Constant(ir.VectorType(_I32, (k + 1) * lanes), list(range((k + 1) * lanes))))
        order = [k * lanes + j for j in range(lanes) for k in range(n)]
        mixed = builder.shuffle_vector(whole, ir.Constant(whole.type, ir.Undefined), ir.Constant(ir.VectorType(_I32, n * lanes), order))
        _store(builder, mixed, builder.gep(arguments[0], [arguments[1]]))
        return context.get_dummy_value()

    return types.void(p, types.int64, tile), generate


@intrinsic
def put_whole(typing, p, i, step, tile, start):
    """p[i ...] = start + the numbers of each register, which are whole, as int32; `step` from one register's place to the next."""

    def generate(context, builder, signature, arguments):
        p, i, step, tile, start = arguments
        kind = ir.VectorType(_I32, signature.args[3].dtype.lanes)
        start = _broadcast(builder, builder.trunc(start, _I32), kind)
        for k, vector in enumerate(_parts(builder, tile)):
            place = builder.gep(p, [builder.add(i, builder.mul(step, _i64(k)))])
            builder.store(builder.add(builder.fptosi(vector, kind), start), builder.bitcast(place, kind.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.CPointer(types.int32), types.int64, types.int64, tile, types.int64), generate


@intrinsic(prefer_literal=True)
def scalars(typing, p, i, rows, row_step, columns, column_step):
    """The one number at each of rows x columns places."""
    r, c = (_constant(k, n) for k, n in ((rows, "rows"), (columns, "columns")))

    def generate(context, builder, signature, arguments):
        start = builder.gep(arguments[0], [arguments[1]])
        return _packed(builder, [builder.load(builder.gep(start, [place])) for place in _offsets(builder, r, arguments[3], c, arguments[5])])

    return types.UniTuple(_element(p), r * c)(p, types.int64, rows, types.int64, columns, types.int64), generate


@intrinsic(prefer_literal=True)
def stores(typing, p, i, rows, row_step, columns, column_step, vectors, w, tile):
    """The inverse of `loads`."""
    r, c, v, lanes = (_constant(k, n) for k, n in ((rows, "rows"), (columns, "columns"), (vectors, "vectors"), (w, "w")))
    if tile.count != r * c * v or tile.dtype.lanes != lanes:
        raise TypingError(f"simd.stores: {r} x {c} places of {v} vectors of {lanes} lanes can't hold {tile}")

    def generate(context, builder, signature, arguments):
        start = builder.gep(arguments[0], [arguments[1]])
        vectors_left = iter(_parts(builder, arguments[8]))
        for place in _offsets(builder, r, arguments[3], c, arguments[5]):
            for k in range(v):
                _store(builder, next(vectors_left), builder.gep(start, [builder.add(place, _i64(k * lanes))]))
        return context.get_dummy_value()

    return types.void(p, types.int64, rows, types.int64, columns, types.int64, vectors, w, tile), generate


# --- tiles out of nothing ------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def zeros(typing, p, n, w):
    """A tile of n registers of zeros, of the kind of numbers that p points to."""
    tile = _tile(_element(p), _constant(n, "n"), _constant(w, "w"))
    return tile(p, n, w), lambda context, builder, signature, arguments: ir.Constant(context.get_value_type(tile), None)


@intrinsic(prefer_literal=True)
def counting(typing, p, start, step, w):
    """One register of start, start + step, start + 2 * step, ...; of the kind of numbers that p points to."""
    tile = _tile(_element(p), 1, _constant(w, "w"))

    def generate(context, builder, signature, arguments):
        vector = context.get_value_type(tile.dtype)
        start, step = (_broadcast(builder, a, vector) for a in arguments[1:3])
        return _packed(builder, [builder.fadd(start, builder.fmul(step, ir.Constant(vector, [float(k) for k in range(vector.count)])))])

    return tile(p, _element(p), _element(p), w), generate


# --- arithmetic ------------------------------------------------------------------------------------------------


def _outer(builder, sums, xs, ws) -> list:
    """A scalar gets into the lanes of a register when it is multiplied, and not before: all of them at once would need more registers
    than the sums leave."""
    found = []
    for i, x in enumerate(xs):
        x = x if isinstance(x.type, ir.VectorType) else _broadcast(builder, x, ws[0].type)
        found += [_fma(builder, x, w, sums[i * len(ws) + j]) for j, w in enumerate(ws)]
    return found


@intrinsic
def outer_fma(typing, acc, xs, ws):
    """acc[i, j] + xs[i] * ws[j] for every pair, row by row, of scalars or registers xs: the step that all kernels spend their time in."""
    if acc.count != xs.count * ws.count:
        raise TypingError(f"simd.outer_fma: {xs.count} x {ws.count} products can't be added to {acc.count} accumulators")

    def generate(context, builder, signature, arguments):
        return _packed(builder, _outer(builder, *(_parts(builder, tile) for tile in arguments)))

    return acc(acc, xs, ws), generate


@intrinsic(prefer_literal=True)
def product(typing, acc, xs, ws, terms):
    """acc[i, j] + the sum over k of xs[i, k] * ws[k, j]: `outer_fma` for a whole short sum, whose weights stay in registers."""
    n = _constant(terms, "terms")
    if xs.count % n or ws.count % n or acc.count * n * n != xs.count * ws.count:
        raise TypingError(f"simd.product: {xs.count} scalars and {ws.count} registers are no {n} terms of {acc.count} sums")

    def generate(context, builder, signature, arguments):
        sums, x, w = (_parts(builder, tile) for tile in arguments[:3])
        columns = len(w) // n
        for k in range(n):
            sums = _outer(builder, sums, x[k::n], w[k * columns : (k + 1) * columns])
        return _packed(builder, sums)

    return acc(acc, xs, ws, terms), generate


def _each(operation, name: str, text: str):
    """An operation on two tiles, register by register; a shorter second one is taken again from its start."""

    def typed(typing, x, y):
        def generate(context, builder, signature, arguments):
            first, second = (_parts(builder, tile) for tile in arguments)
            return _packed(builder, [operation(builder, a, second[i % len(second)]) for i, a in enumerate(first)])

        return x(x, y), generate

    typed.__name__, typed.__doc__ = name, text
    return intrinsic(typed)


add = _each(lambda builder, x, y: builder.fadd(x, y), "add", "x + y")


def _compare(builder, how: str, x, y):
    return builder.fcmp_unordered(how, x, y) if how == "uno" else builder.fcmp_ordered(how, x, y)


def _nothing(vector):
    return ir.Constant(vector.type, None)


divide = _each(lambda builder, x, y: builder.fdiv(x, y), "divide", "x / y")
multiply = _each(lambda builder, x, y: builder.fmul(x, y), "multiply", "x * y")
kept = _each(lambda builder, x, mask: builder.select(_compare(builder, ">", mask, _nothing(mask)), x, _nothing(x)), "kept", "x where the mask is > 0, else 0: ReLU's gradient")


@intrinsic(prefer_literal=True)
def add_first(typing, x, y, n):
    """x, with the one register y added to its first n."""
    count = _constant(n, "n")

    def generate(context, builder, signature, arguments):
        (added,) = _parts(builder, arguments[1])
        return _packed(builder, [builder.fadd(v, added) if k < count else v for k, v in enumerate(_parts(builder, arguments[0]))])

    return x(x, y, n), generate


@intrinsic
def relu(typing, x):
    """x, but 0 where it is less; a NaN is passed on."""

    def generate(context, builder, signature, arguments):
        return _packed(builder, [builder.select(_compare(builder, "<", v, _nothing(v)), _nothing(v), v) for v in _parts(builder, arguments[0])])

    return x(x), generate


def _larger(builder, x, y):
    """The larger; a NaN wins."""
    more = builder.or_(_compare(builder, ">", y, x), _compare(builder, "uno", y, y))
    return builder.select(more, y, x)


maximum = _each(_larger, "maximum", "the larger of x and y; a NaN wins")


@intrinsic
def each_fma(typing, acc, xs, ws):
    """acc[i, j] + xs[i, j] * ws[j]: each lane has a channel of its own (depthwise convolution, and its gradient)."""
    if acc.count != xs.count or xs.count % ws.count:
        raise TypingError(f"simd.each_fma: {xs.count} products by {ws.count} weights can't be added to {acc.count} accumulators")

    def generate(context, builder, signature, arguments):
        sums, x, w = (_parts(builder, tile) for tile in arguments)
        return _packed(builder, [_fma(builder, x[i], w[i % len(w)], sums[i]) for i in range(len(x))])

    return acc(acc, xs, ws), generate


def _windows(parts: list, columns: int, vectors: int) -> list[list]:
    """The four members of each 2 x 2 window of a tile of pairs of rows of 2 * columns pixels, row by row."""
    wide = 2 * columns * vectors
    return [
        [parts[pair + r * wide + (2 * c + q) * vectors + v] for r in (0, 1) for q in (0, 1)]
        for pair in range(0, len(parts), 2 * wide) for c in range(columns) for v in range(vectors)
    ]  # fmt: skip


@intrinsic(prefer_literal=True)
def pooled(typing, tile, columns, vectors):
    """The largest of each 2 x 2 window of a tile of pairs of rows of 2 * columns pixels; a NaN wins."""
    c, v = _constant(columns, "columns"), _constant(vectors, "vectors")
    found = types.UniTuple(tile.dtype, tile.count // 4)

    def generate(context, builder, signature, arguments):
        best = []
        for a, b, d, e in _windows(_parts(builder, arguments[0]), c, v):
            larger = [builder.select(_compare(builder, ">", x, y), x, y) for x, y in ((a, b), (d, e))]
            larger = builder.select(_compare(builder, ">", *larger), *larger)
            # one test for all four: a comparison with a NaN is false, so the maximum above may have lost it
            unknown = builder.or_(_compare(builder, "uno", a, b), _compare(builder, "uno", d, e))
            best.append(builder.select(unknown, ir.Constant(a.type, [float("nan")] * a.type.count), larger))
        return _packed(builder, best)

    return found(tile, columns, vectors), generate


@intrinsic(prefer_literal=True)
def winners(typing, tile, best, columns, vectors):
    """Which member of its 2 x 2 window is `best`, the first among equals: 0, 1, 2 or 3."""
    c, v = _constant(columns, "columns"), _constant(vectors, "vectors")

    def generate(context, builder, signature, arguments):
        found = []
        for members, largest in zip(_windows(_parts(builder, arguments[0]), c, v), _parts(builder, arguments[1])):
            place = ir.Constant(largest.type, [3.0] * largest.type.count)
            for q in (2, 1, 0):
                place = builder.select(_compare(builder, "==", members[q], largest), ir.Constant(largest.type, [float(q)] * largest.type.count), place)
            found.append(place)
        return _packed(builder, found)

    return best(tile, best, columns, vectors), generate


@intrinsic(prefer_literal=True)
def unpooled(typing, best, place, columns, vectors):
    """The tile of pairs of rows of 2 * columns pixels whose 2 x 2 windows have these numbers at these places (as `winners` says them), and
    0 elsewhere; nowhere, if the place is none of the four."""
    c, v = _constant(columns, "columns"), _constant(vectors, "vectors")
    found = types.UniTuple(best.dtype, 4 * best.count)

    def generate(context, builder, signature, arguments):
        numbers, places = (_parts(builder, tile) for tile in arguments[:2])
        tile = [None] * found.count
        for members, number, place in zip(_windows(list(range(found.count)), c, v), numbers, places):
            for q, at in enumerate(members):
                wanted = ir.Constant(place.type, [float(q)] * place.type.count)
                tile[at] = builder.select(_compare(builder, "==", place, wanted), number, _nothing(number))
        return _packed(builder, tile)

    return found(best, place, columns, vectors), generate


@intrinsic
def if_positive(typing, x, test, otherwise):
    """x where test > 0, else the one number `otherwise`."""

    def generate(context, builder, signature, arguments):
        x, test = (_parts(builder, tile) for tile in arguments[:2])
        other = _broadcast(builder, arguments[2], x[0].type)
        return _packed(builder, [builder.select(_compare(builder, ">", t, _nothing(t)), a, other) for a, t in zip(x, test)])

    return x(x, test, x.dtype.dtype), generate


@intrinsic
def if_equal(typing, x, test, number):
    """x where test is the number, else 0."""

    def generate(context, builder, signature, arguments):
        x, test = (_parts(builder, tile) for tile in arguments[:2])
        wanted = _broadcast(builder, arguments[2], test[0].type)
        return _packed(builder, [builder.select(_compare(builder, "==", t, wanted), a, _nothing(a)) for a, t in zip(x, test)])

    return x(x, test, x.dtype.dtype), generate


@intrinsic
def first_hit(typing, rest, x, best):
    """(what of `rest` belongs to x, what is left): all of it where x is the window's best, or a NaN; else nothing."""

    def generate(context, builder, signature, arguments):
        hits, left = [], []
        for r, a, b in zip(*(_parts(builder, tile) for tile in arguments)):
            hit = builder.or_(_compare(builder, "==", a, b), _compare(builder, "uno", a, a))
            hits.append(builder.select(hit, r, _nothing(r)))
            left.append(builder.select(hit, _nothing(r), r))
        return context.make_tuple(builder, signature.return_type, (_packed(builder, hits), _packed(builder, left)))

    return types.Tuple((rest, rest))(rest, x, best), generate


@intrinsic
def larger_with(typing, best, place, x, number):
    """(the larger of best and x, and where x is: its place, else the other's). The first NaN is the largest of all."""

    def generate(context, builder, signature, arguments):
        best, place, x = (_parts(builder, tile) for tile in arguments[:3])
        values, places = [], []
        for b, p, a, n in zip(best, place, x, _parts(builder, arguments[3])):
            better = builder.or_(_compare(builder, ">", a, b), builder.and_(_compare(builder, "uno", a, a), builder.fcmp_ordered("ord", b, b)))
            values.append(builder.select(better, a, b))
            places.append(builder.select(better, n, p))
        return context.make_tuple(builder, signature.return_type, (_packed(builder, values), _packed(builder, places)))

    return types.Tuple((best, place))(best, place, x, number), generate


@intrinsic(prefer_literal=True)
def full(typing, p, number, n, w):
    """A tile of n registers with the one number in all lanes, of the kind that p points to."""
    tile = _tile(_element(p), _constant(n, "n"), _constant(w, "w"))

    def generate(context, builder, signature, arguments):
        vector = _broadcast(builder, arguments[1], context.get_value_type(tile.dtype))
        return _packed(builder, [vector] * tile.count)

    return tile(p, _element(p), n, w), generate


@intrinsic
def sums(typing, tile):
    """The sum over the lanes of each register, as a tuple of numbers."""
    found = types.UniTuple(tile.dtype.dtype, tile.count)

    def generate(context, builder, signature, arguments):
        totals = []
        for vector in _parts(builder, arguments[0]):
            kind = ir.FunctionType(vector.type.element, [vector.type.element, vector.type])
            function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.{_suffix(vector.type)}")
            # -0.0 is the neutral element of addition; reassoc: pairwise, not lane after lane
            totals.append(builder.call(function, [ir.Constant(vector.type.element, -0.0), vector], fastmath=("reassoc",)))
        return _packed(builder, totals)

    return found(tile), generate


@intrinsic
def largest(typing, tile):
    """The largest number of one register; a NaN wins. Halves are compared, then halves of these."""
    if tile.count != 1:
        raise TypingError(f"simd.largest: takes one register; got {tile.count}")

    def generate(context, builder, signature, arguments):
        (best,) = _parts(builder, arguments[0])
        lanes = best.type.count
        step = lanes // 2
        while step:
            order = ir.Constant(ir.VectorType(_I32, lanes), [(j + step) % lanes for j in range(lanes)])
            best = _larger(builder, best, builder.shuffle_vector(best, best, order))
            step //= 2
        return builder.extract_element(best, ir.Constant(_I32, 0))

    return tile.dtype.dtype(tile), generate


@intrinsic
def transposed(typing, tile):
    """n registers of n lanes, rows and columns exchanged: log2(n) rounds of exchanging blocks of 1, 2, 4, ... lanes."""
    if tile.count != tile.dtype.lanes:
        raise TypingError(f"simd.transposed: needs as many registers as lanes; got {tile.count} of {tile.dtype.lanes}")

    def generate(context, builder, signature, arguments):
        rows = _parts(builder, arguments[0])
        n = len(rows)

        def shuffled(a, b, order):
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, n), order))

        step = 1
        while step < n:
            for i in range(n):
                if not i & step:
                    a, b = rows[i], rows[i + step]
                    rows[i] = shuffled(a, b, [j if not j & step else n + j - step for j in range(n)])
                    rows[i + step] = shuffled(a, b, [j + step if not j & step else n + j for j in range(n)])
            step *= 2
        return _packed(builder, rows)

    return tile(tile), generate
