// ReLU's gradient: dx = dy where x > 0, else 0. A selection: all bits of dy or none, where a product with the mask would make
// NaN of inf * 0. Memory decides; CuPy would take two passes over it, with a mask in between.
//
//   simple  a thread is a number, and then the one as many further as there are threads: neighbours ask for neighbours.
//
// dy, x and dx are contiguous. Compiled with REAL: float or double.

constexpr int THREADS = 256;  // of a block

extern "C" __global__ void __launch_bounds__(THREADS)
    relu_dx_simple(const REAL* __restrict__ dy, const REAL* __restrict__ x, REAL* __restrict__ dx, long long count) {
  for (long long i = blockIdx.x * (long long)THREADS + threadIdx.x; i < count; i += gridDim.x * (long long)THREADS)
    dx[i] = x[i] > 0 ? dy[i] : REAL(0);
}
