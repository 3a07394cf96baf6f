"""Convolution and its gradients on a GPU: what of conv2d.cu is launched, on which arrays.

Its kernels compute y[g,n,k,i,j] = sum over c,u,v of x[g, n, c, i*s + u*d - p, j*s + v*d - p] * w[g,k,c,u,v] of arrays with
strides, so an array is given as it is, in any layout. And so the gradients need no kernels of their own:

    dx   the same sum over dy, with weights whose taps run backwards and whose k and c have changed places. With a stride s,
         the rows h0, h0 + s, ... of dx meet every s-th tap alone: one convolution for each h0 < s (and each column likewise).
    dw   the same sum over x, with dy for weights: x's channels are the images, images the channels, and outputs the taps;
         stride and dilation change places.

Copied are weights alone, and only where what threads read together does not lie side by side (NHWC, dx): they are few.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from math import gcd, prod
from pathlib import Path
from typing import Any

import numpy as np

from tinynet.kernels.cuda.both import implements_on_both
from tinynet.kernels.cuda.launch import REALS, address, contiguous, empty, in_elements, kernel, real, strides_of
from tinynet.kernels.cuda.sums import add_parts, split_of

FILE = Path(__file__).with_suffix(".cu")
PLACES = 128  # of a block of `registers`
DEFAULT = "registers"
FEW = 8  # channels: with fewer, most of a block of `registers` would be empty
LEAST_TERMS = 64  # of a sum that is split, in each part
TAPS = 9  # outputs of a block of `terms`, as in conv2d.cu
TERMS_OF_THREAD = 4  # at least, in `terms`
MOST = 2**30  # places, terms: threads count them in 32 bits


@dataclass(frozen=True)
class Convolution:
    """One launch. The arrays' axes: x (group, image, channel, row, column), w (group, out, channel, row, column),
    y (part, group, image, out, row, column). A sum that is split leaves its parts in y. dw: they are a weights' gradient's."""

    x: Any
    w: Any
    y: Any
    stride: tuple[int, int]
    dilation: tuple[int, int]
    corner: tuple[int, int]  # how far above and left of x the first window starts; may be negative
    channels_last: bool  # the tensors are NHWC
    bias: Any = None
    dw: bool = False
    argmax: Any = None  # pooled: y has one place for each window of 2 x 2, and this the winners', as they are in y; None for parts of sums
    z_columns: int = 0  # pooled: of the convolution's result; 0 if nothing follows
    fours: Any = None  # pooled, for parts of sums: the array of which y is a quarter, the first sum of each window's four

    @property
    def pooled(self) -> bool:
        return self.z_columns > 0

    @property
    def places(self) -> int:
        return self.y.shape[2] * prod(self.y.shape[4:]) * (4 if self.pooled else 1)

    @property
    def terms(self) -> int:
        return prod(self.w.shape[2:])

    @property
    def groups(self) -> int:
        return self.w.shape[0]

    @property
    def outs(self) -> int:
        return self.w.shape[1]


def by_group(images, groups: int, layout: str):
    """Images of either layout as (..., group, image, channel, row, column): a view."""
    images = images if layout == "NCHW" else images.swapaxes(-1, -2).swapaxes(-2, -3)
    *before, n, c, h, w = images.shape
    return images.reshape(*before, n, groups, c // groups, h, w).swapaxes(-4, -5)


def forward(x, weight, bias, stride, padding, dilation, groups, layout, out) -> list[Convolution]:
    w = weight.reshape(groups, -1, *weight.shape[1:])
    corner = padding[0][0], padding[1][0]
    return [Convolution(by_group(x, groups, layout), w, by_group(out, groups, layout), stride, dilation, corner, layout == "NHWC", bias)]


def gradient_of_x(dy, weight, stride, padding, dilation, groups, layout, out) -> list[Convolution]:
    """A convolution for each remainder of (row, column) divided by the stride; without terms where no tap meets such places."""
    dy, dx = by_group(dy, groups, layout), by_group(out, groups, layout)
    w = weight.reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)
    spread = tuple(d // gcd(s, d) for s, d in zip(stride, dilation))
    found = []
    for h0, top, us in remainders(dx.shape[-2], w.shape[3], stride[0], dilation[0], padding[0][0]):
        for w0, left, vs in remainders(dx.shape[-1], w.shape[4], stride[1], dilation[1], padding[1][0]):
            y = dx[..., h0 :: stride[0], w0 :: stride[1]]
            found.append(Convolution(dy, w[..., us, vs], y, (1, 1), spread, (top, left), layout == "NHWC"))
    return found


def remainders(size: int, kernel: int, stride: int, dilation: int, pad: int):
    """Of one axis, for each remainder h0: how far before dy its first window starts, and its taps, as a slice that runs backwards.

    Output i and tap u meet h = i*s + u*d - p. So a tap of h0 has h0 + p - u*d a multiple of s: if u is the first one, then
    every s/gcd(s,d)-th from there on, each of which meets an i that is smaller by d/gcd(s,d).
    """
    every, back = stride // gcd(stride, dilation), dilation // gcd(stride, dilation)
    for h0 in range(min(stride, size)):
        first = next((u for u in range(min(every, kernel)) if (h0 + pad - u * dilation) % stride == 0), None)
        if first is None:
            yield h0, 0, slice(0, 0)
            continue
        count = len(range(first, kernel, every))
        yield h0, (count - 1) * back - (h0 + pad - first * dilation) // stride, slice(first + (count - 1) * every, first - 1 if first else None, -every)


def gradient_of_w(dy, x, stride, padding, dilation, groups, layout, out) -> list[Convolution]:
    x, dy = by_group(x, groups, layout), by_group(dy, groups, layout)
    y = out.reshape(len(out), groups, -1, *out.shape[2:]).swapaxes(2, 3)
    corner = padding[0][0], padding[1][0]
    return [Convolution(x.swapaxes(1, 2), dy.swapaxes(1, 2), y, dilation, stride, corner, layout == "NHWC", dw=True)]


# --- launches -----------------------------------------------------------------------------------------------------------


def units():
    """All that can be compiled of conv2d.cu: macros, and the threads in a block of each kernel."""
    for number in REALS.values():
        yield {"REAL": number}, {"conv2d_direct": 256, "conv2d_pool_direct": 256, "conv2d_tiles": 256, "conv2d_terms": 256}
    for outs, last, (dw, pool), wide in product((32, 64), (0, 1), ((0, 0), (1, 0), (0, 1), (0, 2)), (1, 0)):
        yield dict(OUTS=outs, NHWC=last, DW=dw, WIDE=wide, POOL=pool), {f"conv2d_{'pool_' * (pool > 0)}registers": outs * PLACES // 64, **({"conv2d_pool_parts": 256} if pool == 2 else {})}


def occupancy_rows() -> list[tuple[str, str, dict, int]]:
    """What docs/cuda.md shows of them: title, kernel, macros, threads in a block."""
    simple = [(f"conv2d {kernel}, float", f"conv2d_{kernel}", {"REAL": "float"}, 256) for kernel in ("direct", "tiles", "terms")]
    simple.append(("conv2d direct, pooled, float", "conv2d_pool_direct", {"REAL": "float"}, 256))
    forms = [("", 32, 0, 0, 0), ("", 64, 0, 0, 0), (" NHWC,", 64, 1, 0, 0), (" dw,", 64, 0, 1, 0), (" pooled,", 64, 0, 0, 1), (" pooled, NHWC,", 64, 1, 0, 1)]
    return simple + [
        (f"conv2d registers,{what} {outs} x {PLACES}", f"conv2d_{'pool_' * pool}registers", dict(OUTS=outs, NHWC=last, DW=dw, WIDE=1, POOL=pool), outs * PLACES // 64)
        for what, outs, last, dw, pool in forms
    ]


def side_by_side(array, *along: int) -> tuple[int, list[int]]:
    """Counted along these axes, the last one fastest: how many elements lie side by side, and the axes that don't take part in it."""
    strides, run, rest = strides_of(array), 1, [axis for axis in along if array.shape[axis] > 1]
    while rest and strides[rest[-1]] == run:
        run *= array.shape[rest.pop()]
    return run, rest


