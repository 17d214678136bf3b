// gelu_backward on the CPU: the gradient and the output share one exponential.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <vector>

#include "cpu/simd.h"

namespace avfmae {
namespace {

using torch::stable::Tensor;

constexpr int kGeluChunk = 2048;  // numbers that are worked on in cache
constexpr int64_t kGeluParts = 64;  // of the rows, at most, each summed apart: a number of threads does not change the sums

// Φ(x) and the normal density φ(x), by Abramowitz and Stegun 7.1.26: the tail beyond |x| is ½·poly(t)·e^{-x²/2}.
AVFMAE_INLINE void normal(float x, float& below, float& density) {
  const float t = 1 / (1 + 0.3275911f * 0.70710678f * std::abs(x)), e = fast_exp(-0.5f * x * x);
  const float poly = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  const float tail = 0.5f * poly * e;
  below = x < 0 ? tail : 1 - tail;
  density = 0.39894228f * e;
}

// Part of a row. Numbers of float32 are worked on in place, others in memory of their own.
void gelu_backward_chunk(const Numbers& grad, const Numbers& x, const Numbers& grad_x, const Numbers& out, int64_t first, int n, float* sums) {
  float v[kGeluChunk], g[kGeluChunk];
  const float *inputs = v, *upstream = g;
  float *grads = g, *outputs = v;
  const bool wide = std::ranges::all_of(std::array{x.type, grad.type, grad_x.type, out.type}, [](ScalarType t) { return t == ScalarType::Float; });
  if (wide) {
    inputs = static_cast<const float*>(x.data) + first, upstream = static_cast<const float*>(grad.data) + first;
    grads = static_cast<float*>(grad_x.data) + first, outputs = static_cast<float*>(out.data) + first;
  } else {
    x.load(first, v, n), grad.load(first, g, n);
  }
#pragma GCC ivdep
  for (int i = 0; i < n; ++i) {
    const float at = inputs[i];
    float below, density;
    normal(at, below, density);
    const float to_x = upstream[i] * (below + at * density);
    grads[i] = to_x, sums[i] += to_x;
    outputs[i] = at * below;
  }
  if (!wide) grad_x.store(first, g, n), out.store(first, v, n);
}

void gelu_backward_into(const Tensor& grad, const Tensor& x, ScalarType, const Tensor grad_x, const Tensor out, const Tensor sums) {
  STD_TORCH_CHECK(x.is_contiguous() && grad.is_contiguous() && grad.numel() == x.numel(), "gelu_backward: grad must be contiguous, like x");
  for (const Tensor* to : {&grad_x, &out}) STD_TORCH_CHECK(to->is_contiguous() && to->numel() == x.numel(), "gelu_backward: results are like x");
  const int64_t columns = x.size(x.dim() - 1), rows = x.numel() / columns, parts = std::min(kGeluParts, (rows + 15) / 16);
  STD_TORCH_CHECK(sums.is_contiguous() && sums.numel() == columns, "gelu_backward: sums are (C)");
  const Numbers upstream(grad), from(x), to(grad_x), answer(out);
  std::vector<float> totals(parts * columns);
  torch::stable::parallel_for(0, parts, /*grain_size=*/1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part)
      for (int64_t row = part * rows / parts; row < (part + 1) * rows / parts; ++row)
        for (int64_t c = 0; c < columns; c += kGeluChunk) {
          const int n = static_cast<int>(std::min<int64_t>(kGeluChunk, columns - c));
          gelu_backward_chunk(upstream, from, to, answer, row * columns + c, n, totals.data() + part * columns + c);
        }
  });
  for (int64_t p = 1; p < parts; ++p)
    for (int64_t c = 0; c < columns; ++c) totals[c] += totals[p * columns + c];
  Numbers(sums).store(0, totals.data(), static_cast<int>(columns));
}

std::tuple<Tensor, Tensor, Tensor> gelu_backward(const Tensor& grad, const Tensor& x, ScalarType dtype) {
  Tensor grad_x = torch::stable::empty_like(x), out = torch::stable::empty_like(x);
  Tensor sums = torch::stable::new_empty(x, {x.size(x.dim() - 1)}, dtype);
  gelu_backward_into(grad, x, dtype, grad_x, out, sums);
  return {grad_x, out, sums};
}

}  // namespace
}  // namespace avfmae

STABLE_TORCH_LIBRARY_IMPL(avfmae, CPU, m) {
  m.impl("gelu_backward", TORCH_BOX(&avfmae::gelu_backward));
  m.impl("gelu_backward.out", TORCH_BOX(&avfmae::gelu_backward_into));
}
