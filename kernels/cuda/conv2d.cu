// Convolution on a GPU: y[g,n,k,i,j] = bias[g,k] + sum over c,u,v of x[g, n, c, i*s + u*d - p, j*s + v*d - p] * w[g,k,c,u,v].
//
// The same sum three times, simplest first:
//
//   direct     a thread is one output, and its loops are the definition. Each product needs two numbers from memory.
//   tiles      the sum is a product of two matrices: weights, [k][term], and patches, [term][place], where a term is a
//              (c,u,v) and a place an (n,i,j). Nobody writes the patches down: a block of 16 x 16 outputs gathers from x
//              what it needs of them, into shared memory, when it needs it (implicit GEMM).
//   registers  a thread is 8 x 8 outputs: 16 numbers from shared memory make 64 products. The next step's numbers travel
//              into registers while these are multiplied (two panels of shared memory, one barrier a step), four at a time
//              where they lie side by side. A block is 32 or 64 channels x 128 places.
//
// dw of few channels, a depthwise one above all, is a sum of another shape: a handful of outputs of very many terms each. There
//
//   terms      threads are terms: a block has nine outputs, which share what is read of the "weights" (dy), and its threads
//              go through the terms side by side. What they found is added up by shuffles and in shared memory.
//
// Pooled, both ends of the story do what often follows too: bias, ReLU and the largest of 2 x 2 windows (conv2d_pool.py). The four
// places of a window are then one thread's, four in a row, so that one number of four leaves its registers, and which it was.
//
// `tinynet explain conv2d --device cuda-emulator` counts what each of them asks of memory.
//
// Gradients are convolutions too, of other arrays, and run here: conv2d.py says which. For dw images and channels change
// places, stride and dilation as well, and the "weights" are dy; there are few outputs then and very many terms, so the terms
// are split among blocks: split s, of the blocks with blockIdx.y = s, writes its sums to y + s * y_split, and sums.cu adds them
// up in order.
//
// All arrays lie in memory as they please: strides, in elements, come with them. What lies outside of an image is 0. Each
// sum runs over its terms in order: equal inputs give equal bits.
//
// Compiled with REAL (float or double), or, for registers alone, with
//   OUTS  the channels of a block: 64, or 32 where there are no more
//   NHWC  1: channels lie side by side; 0: columns do
//   DW    1: the arrays are those of the weights' gradient
//   WIDE  1: weights are read four at a time, in NHWC patches too
//   POOL  1: ReLU and pooling follow; 2: they do, but the sums are parts of sums, which conv2d_pool_parts adds up before
#include "digits.cuh"
#include "panels.cuh"

#ifdef OUTS
#define REAL float
#else
#define NHWC 0
#define DW 0
#define POOL 0
#endif

// images x channels x rows x columns are of x; outs x channels x kernel_rows x kernel_columns of w; y has images x outs x
// y_rows x y_columns; all that for each of the groups. A split has split_terms terms (direct: channels). by_four: each four
// outputs whose first is a multiple of four lie side by side, at a multiple of 16 bytes. channels_last: y's channels lie side
// by side, which direct is told when it runs.
#define CONVOLUTION                                                                                                      \
  const REAL *__restrict__ x, long long x_group, long long x_image, long long x_channel, long long x_row,                \
      long long x_column, const REAL *__restrict__ w, long long w_group, long long w_out, long long w_channel,           \
      long long w_row, long long w_column, const REAL *__restrict__ bias, REAL *__restrict__ y, long long y_split,       \
      long long y_group, long long y_image, long long y_out, long long y_row, long long y_column, int groups,            \
      int images, int channels, int rows, int columns, int outs, int kernel_rows, int kernel_columns, int y_rows,        \
      int y_columns, int row_stride, int column_stride, int row_dilation, int column_dilation, int top, int left,        \
      int split_terms, int by_four, int channels_last

// Pooled: where the winners' places go, in the order of y, and the columns of the convolution's result, in which these count.
#define POOLED int *__restrict__ argmax, int z_columns

