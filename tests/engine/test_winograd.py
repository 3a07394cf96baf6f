"""Winograd's convolution: its matrices, its kernels on buffers with halos, and its variants at sizes that do not fit."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from geometries import Convolution
from kernels_by_hand import assert_same, reals, run, truth, whole_numbers

from tinynet import oracle
from tinynet.dispatch import find
from tinynet.kernels.cpu import program, tiles_winograd
from tinynet.kernels.cpu.conv2d_winograd import NORM, NORM_DW, NORM_DX, VARIANTS
from tinynet.kernels.cpu.images import chunk_sums
from tinynet.kernels.cpu.program import address_of, compiled, named
from tinynet.kernels.cpu.tiles_winograd import Tiles, TurnedTiles, WeightsTiles

DTYPES = (np.float32, np.float64)
PLAIN = dict(stride=1, dilation=1, groups=1)
CASES = {
    "one channel, one tile": Convolution((1, 1, 6, 6), (1, 1, 3, 3), False, dict(PLAIN, padding=0, layout="NCHW")),
    "a remainder of 1 and of 3": Convolution((2, 3, 7, 9), (5, 3, 3, 3), True, dict(PLAIN, padding=1, layout="NCHW")),
    "a remainder of 2, NHWC": Convolution((3, 10, 6, 8), (16, 8, 3, 3), True, dict(PLAIN, padding=1, layout="NHWC")),
    "odd channels": Convolution((2, 17, 8, 5), (19, 17, 3, 3), True, dict(PLAIN, padding="same", layout="NCHW")),
    "odd channels, NHWC": Convolution((2, 8, 5, 17), (19, 17, 3, 3), False, dict(PLAIN, padding="same", layout="NHWC")),
    "24 lanes to 40": Convolution((2, 24, 6, 6), (40, 24, 3, 3), True, dict(PLAIN, padding=1, layout="NCHW")),
    "four sides": Convolution((2, 9, 8, 4), (6, 4, 3, 3), True, dict(PLAIN, padding=((2, 0), (1, 2)), layout="NHWC")),
    "wide": Convolution((1, 2, 4, 37), (5, 2, 3, 3), True, dict(PLAIN, padding=1, layout="NCHW")),
    "no padding: dy has fewer tiles": Convolution((2, 20, 6, 8), (17, 20, 3, 3), True, dict(PLAIN, padding=0, layout="NCHW")),
    "no padding, NHWC, several blocks": Convolution((2, 18, 18, 33), (72, 33, 3, 3), True, dict(PLAIN, padding=0, layout="NHWC")),
    "padding on one side": Convolution((1, 5, 9, 9), (24, 5, 3, 3), True, dict(PLAIN, padding=((0, 1), (1, 0)), layout="NCHW")),
    "several blocks of tiles": Convolution((2, 33, 39, 31), (36, 33, 3, 3), True, dict(PLAIN, padding=1, layout="NCHW")),
    "many images": Convolution((19, 8, 8, 8), (12, 8, 3, 3), True, dict(PLAIN, padding=1, layout="NCHW")),
}  # fmt: skip
OTHERS = {
    "5 x 3": Convolution((2, 3, 9, 8), (4, 3, 5, 3), True, dict(PLAIN, padding=1, layout="NCHW")),
    "stride": Convolution((2, 3, 9, 8), (4, 3, 3, 3), True, dict(PLAIN, stride=(1, 2), padding=1, layout="NCHW")),
    "dilation": Convolution((2, 3, 9, 8), (4, 3, 3, 3), True, dict(PLAIN, dilation=(2, 1), padding=1, layout="NCHW")),
    "groups": Convolution((2, 4, 9, 8), (4, 2, 3, 3), True, dict(PLAIN, groups=2, padding=1, layout="NCHW")),
    "one pixel": Convolution((2, 4, 1, 1), (4, 4, 3, 3), True, dict(PLAIN, padding=1, layout="NCHW")),
    "no images": Convolution((0, 4, 8, 8), (4, 4, 3, 3), True, dict(PLAIN, padding=1, layout="NCHW")),
}  # fmt: skip


def calls(case: Convolution, rng, fill, dtype):
    """conv2d and its two gradients: name, arrays, parameters."""
    x, weight = fill(rng, case.x_shape, dtype), fill(rng, case.weight_shape, dtype)
    bias = fill(rng, case.weight_shape[:1], dtype) if case.bias else None
    dy = fill(rng, run("conv2d", "reference", x, weight, bias, **case.window).shape, dtype)
    return [
        ("conv2d", (x, weight, bias), case.window),
        ("conv2d_dx", (dy, weight), dict(case.window, x_shape=x.shape)),
        ("conv2d_dw", (dy, x), dict(case.window, weight_shape=weight.shape)),
    ]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_any_size_is_as_near_to_the_truth_as_promised(case, dtype, variant, rng):
    """The bounds are in units of float32's rounding: float64 must be nearer by the ratio of the two."""
    for name, arrays, parameters in calls(case, rng, reals, dtype):
        norm = find(name, f"cpu.{variant}").norm * (1 if dtype is np.float32 else 2.0**-29)
        verdict = oracle.judge(run(name, f"cpu.{variant}", *arrays, **parameters), truth(name, *arrays, **parameters).with_norm(norm))
        assert verdict, f"{name}: {verdict}"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_whole_numbers_come_out_right_when_rounded(case, variant, rng):
    for name, arrays, parameters in calls(case, rng, whole_numbers, np.float32):
        assert_same(np.rint(run(name, f"cpu.{variant}", *arrays, **parameters)), run(name, "reference", *arrays, **parameters), name)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", OTHERS.values(), ids=OTHERS)
