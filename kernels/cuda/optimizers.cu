// The steps of optimisers: each number of the weights w by itself, with its gradient g and its state. They compute little and
// move much: all that a variant can change is how memory is asked.
//
//   simple   a thread is a number, and then the one as many further as there are threads.
//   vectors  a thread is 16 bytes of numbers side by side: a quarter of the requests for the same bytes, in float.
//
// `tinynet explain adam_step --device cuda-emulator` counts it.
//
// All arrays are contiguous; vectors needs them to start at multiples of 16 bytes. What a step makes may be written over
// what it was made of: each number is read before it is written, by the same thread. So the pointers are not
// __restrict__, but for g, which nobody writes.
//
// The optimiser's numbers (lr, 1 - b2, ...) come from the host, computed in double precision and then rounded once:
// 1.f - b2 would lose ten of its 24 bits. They are arguments of a launch, and a CUDA graph launches again and again with the
// arguments that it was made with. So a launch that becomes part of a graph reads them from memory instead, from `live`, where
// `write_numbers`, before every launch of the graph, puts what they are by then.
//
// Compiled with REAL: float or double.

#define SGD                                                                                                              \
  const REAL *w, const REAL *__restrict__ g, const REAL *v, REAL *w_after, REAL *v_after, long long count,               \
      const REAL *__restrict__ live, REAL lr, REAL decay, REAL momentum, REAL nesterov
#define ADAM                                                                                                             \
  const REAL *w, const REAL *__restrict__ g, const REAL *m, const REAL *s, REAL *w_after, REAL *m_after, REAL *s_after,  \
      long long count, const REAL *__restrict__ live, REAL lr, REAL c2, REAL b1, REAL b2, REAL eps, REAL decay,          \
      REAL keeps, REAL new1, REAL new2
#define LIVE_SGD                                                                                                         \
  if (live) lr = live[0], decay = live[1], momentum = live[2], nesterov = live[3]
#define LIVE_ADAM                                                                                                        \
  if (live)                                                                                                              \
  lr = live[0], c2 = live[1], b1 = live[2], b2 = live[3], eps = live[4], decay = live[5], keeps = live[6],               \
  new1 = live[7], new2 = live[8]

constexpr int THREADS = 256;  // of a block
// Blocks that a multiprocessor holds: 64 registers a thread, 80 in double. What the compiler saves by itself makes some forms spill.
constexpr int BLOCKS = sizeof(REAL) == 8 ? 3 : 4;

// --- what is computed ----------------------------------------------------------------------------------------------------

// v = momentum * v + d;  w -= lr * v, with Nesterov lr * (d + momentum * v);  d = g + decay * w. Without momentum w -= lr * d.
__device__ __forceinline__ void sgd(REAL& w, REAL g, REAL& v, bool moves, REAL lr, REAL decay, REAL momentum, REAL nesterov) {
  REAL d = decay != 0 ? g + decay * w : g;
  if (moves) {
    v = momentum * v + d;
    d = nesterov != 0 ? d + momentum * v : v;
  }
  w -= lr * d;
}

// m = b1 m + new1 g;  s = b2 s + new2 g g;  w = keeps * w - lr * m / (sqrt(s / c2) + eps). new1 is 1 - b1, new2 1 - b2, c2
// 1 - b2^t; lr is divided by 1 - b1^t already. Weight decay: g gets decay * w (Adam), or w keeps less than 1 of itself (AdamW).
__device__ __forceinline__ void adam(REAL& w, REAL g, REAL& m, REAL& s, REAL lr, REAL c2, REAL b1, REAL b2, REAL eps,
                                     REAL decay, REAL keeps, REAL new1, REAL new2) {
  if (decay != 0) g += decay * w;
  m = b1 * m + new1 * g;
  s = b2 * s + new2 * g * g;
  w = keeps * w - lr * m / (sqrt(s / c2) + eps);
}

