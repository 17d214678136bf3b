// Stands in for csrc/cuda/warp_mma.cuh: what the instructions do with the registers of a warp's lanes.
#pragma once
#include "cuda/device.cuh"

namespace avfmae {

using Pair = uint32_t;
inline Pair lanes_pairs[1024][6];

template <typename T>
inline float number(Pair pair, int which) {
  T both[2];
  std::memcpy(both, &pair, 4);
  return static_cast<float>(both[which]);
}

// PTX ISA, mma.m16n8k16: a register of a is a block of 8 by 8, in the order (0, 0), (8, 0), (0, 8), (8, 8).
template <typename T>
inline void add_product(float (&sums)[4], Pair a_00, Pair a_10, Pair a_01, Pair a_11, Pair b_0, Pair b_1) {
  const Pair mine[6] = {a_00, a_10, a_01, a_11, b_0, b_1};
  std::memcpy(lanes_pairs[threadIdx.x], mine, sizeof mine);
  __syncwarp();
  const int first = threadIdx.x / 32 * 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 4; ++i) {
    const int m = g + i / 2 * 8, n = 2 * t + i % 2;
    for (int k = 0; k < 16; ++k) {
      const Pair a = lanes_pairs[first + m % 8 * 4 + k % 8 / 2][m / 8 + k / 8 * 2], b = lanes_pairs[first + n * 4 + k % 8 / 2][4 + k / 8];
      sums[i] += number<T>(a, k % 2) * number<T>(b, k % 2);
    }
  }
  __syncwarp();
}

// PTX ISA, movmatrix.m8n8.trans.
inline Pair transposed(Pair block) {
  lanes_pairs[threadIdx.x][0] = block;
  __syncwarp();
  const int first = threadIdx.x / 32 * 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const auto half = [&](int row) { return lanes_pairs[first + row * 4 + g / 2][0] >> (g % 2 * 16) & 0xffffu; };
  const Pair result = half(2 * t) | half(2 * t + 1) << 16;
  __syncwarp();
  return result;
}

}  // namespace avfmae
