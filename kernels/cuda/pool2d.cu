// Pooling on a GPU, and its gradients. All of it is bound by memory: what counts is how often a number is asked for, and how
// many of those that move with it are wanted.
//
//   max_pool2d, avg_pool2d
//     simple     a thread is one output, and goes through its window. Neighbours read numbers that lie a stride apart: with
//                a stride of 2, half of what moves for a request is not for it; and where windows overlap, all is read again.
//     separable  the largest (or the sum) of a window is that of its columns. A block first goes down: a thread is one column
//                of x, whose neighbours lie side by side in memory, and leaves what it found in shared memory. Then across:
//                a thread is one output. kh + kw steps instead of kh * kw.
//   avg_pool2d_dx
//     simple     a thread is one element of dx, and sums over the windows that hold it.
//     separable  the same sum, first down, then across: for windows that overlap.
//   max_pool2d_dx, which gets argmax, and is not told what the windows were
//     simple     a thread is one element of dx, and goes through all outputs of its plane for those that took it.
//     near       they lie near. A first kernel finds how far argmax lies from where a guess of the stride has it; then a
//                thread goes through the outputs that are no farther. Any guess is right; a good one is fast.
//
// `tinynet explain max_pool2d --device cuda-emulator` counts what they ask of memory.
//
// Sums run in one order, whatever the order of threads: equal inputs give equal bits. No two threads add to one number; the
// only atomics are maxima of whole numbers, whose order changes nothing.
//
// Inputs lie in memory as they please: strides, in elements, come with them. Outputs are contiguous. Both layouts are one
// here, (image, outer, row, column, inner): NCHW has one inner channel, NHWC one outer.
//
// Compiled with REAL: float or double.
#include "division.cuh"

constexpr int THREADS = 256;

// An input: where it starts, and how far apart its images, channels, rows (down) and columns (right) are.
#define IMAGES(T, name)                                                                                                  \
  const T *__restrict__ name, long long name##_image, long long name##_channel, long long name##_down, long long name##_right
#define AT(name, spot) (name + spot.image * name##_image + spot.channel * name##_channel)

// The shape of an output, each extent with its divisor; or, in max_pool2d_dx_reach, that of argmax.
#define SHAPE int outer, long long by_outer, int rows, long long by_rows, int columns, long long by_columns, int inner, long long by_inner
#define THE_SHAPE outer, by_outer, rows, by_rows, columns, by_columns, inner, by_inner

// Of the windows: kernel size, stride, top and left padding.
#define WINDOW int kh, int kw, int sh, int sw, int top, int left
#define THE_WINDOW kh, kw, sh, sw, top, left
// What the windows of a forward kernel go over: dilation, and the rows and columns of x.
#define OVER int dh, int dw, int x_rows, int x_columns
#define THE_OVER dh, dw, x_rows, x_columns

struct Spot {
  int image, channel, row, column;
};
__device__ __forceinline__ Spot spot_of(int n, SHAPE) {
  int a = over(n, by_inner), b = over(a, by_columns), c = over(b, by_rows), image = over(c, by_outer);
  return {image, n - a * inner + c - image * outer, b - c * rows, a - b * columns};
}

// --- what a window is reduced to -----------------------------------------------------------------------------------------

// The largest, and its place: the first in row-major order among equals. A NaN is larger than any number.
struct Largest {
  REAL value = -__int_as_float(0x7f800000);  // minus infinity
  int place = -1;                            // none yet

  __device__ __forceinline__ void meet(REAL other, int at) {
    bool nan = other != other, was_nan = value != value;
    bool larger = other > value || (nan && !was_nan), equal = other == value || (nan && was_nan);
    if (place < 0 || larger || (equal && at < place)) value = other, place = at;
  }
  // What was found in a column lies in shared memory with its row.
  __device__ __forceinline__ void leave(REAL* values, int* places, int at) const { values[at] = value, places[at] = place; }
  __device__ __forceinline__ void meet_column(const REAL* values, const int* places, int at, int column, int x_columns) {
    if (places[at] >= 0) meet(values[at], places[at] * x_columns + column);
  }
};

