// A warp's products on the tensor cores, without shared memory.
//
// Numbers of 16 bits lie in the lanes by blocks of 8 rows and 8 columns: of each block lane 4g + t has, as one Pair, columns 2t and
// 2t + 1 of row g. Sums are float32 and lie alike: a lane has two numbers of row g and two of row g + 8.
#pragma once

#include <type_traits>

#include "cuda/device.cuh"

namespace avfmae {

using Pair = uint32_t;

// sums (16 × 8) += a (16 × 16) · bᵀ, b (8 × 16). a_rc: the block of a's rows from 8r and columns from 8c; b_c: that of b's columns from 8c.
template <typename T>
__device__ __forceinline__ void add_product(float (&sums)[4], Pair a_00, Pair a_10, Pair a_01, Pair a_11, Pair b_0, Pair b_1) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a_00), "r"(a_10), "r"(a_01), "r"(a_11), "r"(b_0), "r"(b_1));
  else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a_00), "r"(a_10), "r"(a_01), "r"(a_11), "r"(b_0), "r"(b_1));
}

// The transpose of a block.
__device__ __forceinline__ Pair transposed(Pair block) {
  Pair result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(block));
  return result;
}

}  // namespace avfmae
