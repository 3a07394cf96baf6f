"""Vector registers as values in numba: the layer on which the fast CPU kernels are written.

A processor multiplies and adds 4, 8 or 16 floats in one instruction, held in a vector register. What
LLVM makes of a plain loop is luck: one shape runs at 94 % of the machine's peak, its neighbour at
5 %, because the accumulators fall out of the registers into memory. So a kernel here says itself what a
register holds:

* `Vec(dtype, lanes)` is a numba type that *is* one vector register (an LLVM vector).
* A *tile* is a tuple of them, like the 24 accumulators of a block of outputs. It is a pure value (SSA),
  never an array, so it cannot live in memory unless the registers run out.
* The functions below, and those of simd_memory.py between memory and registers, are the only ones that
  touch tiles. Each is unrolled when it is compiled: `n`, `w` and the like must be constants (numbers in
  the source, or in the closure around the kernel).

The innermost loop of every convolution and matrix product is then three lines (conv2d_simd.py):

    acc = zeros(x, ROWS * COLUMNS * VECTORS, W)
    for c in range(channels):
        acc = outer_fma(acc, scalars(x, ...), loads(w, ...))     acc[i, j] += x[i] * w[j]

Memory is a pointer and an offset in elements: `p = pointer(address, dtype)`. A place of a tile is
`offset + row * row_step + column * column_step`; steps may be constants or numbers of the moment.

vectors.py has the type, and LLVM's side of it. Next on the walk: conv2d_simd.py.
"""

from __future__ import annotations

from functools import reduce

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from tinynet.kernels.cpu.vectors import I32, broadcast, constant, element_of, multiply_add, packed, parts_of, suffix, tile_of

# --- tiles out of nothing ------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def zeros(typing, p, n, w):
    """A tile of n registers of zeros, of the kind of numbers that p points to."""
    tile = tile_of(element_of(p), constant(n, "n"), constant(w, "w"))
    return tile(p, n, w), lambda context, builder, signature, arguments: ir.Constant(context.get_value_type(tile), None)


@intrinsic(prefer_literal=True)
def counting(typing, p, start, step, w):
    """One register of start, start + step, start + 2 * step, ...; of the kind of numbers that p points to."""
    tile = tile_of(element_of(p), 1, constant(w, "w"))

    def generate(context, builder, signature, arguments):
        vector = context.get_value_type(tile.dtype)
        start, step = (broadcast(builder, a, vector) for a in arguments[1:3])
        return packed(builder, [builder.fadd(start, builder.fmul(step, ir.Constant(vector, [float(k) for k in range(vector.count)])))])

    return tile(p, element_of(p), element_of(p), w), generate


@intrinsic(prefer_literal=True)
def full(typing, p, number, n, w):
    """A tile of n registers with the one number in all lanes, of the kind that p points to."""
    tile = tile_of(element_of(p), constant(n, "n"), constant(w, "w"))

    def generate(context, builder, signature, arguments):
        vector = broadcast(builder, arguments[1], context.get_value_type(tile.dtype))
        return packed(builder, [vector] * tile.count)

    return tile(p, element_of(p), n, w), generate


# --- arithmetic ------------------------------------------------------------------------------------------------


def _outer(builder, sums, xs, ws) -> list:
    """A scalar gets into the lanes of a register when it is multiplied, and not before: all of them at once would need more registers
    than the sums leave."""
    found = []
    for i, x in enumerate(xs):
        x = x if isinstance(x.type, ir.VectorType) else broadcast(builder, x, ws[0].type)
        found += [multiply_add(builder, x, w, sums[i * len(ws) + j]) for j, w in enumerate(ws)]
    return found


@intrinsic
def outer_fma(typing, acc, xs, ws):
    """acc[i, j] + xs[i] * ws[j] for every pair, row by row, of scalars or registers xs: the step that all kernels spend their time in."""
    if acc.count != xs.count * ws.count:
        raise TypingError(f"simd.outer_fma: {xs.count} x {ws.count} products can't be added to {acc.count} accumulators")

    def generate(context, builder, signature, arguments):
        return packed(builder, _outer(builder, *(parts_of(builder, tile) for tile in arguments)))

    return acc(acc, xs, ws), generate