struct Sum {
  REAL value = 0;

  __device__ __forceinline__ void meet(REAL other, int) { value += other; }
  __device__ __forceinline__ void leave(REAL* values, int*, int at) const { values[at] = value; }
  __device__ __forceinline__ void meet_column(const REAL* values, const int*, int at, int, int) { value += values[at]; }
};

// The rows and columns that an average counts: of the image, or of the padded one.
#define COUNTED int first_row, int end_row, int first_column, int end_column
#define THE_COUNTED first_row, end_row, first_column, end_column

__device__ __forceinline__ int counted(int i, int k, int stride, int before, int first, int end) {
  int start = i * stride - before;
  return max(min(start + k, end) - max(start, first), 0);
}
// The number that window (i, j) is divided by; 1 for one that holds nothing.
__device__ __forceinline__ REAL count_of(int i, int j, WINDOW, COUNTED) {
  long long places = (long long)counted(i, kh, sh, top, first_row, end_row) * counted(j, kw, sw, left, first_column, end_column);
  return places ? REAL(places) : REAL(1);
}

// --- simple --------------------------------------------------------------------------------------------------------------

template <class Found>
__device__ __forceinline__ Found window_at(Spot at, const REAL* x, long long x_down, long long x_right, WINDOW, OVER) {
  Found found;
  for (int u = 0; u < kh; u++) {
    int h = at.row * sh + u * dh - top;
    if (h < 0 || h >= x_rows) continue;
#pragma unroll 2
    for (int v = 0; v < kw; v++) {
      int w = at.column * sw + v * dw - left;
      if (w >= 0 && w < x_columns) found.meet(x[h * x_down + w * x_right], h * x_columns + w);
    }
  }
  return found;
}

extern "C" __global__ void __launch_bounds__(THREADS) max_pool2d_simple(IMAGES(REAL, x), REAL* y, int* argmax, int count, SHAPE, WINDOW, OVER) {
  int n = blockIdx.x * THREADS + threadIdx.x;
  if (n >= count) return;
  Spot at = spot_of(n, THE_SHAPE);
  Largest best = window_at<Largest>(at, AT(x, at), x_down, x_right, THE_WINDOW, THE_OVER);
  y[n] = best.value, argmax[n] = best.place;
}

extern "C" __global__ void __launch_bounds__(THREADS) avg_pool2d_simple(IMAGES(REAL, x), REAL* y, int count, SHAPE, WINDOW, OVER, COUNTED) {
  int n = blockIdx.x * THREADS + threadIdx.x;
  if (n >= count) return;
  Spot at = spot_of(n, THE_SHAPE);
  Sum sum = window_at<Sum>(at, AT(x, at), x_down, x_right, THE_WINDOW, THE_OVER);
  y[n] = sum.value / count_of(at.row, at.column, THE_WINDOW, THE_COUNTED);
}

// --- separable -----------------------------------------------------------------------------------------------------------

// A block makes a part of the output: `lines` of its `all` rows (of all images and channels: numbered through), `wide`
// columns, `deep` inner channels; all parts of a line are across * layers blocks. It goes down `span` columns of the input.
#define PART                                                                                                             \
  int all, int lines, int wide, int deep, int span, int across, int layers, long long by_across, long long by_layers,    \
      long long by_deep, long long by_wide_deep, long long by_span_deep
#define THE_PART all, lines, wide, deep, span, across, layers, by_across, by_layers, by_deep, by_wide_deep, by_span_deep
constexpr int ROOM = 2048;  // numbers in shared memory; pool2d.py chooses parts that fit

struct Corner {  // of a block's part
  int line, column, channel;
};
__device__ __forceinline__ Corner corner_of_block(PART) {
  int a = over(blockIdx.x, by_layers), b = over(a, by_across);
  return {b * lines, (a - b * across) * wide, (int(blockIdx.x) - a * layers) * deep};
}

