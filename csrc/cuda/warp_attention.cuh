// Attention of which one side is short, by one warp for each head of a sequence, in registers alone.
//
// The short side, at most 16 rows, stays in registers; the long one streams by, 16 rows at a time. A lane's part of a row of D
// columns is D/4 neighbours, read and written by 16 bytes. They count as the pairs of D/8 blocks (warp_mma.cuh), so that the
// blocks' columns are the row's in another order, the same for all rows: no product minds.
#pragma once

#include <algorithm>

#include "common/attention.h"
#include "cuda/warp_mma.cuh"

namespace avfmae {

constexpr int kStep = 16;  // rows of the long side at a time, and the most of the short one
constexpr unsigned kWarp = ~0u;

template <typename T>
struct AttentionData {
  const T *q, *kv, *grad;  // grad: null where no gradients are asked for
  T *out, *dq, *dkv;       // out: null where it is not asked for
};

// A lane's part of a row.
template <int D>
struct Row {
  alignas(16) Pair x[D / 8] = {};
};

// BLOCKS times 8 rows; of a second block that there is not, zeros.
template <int BLOCKS, int D>
struct Tile {
  Row<D> of[BLOCKS];

  __device__ Pair at(int block, int j) const { return block < BLOCKS ? of[block].x[j] : 0; }
  __device__ Pair transposed_at(int block, int j) const { return block < BLOCKS ? transposed(of[block].x[j]) : 0; }
};

// One head's rows of one sequence in memory.
template <typename T, int D>
struct Matrix {
  T* first;
  int64_t stride;
  int rows;

  static constexpr int kChunks = D / 32, kPairs = 4;  // of 16 bytes

  __device__ T* lanes(int row) const { return first + row * stride + threadIdx.x % 4 * (D / 4); }

  // Rows from `start` on; zeros for those that do not exist.
  template <int BLOCKS>
  __device__ Tile<BLOCKS, D> load(int start) const {
    Tile<BLOCKS, D> tile;
    for (int b = 0; b < BLOCKS; ++b)
      if (const int row = start + 8 * b + threadIdx.x % 32 / 4; row < rows)
        for (int i = 0; i < kChunks; ++i)
          *reinterpret_cast<int4*>(tile.of[b].x + i * kPairs) = reinterpret_cast<const int4*>(lanes(row))[i];
    return tile;
  }

  template <int BLOCKS>
  __device__ void store(int start, const Tile<BLOCKS, D>& tile) const {
    for (int b = 0; b < BLOCKS; ++b)
      if (const int row = start + 8 * b + threadIdx.x % 32 / 4; row < rows)
        for (int i = 0; i < kChunks; ++i)
          reinterpret_cast<int4*>(lanes(row))[i] = *reinterpret_cast<const int4*>(tile.of[b].x + i * kPairs);
  }
};

template <typename T>
__device__ __forceinline__ Pair rounded(float x, float y) {
  alignas(4) const T both[2] = {from_float<T>(x), from_float<T>(y)};
  return *reinterpret_cast<const Pair*>(both);
}

// Sums over rows or keys: BLOCKS times 8 rows of D columns.
template <int BLOCKS, int D>
struct Sums {
  float of[D / 8][2 * BLOCKS] = {};

  template <typename T>
  __device__ Tile<BLOCKS, D> rounded_to() const {
    Tile<BLOCKS, D> tile;
    for (int b = 0; b < BLOCKS; ++b)
      for (int j = 0; j < D / 8; ++j) tile.of[b].x[j] = rounded<T>(of[j][2 * b], of[j][2 * b + 1]);
    return tile;
  }

  __device__ void scale(int block, float by) {
    for (auto& sum : of) sum[2 * block] *= by, sum[2 * block + 1] *= by;
  }
};

// Logits, probabilities or their gradients: ROWS times 8 queries by COLUMNS times 8 keys. A lane has of[c][2r] and of[c][2r + 1].
template <int ROWS, int COLUMNS>
struct Scores {
  float of[COLUMNS][4] = {};

