"""Convolution by Winograd's algorithm (tiles_winograd.py), as variants that somebody asks for:

    with tinynet.use(conv2d="cpu.winograd", conv2d_dx="cpu.winograd", conv2d_dw="cpu.winograd"):

`winograd` computes tiles of 4 x 4 outputs, 4 times fewer multiplications; `winograd2` tiles of 2 x 2, 2.25 times fewer and
nearer to the truth. They take 3 x 3 kernels of stride 1, dilation 1 and one group, on images of at least one tile of outputs
(the images' gradient: one tile of inputs, and at most 2 of padding on each side); every other call is computed by `simd`.

What can be promised. A direct sum errs by a share of its own terms; here an output also gets errors of its neighbours' terms,
so no bound holds for each element, only for all together (docs/oracle.md): ||error|| <= norm * ||gauge||. Let rounding errors
be at most u of what is rounded, as often up as down, and the data without a mean (as in the oracle's cases). With numbers of
variance 1, output i of one row gets, of every product k, the variance that its matrices give it:

    a_i = sum over k of last[k, i]^2 * |first[k]|^2 * |second[k]|^2       |.|: the 2-norm of a row

(forward: last = A, first = G, second = B^T; weights: last = G, first = B^T, second = A; images: as forward, or last = B^T, first = G,
second = A), in two dimensions a_i * a_j. A
chain of c roundings makes an error of variance c u^2 times that, and the gauge of n terms is n * 2/pi, the mean |x| |w| of
normal numbers: so norm = u * sqrt(c) * mean(a) * pi / (2 n). Here c counts the terms of the matrices' rows, twice, and n is that of
one tile and one channel: 9, or M * M for weights. More terms make it smaller: the error grows with the root of their number.
(Not where hundreds of channels all have one sign: there every order of additions errs by the root of their number more.)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from tinynet.kernels.contract import implements
from tinynet.kernels.cpu import conv2d_simd, threads
from tinynet.kernels.cpu import tiles_winograd as kernels
from tinynet.kernels.cpu.images import Images, chunk_sums, images_of, shared
from tinynet.kernels.cpu.memory import lanes_of
from tinynet.kernels.cpu.program import address_of, compiled, lines, named, play, scratch_address, table_of
from tinynet.kernels.cpu.tiles import fitting
from tinynet.kernels.cpu.tiles_winograd import Tiles, TurnedTiles, WeightsTiles, pitch, turned_pays, u_steps


def _norm(last, first, second, terms: float) -> float:
    """See above. first, second: what meets in a product, each as its matrix with a row for each k."""
    last, first, second = (np.array(matrix, float) for matrix in (last, first, second))
    a = (last**2).T @ ((first**2).sum(axis=1) * (second**2).sum(axis=1))
    roundings = 1 + 2 * sum(int(np.count_nonzero(matrix, axis=1).max()) for matrix in (last.T, first, second))
    return float(2.0**-24 * np.sqrt(roundings) * a.mean() * np.pi / (2 * terms))


def _turned(matrix):
    return tuple(zip(*matrix))


VARIANTS = {"winograd": 4, "winograd2": 2}  # name: M
NORM = {m: _norm(kernels.A[m], kernels.G[m], _turned(kernels.B[m]), 9) for m in VARIANTS.values()}
# Tiles of dy: (M + 2)^2 sums each, of M * 3 / (M + 2) terms in a row on average (where tiles overlap, sums and terms are more).
NORM_DX = {m: max(NORM[m], _norm(_turned(kernels.B[m]), kernels.G[m], kernels.A[m], (3 * m / (m + 2)) ** 2)) for m in VARIANTS.values()}
NORM_DW = {m: _norm(kernels.G[m], _turned(kernels.B[m]), kernels.A[m], m * m) for m in VARIANTS.values()}


def _takes(m: int, weight, stride, dilation, groups, y: Images) -> bool:
    return y.n > 0 and weight.shape[2:] == (3, 3) and (*stride, *dilation, groups) == (1,) * 5 and min(y.rows, y.columns) >= m


# --- calls as programs --------------------------------------------------------------------------------------------------


def _cut(dtype, *sizes: int) -> list[int]:
    """Scratch memory in pieces of so many elements: their addresses."""
    starts = np.cumsum([0, *(lines(size, dtype) for size in sizes)])
    item = np.dtype(dtype).itemsize
    base = scratch_address(int(starts[-1]) * item)
    return [base + int(start) * item for start in starts[:-1]]


class _Places:
    """Where images lie on their way: with `apart` each has memory of its own, so that a phase for each kernel can share out its
    rows (few images); else there is one image's a slot, which stays in a cache from the first kernel to the last."""

    def __init__(self, images: int, apart: bool):
        self.images, self.apart = images, apart
        self.copies = images if apart else threads.count()

    def steps(self, elements: int, item: int) -> tuple[int, int]:
        """Bytes from one slot and from one image to the next."""
        return (0, elements * item) if self.apart else (elements * item, 0)

    def phases(self, rows: list[list[int]], chunks: int, shares: int) -> list:
        return [([r], self.images, self.images, shares) for r in rows] if self.apart else [(rows, self.images, chunks, 1)]