// The n-th number of some lines of `length`: its line, its place in that, which is that of a column and a channel.
struct Inside {
  int line, place, column, channel;
};
__device__ __forceinline__ Inside inside_of(int n, int length, long long by_length, int deep, long long by_deep) {
  int line = over(n, by_length), place = n - line * length, column = over(place, by_deep);
  return {line, place, column, place - column * deep};
}

// Where a line of the output is: its image and outer channel, and its row. The column is not known.
__device__ __forceinline__ Spot spot_of_line(int line, SHAPE) {
  int plane = over(line, by_rows), image = over(plane, by_outer);
  return {image, plane - image * outer, line - plane * rows, 0};
}

// Shared memory keeps a line's columns sorted by their remainder of the stride, `gap` apart, so that the columns of
// neighbouring outputs are neighbours too. `pitch` is the length of a line; both are such that a warp meets each bank once.
#define SHELVES int pitch, int gap, long long by_sw
#define THE_SHELVES pitch, gap, by_sw
__device__ __forceinline__ int shelf_of(int column, int deep, int sw, int gap, long long by_sw) {
  int step = over(column, by_sw);
  return (column - step * sw) * gap + step * deep;
}

template <class Found>
__device__ __forceinline__ void go_down(REAL* values, int* places, IMAGES(REAL, x), Corner corner, SHAPE, WINDOW, OVER, PART, SHELVES) {
  for (int n = threadIdx.x; n < lines * span * deep; n += THREADS) {
    Inside in = inside_of(n, span * deep, by_span_deep, deep, by_deep);
    int line = corner.line + in.line, channel = corner.channel + in.channel, w = corner.column * sw - left + in.column;
    Found found;
    if (line < all && channel < inner && w >= 0 && w < x_columns) {
      Spot at = spot_of_line(line, THE_SHAPE);
      const REAL* from = AT(x, at) + channel * x_channel + w * x_right;
      for (int u = 0, h = at.row * sh - top; u < kh; u++, h += dh)
        if (h >= 0 && h < x_rows) found.meet(from[h * x_down], h);
    }
    found.leave(values, places, in.line * pitch + shelf_of(in.column, deep, sw, gap, by_sw) + in.channel);
  }
}

template <class Found>
__device__ __forceinline__ Found go_across(const REAL* values, const int* places, Corner corner, Inside in, WINDOW, OVER, PART, SHELVES) {
  Found found;
  for (int v = 0; v < kw; v++) {
    int w = (corner.column + in.column) * sw - left + v * dw;
    found.meet_column(values, places, in.line * pitch + in.place + shelf_of(v * dw, deep, sw, gap, by_sw), w, x_columns);
  }
  return found;
}