  // a bᵀ
  template <typename T, int D>
  static __device__ Scores of_rows(const Tile<ROWS, D>& a, const Tile<COLUMNS, D>& b) {
    Scores result;
    for (int c = 0; c < COLUMNS; ++c)
      for (int j = 0; j < D / 8; j += 2)
        add_product<T>(result.of[c], a.at(0, j), a.at(1, j), a.at(0, j + 1), a.at(1, j + 1), b.at(c, j), b.at(c, j + 1));
    return result;
  }

  // Calls f(number, its column's number) for a lane's numbers of the queries of block r.
  template <typename F>
  __device__ void each(int r, F f) {
    for (int c = 0; c < COLUMNS; ++c)
      for (int e = 0; e < 2; ++e) f(of[c][2 * r + e], 8 * c + threadIdx.x % 4 * 2 + e);
  }
};

// Scores as a product's left factor, rounded: of[r][c] is the block of 8 queries and 8 keys.
template <int ROWS, int COLUMNS>
struct Weights {
  Pair of[ROWS][COLUMNS];

  __device__ Pair at(int r, int c) const { return r < ROWS && c < COLUMNS ? of[r][c] : 0; }

  template <typename T>
  static __device__ Weights rounded_from(const Scores<ROWS, COLUMNS>& s) {
    Weights w;
    for (int r = 0; r < ROWS; ++r)
      for (int c = 0; c < COLUMNS; ++c) w.of[r][c] = rounded<T>(s.of[c][2 * r], s.of[c][2 * r + 1]);
    return w;
  }

  __device__ Weights<COLUMNS, ROWS> transpose() const {
    Weights<COLUMNS, ROWS> w;
    for (int r = 0; r < ROWS; ++r)
      for (int c = 0; c < COLUMNS; ++c) w.of[c][r] = transposed(of[r][c]);
    return w;
  }
};

// sums += w y
template <typename T, int ROWS, int COLUMNS, int D>
__device__ void add_weighted(Sums<ROWS, D>& sums, const Weights<ROWS, COLUMNS>& w, const Tile<COLUMNS, D>& y) {
  for (int j = 0; j < D / 8; ++j) {
    float all[4] = {};  // of a second block of rows that there is not, nothing is kept
    for (int i = 0; i < 2 * ROWS; ++i) all[i] = sums.of[j][i];
    add_product<T>(all, w.at(0, 0), w.at(1, 0), w.at(0, 1), w.at(1, 1), y.transposed_at(0, j), y.transposed_at(1, j));
    for (int i = 0; i < 2 * ROWS; ++i) sums.of[j][i] = all[i];
  }
}

// Over the four lanes that share a row.
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(kWarp, x, 1);
  return x + __shfl_xor_sync(kWarp, x, 2);
}
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(kWarp, x, 2));
}

// A head of a sequence, and its rows.
template <typename T, int D>
struct Task {
  int64_t b;
  int h;
  Matrix<const T, D> q, k, v, grad;
  Matrix<T, D> out, dq, dk, dv;

  __device__ Task(const AttentionData<T>& t, const Attention& a, int64_t task) : b(task / a.heads), h(static_cast<int>(task % a.heads)) {
    q = rows(t.q, a.q, a.queries), k = rows(t.kv, a.k, a.keys), v = rows(t.kv, a.v, a.keys), grad = rows(t.grad, a.out, a.queries);
    out = rows(t.out, a.out, a.queries), dq = rows(t.dq, a.dq, a.queries), dk = rows(t.dkv, a.dk, a.keys), dv = rows(t.dkv, a.dv, a.keys);
  }
  template <typename U>
  __device__ Matrix<U, D> rows(U* of, const Rows& where, int count) const {
    return {of + where.at(b, 0, h, D), where.row, count};
  }
};

// The gradient of logits: ds = p ⊙ (dp − Σ p ⊙ dp)·scale, for the queries of block r, whose Σ p ⊙ dp is `mean`.
template <int ROWS, int COLUMNS>
__device__ void to_logits(Scores<ROWS, COLUMNS>& dp, const Scores<ROWS, COLUMNS>& p, int r, float mean, float scale) {
  for (int c = 0; c < COLUMNS; ++c)
    for (int e = 2 * r; e < 2 * r + 2; ++e) dp.of[c][e] = p.of[c][e] * (dp.of[c][e] - mean) * scale;
}

