// A number as three digits, each of a base of its own, the last one fastest: (image, row, column) of the n-th place, say.
// Used by conv2d.cu and sums.cu, whose threads step through places and terms: adding is cheaper than dividing.

struct Digits {
  int slow, middle, fast;
};

// `middle` and `fast`: how many values these digits have. The slow one has no end.
__device__ __forceinline__ Digits digits(int n, int middle, int fast) { return {n / fast / middle, n / fast % middle, n % fast}; }

__device__ __forceinline__ void add(Digits& to, const Digits& by, int middle, int fast) {
  to.fast += by.fast;
  bool carry = to.fast >= fast;
  if (carry) to.fast -= fast;
  to.middle += by.middle + carry;
  carry = to.middle >= middle;
  if (carry) to.middle -= middle;
  to.slow += by.slow + carry;
}
