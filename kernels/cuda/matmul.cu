// Matrix product on a GPU: c[m,i,j] = sum over t of a[m,i,t] * b[m,t,j].
//
// The same sum five times. Each variant takes away what the one before waits for:
//
//   naive      a thread is one element of c. Each product needs two numbers from memory: memory decides.
//   tiles      a block is 16 x 16 elements. What its threads share they read once, into shared memory: 16 times less.
//   registers  a thread is 4 x 4 elements. Eight numbers from shared memory make 16 products instead of one.
//   vectors    a thread is 8 x 8 elements, and all moves are four numbers wide. The next terms travel from memory into
//              registers while these are multiplied (double buffering: two panels of shared memory, one barrier a step).
//   async      as vectors, but copies go past the registers and are two steps ahead (cp.async, from sm_80 on).
//
// A dense layer has few rows and many terms: few blocks, each with a long way to go. There vectors and async split the terms
// among more blocks: split s writes its sums to c + s * c_split, and sums.cu adds them up in order.
//
// `tinynet explain matmul --device cuda-emulator` counts what each of them asks of memory.
//
// All inputs lie in memory as they please: strides, in elements, come with them. c is contiguous. The first three read
// uncoalesced where rows don't lie side by side; vectors and async have a form for each way an operand may lie. Sums run
// over t in order, by fused multiply-adds: equal inputs give equal bits.
//
// Compiled with REAL (float or double), or, for vectors and async alone, with
//   TILE           rows and columns of c in a block: 128, or 64 where there would be too few blocks
//   A_ALONG_TERMS  1: a[i, :] lies side by side; 0: a[:, i]
//   B_ALONG_TERMS  1: b[:, j] lies side by side, as a dense layer's weights do; 0: b[t, :]
//   WIDE           1: four numbers at a time, since all rows start at multiples of 16 bytes
#include "async_copy.cuh"
#include "panels.cuh"

#ifdef TILE
#define REAL float
#endif

#define PRODUCT                                                                                                          \
  const REAL *__restrict__ a, long long a_batch, long long a_row, long long a_term, const REAL *__restrict__ b,          \
      long long b_batch, long long b_term, long long b_column, REAL *__restrict__ c, int rows, int columns, int terms

// Which part of c a block computes: blocks go along the columns, then down the rows, then over the batch. One number
// holds all three, since a grid's second and third extents end at 65535.
struct Part {
  long long batch;
  int row, column;
};
__device__ __forceinline__ Part part_of_block(int rows, int columns, int high, int wide) {
  unsigned across = (columns + wide - 1) / wide, down = (rows + high - 1) / high;
  return {blockIdx.x / across / down, int(blockIdx.x / across % down) * high, int(blockIdx.x % across) * wide};
}

#ifndef TILE
// --- naive ---------------------------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(256) matmul_naive(PRODUCT) {
  Part part = part_of_block(rows, columns, 8, 32);
  int i = part.row + threadIdx.y, j = part.column + threadIdx.x;  // a warp: 32 columns of one row
  if (i >= rows || j >= columns) return;
  a += part.batch * a_batch + i * a_row;
  b += part.batch * b_batch + j * b_column;
  REAL sum = 0;
  for (int t = 0; t < terms; t++) sum += a[t * a_term] * b[t * b_term];
  c[(part.batch * rows + i) * columns + j] = sum;
}

// --- tiles ---------------------------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(256) matmul_tiles(PRODUCT) {
  __shared__ REAL a_tile[16][16], b_tile[16][16];
  Part part = part_of_block(rows, columns, 16, 16);
  int x = threadIdx.x, y = threadIdx.y, i = part.row + y, j = part.column + x;
  a += part.batch * a_batch;
  b += part.batch * b_batch;
  REAL sum = 0;
  for (int first = 0; first < terms; first += 16) {
    // Beyond the edges lie zeros, which add nothing. No thread may leave: all are needed at the barriers.
    a_tile[y][x] = i < rows && first + x < terms ? a[i * a_row + (first + x) * a_term] : REAL(0);
    b_tile[y][x] = j < columns && first + y < terms ? b[(first + y) * b_term + j * b_column] : REAL(0);
    __syncthreads();  // the tiles are whole
    for (int t = 0; t < 16; t++) sum += a_tile[y][t] * b_tile[t][x];
    __syncthreads();  // and are not needed any more
  }
  if (i < rows && j < columns) c[(part.batch * rows + i) * columns + j] = sum;
}

