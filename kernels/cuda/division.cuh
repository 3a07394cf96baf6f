// Division by a number that a launch knows: one multiplication and a shift, where a GPU without an instruction for it takes
// about twenty. launch.py's `divisor` packs the factor (low half) and the shift (high half) into one argument.
// Right for n < 2^31: Granlund and Montgomery, Division by Invariant Integers using Multiplication, 1994.
__device__ __forceinline__ int over(unsigned n, long long by) {
  return (unsigned long long)n * (unsigned)by >> (by >> 32);
}