def by_four(array, *along: int) -> bool:
    """Whether, counted along these axes, each four elements from a multiple of four on are there, and lie side by side at a
    multiple of 16 bytes: then they can be moved at once."""
    run, rest = side_by_side(array, *along)
    others = [s for axis, s in enumerate(strides_of(array)) if array.shape[axis] > 1 and (axis in rest or axis not in along)]
    return run % 4 == 0 and address(array) % 16 == 0 and not any(s % 4 for s in others)


def blocks_of(c: Convolution, outs: int, places: int) -> int:
    return c.groups * -(-c.outs // outs) * -(-c.places // places)


def terms_blocks(c: Convolution) -> int:
    """Blocks of `terms`: some taps of one image and one out, or of 32 outs that lie side by side."""
    outs = c.groups * c.outs
    return -(-prod(c.y.shape[4:]) // TAPS) * c.y.shape[2] * (-(-outs // 32) if c.channels_last else outs)


def plan(variant: str, c: Convolution) -> tuple[str, tuple[int, int], int, int]:
    """Who computes the convolution: the kernel, the outs and places of its blocks, and how its sum is split: parts, terms of each."""
    if variant == "terms" or variant == "registers" and c.dw and max(c.outs, c.y.shape[2]) < FEW:  # depthwise, say
        together = 8 if c.channels_last else 256
        return "terms", (32, 8), *split_of(c.terms, together, terms_blocks(c), TERMS_OF_THREAD * together)
    if variant == "registers" and not c.dw and c.outs < FEW:
        variant = "direct"
    elif variant == "registers" and c.y.dtype == np.float64:  # the simple variants do float64
        variant = "direct" if c.pooled else "tiles"
    if variant == "direct" and c.pooled:  # each thread has all of its windows' sums
        return variant, (1, 256), 1, c.w.shape[2]
    if variant == "direct":  # which counts channels instead of terms
        return variant, (1, 256), *split_of(c.w.shape[2], 1, -(-c.y[0].size // 256), -(-LEAST_TERMS // prod(c.w.shape[3:])))
    tile, step = ((32 if c.outs <= 32 else 64, PLACES), 8) if variant == "registers" else ((16, 16), 16)
    return variant, tile, *split_of(c.terms, step, blocks_of(c, *tile), LEAST_TERMS)


def form_of(c: Convolution, outs: int) -> dict[str, int]:
    """The macros of conv2d.cu's `registers` for these arrays."""
    weights = by_four(c.w, *((1,) if c.channels_last and c.dw else _terms(c)))
    patches = by_four(c.x, 1 if c.dw else 2) if c.channels_last else True
    return dict(OUTS=outs, NHWC=int(c.channels_last), DW=int(c.dw), WIDE=int(weights and patches), POOL=c.pooled + (c.fours is not None))


def _terms(c: Convolution) -> tuple[int, int, int]:
    """w's axes in the order in which `registers` goes through the terms."""
    return (3, 4, 2) if c.channels_last and not c.dw else (2, 3, 4)


def laid_out(variant: str, c: Convolution) -> Convolution:
    """The convolution, with a copy of its weights where what a warp reads of them does not lie side by side."""
    if variant == "registers" and not c.dw:
        first, last = (0, 1), _terms(c)
    elif variant == "direct" and c.channels_last and not c.dw:
        first, last = (2, 3, 4), (0, 1)
    else:
        return c
    if not side_by_side(c.w, *last)[1]:
        return c
    axes = (*first, *last)
    return replace(c, w=c.w.transpose(axes).copy().transpose(*(axes.index(axis) for axis in range(5))))


def launch(variant: str, tile: tuple[int, int], c: Convolution, each: int) -> None:
    """The sums of each part, of `each` terms (direct: channels)."""
    last = c.channels_last and not c.dw  # y's channels lie side by side
    c = laid_out(variant, c)
    if variant == "registers":
        defines, across = form_of(c, tile[0]), tile[0] if last else tile[1]
        block = (across // 8, prod(tile) // 8 // across)
    else:
        defines, block = {"REAL": REALS[c.y.dtype]}, {"direct": (256,), "terms": (32, 8), "tiles": (16, 16)}[variant]
    blocks = -(-c.y[0].size // 256) if variant == "direct" else terms_blocks(c) if variant == "terms" else blocks_of(c, *tile)
    four = by_four(c.y, *((3,) if last else (4, 5, 2) if c.channels_last else (2, 4, 5))) and (c.argmax is None or address(c.argmax) % 16 == 0)
    (groups, images, channels, *rows), (_, outs, _, *taps), outputs = c.x.shape, c.w.shape, c.y.shape[4:]
    sizes = groups, images, channels, *rows, outs, *taps, *outputs, *c.stride, *c.dilation, *c.corner, each, int(four), int(c.channels_last if variant == "terms" else last)
    run = kernel(c.y, FILE, f"conv2d_{'pool_' * c.pooled}{variant}", **defines)
    pooled = (c.argmax, c.z_columns) if c.pooled else ()
    run((blocks, len(c.y)), block, (c.x, *strides_of(c.x), c.w, *strides_of(c.w), c.bias, c.y if c.fours is None else c.fours, *strides_of(c.y), *sizes, *pooled))


def check_sizes(name: str, convolutions: list[Convolution]) -> None:
    """Raises ValueError where a number would not fit into those of the threads."""
    places, terms = (max(getattr(c, what) for c in convolutions) for what in ("places", "terms"))
    if max(places, terms) > MOST:
        raise ValueError(f"{name}: threads count at most {MOST} places and terms of a sum; got {places} and {terms}; use a smaller batch")


def _run(name: str, variant: str, convolutions, out) -> None:
    """convolutions(target): those that together fill each of target's parts, arrays like out."""
    real(name, out.dtype)
    if out.size == 0:
        return
    found = convolutions(out[None])
    check_sizes(name, found)
    largest = max(found, key=lambda c: c.terms)
    if largest.terms == 0:
        out[...] = 0  # every sum is empty
        return
    variant, tile, count, each = plan(variant, largest)
    parts, target, turned = out[None], out[None], (1, 1)
    if count > 1 and largest.dw and largest.channels_last and variant == "registers":
        outs, channels, *taps = out.shape  # parts are written as threads lie, channels last, and turned when they are added up
        parts, turned = empty(out, count, outs, *taps, channels), (channels, prod(taps))
        target = parts.transpose(0, 1, 4, 2, 3)
    elif count > 1:
        parts = target = empty(out, count, *out.shape)
    for c in convolutions(target) if count > 1 else found:
        if c.terms == 0:
            c.y[...] = 0
        else:
            launch(variant, tile, c, each)
    if count > 1:
        add_parts(parts, out, turned)


def _forward(variant, x, weight, bias, parameters, out) -> None:
    x, weight, bias = in_elements(x), in_elements(weight), contiguous(bias)
    _run("conv2d", variant, lambda target: forward(x, weight, bias, *parameters, target), out)


def _gradient_of_x(variant, dy, weight, parameters, out) -> None:
    dy, weight = in_elements(dy), in_elements(weight)
    _run("conv2d_dx", variant, lambda target: gradient_of_x(dy, weight, *parameters, target), out)


def _gradient_of_w(variant, dy, x, parameters, out) -> None:
    dy, x = in_elements(dy), in_elements(x)
    _run("conv2d_dw", variant, lambda target: gradient_of_w(dy, x, *parameters, target), out)


def _register_images(variant: str) -> None:
    """conv2d and conv2d_dx by one of conv2d.cu's kernels."""

    @implements_on_both("conv2d", variant=variant, default=variant == DEFAULT)
    def conv2d(x, weight, bias, *, stride, padding, dilation, groups, layout, out):
        _forward(variant, x, weight, bias, (stride, padding, dilation, groups, layout), out)

    @implements_on_both("conv2d_dx", variant=variant, default=variant == DEFAULT)
    def conv2d_dx(dy, weight, *, x_shape, stride, padding, dilation, groups, layout, out):
        _gradient_of_x(variant, dy, weight, (stride, padding, dilation, groups, layout), out)


def _register_dw(variant: str) -> None:
    @implements_on_both("conv2d_dw", variant=variant, default=variant == DEFAULT)
    def conv2d_dw(dy, x, *, weight_shape, stride, padding, dilation, groups, layout, out):
        _gradient_of_w(variant, dy, x, (stride, padding, dilation, groups, layout), out)


for _variant in ("direct", "tiles", "registers"):
    _register_images(_variant)
for _variant in ("direct", "terms", "tiles", "registers"):
    _register_dw(_variant)
