"""Winograd's convolution: 3 x 3 kernels of stride 1 with 2.25 or 4 times fewer multiplications.

M outputs in a row of a 3-tap filter g over M + 2 numbers d can be had with M + 2 multiplications instead of 3 * M: both
are polynomials, and their product is known from its values at M + 2 points (here 0, 1, -1, 2, -2 and infinity for
M = 4). Evaluating and interpolating are small constant matrices, so for a tile of M x M outputs

    y = A^T [ (G g G^T) * (B^T d B) ] A               forward; and the images' gradient, with turned weights
    dg = G^T [ (B^T d B) * (A dy A^T) ] G             the weights' gradient: the transposed algorithm

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
`winograd_dw`, which adds up, lets its tiles hang over, and asks for zeros there.

The kernels' code is in winograd_kernels.py. Next on the walk: conv2d_winograd.py, the kernels as variants of convolution.
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


def pitch(elements: int, dtype) -> int:
    """From one of the (M + 2)^2 matrices to the next: not a multiple of 4096 bytes, or all of them would share a cache set."""
    return lines(elements, dtype) + LINE // np.dtype(dtype).itemsize


class Tiles:
    """How an image of rows x columns outputs is cut into tiles: the kernels' constants, the numbers of their rows that follow
    from shapes, and `work`, the elements of scratch memory that a slot needs. channels, lanes: of x and y as they lie in memory;
    terms: how many of the channels there are."""

    def __init__(self, m: int, rows: int, columns: int, channels: int, terms: int, lanes: int, dtype, *, shares: int = 1, gradient: bool = False):
        """gradient: for `winograd_dw`, else for `winograd`. shares: into which `winograd` cuts an image, by rows of tiles."""
        down, across, matrices = ceil(rows / m), ceil(columns / m), (m + 2) ** 2
        few = terms if terms <= FEW and not gradient else 0
        high, vectors, w = _tile(terms if gradient else ceil(down / shares) * across, lanes, few, gradient, dtype)
        x = fitting(channels, dtype)
        abreast = max(1, TARGET.lanes(dtype) // x) if x == channels else 1
        self.constants = (m, high, vectors, w, x) if gradient else (m, high, vectors, w, x, abreast, few)
        side, least = (lanes, 1) if gradient else (vectors * w, high)
        fit = CACHE // (matrices * across * (channels + side) * np.dtype(dtype).itemsize)
        block = ceil(down / ceil(down / max(1, fit, ceil(least / across))))  # rows of tiles at a time, as many in each block
        v_pitch, m_pitch = (pitch(max(block * across, least) * n, dtype) for n in (channels, side))
        self.work = matrices * (v_pitch + m_pitch)
        self.numbers = dict(rows=rows, columns=columns, block=block, channels=channels, terms=terms, lanes=lanes, v_pitch=v_pitch, m_pitch=m_pitch)


def best_size(rows: int, columns: int) -> int:
    """M for so many outputs: at least 4 tiles, which save a third of the multiplications or more; 0 if no M does."""

    def pays(m: int) -> bool:
        count = ceil(rows / m) * ceil(columns / m)
        return min(rows, columns) >= m and count >= 4 and count * (m + 2) ** 2 * 3 <= rows * columns * 9 * 2

    return next((m for m in (4, 2) if pays(m)), 0)


@lru_cache(4096)
def _tile(rows: int, lanes: int, few: int, whole: bool, dtype) -> tuple[int, int, int]:
    """(rows, vectors, lanes) of a register tile of the matrix products. few: sums of so many terms, whose weights are in registers
    too, if it is not 0. whole: it adds to memory, so it must divide them."""
    full = max(TARGET.lanes(dtype), LEAST_LANES)
    choices = []
    for w in widths(dtype):
        for v in (1, 2, 3, 4):
            for r in (1, 2, 3, 4, 6, 8, 9):
                if r > rows or v * w > lanes or r * v + max(few, 1) * v + 1 > TARGET.registers or r * v > (4 if few else 28) or whole and (rows % r or lanes % (v * w)):
                    continue
                step = max(r * v * max(w / full, 0.5), r * 0.5 + v, 4.2) + 0.25 * (r * 0.5 + v)
                choices.append((ceil(rows / r) * ceil(lanes / (v * w)) * step, -r * v, r, v, w))
    return min(choices)[2:]


# --- weights: into matrices, and back ---------------------------------------------------------------------------------

WEIGHTS = fields("terms count lanes w seen w_term w_lane flip u u_pitch taps taps_slot")
WEIGHTS_OUT = fields("terms count lanes sums chunks sums_chunk sums_pitch w taps taps_slot")

# --- images ----------------------------------------------------------------------------------------------------------

WINOGRAD = fields(
    "rows columns block channels terms lanes by_lanes iy ix x x_slot x_image u u_pitch bias work work_slot v_pitch m_pitch "
    "y y_slot y_image oy ox add add_slot add_image add_y add_x mask mask_slot mask_image mask_y mask_x relu winner winner_slot winner_image"
)  # fmt: skip
WINOGRAD_DW = fields("rows columns block channels terms lanes iy ix x x_slot x_image gy gx dy dy_slot dy_image work work_slot v_pitch m_pitch sums sums_chunk sums_pitch")

# --- for single calls: NHWC images of `lanes` out of images of any layout, and back -------------------------------------------

ENTER = fields("high wide lanes top left rows columns channels x x_image x_row x_column x_channel y y_slot y_image")
LEAVE = fields("rows columns lanes channels x x_slot x_image y y_image y_row y_column y_channel")

# --- the kernels, in winograd_kernels.py -------------------------------------------------------------------
(
    weights_in, weights_out, winograd, winograd_dw, enter_lanes, leave_lanes,
) = kernels_in(
    "winograd_kernels",
    "weights_in weights_out winograd winograd_dw enter_lanes leave_lanes",
)  # fmt: skip
