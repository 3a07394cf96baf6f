"""The kernels that programs are made of (program.py), as planners see them: which tile, and what a kernel's row holds.

The kernels themselves are in copies_kernels.py, tiles_kernels.py and product_kernels.py: each is made for a tile and a dtype, and reads the rest from its row.
`conv` and `conv_dw` are where the time goes. Their tiles are chosen by a small model of the machine (`best`):
registers, multiply-adds, loads, the latency of a multiply-add (`Costs`), and what a tile that does not divide the image wastes.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil
from typing import NamedTuple

import numpy as np

from tinynet.kernels.cpu.rows import Factory, fields, kernels_in
from tinynet.kernels.cpu.target import TARGET

# --- which tile ------------------------------------------------------------------------------------------

LEAST_LANES = 4


class Costs(NamedTuple):
    """What steps of a tile take, in the time of one multiply-add of a whole vector. latency: a term's multiply-adds at least, each of which
    waits for that of the term before. number, vector: a load. pixel, lanes: what else comes with each of them. stream: 32 bytes of
    weights from the second cache."""

    latency: float
    number: float
    vector: float
    pixel: float
    lanes: float
    stream: float


# Fitted to what tiles took on Zen 4 (one multiply-add of 512 bits a cycle) and Zen 3 (two of 256; others are taken to be like it).
COSTS = Costs(4.2, 0.5, 1.0, 0.13, 0.05, 0.05) if TARGET.bits == 512 else Costs(8.6, 1.15, 1.15, 0.15, 0.0, 0.6)
FIRST_CACHE, SECOND_CACHE = 24_000, 400_000  # bytes of weights that stay there from tile to tile
MOST_SUMS = 28  # vectors of sums of a tile
# Pixels the step between which is no constant, with two vectors at each: their addresses are computed, so all are loaded first, and beside the
# sums of more than 10 there is no room for them.
MOST_APART = 10
# rows x columns of pixels; with v vectors of channels at each they fill rows * columns * v registers
PIXELS = (*((1, c) for c in range(1, 15)), (1, 16), (2, 2), (2, 3), (2, 4), (2, 5), (2, 6), (2, 7), (2, 8), (2, 10), (2, 12), (2, 14), (3, 3), (3, 4), (4, 4))


def widths(dtype) -> list[int]:
    """Lanes of a vector, the widest first: narrower ones waste less where there are few channels."""
    lanes = max(TARGET.lanes(dtype), LEAST_LANES)
    return [lanes >> i for i in range(3) if lanes >> i >= LEAST_LANES]


def fitting(lanes: int, dtype) -> int:
    """Lanes of the widest vector that so many fill; 1 if there is none."""
    return next((w for w in widths(dtype) if w <= lanes), 1)


def dividing(lanes: int, dtype) -> int:
    """Lanes of the widest vector that cuts so many into whole ones; 1 if there is none."""
    return next((w for w in widths(dtype) if lanes % w == 0), 1)


class Axis(NamedTuple):
    """One axis of a convolution: output i of `outputs` meets, by tap t of `taps`, input first + i * step + t * tap of `size`, or padding.
    (Forward: -padding, stride, dilation, kernel. images.axis_back has the images' gradient.)"""

    first: int
    step: int
    tap: int
    taps: int
    size: int
    outputs: int

    def met(self, together: int = 1) -> int:
        """How many taps meet an input, of all outputs; `together`: of so many in a row, which are computed with all taps that one of them has."""
        found = 0
        for i in range(0, self.outputs, together):
            start = self.first + max(0, min(i, self.outputs - together)) * self.step
            found += sum(start + (together - 1) * self.step + t * self.tap >= 0 and start + t * self.tap < self.size for t in range(self.taps))
        return found

    def numbers(self, name: str) -> dict[str, int]:
        """What a kernel must know to leave out taps that meet nothing but padding; {} if there are none."""
        if self.met() == self.outputs * self.taps:
            return {}
        return {f"x_{name}s": self.size, f"{name}_first": self.first, f"{name}_step": self.step, f"{name}_tap": self.tap}


@lru_cache(4096)
def best(rows: int, columns: int, lanes: int, terms: int, segments: int, dtype, pooled: bool = False, axis: Axis | None = None, batch: bool = False, panel: int = 0, step: int = 1) -> tuple[int, int, int, int]:
    """(rows, columns, vectors, lanes) of the tile with the least modelled cycles for rows x columns pixels of `lanes` channels.
    pooled: two rows, and an even number of columns. axis: of rows, if some of their taps are left out. batch: pixels are of many images,
    and those come between two uses of a weight. panel: how many lanes it has, if that is settled. step: see `pixel_step`."""
    full = max(TARGET.lanes(dtype), LEAST_LANES)
    met = {r: axis.met(r) / (ceil(axis.outputs / r) * axis.taps) for r in {r for r, _ in PIXELS}} if axis and axis.taps else {}
    choices = []
    for w in widths(dtype):
        share = w / full  # of a whole register
        for v in (1, 2, 3, 4):
            if v * w > lanes or panel not in (0, v * w):
                continue
            for r, c in PIXELS:
                pixels = r * c
                # the accumulators, the weights' vectors, and one more must fit into the registers
                if r > rows or c > columns or pixels * v + v + 1 > TARGET.registers or pixels * v > MOST_SUMS or pooled and (r != 2 or c % 2):
                    continue
                if v == 2 and pixels > MOST_APART and step == 0:
                    continue
                weights, loaded = terms * v * w * 4, v * w * 4 / 32
                streamed = loaded * (1.2 if batch and weights > SECOND_CACHE else COSTS.stream if weights > FIRST_CACHE else 0)
                term = max(pixels * v * max(share, 0.5), pixels * COSTS.number + v * COSTS.vector, COSTS.latency) + streamed + COSTS.pixel * pixels + COSTS.lanes * v
                count, there = ceil(rows / r) * ceil(columns / c) * ceil(lanes / (v * w)), met.get(r, 1.0)
                choices.append((count * (there * (terms * term + 25 * segments) + 30 + 2 * pixels * v), r, c, v, w))
    return min(choices)[1:]


def best_depthwise(rows: int, columns: int, lanes: int, dtype) -> tuple[int, int, int, int]:
    """(rows, columns, vectors, lanes) of a depthwise tile: enough sums to hide an addition's latency, few loads of weights."""
    w = fitting(lanes, dtype)
    wide = next(c for c in (8, 7, 6, 5, 4, 3, 2, 1) if c <= columns)
    return (2 if wide <= 4 and rows >= 2 else 1), wide, 1, w


class DepthwiseWeights:
    """As `Weights`, for depthwise convolution: a tile holds the taps of one row of the kernel."""

    def __init__(self, extents: tuple[int, int], steps: tuple[int, int, int], lanes: int, dtype):
        kh, kw = extents
        w = fitting(lanes, dtype)
        wide = min(kw, 12)
        self.constants = wide, 1, w
        self.units = ceil(lanes / w) * kh * ceil(kw / wide)
        self.size = self.units * wide * w
        self.numbers = dict(outer=kh, length=kw, ta=steps[0], tj=steps[1])
        self.width = w
        self.gathered = dict(units=self.units, lanes=lanes, vectors=w, high=1, wide=wide, outer=kh, inner=1, length=kw, y_channel=kh * kw, y_outer=kw, y_wide=1)


class Weights:
    """The tiles of a weights' gradient: HIGH x WIDE places of x that a tile holds, and the loops around it.

    A tile's places run along the longest axis; where there are only a few channels, along these and the taps of a row.
    """

    def __init__(self, extents: tuple[int, int, int], steps: tuple[int, int, int], lanes: int, groups: int, axes: tuple[Axis, Axis], dtype):
        """extents, steps: of x along the weights' rows, columns and channels. axes: rows and columns."""
        kh, kw, c = extents
        rows, columns, channels = zip(extents, steps, (kw, 1, kh * kw))  # the last: its steps in the canonical gradient
        none = (1, 0, 0)
        high, (outer, inner, length) = none, (rows, columns, channels)
        if c <= 4 and kw <= 8 and c * kw > max(c, kw):
            high, (outer, inner, length) = channels, (rows, none, columns)
        elif c < kw:
            outer, inner, length = rows, channels, columns
        wide, vectors, w = _best_dw(high[0], length[0], lanes, dtype)
        self.constants = high[0], wide, vectors, w
        self.units = groups * ceil(lanes / (vectors * w)) * outer[0] * inner[0] * ceil(length[0] / wide)
        self.size = self.units * high[0] * wide * vectors * w
        self.numbers = dict(outer=outer[0], inner=inner[0], length=length[0], ta=outer[1], tb=inner[1], tr=high[1], tj=length[1], **axes[0].numbers("row"))
        if inner is columns:  # so one column of the weights at a time
            self.numbers.update(axes[1].numbers("column"))
        self.width = w
        self.gathered = dict(
            units=self.units, lanes=lanes, vectors=vectors * w, high=high[0], wide=wide, outer=outer[0], inner=inner[0], length=length[0],
            y_channel=c * kh * kw, y_outer=outer[2], y_inner=inner[2], y_high=high[2], y_wide=length[2],
        )  # fmt: skip


@lru_cache(4096)
def _best_dw(high: int, length: int, lanes: int, dtype) -> tuple[int, int, int]:
    """(places along the run, vectors, lanes) of a tile of weights, for `high` runs of `length` places and `lanes` channels."""
    full = max(TARGET.lanes(dtype), LEAST_LANES)
    choices = []
    for w in widths(dtype):
        for v in (1, 2, 3, 4):
            for wide in (1, 2, 3, 4, 5, 6, 8, 9, 12, 14):
                n = high * wide  # of more than one run: the step between these is no constant (MOST_APART)
                if v * w > lanes or wide > length or n * v + v + 1 > TARGET.registers and n * v > 1 or n * v > 26 or v == 2 and n > MOST_APART and high > 1:
                    continue
                loads = n * COSTS.number + v * COSTS.vector
                step = max(n * v * max(w / full, 0.5), loads, COSTS.latency + 0.3) + 0.25 * loads
                choices.append((ceil(length / wide) * ceil(lanes / (v * w)) * step, -n * v, wide, v, w))
    return min(choices)[2:]


def rows_at_once(rows: int, columns: int, elements: int) -> int:
    """Rows of x and dy, of so many elements a pixel together, that stay in the first cache while all tiles go over them."""
    return max(1, min(rows, max(ceil(64 / columns), 5000 // max(1, columns * elements))))


# --- weights: into the order in which a tile reads them, and back ------------------------------------------------

GATHER = fields("x chunks x_chunk units count lanes vectors high wide outer inner length y y_channel y_outer y_inner y_high y_wide")

# --- sums -----------------------------------------------------------------------------------------------------

WORTH = 1e8  # operations of a call for which a kernel of its own is compiled, in a second, once


def pixel_step(step: int, flops: float, worth: float = WORTH) -> int:
    """The step between pixels as a constant of the kernel: then a tile's places are one address and constants, where else each
    takes a register and there are too few. 1, as in NCHW, always; others in calls that are worth it; else 0, not constant."""
    return step if step == 1 or flops >= worth else 0


CONV = fields(
    "outputs limit columns taps_a taps_b terms ta tb tc wa wb w_term iy ix groups lanes x_group w_group w_panel by_lanes "
    "x x_slot x_image x_first x_rows row_first row_step row_tap w bias y y_slot y_image y_first oy ox "
    "add add_slot add_image add_y add_x mask mask_slot mask_image mask_y mask_x relu winner winner_slot winner_image places places_slot "
    "images x_columns column_first column_step column_tap sums sums_slot"
)  # fmt: skip
LONG_RUN, MOST_LISTED = 32, 512


def listed(taps: int, terms: int) -> int:
    """1 if `conv` lists the terms of a sum over so many taps before it begins, 0 if it goes from tap to tap. A loop over a tap's few
    terms is over before it has paid for its start.
    A list must be short enough for the first cache.
    """
    return int(taps > 1 and terms < LONG_RUN and taps * terms <= MOST_LISTED)


PATCHES = fields(
    "rows columns channels height width kr kc sr sc dr dc top left x x_slot x_image x_y x_x y y_slot y_image "
    "add add_slot add_image add_y add_x mask mask_slot mask_image mask_y mask_x"
)  # fmt: skip
PLACES = fields("rows columns groups count lanes width x x_slot x_image x_row x_first y y_slot y_image y_channel y_column")
DW = fields(
    "height columns outer inner length ta tb tr tj iy ix gy gx groups lanes x_group x x_slot x_image dy dy_slot dy_image sums sums_chunk sums_images sums_chunks block "
    "x_rows row_first row_step row_tap x_columns column_first column_step column_tap images together"
)

# --- matrix product --------------------------------------------------------------------------------------------


@lru_cache(4096)
def best_gemm(rows: int, lanes: int, terms: int, dtype, whole: bool = False) -> tuple[int, int, int]:
    """(rows, vectors, lanes) of a tile of `gemm`, for a matrix of rows x lanes; whole: that divides it, or None."""
    full = max(TARGET.lanes(dtype), LEAST_LANES)
    choices = []
    for w in widths(dtype):
        for v in (1, 2, 3, 4, 8, 16):  # a single row reads b once: the longer the pieces, the better
            for r in (1, 2, 3, 4, 6, 8, 9, 12, 14):
                if whole and (rows % r or lanes % (v * w)):
                    continue
                # (28 sums and 2 vectors of b would fit, but not beside the scalars of 14 rows: they take 2.4 times as long)
                if v > 4 and r > 1 or v * w > lanes or r > rows or r * v + v + 1 > TARGET.registers or r * v > 27:
                    continue
                large = 1.2 if terms * v * w * 4 > 300_000 else 1.0  # a panel of b beyond the second cache
                step = max(r * v * max(w / full, 0.5), r * 0.5 + v, 4.2) + 0.25 * (r * 0.5 + v)
                choices.append((ceil(rows / r) * ceil(lanes / (v * w)) * step * large, -r * v, r, v, w))
    return min(choices)[2:] if choices else None


GEMM = fields(
    "rows columns terms a a_slot a_image a_row a_term b b_slot b_image b_term b_column c c_slot c_image c_row "
    "panel panel_slot packed partial column_block row_block term_block rows_first bias relu mask mask_slot mask_image mask_row hyper fault"
)  # fmt: skip
FEW_ROWS, FEW_TERMS = 64, 256


@lru_cache(4096)
def best_blocks(rows: int, columns: int, terms: int, dtype) -> tuple[tuple[int, int, int], dict]:
    """(tile, blocks) of `gemm`: columns and terms of a block, and which loop is inside it. Blocks are whole tiles wide.

    Few rows and many terms (a dense layer's gradient of its input): a block of b stays in the first cache while all rows use it,
    and c is added to (so tiles must not overlap). Else a block of columns of b stays in the second cache, and each row of
    c is written along. Either way few pages of memory are in use at once: a large matrix read column by column touches
    another page with every row. Of a matrix that up to 4 rows share, memory is the limit: 8 terms at a time are as many streams as
    the processor fetches ahead (1 x 1024 x 4096 on Zen 3: 370 us; with 64 terms 1,170).
    """
    item, tile = np.dtype(dtype).itemsize, best_gemm(rows, columns, terms, dtype)
    whole = best_gemm(rows, columns, terms, dtype, True)
    full = max(TARGET.lanes(dtype), LEAST_LANES)
    many = terms > FEW_TERMS and rows <= FEW_ROWS
    if many and rows % 4 == 0 and columns % (4 * full) == 0 and TARGET.registers >= 32:
        whole = 4, 4, full  # few terms in flight read b in long runs
    if many and whole and whole[0] * whole[1] >= min(8, rows):
        lanes = whole[1] * whole[2]
        width, depth = (2048, 8) if rows <= 4 else (512, 16)
        return whole, dict(column_block=max(lanes, width // lanes * lanes), term_block=depth, rows_first=0)
    lanes = tile[1] * tile[2]
    wide = max(4 * lanes, (256 << 10) // (terms * item) // lanes * lanes)
    return tile, dict(column_block=min(wide, -(-columns // lanes) * lanes), term_block=terms, rows_first=1)


FEW = 8  # rows of a product: too few to pack anything for
FEWEST_TERMS = 16  # of a dot product: fewer leave lanes empty
AT_HAND = 128 << 10  # bytes that are read again and again without being packed
PANELS = (256 if TARGET.registers >= 32 else 128) << 10  # bytes of panels: up to half of the second cache of processors with such vectors
WAITING = 2 * PANELS  # bytes of sums that wait
DEEP, SHALLOW = 512, 128  # terms of a panel


@lru_cache(4096)
def best_packed(rows: int, columns: int, terms: int, dtype, slots: int, packs: bool, turned: bool) -> tuple[tuple[int, int, int], dict, int]:
    """(tile, blocks, scratch) of `gemm_packed`, scratch in numbers. packs: a's terms don't lie side by side; turned: b's do.

    Deep panels: a tile's sums wait in memory a few times only, and rows of a turned b are read in long runs. Where b is read across,
    and few rows wait for it, or a is packed anew for each block of columns, the columns are what should be many.
    """
    full, item = max(TARGET.lanes(dtype), LEAST_LANES), np.dtype(dtype).itemsize
    choices = []
    for w in widths(dtype):
        for v in (1, 2, 3, 4):
            for r in (1, 2, 3, 4, 5, 6, 8, 10, 12, 14):
                # one register more than sums and factors: without it they are moved about (6 x 2 is a fifth faster than 4 x 3 with 16). Of more
                # than 8 rows the scalars, which several registers share, are all loaded before they are used, and sums go to memory for it.
                if v * w <= columns and r <= rows and (v == 1 or r <= 8) and (r * v + v + 2 <= TARGET.registers or r * v == 1) and r * v <= 28:
                    step = max(r * v * max(w / full, 0.5), (r + v) * 0.5, 11) + 0.25 * (r * 0.5 + v)  # 11 sums hide a multiply-add's latency
                    choices.append((ceil(rows / r) * ceil(columns / (v * w)) * step, -r * v, r, v, w))
    high, vectors, w = tile = min(choices)[2:]
    lanes, parts = vectors * w, 4 * slots

    def up(number: int, step: int) -> int:
        return -(-number // step) * step

    deep = SHALLOW if packs or rows <= FEW_ROWS and not turned else DEEP
    term_block = min(terms, up(ceil(terms / ceil(terms / deep)), 8))  # blocks of equal depth
    wide = max(PANELS // (term_block * item), 2 * lanes)
    # Rows that a panel is packed for, and so many of them that each thread gets some: then c is written in long runs, and no line of it by
    # two threads. Where all terms are in one panel, a few rows are worth it.
    least, enough = (high, high * slots) if packs and not turned and terms <= SHALLOW else (8 * high, 8 * high * parts)
    if rows < enough:
        wide = min(wide, max(ceil(columns / parts), 2 * lanes))
    wide = min(wide, columns)
    column_block = up(wide, lanes) if wide == columns else max(wide // lanes, 1) * lanes
    tall = max(ceil(rows / ceil(parts / ceil(columns / column_block))), least)
    if term_block < terms:
        tall = min(tall, max(WAITING // (column_block * item), 8 * high))
    row_block = up(min(tall, rows), high)
    panels = column_block * term_block
    partial = panels + (term_block * high if packs else 0)
    blocks = dict(column_block=column_block, row_block=row_block, term_block=term_block, packed=panels, partial=partial)
    return tile, blocks, partial + (row_block * column_block if term_block < terms else high * lanes)


def is_packed(rows: int, columns: int, terms: int, dtype) -> bool:
    """Whether a @ b is `gemm_packed`'s rather than `gemm`'s: many rows share b, which is larger than what stays at hand anyway, or
    c is, which it writes in longer runs."""
    item = np.dtype(dtype).itemsize
    return rows > FEW and (columns * terms * item > AT_HAND or rows * columns * item > 8 * AT_HAND)


def turned_is_packed(rows: int, columns: int, terms: int) -> bool:
    """Whether x @ W^T is `gemm_packed`'s rather than `dots`': many rows share what is turned, or there are few terms to fill the lanes with.

    For up to FEW rows it does not depend on how many: a layer of few images adds up in one order, whether it takes them together or not.
    """
    return columns >= LEAST_LANES and (terms < FEWEST_TERMS or rows > FEW and (terms <= 32 or rows > 48 and columns >= 32))


@lru_cache(4096)
def best_dots(rows: int, columns: int) -> tuple[int, int]:
    """(rows of a, rows of b) of a tile of `dots`: as many products as the registers hold, from few loads."""
    choices = []
    for r in (1, 2, 3, 4, 5, 6, 8, 9):
        for c in (1, 2, 3, 4, 5, 6, 8):
            # b's numbers wait in registers while a's come one by one (a single row's are multiplied as they come); and eight rows of b are
            # eight more addresses, which only a single row of a leaves registers for
            if r > rows or c > columns or r * c + (c if r > 1 else 1) + 1 > TARGET.registers or r * c > 27 or c == 8 and r > 1:
                continue
            step = max(r * c, 2.2 * (r + c)) + 0.4 * (r + c)  # both come from the second cache
            choices.append((ceil(rows / r) * ceil(columns / c) * step, -r * c, r, c))
    return min(choices)[2:]


DENSE_BACK = fields("rows columns terms column_block term_block dy dy_row w x x_row dx dx_row mask mask_row hyper fault panel panel_slot")
IN_CACHE = 2 << 20  # bytes of x and dx in the second caches of two threads
MOST_AT_ONCE = 6  # rows of `dense_back_few`
PANEL = 8 << 10  # bytes of `dense_back`'s copy: a part of the first cache


def best_dense_back(rows: int, columns: int, dtype, slots: int) -> tuple[Factory, tuple[int, int, int, int], dict] | None:
    """(kernel, tile, blocks): `dense_back`, its tile as (rows of dx, rows of w, vectors, lanes), or `dense_back_few`; None where two products
    are as good: some rows, or many, which don't wait for memory; or no tile divides the columns."""
    w = max(TARGET.lanes(dtype), LEAST_LANES)
    most = max(4 // rows, 1) if rows <= MOST_AT_ONCE else 2
    v = next((v for v in (4, 2, 1) if v <= most and columns % (v * w) == 0), 0)
    if not v or MOST_AT_ONCE < rows <= FEW or 2 * rows * columns * np.dtype(dtype).itemsize > IN_CACHE:
        return None
    lanes = v * w
    wide = max(ceil(columns / (slots * lanes)), 2)  # tiles side by side: some for all threads
    if rows <= MOST_AT_ONCE:  # 4 rows of w are as many streams as the processor fetches ahead
        return dense_back_few, (rows, 4, v, w), dict(column_block=wide * lanes)
    fitting = [r for r in (9, 8, 7, 6, 5, 4, 3) if r * v + v + 1 <= TARGET.registers]
    high = min(fitting, key=lambda r: (rows // r * (r * v + 2) + rows % r * 6, -r))  # cycles: a row by itself waits for each of its sums
    stepped = 8 if 8 in fitting else 6
    return dense_back, (high, stepped, v, w), dict(column_block=min(512 // lanes, wide) * lanes, term_block=PANEL // (lanes * np.dtype(dtype).itemsize) // stepped * stepped)


DOTS = fields("rows columns terms a a_slot a_image a_row b b_slot b_image b_row c c_slot c_image c_row stay row_shares bias relu")

# --- the kernels, in files of their own -------------------------------------------------------------------------------
enter, leave, leave_few, turn_few, turn, places, patches, patches_back, gather = kernels_in("copies_kernels", "enter leave leave_few turn_few turn places patches patches_back gather")
conv, conv_pool, conv_batch, conv_dw = kernels_in("tiles_kernels", "conv conv_pool conv_batch conv_dw")
gemm, gemm_packed, dense_back, dense_back_few, dots = kernels_in("product_kernels", "gemm gemm_packed dense_back dense_back_few dots")