// What a window of four sums comes to: after bias and ReLU, and the place of the first largest if ReLU lets it through, or -1.
// Bias and ReLU may come last: they keep the order of numbers.
struct Winner {
  REAL value;
  int place;
};
__device__ __forceinline__ Winner winner_of(const REAL* sums, REAL bias, int corner, int z_columns) {
  REAL best = sums[0];
  int which = 0;
#pragma unroll
  for (int m = 1; m < 4; m++) {
    bool better = sums[m] > best || (sums[m] != sums[m] && best == best);  // the first NaN is the largest of all
    best = better ? sums[m] : best, which = better ? m : which;
  }
  best += bias;
  return {best < REAL(0) ? REAL(0) : best, best > REAL(0) ? corner + which / 2 * z_columns + which % 2 : -1};
}

// Whether (row, column) lies in the image: negative numbers are large ones without a sign.
__device__ __forceinline__ bool inside(int row, int column, int rows, int columns) {
  return unsigned(row) < unsigned(rows) && unsigned(column) < unsigned(columns);
}

// Which outputs a block computes: blocks go along the places, then over the outs, then over the groups.
struct Part {
  int place, out, group;
};
__device__ __forceinline__ Part part_of_block(int places, int outs, int wide, int high) {
  unsigned across = (places + wide - 1) / wide, down = (outs + high - 1) / high, block = blockIdx.x;
  return {int(block % across) * wide, int(block / across % down) * high, int(block / across / down)};
}

// The terms of the sum: (c,u,v), or (u,v,c) where channels lie side by side. In dw the channels are images, and do not.
constexpr bool CHANNELS_LAST = NHWC && !DW;
struct Term {
  int channel, row, column;
};
struct Terms {
  int channels, rows, columns;

  __device__ __forceinline__ Digits at(int n) const { return CHANNELS_LAST ? digits(n, columns, channels) : digits(n, rows, columns); }
  __device__ __forceinline__ void step(Digits& at, const Digits& by) const { CHANNELS_LAST ? add(at, by, columns, channels) : add(at, by, rows, columns); }
  __device__ __forceinline__ bool has(const Digits& at) const { return at.slow < (CHANNELS_LAST ? rows : channels); }
  __device__ __forceinline__ Term operator[](const Digits& at) const {
    if (CHANNELS_LAST) return {at.fast, at.slow, at.middle};
    return {at.slow, at.middle, at.fast};
  }
};

// The places of the outputs: (n,i,j), or (i,j,n) where x's images lie side by side: in dw they are channels.
constexpr bool IMAGES_LAST = NHWC && DW;
struct Spot {
  int image, row, column;
};
__device__ __forceinline__ Spot spot_of(int n, int images, int rows, int columns) {
  if (POOL) {  // four to a window
    Digits at = digits(n / 4, rows, columns);
    return {at.slow, 2 * at.middle + n % 4 / 2, 2 * at.fast + n % 2};
  }
  if (IMAGES_LAST) {
    Digits at = digits(n, columns, images);
    return {at.fast, at.slow, at.middle};
  }
  Digits at = digits(n, rows, columns);
  return {at.slow, at.middle, at.fast};
}

#ifndef OUTS
// --- direct --------------------------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(256) conv2d_direct(CONVOLUTION) {
  long long places = (long long)images * y_rows * y_columns, all_outs = (long long)groups * outs, n = blockIdx.x * 256ll + threadIdx.x;
  if (n >= places * all_outs) return;
  // A warp's outputs lie side by side: along the channels, or along the places.
  int out = int(channels_last ? n % all_outs : n / places), group = out / outs;
  Spot at = spot_of(int(channels_last ? n / all_outs : n % places), images, y_rows, y_columns);
  int first = blockIdx.y * split_terms, last = min(first + split_terms, channels);
  REAL sum = bias && blockIdx.y == 0 ? bias[out] : REAL(0);
  out %= outs;
  x += group * x_group + at.image * x_image;
  w += group * w_group + out * w_out;
  for (int c = first; c < last; c++)
    for (int u = 0; u < kernel_rows; u++)
