"""Winograd's kernels of images, forward and backward, on buffers with halos, as compiled networks have them."""

from __future__ import annotations

import numpy as np
import pytest
from kernels_by_hand import assert_same, reals

from tinynet.kernels.cpu import program, tiles_winograd
from tinynet.kernels.cpu.conv2d_winograd import NORM, NORM_DX
from tinynet.kernels.cpu.program import address_of, compiled, named
from tinynet.kernels.cpu.tiles_winograd import Tiles, TurnedTiles

DTYPES = (np.float32, np.float64)


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
        self.steps = tiles_winograd.u_steps(terms, self.lanes, dtype)
        self.u, self.work = np.zeros((m + 2) ** 2 * self.steps["u_pitch"], dtype), np.full(8 * self.tiles.work, np.nan, dtype)
        held = 9 * self.w * tiles_winograd.MADE
        taps = np.empty(8 * held, dtype)
        numbers = dict(terms=terms, count=count, lanes=self.lanes, w=address_of(self.weight), w_term=9, w_lane=9 * terms, u=address_of(self.u), **self.steps, taps=(address_of(taps), held * self.x.itemsize))
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
            iy=step[1] // item, ix=step[2] // item, x=(address_of(self.x), 0, step[0]), u=address_of(self.u), **self.steps, bias=address_of(self.bias),
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


SIZES = [(4, 8, 8, 8, 16), (4, 12, 20, 16, 24), (4, 12, 12, 3, 16), (4, 8, 22, 3, 32), (4, 10, 24, 4, 16), (2, 6, 9, 3, 8), (4, 9, 11, 16, 24), (4, 4, 18, 32, 4), (2, 7, 5, 8, 128), (4, 31, 21, 40, 17)]


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


@pytest.mark.parametrize("size", [(4, 9, 11, 16, 24), (2, 7, 5, 8, 128), (4, 31, 21, 40, 17)], ids=str)
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


# rows, columns of dy; terms; lanes; padding; rows, columns of dx beyond those that dy reaches
BACK = [(4, 4, 4, 3, 8, (0, 0), (0, 0)), (4, 12, 12, 16, 32, (0, 0), (0, 0)), (4, 5, 7, 8, 24, (1, 0), (0, 0)), (4, 6, 9, 17, 40, (2, 1), (1, 3)), (2, 5, 4, 8, 128, (0, 1), (0, 0)), (4, 18, 16, 64, 72, (0, 0), (0, 0))]  # fmt: skip


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
        self.steps = tiles_winograd.u_steps(terms, lanes, dtype)
        self.u, taps = np.zeros((m + 2) ** 2 * self.steps["u_pitch"], dtype), np.empty(8 * 9 * 4 * tiles_winograd.MADE, dtype)
        numbers = dict(terms=terms, count=lanes, lanes=lanes, w=address_of(self.weight), w_term=9 * lanes, w_lane=9, u=address_of(self.u), **self.steps, taps=(address_of(taps), 9 * 4 * tiles_winograd.MADE * taps.itemsize))
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
            **tiles.numbers, gy=step[1] // item, gx=step[2] // item, dy=(address_of(self.dy), 0, step[0]), u=address_of(self.u), **self.steps, work=(address_of(work), tiles.work * item),
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
