// Asynchronous copies: from global memory right into shared memory, while the thread goes on.
//
// From sm_80 on it is an instruction, cp.async, which needs no register for what it carries; before, the same by hand. A
// copy is there for certain after copy_async_wait and, for the block's other threads, the barrier behind it.
// The emulator takes it literally: a copy happens when it is waited for, so who reads too early is found out.

// Of 4 or 16 bytes; both addresses are multiples of that.
template <int bytes> __device__ __forceinline__ void copy_async(void* shared, const void* global) {
#if defined(TINYNET_EMULATOR)
  emulator_copy_async(shared, global, bytes);
#elif __CUDA_ARCH__ >= 800
  unsigned to = (unsigned)__cvta_generic_to_shared(shared);
  if (bytes == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
  else asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(global) : "memory");
#else
  if (bytes == 16) *(float4*)shared = *(const float4*)global;
  else *(float*)shared = *(const float*)global;
#endif
}

// Ends a group of copies.
__device__ __forceinline__ void copy_async_commit() {
#if defined(TINYNET_EMULATOR)
  emulator_copy_async_commit();
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the last `groups` groups of this thread are still on their way.
template <int groups> __device__ __forceinline__ void copy_async_wait() {
#if defined(TINYNET_EMULATOR)
  emulator_copy_async_wait(groups);
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
#endif
}