#pragma unroll 2  // left alone, NVRTC unrolls until registers run out
      for (int v = 0; v < kernel_columns; v++) {
        int row = at.row * row_stride + u * row_dilation - top, column = at.column * column_stride + v * column_dilation - left;
        if (inside(row, column, rows, columns)) sum += x[c * x_channel + row * x_row + column * x_column] * w[c * w_channel + u * w_row + v * w_column];
      }
  y[blockIdx.y * y_split + group * y_group + at.image * y_image + out * y_out + at.row * y_row + at.column * y_column] = sum;
}

extern "C" __global__ void __launch_bounds__(256, 1) conv2d_pool_direct(CONVOLUTION, POOLED) {
  long long places = (long long)images * y_rows * y_columns, all_outs = (long long)groups * outs, n = blockIdx.x * 256ll + threadIdx.x;
  if (n >= places * all_outs) return;
  int out = int(channels_last ? n % all_outs : n / places), group = out / outs;
  Spot at = spot_of(int(channels_last ? n / all_outs : n % places), images, y_rows, y_columns);
  REAL sums[4] = {}, added = bias ? bias[out] : REAL(0);
  out %= outs;
  x += group * x_group + at.image * x_image;
  w += group * w_group + out * w_out;
  for (int c = 0; c < channels; c++)
    for (int u = 0; u < kernel_rows; u++)
#pragma unroll 1
      for (int v = 0; v < kernel_columns; v++) {
        REAL weight = w[c * w_channel + u * w_row + v * w_column];
#pragma unroll
        for (int m = 0; m < 4; m++) {
          int row = (2 * at.row + m / 2) * row_stride + u * row_dilation - top, column = (2 * at.column + m % 2) * column_stride + v * column_dilation - left;
          if (inside(row, column, rows, columns)) sums[m] += x[c * x_channel + row * x_row + column * x_column] * weight;
        }
      }
  Winner found = winner_of(sums, added, 2 * at.row * z_columns + 2 * at.column, z_columns);
  long long to = group * y_group + at.image * y_image + out * y_out + at.row * y_row + at.column * y_column;
  y[to] = found.value, argmax[to] = found.place;
}

// --- tiles ---------------------------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(256) conv2d_tiles(CONVOLUTION) {
  __shared__ REAL weights[16][16], patches[16][16];  // [out][term], [term][place]
  int places = images * y_rows * y_columns, across = threadIdx.x, down = threadIdx.y;
  Part part = part_of_block(places, outs, 16, 16);
  int out = part.out + down, place = part.place + across, first = blockIdx.y * split_terms;
  Spot at = spot_of(place, images, y_rows, y_columns);
  int row = at.row * row_stride - top, column = at.column * column_stride - left;  // its window starts there
  x += part.group * x_group + at.image * x_image;
  w += part.group * w_group + out * w_out;
  Terms terms{channels, kernel_rows, kernel_columns};
  // This thread's terms of a step: one that it brings of the weights, one of the patches.
  Digits for_w = terms.at(first + across), for_x = terms.at(first + down), step = terms.at(16);
  REAL sum = bias && blockIdx.y == 0 && out < outs ? bias[part.group * outs + out] : REAL(0);
  int last = min(first + split_terms, channels * kernel_rows * kernel_columns);
  for (int n = first; n < last; n += 16) {
    // Beyond the edges lie zeros, which add nothing. No thread may leave: all are needed at the barriers.
    Term a = terms[for_w], b = terms[for_x];
    weights[down][across] = out < outs && terms.has(for_w) ? w[a.channel * w_channel + a.row * w_row + a.column * w_column] : REAL(0);
    int h = row + b.row * row_dilation, v = column + b.column * column_dilation;
    bool there = place < places && terms.has(for_x) && inside(h, v, rows, columns);
    patches[down][across] = there ? x[b.channel * x_channel + h * x_row + v * x_column] : REAL(0);
    __syncthreads();  // the tiles are whole
    for (int t = 0; t < 16; t++) sum += weights[down][t] * patches[t][across];
    __syncthreads();  // and are not needed any more
    terms.step(for_w, step), terms.step(for_x, step);
  }
  if (out < outs && place < places)
    y[blockIdx.y * y_split + part.group * y_group + at.image * y_image + out * y_out + at.row * y_row + at.column * y_column] = sum;
}

// --- terms ---------------------------------------------------------------------------------------------------------------

constexpr int TAPS = 9;  // outputs of a block, for each lane if channels lie side by side: odd, so that lanes use all banks