def _enter(x: Images, high: int, wide: int, top: int, left: int, y: tuple[int, int, int]) -> list[int]:
    """The row that brings images in, after `top` rows and `left` columns of zeros, as high x wide x lanes."""
    numbers = dict(high=high, wide=wide, lanes=lanes_of(x.channels), top=top, left=left, rows=x.rows, columns=x.columns, channels=x.channels)
    places = dict(x=x.address, x_image=x.image, x_row=x.row, x_column=x.column, x_channel=x.channel, y=y)
    return named(compiled(kernels.enter_lanes, x.array.dtype.type), kernels.ENTER, numbers | places)


def _play(phases: list) -> None:
    table = table_of(phases)
    play(address_of(table), threads.count())


@dataclass
class _Between:
    """What a call's main kernel works on: x and y with the steps from pixel to pixel, transformed weights, and scratch memory."""

    x: tuple[int, int, int]
    x_row: int
    y: tuple[int, int, int]
    y_row: int
    u: dict[str, int]  # and the steps through it
    work: tuple[int, int]


def _call(m: int, x: Images, size: tuple[int, int, int, int], weight, weights: dict, y: Images, work: int, main) -> None:
    """x, as (rows, columns) after (top, left) zeros, through the kernel whose row `main` makes of a _Between, to y. weights: as
    `weights_in` reads them. work: elements of scratch memory."""
    dtype, item, slots = x.array.dtype.type, x.item, threads.count()
    (high, wide, top, left), channels, lanes = size, lanes_of(x.channels), lanes_of(y.channels)
    w = fitting(lanes, dtype)
    chunks, shares = shared(x.n, y.rows)
    places = _Places(x.n, shares > 1)
    apart = y.first or lanes > y.channels  # else tiles store their outputs where they belong
    entered, made = lines(high * wide * channels, dtype), lines(y.rows * y.columns * lanes, dtype) if apart else 0
    steps = u_steps(x.channels, lanes, dtype)
    u, taps, scratch, ours, theirs = _cut(dtype, (m + 2) ** 2 * steps["u_pitch"], slots * 9 * w * kernels.MADE, slots * work, places.copies * entered, places.copies * made)
    ours = (ours, *places.steps(entered, item))
    theirs = (theirs, *places.steps(made, item)) if apart else (y.address, 0, y.image * item)
    weight = np.ascontiguousarray(weight)
    numbers = dict(terms=x.channels, count=y.channels, lanes=lanes, w=address_of(weight), **weights, u=u, **steps, taps=(taps, 9 * w * kernels.MADE * item))
    transformed = named(compiled(kernels.weights_in, m, w, dtype), kernels.WEIGHTS, numbers)
    rows = [_enter(x, high, wide, top, left, ours), main(_Between(ours, wide * channels, theirs, y.columns * lanes, dict(u=u, **steps), (scratch, work * item)))]
    if apart:
        numbers = dict(rows=y.rows, columns=y.columns, lanes=lanes, channels=y.channels, x=theirs, y=y.address, y_image=y.image, y_row=y.row, y_column=y.column, y_channel=y.channel)
        rows.append(named(compiled(kernels.leave_lanes, dtype), kernels.LEAVE, numbers))
    _play([([transformed], 1, 1, 16), *places.phases(rows, chunks, shares)])


