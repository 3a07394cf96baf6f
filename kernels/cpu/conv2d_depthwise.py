"""Depthwise convolution by itself: each channel with a filter of its own, channels in the lanes (layers.depthwise).

conv2d_simd.py hands over the calls in which there are as many groups as channels and filters: a group's one filter would
leave three of four lanes empty there. Here images are brought into rows of pixels, padding around them, unless they lie
so already; all channels of a pixel then meet their own weights side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np

from tinynet.kernels.cpu import layers, threads, tiles, tiles_winograd
from tinynet.kernels.cpu.images import MOST_CHUNKS, Images, chunk_sums, phases, shared, span, with_lanes
from tinynet.kernels.cpu.memory import lanes_of
from tinynet.kernels.cpu.program import ARRAYS, KEPT, SCRATCH, Prepared, compiled, lines, named

FIRST, SECOND, BIAS, OUT, *_ = ARRAYS  # where a call's arrays lie (program.Prepared)


def takes(weight_shape: tuple[int, ...], groups: int) -> bool:
    return groups > 1 and weight_shape[0] == groups and weight_shape[1] == 1


@dataclass(frozen=True)
class _Rows:
    """Images as rows of pixels of `lanes` channels: where the pixel (0, 0) of the first lies, and steps in elements."""

    place: tuple[int, int, int]
    row: int
    column: int
    item: int

    def at(self, i: int = 0, j: int = 0) -> tuple[int, int, int]:
        start, *steps = self.place
        return (start + (i * self.row + j * self.column) * self.item, *steps)


class _Way:
    """The scratch memory of a call, and its phases: either all kernels go over one image after the other, or, where images are
    few, each is a phase of its own that shares out an image's rows, and every image has memory."""

    def __init__(self, images: int, chunks: int, shares: int, dtype, slots: int):
        self.images, self.chunks, self.shares, self.dtype, self.item = images, chunks, shares, dtype, np.dtype(dtype).itemsize
        self.apart, self.slots = shares > 1, slots
        self.elements = 0
        self.rows: list[list[int]] = []

    def take(self, elements: int) -> int:
        """Scratch memory: its address."""
        at = SCRATCH + self.elements * self.item
        self.elements += lines(elements, self.dtype)
        return at

    def own(self, elements: int) -> tuple[int, int, int]:
        """Scratch memory for an image, as a kernel finds it."""
        step = lines(elements, self.dtype)
        start = self.take(step * (self.images if self.apart else self.slots))
        return (start, 0, step * self.item) if self.apart else (start, step * self.item, 0)

    def enter(self, x: Images, lanes: int, top: int, bottom: int, left: int, right: int) -> _Rows:
        if not x.first and lanes == x.channels and not (top or bottom or left or right):
            return _Rows((x.address, 0, x.image * x.item), x.row, x.column, x.item)
        high, wide = top + x.rows + bottom, left + x.columns + right
        own = self.own(high * wide * lanes)
        numbers = dict(high=high, wide=wide, lanes=lanes, top=top, left=left, rows=x.rows, columns=x.columns, channels=x.channels)
        places = dict(x=x.address, x_image=x.image, x_row=x.row, x_column=x.column, x_channel=x.channel, y=own)
        self.rows.append(named(compiled(tiles_winograd.enter_lanes, self.dtype), tiles_winograd.ENTER, numbers | places))
        return _Rows(_Rows(own, wide * lanes, lanes, x.item).at(top, left), wide * lanes, lanes, x.item)

    def leaving(self, y: Images, lanes: int) -> tuple[_Rows, list]:
        """Where results go, and the rows that bring them from there to the caller's array."""
        if not y.first and lanes == y.channels:
            return _Rows((y.address, 0, y.image * y.item), y.row, y.column, y.item), []
        own = self.own(y.rows * y.columns * lanes)
        numbers = dict(rows=y.rows, columns=y.columns, lanes=lanes, channels=y.channels, x=own, y=y.address, y_image=y.image, y_row=y.row, y_column=y.column, y_channel=y.channel)
        return _Rows(own, y.columns * lanes, lanes, y.item), [named(compiled(tiles_winograd.leave_lanes, self.dtype), tiles_winograd.LEAVE, numbers)]

    def over_images(self, stages: list[list]) -> list:
        """Phases of stages of rows; those of one stage may run at once."""
        if not self.apart:
            return [([r for stage in stages for r in stage], self.images, self.chunks, 1)]
        return [(stage, self.images, self.images, self.shares) for stage in stages if stage]