// For dw alone, so without bias. Places are the taps of one image (which is one of x's channels). A block is 32 x 8 threads. With
// channels_last its lanes are 32 outs, and eight terms are read at a time; else it has one out, and 256 terms side by side.
extern "C" __global__ void __launch_bounds__(256, 3) conv2d_terms(CONVOLUTION) {
  __shared__ REAL sums[8][32 * TAPS];
  __shared__ int2 corners[TAPS];
  int lane = threadIdx.x, down = threadIdx.y, taps = y_rows * y_columns, chunks = (taps + TAPS - 1) / TAPS, all_outs = groups * outs;
  int tap = blockIdx.x % chunks * TAPS, image = blockIdx.x / chunks % images, first_out = blockIdx.x / chunks / images * (channels_last ? 32 : 1);
  if (down == 0 && lane < TAPS) {
    int row = (tap + lane) / y_columns, column = (tap + lane) % y_columns;
    corners[lane] = make_int2(tap + lane < taps ? row * row_stride - top : -(1 << 30), column * column_stride - left);
  }
  __syncthreads();
  int out = first_out + (channels_last ? lane : 0), group = out / outs, first = blockIdx.y * split_terms;
  int by = channels_last ? 8 : 256, last = min(first + split_terms, channels * kernel_rows * kernel_columns);
  int n = first + (channels_last ? down : down * 32 + lane);
  Digits at = digits(n, kernel_rows, kernel_columns), step = digits(by, kernel_rows, kernel_columns);
  const REAL *images_of = x + group * x_group + image * x_image, *weights_of = w + group * w_group + out % outs * w_out;
  REAL sum[TAPS] = {};
  if (out < all_outs)
    for (; n < last; n += by) {
      REAL weight = weights_of[at.slow * w_channel + at.middle * w_row + at.fast * w_column];
      const REAL* from = images_of + at.slow * x_channel;
      int row = at.middle * row_dilation, column = at.fast * column_dilation;
#pragma unroll
      for (int t = 0; t < TAPS; t++) {
        int h = corners[t].x + row, v = corners[t].y + column;
        if (inside(h, v, rows, columns)) sum[t] += from[h * x_row + v * x_column] * weight;
      }
      add(at, step, kernel_rows, kernel_columns);
    }
#pragma unroll
  for (int t = 0; t < TAPS; t++) {
    if (!channels_last)
      for (int half = 16; half; half /= 2) sum[t] += __shfl_down_sync(~0u, sum[t], half);
    if (channels_last || lane == 0) sums[down][lane * TAPS + t] = sum[t];
  }
  __syncthreads();
  for (int m = down * 32 + lane; m < (channels_last ? 32 : 1) * TAPS; m += 256) {
    int t = tap + m % TAPS, k = first_out + m / TAPS;
    if (t >= taps || k >= all_outs) continue;
    REAL all = 0;
    for (int row = 0; row < 8; row++) all += sums[row][m];
    y[blockIdx.y * y_split + k / outs * y_group + image * y_image + k % outs * y_out + t / y_columns * y_row + t % y_columns * y_column] = all;
  }
}

#else
// --- registers -----------------------------------------------------------------------------------------------------------

constexpr int PLACES = 128;                                  // of a block
constexpr int STEP = POOL ? 2 : 1;                           // places from one output to the next, along rows and columns
constexpr int THREADS = (OUTS / 8) * (PLACES / 8);           // 8 x 8 outputs each
constexpr int ACROSS = (CHANNELS_LAST ? OUTS : PLACES) / 8;  // of them along x, as what lies side by side in y
// Which way each operand is read. Weights lie along the terms; in dw they are dy, whose channels are the outs. Patches
// lie along the places where x's columns do, or x's channels where these are places.
constexpr bool WEIGHTS_ALONG_TERMS = !(NHWC && DW), PATCHES_ALONG_TERMS = NHWC != DW;