// --- simple --------------------------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) sgd_step_simple(SGD) {
  LIVE_SGD;
  for (long long i = blockIdx.x * (long long)THREADS + threadIdx.x; i < count; i += gridDim.x * (long long)THREADS) {
    REAL weight = w[i], speed = v ? v[i] : REAL(0);
    sgd(weight, g[i], speed, v, lr, decay, momentum, nesterov);
    w_after[i] = weight;
    if (v) v_after[i] = speed;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) adam_step_simple(ADAM) {
  LIVE_ADAM;
  for (long long i = blockIdx.x * (long long)THREADS + threadIdx.x; i < count; i += gridDim.x * (long long)THREADS) {
    REAL weight = w[i], first = m[i], second = s[i];
    adam(weight, g[i], first, second, lr, c2, b1, b2, eps, decay, keeps, new1, new2);
    w_after[i] = weight, m_after[i] = first, s_after[i] = second;
  }
}

// --- vectors -------------------------------------------------------------------------------------------------------------

template <int bytes> struct Sixteen;
template <> struct Sixteen<4> { typedef float4 type; };
template <> struct Sixteen<8> { typedef double2 type; };
typedef Sixteen<sizeof(REAL)>::type Vector;
constexpr int WIDE = 16 / sizeof(REAL);

// WIDE numbers side by side, or as many as are left of the array.
struct Numbers {
  __align__(16) REAL n[WIDE];

  __device__ __forceinline__ Numbers(const REAL* from, long long left) {
    if (left >= WIDE) *(Vector*)n = *(const Vector*)from;
    else
#pragma unroll
      for (int k = 0; k < WIDE; k++) n[k] = k < left ? from[k] : REAL(0);
  }

  __device__ __forceinline__ void write(REAL* to, long long left) const {
    if (left >= WIDE) *(Vector*)to = *(const Vector*)n;
    else
#pragma unroll
      for (int k = 0; k < WIDE; k++)
        if (k < left) to[k] = n[k];
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) sgd_step_vectors(SGD) {
  LIVE_SGD;
  long long first = (blockIdx.x * (long long)THREADS + threadIdx.x) * WIDE, step = gridDim.x * (long long)THREADS * WIDE;
  for (long long i = first; i < count; i += step) {
    Numbers weights(w + i, count - i), gradients(g + i, count - i), speeds(v + i, v ? count - i : 0);
#pragma unroll
    for (int k = 0; k < WIDE; k++) sgd(weights.n[k], gradients.n[k], speeds.n[k], v, lr, decay, momentum, nesterov);
    weights.write(w_after + i, count - i);
    if (v) speeds.write(v_after + i, count - i);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) adam_step_vectors(ADAM) {
  LIVE_ADAM;
  long long first = (blockIdx.x * (long long)THREADS + threadIdx.x) * WIDE, step = gridDim.x * (long long)THREADS * WIDE;
  for (long long i = first; i < count; i += step) {
    Numbers weights(w + i, count - i), gradients(g + i, count - i), firsts(m + i, count - i), seconds(s + i, count - i);
#pragma unroll
    for (int k = 0; k < WIDE; k++)
      adam(weights.n[k], gradients.n[k], firsts.n[k], seconds.n[k], lr, c2, b1, b2, eps, decay, keeps, new1, new2);
    weights.write(w_after + i, count - i), firsts.write(m_after + i, count - i), seconds.write(s_after + i, count - i);
  }
}

// --- numbers that change -------------------------------------------------------------------------------------------------

// live = n0, n1, ...: as many as there are. A launch takes its arguments along, so the host may forget them at once: a copy
// from the host's memory would have to wait until the last one was read.
extern "C" __global__ void write_numbers(REAL* live, int count, REAL n0, REAL n1, REAL n2, REAL n3, REAL n4, REAL n5, REAL n6, REAL n7, REAL n8) {
  REAL numbers[] = {n0, n1, n2, n3, n4, n5, n6, n7, n8};
#pragma unroll
  for (int k = 0; k < 9; k++)
    if (k < count) live[k] = numbers[k];
}
