"""The emulator: CUDA's words mean on the CPU what they mean on a GPU, and what can't be run says so."""

from __future__ import annotations

import os
import shutil
import threading

import numpy as np
import pytest

from tinynet.kernels.cuda.emulator import build
from tinynet.kernels.cuda.emulator.faults import KernelFault
from tinynet.kernels.cuda.launch import Source, kernel

pytestmark = pytest.mark.skipif(build.reason() is not None, reason=f"no emulator here: {build.reason()}")

WORDS = r"""
#include "async_copy.cuh"

extern "C" __global__ void where(int* out) {
  unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + thread;
}
extern "C" __global__ void __launch_bounds__(256, 2) reverse(const float* __restrict__ x, float* y) {
  __shared__ float fixed[256];
  extern __shared__ float dynamic[];
  int i = threadIdx.x, n = blockDim.x;
  fixed[i] = x[blockIdx.x * n + i];
  dynamic[i] = fixed[i];  // one's own: needs no barrier
  __syncthreads();
  y[blockIdx.x * n + i] = fixed[n - 1 - i] + 100 * dynamic[n - 1 - i];
}
extern "C" __global__ void shuffles(double* out) {
  int lane = threadIdx.x;
  double mine = lane + 0.5;
  out[lane] = __shfl_sync(~0u, mine, lane * 5, 8);
  out[32 + lane] = __shfl_up_sync(~0u, mine, 3, 16);
  out[64 + lane] = __shfl_down_sync(~0u, mine, 3, 16);
  out[96 + lane] = __shfl_xor_sync(~0u, mine, 9);
}
extern "C" __global__ void votes(unsigned* out) {
  int lane = threadIdx.x;
  if (lane % 2) {
    out[lane] = __ballot_sync(0xaaaaaaaau, lane > 16);
  } else {
    out[lane] = __ballot_sync(0x55555555u, lane < 4);
  }
  out[32 + lane] = __any_sync(~0u, lane == 7) + 2 * __all_sync(~0u, lane >= 0) + 4 * __any_sync(~0u, lane > 99) + 8 * __all_sync(~0u, lane < 31);
}
extern "C" __global__ void atomics(int* sums, float* total, double* most, unsigned long long* swapped) {
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  atomicAdd(&count, 2);
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(&sums[0], count);
  atomicMax(&sums[1], int(blockIdx.x * blockDim.x + threadIdx.x));
  atomicMin(&sums[2], -int(threadIdx.x));
  atomicOr(&sums[3], 1 << threadIdx.x % 30);
  atomicAdd(total, 0.5f);
  atomicAdd(most, 0.25);
  unsigned long long seen = *swapped, before;
  do before = seen, seen = atomicCAS(swapped, before, before + 3);
  while (seen != before);
}
extern "C" __global__ void vectors(const float4* x, int2* y, float* z, double2* w) {
  float4 v = x[threadIdx.x];
  y[threadIdx.x] = make_int2(int(v.x + v.y), int(v.z * v.w));
  float3 three = make_float3(v.x, v.y, v.z);
  *(float4*)(z + 4 * threadIdx.x) = make_float4(v.w, three.z, three.y, three.x);
  w[threadIdx.x] = double2(v.x, v.w);
}
extern "C" __global__ void arguments(double* out, int i, unsigned u, long long q, float f, double d, const float* nothing) {
  out[0] = i, out[1] = u, out[2] = double(q), out[3] = f, out[4] = d, out[5] = nothing == nullptr;
  out[6] = __CUDA_ARCH__, out[7] = SCALE, out[8] = fmaf(16777217.f, f, -1.f), out[9] = __ldg(out);
}
extern "C" __global__ void copies(const float* x, float* seen) {
  __shared__ float four[2][4];
  copy_async<16>(four[0], x);
  copy_async_commit();
  copy_async<4>(&four[1][0], x + 4);
  copy_async_commit();
  seen[0] = four[0][0];  // too early
  copy_async_wait<1>();
  seen[1] = four[0][3], seen[2] = four[1][0];
  copy_async_wait<0>();
  seen[3] = four[1][0];
}
extern "C" __global__ void unwritten(float* out) {
  __shared__ float x[32];
  out[threadIdx.x] = x[threadIdx.x];
  x[threadIdx.x] = 1;  // the next block may not see it
}
extern "C" __global__ void half_leaves(const float* x, float* sums, int n) {
  __shared__ float halves[2][32];
  int i = threadIdx.x, half = threadIdx.y;
  float sum = 0;
  if (i < n)
    for (int k = half; k < 4; k += 2) sum += x[k * 32 + i];
  halves[half][i] = sum;
  __syncthreads();
  if (half > 0 || i >= n) return;
  sums[i] = halves[0][i] + halves[1][i];
}
template <int n> __device__ int times(int x) {
  if constexpr (n == 0) return x;
  else return 2 * times<n - 1>(x);
}
__constant__ int TABLE[3] = {5, 6, 7};
extern "C" __global__ void templates(int* out) { out[threadIdx.x] = times<4>(TABLE[threadIdx.x]) + max(1, 3) + min(2.5f, 1.5f); }
extern "C" __global__ void extremes(const float* x, float* out) {
  double y = x[1];
  out[0] = max(x[0], x[1]), out[1] = max(x[1], x[0]), out[2] = min(x[0], x[1]), out[3] = min(x[1], x[0]);
  out[4] = max(y, 2.0), out[5] = max(2.0, y), out[6] = min(y, 2.0), out[7] = min(2.0, y), out[8] = max(3, 5), out[9] = min(3u, 5u);
}
extern "C" __global__ void late(float* x) {
  if (threadIdx.x == 40) return;
  __syncthreads();
  x[threadIdx.x] = 1;
}
extern "C" __global__ void lonely(float* x) {
  if (threadIdx.x < 16) x[threadIdx.x] = __shfl_down_sync(~0u, x[threadIdx.x], 1);
}
__device__ __attribute__((noinline)) int deep(volatile int* x, int n) {
  volatile int here[512];
  here[n % 512] = x[0];
  return n ? deep(here, n - 1) + here[n % 512] : here[0];
}
extern "C" __global__ void much_stack(int* x) { x[threadIdx.x] = deep(x, 34); }
"""


