// Tensor-core fragments on the host: every lane holds the whole matrix.
#pragma once
#include "emulation.h"
namespace nvcuda::wmma {
struct row_major {}; struct col_major {}; struct matrix_a {}; struct matrix_b {}; struct accumulator {};
enum layout { mem_row_major };
template <typename Use, int M, int N, int K, typename T, typename Layout = row_major>
struct fragment { float x[16][16]; };
template <typename F>
void fill_fragment(F& f, float value) { for (auto& row : f.x) for (float& y : row) y = value; }
template <typename Use, typename T, typename Layout>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, Layout>& f, const T* p, unsigned ld) {
  if (reinterpret_cast<uintptr_t>(p) % 32 || ld % 8) std::abort();  // what the hardware asks for
  for (int r = 0; r < 16; ++r)
    for (int c = 0; c < 16; ++c) f.x[r][c] = static_cast<float>(std::is_same_v<Layout, row_major> ? p[r * ld + c] : p[c * ld + r]);
}
template <typename A, typename B, typename C>
void mma_sync(C& d, const A& a, const B& b, const C& c) {
  C sum = c;
  for (int i = 0; i < 16; ++i) for (int j = 0; j < 16; ++j) for (int k = 0; k < 16; ++k) sum.x[i][j] += a.x[i][k] * b.x[k][j];
  d = sum;
}
template <typename F>
void store_matrix_sync(float* p, const F& f, unsigned ld, layout) {
  if (reinterpret_cast<uintptr_t>(p) % 32 || ld % 4) std::abort();
  if (threadIdx.x % 32 == 0) for (int r = 0; r < 16; ++r) for (int c = 0; c < 16; ++c) p[r * ld + c] = f.x[r][c];
}
}  // namespace nvcuda::wmma
