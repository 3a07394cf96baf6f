"""Convolution on vector registers (simd.py): one tile of outputs is held in registers from its first term to its last.

    acc[i, j, :] += x[i, j] * weight[term, :]       lanes: output channels; a tile: rows x columns x channels

One kernel does the forward pass and the images' gradient: both are sums over taps (a, b) and channels c of

    y[i*oy + j*ox + o] = sum of x[i*iy + j*ix + a*ta + b*tb + c*tc] * w[(a, b, c), o]

in which stride, dilation and layout are nothing but steps through memory. So images are read where they lie, NCHW or
NHWC; only padding asks for a copy, of the rows that a thread is about to read. The gradient of a convolution of stride s is
s*s such sums of stride 1, one for each phase of the input's rows and columns, with the taps that meet that phase.

The weights' gradient holds a tile of weights in registers instead, channels of x times channels of dy:

    acc[c, :] += x[pixel, c] * dy[pixel, :]

Terms that are nothing but padding's zeros are left out where a tile can: rows of taps that no row of the tile finds in the image,
and for weights' gradients columns too (tiles.Axis). 5 x 5 taps on 7 x 7 pixels meet a pixel in 69 % of all cases. In a compiled
network a tile may be one pixel of many images, and leaves out all of them (conv_batch). (So where an infinite
weight meets padding, how many rows a tile has, and with it the number of threads, decides whether 0 * inf makes a NaN.)

Weights are copied first, into panels: all terms of a tile's channels, then those of the next ones. So a tile reads them from one end to the
other. (With the channels of a term side by side it would read 64 bytes of every 512 or 2048, and those share a few places in either
cache: 512 channels on 4 x 4 pixels took twice as long.)

Nothing is left over at the end of a row or of the channels: the last tile is moved back until it fits, and computes
some outputs again. Groups of fewer than 4 output channels are widened to 4 lanes, with weights of 0 in the rest; depthwise convolution,
whose groups are single channels, has kernels of its own (conv2d_depthwise.py).

images.py has the copies that padding and layouts ask for (copies_kernels.py: their code). Next on the walk, and its end: tiles.py, which tile, and
tiles_kernels.py, the kernels themselves.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, prod

import numpy as np

from tinynet.geometry import reach
from tinynet.kernels.contract import implements
from tinynet.kernels.cpu import conv2d_depthwise as depthwise
from tinynet.kernels.cpu import layers, threads, tiles
from tinynet.kernels.cpu.images import MOST_CHUNKS, Entering, Images, Leaving, axis_back, chunk_sums, most_taps, phases, shared, span, widened, with_lanes
from tinynet.kernels.cpu.program import ARRAYS, KEPT, SCRATCH, Prepared, compiled, lines, named, row
from tinynet.kernels.cpu.tiles import Weights


# A call is prepared once for its shapes, and then only told where its arrays lie (program.Prepared): stand-ins for these.
X, WEIGHT, BIAS, OUT, *_ = ARRAYS
PLACES = tiles.MOST_LISTED * 16  # bytes of a thread's list of terms (tiles.listed)
WORTH_A_PIECE = 4096  # weights that are worth a thread's waking


# --- weights in the order in which a tile reads them ----------------------------------------------------


def packing(shape: tuple[int, ...], groups: int, forward: bool, panel: int, lanes: int, turned: bool = False) -> tuple[dict, int, dict]:
    """(numbers of `pack`; where, among the numbers that it writes, the first tap lies; steps through these), which lie as (groups, panels,
    taps, terms, lanes): for every group y[p, t, c, lane] = weight[first + lane, c, t], or y[p, t, k, lane] = weight[k, first + lane, t] for the
    gradient of the images. panel: lanes of one, as many as a tile has; lanes: of a group. turned: the last tap lies first."""
    k, c, kh, kw = shape
    taps, (count, terms) = kh * kw, (k // groups, c) if forward else (c, k // groups)
    panels, tap = ceil(lanes / panel), terms * panel
    numbers = dict(outer=groups, w_outer=k // groups * c * taps, rows=count, lanes=lanes, panel=panel, y_panel=taps * tap)
    if taps == 1 and forward:  # one transposition a panel
        numbers.update(inner=1, w_inner=terms, w_row=terms, columns=terms, y_step=panel)
    else:
        w_inner, w_row = (taps, c * taps) if forward else (c * taps, taps)
        numbers.update(inner=terms, w_inner=w_inner, y_inner=panel, w_row=w_row, columns=taps, y_step=-tap if turned else tap)
    return numbers, (taps - 1) * tap if turned else 0, dict(w_group=panels * taps * tap, w_panel=taps * tap, w_term=panel)


def packed(shape: tuple[int, ...], groups: int, forward: bool, panel: int, weight: int, target: int, dtype) -> tuple[tuple, dict]:
    """(the phase that packs weights, steps through them): see `packing`."""
    numbers, _, steps = packing(shape, groups, forward, panel, widened(shape[0] // groups if forward else shape[1]))
    pieces = min(ceil(prod(shape) / WORTH_A_PIECE), 16)
    return ([named(compiled(layers.pack, dtype), layers.PACK, dict(numbers, w=weight, y=target))], 1, 1, pieces), steps


# --- forward -----------------------------------------------------------------------------------------------


@implements("conv2d", device="cpu", variant="simd", default=True)
def conv2d(x, weight, bias, *, stride, padding, dilation, groups, layout, out):
    if depthwise.takes(weight.shape, groups):
        depthwise.conv2d(x, weight, bias, stride=stride, padding=padding, dilation=dilation, layout=layout, out=out)
        return
    lanes = widened(weight.shape[0] // groups)
    call = _forward(x.shape, weight.shape, bias is not None, x.dtype.type, stride, padding, dilation, groups, layout, out.shape, threads.count())
    call(np.ascontiguousarray(x), np.ascontiguousarray(weight), with_lanes(bias, groups, lanes), out)


@lru_cache(KEPT)
def _forward(x_shape, weight_shape, biased, dtype, stride, padding, dilation, groups, layout, out_shape, slots) -> Prepared:
    k, c, kh, kw = weight_shape
    lanes = widened(k // groups)
    x, y = Images(x_shape, layout, dtype, X), Images(out_shape, layout, dtype, OUT)
    chunks, shares = shared(x.n, y.rows)
    (top, _), (left, right) = padding
    copy = Entering(x, stride[0], top, reach(kh, dilation[0]), (left, right), y.rows, shares, any(map(any, padding)))
    result = Leaving(y, groups, 1, y.rows, shares)
    base = SCRATCH
    target = base + slots * copy.slot
    w = target + slots * result.slot
    ix, flops = stride[1] * copy.column, 2 * x.n * y.rows * y.columns * prod(weight_shape)
    listed, axis, step = tiles.listed(kh * kw, c), tiles.Axis(-top, stride[0], dilation[0], kh, x.rows, y.rows), tiles.pixel_step(ix, flops)
    tile = tiles.best(y.rows // shares, y.columns, lanes, c * kh * kw, 1 if listed else kh * kw, dtype, axis=axis, step=step)
    panel = tile[2] * tile[3]
    first, steps = packed(weight_shape, groups, True, panel, WEIGHT, w, dtype)
    numbers = dict(
        outputs=y.rows, limit=y.rows, columns=y.columns, taps_a=kh, taps_b=kw, terms=c,
        ta=dilation[0] * copy.row, tb=dilation[1] * copy.column, tc=copy.channel, wa=kw * c * panel, wb=c * panel, **steps,
        iy=stride[0] * copy.row, ix=ix, groups=groups, lanes=lanes, x_group=c * copy.channel,
        x=copy.place(base), x_first=copy.first_row, w=w, bias=BIAS if biased else 0,
        y=result.place(target), y_first=result.first_row, oy=result.row, ox=result.column,
    )  # fmt: skip
    places = lines(groups * steps["w_group"], dtype)
    numbers.update(places=(w + places * y.item, PLACES), **axis.numbers("row"))
    kernel = compiled(tiles.conv, *tile, step, listed, dtype)
    images = [*copy.rows_of(base, dtype), named(kernel, tiles.CONV, numbers), *result.rows_of(target, dtype)]
    return Prepared([first, (images, x.n, chunks, shares)], slots * (copy.size + result.size) + places + slots * PLACES // y.item, dtype, flops)


# --- gradient of the images -----------------------------------------------------------------------------------


@implements("conv2d_dx", device="cpu", variant="simd", default=True)
def conv2d_dx(dy, weight, *, x_shape, stride, padding, dilation, groups, layout, out):
    if depthwise.takes(weight.shape, groups):
        depthwise.conv2d_dx(dy, weight, stride=stride, padding=padding, dilation=dilation, layout=layout, out=out)
        return
    call = _images_gradient(dy.shape, weight.shape, dy.dtype.type, out.shape, stride, padding, dilation, groups, layout, threads.count())
    call(np.ascontiguousarray(dy), np.ascontiguousarray(weight), None, out)


@lru_cache(KEPT)
def _images_gradient(dy_shape, weight_shape, dtype, x_shape, stride, padding, dilation, groups, layout, slots) -> Prepared:
    k, c, kh, kw = weight_shape
    lanes, terms = widened(c), k // groups
    dy, dx = Images(dy_shape, layout, dtype, X), Images(x_shape, layout, dtype, OUT)
    down, across = (phases(*axis) for axis in zip((kh, kw), stride, dilation, (padding[0][0], padding[1][0]), (dx.rows, dx.columns)))
    (up, low), (near, far) = span(down), span(across)
    rows = ceil(dx.rows / stride[0])  # of q, which parts share
    chunks, shares = shared(dy.n, rows)
    columns = ceil(dx.columns / stride[1])
    inside = up >= 0 and rows - 1 + low < dy.rows and near >= 0 and columns - 1 + far < dy.columns
    sides = (max(-near, 0), max(columns + far - dy.columns, 0))
    copy = Entering(dy, 1, -up, low - up + 1, sides, rows, shares, not inside)
    result = Leaving(dx, groups, stride[0], rows, shares)
    base = SCRATCH
    target = base + slots * copy.slot
    w = target + slots * result.slot
    flops = 2 * dy.n * dy.rows * dy.columns * prod(weight_shape)
    step = tiles.pixel_step(copy.column, flops)

    def tile_of(vertical, horizontal, panel: int = 0) -> tuple[int, int, int, int]:
        many, mu, wide, mv = vertical[1], vertical[4], horizontal[1], horizontal[4]
        least, segments = rows // shares if many == rows else 1, 1 if tiles.listed(mu * mv, terms) else max(mu * mv, 1)
        return tiles.best(least, wide, lanes, terms * mu * mv, segments, dtype, axis=axis_back(vertical, dy.rows), panel=panel, step=step)

    # All phases read the same panels: they are those that the phase with most taps wants.
    panel = prod(tile_of(most_taps(down), most_taps(across))[2:])
    first, steps = packed(weight_shape, groups, False, panel, WEIGHT, w, dtype)
    elements, tap = lines(groups * steps["w_group"], dtype), terms * panel
    places = w + elements * dy.item
    images = copy.rows_of(base, dtype)
    for vertical in down:
        phase, many, u, su, mu, _, back = vertical
        for horizontal in across:
            side, wide, v, sv, mv, shift, aside = horizontal
            listed, axis = tiles.listed(mu * mv, terms), axis_back(vertical, dy.rows)
            tile = tile_of(vertical, horizontal, panel)
            # rows from the last tap to the first: then dy is read forward
            start = (axis.first - up if copy.needed else axis.first) * copy.row + (shift + (sides[0] if copy.needed else 0)) * copy.column
            numbers = dict(
                outputs=rows, limit=many, columns=wide, taps_a=mu if mv else 0, taps_b=mv, terms=terms,
                ta=back * copy.row, tb=-aside * copy.column, tc=copy.channel, wa=-su * kw * tap, wb=sv * tap, **steps,
                iy=copy.row, ix=copy.column, groups=groups, lanes=lanes, x_group=terms * copy.channel,
                x=copy.place(base, start), x_first=copy.first_row, w=w + ((u + (mu - 1) * su) * kw + v) * tap * dy.item, **axis.numbers("row"),
                y=result.place(target, phase * result.row + side * result.column), y_first=result.first_row, oy=stride[0] * result.row, ox=stride[1] * result.column, places=(places, PLACES),
            )  # fmt: skip
            images.append(named(compiled(tiles.conv, *tile, step, listed, dtype), tiles.CONV, numbers))
    images += result.rows_of(target, dtype)
    return Prepared([first, (images, dy.n, chunks, shares)], slots * (copy.size + result.size + PLACES // dy.item) + elements, dtype, flops)


# --- gradient of the weights -------------------------------------------------------------------------------------

MOST_SUMS = 1 << 20  # elements of partial sums, over all chunks


@implements("conv2d_dw", device="cpu", variant="simd", default=True)
def conv2d_dw(dy, x, *, weight_shape, stride, padding, dilation, groups, layout, out):
    if not len(dy):
        out.fill(0)  # no image, so nobody writes a sum
        return
    if depthwise.takes(out.shape, groups):
        depthwise.conv2d_dw(dy, x, stride=stride, padding=padding, dilation=dilation, layout=layout, out=out)
        return
    call = _weights_gradient(dy.shape, x.shape, x.dtype.type, out.shape, stride, padding, dilation, groups, layout, threads.count())
    call(np.ascontiguousarray(dy), np.ascontiguousarray(x), None, out)


@lru_cache(KEPT)
def _weights_gradient(dy_shape, x_shape, dtype, weight_shape, stride, padding, dilation, groups, layout, slots) -> Prepared:
    k, c, kh, kw = weight_shape
    lanes = widened(k // groups)
    dy, x = Images(dy_shape, layout, dtype, X), Images(x_shape, layout, dtype, WEIGHT)
    (top, _), (left, right) = padding
    # Few images: parts share one's tiles, and all of them read the copies, which are made in a phase of their own then.
    apart = dy.n <= MOST_CHUNKS // 2
    copy = Entering(x, stride[0], top, reach(kh, dilation[0]), (left, right), dy.rows, 0, any(map(any, padding)), apart)
    axes = tiles.Axis(-top, stride[0], dilation[0], kh, x.rows, dy.rows), tiles.Axis(-left, stride[1], dilation[1], kw, x.columns, dy.columns)
    tile = Weights((kh, kw, c), (dilation[0] * copy.row, dilation[1] * copy.column, copy.channel), lanes, groups, axes, dtype)
    # The chunks, and with them the order of every sum, depend on the shapes alone: not on the number of threads.
    chunks = max(1, min(dy.n, MOST_CHUNKS, MOST_SUMS // tile.size))
    shares = max(1, min(MOST_CHUNKS // chunks, tile.units))
    places = dy.n if apart else slots

    wide = lanes > k // groups
    pitch = groups * lanes  # from one pixel of dy to the next, as a tile reads it
    turned = lines(dy.rows * dy.columns * pitch, dtype) if dy.first or wide else 0
    base = SCRATCH
    target = base + places * copy.size * dy.item
    sums = target + places * turned * dy.item
    copies = copy.rows_of(base, dtype)
    lanes_at = (target, 0, turned * dy.item) if apart else (target, turned * dy.item, 0)
    if wide:
        copies.append(row(compiled(tiles.turn_few, dtype), groups, k // groups, dy.rows * dy.columns, pitch, dy.address, dy.image, dy.channel, dy.column, *lanes_at))
    elif dy.first:
        copies.append(row(compiled(tiles.turn, dtype), dy.channels, dy.rows * dy.columns, dy.address, dy.image, dy.channel, *lanes_at))
    numbers = dict(
        height=dy.rows, columns=dy.columns, **tile.numbers, iy=stride[0] * copy.row, ix=stride[1] * copy.column, gy=dy.columns * pitch, gx=pitch,
        groups=groups, lanes=lanes, x_group=c * copy.channel, x=copy.place(base), dy=lanes_at if turned else (dy.address, 0, dy.image * dy.item),
        **chunk_sums(sums, tile.size * dy.item, dy.n, chunks), block=tiles.rows_at_once(dy.rows, dy.columns, pitch + copy.column),
    )  # fmt: skip
    summed = named(compiled(tiles.conv_dw, *tile.constants, dtype), tiles.DW, numbers)
    numbers = dict(x=sums, chunks=chunks, x_chunk=tile.size, count=k // groups, y=OUT, **tile.gathered)
    gathered = named(compiled(tiles.gather, tile.width, dtype), tiles.GATHER, numbers)
    pieces = min(tile.units, 16) if tile.size > 4096 else 1
    flops = 2 * dy.n * dy.rows * dy.columns * prod(weight_shape)
    images = [([*copies, summed], dy.n, chunks, shares)]
    if apart and copies:
        images = [(copies, dy.n, dy.n, 1), ([summed], dy.n, chunks, shares)]
    return Prepared([*images, ([gathered], 1, 1, pieces)], places * (copy.size + turned) + chunks * tile.size, dtype, flops)


# --- gradient of the bias ----------------------------------------------------------------------------------------


@implements("conv2d_db", device="cpu", variant="simd", default=True)
def conv2d_db(dy, *, layout, out):
    if not len(dy):
        out.fill(0)  # as above
        return
    _bias_gradient(dy.shape, dy.dtype.type, layout, threads.count())(np.ascontiguousarray(dy), out)


@lru_cache(KEPT)
def _bias_gradient(dy_shape, dtype, layout, slots) -> Prepared:
    dy = Images(dy_shape, layout, dtype, X)
    flops, y = prod(dy_shape), ARRAYS[1]
    if dy.first:
        numbers = dict(images=dy.n, run=dy.rows * dy.columns, image=dy.image, plane=dy.channel, dy=X, y=y)
        kernel = compiled(layers.plane_sums, max(tiles.TARGET.lanes(dtype), tiles.LEAST_LANES), dtype)
        return Prepared([([named(kernel, layers.PLANES, numbers)], dy.channels, *shared(dy.channels, 1))], 0, dtype, flops)
    # Sums of some images each, and then those: how many depends on the shapes alone, as for the weights' gradient.
    chunks, sums, w = min(dy.n, 8), SCRATCH, tiles.dividing(dy.channels, dtype)
    size = lines(dy.channels, dtype)
    images = dict(rows=dy.rows, columns=dy.columns, lanes=dy.channels, dy=(X, 0, dy.image * dy.item), dy_y=dy.row, dy_x=dy.column, **chunk_sums(sums, size * dy.item, dy.n, chunks))
    summed = named(compiled(layers.channel_sums, w, dtype), layers.SPREAD, images)
    added = named(compiled(layers.row_sums, dtype), layers.FEATURES, dict(count=dy.channels, images=chunks, dy=sums, dy_row=size, y=y))
    return Prepared([([summed], dy.n, chunks, max(1, min(8 // chunks, dy.channels // w))), ([added], 1, 1, 1)], chunks * size, dtype, flops)