// How the threads share one step of an operand of so many lines (outs or places): a thread brings `count` groups of `wide`
// numbers that lie side by side, along the terms or along the lines.
template <int lines, bool along_terms, int wide> struct Share {
  static constexpr int across = (along_terms ? TERMS : lines) / wide;  // groups side by side
  static constexpr int count = lines * TERMS / THREADS / wide;
  // Every `repeat` groups a thread's term moves on by `step`. So behind its last group it is at the next step's first.
  static constexpr int repeat = along_terms ? count : across > THREADS ? across / THREADS : 1;
  static constexpr int step = along_terms ? TERMS : across > THREADS ? 1 : THREADS / across;

  static __device__ __forceinline__ int thread() { return threadIdx.y * ACROSS + threadIdx.x; }
  static __device__ __forceinline__ int line(int n) { return along_terms ? (thread() + n * THREADS) / across : (thread() + n * THREADS) % across * wide; }
  static __device__ __forceinline__ int term(int n) { return along_terms ? thread() % across * wide : (thread() + n * THREADS) / across; }

  // What a thread carried, into the panel.
  static __device__ __forceinline__ void store(const float (&held)[count * wide], Panel<lines>& panel) {
#pragma unroll
    for (int n = 0; n < count; n++) {
      const float* from = held + n * wide;
      if (wide == 4 && !along_terms) *(float4*)&panel[term(n)][line(n)] = make_float4(from[0], from[1], from[2], from[3]);
      else
#pragma unroll
        for (int k = 0; k < wide; k++) panel[term(n) + k][line(n)] = from[k];
    }
  }
};

template <int wide> __device__ __forceinline__ void load(float* to, const float* from, bool there) {
  if (wide == 4) {
    float4 four = there ? *(const float4*)from : make_float4(0, 0, 0, 0);
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
  } else to[0] = there ? *from : 0.f;
}

// What a thread carries of the weights, from memory to a panel.
struct Weights {
  static constexpr int wide = WIDE ? 4 : 1;
  using Mine = Share<OUTS, WEIGHTS_ALONG_TERMS, wide>;
  const float* start;  // of the block's first out
  int outs;            // that there are from there on
  long long out, channel, row, column;
  Terms terms;
  Digits at, step;
  float held[Mine::count * wide];

  __device__ __forceinline__ void fetch() {
#pragma unroll
    for (int n = 0; n < Mine::count; n++) {
      Term t = terms[at];
      int line = Mine::line(n);
      load<wide>(held + n * wide, start + line * out + t.channel * channel + t.row * row + t.column * column, line < outs && terms.has(at));
      if ((n + 1) % Mine::repeat == 0) terms.step(at, step);
    }
  }
};

// Where a table of the block's places has the n-th one: threads read them one by one or every fourth, and find them in
// different banks either way.
constexpr int TABLE = PLACES + 4 * 4;
__device__ __forceinline__ int slot(int n) { return n % 4 * (TABLE / 4) + n / 4; }
constexpr int NOWHERE = -(1 << 30);  // the row of a place that there is not: no tap of it lies in the image

// Where the windows of the block's places start in x: tables of elements from its start on, and of (row, column).
struct Windows {
  const long long* offsets;
  const int2* corners;
};

// What a thread carries of the patches.
struct Patches {
  static constexpr int wide = WIDE && NHWC ? 4 : 1;
  using Mine = Share<PLACES, PATCHES_ALONG_TERMS, wide>;
  // Along the places a thread has the same one or two all the time; along the terms many, which it looks up.
  static constexpr int own = PATCHES_ALONG_TERMS ? 1 : Mine::repeat;
  const float* x;
  int rows, columns, row_dilation, column_dilation;
  long long channel, row, column;
  Terms terms;
  Digits at, step;
  long long offsets[own];
  int2 corners[own];
  float held[Mine::count * wide];

  __device__ __forceinline__ void fetch(const Windows& windows) {
#pragma unroll
    for (int n = 0; n < Mine::count; n++) {
      Term t = terms[at];
      int down = t.row * row_dilation, right = t.column * column_dilation;
      int2 corner = PATCHES_ALONG_TERMS ? windows.corners[slot(Mine::line(n))] : corners[n % own];
      long long offset = PATCHES_ALONG_TERMS ? windows.offsets[slot(Mine::line(n))] : offsets[n % own];
      bool there = terms.has(at) && inside(corner.x + down, corner.y + right, rows, columns);
      load<wide>(held + n * wide, x + offset + t.channel * channel + down * row + right * column, there);
      if ((n + 1) % Mine::repeat == 0) terms.step(at, step);
    }
  }
};