def _convolve(m: int, x: Images, weight, bias, top: int, left: int, y: Images, flip: bool) -> None:
    """y = x, after `top` rows and `left` columns of zeros, convolved; flip: with the weights of the images' gradient."""
    dtype, channels, lanes = x.array.dtype.type, lanes_of(x.channels), lanes_of(y.channels)
    tiles = Tiles(m, y.rows, y.columns, channels, x.channels, lanes, dtype)
    bias = None if bias is None else np.pad(bias, (0, lanes - y.channels))

    def main(b: _Between):
        numbers = dict(
            **tiles.numbers, iy=b.x_row, ix=channels, x=b.x, **b.u, bias=0 if bias is None else address_of(bias),
            work=b.work, y=b.y, oy=b.y_row, ox=lanes,
        )  # fmt: skip
        return named(compiled(kernels.winograd, *tiles.constants, 0, dtype), kernels.WINOGRAD, numbers)

    steps = dict(w_term=9 * weight.shape[1], w_lane=9) if flip else dict(w_term=9, w_lane=9 * weight.shape[1])
    _call(m, x, (y.rows + 2, y.columns + 2, top, left), weight, dict(steps, flip=flip), y, tiles.work, main)


def _convolve_back(m: int, dy: Images, weight, top: int, left: int, dx: Images) -> None:
    """dx out of tiles of dy. top, left: the convolution's padding."""
    dtype, channels, lanes = dy.array.dtype.type, lanes_of(dy.channels), lanes_of(dx.channels)
    tiles = TurnedTiles(m, dy.rows, dy.columns, channels, dy.channels, dx.rows, dx.columns, top, left, lanes, dtype)

    def main(b: _Between):
        numbers = dict(**tiles.numbers, gy=b.x_row, gx=channels, dy=b.x, **b.u, work=b.work, dx=b.y, dx_y=b.y_row, dx_x=lanes)
        return named(compiled(kernels.winograd_dx, *tiles.constants, dtype), kernels.WINOGRAD_DX, numbers)

    whole = (ceil(dy.rows / m) * m, ceil(dy.columns / m) * m, 0, 0)
    _call(m, dy, whole, weight, dict(w_term=9 * weight.shape[1], w_lane=9, flip=False), dx, tiles.work, main)


def _forward(m: int, x, weight, bias, out, **window) -> None:
    y = images_of(out, window["layout"])
    if not _takes(m, weight, window["stride"], window["dilation"], window["groups"], y):
        return conv2d_simd.conv2d(x, weight, bias, **window, out=out)
    (top, _), (left, _) = window["padding"]
    _convolve(m, images_of(np.ascontiguousarray(x), window["layout"]), weight, bias, top, left, y, flip=False)


def _images_gradient(m: int, dy, weight, out, x_shape, **window) -> None:
    dx, ((top, bottom), (left, right)) = images_of(out, window["layout"]), window["padding"]
    if not _takes(m, weight, window["stride"], window["dilation"], window["groups"], dx) or max(top, bottom, left, right) > 2:
        return conv2d_simd.conv2d_dx(dy, weight, x_shape=x_shape, **window, out=out)
    dy = images_of(np.ascontiguousarray(dy), window["layout"])
    if turned_pays(m, dy.rows, dy.columns, m, dx.rows, dx.columns):
        return _convolve_back(m, dy, weight, top, left, dx)
    _convolve(m, dy, weight, None, 2 - top, 2 - left, dx, flip=True)


MOST_SUMS = 1 << 22  # elements of partial sums, over all chunks


