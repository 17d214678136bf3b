// Runs the numeric kernels of csrc/cpu without torch, against plain loops in double precision; prints what is wrong.
// Compiled for each processor generation, and run where it runs: natively, or in an emulator.
#include <array>
#include <cstdio>
#include <random>
#include <vector>

#include "cpu/adamw.h"
#include "cpu/attention_float.h"
#include "cpu/matmul.h"
#include "cpu/simd.h"

using namespace avfmae;

namespace {

int failures = 0;
std::mt19937 generator(0);

std::vector<float> normal(int64_t n) {
  std::normal_distribution<float> distribution;
  std::vector<float> x(n);
  for (float& v : x) v = distribution(generator);
  return x;
}

// Relative distance in the L2 norm.
template <typename A, typename B>
void close(const char* what, const A& got, const B& want, double tolerance) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < want.size(); ++i) difference += std::pow(double(got[i]) - want[i], 2), size += std::pow(double(want[i]), 2);
  const double distance = std::sqrt(difference / size);
  if (!(distance <= tolerance)) std::printf("%s: %g apart, at most %g allowed\n", what, distance, tolerance), ++failures;
}

void check_matmul(int M, int N, int K) {
  const std::vector<float> a = normal(M * K), b = normal(K * N);
  std::vector<float> c(M * N), added(M * N, 1), at(K * M);
  std::vector<double> want(M * N), want_added(M * N);
  for (int m = 0; m < M; ++m)
    for (int k = 0; k < K; ++k) at[k * M + m] = a[m * K + k];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) {
      for (int k = 0; k < K; ++k) want[m * N + n] += double(a[m * K + k]) * b[k * N + n];
      want_added[m * N + n] = want[m * N + n] + 1;
    }
  matmul({a.data(), K, 1}, b.data(), c.data(), M, N, K);
  close("matmul", c, want, 1e-6);
  matmul<true>({at.data(), 1, M}, b.data(), added.data(), M, N, K);
  close("matmul, transposed and added", added, want_added, 1e-6);
}

void check_transpose() {
  const int rows = 3 * kBlock, columns = 2 * kBlock;
  const std::vector<float> x = normal(rows * columns);
  std::vector<float> y(x.size()), want(x.size());
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c) want[c * rows + r] = x[r * columns + c];
  transpose(x.data(), y.data(), rows, columns);
  close("transpose", y, want, 0);
}

void check_rounding() {
  const std::vector<float> x = normal(1003);
  std::vector<uint16_t> rounded(x.size()), one(x.size());
  round_to_bfloat16(x.data(), rounded.data(), static_cast<int>(x.size()));
  for (size_t i = 0; i < x.size(); ++i) one[i] = to_bfloat16(x[i]);
  close("round_to_bfloat16", rounded, one, 0);
  std::vector<double> want(x.size());
  std::vector<float> got(x.size());
  for (size_t i = 0; i < x.size(); ++i) got[i] = fast_exp(x[i]), want[i] = std::exp(double(x[i]));
  close("fast_exp", got, want, 2e-7);
}

void check_bytes() {
  std::vector<uint8_t> bytes(kBlock + 3);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(37 * i + 200);
  for (int n : {kBlock, 3}) {
    const Vector v = vector_of(bytes.data() + 1, n);
    for (int l = 0; l < kBlock; ++l)
      if (v[l] != (l < n ? bytes[l + 1] : 0)) std::printf("vector_of: number %d of %d is %g\n", l, n, v[l]), ++failures;
  }
}