def source(text: str = WORDS, name: str = "words.cu") -> Source:
    from tinynet.kernels.cuda.launch import _with_includes

    return Source(name, _with_includes(name, text))


def words(name: str):
    return kernel(np.empty(0), source(), name, SCALE=7)


# --- what words mean ---------------------------------------------------------------------------------------------------


def test_every_thread_of_every_block_knows_where_it_is():
    out = np.zeros((24, 24), np.int32)
    words("where")((2, 3, 4), (4, 3, 2), (out,))
    assert np.array_equal(out, 1000 * np.arange(24)[:, None] + np.arange(24))


def test_shared_memory_static_and_dynamic_and_the_barrier(rng):
    x, y = rng.integers(-99, 99, (5, 96)).astype("f4"), np.empty((5, 96), np.float32)
    words("reverse")((5,), (96,), (x, y), shared=96 * 4)
    assert np.array_equal(y, x[:, ::-1] + np.float32(100) * x[:, ::-1])


def test_shuffles_by_groups_of_lanes():
    out, lane = np.empty((4, 32)), np.arange(32)
    words("shuffles")((1,), (32,), (out,))
    group = lane // 16 * 16
    assert np.array_equal(out[0], lane // 8 * 8 + lane * 5 % 8 + 0.5)
    assert np.array_equal(out[1], np.where(lane - 3 < group, lane, lane - 3) + 0.5), "from below the group: its own"
    assert np.array_equal(out[2], np.where(lane + 3 >= group + 16, lane, lane + 3) + 0.5)
    assert np.array_equal(out[3], (lane ^ 9) + 0.5)


def test_votes_of_a_warp_and_of_parts_of_it():
    out = np.empty((2, 32), np.uint32)
    words("votes")((1,), (32,), (out,))
    odd = sum(1 << i for i in range(17, 32, 2))
    assert np.array_equal(out[0], [odd if i % 2 else 0b101 for i in range(32)])
    assert np.array_equal(out[1], np.full(32, 1 + 2))


def test_atomics_of_blocks_that_run_at_once():
    sums, total, most, swapped = np.zeros(4, np.int32), np.zeros(1, np.float32), np.zeros(1), np.zeros(1, np.uint64)
    words("atomics")((200,), (64,), (sums, total, most, swapped))
    assert sums.tolist() == [200 * 64 * 2, 200 * 64 - 1, -63, (1 << 30) - 1]
    assert (total[0], most[0], swapped[0]) == (6400, 3200, 200 * 64 * 3)


def test_vector_types():
    x = np.arange(128, dtype=np.float32).reshape(32, 4)
    y, z, w = np.empty((32, 2), np.int32), np.empty((32, 4), np.float32), np.empty((32, 2))
    words("vectors")((1,), (32,), (x, y, z, w))
    assert np.array_equal(y, np.stack([x[:, 0] + x[:, 1], x[:, 2] * x[:, 3]], 1)) and np.array_equal(z, x[:, ::-1]) and np.array_equal(w, x[:, [0, 3]])


def test_arguments_of_every_type_macros_and_arithmetic():
    out = np.zeros(10)
    words("arguments")((1,), (1,), (out, -5, 2**32 - 1, -(2**40), np.float32(0.5), np.float64(0.1), None))
    assert out.tolist() == [-5, 2**32 - 1, -(2**40), 0.5, 0.1, 1, 800, 7, 8388607.0, -5]


def test_an_asynchronous_copy_is_there_when_it_was_waited_for_and_not_before():
    x, seen = np.arange(1, 9, dtype=np.float32), np.zeros(4, np.float32)
    words("copies")((1,), (1,), (x, seen))
    assert np.isnan(seen[[0, 2]]).all() and seen[[1, 3]].tolist() == [4, 5]


def test_shared_memory_holds_nan_when_a_block_starts():
    out = np.zeros(32, np.float32)
    for _ in range(3):
        words("unwritten")((4,), (32,), (out,))
        assert np.isnan(out).all()


def test_a_barrier_that_the_compiler_writes_twice_or_jumps_to_is_one():
    """Some threads have nothing to do before and behind this one: for these g++ makes a barrier of their own, their last call."""
    x, sums = np.arange(128, dtype=np.float32), np.zeros(32, np.float32)
    words("half_leaves")((1,), (32, 2), (x, sums, 30))
    assert np.array_equal(sums[:30], x.reshape(4, 32).sum(0)[:30]) and not sums[30:].any()


def test_templates_and_constants():
    out = np.empty(3, np.int32)
    words("templates")((1,), (3,), (out,))
    assert out.tolist() == [16 * n + 4 for n in (5, 6, 7)]


def test_the_larger_of_a_number_and_a_nan_is_the_number():
    out = np.empty(10, np.float32)
    words("extremes")((1,), (1,), (np.array([1, np.nan], np.float32), out))
    assert out.tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 5, 3]


