"""What this machine can do at most, measured with our own kernels, never a datasheet's.

The peak is what independent multiply-adds on registers reach; the bandwidth what reading long arrays does. A
kernel that does f operations on b bytes takes at least max(f / peak, b / bandwidth); a time below that is
IMPOSSIBLE: something was not computed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numba
import numpy as np

from tinynet.bench.timing import once
from tinynet.kernels.cpu.program import address_of, compiled, play, row, table_of
from tinynet.kernels.cpu.simd import add, outer_fma, zeros
from tinynet.kernels.cpu.simd_memory import get, loads, pointer, scalars, stores
from tinynet.kernels.cpu.target import TARGET


def multiply_adds(N, W, T):
    """N independent chains of multiply-adds, on registers alone."""

    def kernel(row, image, slot, chunk, share, shares):
        x, y = pointer(get(row, 0), T), pointer(get(row, 1), T)
        acc, xs, ws = zeros(x, N, W), scalars(x, 0, 1, 0, N, 1), loads(x, 64, 1, 0, 1, 0, 1, W)
        for _ in range(get(row, 2)):
            acc = outer_fma(acc, xs, ws)
        stores(y, slot * 1024, 1, 0, 1, 0, N, W, acc)

    return kernel


def reading(W, T):
    """Reads this share of an array again and again, eight registers at a time."""

    def kernel(row, image, slot, chunk, share, shares):
        x, y, blocks = pointer(get(row, 0), T), pointer(get(row, 1), T), get(row, 2)
        acc = zeros(x, 8, W)
        for _ in range(get(row, 3)):
            for block in range(blocks * share // shares, blocks * (share + 1) // shares):
                acc = add(acc, loads(x, block * 8 * W, 1, 0, 1, 0, 8, W))
        stores(y, slot * 1024, 1, 0, 1, 0, 8, W, acc)

    return kernel


@dataclass(frozen=True)
class Roofline:
    """peak: operations a second (an addition and a multiplication each count). bandwidth: bytes a second, by the size in
    MiB of what is read over and over."""

    threads: int
    dtype: str
    peak: float
    bandwidth: dict[float, float]

    def reading(self, size: int) -> float:
        """Bytes a second, of so many bytes that are in use at once: what was measured on as many, or on the next larger size."""
        return self.bandwidth[min((mib for mib in self.bandwidth if mib * 2**20 >= size), default=max(self.bandwidth))]

    def least(self, flops: int, moved: int) -> float:
        """The least seconds of a kernel."""
        return max(flops / self.peak, moved / max(self.bandwidth.values()))


def measure(dtype=np.float32, sizes=(0.25, 4.0, 64.0)) -> Roofline:
    threads, w, dtype = numba.get_num_threads(), TARGET.lanes(dtype), np.dtype(dtype).type
    x, y = np.full(256, 1e-3, dtype), np.empty(1024 * threads, dtype)
    chains, count = 12, 400_000
    kernel = compiled(multiply_adds, chains, w, dtype)
    peak = 2 * chains * w * count * threads / _least([row(kernel, address_of(x), address_of(y), count)], threads, threads, 1)
    bandwidth = {}
    for size in sizes:
        a = np.ones(int(size * 2**20) // np.dtype(dtype).itemsize, dtype)
        blocks, again = a.size // (8 * w), max(1, int(128 / size))
        kernel = compiled(reading, w, dtype)
        bandwidth[size] = blocks * 8 * w * a.itemsize * again / _least([row(kernel, address_of(a), address_of(y), blocks, again)], 1, 1, threads)
    return Roofline(threads, np.dtype(dtype).name, peak, bandwidth)


def _least(rows: list, images: int, chunks: int, shares: int, seconds: float = 0.3) -> float:
    """The least seconds of a program's runs within so many: what others on the machine do only adds to it, and a peak is a peak."""
    table, samples = table_of([(rows, images, chunks, shares)]), []
    end = time.perf_counter() + seconds
    while len(samples) < 9 or time.perf_counter() < end:
        samples.append(once(lambda: play(address_of(table), chunks * shares)))
    return min(samples)
