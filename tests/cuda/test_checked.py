"""Checked mode: each planted fault is found at its line, in every order of threads; clean kernels are clean."""

from __future__ import annotations

import re

import numpy as np
import pytest

import tinynet  # noqa: F401  (its place among imports is before kernels)
from tinynet.kernels.cuda.emulator import build
from tinynet.kernels.cuda.emulator.checked import checked
from tinynet.kernels.cuda.emulator.faults import KernelFault
from tinynet.kernels.cuda.launch import Source, _with_includes, kernel

pytestmark = pytest.mark.skipif(build.reason() is not None, reason=f"no emulator here: {build.reason()}")

# name: (what is said, the kernel's body). It gets x and y, 256 floats each, in 2 blocks of 64 threads; the fault's line ends in <-
PLANTED = {
    "no barrier between write and read": (r"race: .* (reads|writes) byte \d+ of shared t, which .* (wrote|read) at planted.cu:\d+; no barrier lies between", """
  __shared__ float t[64];
  t[i] = x[i];  // <-
  y[n] = t[63 - i];  // <-"""),
    "no barrier before the next write": ("race: .* of shared t, which", """
  __shared__ float t[64];
  for (int k = 0; k < 2; k++) {
    t[i] = x[i + k];  // <-
    __syncthreads();
    y[n] = t[63 - i];  // <-
  }"""),
    "two threads write one word of shared memory": ("race: .* writes .* shared t, which .* wrote at", """
  __shared__ float t[64];
  t[i / 2] = x[i];  // <-
  __syncthreads();
  y[n] = t[i / 2];"""),
    "two lanes without a __syncwarp": ("race: .* of shared t, which", """
  __shared__ float t[64];
  t[i] = x[i];  // <-
  y[n] = t[i ^ 1];  // <-"""),
    "a __syncwarp orders no two warps": ("race: .* of shared t, which", """
  __shared__ float t[64];
  t[i] = x[i];  // <-
  __syncwarp();
  y[n] = t[i ^ 32];  // <-"""),
    "a __syncwarp of the other half": ("race: .* of shared t, which", """
  __shared__ float t[64];
  t[i] = x[i];  // <-
  if (i % 32 < 16) __syncwarp(0xffff);
  y[n] = t[i % 32 < 16 ? i ^ 1 : i ^ 2];  // <-"""),
    "all read, one writes": ("race: .* of shared t, which", """
  __shared__ float t[64];
  t[i] = x[i];
  __syncthreads();
  float first = t[0];  // <-
  if (i == 40) t[0] = 1;  // <-
  y[n] = first;"""),
    "a lane of another warp read it": ("race: .* of shared t, which", """
  __shared__ float t[64];
  t[i] = x[i];
  __syncthreads();
  if (i % 32 == 0) y[n] = t[0];  // <-
  if (i == 32) t[0] = 1;  // <-"""),
    "a shuffle orders nothing, nor does a __syncwarp of others": ("race: .* of shared t, which", """
  __shared__ float t[64];
  t[i] = x[i];  // <-
  if (i % 32 < 16) __syncwarp(0xffff);
  float v = __shfl_sync(~0u, x[i], 0);
  if (i % 32 >= 16) y[n] = v + t[i ^ 1];  // <-"""),
    "no barrier in global memory": ("race: .* argument [01]'s memory, .*; no barrier lies between", """
  y[n] = x[n];  // <-
  x[n] = y[n ^ 1];  // <-"""),
    "two blocks write one word": (r"race: thread .* of block \(\d, 0, 0\) writes byte 0 of argument 1's memory, .*; nothing orders two blocks of one launch", """
  if (i == 0) y[0] = x[n];  // <-"""),
    "a block reads what another writes": ("race: .* argument 1's memory, .*; nothing orders two blocks", """
  y[n] = 1;  // <-
  if (y[(n + 64) % 128] == 1) x[n] = 2;  // <-"""),
    "atomic here, plain there": ("race: .* argument 1's memory", """
  atomicAdd(&y[0], 1.f);  // <-
  if (i == 5) x[n] = y[0];  // <-"""),
    "one element past the end": (r"out of bounds: thread \(63, 0, 0\) of block \(1, 0, 0\) reads 4 bytes at byte 1024 of argument 0's memory", """
  y[n] = x[n + 129];  // <-"""),
    "one element before the start": (r"out of bounds: thread \(0, 0, 0\) of block \(0, 0, 0\) writes 4 bytes at byte -4 of argument 1's memory", """
  y[n - 1] = x[n];  // <-"""),
    "four elements of which one is there": ("out of bounds: .* reads 16 bytes at byte 1020 of argument 0's memory", """
  float4 four = make_float4(0, 0, 0, 0);
  if (n == 127) four = *(float4*)(x + 255);  // <-
  y[n] = four.x;"""),
    "past the dynamic array": (r"out of bounds: thread \(\d+, 0, 0\) .* writes 4 bytes at byte \d+ of the dynamic shared memory", """
  extern __shared__ float dynamic[];
  dynamic[i + 8] = x[i];  // <-"""),
    "past the static array, by a pointer": ("out of bounds: .* writes 4 bytes", """
  __shared__ float t[64];
  float* p = t;
  p[i * 100000] = 1;  // <-"""),
    "past the static array, by an index": ("out of bounds: .* uses index 64, which the array does not have", """
  __shared__ float t[64];
  t[i + 1] = x[i];  // <-"""),
    "past a row of a static array": ("out of bounds: .* uses index 8, which the array does not have", """
  __shared__ float t[8][8];
  t[i / 8][i % 8 + 1] = x[i];  // <-"""),
    "past a local array": ("out of bounds: .* uses index 4, which the array does not have", """
  float t[4] = {x[0], x[1], x[2], x[3]};
  y[n] = t[i % 5];  // <-"""),
    "shared memory that nobody wrote": (r"never written: thread .* reads byte 252 of shared t, which nobody wrote", """
  __shared__ float t[64];
  if (i < 63) t[i] = x[i];
  __syncthreads();
  y[n] = t[i];  // <-"""),
    "an asynchronous copy that nobody waited for": ("never written: ", """
  __shared__ float t[64];
  copy_async<4>(&t[i], &x[i]);
  copy_async_commit();
  copy_async_wait<1>();
  y[n] = t[i];  // <-"""),
    "another thread's asynchronous copy without a barrier": ("race: |never written: ", """
  __shared__ float t[64];
  copy_async<4>(&t[i], &x[i]);  // <-
  copy_async_commit();
  copy_async_wait<0>();
  y[n] = t[63 - i];  // <-"""),
    "a thread leaves before the barrier": (r"barrier missed: thread .* waits, thread \(9, 0, 0\) of block .* never comes: it is at its end", """
  if (i == 9) return;
  __syncthreads();  // <-
  y[n] = x[n];"""),
    "two barriers in two branches": (r"barriers differ: thread .* waits here, thread .* at planted.cu:\d+; all threads of a block must reach the same one", """
  if (i < 32) {
    y[n] = 1;
    __syncthreads();  // <-
  } else {
    __syncthreads();  // <-
    y[n] = 2;
  }"""),
    "half a warp shuffles": (r"inactive lane: .* waits for lane \d+ or takes its value, which takes no part here", """
  float v = x[n];
  if (i % 32 < 16) v = __shfl_down_sync(0xffffffffu, v, 1);  // <-
  y[n] = v;"""),
    "a shuffle from a lane that is not in its mask": ("inactive lane: .* lane 16 or takes its value", """
  float v = x[n];
  if (i % 32 < 16) v = __shfl_sync(0xffffu, v, i + 1);  // <-
  y[n] = v;"""),
    "a vote by a lane that is not in its mask": ("inactive lane: .* lane 31 ", """
  y[n] = __ballot_sync(0x7fffffffu, i > 3);  // <-"""),
    "four numbers from anywhere": ("misaligned: .* reads 16 bytes at byte 4 of argument 0's memory, no multiple of 16", """
  float4 four = make_float4(0, 0, 0, 0);
  if (n == 0) four = *(float4*)(x + 1);  // <-
  y[n] = four.x;"""),
}

