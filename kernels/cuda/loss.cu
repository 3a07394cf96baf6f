// Softmax and cross-entropy in one, row by row: p[j] = exp(x[j]) / sum over t of exp(x[t]); loss = -log(p[target]);
// dx[j] = p[j] - (1 where j = target, else 0), the loss's gradient.
//
// A row is asked three times: for its largest logit, which is taken off all of them so that no exponential overflows; for
// the sum of the exponentials; for each p. Who answers:
//
//   simple   a thread. Its neighbours' numbers lie a row apart, so every request moves much that nobody asked for, and
//            all of it three times.
//   warp     a warp. Its lanes read side by side, and find the largest and the sum by shuffles. A lane keeps its first 8
//            numbers in registers: rows of up to 256 classes are read once.
//   block    a block of 256 threads, for rows so long that a warp would go round many times; its warps meet in shared memory.
//   fitting  whichever fits the row, the default: as many lanes of a warp as hold few classes (16 for 10, so a warp takes
//            two rows), a whole warp up to 256, a block above. The kernels are those of warp and block.
//
// `tinynet explain softmax_cross_entropy --device cuda-emulator` counts what each of them asks of memory.
//
// Logits and classes lie in memory as they please: strides, in elements, come with them. Who adds what to what depends on
// the number of classes alone: equal inputs give equal bits. exp and log are the accurate ones, not a GPU's fast ones.
// A NaN makes its whole row NaN, and a target that is no class makes the loss NaN.
//
// Compiled with REAL: float or double.

#define ROWS                                                                                                             \
  const REAL *__restrict__ x, long long x_row, long long x_class, const long long *__restrict__ target,                  \
      long long target_row, REAL *__restrict__ loss, REAL *__restrict__ dx, long long rows, int classes

constexpr int THREADS = 256;  // of a block
constexpr int BLOCKS = 3;     // that a multiprocessor holds: 80 registers a thread. What the compiler saves by itself makes some forms spill

#define INFINITE __int_as_float(0x7f800000)  // NVRTC has no names for them
#define NOT_A_NUMBER __int_as_float(0x7fc00000)

// --- simple --------------------------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) softmax_cross_entropy_simple(ROWS) {
  long long row = blockIdx.x * (long long)THREADS + threadIdx.x;
  if (row >= rows) return;
  x += row * x_row, dx += row * classes;
  REAL largest = x[0], total = 0;
  for (int j = 1; j < classes; j++) largest = max(largest, x[j * x_class]);
  for (int j = 0; j < classes; j++) total += exp(x[j * x_class] - largest);
  long long hit = target[row * target_row];
  REAL at_hit = NOT_A_NUMBER;
  for (int j = 0; j < classes; j++) {
    REAL d = x[j * x_class] - largest;
    if (j == hit) at_hit = d;
    dx[j] = exp(d) / total - (j == hit);
  }
  loss[row] = log(total) - at_hit;
}

// --- what warp and block share -------------------------------------------------------------------------------------------

constexpr int HELD = 8;  // numbers that a thread keeps in registers

// One thread's part of a row: every `step`-th number, its own first one on.
struct Share {
  const REAL* x;
  long long x_class;
  int first, step, classes;
  REAL held[HELD];

  __device__ __forceinline__ void fetch() {
#pragma unroll
    for (int n = 0; n < HELD; n++)
      if (first + n * step < classes) held[n] = x[(first + n * step) * x_class];
  }

  // what(class, logit) for each of them; those that no register holds are read anew.
  template <class What> __device__ __forceinline__ void each(What what) const {
#pragma unroll
    for (int n = 0; n < HELD; n++)
      if (first + n * step < classes) what(first + n * step, held[n]);
    for (int j = first + HELD * step; j < classes; j += step) what(j, x[j * x_class]);
  }
};

// A row by many threads. together(value, of) combines the values of all of them by of(one, other), and gives each the result.
template <class Together>
__device__ __forceinline__ void row_by_many(Share& mine, long long hit, REAL* loss, REAL* dx, Together together) {
  mine.fetch();
  REAL largest = -INFINITE, total = 0;  // a thread may have no number
  mine.each([&](int j, REAL logit) { largest = max(largest, logit); });
  largest = together(largest, [](REAL a, REAL b) { return max(a, b); });
  mine.each([&](int j, REAL logit) { total += exp(logit - largest); });
  total = together(total, [](REAL a, REAL b) { return a + b; });
  bool none = hit < 0 || hit >= mine.classes;
  mine.each([&](int j, REAL logit) {
    if (j == (none ? 0 : hit)) *loss = none ? NOT_A_NUMBER : log(total) - (logit - largest);
    dx[j] = exp(logit - largest) / total - (j == hit);
  });
}

// --- warp ----------------------------------------------------------------------------------------------------------------

// Combines the values of `lanes` neighbours in a warp, a power of two: with the other half's, then the other quarter's, and
// so on. Two lanes that meet compute the same of the same, so all end with the same bits.
struct ByLanes {
  int lanes;

  template <class Of> __device__ __forceinline__ REAL operator()(REAL value, Of of) const {
    for (int flip = lanes / 2; flip; flip /= 2) value = of(value, __shfl_xor_sync(~0u, value, flip));
    return value;
  }
};

// lanes: of a row. 32 in the variant `warp`.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) softmax_cross_entropy_warp(ROWS, int lanes) {
  long long row = (blockIdx.x * (long long)THREADS + threadIdx.x) / lanes;
  // Lanes beyond the last row stay, with nothing to do: shuffles are for whole warps.
  bool there = row < rows;
  Share mine{x + row * x_row, x_class, int(threadIdx.x % lanes), lanes, there ? classes : 0};
  row_by_many(mine, there ? target[row * target_row] : -1, loss + row, dx + row * classes, ByLanes{lanes});
}

// --- block ---------------------------------------------------------------------------------------------------------------

struct ByBlock {
  REAL* found;  // THREADS / 32 numbers in shared memory, a warp's each: other ones every time, so that one barrier is enough

  template <class Of> __device__ __forceinline__ REAL operator()(REAL value, Of of) {
    value = ByLanes{32}(value, of);
    if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = value;
    __syncthreads();
    value = found[0];
#pragma unroll
    for (int warp = 1; warp < THREADS / 32; warp++) value = of(value, found[warp]);
    found += THREADS / 32;
    return value;
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) softmax_cross_entropy_block(ROWS) {
  __shared__ REAL of_warps[2 * THREADS / 32];  // for the largest, and for the sum
  long long row = blockIdx.x;
  Share mine{x + row * x_row, x_class, int(threadIdx.x), THREADS, classes};
  row_by_many(mine, target[row * target_row], loss + row, dx + row * classes, ByBlock{of_warps});
}