// Few keys: FEW times 8 of them stay; `blockIdx.y` shares the queries out, of a forward alone.
template <typename T, int D, int FEW, bool BACKWARD>
__device__ void attend_to_few_keys(const AttentionData<T>& t, const Attention& a, int64_t task) {
  const Task<T, D> at(t, a, task);
  const auto k = at.k.template load<FEW>(0), v = at.v.template load<FEW>(0);
  Sums<FEW, D> dk, dv;
  for (int start = blockIdx.y * kStep; start < a.queries; start += gridDim.y * kStep) {
    const auto q = at.q.template load<2>(start);
    auto p = Scores<2, FEW>::template of_rows<T>(q, k);
    for (int r = 0; r < 2; ++r) {
      float top = -INFINITY, total = 0;
      p.each(r, [&](float& x, int key) { top = fmaxf(top, x = key < a.keys ? x * a.scale : -INFINITY); });
      top = row_max(top);
      p.each(r, [&](float& x, int) { total += x = __expf(x - top); });
      const float inverse = 1 / row_sum(total);
      p.each(r, [&](float& x, int) { x *= inverse; });
    }
    const auto weights = Weights<2, FEW>::template rounded_from<T>(p);
    if (t.out) {
      Sums<2, D> out;
      add_weighted<T>(out, weights, v);
      at.out.store(start, out.template rounded_to<T>());
    }
    if constexpr (BACKWARD) {
      const auto grad = at.grad.template load<2>(start);
      auto ds = Scores<2, FEW>::template of_rows<T>(grad, v);
      for (int r = 0; r < 2; ++r) {
        float mean = 0;
        for (int c = 0; c < FEW; ++c)
          for (int e = 2 * r; e < 2 * r + 2; ++e) mean += p.of[c][e] * ds.of[c][e];
        to_logits(ds, p, r, row_sum(mean), a.scale);
      }
      const auto ds_weights = Weights<2, FEW>::template rounded_from<T>(ds);
      Sums<2, D> dq;
      add_weighted<T>(dq, ds_weights, k);
      at.dq.store(start, dq.template rounded_to<T>());
      add_weighted<T>(dk, ds_weights.transpose(), q);
      add_weighted<T>(dv, weights.transpose(), grad);
    }
  }
  if constexpr (BACKWARD) {
    at.dk.store(0, dk.template rounded_to<T>());
    at.dv.store(0, dv.template rounded_to<T>());
  }
}

// Few queries: FEW times 8 of them stay. Keys stream by with a running maximum and sum, and once more for their gradients.
template <typename T, int D, int FEW, bool BACKWARD>
__device__ void attend_of_few_queries(const AttentionData<T>& t, const Attention& a, int64_t task) {
  const Task<T, D> at(t, a, task);
  const auto q = at.q.template load<FEW>(0);
  const auto logits = [&](const Tile<2, D>& k, int start) {
    auto s = Scores<FEW, 2>::template of_rows<T>(q, k);
    for (int r = 0; r < FEW; ++r) s.each(r, [&](float& x, int key) { x = start + key < a.keys ? x * a.scale : -INFINITY; });
    return s;
  };
  float top[FEW], total[FEW] = {}, mean[FEW] = {};
  for (float& x : top) x = -INFINITY;
  Sums<FEW, D> answer;
  for (int start = 0; start < a.keys; start += kStep) {
    auto p = logits(at.k.template load<2>(start), start);
    for (int r = 0; r < FEW; ++r) {
      float higher = top[r], sum = 0;
      p.each(r, [&](float& x, int) { higher = fmaxf(higher, x); });
      higher = row_max(higher);
      p.each(r, [&](float& x, int) { sum += x = __expf(x - higher); });
      const float fade = __expf(top[r] - higher);
      total[r] = total[r] * fade + row_sum(sum), top[r] = higher;
      answer.scale(r, fade);
    }
    add_weighted<T>(answer, Weights<FEW, 2>::template rounded_from<T>(p), at.v.template load<2>(start));
  }
  for (int r = 0; r < FEW; ++r) answer.scale(r, 1 / total[r]);
  if (t.out) at.out.store(0, answer.template rounded_to<T>());
  if constexpr (BACKWARD) {
    const auto grad = at.grad.template load<FEW>(0);
    Sums<FEW, D> dq;
    // Σ p ⊙ dp = answer · grad, by the lanes' own columns
    for (int r = 0; r < FEW; ++r) {
      for (int j = 0; j < D / 8; ++j) {
        const T* g = reinterpret_cast<const T*>(&grad.of[r].x[j]);
        mean[r] += answer.of[j][2 * r] * to_float(g[0]) + answer.of[j][2 * r + 1] * to_float(g[1]);
      }
      mean[r] = row_sum(mean[r]);
    }
    for (int start = 0; start < a.keys; start += kStep) {
      const auto k = at.k.template load<2>(start), v = at.v.template load<2>(start);
      auto p = logits(k, start), ds = Scores<FEW, 2>::template of_rows<T>(grad, v);
      for (int r = 0; r < FEW; ++r) {
        p.each(r, [&](float& x, int) { x = __expf(x - top[r]) / total[r]; });
        to_logits(ds, p, r, mean[r], a.scale);
      }
      const auto weights = Weights<FEW, 2>::template rounded_from<T>(p), ds_weights = Weights<FEW, 2>::template rounded_from<T>(ds);
      Sums<2, D> dk, dv;
      add_weighted<T>(dq, ds_weights, k);
      add_weighted<T>(dk, ds_weights.transpose(), q);
      add_weighted<T>(dv, weights.transpose(), grad);
      at.dk.store(start, dk.template rounded_to<T>());
      at.dv.store(start, dv.template rounded_to<T>());
    }
    at.dq.store(0, dq.template rounded_to<T>());
  }
}

