"""Programs: every part is played once, and where their memory lies."""

from __future__ import annotations

import numpy as np
import pytest

from tinynet.kernels.cpu.program import address_of, compiled, row, run, scratch_address
from tinynet.kernels.cpu.simd_memory import get, pointer, put


def shares_and_chunks(T):
    def kernel(row, image, slot, chunk, share, shares):
        y = pointer(get(row, 0), T)
        put(y, image * 8 + share, get(y, image * 8 + share) + 1.0 + slot * 0.0)

    return kernel


@pytest.mark.parametrize("images, chunks, shares", [(1, 1, 8), (7, 3, 2), (5, 5, 1), (16, 8, 4)])
def test_every_image_is_played_once_by_each_of_its_shares(images, chunks, shares):
    done = np.zeros((images, 8), np.float32)
    run([row(compiled(shares_and_chunks, np.float32), address_of(done))], images, chunks, shares)
    assert (done[:, :shares] == 1).all() and (done[:, shares:] == 0).all()


def test_scratch_memory_is_aligned_to_cache_lines():
    assert all(scratch_address(size) % 64 == 0 for size in (1, 1000, 1_000_000, 7))


def test_the_address_of_an_array_is_where_numpy_says_that_its_memory_begins():
    whole = np.zeros((6, 7), np.float32)
    for array in (whole, whole[1:], whole[:, 3:], whole.T, np.zeros(0), np.zeros((), np.int32)):
        assert address_of(array) == array.__array_interface__["data"][0]