CLEAN = {
    "barriers where they are needed": """
  __shared__ float t[64];
  for (int k = 0; k < 3; k++) {
    t[i] = x[i + k];
    __syncthreads();
    y[n] = t[63 - i];
    __syncthreads();
  }""",
    "a sum by a tree": """
  __shared__ float t[64];
  t[i] = x[n];
  for (int half = 32; half; half /= 2) {
    __syncthreads();
    if (i < half) t[i] += t[i + half];
  }
  if (i == 0) y[blockIdx.x] = t[0];""",
    "a sum by shuffles": """
  float v = x[n];
  for (int by = 16; by; by /= 2) v += __shfl_down_sync(~0u, v, by);
  if (i % 32 == 0) y[n / 32] = v;""",
    "lanes and a __syncwarp": """
  __shared__ float t[64];
  for (int k = 0; k < 3; k++) {
    t[i] = x[i + k];
    __syncwarp();
    y[n] = t[i ^ 1];
    __syncwarp();
  }""",
    "half a warp and its own __syncwarp": """
  __shared__ float t[64];
  t[i] = x[i];
  if (i % 32 < 16) {
    __syncwarp(0xffff);
    y[n] = t[i ^ 1];
  }""",
    "all read, a barrier, one writes": """
  __shared__ float t;
  if (i == 0) t = x[0];
  __syncthreads();
  y[n] = t;
  __syncthreads();
  if (i == 40) t = 1;
  __syncthreads();
  y[n] += t;""",
    "atomics among themselves": """
  __shared__ int count;
  if (i == 0) count = 0;
  __syncthreads();
  atomicAdd(&count, 1);
  __syncthreads();
  atomicAdd(&y[0], float(count));""",
    "a dynamic array of the right size, and all of a row": """
  extern __shared__ float dynamic[];
  __shared__ float t[8][8];
  dynamic[i] = x[n];
  t[i / 8][i % 8] = dynamic[i];
  y[n] = t[i / 8][i % 8];""",
    "asynchronous copies, waited for": """
  __shared__ __align__(16) float t[2][64];
  if (i < 16) copy_async<16>(&t[0][4 * i], &x[4 * i]);
  copy_async_commit();
  copy_async<4>(&t[1][i], &x[64 + i]);
  copy_async_commit();
  copy_async_wait<1>();
  __syncthreads();
  y[n] = t[0][63 - i];
  copy_async_wait<0>();
  __syncthreads();
  y[n] += t[1][63 - i];""",
    "a barrier that the compiler may write twice": """
  for (int k = 0; k < (i < 32 ? 3 : 3 + int(x[0])); k++) __syncthreads();
  y[n] = 1;""",
}


