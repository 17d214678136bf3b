// Small matrix products in registers, for matrices that lie in cache: padded to whole vectors of columns, and row-major.
#pragma once

#include <cstdint>

#include "cpu/simd.h"

namespace avfmae {

AVFMAE_INLINE int padded(int n) { return (n + kBlock - 1) / kBlock * kBlock; }

// A matrix whose numbers may lie anywhere: as it is, or transposed.
struct Factor {
  const float* data;
  int64_t row, column;  // strides

  AVFMAE_INLINE float at(int r, int k) const { return data[r * row + k * column]; }
};

// R rows of W blocks of columns: c = a·b, or c += a·b.
template <int R, int W, bool kAdd>
AVFMAE_INLINE void matmul_rows(const Factor& a, int first, const float* b, float* c, int K, int64_t b_row, int64_t c_row) {
  Vector sum[R][W];
  for (int r = 0; r < R; ++r)
    for (int w = 0; w < W; ++w) sum[r][w] = kAdd ? vector_at(c + r * c_row + w * kBlock) : Vector{};
  for (int k = 0; k < K; ++k) {
    Vector x[W];
    for (int w = 0; w < W; ++w) x[w] = vector_at(b + k * b_row + w * kBlock);
    for (int r = 0; r < R; ++r) {
      const float y = a.at(first + r, k);
      for (int w = 0; w < W; ++w) sum[r][w] += y * x[w];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int w = 0; w < W; ++w) vector_at(c + r * c_row + w * kBlock) = sum[r][w];
}

// All M rows of W blocks of columns, R at a time: as many sums as registers hold.
template <int R, int W, bool kAdd>
AVFMAE_INLINE void matmul_columns(const Factor& a, const float* b, float* c, int M, int N, int K) {
  int m = 0;
  for (; m + R <= M; m += R) matmul_rows<R, W, kAdd>(a, m, b, c + int64_t{m} * N, K, N, N);
  for (; m + 3 <= M; m += 3) matmul_rows<3, W, kAdd>(a, m, b, c + int64_t{m} * N, K, N, N);
  for (; m < M; ++m) matmul_rows<1, W, kAdd>(a, m, b, c + int64_t{m} * N, K, N, N);
}

// c (M, N) = a (M, K)·b (K, N), or c += a·b. N is a multiple of kBlock; rows of b and c follow one another.
template <bool kAdd = false>
AVFMAE_INLINE void matmul(const Factor& a, const float* b, float* c, int M, int N, int K) {
  int n = 0;
  for (; n + 2 * kBlock <= N; n += 2 * kBlock) matmul_columns<6, 2, kAdd>(a, b + n, c + n, M, N, K);
  for (; n < N; n += kBlock) matmul_columns<8, 1, kAdd>(a, b + n, c + n, M, N, K);
}

// Lanes of two vectors by number, the second's counted on.
AVFMAE_INLINE Vector pick(const Vector& a, const Vector& b, const Lanes& lanes) {
#ifdef __clang__
  Vector picked;
  for (int l = 0; l < kBlock; ++l) picked[l] = lanes[l] < kBlock ? a[lanes[l]] : b[lanes[l] - kBlock];
  return picked;
#else
  return __builtin_shuffle(a, b, lanes);
#endif
}

// Swaps blocks of S lanes between rows i and i + S of every pair: a step of the transposition of kBlock by kBlock numbers.
template <int S>
AVFMAE_INLINE void swap_blocks(Vector (&x)[kBlock]) {
  Lanes low, high;
  for (int l = 0; l < kBlock; ++l) {
    low[l] = l & S ? kBlock + l - S : l;
    high[l] = l & S ? kBlock + l : l + S;
  }
  for (int i = 0; i < kBlock; ++i) {
    if (i & S) continue;
    const Vector a = x[i], b = x[i + S];
    x[i] = pick(a, b, low);
    x[i + S] = pick(a, b, high);
  }
}

AVFMAE_INLINE void transpose(Vector (&x)[kBlock]) {
  if constexpr (kBlock > 8) swap_blocks<8>(x);
  if constexpr (kBlock > 4) swap_blocks<4>(x);
  swap_blocks<2>(x), swap_blocks<1>(x);
}

// to (columns, rows) = from (rows, columns) transposed; both numbers are multiples of kBlock.
AVFMAE_INLINE void transpose(const float* from, float* to, int rows, int columns) {
  for (int r = 0; r < rows; r += kBlock) {
    for (int c = 0; c < columns; c += kBlock) {
      Vector x[kBlock];
      for (int i = 0; i < kBlock; ++i) x[i] = vector_at(from + (r + i) * columns + c);
      transpose(x);
      for (int i = 0; i < kBlock; ++i) vector_at(to + (c + i) * rows + r) = x[i];
    }
  }
}

}  // namespace avfmae
