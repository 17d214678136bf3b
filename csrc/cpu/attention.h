// Attention of one head of one sequence in float32 scratch memory; region_attention and cross_attention on the CPU are
// this, called for every head of every sequence on all cores.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <limits>
#include <vector>

#include "common/attention.h"
#include "cpu/simd.h"

namespace avfmae {

// One head's rows, reused from task to task. Products run over neighbouring numbers: logits over transposed keys.
struct HeadScratch {
  std::vector<float> k, v, k_t, v_t, dk, dv, p, dp, q, grad, row;

  explicit HeadScratch(const Attention& a, bool backward)
      : k(a.keys * a.size), v(a.keys * a.size), k_t(a.keys * a.size), v_t(backward ? a.keys * a.size : 0),
        dk(v_t.size()), dv(v_t.size()), p(a.keys), dp(a.keys), q(a.size), grad(a.size), row(a.size) {}
};

AVFMAE_INLINE void softmax(float* x, int n) {
  float top = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : top)
  for (int i = 0; i < n; ++i) top = std::max(top, x[i]);
  for (int i = 0; i < n; ++i) x[i] = fast_exp(x[i] - top);
  const float inverse = 1 / sum(x, n);
  for (int i = 0; i < n; ++i) x[i] *= inverse;
}

// y = Σ_i a_i·(row i of x), rows of n numbers.
AVFMAE_INLINE void combine(const float* a, int rows, const float* x, float* y, int n) {
  std::fill_n(y, n, 0.0f);
  for (int i = 0; i < rows; ++i) axpy(a[i], x + i * n, y, n);
}

AVFMAE_CLONES inline void attend(const Attention& a, const Numbers& q, const Numbers& kv, const Numbers& out, int64_t b, int h,
                                 HeadScratch& s) {
  const int n = a.keys, D = a.size;
  for (int j = 0; j < n; ++j) {
    kv.load(a.k.at(b, j, h, D), s.k_t.data() + j, D, n);
    kv.load(a.v.at(b, j, h, D), s.v.data() + j * D, D);
  }
  for (int i = 0; i < a.queries; ++i) {
    q.load(a.q.at(b, i, h, D), s.q.data(), D);
    for (float& x : s.q) x *= a.scale;
    combine(s.q.data(), D, s.k_t.data(), s.p.data(), n);
    softmax(s.p.data(), n);
    combine(s.p.data(), n, s.v.data(), s.row.data(), D);
    out.store(a.out.at(b, i, h, D), s.row.data(), D);
  }
}

// Gradients of one head; the probabilities come from q and k once more. `out`, where given, gets the answer again.
AVFMAE_CLONES inline void attend_backward(const Attention& a, const Numbers& grad, const Numbers& q, const Numbers& kv, const Numbers& dq,
                                          const Numbers& dkv, const Numbers& out, int64_t b, int h, HeadScratch& s) {
  const int n = a.keys, D = a.size;
  for (int j = 0; j < n; ++j) {
    kv.load(a.k.at(b, j, h, D), s.k.data() + j * D, D);
    kv.load(a.v.at(b, j, h, D), s.v.data() + j * D, D);
    for (int d = 0; d < D; ++d) s.k_t[d * n + j] = s.k[j * D + d], s.v_t[d * n + j] = s.v[j * D + d];
  }
  std::fill(s.dk.begin(), s.dk.end(), 0.0f);
  std::fill(s.dv.begin(), s.dv.end(), 0.0f);
  for (int i = 0; i < a.queries; ++i) {
    q.load(a.q.at(b, i, h, D), s.q.data(), D);
    grad.load(a.out.at(b, i, h, D), s.grad.data(), D);
    for (float& x : s.q) x *= a.scale;
    combine(s.q.data(), D, s.k_t.data(), s.p.data(), n);
    softmax(s.p.data(), n);
    if (out) {
      combine(s.p.data(), n, s.v.data(), s.row.data(), D);
      out.store(a.out.at(b, i, h, D), s.row.data(), D);
    }
    combine(s.grad.data(), D, s.v_t.data(), s.dp.data(), n);
    const float mean = dot(s.p.data(), s.dp.data(), n);
    for (int j = 0; j < n; ++j) {
      axpy(s.p[j], s.grad.data(), s.dv.data() + j * D, D);
      s.dp[j] = s.p[j] * (s.dp[j] - mean);  // gradient of the logit
      axpy(s.dp[j], s.q.data(), s.dk.data() + j * D, D);
    }
    combine(s.dp.data(), n, s.k.data(), s.row.data(), D);
    for (float& x : s.row) x *= a.scale;
    dq.store(a.dq.at(b, i, h, D), s.row.data(), D);
  }
  for (int j = 0; j < n; ++j) {
    dkv.store(a.dk.at(b, j, h, D), s.dk.data() + j * D, D);
    dkv.store(a.dv.at(b, j, h, D), s.dv.data() + j * D, D);
  }
}

// Calls body(sequence, head, scratch) for every head of every sequence; tiny ones share a task.
template <typename Body>
void for_heads(const Attention& a, bool backward, Body body) {
  const int64_t work = int64_t{a.queries} * a.keys * a.size;
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(work, 1));
  torch::stable::parallel_for(0, a.tasks(), grain, [&](int64_t begin, int64_t end) {
    HeadScratch scratch(a, backward);
    for (int64_t t = begin; t < end; ++t) body(t / a.heads, static_cast<int>(t % a.heads), scratch);
  });
}

}  // namespace avfmae