extern "C" __global__ void __launch_bounds__(THREADS) max_pool2d_separable(IMAGES(REAL, x), REAL* y, int* argmax, SHAPE, WINDOW, OVER, PART, SHELVES) {
  __shared__ REAL values[ROOM];
  __shared__ int places[ROOM];
  Corner corner = corner_of_block(THE_PART);
  go_down<Largest>(values, places, x, x_image, x_channel, x_down, x_right, corner, THE_SHAPE, THE_WINDOW, THE_OVER, THE_PART, THE_SHELVES);
  __syncthreads();
  for (int n = threadIdx.x; n < lines * wide * deep; n += THREADS) {
    Inside in = inside_of(n, wide * deep, by_wide_deep, deep, by_deep);
    int line = corner.line + in.line, column = corner.column + in.column, channel = corner.channel + in.channel;
    if (line >= all || column >= columns || channel >= inner) continue;
    Largest best = go_across<Largest>(values, places, corner, in, THE_WINDOW, THE_OVER, THE_PART, THE_SHELVES);
    int to = (line * columns + column) * inner + channel;
    y[to] = best.value, argmax[to] = best.place;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) avg_pool2d_separable(IMAGES(REAL, x), REAL* y, SHAPE, WINDOW, OVER, COUNTED, PART, SHELVES) {
  __shared__ REAL values[ROOM];
  Corner corner = corner_of_block(THE_PART);
  go_down<Sum>(values, nullptr, x, x_image, x_channel, x_down, x_right, corner, THE_SHAPE, THE_WINDOW, THE_OVER, THE_PART, THE_SHELVES);
  __syncthreads();
  for (int n = threadIdx.x; n < lines * wide * deep; n += THREADS) {
    Inside in = inside_of(n, wide * deep, by_wide_deep, deep, by_deep);
    int line = corner.line + in.line, column = corner.column + in.column, channel = corner.channel + in.channel;
    if (line >= all || column >= columns || channel >= inner) continue;
    Sum sum = go_across<Sum>(values, nullptr, corner, in, THE_WINDOW, THE_OVER, THE_PART, THE_SHELVES);
    y[(line * columns + column) * inner + channel] = sum.value / count_of(spot_of_line(line, THE_SHAPE).row, column, THE_WINDOW, THE_COUNTED);
  }
}

// --- avg_pool2d_dx -------------------------------------------------------------------------------------------------------

// Of dy: its rows and columns; and the divisors of the strides.
#define BACK int dy_rows, int dy_columns, long long by_sh, long long by_sw
#define THE_BACK dy_rows, dy_columns, by_sh, by_sw

struct Range {
  int first, last;
};
// The windows, of `n` along an axis, that hold the places from `first` to `last`.
__device__ __forceinline__ Range windows_at(int first, int last, int k, int stride, long long by_stride, int before, int n) {
  return {over(max(first + before - k + stride, 0), by_stride), min(over(last + before, by_stride), n - 1)};
}

extern "C" __global__ void __launch_bounds__(THREADS) avg_pool2d_dx_simple(IMAGES(REAL, dy), REAL* dx, int count, SHAPE, WINDOW, COUNTED, BACK) {
  int n = blockIdx.x * THREADS + threadIdx.x;
  if (n >= count) return;
  Spot at = spot_of(n, THE_SHAPE);
  Range down = windows_at(at.row, at.row, kh, sh, by_sh, top, dy_rows), right = windows_at(at.column, at.column, kw, sw, by_sw, left, dy_columns);
  dy = AT(dy, at);
  REAL sum = 0;
  for (int i = down.first; i <= down.last; i++)
#pragma unroll 1
    for (int j = right.first; j <= right.last; j++) sum += dy[i * dy_down + j * dy_right] / count_of(i, j, THE_WINDOW, THE_COUNTED);
  dx[n] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) avg_pool2d_dx_separable(IMAGES(REAL, dy), REAL* dx, SHAPE, WINDOW, COUNTED, BACK, PART) {
  __shared__ REAL values[ROOM];  // [line][column of dy][channel]
  Corner corner = corner_of_block(THE_PART);
  int first = windows_at(corner.column, corner.column, kw, sw, by_sw, left, dy_columns).first;
  for (int n = threadIdx.x; n < lines * span * deep; n += THREADS) {
    Inside in = inside_of(n, span * deep, by_span_deep, deep, by_deep);
    int line = corner.line + in.line, channel = corner.channel + in.channel, j = first + in.column;
    REAL sum = 0;
    if (line < all && channel < inner && j < dy_columns) {
      Spot at = spot_of_line(line, THE_SHAPE);
      Range down = windows_at(at.row, at.row, kh, sh, by_sh, top, dy_rows);
      const REAL* from = AT(dy, at) + channel * dy_channel + j * dy_right;
      for (int i = down.first; i <= down.last; i++) sum += from[i * dy_down] / count_of(i, j, THE_WINDOW, THE_COUNTED);
    }
    values[n] = sum;
  }
  __syncthreads();
  for (int n = threadIdx.x; n < lines * wide * deep; n += THREADS) {
    Inside in = inside_of(n, wide * deep, by_wide_deep, deep, by_deep);
    int line = corner.line + in.line, column = corner.column + in.column, channel = corner.channel + in.channel;
    if (line >= all || column >= columns || channel >= inner) continue;
    Range right = windows_at(column, column, kw, sw, by_sw, left, dy_columns);
    REAL sum = 0;
    for (int j = right.first; j <= right.last; j++) sum += values[(in.line * span + j - first) * deep + in.channel];
    dx[(line * columns + column) * inner + channel] = sum;
  }
}

// --- max_pool2d_dx -------------------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(THREADS) max_pool2d_dx_simple(IMAGES(REAL, dy), IMAGES(int, argmax), REAL* dx, int count, SHAPE, int dy_rows, int dy_columns) {
  int n = blockIdx.x * THREADS + threadIdx.x;
  if (n >= count) return;
  Spot at = spot_of(n, THE_SHAPE);
  int place = at.row * columns + at.column;
  dy = AT(dy, at), argmax = AT(argmax, at);
  REAL sum = 0;
  for (int i = 0; i < dy_rows; i++)
#pragma unroll 1
    for (int j = 0; j < dy_columns; j++)
      if (argmax[i * argmax_down + j * argmax_right] == place) sum += dy[i * dy_down + j * dy_right];
  dx[n] = sum;
}

