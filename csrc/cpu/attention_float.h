// Attention of one head of one sequence in float32 scratch memory, for rows of any dtype.
#pragma once

#include <limits>
#include <vector>

#include "cpu/attention.h"
#include "cpu/matmul.h"
#include "cpu/simd.h"

namespace avfmae {

constexpr int kQueries = 60;  // taken at a time, so that their logits stay in cache

// What a thread's scratch memory was made for.
struct ScratchOf {
  int size, keys;
  bool backward;

  bool fits(const Attention& a, bool with_backward) const { return size == a.size && keys == a.keys && backward >= with_backward; }
};

// One head's matrices, rows padded to whole vectors with zeros, reused from task to task.
struct HeadScratch : ScratchOf {
  int D, N;  // head size and number of keys, padded
  std::vector<float> q, grad, rows, p, dp, k, v, k_t, v_t, dk, dv;

  HeadScratch(const Attention& a, bool backward)
      : ScratchOf{a.size, a.keys, backward}, D(padded(a.size)), N(padded(a.keys)), q(kQueries * D),
        grad(backward ? kQueries * D : 0), rows(kQueries * D), p(kQueries * N),
        dp(backward ? kQueries * N : 0), k(N * D), v(N * D), k_t(N * D), v_t(backward ? N * D : 0), dk(v_t.size()), dv(v_t.size()) {}
};

AVFMAE_INLINE void load_rows(const Numbers& from, const Rows& place, int64_t b, int first, int count, int h, int size, float* to, int D) {
  for (int i = 0; i < count; ++i) from.load(place.at(b, first + i, h, size), to + i * D, size);
}

AVFMAE_INLINE void store_rows(const Numbers& to, const Rows& place, int64_t b, int first, int count, int h, int size, const float* from,
                              int D) {
  for (int i = 0; i < count; ++i) to.store(place.at(b, first + i, h, size), from + i * D, size);
}

AVFMAE_INLINE void prefetch_to_write(const Numbers& to, const Rows& place, int64_t b, int first, int count, int h, int size) {
  if (to)
    for (int i = 0; i < count; ++i) to.prefetch_to_write(place.at(b, first + i, h, size), size);
}

// p = softmax(p·scale) of one query's `keys` logits, zero in the padding up to N: loops over whole vectors leave no rest.
AVFMAE_INLINE void softmax(float* p, int keys, int N, float scale) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  for (int j = keys; j < N; ++j) p[j] = kNone;
  float top = kNone;
#pragma omp simd reduction(max : top)
  for (int j = 0; j < N; ++j) top = p[j] > top ? p[j] : top;
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (int j = 0; j < N; ++j) {
    p[j] = p[j] == kNone ? 0.0f : fast_exp((p[j] - top) * scale);
    total += p[j];
  }
  const float inverse = 1 / total;
  for (int j = 0; j < N; ++j) p[j] *= inverse;
}

// dp, the gradient of one query's probabilities p, becomes the gradient of its logits.
AVFMAE_INLINE void grad_of_logits(const float* p, float* dp, int N, float scale) {
  const float mean = dot(p, dp, N);
  for (int j = 0; j < N; ++j) dp[j] = p[j] * (dp[j] - mean) * scale;
}

// s.p = softmax(q kᵀ·scale) of `count` queries.
AVFMAE_INLINE void probabilities(const Attention& a, HeadScratch& s, int count) {
  matmul({s.q.data(), s.D, 1}, s.k_t.data(), s.p.data(), count, s.N, a.size);
  for (int i = 0; i < count; ++i) softmax(s.p.data() + i * s.N, a.keys, s.N, a.scale);
}

inline void attend(const Attention& a, const AttentionData& t, int64_t b, int h, HeadScratch& s) {
  const int D = s.D;
  load_rows(t.kv, a.k, b, 0, a.keys, h, a.size, s.k.data(), D);
  load_rows(t.kv, a.v, b, 0, a.keys, h, a.size, s.v.data(), D);
  transpose(s.k.data(), s.k_t.data(), s.N, D);
  for (int first = 0; first < a.queries; first += kQueries) {
    const int count = std::min(kQueries, a.queries - first);
    prefetch_to_write(t.out, a.out, b, first, count, h, a.size);
    load_rows(t.q, a.q, b, first, count, h, a.size, s.q.data(), D);
    probabilities(a, s, count);
    matmul({s.p.data(), s.N, 1}, s.v.data(), s.rows.data(), count, D, a.keys);
    store_rows(t.out, a.out, b, first, count, h, a.size, s.rows.data(), D);
  }
}

// Gradients of one head; the probabilities come from q and k once more. `out`, where given, gets the recomputed output.
inline void attend_backward(const Attention& a, const AttentionData& t, int64_t b, int h, HeadScratch& s) {
  const int D = s.D, N = s.N;
  load_rows(t.kv, a.k, b, 0, a.keys, h, a.size, s.k.data(), D);
  load_rows(t.kv, a.v, b, 0, a.keys, h, a.size, s.v.data(), D);
  transpose(s.k.data(), s.k_t.data(), N, D);
  transpose(s.v.data(), s.v_t.data(), N, D);
  for (const Rows* to : {&a.dk, &a.dv}) prefetch_to_write(t.dkv, *to, b, 0, a.keys, h, a.size);
  std::fill(s.dk.begin(), s.dk.end(), 0.0f);
  std::fill(s.dv.begin(), s.dv.end(), 0.0f);
  for (int first = 0; first < a.queries; first += kQueries) {
    const int count = std::min(kQueries, a.queries - first);
    prefetch_to_write(t.out, a.out, b, first, count, h, a.size);
    prefetch_to_write(t.dq, a.dq, b, first, count, h, a.size);
    load_rows(t.q, a.q, b, first, count, h, a.size, s.q.data(), D);
    load_rows(t.grad, a.out, b, first, count, h, a.size, s.grad.data(), D);
    probabilities(a, s, count);
    if (t.out) {
      matmul({s.p.data(), N, 1}, s.v.data(), s.rows.data(), count, D, a.keys);
      store_rows(t.out, a.out, b, first, count, h, a.size, s.rows.data(), D);
    }
    matmul<true>({s.p.data(), 1, N}, s.grad.data(), s.dv.data(), a.keys, D, count);  // dv += pᵀ grad
    matmul({s.grad.data(), D, 1}, s.v_t.data(), s.dp.data(), count, N, a.size);
    for (int i = 0; i < count; ++i) grad_of_logits(s.p.data() + i * N, s.dp.data() + i * N, N, a.scale);
    matmul<true>({s.dp.data(), 1, N}, s.q.data(), s.dk.data(), a.keys, D, count);  // dk += dpᵀ q
    matmul({s.dp.data(), N, 1}, s.k.data(), s.rows.data(), count, D, a.keys);
    store_rows(t.dq, a.dq, b, first, count, h, a.size, s.rows.data(), D);
  }
  store_rows(t.dkv, a.dk, b, 0, a.keys, h, a.size, s.dk.data(), D);
  store_rows(t.dkv, a.dv, b, 0, a.keys, h, a.size, s.dv.data(), D);
}

}  // namespace avfmae