@intrinsic(prefer_literal=True)
def product(typing, acc, xs, ws, terms):
    """acc[i, j] + the sum over k of xs[i, k] * ws[k, j]: `outer_fma` for a whole short sum, whose weights stay in registers."""
    n = constant(terms, "terms")
    if xs.count % n or ws.count % n or acc.count * n * n != xs.count * ws.count:
        raise TypingError(f"simd.product: {xs.count} scalars and {ws.count} registers are no {n} terms of {acc.count} sums")

    def generate(context, builder, signature, arguments):
        sums, x, w = (parts_of(builder, tile) for tile in arguments[:3])
        columns = len(w) // n
        for k in range(n):
            sums = _outer(builder, sums, x[k::n], w[k * columns : (k + 1) * columns])
        return packed(builder, sums)

    return acc(acc, xs, ws, terms), generate


@intrinsic(prefer_literal=True)
def each_product(typing, xs, ws, terms):
    """The sum over k of xs[i, k] * ws[i, k], for each i: scalars, and weights that stay in registers."""
    n = constant(terms, "terms")
    if xs.count % n or ws.count != xs.count:
        raise TypingError(f"simd.each_product: {xs.count} scalars and {ws.count} registers are no sums of {n} terms each")

    def generate(context, builder, signature, arguments):
        x, w = (parts_of(builder, tile) for tile in arguments[:2])
        found = []
        for i in range(0, len(w), n):
            first, *rest = ((broadcast(builder, x[k], w[k].type), w[k]) for k in range(i, i + n))
            total = builder.fmul(*first)
            for a, b in rest:
                total = multiply_add(builder, a, b, total)
            found.append(total)
        return packed(builder, found)

    return types.UniTuple(ws.dtype, ws.count // n)(xs, ws, terms), generate


def _each(operation, name: str, text: str):
    """An operation on two tiles, register by register; a shorter second one is taken again from its start."""

    def typed(typing, x, y):
        def generate(context, builder, signature, arguments):
            first, second = (parts_of(builder, tile) for tile in arguments)
            return packed(builder, [operation(builder, a, second[i % len(second)]) for i, a in enumerate(first)])

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
    count = constant(n, "n")

    def generate(context, builder, signature, arguments):
        (added,) = parts_of(builder, arguments[1])
        return packed(builder, [builder.fadd(v, added) if k < count else v for k, v in enumerate(parts_of(builder, arguments[0]))])

    return x(x, y, n), generate


@intrinsic
def relu(typing, x):
    """x, but 0 where it is less; a NaN is passed on."""

    def generate(context, builder, signature, arguments):
        return packed(builder, [builder.select(_compare(builder, "<", v, _nothing(v)), _nothing(v), v) for v in parts_of(builder, arguments[0])])

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
        sums, x, w = (parts_of(builder, tile) for tile in arguments)
        return packed(builder, [multiply_add(builder, x[i], w[i % len(w)], sums[i]) for i in range(len(x))])

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
    c, v = constant(columns, "columns"), constant(vectors, "vectors")
    found = types.UniTuple(tile.dtype, tile.count // 4)

    def generate(context, builder, signature, arguments):
        best = []
        for a, b, d, e in _windows(parts_of(builder, arguments[0]), c, v):
            larger = [builder.select(_compare(builder, ">", x, y), x, y) for x, y in ((a, b), (d, e))]
            larger = builder.select(_compare(builder, ">", *larger), *larger)
            # one test for all four: a comparison with a NaN is false, so the maximum above may have lost it
            unknown = builder.or_(_compare(builder, "uno", a, b), _compare(builder, "uno", d, e))
            best.append(builder.select(unknown, ir.Constant(a.type, [float("nan")] * a.type.count), larger))
        return packed(builder, best)

    return found(tile, columns, vectors), generate


@intrinsic(prefer_literal=True)
def winners(typing, tile, best, columns, vectors):
    """Which member of its 2 x 2 window is `best`, the first among equals: 0, 1, 2 or 3."""
    c, v = constant(columns, "columns"), constant(vectors, "vectors")

    def generate(context, builder, signature, arguments):
        found = []
        for members, largest in zip(_windows(parts_of(builder, arguments[0]), c, v), parts_of(builder, arguments[1])):
            place = ir.Constant(largest.type, [3.0] * largest.type.count)
            for q in (2, 1, 0):
                place = builder.select(_compare(builder, "==", members[q], largest), ir.Constant(largest.type, [float(q)] * largest.type.count), place)
            found.append(place)
        return packed(builder, found)

    return best(tile, best, columns, vectors), generate


@intrinsic(prefer_literal=True)
def unpooled(typing, best, place, columns, vectors):
    """The tile of pairs of rows of 2 * columns pixels whose 2 x 2 windows have these numbers at these places (as `winners` says them), and
    0 elsewhere; nowhere, if the place is none of the four."""
    c, v = constant(columns, "columns"), constant(vectors, "vectors")
    found = types.UniTuple(best.dtype, 4 * best.count)

    def generate(context, builder, signature, arguments):
        numbers, places = (parts_of(builder, tile) for tile in arguments[:2])
        tile = [None] * found.count
        for members, number, place in zip(_windows(list(range(found.count)), c, v), numbers, places):
            for q, at in enumerate(members):
                wanted = ir.Constant(place.type, [float(q)] * place.type.count)
                tile[at] = builder.select(_compare(builder, "==", place, wanted), number, _nothing(number))
        return packed(builder, tile)

    return found(best, place, columns, vectors), generate


@intrinsic
def if_positive(typing, x, test, otherwise):
    """x where test > 0, else the one number `otherwise`."""

    def generate(context, builder, signature, arguments):
        x, test = (parts_of(builder, tile) for tile in arguments[:2])
        other = broadcast(builder, arguments[2], x[0].type)
        return packed(builder, [builder.select(_compare(builder, ">", t, _nothing(t)), a, other) for a, t in zip(x, test)])

    return x(x, test, x.dtype.dtype), generate


@intrinsic
def if_equal(typing, x, test, number):
    """x where test is the number, else 0."""

    def generate(context, builder, signature, arguments):
        x, test = (parts_of(builder, tile) for tile in arguments[:2])
        wanted = broadcast(builder, arguments[2], test[0].type)
        return packed(builder, [builder.select(_compare(builder, "==", t, wanted), a, _nothing(a)) for a, t in zip(x, test)])

    return x(x, test, x.dtype.dtype), generate


def _bits(builder, x):
    """The same bits as whole numbers."""
    return builder.bitcast(x, ir.VectorType(ir.IntType(32 if isinstance(x.type.element, ir.FloatType) else 64), x.type.count))


@intrinsic
def unlike(typing, seen, x, y):
    """The bits of `seen`, and those in which x and y differ: NaNs may be alike, and 0 is not -0."""

    def generate(context, builder, signature, arguments):
        registers = zip(*(parts_of(builder, tile) for tile in arguments))
        return packed(builder, [builder.bitcast(builder.or_(_bits(builder, s), builder.xor(_bits(builder, a), _bits(builder, b))), s.type) for s, a, b in registers])

    return seen(seen, x, y), generate


@intrinsic
def any_bit(typing, tile):
    """Whether any bit of its registers is set."""

    def generate(context, builder, signature, arguments):
        numbers = [_bits(builder, x) for x in parts_of(builder, arguments[0])]
        whole = reduce(builder.or_, numbers)
        kind = whole.type.element
        name = f"llvm.vector.reduce.or.v{whole.type.count}i{kind.width}"
        found = builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [whole.type]), name), [whole])
        return builder.icmp_unsigned("!=", found, ir.Constant(kind, 0))

    return types.boolean(tile), generate