// A least number of blocks for dw, which NVRTC, left alone (0), would make spill so that three fit on a multiprocessor.
#if POOL
extern "C" __global__ void __launch_bounds__(THREADS, DW) conv2d_pool_registers(CONVOLUTION, POOLED) {
#else
extern "C" __global__ void __launch_bounds__(THREADS, DW) conv2d_registers(CONVOLUTION) {
#endif
  __shared__ __align__(16) Panel<OUTS> weight_panels[2];
  __shared__ __align__(16) Panel<PLACES> patch_panels[2];
  __shared__ long long x_offsets[TABLE], y_offsets[TABLE];
  __shared__ int2 corners[TABLE];
  __shared__ float biases[OUTS];
#if POOL
  __shared__ int corners_of_windows[PLACES / 4];
#endif
  int places = images * y_rows * y_columns * (POOL ? 4 : 1);
  Part part = part_of_block(places, outs, PLACES, OUTS);
  for (int n = Patches::Mine::thread(); n < PLACES; n += THREADS) {
    Spot at = spot_of(part.place + n, images, y_rows, y_columns);
    int row = at.row * row_stride - top, column = at.column * column_stride - left;
    x_offsets[slot(n)] = at.image * x_image + row * x_row + column * x_column;
    corners[slot(n)] = make_int2(part.place + n < places ? row : NOWHERE, column);
    y_offsets[slot(n)] = at.image * y_image + at.row / STEP * y_row + at.column / STEP * y_column;
#if POOL
    if (n % 4 == 0) corners_of_windows[n / 4] = at.row * z_columns + at.column;
#endif
    if (n < OUTS) biases[n] = bias && blockIdx.y == 0 && part.out + n < outs ? bias[part.group * outs + part.out + n] : 0.f;
  }
  __syncthreads();

  Terms terms{channels, kernel_rows, kernel_columns};
  int first = blockIdx.y * split_terms, last = min(first + split_terms, channels * kernel_rows * kernel_columns);
  using W = Weights::Mine;
  using X = Patches::Mine;
  Weights for_w{w + part.group * w_group + part.out * w_out, outs - part.out, w_out, w_channel, w_row, w_column, terms, terms.at(first + W::term(0)), terms.at(W::step)};
  Windows windows{x_offsets, corners};
  Patches for_x{x + part.group * x_group, rows, columns, row_dilation, column_dilation, x_channel, x_row, x_column, terms, terms.at(first + X::term(0)), terms.at(X::step)};
#pragma unroll
  for (int n = 0; n < Patches::own; n++) for_x.offsets[n] = x_offsets[slot(X::line(n))], for_x.corners[n] = corners[slot(X::line(n))];
  int out = 4 * (CHANNELS_LAST ? threadIdx.x : threadIdx.y), place = 4 * (CHANNELS_LAST ? threadIdx.y : threadIdx.x);
  float sum[8][8] = {};  // [out][place]
  for_w.fetch(), for_x.fetch(windows);
  for (int n = first, now = 0; n < last; n += TERMS, now ^= 1) {
    W::store(for_w.held, weight_panels[now]), X::store(for_x.held, patch_panels[now]);
    // One barrier is enough: who passes it has multiplied from the other panels, which are the next to be stored to.
    __syncthreads();
    if (n + TERMS < last) for_w.fetch(), for_x.fetch(windows);  // on their way meanwhile
    multiply<OUTS, PLACES>(weight_panels[now], patch_panels[now], out / 4, place / 4, sum);
  }

#if POOL
  // Sixteen windows: of each half of the places one, for two times four outs.
  long long begin = part.group * y_group + part.out * y_out;
  if (POOL == 1) y += begin, argmax += begin;
  else y += blockIdx.y * y_split + begin;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int p = place + half * (PLACES / 2);
    if (part.place + p >= places) break;
#pragma unroll
    for (int four = 0; four < 8; four += 4) {
      int k = out + four / 4 * (OUTS / 2);
      if (part.out + k >= outs) break;
      long long to = k * y_out + y_offsets[slot(p)];
#if POOL == 2
#pragma unroll
      for (int m = 0; m < 4; m++) {
        if (NHWC && by_four) {
          *(float4*)(y + to + m * groups * outs) = make_float4(sum[four][4 * half + m], sum[four + 1][4 * half + m], sum[four + 2][4 * half + m], sum[four + 3][4 * half + m]);
          continue;
        }
        if (NHWC) {
#pragma unroll
          for (int e = 0; e < 4; e++)
            if (part.out + k + e < outs) y[to + m * groups * outs + e * y_out] = sum[four + e][4 * half + m];
          continue;
        }
        const float* window = sum[four + m] + 4 * half;
        if (part.out + k + m < outs) *(float4*)(y + to + m * y_out) = make_float4(window[0], window[1], window[2], window[3]);
      }
#else
      Winner found[4];
#pragma unroll
      for (int e = 0; e < 4; e++) found[e] = winner_of(sum[four + e] + 4 * half, biases[k + e], corners_of_windows[p / 4], z_columns);
      if (CHANNELS_LAST && by_four) {
        *(float4*)(y + to) = make_float4(found[0].value, found[1].value, found[2].value, found[3].value);
        *(int4*)(argmax + to) = make_int4(found[0].place, found[1].place, found[2].place, found[3].place);
        continue;
      }
#pragma unroll
      for (int e = 0; e < 4; e++)
        if (part.out + k + e < outs) y[to + e * y_out] = found[e].value, argmax[to + e * y_out] = found[e].place;
#endif
    }
  }
#else
  // Sixteen times four outputs: of one place and four outs, or of one out and four places.
  y += blockIdx.y * y_split + part.group * y_group + part.out * y_out;
#pragma unroll
  for (int n = 0; n < 16; n++) {
    int one = n / 2, four = n % 2 * 4;  // in sum
    int near = one / 4 * ((CHANNELS_LAST ? PLACES : OUTS) / 2) + one % 4, far = n % 2 * ((CHANNELS_LAST ? OUTS : PLACES) / 2);
#pragma unroll
    for (int e = 0; e < 4; e++) {
      int k = out + (CHANNELS_LAST ? far + e : near), p = place + (CHANNELS_LAST ? near : far + e);
      if (part.out + k >= outs || part.place + p >= places) break;
      float* to = y + k * y_out + y_offsets[slot(p)];
      float made[4];
#pragma unroll
      for (int m = 0; m < 4; m++) made[m] = CHANNELS_LAST ? sum[four + m][one] + biases[k - e + m] : sum[one][four + m] + biases[k];
      if (by_four) {
        *(float4*)to = make_float4(made[0], made[1], made[2], made[3]);
        break;
      }
      *to = made[e];
    }
  }
#endif
}