def _weights_gradient(m: int, dy, x, out, weight_shape, **window) -> None:
    dy, x = (images_of(np.ascontiguousarray(a), window["layout"]) for a in (dy, x))
    if not _takes(m, out, window["stride"], window["dilation"], window["groups"], dy):
        return conv2d_simd.conv2d_dw(dy.array, x.array, weight_shape=weight_shape, **window, out=out)
    (top, _), (left, _) = window["padding"]
    dtype, item, slots = x.array.dtype.type, x.item, threads.count()
    channels, lanes, high, wide = lanes_of(x.channels), lanes_of(dy.channels), ceil(dy.rows / m) * m, ceil(dy.columns / m) * m
    tiles, w = WeightsTiles(m, dy.rows, dy.columns, channels, x.channels, lanes, dtype), fitting(lanes, dtype)
    # The chunks, and with them the order of every sum, depend on the shapes alone: not on the number of threads.
    sums_pitch = pitch(x.channels * lanes, dtype)
    size = (m + 2) ** 2 * sums_pitch
    chunks = max(1, min(x.n, 8, MOST_SUMS // size))
    places = _Places(x.n, chunks < 8)
    of_x, of_dy = lines((high + 2) * (wide + 2) * channels, dtype), lines(high * wide * lanes, dtype)
    sums = np.empty(chunks * size, dtype)
    work, taps, xs, dys = _cut(dtype, slots * tiles.work, slots * 9 * w * x.channels, places.copies * of_x, places.copies * of_dy)
    xs, dys = (xs, *places.steps(of_x, item)), (dys, *places.steps(of_dy, item))
    numbers = dict(
        **tiles.numbers, iy=(wide + 2) * channels, ix=channels, x=xs, gy=wide * lanes, gx=lanes, dy=dys, work=(work, tiles.work * item),
        **chunk_sums(address_of(sums), size * item, x.n, chunks), sums_pitch=sums_pitch,
    )  # fmt: skip
    images = [_enter(x, high + 2, wide + 2, top, left, xs), _enter(dy, high, wide, 0, 0, dys)]
    products = named(compiled(kernels.winograd_dw, *tiles.constants, 0, dtype), kernels.WINOGRAD_DW, numbers)
    numbers = dict(
        terms=x.channels, count=dy.channels, lanes=lanes, sums=address_of(sums), chunks=chunks, sums_chunk=size * item, sums_pitch=sums_pitch,
        w=address_of(out), taps=(taps, 9 * w * x.channels * item),
    )  # fmt: skip
    weights = [named(compiled(kernels.weights_out, m, w, dtype), kernels.WEIGHTS_OUT, numbers)], 1, 1, 16
    if places.apart:
        _play([*places.phases(images, 1, 4), ([products], x.n, chunks, ceil(8 / chunks)), weights])
    else:
        _play([([*images, products], x.n, chunks, 1), weights])


# --- the variants --------------------------------------------------------------------------------------------------------


def _register(variant: str, m: int) -> None:
    @implements("conv2d", device="cpu", variant=variant, norm=NORM[m])
    def conv2d(x, weight, bias, *, stride, padding, dilation, groups, layout, out):
        _forward(m, x, weight, bias, out, stride=stride, padding=padding, dilation=dilation, groups=groups, layout=layout)

    @implements("conv2d_dx", device="cpu", variant=variant, norm=NORM_DX[m])
    def conv2d_dx(dy, weight, *, x_shape, stride, padding, dilation, groups, layout, out):
        _images_gradient(m, dy, weight, out, x_shape, stride=stride, padding=padding, dilation=dilation, groups=groups, layout=layout)

    @implements("conv2d_dw", device="cpu", variant=variant, norm=NORM_DW[m])
    def conv2d_dw(dy, x, *, weight_shape, stride, padding, dilation, groups, layout, out):
        _weights_gradient(m, dy, x, out, weight_shape, stride=stride, padding=padding, dilation=dilation, groups=groups, layout=layout)


for _variant, _m in VARIANTS.items():
    _register(_variant, _m)
