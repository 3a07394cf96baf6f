// Sums of many numbers on a GPU, always in one order: conv2d_db, and the second half of every sum that was split among blocks.
//
//   conv2d_db   db[k] = sum over n,i,j of dy[n,k,i,j]
//   direct      a thread is one channel. A network has few channels, so few threads.
//   parts       a block sums a part of a channel's places, or of 32 channels' where channels lie side by side; then `add_parts`
//               adds up what the blocks found.
//
// No block waits for another and none adds to what another one wrote: which of them is first changes no bit.
// Compiled with REAL: float or double.
#include "digits.cuh"

// dy lies as it pleases: strides in elements. A place is (n,i,j).
#define IMAGES                                                                                                           \
  const REAL *__restrict__ dy, long long image, long long channel, long long row, long long column, int channels,        \
      int places, int rows, int columns

extern "C" __global__ void __launch_bounds__(256) conv2d_db_direct(IMAGES, REAL *__restrict__ db) {
  int k = blockIdx.x * 256 + threadIdx.x;
  if (k >= channels) return;
  REAL sum = 0;
  for (int n = 0; n < places; n++) {
    Digits at = digits(n, rows, columns);
    sum += dy[at.slow * image + k * channel + at.middle * row + at.fast * column];
  }
  db[k] = sum;
}

// parts[part][k], of `each` places. A block is 32 x 8 threads: with channels_last 32 channels, 8 places at a time; else one
// channel, 256 places at a time.
extern "C" __global__ void __launch_bounds__(256) conv2d_db_parts(IMAGES, int each, int channels_last, REAL *__restrict__ parts) {
  __shared__ REAL sums[8][32];
  int x = threadIdx.x, y = threadIdx.y, across = channels_last ? (channels + 31) / 32 : channels;
  int k = channels_last ? blockIdx.x % across * 32 + x : blockIdx.x % across, part = blockIdx.x / across;
  int first = part * each, last = min(first + each, places), by = channels_last ? 8 : 256;
  int start = first + (channels_last ? y : y * 32 + x);
  Digits at = digits(start, rows, columns), step = digits(by, rows, columns);
  REAL sum = 0;
  if (k < channels)
    for (int n = start; n < last; n += by) {
      sum += dy[at.slow * image + k * channel + at.middle * row + at.fast * column];
      add(at, step, rows, columns);
    }
  sums[y][x] = sum;
  __syncthreads();
  if (y > 0) return;
  for (int n = 1; n < 8; n++) sum += sums[n][x];
  if (!channels_last)
    for (int by = 16; by; by /= 2) sum += __shfl_down_sync(~0u, sum, by);
  if (channels_last ? k < channels : x == 0) parts[(long long)part * channels + k] = sum;
}

// out[n] = sum of parts[part][n] over the parts, in order: each of eight rows of threads adds every eighth, and the first adds
// up the eight. The parts may lie in another order than out: as rows of (b, a) where out has (a, b). b = 1: in the same. Else
// out is written across, one number a sector: once, where the parts are read side by side many times.
extern "C" __global__ void __launch_bounds__(256) add_parts(const REAL *__restrict__ parts, int count, long long size, int a, int b, REAL *__restrict__ out) {
  __shared__ REAL sums[8][32];
  int x = threadIdx.x, y = threadIdx.y;
  long long n = blockIdx.x * 32ll + x;
  REAL sum = 0;
  if (n < size)
    for (int part = y; part < count; part += 8) sum += parts[part * size + n];
  sums[y][x] = sum;
  __syncthreads();
  if (y > 0 || n >= size) return;
  for (int row = 1; row < 8; row++) sum += sums[row][x];
  long long line = n / a / b;
  int inner = int(n % ((long long)a * b));
  out[line * a * b + inner % a * b + inner / a] = sum;
}