#if POOL == 2
// What the windows of sums come to that were split, in the order of y. A part has four sums of each window: side by side, or, where
// channels lie side by side, a row of channels for each of the four.
extern "C" __global__ void __launch_bounds__(256) conv2d_pool_parts(const float* __restrict__ parts, int count, int windows, const float* __restrict__ bias, int outs,
                                                                    int rows, int columns, int z_columns, float* __restrict__ y, int* __restrict__ argmax) {
  int n = blockIdx.x * 256 + threadIdx.x;
  if (n >= windows) return;
  float sums[4] = {};
  parts += NHWC ? n / outs * 4ll * outs + n % outs : 4ll * n;
  for (int part = 0; part < count; part++, parts += 4ll * windows) {
    if (NHWC) {
#pragma unroll
      for (int m = 0; m < 4; m++) sums[m] += parts[m * outs];
    } else {
      float4 four = *(const float4*)parts;
      sums[0] += four.x, sums[1] += four.y, sums[2] += four.z, sums[3] += four.w;
    }
  }
  Digits at = digits(NHWC ? n / outs : n, rows, columns);
  Winner found = winner_of(sums, bias ? bias[(NHWC ? n : at.slow) % outs] : 0.f, 2 * at.middle * z_columns + 2 * at.fast, z_columns);
  y[n] = found.value, argmax[n] = found.place;
}
#endif
#endif