def test_what_they_do_not_take_is_computed_by_simd(case, variant, rng):
    for name, arrays, parameters in calls(case, rng, reals, np.float32):
        assert_same(run(name, f"cpu.{variant}", *arrays, **parameters), run(name, "cpu.simd", *arrays, **parameters), name)


def test_the_bounds_are_not_hollow(rng):
    """Within a factor of 20 of what is measured, so a lost digit shows."""
    case = Convolution((4, 15, 18, 16), (24, 16, 3, 3), False, dict(PLAIN, padding=1, layout="NHWC"))
    for variant, m in VARIANTS.items():
        for name, arrays, parameters in calls(case, rng, reals, np.float32):
            want = truth(name, *arrays, **parameters)
            measured = np.linalg.norm(run(name, f"cpu.{variant}", *arrays, **parameters) - want.value) / np.linalg.norm(want.gauge)
            norm = dict(conv2d=NORM, conv2d_dx=NORM_DX, conv2d_dw=NORM_DW)[name][m]
            assert norm / 100 < measured < norm, (variant, name, measured, norm)


@pytest.mark.parametrize("m", VARIANTS.values())
def test_the_matrices_make_a_convolution(m, rng):
    A, B, G = (np.array(matrices[m]) for matrices in (tiles_winograd.A, tiles_winograd.B, tiles_winograd.G))
    d, g = rng.standard_normal(m + 2), rng.standard_normal(3)
    np.testing.assert_allclose(A.T @ ((G @ g) * (B.T @ d)), np.convolve(d, g[::-1], "valid"), rtol=1e-12, atol=1e-12)


# --- the kernels on buffers of a compiled network ------------------------------------------------------------------------