def _text() -> str:
    bodies = [*(body for _, body in PLANTED.values()), *CLEAN.values()]
    return '#include "async_copy.cuh"\n' + "".join(
        f'extern "C" __global__ void k{number}(float* x, float* y) {{\n  int i = threadIdx.x, n = blockIdx.x * 64 + i;{body}\n}}\n' for number, body in enumerate(bodies)
    )


TEXT = _text()
NAMES = [*PLANTED, *CLEAN]


def run(name: str, seed: int, **options):
    """A checked launch of a planted kernel; what it found, and its marked lines."""
    number = NAMES.index(name)
    x, y = np.zeros(256, np.float32), np.zeros(256, np.float32)
    source = Source("planted.cu", _with_includes("planted.cu", TEXT))
    with checked(seed, **options) as found:
        kernel(x, source, f"k{number}")((2,), (64,), (x, y), shared=256)
    start = TEXT.index(f"void k{number}(")
    body = TEXT[start : TEXT.index("\n}\n", start)]
    first = TEXT.count("\n", 0, start) + 1
    return found, {first + i for i, line in enumerate(body.splitlines()) if line.endswith("<-")}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_at_its_line(name):
    for seed in range(4):
        found, lines = run(name, seed, raises=False)
        said = [fault for fault in found.faults if re.search(PLANTED[name][0], fault)]
        assert said, found.faults
        assert all(re.match(rf"k{NAMES.index(name)}, planted.cu:({'|'.join(map(str, lines))}): ", fault) for fault in found.faults), (found.faults, lines)
        assert all(int(line) in lines for fault in found.faults for line in re.findall(r" at planted.cu:(\d+)", fault)), (found.faults, lines)


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_kernel_is_clean(name):
    for seed in range(4):
        found, _ = run(name, seed)
        assert found.faults == [] and len(found.launches) == 1


def test_faults_are_raised_at_the_end_with_all_of_them():
    with pytest.raises(KernelFault, match="never written") as caught:
        run("shared memory that nobody wrote", 0)
    assert len(caught.value.faults) == 1 and "(2 times)" in caught.value.faults[0], "thread 63 of both blocks"


def test_results_are_written_back_and_the_order_is_the_seeds():
    source = Source("order.cu", """
extern "C" __global__ void order(int* tickets, int* next) { tickets[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(next, 1); }
""")

    def tickets(seed: int) -> list[int]:
        found, following = np.zeros((4, 40), np.int32), np.zeros(1, np.int32)
        with checked(seed):
            kernel(found, source, "order")((4,), (40,), (found, following))
        assert sorted(found.ravel()) == list(range(160)) and following[0] == 160
        return found.ravel().tolist()

    assert tickets(1) == tickets(1) != tickets(2)
    for each in np.reshape(tickets(1), (4, 40)).tolist():
        assert each != sorted(each), "threads of one block too"


def test_parts_of_arrays_stay_parts_and_what_overlaps_stays_together():
    source = Source("parts.cu", """
extern "C" __global__ void shift(const float* from, float* to, int step) { int i = threadIdx.x; to[i * step] = from[i * step] + 1; }
""")
    whole = np.arange(24, dtype=np.float32)
    shift = kernel(whole, source, "shift")
    with checked():
        shift((1,), (8,), (whole[1::3], whole[2::3], 3))
        backwards = whole[::-1]
        shift((1,), (3,), (backwards, backwards, -1))
    want = np.arange(24, dtype=np.float32)
    want[2::3] = want[1::3] + 1
    want[-3:] += 1
    assert np.array_equal(whole, want)
    with pytest.raises(KernelFault, match="out of bounds: .* byte 84 of argument 0's memory"), checked():
        shift((1,), (8,), (whole[:21:3], np.zeros(24, np.float32), 3))


def test_a_watch_is_of_its_thread_and_ends_with_its_block():
    found, _ = run("a sum by shuffles", 0)
    run_plain = kernel(np.zeros(1), Source("planted.cu", _with_includes("planted.cu", TEXT)), f"k{NAMES.index('a sum by shuffles')}")
    run_plain((2,), (64,), (np.zeros(256, np.float32), np.zeros(256, np.float32)), shared=256)
    assert len(found.launches) == 1
