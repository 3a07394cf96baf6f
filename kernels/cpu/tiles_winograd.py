"""Winograd's convolution: 3 x 3 kernels of stride 1 with 2.25 or 4 times fewer multiplications.

M outputs in a row of a 3-tap filter g over M + 2 numbers d can be had with M + 2 multiplications instead of 3 * M: both
are polynomials, and their product is known from its values at M + 2 points (here 0, 1, -1, 2, -2 and infinity for
M = 4). Evaluating and interpolating are small constant matrices, so for a tile of M x M outputs

    y = A^T [ (G g G^T) * (B^T d B) ] A               forward; and the images' gradient, with turned weights
    dg = G^T [ (B^T d B) * (A dy A^T) ] G             the weights' gradient: the transposed algorithm
    dd = B [ (G g G^T) * (A dy A^T) ] B^T             the images' gradient again, as tiles of dy that add up where they overlap

The sum over channels is taken between the brackets, where * is elementwise: so it is (M + 2)^2 matrix products, tiles
x channels by channels x lanes, which run at the processor's peak. The transforms are additions for the most part, and cost
a quarter of that from 32 to 64 channels, less where there are more. Matrices:
A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308, 2015.

The price is accuracy: B^T d B subtracts neighbours, and A^T weighs what is left by up to 64, so an output has errors of the
size of its neighbours' terms. Measured on reals, M = 4 loses 2 to 2.5 bits to a direct sum (one channel: nearly 4); M = 2 loses
none from 8 channels on, for its sums are shorter. conv2d_winograd.py derives what can be promised. A NaN or an infinity
spreads over its whole tile.

Kernels here read and write NHWC images whose channels are `lanes`: a multiple of 8, or 4, those that are not there 0. The
last tile of a row or column is moved back until it fits, so a reader meets no pixel beyond the windows of its outputs; only
`winograd_dw` and `winograd_dx`, which add up, let their tiles hang over, and ask for zeros there.

Weights are transformed before the images, once for all of them. But they have (M + 2)^2 matrices, for M = 4 four times their own size. Where
those are larger than one trained image's, or than a cache, they are made where they are read, for some terms and lanes at a
time, and never lie in memory; a weights' gradient is transformed back where it was summed up (`own`). So that
the transform costs little, the tiles of several images share what is made (`together`). From 256 to 512 channels the matrices have
19 MB, and an image of 8 x 8 pixels only 4 tiles: it would wait for them longer than it computes.

Two ways to the images' gradient: `winograd` cuts dx into tiles, `winograd_dx` dy. Without padding dy is smaller, and may have
fewer tiles: 9 for the article's 12 x 12 dy, 16 for its 14 x 14 dx. But its transforms write more: `turned_pays` says when.

The kernels' code is in winograd_kernels.py and winograd_weights_kernels.py. Next on the walk: conv2d_winograd.py, the kernels as variants of convolution.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil

import numpy as np

from tinynet.kernels.cpu.rows import fields, kernels_in
from tinynet.kernels.cpu.target import LINE, TARGET, lines
from tinynet.kernels.cpu.tiles import LEAST_LANES, fitting, widths

B = {
    2: ((1, 0, 0, 0), (0, 1, -1, 1), (-1, 1, 1, 0), (0, 0, 0, -1)),
    4: ((4, 0, 0, 0, 0, 0), (0, -4, 4, -2, 2, 4), (-5, -4, -4, -1, -1, 0), (0, 1, -1, 2, -2, -5), (1, 1, 1, 1, 1, 0), (0, 0, 0, 0, 0, 1)),
}  # fmt: skip
G = {
    2: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    4: ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1)),
}  # fmt: skip
A = {
    2: ((1, 0), (1, 1), (1, -1), (0, -1)),
    4: ((1, 0, 0, 0), (1, 1, 1, 1), (1, -1, 1, -1), (1, 2, 4, 8), (1, -2, 4, -8), (0, 0, 0, 1)),
}  # fmt: skip

# --- sizes --------------------------------------------------------------------------------------------------------

CACHE = 1 << 18  # bytes that a block of tiles may take between its transforms: a part of the second cache, which weights need too

FEW = 4  # terms whose weights may stay in registers
FEW_CACHE = 72_000  # bytes that a block of tiles of few terms may take: more than the first cache has, but shorter loops cost more
HELD = 32  # terms whose sums for the weights' gradient are in scratch memory at once: with 64 lanes and M = 4, 300 KB of float32
MADE = 64  # terms whose weights are transformed at once
TOGETHER = 64  # tiles, of several images, that share what is made of the weights: as many products for each of their transforms


def pitch(elements: int, dtype) -> int:
    """From one of the (M + 2)^2 matrices to the next: not a multiple of 4096 bytes, or all of them would share a cache set."""
    return lines(elements, dtype) + LINE // np.dtype(dtype).itemsize


def apart(lanes: int, dtype) -> int:
    """From one row of a matrix to the next. Of each a tile reads a line or two: were they a multiple of 512 bytes apart, those of 128 rows
    would share too few places in the first cache."""
    line = LINE // np.dtype(dtype).itemsize
    return lanes + (line if lanes % (8 * line) == 0 else 0)


def u_steps(terms: int, lanes: int, dtype) -> dict[str, int]:
    """Steps through matrices of transformed weights: from one term to the next, and from one matrix to the next."""
    u_term = apart(lanes, dtype)
    return dict(u_term=u_term, u_pitch=pitch(terms * u_term, dtype))


def by_rows(m: int, few: int) -> bool:
    """Whether the registers hold the weights of few terms of a whole row of matrices, beside its sums and two more."""
    return few > 0 and (m + 2) * (few + 1) + 2 <= TARGET.registers


def exact(m: int, rows: int, columns: int) -> bool:
    """Whether no tile of so many outputs is moved back: then shares may split anywhere between tiles."""
    return rows % m == columns % m == 0


def abreast(channels: int, dtype) -> tuple[int, int]:
    """Lanes of x that are transformed at once, and of how many tiles side by side: more than one where a pixel fills no register."""
    x = fitting(channels, dtype)
    return x, max(1, TARGET.lanes(dtype) // x) if x == channels else 1


def together(images: int, tiles: int) -> int:
    """How many images of so many tiles are taken at once: groups of one size, as nearly as can be."""
    return ceil(images / ceil(images * tiles / max(TOGETHER, tiles)))


class _Cut:
    """What `Tiles` and `WeightsTiles` find: a kernel's constants, the numbers of its row that follow from shapes, and `work`, the elements
    of scratch memory that a slot needs."""

    def _fit(self, m: int, tiles: int, other: int, least: int, own: int, vectors: int, w: int, dtype, **numbers: int) -> None:
        """tiles: transformed at once, into `channels` and `other` lanes each. own: terms whose matrices, of vectors * w lanes, are the kernel's own."""
        v_pitch, m_pitch, self.work = _work(m, tiles, numbers["channels"], other, least, dtype)
        self.own_pitch = pitch(own * vectors * w, dtype)
        if own:
            self.work += (m + 2) ** 2 * self.own_pitch + 9 * w * own  # and the weights that they are made of, or become
        self.numbers = dict(numbers, own=own, v_pitch=v_pitch, m_pitch=m_pitch)


