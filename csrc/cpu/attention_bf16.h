// Attention of one head of bfloat16 rows, with products of AVX512-BF16: two neighbouring numbers are multiplied and summed at a time, in
// float32. For sequences long enough to be bound by their products; attention_float.h does all others, and explains the order of things.
//
// A product c = a·b sums over pairs: a's rows hold pairs side by side, b's rows are two rows of the matrix, interleaved.
#pragma once

#include <vector>

#include "cpu/attention_float.h"
#include "cpu/bf16.h"
#include "cpu/matmul.h"
#include "cpu/simd.h"

#ifdef __AVX512BF16__
namespace avfmae::bf16 {

AVFMAE_INLINE int padded_to_pairs(int n) { return (n + 2 * kBlock - 1) / (2 * kBlock) * (2 * kBlock); }

// A matrix of pairs whose rows may lie anywhere: as it is, or transposed.
struct PairFactor {
  const Pair* data;
  int64_t row, column;
};

template <int R, int W, bool kAdd>
AVFMAE_INLINE void product_rows(const PairFactor& a, int first, const Pair* b, float* c, int pairs, int64_t N) {
  __m512 sum[R][W];
  for (int r = 0; r < R; ++r)
    for (int w = 0; w < W; ++w) sum[r][w] = kAdd ? _mm512_loadu_ps(c + r * N + w * kBlock) : _mm512_setzero_ps();
  for (int k = 0; k < pairs; ++k) {
    __m512bh x[W];
    for (int w = 0; w < W; ++w) x[w] = (__m512bh)_mm512_loadu_si512(b + k * N + w * kBlock);
    for (int r = 0; r < R; ++r) {
      const __m512bh y = (__m512bh)_mm512_set1_epi32(static_cast<int>(a.data[(first + r) * a.row + k * a.column]));
      for (int w = 0; w < W; ++w) sum[r][w] = _mm512_dpbf16_ps(sum[r][w], y, x[w]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int w = 0; w < W; ++w) _mm512_storeu_ps(c + r * N + w * kBlock, sum[r][w]);
}

template <int R, int W, bool kAdd>
AVFMAE_INLINE void product_columns(const PairFactor& a, const Pair* b, float* c, int M, int N, int pairs) {
  int m = 0;
  for (; m + R <= M; m += R) product_rows<R, W, kAdd>(a, m, b, c + int64_t{m} * N, pairs, N);
  if constexpr (R > 1)
    if (m < M) product_columns<R / 2, W, kAdd>({a.data + m * a.row, a.row, a.column}, b, c + int64_t{m} * N, M - m, N, pairs);
}

// c (M, N) = a (M, pairs)·b (pairs, N), or c += a·b; N is a multiple of 32.
template <bool kAdd = false>
AVFMAE_INLINE void product(const PairFactor& a, const Pair* b, float* c, int M, int N, int pairs) {
  int n = 0;
  for (; n + 4 * kBlock <= N; n += 4 * kBlock) product_columns<6, 4, kAdd>(a, b + n, c + n, M, N, pairs);
  for (; n < N; n += 2 * kBlock) product_columns<12, 2, kAdd>(a, b + n, c + n, M, N, pairs);
}

// n numbers of neighbouring rows x and y as pairs (x[i], y[i]); n is a multiple of 16.
AVFMAE_INLINE void interleave(const uint16_t* x, const uint16_t* y, Pair* to, int n) {
  for (int i = 0; i < n; ++i) to[i] = x[i] | static_cast<Pair>(y[i]) << 16;
}

// One head's matrices. Rows are padded with zeros: to whole vectors of pairs, and by a row where pairs are of rows.
struct Scratch : ScratchOf {
  int D, N;  // head size and number of keys, padded
  std::vector<uint16_t> q, grad, k, v, p16, ds16;                             // rows of numbers, or of pairs side by side
  std::vector<Pair> k_t, v_t, k_pairs, v_pairs, q_pairs, grad_pairs, p_pairs, ds_pairs;  // transposed pairs; interleaved rows
  std::vector<float> p, dp, rows, dk, dv;

  Scratch(const Attention& a, bool backward)
      : ScratchOf{a.size, a.keys, backward}, D(padded_to_pairs(size)), N(padded_to_pairs(keys)), q(kQueries * D), k(N * D), v(N * D),
        p16(kQueries * N), k_t(N * D / 2), v_pairs(N * D / 2), p(kQueries * N), rows(kQueries * D) {
    if (!backward) return;
    grad.resize(kQueries * D), ds16.resize(kQueries * N), v_t.resize(N * D / 2), k_pairs.resize(N * D / 2);
    q_pairs.resize(kQueries * D / 2), grad_pairs.resize(kQueries * D / 2), p_pairs.resize(kQueries * N / 2), ds_pairs.resize(kQueries * N / 2);
    dp.resize(kQueries * N), dk.resize(N * D), dv.resize(N * D);
  }
};

AVFMAE_INLINE const Pair* pairs(const std::vector<uint16_t>& rows) { return reinterpret_cast<const Pair*>(rows.data()); }

AVFMAE_INLINE void load(const Numbers& from, const Rows& place, int64_t b, int first, int count, int h, int size, uint16_t* to, int D) {
  for (int i = 0; i < count; ++i) std::copy_n(static_cast<const uint16_t*>(from.data) + place.at(b, first + i, h, size), size, to + i * D);
}

AVFMAE_INLINE void store(const Numbers& to, const Rows& place, int64_t b, int first, int count, int h, int size, const float* from, int D) {
  for (int i = 0; i < count; ++i) to.store(place.at(b, first + i, h, size), from + i * D, size);
}

AVFMAE_INLINE void interleave_rows(const uint16_t* from, Pair* to, int rows, int columns) {
  for (int r = 0; r < rows; r += 2) interleave(from + r * columns, from + (r + 1) * columns, to + r / 2 * columns, columns);
}

AVFMAE_INLINE void transpose_pairs(const uint16_t* from, Pair* to, int rows, int columns) {
  transpose(reinterpret_cast<const float*>(from), reinterpret_cast<float*>(to), rows, columns / 2);  // which moves 32 bits at a time
}

AVFMAE_INLINE void probabilities(const Attention& a, Scratch& s, int count) {
  product({pairs(s.q), s.D / 2, 1}, s.k_t.data(), s.p.data(), count, s.N, s.D / 2);
  for (int i = 0; i < count; ++i) {
    softmax(s.p.data() + int64_t{i} * s.N, a.keys, s.N, a.scale);
    round_by_processor(s.p.data() + int64_t{i} * s.N, s.p16.data() + int64_t{i} * s.N, s.N);
  }
}

AVFMAE_INLINE void answer(const Attention& a, const Numbers& out, int64_t b, int first, int count, int h, Scratch& s) {
  product({pairs(s.p16), s.N / 2, 1}, s.v_pairs.data(), s.rows.data(), count, s.D, s.N / 2);
  store(out, a.out, b, first, count, h, a.size, s.rows.data(), s.D);
}

inline void attend(const Attention& a, const AttentionData& t, int64_t b, int h, Scratch& s) {
  load(t.kv, a.k, b, 0, a.keys, h, a.size, s.k.data(), s.D);
  load(t.kv, a.v, b, 0, a.keys, h, a.size, s.v.data(), s.D);
  transpose_pairs(s.k.data(), s.k_t.data(), s.N, s.D);
  interleave_rows(s.v.data(), s.v_pairs.data(), s.N, s.D);
  for (int first = 0; first < a.queries; first += kQueries) {
    const int count = std::min(kQueries, a.queries - first);
    prefetch_to_write(t.out, a.out, b, first, count, h, a.size);
    load(t.q, a.q, b, first, count, h, a.size, s.q.data(), s.D);
    probabilities(a, s, count);
    answer(a, t.out, b, first, count, h, s);
  }
}

inline void attend_backward(const Attention& a, const AttentionData& t, int64_t b, int h, Scratch& s) {
  const int D = s.D, N = s.N;
  load(t.kv, a.k, b, 0, a.keys, h, a.size, s.k.data(), D);
  load(t.kv, a.v, b, 0, a.keys, h, a.size, s.v.data(), D);
  transpose_pairs(s.k.data(), s.k_t.data(), N, D);
  transpose_pairs(s.v.data(), s.v_t.data(), N, D);
  interleave_rows(s.k.data(), s.k_pairs.data(), N, D);
  if (t.out) interleave_rows(s.v.data(), s.v_pairs.data(), N, D);
  std::fill(s.dk.begin(), s.dk.end(), 0.0f);
  std::fill(s.dv.begin(), s.dv.end(), 0.0f);
  for (int first = 0; first < a.queries; first += kQueries) {
    const int count = std::min(kQueries, a.queries - first), even = count + (count & 1);
    prefetch_to_write(t.out, a.out, b, first, count, h, a.size);
    prefetch_to_write(t.dq, a.dq, b, first, count, h, a.size);
    load(t.q, a.q, b, first, count, h, a.size, s.q.data(), D);
    load(t.grad, a.out, b, first, count, h, a.size, s.grad.data(), D);
    probabilities(a, s, count);
    if (even > count) {  // the last query's partner in a pair
      std::fill_n(s.q.data() + count * D, D, uint16_t{0});
      std::fill_n(s.grad.data() + count * D, D, uint16_t{0});
      std::fill_n(s.p16.data() + int64_t{count} * N, N, uint16_t{0});
      std::fill_n(s.ds16.data() + int64_t{count} * N, N, uint16_t{0});
    }
    if (t.out) answer(a, t.out, b, first, count, h, s);
    interleave_rows(s.q.data(), s.q_pairs.data(), even, D);
    interleave_rows(s.grad.data(), s.grad_pairs.data(), even, D);
    interleave_rows(s.p16.data(), s.p_pairs.data(), even, N);
    product<true>({s.p_pairs.data(), 1, N}, s.grad_pairs.data(), s.dv.data(), a.keys, D, even / 2);  // dv += pᵀ grad
    product({pairs(s.grad), D / 2, 1}, s.v_t.data(), s.dp.data(), count, N, D / 2);
    for (int i = 0; i < count; ++i) {
      slope_of_logits(s.p.data() + int64_t{i} * N, s.dp.data() + int64_t{i} * N, N, a.scale);
      round_by_processor(s.dp.data() + int64_t{i} * N, s.ds16.data() + int64_t{i} * N, N);
    }
    interleave_rows(s.ds16.data(), s.ds_pairs.data(), even, N);
    product<true>({s.ds_pairs.data(), 1, N}, s.q_pairs.data(), s.dk.data(), a.keys, D, even / 2);  // dk += dsᵀ q
    product({pairs(s.ds16), N / 2, 1}, s.k_pairs.data(), s.rows.data(), count, D, N / 2);
    store(t.dq, a.dq, b, first, count, h, a.size, s.rows.data(), D);
  }
  for (const Rows* to : {&a.dk, &a.dv}) prefetch_to_write(t.dkv, *to, b, 0, a.keys, h, a.size);
  store(t.dkv, a.dk, b, 0, a.keys, h, a.size, s.dk.data(), D);
  store(t.dkv, a.dv, b, 0, a.keys, h, a.size, s.dv.data(), D);
}

// Whether this processor has the products, and the sequences are worth the packing.
inline bool serves(const Attention& a, const AttentionData& t) {
  return t.q.type == ScalarType::BFloat16 && a.keys >= 64 && a.queries >= 64;
}

}  // namespace avfmae::bf16
#endif
