// What a GPU can do at most: multiply-adds on registers, and copying memory.

constexpr int THREADS = 256, CHAINS = 8;

// CHAINS independent chains of multiply-adds a thread: enough that no multiply-add waits for the one before it.
extern "C" __global__ void __launch_bounds__(THREADS) multiply_adds(float* y, float a, float b, int rounds) {
  float sums[CHAINS];
#pragma unroll
  for (int k = 0; k < CHAINS; k++) sums[k] = k;
#pragma unroll 4
  for (int round = 0; round < rounds; round++) {
#pragma unroll
    for (int k = 0; k < CHAINS; k++) sums[k] = fmaf(sums[k], a, b);
  }
  float sum = 0;
#pragma unroll
  for (int k = 0; k < CHAINS; k++) sum += sums[k];
  y[blockIdx.x * THREADS + threadIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) copy(const float4* __restrict__ x, float4* y, long long fours) {
  for (long long i = (long long)blockIdx.x * THREADS + threadIdx.x; i < fours; i += (long long)gridDim.x * THREADS) y[i] = x[i];
}