class Layer:
    """x, of `terms` channels and at least 4 lanes, with a halo of 1 and rows that are longer than they need be, weights in
    matrices, and room for y."""

    def __init__(self, m, rows, columns, terms, count, dtype, rng, images=3):
        channels = max(4, terms)
        self.m, self.rows, self.columns, self.count, self.dtype, self.images = m, rows, columns, count, dtype, images
        self.channels, self.lanes = channels, 4 if count <= 4 else -(-count // 8) * 8
        self.x = np.zeros((images, rows + 2, columns + 5, channels), dtype)
        self.x[:, 1:-1, 1 : columns + 1, :terms] = reals(rng, (images, rows, columns, terms), dtype)
        self.weight, self.bias = reals(rng, (count, terms, 3, 3), dtype), np.zeros(self.lanes, dtype)
        self.bias[:count] = reals(rng, (count,), dtype)
        self.tiles = Tiles(m, rows, columns, channels, terms, self.lanes, dtype)
        self.w = 4
        self.pitch = tiles_winograd.pitch(terms * self.lanes, dtype)
        self.u, self.work = np.zeros((m + 2) ** 2 * self.pitch, dtype), np.full(8 * self.tiles.work, np.nan, dtype)
        held = 9 * self.w * tiles_winograd.MADE
        taps = np.empty(8 * held, dtype)
        numbers = dict(terms=terms, count=count, lanes=self.lanes, w=address_of(self.weight), w_term=9, w_lane=9 * terms, u=address_of(self.u), u_pitch=self.pitch, taps=(address_of(taps), held * self.x.itemsize))
        program.run([named(compiled(tiles_winograd.weights_in, m, self.w, dtype), tiles_winograd.WEIGHTS, numbers)], 1, 1, 3)

    def truth(self):
        """Before what follows the sum, in float64: (images, rows, columns, lanes)."""
        return self._sums(self.x, self.weight) + self.bias

    def _sums(self, x, weight):
        y = np.zeros((self.images, self.rows, self.columns, self.lanes))
        for a in range(3):
            for b in range(3):
                y[..., : self.count] += x[:, a : a + self.rows, b : b + self.columns, : self.weight.shape[1]].astype(np.float64) @ weight[:, :, a, b].astype(np.float64).T
        return y

    @property
    def slack(self) -> float:
        """What all errors together, and so each of them, may be. Maxima, ReLU and masks make no error larger."""
        return NORM[self.m] * (1 if self.dtype is np.float32 else 2.0**-29) * np.linalg.norm(self._sums(abs(self.x), abs(self.weight)) + abs(self.bias))

    def numbers(self, y, **more):
        item, step = y.itemsize, self.x.strides
        return dict(
            **dict(self.tiles.numbers, rows=self.rows // 2 * 2, columns=self.columns // 2 * 2) if y.shape[1] < self.rows else self.tiles.numbers,
            iy=step[1] // item, ix=step[2] // item, x=(address_of(self.x), 0, step[0]), u=address_of(self.u), u_pitch=self.pitch, bias=address_of(self.bias),
            work=(address_of(self.work), self.tiles.work * item), y=(address_of(y), 0, y.strides[0]), oy=y.strides[1] // item, ox=y.strides[2] // item, **more,
        )  # fmt: skip

    def play(self, y, shares=1, pool=0, **more):
        program.run([named(compiled(tiles_winograd.winograd, *self.tiles.constants, pool, self.dtype), tiles_winograd.WINOGRAD, self.numbers(y, **more))], self.images, self.images, shares)
        return y

    def play_own(self, y, shares=1, cut=1, pool=0, images=1, by_lanes=1, **more):
        """With weights that the kernel transforms for itself. cut: for how many shares its tiles are chosen; images: of a call, 1 or all."""
        self.tiles = Tiles(self.m, self.rows, self.columns, self.channels, self.weight.shape[1], self.lanes, self.dtype, shares=cut, own=True, images=images)
        self.work = np.full(8 * self.tiles.work, np.nan, self.dtype)
        weights = dict(w_term=9, w_lane=9 * self.weight.shape[1], count=self.count, by_lanes=by_lanes)
        numbers = dict(self.numbers(y, **weights, **more), u=address_of(self.weight), u_pitch=self.tiles.own_pitch)
        calls = self.images // images
        program.run([named(compiled(tiles_winograd.winograd, *self.tiles.constants, pool, self.dtype), tiles_winograd.WINOGRAD, numbers)], calls, calls, shares)
        return y

    def near(self, got, want) -> bool:
        return np.linalg.norm(got - want) <= self.slack


SIZES = [(4, 8, 8, 8, 16), (4, 8, 22, 3, 32), (4, 10, 24, 4, 16), (2, 6, 9, 3, 8), (4, 9, 11, 16, 24), (4, 4, 18, 32, 4), (2, 7, 5, 8, 64), (4, 31, 21, 40, 17)]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_what_follows_the_sum(size, dtype, rng):
    """Bias, another buffer, ReLU and ReLU's mask, into the middle of a buffer whose halo stays as it was."""
    layer = Layer(*size, dtype, rng)
    shape = (layer.images, layer.rows + 2, layer.columns + 2, layer.lanes)
    y, other, mask = np.full(shape, 7, dtype), reals(rng, shape, dtype), reals(rng, shape, dtype)
    inner = np.s_[:, 1:-1, 1:-1]
    where = {f"{name}_{axis}": step for name in ("add", "mask") for axis, step in (("y", shape[2] * shape[3]), ("x", shape[3]))}
    layer.play(y[inner], relu=1, add=(address_of(other[inner]), 0, other.strides[0]), mask=(address_of(mask[inner]), 0, mask.strides[0]), **where)
    want = np.maximum(layer.truth() + other[inner], 0)
    assert layer.near(y[inner], np.where(mask[inner] > 0, want, 0))
    y[inner] = 7
    assert (y == 7).all(), "the halo was written"


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pooling_says_who_won(size, dtype, rng):
    """winner: 0 to 3, or -1 where ReLU lets no gradient pass; an odd row or column belongs to no window."""
    layer = Layer(*size, dtype, rng)
    shape = (layer.images, layer.rows // 2, layer.columns // 2, layer.lanes)
    y, winner = np.zeros(shape, dtype), np.zeros(shape, dtype)
    layer.play(y, pool=1, relu=1, winner=(address_of(winner), 0, winner.strides[0]))
    windows = layer.truth()[:, : shape[1] * 2, : shape[2] * 2].reshape(shape[0], shape[1], 2, shape[2], 2, shape[3]).transpose(0, 1, 3, 5, 2, 4).reshape(*shape, 4)
    assert layer.near(y, np.maximum(windows.max(-1), 0))
    first, second = np.sort(windows)[..., -1], np.sort(windows)[..., -2]
    sure = (first - second > 2 * layer.slack) & (abs(first) > layer.slack)  # nobody is nearly as large, and it is not nearly 0
    assert sure[..., : layer.count].mean() > 0.9
    assert_same(winner[sure], np.where(first > 0, windows.argmax(-1), -1).astype(dtype)[sure])
    alone = layer.play(np.zeros(shape, dtype), pool=1)
    assert layer.near(alone, windows.max(-1))


def test_a_nan_wins_in_pooling(rng):
    layer = Layer(4, 8, 8, 8, 16, np.float32, rng)
    layer.x[1, 2, 3, 4] = np.nan
    y = layer.play(np.zeros((3, 4, 4, 16), np.float32), pool=1, relu=1)
    assert np.isnan(y[1, 0, 0]).all() and np.isfinite(y[[0, 2]]).all() and np.isfinite(y[1, 2:]).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("pool", [0, 1])
def test_shares_of_an_image_give_the_same_bits(size, pool, rng):
    """By rows of tiles and by lanes: where a tile was moved back, two of them compute the same outputs, and the same one must win."""
    layer = Layer(*size, np.float32, rng)
    shape = (layer.images, layer.rows >> pool, layer.columns >> pool, layer.lanes)
    want = layer.play(np.zeros(shape, np.float32), pool=pool)
    for shares in (2, 3, 8):
        for by_lanes in (0, 1):
            assert_same(layer.play(np.full(shape, np.nan, np.float32), shares, pool, by_lanes=by_lanes), want, f"{shares} shares, by_lanes={by_lanes}")


@pytest.mark.parametrize("size", [(4, 9, 11, 16, 24), (2, 7, 5, 8, 64), (4, 31, 21, 40, 17)], ids=str)
@pytest.mark.parametrize("pool", [0, 1])
def test_weights_transformed_where_they_are_read_give_the_same_bits(size, pool, rng):
    layer = Layer(*size, np.float32, rng)
    shape = (layer.images, layer.rows >> pool, layer.columns >> pool, layer.lanes)
    want = layer.play(np.zeros(shape, np.float32), pool=pool)
    layer.u[:] = np.nan
    for cut, shares in ((1, 1), (2, 2), (2, 3)):
        assert_same(layer.play_own(np.full(shape, np.nan, np.float32), shares, cut, pool), want, f"{shares} shares, cut for {cut}")


@pytest.mark.parametrize("size, pool", [((4, 9, 11, 16, 24), 0), ((4, 8, 20, 150, 40), 1), ((2, 7, 5, 8, 64), 0)], ids=str)
@pytest.mark.parametrize("most", [1, 20])
def test_images_that_share_transformed_weights_give_the_same_bits(size, pool, most, rng, monkeypatch):
    """In groups of some tiles, which leave a rest of register tiles, and terms of transformed ones. Parts are images or lanes; some have none."""
    layer = Layer(*size, np.float32, rng, images=7)
    shape = (layer.images, layer.rows >> pool, layer.columns >> pool, layer.lanes)
    want = layer.play(np.zeros(shape, np.float32), pool=pool)
    layer.u[:] = np.nan
    monkeypatch.setattr(tiles_winograd, "TOGETHER", most)
    for cut, shares, by_lanes in ((1, 1, 0), (1, 3, 0), (1, 8, 0), (2, 2, 1), (2, 3, 1)):
        got = layer.play_own(np.full(shape, np.nan, np.float32), shares, cut, pool, images=7, by_lanes=by_lanes)
        assert_same(got, want, f"{shares} shares, cut for {cut}, by_lanes={by_lanes}")


def test_groups_of_images_are_of_one_size():
    assert [tiles_winograd.together(images, tiles) for images, tiles in ((32, 4), (33, 4), (3, 4), (1, 4), (5, 64), (5, 100), (7, 20))] == [16, 11, 3, 1, 1, 1, 3]


# rows, columns of dy; terms; lanes; padding; rows, columns of dx beyond those that dy reaches
BACK = [(4, 4, 4, 3, 8, (0, 0), (0, 0)), (4, 12, 12, 16, 32, (0, 0), (0, 0)), (4, 5, 7, 8, 24, (1, 0), (0, 0)), (4, 6, 9, 17, 40, (2, 1), (1, 3)), (2, 5, 4, 8, 16, (0, 1), (0, 0)), (4, 18, 16, 64, 72, (0, 0), (0, 0))]  # fmt: skip


class Back:
    """A layer's dy in a buffer that is 0 around it, its weights in matrices, and the dx that winograd_dx makes of them."""

    def __init__(self, m, rows, columns, terms, lanes, padding, beyond, dtype, rng, images=3):
        self.m, self.dtype, self.images, self.lanes = m, dtype, images, lanes
        channels = 4 if terms <= 4 else -(-terms // 8) * 8
        (top, left), self.high, self.wide = padding, rows + 2 - padding[0] + beyond[0], columns + 2 - padding[1] + beyond[1]
        self.padding = padding
        self.dy = np.zeros((images, rows + m, columns + m + 1, channels), dtype)
        self.dy[:, :rows, :columns, :terms] = reals(rng, (images, rows, columns, terms), dtype)
        self.weight = reals(rng, (terms, lanes, 3, 3), dtype)
        self.cut = [TurnedTiles(m, rows, columns, channels, terms, self.high, self.wide, top, left, lanes, dtype, shares) for shares in (1, 2, 8)]
        self.pitch = tiles_winograd.pitch(terms * lanes, dtype)
        self.u, taps = np.zeros((m + 2) ** 2 * self.pitch, dtype), np.empty(8 * 9 * 4 * tiles_winograd.MADE, dtype)
        numbers = dict(terms=terms, count=lanes, lanes=lanes, w=address_of(self.weight), w_term=9 * lanes, w_lane=9, u=address_of(self.u), u_pitch=self.pitch, taps=(address_of(taps), 9 * 4 * tiles_winograd.MADE * taps.itemsize))
        program.run([named(compiled(tiles_winograd.weights_in, m, 4, dtype), tiles_winograd.WEIGHTS, numbers)], 1, 1, 3)

    def _sums(self, dy, weight):
        (top, left), (_, rows, columns, _) = self.padding, dy.shape
        dx = np.zeros((self.images, rows + 2, columns + 2, self.lanes))
        for a in range(3):
            for b in range(3):
                dx[:, a : a + rows, b : b + columns] += dy[..., : weight.shape[0]].astype(np.float64) @ weight[:, :, a, b].astype(np.float64)
        return dx[:, top : top + self.high, left : left + self.wide]

    def near(self, got, want) -> bool:
        slack = NORM_DX[self.m] * (1 if self.dtype is np.float32 else 2.0**-29) * np.linalg.norm(self._sums(abs(self.dy), abs(self.weight)))
        return np.linalg.norm(got - want) <= slack

    def truth(self):
        return self._sums(self.dy, self.weight)

    def play(self, dx, shares=1, kind=0, **more):
        """kind: a cut for one, for 2 or for 8 shares."""
        tiles, item = self.cut[kind], dx.itemsize
        work, step = np.full(8 * tiles.work, np.nan, self.dtype), self.dy.strides
        numbers = dict(
            **tiles.numbers, gy=step[1] // item, gx=step[2] // item, dy=(address_of(self.dy), 0, step[0]), u=address_of(self.u), u_pitch=self.pitch, work=(address_of(work), tiles.work * item),
            dx=(address_of(dx), 0, dx.strides[0]), dx_y=dx.strides[1] // item, dx_x=dx.strides[2] // item, **more,
        )  # fmt: skip
        program.run([named(compiled(tiles_winograd.winograd_dx, *tiles.constants, self.dtype), tiles_winograd.WINOGRAD_DX, numbers)], self.images, self.images, shares)
        return dx


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("size", BACK, ids=str)
def test_tiles_of_dy_add_up_to_dx(size, dtype, rng):
    """And another buffer and ReLU's mask follow; the halo stays as it was."""
    layer = Back(*size, dtype, rng)
    shape = (layer.images, layer.high + 2, layer.wide + 3, layer.lanes)
    inner = np.s_[:, 1:-1, 1:-2]
    dx, other, mask = np.full(shape, 7, dtype), reals(rng, shape, dtype), reals(rng, shape, dtype)
    assert layer.near(layer.play(dx[inner]), layer.truth())
    where = {f"{name}_{axis}": step for name in ("add", "mask") for axis, step in (("y", shape[2] * shape[3]), ("x", shape[3]))}
    layer.play(dx[inner], add=(address_of(other[inner]), 0, other.strides[0]), mask=(address_of(mask[inner]), 0, mask.strides[0]), **where)
    assert layer.near(dx[inner], np.where(mask[inner] > 0, layer.truth() + other[inner], 0))
    dx[inner] = 7
    assert (dx == 7).all(), "the halo was written"


@pytest.mark.parametrize("size", BACK, ids=str)
def test_shares_of_dx_give_the_same_bits(size, rng):
    """However its lanes are cut, and by however many they are computed."""
    layer = Back(*size, np.float32, rng)
    shape = (layer.images, layer.high, layer.wide, layer.lanes)
    want = layer.play(np.zeros(shape, np.float32))
    for kind in range(3):
        for shares in (1, 2, 3, 8):
            assert_same(layer.play(np.full(shape, np.nan, np.float32), shares, kind), want, f"{shares} shares, cut {kind}")


class Pooled:
    """Images x, and the gradient of the maxima of 2 x 2 windows of a convolution of them, before pooling and after."""

    def __init__(self, m, rows, columns, terms, lanes, dtype, rng, images=5, chunks=2):
        self.m, self.dtype, self.images, self.chunks, self.lanes = m, dtype, images, chunks, lanes
        channels = 4 if terms <= 4 else -(-terms // 8) * 8
        self.x = np.zeros((images, rows + m + 1, columns + m + 1, channels), dtype)
        self.x[:, :-m, :-m, :terms] = whole_numbers(rng, (images, rows + 1, columns + 1, terms), dtype)
        windows = (images, rows // 2 + 1, columns // 2 + 1, lanes)  # one window of zeros below and beside them: tiles hang over
        self.dy, self.winner = np.zeros(windows, dtype), rng.integers(-1, 4, windows).astype(dtype)
        self.dy[:, :-1, :-1] = whole_numbers(rng, (images, rows // 2, columns // 2, lanes), dtype)
        reached = np.where(self.winner[..., None] == np.arange(4), self.dy[..., None], 0).reshape(*windows, 2, 2)
        self.dz = np.ascontiguousarray(reached.transpose(0, 1, 4, 2, 5, 3).reshape(images, rows + 2, columns + 2, lanes).astype(dtype))
        self.rows, self.columns, self.channels, self.terms = rows, columns, channels, terms
        self.tiles = WeightsTiles(m, rows, columns, channels, terms, lanes, dtype)
        self.pitch = tiles_winograd.pitch(terms * lanes, dtype)
        self.used = np.arange((m + 2) ** 2)[:, None] * self.pitch + np.arange(terms * lanes)

    def sums(self, pool: int, shares: int):
        """(each chunk's sums, what reached its channels): in memory in which there was something else."""
        sums, bias = self._sums(pool, shares)
        return sums[:, self.used], bias

    def _sums(self, pool: int, shares: int):
        size = (self.m + 2) ** 2 * self.pitch
        sums, bias, work = np.full((self.chunks, size), np.nan, self.dtype), np.full((self.chunks, self.lanes), np.nan, self.dtype), np.full(8 * self.tiles.work, np.nan, self.dtype)
        numbers = dict(self._numbers(pool, self.tiles, work, bias), **chunk_sums(address_of(sums), size * self.x.itemsize, self.images, self.chunks), sums_pitch=self.pitch)
        program.run([named(compiled(tiles_winograd.winograd_dw, *self.tiles.constants, pool, self.dtype), tiles_winograd.WINOGRAD_DW, numbers)], self.images, self.chunks, shares)
        return sums, bias

    def _numbers(self, pool: int, tiles: WeightsTiles, work, bias) -> dict:
        item, step, dy = self.x.itemsize, self.x.strides, self.dy if pool else self.dz
        return dict(
            **tiles.numbers, iy=step[1] // item, ix=step[2] // item, x=(address_of(self.x), 0, step[0]), gy=dy.strides[1] // item, gx=dy.strides[2] // item, dy=(address_of(dy), 0, dy.strides[0]),
            work=(address_of(work), tiles.work * item),
            winner=(address_of(self.winner), 0, self.winner.strides[0]), winner_y=self.winner.strides[1] // item, winner_x=self.winner.strides[2] // item, reached=address_of(bias), reached_chunk=self.lanes * item,
        )  # fmt: skip

    def gradient(self, count: int, pool: int):
        """(the weights' gradient of `count` lanes out of the first chunk's sums, what reached its channels)."""
        sums, bias = self._sums(pool, 1)
        w, out = tiles_winograd.fitting(self.lanes, self.dtype), np.full((count, self.terms, 3, 3), np.nan, self.dtype)
        taps = np.empty(9 * w * self.terms, self.dtype)
        numbers = dict(terms=self.terms, count=count, lanes=self.lanes, sums=address_of(sums), chunks=1, sums_pitch=self.pitch, w=address_of(out), taps=address_of(taps))
        program.run([named(compiled(tiles_winograd.weights_out, self.m, w, self.dtype), tiles_winograd.WEIGHTS_OUT, numbers)], 1, 1)
        return out, bias[0]

    def magnitude(self, count: int):
        """Of the sums of products that the gradient is made of."""
        found = np.zeros((count, self.terms, 3, 3))
        for a in range(3):
            for b in range(3):
                x = abs(self.x[:, a : a + self.rows, b : b + self.columns, : self.terms]).reshape(-1, self.terms)
                found[:, :, a, b] = abs(self.dz[:, : self.rows, : self.columns, :count]).reshape(-1, count).T @ x
        return found

    def gradient_at_once(self, count: int, pool: int, shares: int, cut: int):
        """The same of all images by the kernel that keeps no sums. cut: for how many shares its tiles are chosen."""
        tiles = WeightsTiles(self.m, self.rows, self.columns, self.channels, self.terms, self.lanes, self.dtype, shares=cut, own=True, images=self.images)
        out, bias, work = np.full((count, self.terms, 3, 3), np.nan, self.dtype), np.full(self.lanes, np.nan, self.dtype), np.full(8 * tiles.work, np.nan, self.dtype)
        numbers = dict(self._numbers(pool, tiles, work, bias), **chunk_sums(address_of(out), 0, 1, 1), own_pitch=tiles.own_pitch, count=count)
        program.run([named(compiled(tiles_winograd.winograd_dw, *tiles.constants, pool, self.dtype), tiles_winograd.WINOGRAD_DW, numbers)], 1, 1, shares)
        return out, bias


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("size", [(4, 8, 8, 3, 16), (4, 10, 14, 3, 24), (2, 6, 4, 5, 16), (4, 36, 34, 20, 40)], ids=str)
def test_a_gradient_of_maxima_is_the_gradient_before_pooling(size, dtype, rng):
    """To the bit, however many share an image; what reaches a channel is whole numbers here, and so are their sums."""
    layer = Pooled(*size, dtype, rng)
    want, _ = layer.sums(0, 1)
    reached = layer.dz.sum((1, 2))
    halves = np.stack([reached[: layer.images // 2].sum(0), reached[layer.images // 2 :].sum(0)])
    for shares in (1, 3):
        sums, bias = layer.sums(1, shares)
        assert_same(sums, want, f"{shares} shares")
        assert_same(bias, halves, f"{shares} shares")


@pytest.mark.parametrize("size, count, dtype", [((4, 10, 14, 20, 24), 17, np.float32), ((2, 6, 4, 5, 16), 13, np.float64), ((4, 36, 34, 70, 40), 40, np.float32)], ids=str)
@pytest.mark.parametrize("images", [1, 4])
def test_a_gradient_transformed_back_at_once_is_the_same_to_the_bit(size, count, dtype, images, rng, monkeypatch):
    """Also where there are more terms than sums are kept of at once, and whatever was in memory."""
    layer = Pooled(*size, dtype, rng, images=images, chunks=1)
    monkeypatch.setattr(tiles_winograd, "TOGETHER", 1000)  # one group
    for pool in (0, 1):
        want, reached = layer.gradient(count, pool)
        for shares, cut in ((1, 1), (2, 2), (3, 2)):
            got, bias = layer.gradient_at_once(count, pool, shares, cut)
            assert_same(got, want, f"{shares} shares, cut for {cut}, pool {pool}")
            assert not pool or np.array_equal(bias, reached)


@pytest.mark.parametrize("size, count, pool", [((4, 10, 14, 20, 24), 17, 0), ((2, 6, 4, 5, 16), 13, 1), ((4, 36, 34, 70, 40), 37, 1)], ids=str)
def test_groups_of_images_add_up_their_gradients(size, count, pool, rng, monkeypatch):
    """As near to all images' as their sums in another order may be, and to the bit however the lanes are cut."""
    layer = Pooled(*size, np.float32, rng, images=7, chunks=1)
    want, reached = layer.gradient(count, pool)
    for most in (1, 20):  # images by themselves, and in groups the last of which is smaller
        monkeypatch.setattr(tiles_winograd, "TOGETHER", most)
        first, bias = layer.gradient_at_once(count, pool, 1, 1)
        assert np.linalg.norm(first - want) <= 2 * NORM_DW[size[0]] * np.linalg.norm(layer.magnitude(count))
        assert not pool or np.array_equal(bias, reached)
        for shares in (2, 3):
            assert_same(layer.gradient_at_once(count, pool, shares, 1 if shares == 3 else 2)[0], first, f"{shares} shares, {most} tiles")


@pytest.mark.parametrize("target", ["avx2", "sse2", "neon"])
def test_kernels_for_other_processors_vectors_are_right_too(target):
    """Compiled for this machine, with the width and the number of registers of another."""
    code = """
from tinynet import oracle
from tinynet.dispatch import find
wanted = lambda case: case.inputs()[1]["groups"] == 1 and case.kind in ("ints", "reals") and ("odd" in case.label or "C = " in case.label)
for name in ("conv2d", "conv2d_dx", "conv2d_dw"):
    for variant in ("winograd", "winograd2"):
        report = oracle.check(oracle.with_out(find(name, f"cpu.{variant}"), name), name, cases=wanted)
        assert report and len(report) > 8, report.explain()
"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "TINYNET_SIMD": target, "TINYNET_QUIET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_chosen_tiles_fit_into_the_registers_and_the_cache(dtype):
    from tinynet.kernels.cpu.target import TARGET

    for rows, columns, channels, lanes in [(4, 4, 4, 4), (16, 16, 32, 64), (12, 12, 32, 16), (32, 32, 64, 64), (5, 90, 24, 40), (56, 56, 256, 256)]:
        for m in VARIANTS.values():
            for gradient in (False, True):
                tiles = (WeightsTiles if gradient else Tiles)(m, rows, columns, channels, channels, lanes, dtype)
                (_, r, v, w, x), (abreast, few) = tiles.constants[:5], (1, 0) if gradient else tiles.constants[5:7]
                assert r * v + max(few, 1) * v < TARGET.registers and v * w <= lanes and x <= channels
                assert abreast * x <= max(channels, TARGET.lanes(dtype))
                assert not gradient or channels % r == 0 and lanes % (v * w) == 0
                row_of_tiles = (m + 2) ** 2 * -(-columns // m) * (channels + lanes) * np.dtype(dtype).itemsize
                assert tiles.work * np.dtype(dtype).itemsize <= max(tiles_winograd.CACHE, 2 * row_of_tiles) + 36 * 256
