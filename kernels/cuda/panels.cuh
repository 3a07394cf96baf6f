// A matrix product's innermost part: panels of both factors in shared memory, 8 x 8 sums a thread in registers.
// Used by matmul.cu, and by conv2d.cu, whose right factor is gathered from images.

constexpr int TERMS = 8;  // of one step

// One step of a factor: [term][line], where a line is a row of the left factor or a column of the right one. Four more than
// there are, so that 4 lines x 8 terms, or 16 lines x every fourth term, which a warp stores at once, lie in different banks.
template <int lines> using Panel = float[TERMS][lines + 4];

// Adds one step to the 8 x 8 sums of the thread at row 4 * y and column 4 * x: four quarters of 4 x 4, half the block apart,
// so that neighbours read 16 bytes side by side.
template <int high, int wide>
__device__ __forceinline__ void multiply(Panel<high>& a, Panel<wide>& b, int y, int x, float (&sum)[8][8]) {
#pragma unroll
  for (int t = 0; t < TERMS; t++) {
    float4 top = *(float4*)&a[t][4 * y], bottom = *(float4*)&a[t][high / 2 + 4 * y];
    float4 near = *(float4*)&b[t][4 * x], far = *(float4*)&b[t][wide / 2 + 4 * x];
    float left[8] = {top.x, top.y, top.z, top.w, bottom.x, bottom.y, bottom.z, bottom.w};
    float right[8] = {near.x, near.y, near.z, near.w, far.x, far.y, far.z, far.w};
#pragma unroll
    for (int n = 0; n < 64; n++) sum[n / 8][n % 8] = fmaf(left[n / 8], right[n % 8], sum[n / 8][n % 8]);
  }
}