@intrinsic
def first_hit(typing, rest, x, best):
    """(what of `rest` belongs to x, what is left): all of it where x is the window's best, or a NaN; else nothing."""

    def generate(context, builder, signature, arguments):
        hits, left = [], []
        for r, a, b in zip(*(parts_of(builder, tile) for tile in arguments)):
            hit = builder.or_(_compare(builder, "==", a, b), _compare(builder, "uno", a, a))
            hits.append(builder.select(hit, r, _nothing(r)))
            left.append(builder.select(hit, _nothing(r), r))
        return context.make_tuple(builder, signature.return_type, (packed(builder, hits), packed(builder, left)))

    return types.Tuple((rest, rest))(rest, x, best), generate


@intrinsic
def larger_with(typing, best, place, x, number):
    """(the larger of best and x, and where x is: its place, else the other's). The first NaN is the largest of all."""

    def generate(context, builder, signature, arguments):
        best, place, x = (parts_of(builder, tile) for tile in arguments[:3])
        values, places = [], []
        for b, p, a, n in zip(best, place, x, parts_of(builder, arguments[3])):
            better = builder.or_(_compare(builder, ">", a, b), builder.and_(_compare(builder, "uno", a, a), builder.fcmp_ordered("ord", b, b)))
            values.append(builder.select(better, a, b))
            places.append(builder.select(better, n, p))
        return context.make_tuple(builder, signature.return_type, (packed(builder, values), packed(builder, places)))

    return types.Tuple((best, place))(best, place, x, number), generate