// --- registers -----------------------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(256) matmul_registers(PRODUCT) {
  // a's tile is transposed, [term][row]. The rows are longer than what they hold: so the 16 terms x 2 rows of a, or
  // 2 terms x 16 columns of b, that a warp stores at once lie in 32 different banks.
  __shared__ REAL a_tile[16][64 + 2], b_tile[16][64 + 16];
  Part part = part_of_block(rows, columns, 64, 64);
  int x = threadIdx.x, y = threadIdx.y;
  a += part.batch * a_batch;
  b += part.batch * b_batch;
  REAL sum[4][4] = {};
  for (int first = 0; first < terms; first += 16) {
    for (int n = 0; n < 4; n++) {
      int i = part.row + y + 16 * n, j = part.column + x + 16 * n;
      a_tile[x][y + 16 * n] = i < rows && first + x < terms ? a[i * a_row + (first + x) * a_term] : REAL(0);
      b_tile[y][x + 16 * n] = j < columns && first + y < terms ? b[(first + y) * b_term + j * b_column] : REAL(0);
    }
    __syncthreads();
#pragma unroll
    for (int t = 0; t < 16; t++) {
      REAL left[4], right[4];
#pragma unroll
      for (int n = 0; n < 4; n++) left[n] = a_tile[t][y + 16 * n], right[n] = b_tile[t][x + 16 * n];
#pragma unroll
      for (int n = 0; n < 16; n++) sum[n / 4][n % 4] += left[n / 4] * right[n % 4];
    }
    __syncthreads();
  }
#pragma unroll
  for (int n = 0; n < 16; n++) {
    int i = part.row + y + n / 4 * 16, j = part.column + x + n % 4 * 16;
    if (i < rows && j < columns) c[(part.batch * rows + i) * columns + j] = sum[n / 4][n % 4];
  }
}

#else
// --- what vectors and async share ----------------------------------------------------------------------------------------

constexpr int THREADS = (TILE / 8) * (TILE / 8);  // 8 x 8 elements each
constexpr int EACH = TILE * TERMS / THREADS;      // numbers of an operand that a thread brings in a step

// Split s is that of the blocks with blockIdx.y = s. It has split_terms terms, a multiple of TERMS.
#define SPLIT_PRODUCT PRODUCT, int split_terms, long long c_split

// An operand as its block sees it: from the block's first line and its split's first term on.
struct Operand {
  const float* start;
  long long line, term;  // strides
  int lines, terms;      // that there are
};

// Where the n-th group of `wide` numbers of a step lies: side by side in memory along the terms, or along the lines.
struct Spot {
  int line, term;
};
template <bool along_terms, int wide> __device__ __forceinline__ Spot spot(int n) {
  if (along_terms) return {n / (TERMS / wide), n % (TERMS / wide) * wide};
  return {n % (TILE / wide) * wide, n / (TILE / wide)};
}

__device__ __forceinline__ void write(float* c, const Part& part, int rows, int columns, const float (&sum)[8][8]) {
  c += part.batch * rows * columns;
#pragma unroll
  for (int n = 0; n < 16; n++) {
    int i = part.row + n / 8 * (TILE / 2) + threadIdx.y * 4 + n / 2 % 4, j = part.column + n % 2 * (TILE / 2) + threadIdx.x * 4;
    const float* four = &sum[n / 2][n % 2 * 4];
    if (i >= rows || j >= columns) continue;
    float* to = c + (long long)i * columns + j;
    if (WIDE) *(float4*)to = make_float4(four[0], four[1], four[2], four[3]);
    else
#pragma unroll
      for (int k = 0; k < 4; k++)
        if (j + k < columns) to[k] = four[k];
  }
}

// --- vectors -------------------------------------------------------------------------------------------------------------

// What a thread carries from memory to a panel.
template <bool along_terms> struct Carried {
  static constexpr int wide = WIDE ? 4 : 1;
  float held[EACH];

  __device__ __forceinline__ void fetch(const Operand& from, int first) {
    int thread = threadIdx.y * (TILE / 8) + threadIdx.x;
#pragma unroll
    for (int n = 0; n < EACH / wide; n++) {
      Spot at = spot<along_terms, wide>(thread + n * THREADS);
      int term = first + at.term;
      const float* p = from.start + at.line * from.line + term * from.term;
      float* to = held + n * wide;
      bool inside = at.line + (along_terms ? 1 : wide) <= from.lines && term + (along_terms ? wide : 1) <= from.terms;
      if (WIDE && inside) {
        float4 four = *(const float4*)p;
        to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
      } else
#pragma unroll
        for (int k = 0; k < wide; k++) {
          bool there = at.line + (along_terms ? 0 : k) < from.lines && term + (along_terms ? k : 0) < from.terms;
          to[k] = there ? p[k] : 0.f;
        }
    }
  }

  __device__ __forceinline__ void store(Panel<TILE>& panel) const {
    int thread = threadIdx.y * (TILE / 8) + threadIdx.x;
#pragma unroll
    for (int n = 0; n < EACH / wide; n++) {
      Spot at = spot<along_terms, wide>(thread + n * THREADS);
      const float* from = held + n * wide;
      if (WIDE && !along_terms) *(float4*)&panel[at.term][at.line] = make_float4(from[0], from[1], from[2], from[3]);
      else
#pragma unroll
        for (int k = 0; k < wide; k++) panel[at.term + k][at.line] = from[k];
    }
  }
};

