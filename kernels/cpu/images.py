"""Images in memory as kernels on vector registers see them: steps from one place to the next, what is copied on the
way in (padding) and on the way out (channels side by side, as a tile stores them, into the layout that was asked for).
"""

from __future__ import annotations

from math import ceil, gcd

import numpy as np

from tinynet.geometry import nchw
from tinynet.kernels.cpu import threads, tiles
from tinynet.kernels.cpu.program import address_of, compiled, lines, row


MOST_CHUNKS = 8  # of images, with sums of their own in a gradient of weights


def widened(lanes: int) -> int:
    """Lanes of a group of so many output channels: at least the narrowest vector's."""
    return max(lanes, tiles.LEAST_LANES)


def chunk_sums(address, step: int, images: int, chunks: int) -> dict:
    """Sums over images, by the names of a row: those of each chunk `step` bytes after the one before."""
    return dict(sums=address, sums_chunk=step, sums_images=images, sums_chunks=chunks)


def with_lanes(bias: np.ndarray | None, groups: int, lanes: int) -> np.ndarray | None:
    """A bias as (groups, lanes), zeros in lanes that are not there: a vector of it is read whole."""
    if bias is None or bias.size == groups * lanes:
        return None if bias is None else np.ascontiguousarray(bias)
    wide = np.zeros((groups, lanes), bias.dtype)
    wide[:, : bias.size // groups] = bias.reshape(groups, -1)
    return wide


class Images:
    """A batch of images as steps through memory, in elements: from one image, row, column or channel to the next."""

    def __init__(self, shape: tuple[int, ...], layout: str, dtype, address: int):
        self.address, self.item = address, np.dtype(dtype).itemsize
        self.n, self.channels, self.rows, self.columns = nchw(shape, layout)
        self.image = self.channels * self.rows * self.columns
        self.first = layout == "NCHW"
        self.row, self.column, self.channel = (self.columns, 1, self.rows * self.columns) if self.first else (self.columns * self.channels, self.channels, 1)


def images_of(array: np.ndarray, layout: str) -> Images:
    """An array that is there. (`array`: an address alone holds no memory.)"""
    found = Images(array.shape, layout, array.dtype, address_of(array))
    found.array = array
    return found


def shared(images: int, rows: int) -> tuple[int, int]:
    """(chunks, shares): several pieces of work for each thread; an image's rows are shared where there are few images."""
    wanted = 4 * threads.count() if threads.count() > 1 else 1
    chunks = min(images, wanted)
    return chunks, max(1, min(rows, wanted // max(chunks, 1) if chunks < wanted else 1))


def phases(kernel: int, stride: int, dilation: int, before: int, size: int) -> list[tuple[int, ...]]:
    """For each phase h = q*stride + phase of one axis: (phase, how many q, first tap, step of taps, how many, offset, step back).

    The tap first + m*step meets output q + offset - m*back:  h + before - tap*dilation = output * stride.
    """
    found = []
    every = stride // gcd(stride, dilation)
    for phase in range(min(stride, size)):
        count = ceil((size - phase) / stride)
        met = [u for u in range(kernel) if (phase + before - u * dilation) % stride == 0]
        first = met[0] if met else 0
        found.append((phase, count, first, every, len(met), (phase + before - first * dilation) // stride, every * dilation // stride))
    return found


def most_taps(found: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The phase, of one axis, that meets most taps."""
    return max(found, key=lambda phase: phase[4])


def axis_back(phase: tuple[int, ...], size: int) -> tiles.Axis:
    """One phase of one axis of the images' gradient, whose taps are read from the last to the first. size: of dy."""
    _, outputs, _, _, taps, offset, back = phase
    return tiles.Axis(offset - (taps - 1) * back, 1, back, taps, size, outputs)


def span(found) -> tuple[int, int]:
    """The least and the largest offset of any tap."""
    offsets = [offset - m * back for _, _, _, _, count, offset, back in found for m in (0, count - 1) if count]
    return (min(offsets), max(offsets)) if offsets else (0, 0)


class Entering:
    """The rows that one part needs, with their padding around them, in scratch memory; or the images as they lie."""

    def __init__(self, x: Images, step: int, top: int, count: int, sides: tuple[int, int], rows: int, shares: int, needed: bool, each: bool = False):
        """Output row i reads `count` rows from i*step - top on; `sides`: columns of padding; `rows`: outputs of an image.
        shares: 0 if every part needs the whole image. each: memory for every image, not for every thread."""
        self.x, self.needed, self.step = x, needed, step
        if not needed:
            self.image, self.row, self.column, self.channel = x.image, x.row, x.column, x.channel
            self.slot, self.first_row, self.size = 0, step * x.row, 0
            return
        most = (ceil(rows / max(shares, 1)) - 1) * step + count  # rows in the largest share
        width = sides[0] + x.columns + sides[1]
        self.column, self.row, self.channel = (1, width, most * width) if x.first else (x.channels, width * x.channels, 1)
        self.first_row = 0  # scratch begins at the share's own first row
        self.size = lines(most * width * x.channels, f"f{x.item}")
        self.slot, self.image = (0, self.size) if each else (self.size * x.item, 0)
        planes, run_, wide = (x.channels, x.columns, 1) if x.first else (1, x.columns * x.channels, x.channels)
        self.numbers = (x.image, planes, x.channel if x.first else 0, x.rows, x.row, run_, sides[0] * wide, sides[1] * wide, rows, step, top, count, self.channel if x.first else 0, self.row)
        self.whole = not shares

    def rows_of(self, base: int, dtype) -> list[list[int]]:
        return [row(compiled(tiles.enter, dtype), self.x.address, *self.numbers, base, self.slot, self.image * self.x.item, self.whole)] if self.needed else []

    def place(self, base: int, start: int = 0) -> tuple[int, int, int]:
        """Where element `start` of an image lies: an address, and the bytes from slot to slot and from image to image."""
        return (base if self.needed else self.x.address) + start * self.x.item, self.slot, self.image * self.x.item


class Leaving:
    """Where a tile stores its outputs, whose channels lie side by side: in NHWC images themselves; for NCHW, and for widened
    groups, in scratch memory, from which they are brought. `step` rows of the result belong to one row that parts share."""

    def __init__(self, y: Images, groups: int, step: int, rows: int, shares: int):
        self.y, self.groups, self.step, self.rows = y, groups, step, rows
        self.count = y.channels // groups
        self.wide = widened(self.count) > self.count
        self.apart = y.first or self.wide
        self.column = groups * widened(self.count)
        self.row = y.columns * self.column
        self.image, self.slot, self.size = (0, 0, 0) if self.apart else (y.image, 0, 0)
        if self.apart:
            self.size = lines(ceil(rows / shares) * step * self.row, f"f{y.item}")
            self.slot = self.size * y.item

    def place(self, base: int, start: int = 0) -> tuple[int, int, int]:
        """As Entering.place."""
        return (base if self.apart else self.y.address) + start * self.y.item, self.slot, self.image * self.y.item

    @property
    def first_row(self) -> int:
        return 0 if self.apart else self.step * self.row

    def rows_of(self, base: int, dtype) -> list[list[int]]:
        y = self.y
        if not self.apart:
            return []
        if self.wide:
            numbers = (self.rows, self.step, y.rows, y.columns, self.groups, self.count, self.column, base, self.slot, y.address, y.image, y.channel, y.column)
            return [row(compiled(tiles.leave_few, dtype), *numbers)]
        return [row(compiled(tiles.leave, dtype), self.rows, self.step, y.rows, y.columns, y.channels, base, self.slot, y.address, y.image, y.channel)]