class Tiles(_Cut):
    """How an image of rows x columns outputs is cut into tiles for `winograd`. channels, lanes: of x and y as they lie in memory; terms: how
    many of the channels there are."""

    def __init__(self, m: int, rows: int, columns: int, channels: int, terms: int, lanes: int, dtype, *, shares: int = 1, own: bool = False, images: int = 1):
        """shares: into which an image is cut, by rows of tiles or, with `own`, by lanes. own: the kernel makes the matrices of weights, in
        scratch memory, for `images` of one call."""
        down, across, few = ceil(rows / m), ceil(columns / m), terms if terms <= FEW and not own else 0
        group = together(images, down * across)
        if own:
            high, vectors, w, _ = _tile(m, down * group, across, channels, terms, lanes, lanes // shares, dtype, "own")
            block, count, made = down, ceil(down * across * group / high) * high, min(terms, MADE)  # no tile is moved back, or it would be added to twice
        else:
            part = ceil(down * across / shares) if exact(m, rows, columns) else ceil(down / shares) * across
            high, vectors, w, block = _tile(m, ceil(down / shares), across, channels, terms, lanes, lanes, dtype, "y", part)
            count, made = block * across, 0
        self.constants = (m, high, vectors, w, *abreast(channels, dtype), few, int(own))
        numbers = dict(rows=rows, columns=columns, block=block, channels=channels, terms=terms, lanes=lanes, images=images, together=group)
        self._fit(m, count, vectors * w, high, made, vectors, w, dtype, **numbers)


class WeightsTiles(_Cut):
    """As `Tiles`, for `winograd_dw`; rows x columns and lanes are dy's. shares: into which it cuts the lanes, with `own`: then it keeps
    sums in scratch memory, and gives their matrices back as weights."""

    def __init__(self, m: int, rows: int, columns: int, channels: int, terms: int, lanes: int, dtype, *, shares: int = 1, own: bool = False, images: int = 1):
        down, across = ceil(rows / m), ceil(columns / m)
        group = together(images, down * across)
        high, vectors, w, block = _tile(m, down * group, across, channels, terms, lanes, lanes // shares, dtype, "dw")
        block, held = (down, min(terms, max(high, HELD // high * high))) if own else (block, 0)
        self.constants = (m, high, vectors, w, *abreast(channels, dtype), int(own))
        side = apart(ceil(lanes / (vectors * w) / shares) * vectors * w, dtype)
        numbers = dict(rows=rows, columns=columns, block=block, channels=channels, terms=terms, lanes=lanes, side=side, images=images, together=group)
        self._fit(m, block * across * group, side, 1, held, vectors, w, dtype, **numbers)


def weights_outweigh(m: int, rows: int, columns: int, channels: int, terms: int, lanes: int) -> bool:
    """Whether weights, transformed, take as much memory as the tiles of one image or more; few terms' are in registers anyway."""
    return terms > FEW and terms * lanes >= ceil(rows / m) * ceil(columns / m) * channels


class TurnedTiles:
    """As `Tiles`, for `winograd_dx`: rows x columns, channels and terms are dy's; high x wide and lanes dx's, which begins `top` rows and
    `left` columns after the first window does. shares: into which it cuts an image, by lanes."""

    def __init__(self, m: int, rows: int, columns: int, channels: int, terms: int, high: int, wide: int, top: int, left: int, lanes: int, dtype, shares: int = 1):
        down, across = ceil(rows / m), ceil(columns / m)
        # One vector of lanes at a time: then a block's products stay in the first cache until they are added up.
        r, vectors, w, block = _tile(m, down, across, channels, terms, lanes, min(TARGET.lanes(dtype), lanes // shares), dtype, "dx")
        self.constants = (m, r, vectors, w, fitting(channels, dtype))
        v_pitch, m_pitch, products = _work(m, block * across, channels, vectors * w, r, dtype)
        sum_rows, sum_columns = max(down * m + 2, top + high), max(across * m + 2, left + wide)  # of the tiles, and of whoever reads them
        self.work = products + lines(sum_rows * sum_columns * lanes, dtype)
        self.numbers = dict(
            rows=rows, columns=columns, block=block, channels=channels, terms=terms, lanes=lanes, high=high, wide=wide, top=top, left=left,
            sum_rows=sum_rows, sum_columns=sum_columns, v_pitch=v_pitch, m_pitch=m_pitch,
        )  # fmt: skip


def _work(m: int, tiles: int, channels: int, other: int, least: int, dtype) -> tuple[int, int, int]:
    """(from one matrix of the first transform to the next, the same of the products or the second one, elements of all) of so many tiles."""
    v_pitch, m_pitch = (pitch(max(tiles, least) * n, dtype) for n in (channels, other))
    return v_pitch, m_pitch, (m + 2) ** 2 * (v_pitch + m_pitch)


def turned_pays(m: int, rows: int, columns: int, m_dx: int, high: int, wide: int) -> bool:
    """Whether tiles of dy (m) need at most two thirds of the multiplications of tiles of dx (m_dx; 0: no such tiles)."""
    count, other = (ceil(r / k) * ceil(c / k) * (k + 2) ** 2 if k else 0 for k, r, c in ((m, rows, columns), (m_dx, high, wide)))
    return m > 0 and (m_dx == 0 or 3 * count <= 2 * other)


def best_size(rows: int, columns: int) -> int:
    """M for so many outputs: at least 4 tiles, which save a third of the multiplications or more; 0 if no M does."""

    def pays(m: int) -> bool:
        count = ceil(rows / m) * ceil(columns / m)
        return min(rows, columns) >= m and count >= 4 and count * (m + 2) ** 2 * 3 <= rows * columns * 9 * 2

    return next((m for m in (4, 2) if pays(m)), 0)


@lru_cache(4096)
def _tile(m: int, down: int, across: int, channels: int, terms: int, lanes: int, most: int, dtype, kind: str, part: int = 0) -> tuple[int, int, int, int]:
    """(tiles, vectors, lanes) of a register tile of the matrix products, and how many rows of tiles make a block, for down x across tiles.

    kind: "y", of `winograd`, which holds the weights of few terms in registers too (`by_rows`: of one vector of lanes, and one tile at a
    time); "own", where it makes them; "dx"; "dw", whose register tiles are terms x lanes.
    most: lanes of a register tile. part: how many tiles a share has, if it does not end with a row of them."""
    full, item = max(TARGET.lanes(dtype), LEAST_LANES), np.dtype(dtype).itemsize
    if kind == "y" and terms <= FEW and by_rows(m, terms):
        w = fitting(lanes, dtype)
        of_a_row = ((m + 2) ** 2 * channels + (m + 2) * m * w) * item * across
        return 1, 1, w, ceil(down / ceil(down * of_a_row / FEW_CACHE))
    choices = []
    for w in widths(dtype):
        for v in (1, 2, 3, 4):
            side, held = lanes if kind == "dw" else v * w, terms if kind == "y" and terms <= FEW else 0
            # What is added to memory must be so once: no tile may be moved back.
            if v * w > max(min(lanes, most), LEAST_LANES) or kind in ("dx", "dw") and lanes % (v * w):
                continue
            for r in (1, 2, 3, 4, 5, 6, 8, 9):
                if r == 5 and kind != "y" or r * v + max(held, 1) * v + 1 > TARGET.registers or r * v > (4 if held else 28) or r > (terms if kind == "dw" else down * across) or kind == "dw" and terms % r:
                    continue
                fit = CACHE // ((m + 2) ** 2 * across * (channels + side) * item)
                block = ceil(down / ceil(down / max(1, fit, ceil((1 if kind == "dw" else r) / across))))  # as many in each block
                blocks = [min(block, down - top) * across for top in range(0, down, block)] if part == 0 or block < down else [part]
                count = terms // r * sum(blocks) if kind == "dw" else sum(ceil(tiles / r) for tiles in blocks)
                step = max(r * v * max(w / full, 0.5), r * 0.5 + v, 4.2) + 0.25 * (r * 0.5 + v)
                choices.append((count * ceil(lanes / (v * w)) * step, -r * v, r, v, w, block))
    return min(choices)[2:]


# --- weights: into matrices, and back ---------------------------------------------------------------------------------

WEIGHTS = fields("terms count lanes w seen w_term w_lane flip u u_term u_pitch taps taps_slot")
WEIGHTS_OUT = fields("terms count lanes sums chunks sums_chunk sums_pitch w taps taps_slot")

# --- images ----------------------------------------------------------------------------------------------------------

WINOGRAD = fields(
    "rows columns block channels terms lanes images together own by_lanes iy ix x x_slot x_image u u_term u_pitch w_term w_lane flip count bias work work_slot v_pitch m_pitch "
    "y y_slot y_image oy ox add add_slot add_image add_y add_x mask mask_slot mask_image mask_y mask_x relu winner winner_slot winner_image"
)  # fmt: skip
WINOGRAD_DX = fields(
    "rows columns block channels terms lanes high wide top left sum_rows sum_columns gy gx dy dy_slot dy_image u u_term u_pitch work work_slot v_pitch m_pitch "
    "dx dx_slot dx_image dx_y dx_x add add_slot add_image add_y add_x mask mask_slot mask_image mask_y mask_x"
)  # fmt: skip
WINOGRAD_DW = fields(
    "rows columns block channels terms lanes side images together own iy ix x x_slot x_image gy gx dy dy_slot dy_image work work_slot v_pitch m_pitch sums sums_chunk sums_images sums_chunks sums_pitch own_pitch count "
    "winner winner_slot winner_image winner_y winner_x reached reached_chunk"
)  # fmt: skip

# --- for single calls: NHWC images of `lanes` out of images of any layout, and back -------------------------------------------

ENTER = fields("high wide lanes top left rows columns channels x x_image x_row x_column x_channel y y_slot y_image")
LEAVE = fields("rows columns lanes channels x x_slot x_image y y_image y_row y_column y_channel")

# --- the kernels ---------------------------------------------------------------------------------------------
weights_in, weights_out, winograd_dw = kernels_in("winograd_weights_kernels", "weights_in weights_out winograd_dw")
winograd, winograd_dx, enter_lanes, leave_lanes = kernels_in("winograd_kernels", "winograd winograd_dx enter_lanes leave_lanes")
