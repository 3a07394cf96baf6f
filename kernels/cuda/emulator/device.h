// CUDA's words, as a CPU understands them: what every .cu file is compiled against by the emulator.
//
// Here is only what kernels see: types, the names of threads and blocks, and declarations. What makes a barrier a barrier
// is in emulator.cpp, the next on the walk. A word that is missing here is an error of g++ that names it.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#define TINYNET_EMULATOR 1
#ifndef __CUDA_ARCH__
#define __CUDA_ARCH__ 800
#endif

#define __global__ __attribute__((noinline))
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// One block at a time runs on a thread of the system: what belongs to that thread belongs to the block.
#define __shared__ thread_local

// --- where a thread is ---------------------------------------------------------------------------------------------

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
struct Place { uint3 thread, block; dim3 threads, blocks; };

extern "C" const Place& emulator_place() noexcept __attribute__((const));  // one thread's never changes
#define threadIdx (emulator_place().thread)
#define blockIdx (emulator_place().block)
#define blockDim (emulator_place().threads)
#define gridDim (emulator_place().blocks)
constexpr int warpSize = 32;

// --- vector types: copied whole, by one access, as on a GPU -------------------------------------------------------

template <int bytes> struct Whole;
template <> struct Whole<8> { typedef uint64_t type __attribute__((may_alias, aligned(1))); };
template <> struct Whole<16> { typedef char type __attribute__((vector_size(16), may_alias, aligned(1))); };
template <> struct Whole<32> { typedef char type __attribute__((vector_size(32), may_alias, aligned(1))); };

