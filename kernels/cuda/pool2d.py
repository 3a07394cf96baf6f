"""Pooling on a GPU: who launches what of pool2d.cu, which tells the story of its variants.

The kernels see an output as (images, outer, rows, columns, inner), so that one form does for both layouts: NCHW has one inner
channel, NHWC one outer. They count its elements with 31 bits: a batch of more goes by several launches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from tinynet.geometry import nchw, reach
from tinynet.kernels.contract import INDEX
from tinynet.kernels.cuda.both import implements_on_both
from tinynet.kernels.cuda.launch import REALS, divisor, kernel, real, strided

FILE = Path(__file__).with_suffix(".cu")
THREADS = 256
ROOM = 2048  # numbers that a block of a separable kernel may keep
SPANNED = 512  # numbers of the input that it goes down, about: two a thread
SCANNING = 256  # blocks that look through argmax
MOST = 2**30  # elements of an output that one launch counts
KERNELS = ("max_pool2d_simple", "max_pool2d_separable", "avg_pool2d_simple", "avg_pool2d_separable",
           "avg_pool2d_dx_simple", "avg_pool2d_dx_separable", "max_pool2d_dx_simple", "max_pool2d_dx_reach", "max_pool2d_dx_near")  # fmt: skip


def units():
    """All that can be compiled of pool2d.cu: macros, and the threads in a block of each kernel."""
    for number in REALS.values():
        yield {"REAL": number}, dict.fromkeys(KERNELS, THREADS)


def occupancy_rows() -> list[tuple[str, str, dict, int]]:
    """What docs/cuda.md shows of them: title, kernel, macros, threads in a block."""
    forms = [(name, number) for name in KERNELS for number in REALS.values() if number == "float" or name.endswith("separable")]
    return [(f"{' '.join(name.rsplit('_', 1))}, {number}", name, {"REAL": number}, THREADS) for name, number in forms]


# --- what a launch is told ---------------------------------------------------------------------------------------------------


def _images(array, layout: str) -> list:
    """An input: where it starts, and its strides as NCHW."""
    array, strides = strided(array)
    return [array, *nchw(strides, layout)]


def _shape(shape, layout: str) -> list[int]:
    _, channels, rows, columns = nchw(shape, layout)
    outer, inner = (channels, 1) if layout == "NCHW" else (1, channels)
    return [number for extent in (outer, rows, columns, inner) for number in (extent, divisor(extent))]


def _counted(sizes, padding, count_include_pad: bool) -> list[int]:
    """The rows and columns, from the first to the one behind the last, that an average counts."""
    return [edge for size, (before, after) in zip(sizes, padding) for edge in ((-before, size + after) if count_include_pad else (0, size))]


def _batches(name: str, *arrays) -> Iterator[list]:
    """The arrays by as many images as a launch counts."""
    image = max(a[0].size for a in arrays)
    if image > MOST:
        raise ValueError(f"{name}: an image has {image} numbers; the CUDA kernels count up to {MOST}: split its channels, or its rows")
    for first in range(0, len(arrays[0]), MOST // image):
        yield [a[first : first + MOST // image] for a in arrays]


# --- parts of a separable kernel -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """What a block makes: `lines` rows, `wide` columns, `deep` inner channels, from `span` columns of the input; pool2d.cu says more."""

    lines: int
    wide: int
    deep: int
    span: int
    across: int  # blocks along a line
    layers: int  # and along the inner channels
    pitch: int
    gap: int

    def arguments(self, lines: int) -> list[int]:
        by = (self.across, self.layers, self.deep, self.wide * self.deep, self.span * self.deep)
        return [lines, self.lines, self.wide, self.deep, self.span, self.across, self.layers, *map(divisor, by)]

    def blocks(self, lines: int) -> int:
        return -(-lines // self.lines) * self.across * self.layers


def _up(least: int, remainder: int, of: int = 32) -> int:
    """The first number from `least` on with this remainder."""
    return least + (remainder - least) % of


def _part(lines: int, columns: int, inner: int, span_of: Callable[[int], int], stride: int) -> Part | None:
    """stride: what shared memory sorts columns by. None where not even one column fits into it."""
    if span_of(1) > ROOM:
        return None
    layers = -(-inner // 32)
    deep = min(inner if layers == 1 else _up(-(-inner // layers), 0, 8), ROOM // span_of(1))
    wide, most = columns, max(SPANNED, span_of(1) * deep)
    while span_of(wide) * deep > most:
        wide = -(-wide // 2)
    if 32 <= wide < columns:
        wide -= wide % 32  # so that parts start where a warp's numbers do
    span = span_of(wide)
    kept, classes = -(-span // stride) * deep, min(stride, span)
    # A warp that goes down meets every class: those lie one after the other in the banks. One that goes across runs on from line to line.
    apart = _up(kept, deep * -(-(-(-32 // deep)) // stride))
    for gap, pitch in ((apart, _up((classes - 1) * apart + kept, wide * deep)), (kept, classes * kept)):
        if pitch <= ROOM:
            return Part(max(1, min(ROOM // pitch, SPANNED // (span * deep), lines)), wide, deep, span, -(-columns // wide), -(-inner // deep), pitch, gap)
    return None


@lru_cache(1024)
def forward_part(lines: int, columns: int, inner: int, size: int, stride: int, dilation: int) -> Part | None:
    return _part(lines, columns, inner, lambda wide: (wide - 1) * stride + reach(size, dilation), stride)


@lru_cache(1024)
def backward_part(lines: int, columns: int, inner: int, size: int, stride: int) -> Part | None:
    return _part(lines, columns, inner, lambda wide: (wide + size - 2) // stride + 1, 1)


# --- launches ------------------------------------------------------------------------------------------------------------------


def _launch(name: str, number: str, out, arguments: list, blocks: int = 0) -> None:
    """As many blocks, or a thread for each element of `out`."""
    kernel(out, FILE, name, REAL=number)((blocks or -(-out.size // THREADS),), (THREADS,), arguments)


def _window(kernel_size, stride, padding) -> list[int]:
    return [*kernel_size, *stride, padding[0][0], padding[1][0]]


def _forward(name: str, variant: str, x, out: tuple, *, kernel_size, stride, padding, dilation, layout, counted=()) -> None:
    number = real(name, x.dtype)
    if out[0].size == 0:
        return
    window = [*_window(kernel_size, stride, padding), *dilation, *nchw(x.shape, layout)[2:], *counted]
    for y, x, *rest in _batches(name, out[0], x, *out[1:]):
        outer, _, rows, _, columns, _, inner, _ = shape = _shape(y.shape, layout)
        lines = len(y) * outer * rows
        part = forward_part(lines, columns, inner, kernel_size[1], stride[1], dilation[1]) if variant == "separable" else None
        arrays = [*_images(x, layout), y, *rest]
        if part is None:
            _launch(f"{name}_simple", number, y, [*arrays, y.size, *shape, *window])
        else:
            _launch(f"{name}_separable", number, y, [*arrays, *shape, *window, *part.arguments(lines), part.pitch, part.gap, divisor(stride[1])], part.blocks(lines))


def _avg_pool2d_dx(variant: str, dy, dx, *, kernel_size, stride, padding, count_include_pad, layout) -> None:
    number = real("avg_pool2d_dx", dy.dtype)
    if dx.size == 0:
        return
    sizes = nchw(dx.shape, layout)[2:]
    window = [*_window(kernel_size, stride, padding), *_counted(sizes, padding, count_include_pad), *nchw(dy.shape, layout)[2:], *map(divisor, stride)]
    overlapping = any(k > s for k, s in zip(kernel_size, stride))  # else there is one window to a place, and nothing to be shared
    for dx, dy in _batches("avg_pool2d_dx", dx, dy):
        outer, _, rows, _, columns, _, inner, _ = shape = _shape(dx.shape, layout)
        lines = len(dx) * outer * rows
        part = backward_part(lines, columns, inner, kernel_size[1], stride[1]) if variant == "separable" and overlapping else None
        arrays = [*_images(dy, layout), dx]
        if part is None:
            _launch("avg_pool2d_dx_simple", number, dx, [*arrays, dx.size, *shape, *window])
        else:
            _launch("avg_pool2d_dx_separable", number, dx, [*arrays, *shape, *window, *part.arguments(lines)], part.blocks(lines))


def _max_pool2d_dx(variant: str, dy, argmax, dx, *, layout) -> None:
    number = real("max_pool2d_dx", dy.dtype)
    if argmax.dtype != INDEX:
        raise TypeError(f"max_pool2d_dx: argmax must be {INDEX}, as max_pool2d returns it; got {argmax.dtype}")
    if dx.size == 0:
        return
    sizes, outputs = nchw(dx.shape, layout)[2:], nchw(dy.shape, layout)[2:]
    guess = [max(1, round(size / n)) for size, n in zip(sizes, outputs)]
    for dx, dy, argmax in _batches("max_pool2d_dx", dx, dy, argmax):
        arrays, shape = [*_images(dy, layout), *_images(argmax, layout), dx], _shape(dx.shape, layout)
        if variant == "simple":
            _launch("max_pool2d_dx_simple", number, dx, [*arrays, dx.size, *shape, *outputs])
            continue
        far = np.zeros_like(argmax, shape=(4,))  # CuPy's where argmax is
        blocks = min(SCANNING, -(-dy.size // THREADS))
        _launch("max_pool2d_dx_reach", number, dx, [*_images(argmax, layout), far, dy.size, *_shape(dy.shape, layout), *guess, sizes[1], divisor(sizes[1])], blocks)
        _launch("max_pool2d_dx_near", number, dx, [*arrays, far, dx.size, *shape, *guess, *outputs, *map(divisor, guess)])


# --- the kernels of the contract -------------------------------------------------------------------------------------------------


def _register(variant: str, of_gradient: str) -> None:
    """One step of the story. of_gradient: what it is called for max_pool2d_dx."""

    @implements_on_both("max_pool2d", variant=variant, default=variant != "simple")
    def max_pool2d(x, *, kernel_size, stride, padding, dilation, ceil_mode, layout, out):
        _forward("max_pool2d", variant, x, out, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation, layout=layout)

    @implements_on_both("max_pool2d_dx", variant=of_gradient, default=variant != "simple")
    def max_pool2d_dx(dy, argmax, *, x_shape, layout, out):
        _max_pool2d_dx(of_gradient, dy, argmax, out, layout=layout)

    @implements_on_both("avg_pool2d", variant=variant, default=variant != "simple")
    def avg_pool2d(x, *, kernel_size, stride, padding, ceil_mode, count_include_pad, layout, out):
        counted = _counted(nchw(x.shape, layout)[2:], padding, count_include_pad)
        _forward("avg_pool2d", variant, x, (out,), kernel_size=kernel_size, stride=stride, padding=padding, dilation=(1, 1), layout=layout, counted=counted)

    @implements_on_both("avg_pool2d_dx", variant=variant, default=variant != "simple")
    def avg_pool2d_dx(dy, *, x_shape, kernel_size, stride, padding, ceil_mode, count_include_pad, layout, out):
        _avg_pool2d_dx(variant, dy, out, kernel_size=kernel_size, stride=stride, padding=padding, count_include_pad=count_include_pad, layout=layout)


_register("simple", "simple")
_register("separable", "near")
