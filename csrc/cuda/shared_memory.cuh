// Dynamic shared memory beyond the 48 KiB that every launch may ask for.
#pragma once

#include <torch/csrc/stable/library.h>

#include "cuda/device.cuh"

namespace avfmae {

// Lets a kernel have `bytes` a block beside its `own` static arrays, or says that this GPU has less. avfmae_kernels/chip.py asks the same before it chooses.
template <typename Kernel>
void allow_shared(const char* op, Kernel kernel, int64_t bytes, int64_t own = 0) {
  if (bytes + own <= 48 * 1024) return;
  int device = 0, most = 0;
  STD_CUDA_CHECK(cudaGetDevice(&device));
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  STD_TORCH_CHECK(bytes + own <= most, op, ": this shape needs ", (bytes + own + 1023) / 1024, " KiB of shared memory a block, and this GPU has ",
                  most / 1024, "; choose the triton or the reference implementation");
  STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

}  // namespace avfmae