def test_python_threads_may_launch_at_once(rng):
    x = rng.standard_normal((40, 128)).astype("f4")
    results = [np.empty_like(x) for _ in range(8)]
    threads = [threading.Thread(target=lambda y=y: words("reverse")((40,), (128,), (x, y), shared=512)) for y in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(y, results[0]) and np.isfinite(y).all() for y in results)


def test_other_processors_switch_fibers_by_the_c_library(monkeypatch, tmp_path, rng):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(build, "_HOST", (*build._HOST, "-DEMULATOR_PORTABLE"))
    build._object.cache_clear(), build.library.cache_clear()
    try:
        x, y = rng.integers(-99, 99, (3, 64)).astype("f4"), np.empty((3, 64), np.float32)
        words("reverse")((3,), (64,), (x, y), shared=256)
        assert np.array_equal(y, x[:, ::-1] + np.float32(100) * x[:, ::-1])
    finally:
        build._object.cache_clear(), build.library.cache_clear()


# --- what goes wrong ---------------------------------------------------------------------------------------------------


def line_of(text: str) -> int:
    return WORDS[: WORDS.index(text)].count("\n") + 1


def test_a_kernel_that_waits_for_ever_is_an_error_with_its_line():
    x = np.zeros(64, np.float32)
    barrier = line_of("if (threadIdx.x == 40) return;") + 1
    with pytest.raises(KernelFault, match=rf"late, words.cu:{barrier}: barrier missed: thread \(\d+, 0, 0\) of block \(0, 0, 0\) waits, thread \(40, 0, 0\) of block \(0, 0, 0\) never comes"):
        words("late")((1,), (64,), (x,))
    with pytest.raises(KernelFault, match=rf"lonely, words.cu:{line_of('if (threadIdx.x < 16)')}: inactive lane"):
        words("lonely")((1,), (32,), (x,))
    words("templates")((1,), (3,), (np.empty(3, np.int32),))  # and the next launch is not hurt


def test_more_local_memory_than_a_fiber_has_is_an_error():
    with pytest.raises(KernelFault, match="much_stack, its end: stack: thread .* needs more than the emulator's 64 KiB"):
        words("much_stack")((1,), (1,), (np.zeros(1, np.int32),))


@pytest.mark.parametrize(
    "grid, block, shared, said",
    [
        ((1, 70000), (1,), 0, r"a grid has at most \(2147483647, 65535, 65535\) blocks; got \(1, 70000, 1\)"),
        ((1,), (1025,), 0, r"a block has at most 1024 threads, 64 of them along z; got \(1025, 1, 1\), which is 1025"),
        ((1,), (1, 1, 65), 0, "a block has at most 1024 threads, 64 of them along z"),
        ((0,), (1,), 0, r"a grid is one to three whole numbers of at least 1; got \(0,\)"),
        ((1,), (1, 1, 1, 1), 0, "a block is one to three whole numbers"),
        ((1,), (1,), 200_000, "a block has at most 101376 bytes of shared memory; got 200000"),
    ],
)
def test_a_launch_that_no_gpu_could_do_is_refused(grid, block, shared, said):
    with pytest.raises(ValueError, match=f"where: {said}"):
        words("where")(grid, block, (np.zeros(1, np.int32),), shared=shared)


GOOD = [np.zeros(10), 1, 2, 3, np.float32(4), np.float64(5), None]