constexpr int kWarps = 4;      // a block
constexpr int kEnough = 4096;  // warps that fill any GPU; a forward to few keys shares its queries out until there are as many

template <typename T, int D, int FEW, bool KEYS, bool BACKWARD>
__global__ void __launch_bounds__(32 * kWarps, BACKWARD ? 2 : 4) warp_attention_kernel(AttentionData<T> t, Attention a) {
  const int64_t task = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (task >= a.tasks()) return;
  if constexpr (KEYS) attend_to_few_keys<T, D, FEW, BACKWARD>(t, a, task);
  else attend_of_few_queries<T, D, FEW, BACKWARD>(t, a, task);
}

template <typename T, int D, int FEW, bool KEYS, bool BACKWARD>
void launch_warps(const AttentionData<T>& t, const Attention& a, cudaStream_t stream) {
  const int64_t steps = KEYS && !BACKWARD ? (a.queries + kStep - 1) / kStep : 1, shares = std::max<int64_t>(1, kEnough / a.tasks());
  const dim3 grid(static_cast<unsigned>((a.tasks() + kWarps - 1) / kWarps), static_cast<unsigned>(std::min(steps, shares)));
  const auto kernel = warp_attention_kernel<T, D, FEW, KEYS, BACKWARD>;
  kernel<<<grid, 32 * kWarps, 0, stream>>>(t, a);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// Whether warps attend to the keys (KEYS) or of the queries, as the shorter side: chip.py asks the same before it chooses.
template <bool KEYS, typename T>
bool attend_by_warps(const AttentionData<T>& t, const Attention& a, cudaStream_t stream) {
  const int few = KEYS ? a.keys : a.queries;
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const auto apart = [](const Rows& rows) { return rows.batch % 8 == 0 && rows.row % 8 == 0; };
  if (few > kStep || (a.size != 32 && a.size != 64) || !apart(a.q) || !apart(a.k)) return false;
  for (const void* p : {static_cast<const void*>(t.q), static_cast<const void*>(t.kv), static_cast<const void*>(t.grad)})
    if (!aligned(p)) return false;
  const auto with = [&](auto size, auto blocks) {
    if (t.grad) launch_warps<T, size, blocks, KEYS, true>(t, a, stream);
    else launch_warps<T, size, blocks, KEYS, false>(t, a, stream);
  };
  const auto with_size = [&](auto size) {
    if (few <= 8) with(size, std::integral_constant<int, 1>{});
    else with(size, std::integral_constant<int, 2>{});
  };
  if (a.size == 32) with_size(std::integral_constant<int, 32>{});
  else with_size(std::integral_constant<int, 64>{});
  return true;
}

}  // namespace avfmae
