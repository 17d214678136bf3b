// CUDA on the host, for proving a kernel's logic without a GPU: a block's threads are threads, blocks follow one another.
// Unwritten shared memory is NaN; a tensor-core access that the hardware would refuse aborts.
#pragma once
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <barrier>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
#undef STD_CUDA_CHECK
#define STD_CUDA_CHECK(x) (x)
#undef STD_CUDA_KERNEL_LAUNCH_CHECK
#define STD_CUDA_KERNEL_LAUNCH_CHECK()

using __nv_bfloat16 = c10::BFloat16;
using __half = c10::Half;
using cudaStream_t = void*;
struct dim3 { unsigned x = 1, y = 1, z = 1; dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {} };
struct int4 { int x, y, z, w; };
constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 0, cudaDevAttrMaxSharedMemoryPerBlockOptin = 0;
inline int cudaFuncSetAttribute(...) { return 0; }
inline int cudaGetDevice(int* device) { return *device = 0; }
inline int cudaDeviceGetAttribute(int* value, int, int) {  // bytes of shared memory a block: those of the chip that is emulated
  const char* bytes = std::getenv("EMULATED_SHARED_MEMORY");
  *value = bytes ? std::atoi(bytes) : 227 * 1024;
  return 0;
}

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;
inline unsigned char* emulated_shared = nullptr;
inline std::unique_ptr<std::barrier<>> block_barrier;
inline std::vector<std::unique_ptr<std::barrier<>>> warp_barriers;
inline float exchanged[1024];

inline void __syncthreads() { block_barrier->arrive_and_wait(); }
inline void __syncwarp() { warp_barriers[threadIdx.x / 32]->arrive_and_wait(); }
inline float __shfl_xor_sync(unsigned, float value, int step) {
  exchanged[threadIdx.x] = value;
  __syncwarp();
  const float other = exchanged[threadIdx.x ^ step];
  __syncwarp();
  return other;
}
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __expf(float x) { return std::exp(x); }

template <typename Kernel, typename... Args>
void emulate(dim3 grid, unsigned threads, size_t shared, void*, Kernel kernel, Args... args) {
  std::vector<unsigned char> memory(shared + 128);
  emulated_shared = memory.data() + (128 - reinterpret_cast<uintptr_t>(memory.data()) % 128);
  block_barrier = std::make_unique<std::barrier<>>(threads);
  warp_barriers.clear();
  for (unsigned w = 0; w < threads / 32; ++w) warp_barriers.push_back(std::make_unique<std::barrier<>>(32));
  for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; ++x) {
      std::memset(emulated_shared, 0xff, shared);
      std::vector<std::thread> team;
      for (unsigned t = 0; t < threads; ++t)
        team.emplace_back([=] {
          threadIdx = dim3(t), blockIdx = dim3(x, y), blockDim = dim3(threads), gridDim = grid;
          kernel(args...);
        });
      for (auto& thread : team) thread.join();
    }
}