@pytest.mark.parametrize(
    "place, value, error, said",
    [
        (0, 3, TypeError, "argument 0 must be a numpy array or None; got int 3"),
        (1, 2**31, OverflowError, "argument 1 is an int, which can't hold 2147483648"),
        (2, -1, OverflowError, "argument 2 is an unsigned, which can't hold -1"),
        (1, 1.5, TypeError, "argument 1 must be an int: a Python int; got float 1.5"),
        (4, 1.5, TypeError, r"argument 4 must be a float: np.float32; got float 1.5"),
        (5, np.float32(1), TypeError, "argument 5 must be a double: np.float64; got float32 1.0"),
        (None, None, TypeError, "arguments takes 7 arguments; got 6"),
    ],
)
def test_wrong_arguments_are_refused(place, value, error, said):
    given = GOOD[:-1] if place is None else [value if i == place else good for i, good in enumerate(GOOD)]
    with pytest.raises(error, match=said):
        words("arguments")((1,), (1,), given)


def test_what_does_not_compile_says_where_and_a_missing_kernel_which_there_are():
    broken = Source("broken.cu", '\nextern "C" __global__ void f(float* x) {\n  x[0] = missing;\n}\n')
    with pytest.raises(RuntimeError, match="(?s)broken.cu does not compile for the emulator; g[+][+] says:.*broken.cu:3:.*missing"):
        kernel(np.empty(0), broken, "f")((1,), (1,), (np.zeros(1),))
    with pytest.raises(LookupError, match="words.cu has no kernel 'whence'; compiled like this it has where, reverse"):
        words("whence")((1,), (1,), ())


# --- on disk -----------------------------------------------------------------------------------------------------------


def test_what_was_compiled_is_kept_announced_once_and_replaced_if_it_is_damaged(python, tmp_path):
    code = """
import numpy as np
from tinynet.kernels.cuda.launch import Source, kernel
x = np.zeros(1, "i4")
for value in (1, 2):
    kernel(x, Source("kept.cu", 'extern "C" __global__ void f(int* x) { *x += VALUE; }'), "f", VALUE=value)((1,), (1,), (x,))
print(x[0])
"""
    (tmp_path / "tinynet").mkdir()
    shutil.copy(build._object("emulator.cpp"), tmp_path / "tinynet")  # it is not what is tested, and takes longest
    said = "tinynet: compiling kept.cu for the emulator (once; it is kept on disk) ..."
    first = python(code, NUMBA_CACHE_DIR=str(tmp_path), TINYNET_QUIET="0")
    assert first.stdout == "3\n" and first.stderr.count(said) == 2, "two values of a macro are two libraries"
    files = sorted((tmp_path / "tinynet").iterdir())
    assert [f.suffix for f in files] == [".o", ".so", ".so"], "nothing else is left"
    again = python(code, NUMBA_CACHE_DIR=str(tmp_path), TINYNET_QUIET="0")
    assert (again.stdout, again.stderr) == ("3\n", "")

    whole = files[1].read_bytes()
    files[1].write_bytes(whole[: len(whole) // 2])
    mended = python(code, NUMBA_CACHE_DIR=str(tmp_path), TINYNET_QUIET="0")
    assert mended.stdout == "3\n" and f"{files[1]} is damaged, and is made anew" in mended.stderr and mended.stderr.count(said) == 1
    assert len(files[1].read_bytes()) == len(whole)

    changed = python(code.replace("+= VALUE", "-= VALUE"), NUMBA_CACHE_DIR=str(tmp_path), TINYNET_QUIET="1")
    assert (changed.stdout, changed.stderr) == ("-3\n", ""), "another text is another library, and quiet is quiet"
    assert len(list((tmp_path / "tinynet").iterdir())) == 3, "which replaces the old one"


@pytest.mark.parametrize("what", ["compiler", "own files", "options"])
def test_another_compiler_or_emulator_is_another_library(what, monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    made = []

    def kept() -> None:
        build._kept("a kernel", "a", "", ("text", *build._PLAIN), ".so", lambda folder, path: (made.append(1), path.write_bytes(b"code")))

    kept(), kept()
    assert len(made) == 1
    if what == "compiler":
        monkeypatch.setattr(build, "_compiler", lambda: "another")
    elif what == "own files":
        monkeypatch.setattr(build, "_own_files", lambda: b"another")
    else:
        monkeypatch.setattr(build, "_PLAIN", ("-O3",))
    kept()
    assert len(made) == 2


def test_where_nothing_can_be_written_it_says_so(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(RuntimeError, match="compiled kernels can't be kept .*; set NUMBA_CACHE_DIR"):
        build._kept("a kernel", "a", "", ("text",), ".so", lambda folder, path: path.write_bytes(b"code"))
    assert os.listdir(tmp_path) == ["file"]
