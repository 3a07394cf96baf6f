"""Which tiles are chosen for a shape."""

from __future__ import annotations

import pytest
from simd_by_hand import DTYPES

from tinynet.kernels.cpu import tiles
from tinynet.kernels.cpu.target import TARGET


def test_terms_are_listed_where_taps_have_few_of_them_and_the_list_is_short():
    assert [tiles.listed(9, terms) for terms in (1, 3, 31, 32, 64)] == [1, 1, 1, 0, 0]
    assert tiles.listed(1, 3) == tiles.listed(0, 3) == 0, "one run is one loop already"
    assert tiles.listed(25, 20) == 1 and tiles.listed(25, 21) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_chosen_tiles_fit_into_the_registers(dtype):
    for rows, columns, lanes in [(1, 1, 4), (6, 6, 16), (13, 13, 16), (16, 16, 64), (30, 30, 32), (3, 7, 100), (112, 112, 24)]:
        r, c, v, w = tiles.best(rows, columns, lanes, 288, 9, dtype)
        assert r <= rows and c <= columns and v * w <= lanes and r * c * v + v < TARGET.registers


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tile_has_as_many_lanes_as_the_panels_that_it_reads(dtype):
    for lanes in (4, 20, 52, 128):
        _, _, v, w = tiles.best(9, 9, lanes, 288, 9, dtype)
        _, columns, *other = tiles.best(1, 1, lanes, 32, 1, dtype, panel=v * w)
        assert columns == 1 and other[0] * other[1] == v * w
