"""Winograd's transforms (tiles_winograd.py has the formulas): of a tile in registers, of a row of an image's tiles, of some weights.
Imported when a kernel must be compiled."""

from __future__ import annotations

from functools import cache

from tinynet.kernels.cpu.congruence import congruence, from_left
from tinynet.kernels.cpu.copies_kernels import transpose, zero
from tinynet.kernels.cpu.jit import apart, inline
from tinynet.kernels.cpu.simd_memory import loads, stores, windows
from tinynet.kernels.cpu.tiles_winograd import A, B, G


def _turned(matrices: dict) -> dict:
    return {m: tuple(zip(*matrix)) for m, matrix in matrices.items()}


# Of a tile's registers and M: B^T d B, A dy A^T, G g G^T; and A^T m A, B m B^T, G^T dm G.
of_images, of_gradients, of_weights = congruence(_turned(B)), congruence(A), congruence(G)
to_outputs, to_images, to_weights = congruence(_turned(A)), congruence(B), congruence(_turned(G))
half_to_outputs = from_left(_turned(A))  # A^T m; and of a row of m, taken as a column, that of m A


@cache
def entering(M, X, ABREAST):
    """A function that transforms the patches of x for a row of tiles, whose first begins at x[at]; the first `even` of them
    lie M pixels apart, the last may have been moved back. Where X lanes are all channels of a pixel, and pixels lie side by side, ABREAST
    such tiles fill a register."""
    SIDE, TOGETHER = M + 2, ABREAST * X
    MATRICES = SIDE**2

    @apart
    def abreast(x, at, iy, work, to, v_pitch):
        stores(work, to, MATRICES, v_pitch, 1, 0, 1, TOGETHER, of_images(windows(x, at, SIDE, iy, SIDE, M, ABREAST, X), M))

    @apart
    def one(x, at, iy, ix, work, to, v_pitch):
        stores(work, to, MATRICES, v_pitch, 1, 0, 1, X, of_images(loads(x, at, SIDE, iy, SIDE, ix, 1, X), M))

    @inline
    def enter(x, at, iy, ix, columns, even, across, channels, work, to, v_pitch):
        done = 0
        if ABREAST > 1 and even >= ABREAST and ix == X:
            for t in range(0, even, ABREAST):
                t = min(t, even - ABREAST)
                abreast(x, at + t * M * X, iy, work, to + t * X, v_pitch)
            done = even
        for t in range(done, across):
            j = min(t * M, columns - M)
            for c in range(0, channels, X):
                c = min(c, channels - X)
                one(x, at + j * ix + c, iy, ix, work, to + t * channels + c, v_pitch)

    return enter


@cache
def making(M, W):
    """A function for (G g G^T)[k] of `many` terms and W lanes, `there` of which have weights g, 3 x 3 at w[at + term * w_term + lane * w_lane],
    and 0 is in the others: to u[to + k * pitch + term * u_term]. scratch: taps[hold:], 9 * W * many elements."""
    MATRICES, TAPS = (M + 2) ** 2, 9 * W

    @inline
    def transformed(w, at, w_term, w_lane, there, many, flip, taps, hold, u, to, u_term, pitch):
        if there < W:
            zero(taps, hold, TAPS * many)
        if w_term == 9:  # a lane's terms follow one another
            transpose(w, at, w_lane, taps, hold, W, there, 9 * many)
        else:
            for term in range(many):
                transpose(w, at + term * w_term, w_lane, taps, hold + term * TAPS, W, there, 9)
        first, step = (hold + 8 * W, -W) if flip != 0 else (hold, W)
        for term in range(many):
            stores(u, to + term * u_term, MATRICES, pitch, 1, 0, 1, W, of_weights(loads(taps, first + term * TAPS, 9, step, 1, 0, 1, W), M))

    return transformed