def _weights(way: _Way, weight_shape: tuple[int, ...], lanes: int) -> tuple[int, tuple]:
    """(where the weights will lie as (taps, lanes), the phase that brings them there)"""
    k, _, kh, kw = weight_shape
    w = way.take(kh * kw * lanes)
    numbers = dict(outer=1, inner=1, rows=k, w_row=kh * kw, columns=kh * kw, y_step=lanes, lanes=lanes, panel=lanes, w=SECOND, y=w)
    return w, ([named(compiled(layers.pack, way.dtype), layers.PACK, numbers)], 1, 1, 1)


def conv2d(x, weight, bias, *, stride, padding, dilation, layout, out) -> None:
    lanes = lanes_of(weight.shape[0])
    call = _forward(x.shape, weight.shape, bias is not None, x.dtype.type, stride, padding, dilation, layout, out.shape, threads.count())
    call(np.ascontiguousarray(x), np.ascontiguousarray(weight), with_lanes(bias, 1, lanes), out)


@lru_cache(KEPT)
def _forward(x_shape, weight_shape, biased, dtype, stride, padding, dilation, layout, out_shape, slots) -> Prepared:
    k, _, kh, kw = weight_shape
    x, y, lanes = Images(x_shape, layout, dtype, FIRST), Images(out_shape, layout, dtype, OUT), lanes_of(k)
    way = _Way(x.n, *shared(x.n, y.rows), dtype, slots)
    w, packed = _weights(way, weight_shape, lanes)
    (top, bottom), (left, right) = padding
    source = way.enter(x, lanes, top, bottom, left, right)
    target, leave = way.leaving(y, lanes)
    numbers = dict(
        outputs=y.rows, columns=y.columns, lanes=lanes, taps_a=kh, taps_b=kw, ta=dilation[0] * source.row, tb=dilation[1] * source.column, wa=kw * lanes, wb=lanes,
        iy=stride[0] * source.row, ix=stride[1] * source.column, x=source.at(-top, -left), w=w, bias=BIAS if biased else 0, y=target.at(), oy=target.row, ox=target.column,
    )  # fmt: skip
    flops = 2 * prod(out_shape) * kh * kw
    tile = tiles.best_depthwise(max(y.rows // way.shares, 1), y.columns, lanes, dtype)
    kernel = compiled(layers.depthwise, *tile, tiles.pixel_step(stride[1] * source.column, flops), dtype)
    return Prepared([packed, *way.over_images([way.rows, [named(kernel, tiles.CONV, numbers)], leave])], way.elements, dtype, flops)


def conv2d_dx(dy, weight, *, stride, padding, dilation, layout, out) -> None:
    call = _images_gradient(dy.shape, weight.shape, dy.dtype.type, out.shape, stride, padding, dilation, layout, threads.count())
    call(np.ascontiguousarray(dy), np.ascontiguousarray(weight), None, out)


@lru_cache(KEPT)
def _images_gradient(dy_shape, weight_shape, dtype, x_shape, stride, padding, dilation, layout, slots) -> Prepared:
    k, _, kh, kw = weight_shape
    dy, dx, lanes = Images(dy_shape, layout, dtype, FIRST), Images(x_shape, layout, dtype, OUT), lanes_of(k)
    down, across = (phases(*axis) for axis in zip((kh, kw), stride, dilation, (padding[0][0], padding[1][0]), (dx.rows, dx.columns)))
    (up, low), (near, far) = span(down), span(across)
    rows, columns = -(-dx.rows // stride[0]), -(-dx.columns // stride[1])
    way = _Way(dy.n, *shared(dy.n, min(many for _, many, *_ in down)), dtype, slots)
    w, packed = _weights(way, weight_shape, lanes)
    source = way.enter(dy, lanes, max(-up, 0), max(rows + low - dy.rows, 0), max(-near, 0), max(columns + far - dy.columns, 0))
    target, leave = way.leaving(dx, lanes)
    flops, sums = 2 * prod(dy_shape) * kh * kw, []
    for phase, many, u, su, mu, offset, back in down:
        for side, wide, v, sv, mv, shift, aside in across:
            # from the last tap to the first: dy is read forward
            last = (u + (mu - 1) * su) * kw + v + (mv - 1) * sv if mu and mv else 0
            numbers = dict(
                outputs=many, columns=wide, lanes=lanes, taps_a=mu if mv else 0, taps_b=mv, ta=back * source.row, tb=aside * source.column, wa=-su * kw * lanes, wb=-sv * lanes,
                iy=source.row, ix=source.column, x=source.at(offset - (mu - 1) * back, shift - (mv - 1) * aside), w=w + last * lanes * dy.item,
                y=target.at(phase, side), oy=stride[0] * target.row, ox=stride[1] * target.column,
            )  # fmt: skip
            tile = tiles.best_depthwise(max(many // way.shares, 1), wide, lanes, dtype)
            sums.append(named(compiled(layers.depthwise, *tile, tiles.pixel_step(source.column, flops), dtype), tiles.CONV, numbers))
    return Prepared([packed, *way.over_images([way.rows, sums, leave])], way.elements, dtype, flops)


def conv2d_dw(dy, x, *, stride, padding, dilation, layout, out) -> None:
    call = _weights_gradient(dy.shape, x.shape, x.dtype.type, out.shape, stride, padding, dilation, layout, threads.count())
    call(np.ascontiguousarray(dy), np.ascontiguousarray(x), None, out)


@lru_cache(KEPT)
def _weights_gradient(dy_shape, x_shape, dtype, weight_shape, stride, padding, dilation, layout, slots) -> Prepared:
    k, _, kh, kw = weight_shape
    dy, x, lanes = Images(dy_shape, layout, dtype, FIRST), Images(x_shape, layout, dtype, SECOND), lanes_of(k)
    # The chunks, and with them the order of every sum, depend on the shapes alone: not on the number of threads.
    chunks = min(dy.n, MOST_CHUNKS)
    way = _Way(dy.n, chunks, MOST_CHUNKS // chunks, dtype, slots)
    (top, bottom), (left, right) = padding
    xs, dys = way.enter(x, lanes, top, bottom, left, right), way.enter(dy, lanes, 0, 0, 0, 0)
    tile = tiles.DepthwiseWeights((kh, kw), (dilation[0] * xs.row, dilation[1] * xs.column), lanes, dtype)
    sums = way.take(chunks * tile.size)
    numbers = dict(
        height=dy.rows, columns=dy.columns, lanes=lanes, **tile.numbers, iy=stride[0] * xs.row, ix=stride[1] * xs.column, gy=dys.row, gx=dys.column,
        x=xs.at(-top, -left), dy=dys.at(), **chunk_sums(sums, tile.size * dy.item, dy.n, chunks),
    )  # fmt: skip
    summed = named(compiled(layers.depthwise_dw, *tile.constants, dtype), tiles.DW, numbers)
    gathered = named(compiled(tiles.gather, tile.width, dtype), tiles.GATHER, dict(x=sums, chunks=chunks, x_chunk=tile.size, count=k, y=OUT, **tile.gathered))
    ways = way.over_images([way.rows]) if way.apart and way.rows else []
    ways.append(([summed] if way.apart else [*way.rows, summed], dy.n, chunks, min(way.shares, tile.units)))
    return Prepared([*ways, ([gathered], 1, 1, 1)], way.elements, dtype, 2 * prod(dy_shape) * kh * kw)