extern "C" __global__ void __launch_bounds__(THREADS) matmul_vectors(SPLIT_PRODUCT) {
  __shared__ __align__(16) Panel<TILE> a_panels[2], b_panels[2];
  Part part = part_of_block(rows, columns, TILE, TILE);
  int skipped = blockIdx.y * split_terms;  // the terms of the splits before
  terms = min(terms - skipped, split_terms);
  Operand left{a + part.batch * a_batch + part.row * a_row + skipped * a_term, a_row, a_term, rows - part.row, terms};
  Operand right{b + part.batch * b_batch + part.column * b_column + skipped * b_term, b_column, b_term, columns - part.column, terms};
  Carried<A_ALONG_TERMS> for_a;
  Carried<B_ALONG_TERMS> for_b;
  float sum[8][8] = {};
  for_a.fetch(left, 0), for_b.fetch(right, 0);
  for (int first = 0, now = 0; first < terms; first += TERMS, now ^= 1) {
    for_a.store(a_panels[now]), for_b.store(b_panels[now]);
    // One barrier is enough: who passes it has multiplied from the other panels, which are the next to be stored to.
    __syncthreads();
    if (first + TERMS < terms) for_a.fetch(left, first + TERMS), for_b.fetch(right, first + TERMS);  // on their way meanwhile
    multiply<TILE, TILE>(a_panels[now], b_panels[now], threadIdx.y, threadIdx.x, sum);
  }
  write(c + blockIdx.y * c_split, part, rows, columns, sum);
}

// --- async ---------------------------------------------------------------------------------------------------------------

constexpr int STAGES = 3;  // panels of an operand: one that is multiplied, two that are on their way

// Starts the copies of one step. Four numbers at a time where they lie side by side along the lines, as in a panel; else
// one by one, since a copy can't turn them.
template <bool along_terms> __device__ __forceinline__ void start(Panel<TILE>& panel, const Operand& from, int first) {
  constexpr int wide = WIDE && !along_terms ? 4 : 1;
  int thread = threadIdx.y * (TILE / 8) + threadIdx.x;
#pragma unroll
  for (int n = 0; n < EACH / wide; n++) {
    Spot at = spot<along_terms, wide>(thread + n * THREADS);
    int term = first + at.term;
    const float* p = from.start + at.line * from.line + term * from.term;
    if (at.line + wide <= from.lines && term < from.terms) copy_async<wide * 4>(&panel[at.term][at.line], p);
    else
#pragma unroll
      for (int k = 0; k < wide; k++) panel[at.term][at.line + k] = at.line + k < from.lines && term < from.terms ? p[k] : 0.f;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) matmul_async(SPLIT_PRODUCT) {
  __shared__ __align__(16) Panel<TILE> a_panels[STAGES], b_panels[STAGES];
  Part part = part_of_block(rows, columns, TILE, TILE);
  int skipped = blockIdx.y * split_terms;  // the terms of the splits before
  terms = min(terms - skipped, split_terms);
  Operand left{a + part.batch * a_batch + part.row * a_row + skipped * a_term, a_row, a_term, rows - part.row, terms};
  Operand right{b + part.batch * b_batch + part.column * b_column + skipped * b_term, b_column, b_term, columns - part.column, terms};
  float sum[8][8] = {};
  for (int ahead = 0; ahead < STAGES - 1; ahead++) {
    start<A_ALONG_TERMS>(a_panels[ahead], left, ahead * TERMS);
    start<B_ALONG_TERMS>(b_panels[ahead], right, ahead * TERMS);
    copy_async_commit();
  }
  for (int first = 0, now = 0; first < terms; first += TERMS, now = (now + 1) % STAGES) {
    copy_async_wait<STAGES - 2>();  // this step's copies of this thread are there; after the barrier everybody's
    __syncthreads();
    int next = (now + STAGES - 1) % STAGES, later = first + (STAGES - 1) * TERMS;  // the panels that were multiplied last
    if (later < terms) start<A_ALONG_TERMS>(a_panels[next], left, later), start<B_ALONG_TERMS>(b_panels[next], right, later);
    copy_async_commit();  // a group a step, even if it is empty: so they can be counted
    multiply<TILE, TILE>(a_panels[now], b_panels[now], threadIdx.y, threadIdx.x, sum);
  }
  write(c + blockIdx.y * c_split, part, rows, columns, sum);
}
#endif
