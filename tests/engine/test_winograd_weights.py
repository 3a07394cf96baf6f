"""Winograd's kernels of weights' gradients: sums of tiles, and what they become, on buffers of a compiled network."""

from __future__ import annotations

import numpy as np
import pytest
from kernels_by_hand import assert_same, whole_numbers

from tinynet.kernels.cpu import program, tiles_winograd
from tinynet.kernels.cpu.conv2d_winograd import NORM_DW
from tinynet.kernels.cpu.images import chunk_sums
from tinynet.kernels.cpu.program import address_of, compiled, named
from tinynet.kernels.cpu.tiles_winograd import WeightsTiles

DTYPES = (np.float32, np.float64)


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
@pytest.mark.parametrize("size", [(4, 8, 8, 3, 16), (4, 10, 14, 3, 24), (2, 6, 4, 5, 128), (4, 36, 34, 20, 40)], ids=str)
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


@pytest.mark.parametrize("size, count, dtype", [((4, 10, 14, 20, 24), 17, np.float32), ((2, 6, 4, 5, 64), 61, np.float64), ((4, 36, 34, 70, 40), 40, np.float32)], ids=str)
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