@intrinsic
def sums(typing, tile):
    """The sum over the lanes of each register, as a tuple of numbers."""
    found = types.UniTuple(tile.dtype.dtype, tile.count)

    def generate(context, builder, signature, arguments):
        totals = []
        for vector in parts_of(builder, arguments[0]):
            kind = ir.FunctionType(vector.type.element, [vector.type.element, vector.type])
            function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.{suffix(vector.type)}")
            # -0.0 is the neutral element of addition; reassoc: pairwise, not lane after lane
            totals.append(builder.call(function, [ir.Constant(vector.type.element, -0.0), vector], fastmath=("reassoc",)))
        return packed(builder, totals)

    return found(tile), generate


@intrinsic
def largest(typing, tile):
    """The largest number of one register; a NaN wins. Halves are compared, then halves of these."""
    if tile.count != 1:
        raise TypingError(f"simd.largest: takes one register; got {tile.count}")

    def generate(context, builder, signature, arguments):
        (best,) = parts_of(builder, arguments[0])
        lanes = best.type.count
        step = lanes // 2
        while step:
            order = ir.Constant(ir.VectorType(I32, lanes), [(j + step) % lanes for j in range(lanes)])
            best = _larger(builder, best, builder.shuffle_vector(best, best, order))
            step //= 2
        return builder.extract_element(best, ir.Constant(I32, 0))

    return tile.dtype.dtype(tile), generate


@intrinsic
def transposed(typing, tile):
    """n registers of n lanes, rows and columns exchanged: log2(n) rounds of exchanging blocks of 1, 2, 4, ... lanes."""
    if tile.count != tile.dtype.lanes:
        raise TypingError(f"simd.transposed: needs as many registers as lanes; got {tile.count} of {tile.dtype.lanes}")

    def generate(context, builder, signature, arguments):
        rows = parts_of(builder, arguments[0])
        n = len(rows)

        def shuffled(a, b, order):
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, n), order))

        step = 1
        while step < n:
            for i in range(n):
                if not i & step:
                    a, b = rows[i], rows[i + step]
                    rows[i] = shuffled(a, b, [j if not j & step else n + j - step for j in range(n)])
                    rows[i + step] = shuffled(a, b, [j + step if not j & step else n + j for j in range(n)])
            step *= 2
        return packed(builder, rows)

    return tile(tile), generate