// reach, of zeros before: how far argmax lies below, above, right and left of where the guess has it, a stride of sh and sw.
extern "C" __global__ void __launch_bounds__(THREADS) max_pool2d_dx_reach(IMAGES(int, argmax), int* reach, int count, SHAPE, int sh, int sw, int x_columns, long long by_x_columns) {
  __shared__ int most[4];
  if (threadIdx.x < 4) most[threadIdx.x] = 0;
  __syncthreads();
  int far[4] = {};
  for (int n = blockIdx.x * THREADS + threadIdx.x; n < count; n += gridDim.x * THREADS) {
    Spot at = spot_of(n, THE_SHAPE);
    int place = AT(argmax, at)[at.row * argmax_down + at.column * argmax_right];
    if (place < 0) continue;  // its window held nothing
    int row = over(place, by_x_columns), below = row - at.row * sh, right = place - row * x_columns - at.column * sw;
    far[0] = max(far[0], below), far[1] = max(far[1], -below), far[2] = max(far[2], right), far[3] = max(far[3], -right);
  }
#pragma unroll
  for (int k = 0; k < 4; k++) {
#pragma unroll
    for (int flip = 16; flip; flip /= 2) far[k] = max(far[k], __shfl_xor_sync(~0u, far[k], flip));
    if (threadIdx.x % 32 == 0) atomicMax(&most[k], far[k]);
  }
  __syncthreads();
  if (threadIdx.x < 4) atomicMax(&reach[threadIdx.x], most[threadIdx.x]);
}

// The outputs, of n along an axis, whose place may be `at`.
__device__ __forceinline__ Range near(int at, int after, int before, int stride, long long by_stride, int n) {
  return {over(max(at - after, 0) + stride - 1, by_stride), over(min((unsigned)at + before, (unsigned)(n - 1) * stride), by_stride)};
}

extern "C" __global__ void __launch_bounds__(THREADS) max_pool2d_dx_near(IMAGES(REAL, dy), IMAGES(int, argmax), REAL* dx, const int* reach, int count, SHAPE, int sh, int sw, BACK) {
  int n = blockIdx.x * THREADS + threadIdx.x;
  if (n >= count) return;
  Spot at = spot_of(n, THE_SHAPE);
  int place = at.row * columns + at.column;
  Range down = near(at.row, reach[0], reach[1], sh, by_sh, dy_rows), right = near(at.column, reach[2], reach[3], sw, by_sw, dy_columns);
  dy = AT(dy, at), argmax = AT(argmax, at);
  REAL sum = 0;
  for (int i = down.first; i <= down.last; i++)
#pragma unroll 1
    for (int j = right.first; j <= right.last; j++)
      if (argmax[i * argmax_down + j * argmax_right] == place) sum += dy[i * dy_down + j * dy_right];
  dx[n] = sum;
}