#define EMULATOR_WHOLE(name)                                                                                             \
  using whole = typename Whole<sizeof(name##_fields)>::type;                                                             \
  constexpr name() : name##_fields{} {}  /* known when it is compiled: shared arrays of it need no guard */             \
  name(const name& other) { *(whole*)this = *(const whole*)&other; }                                                     \
  name& operator=(const name& other) { *(whole*)this = *(const whole*)&other; return *this; }
#define EMULATOR_VECTORS(T, name)                                                                                        \
  struct name##2_fields { T x, y; };                                                                                     \
  struct alignas(sizeof(name##2_fields)) name##2 : name##2_fields {                                                      \
    name##2(T x, T y) : name##2_fields{x, y} {}                                                                          \
    EMULATOR_WHOLE(name##2)                                                                                              \
  };                                                                                                                     \
  struct name##3 { T x, y, z; };                                                                                         \
  struct name##4_fields { T x, y, z, w; };                                                                               \
  struct alignas(16) name##4 : name##4_fields {                                                                          \
    name##4(T x, T y, T z, T w) : name##4_fields{x, y, z, w} {}                                                          \
    EMULATOR_WHOLE(name##4)                                                                                              \
  };                                                                                                                     \
  inline name##2 make_##name##2(T x, T y) { return name##2(x, y); }                                                      \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                                                     \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return name##4(x, y, z, w); }
EMULATOR_VECTORS(float, float)
EMULATOR_VECTORS(double, double)
EMULATOR_VECTORS(int, int)

// --- arithmetic ----------------------------------------------------------------------------------------------------

template <class T> inline T min(T a, T b) { return b < a ? b : a; }
template <class T> inline T max(T a, T b) { return a < b ? b : a; }
inline float min(float a, float b) { return fminf(a, b); }  // of a number and a NaN: the number
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline int __float_as_int(float x) { int bits; memcpy(&bits, &x, 4); return bits; }
inline float __int_as_float(int bits) { float x; memcpy(&x, &bits, 4); return x; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
template <class T> inline T __ldg(const T* p) { return *p; }

// --- threads together ----------------------------------------------------------------------------------------------

extern "C" {
void __syncthreads() noexcept;
void __syncwarp(unsigned mask = ~0u) noexcept;
uint64_t emulator_shuffle(unsigned mask, uint64_t value, int source) noexcept;
unsigned __ballot_sync(unsigned mask, int vote) noexcept;
bool emulator_exchange(void* place, void* expected, const void* wanted, int bytes) noexcept;  // an atomic compare-and-swap
void emulator_copy_async(void* shared, const void* global, int bytes) noexcept;
void emulator_copy_async_commit() noexcept;
void emulator_copy_async_wait(int groups) noexcept;
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline int __all_sync(unsigned mask, int vote) { return __ballot_sync(mask, !vote) == 0; }
inline int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }

inline int emulator_lane() {
  return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % warpSize;
}
template <class T> inline T emulator_shuffled(unsigned mask, T value, int source) {
  uint64_t bits = 0;
  static_assert(sizeof(T) <= sizeof bits, "a shuffle moves at most 8 bytes");
  memcpy(&bits, &value, sizeof value);
  bits = emulator_shuffle(mask, bits, source);
  memcpy(&value, &bits, sizeof value);
  return value;
}
template <class T> inline T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  int lane = emulator_lane();
  return emulator_shuffled(mask, value, (lane & -width) + (source & (width - 1)));
}
template <class T> inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = warpSize) {
  int lane = emulator_lane(), source = lane - int(by);
  return emulator_shuffled(mask, value, source < (lane & -width) ? lane : source);
}
template <class T> inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = warpSize) {
  int lane = emulator_lane(), source = lane + int(by);
  return emulator_shuffled(mask, value, source >= (lane & -width) + width ? lane : source);
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int flip, int width = warpSize) {
  int lane = emulator_lane(), source = lane ^ flip;
  return emulator_shuffled(mask, value, source >= (lane & -width) + width ? lane : source);
}

// The first exchange may well fail: then it says what is there.
template <class T, class Change> inline T emulator_atomic(T* place, Change change) {
  T before{}, after = change(before);
  while (!emulator_exchange(place, &before, &after, sizeof(T))) after = change(before);
  return before;
}
template <class T> inline T atomicAdd(T* place, T value) { return emulator_atomic(place, [=](T x) { return T(x + value); }); }
template <class T> inline T atomicSub(T* place, T value) { return emulator_atomic(place, [=](T x) { return T(x - value); }); }
template <class T> inline T atomicMax(T* place, T value) { return emulator_atomic(place, [=](T x) { return max(x, value); }); }
template <class T> inline T atomicMin(T* place, T value) { return emulator_atomic(place, [=](T x) { return min(x, value); }); }
template <class T> inline T atomicAnd(T* place, T value) { return emulator_atomic(place, [=](T x) { return T(x & value); }); }
template <class T> inline T atomicOr(T* place, T value) { return emulator_atomic(place, [=](T x) { return T(x | value); }); }
template <class T> inline T atomicExch(T* place, T value) { return emulator_atomic(place, [=](T) { return value; }); }
template <class T> inline T atomicCAS(T* place, T expected, T value) {
  return emulator_atomic(place, [=](T x) { return memcmp(&x, &expected, sizeof x) ? x : value; });
}

// --- how Python finds and calls a kernel --------------------------------------------------------------------------

struct Kernel {
  const char* name;
  const char* signature;  // a letter an argument: P a pointer, i int, u unsigned, q long long, f float, d double
  void (*call)(void** arguments);
};

template <class T> struct Letter { static constexpr char value = '?'; };
template <class T> struct Letter<T*> { static constexpr char value = 'P'; };
template <> struct Letter<int> { static constexpr char value = 'i'; };
template <> struct Letter<unsigned> { static constexpr char value = 'u'; };
template <> struct Letter<long long> { static constexpr char value = 'q'; };
template <> struct Letter<float> { static constexpr char value = 'f'; };
template <> struct Letter<double> { static constexpr char value = 'd'; };

template <class Signature> struct Callable;
template <class... A> struct Callable<void(A...)> {
  static constexpr char signature[] = {Letter<A>::value..., 0};
  template <void (*kernel)(A...)> static void call(void** arguments) {
    spread(kernel, arguments, std::index_sequence_for<A...>());
  }
  template <size_t... place>
  __attribute__((no_sanitize("thread"))) static void spread(void (*kernel)(A...), void** arguments, std::index_sequence<place...>) {
    kernel(*(A*)arguments[place]...);
  }
};