void check_attention(int N, int M, int D) {
  const int heads = 2, C = heads * D;
  const std::vector<float> q = normal(N * C), kv = normal(M * 2 * C), grad = normal(N * C);
  std::vector<float> out(N * C), recomputed(N * C), dq(N * C), dkv(M * 2 * C);
  Attention a{};
  a.heads = heads, a.size = D, a.queries = N, a.keys = M, a.batches = 1, a.scale = 1 / std::sqrt(float(D));
  a.q = a.out = a.dq = {0, C}, a.k = a.dk = {0, 2 * C}, a.v = a.dv = {0, 2 * C, C};
  HeadScratch scratch(a, true);
  for (int h = 0; h < heads; ++h) {
    attend(a, {.q = Numbers(q.data()), .kv = Numbers(kv.data()), .out = Numbers(out.data())}, 0, h, scratch);
    attend_backward(a, {.q = Numbers(q.data()), .kv = Numbers(kv.data()), .out = Numbers(recomputed.data()), .grad = Numbers(grad.data()),
                        .dq = Numbers(dq.data()), .dkv = Numbers(dkv.data())}, 0, h, scratch);
  }
  std::vector<double> want(N * C), want_dq(N * C), want_dkv(M * 2 * C), p(M), dp(M);
  for (int h = 0; h < heads; ++h)
    for (int i = 0; i < N; ++i) {
      double total = 0, mean = 0;
      for (int j = 0; j < M; ++j) {
        p[j] = dp[j] = 0;
        for (int d = 0; d < D; ++d) {
          p[j] += double(q[i * C + h * D + d]) * kv[j * 2 * C + h * D + d] / std::sqrt(double(D));
          dp[j] += double(grad[i * C + h * D + d]) * kv[j * 2 * C + C + h * D + d];
        }
        total += p[j] = std::exp(p[j]);
      }
      for (int j = 0; j < M; ++j) mean += (p[j] /= total) * dp[j];
      for (int j = 0; j < M; ++j) {
        const double ds = p[j] * (dp[j] - mean) / std::sqrt(double(D));
        for (int d = 0; d < D; ++d) {
          want[i * C + h * D + d] += p[j] * kv[j * 2 * C + C + h * D + d];
          want_dq[i * C + h * D + d] += ds * kv[j * 2 * C + h * D + d];
          want_dkv[j * 2 * C + h * D + d] += ds * q[i * C + h * D + d];
          want_dkv[j * 2 * C + C + h * D + d] += p[j] * grad[i * C + h * D + d];
        }
      }
    }
  close("attention", out, want, 1e-6), close("attention, recomputed", recomputed, want, 1e-6);
  close("attention's gradient to q", dq, want_dq, 2e-6), close("attention's gradient to kv", dkv, want_dkv, 2e-6);
}

// Three steps of AdamW on random gradients.
void check_adamw() {
  const int n = 4 * kBlock;
  const Recipe recipe{1e-2, 0.9, 0.95, 1e-8, 0.05, 2};
  std::vector<float> w = normal(n), m(n), v(n), compact_w = w;
  std::vector<int8_t> levels(n);
  std::vector<uint16_t> halves(n);
  std::vector<double> want(w.begin(), w.end()), want_m(n), want_v(n);
  for (int t = 1; t <= 3; ++t) {
    const std::vector<float> g = normal(n);
    for (int i = 0; i < n; i += kBlock) {
      step(recipe.rule(t), g.data() + i, w.data() + i, Wide{m.data() + i, v.data() + i}, i);
      step(recipe.rule(t), g.data() + i, compact_w.data() + i, Compact{levels.data() + i, halves.data() + i}, i);
    }
    for (int i = 0; i < n; ++i) {
      want_m[i] += 0.1 * (g[i] / 2.0 - want_m[i]), want_v[i] += 0.05 * (g[i] * g[i] / 4.0 - want_v[i]);
      const double root = std::sqrt(want_v[i] / (1 - std::pow(0.95, t)));
      want[i] = (1 - 1e-2 * 0.05) * want[i] - 1e-2 * want_m[i] / (1 - std::pow(0.9, t)) / (root + 1e-8);
    }
  }
  close("adamw", w, want, 1e-6), close("adamw's first moment", m, want_m, 1e-6), close("adamw's second moment", v, want_v, 1e-6);
  close("adamw with compact moments", compact_w, want, 1e-3);
}

}  // namespace

int main() {
  for (const auto [M, N, K] : {std::array{1, kBlock, 1}, std::array{7, 3 * kBlock, 11}, std::array{20, 2 * kBlock, 64}}) check_matmul(M, N, K);
  check_transpose(), check_rounding(), check_bytes();
  check_attention(11, 11, 64), check_attention(70, 8, 20), check_attention(1, 2, 3), check_adamw();
  if (!failures) std::printf("right with vectors of %d\n", kBlock);
  return failures != 0;
}
