// gelu_backward on the CPU: the gradient and the output share one exponential.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <tuple>

#include "cpu/simd.h"

namespace avfmae {
namespace {

using torch::stable::Tensor;

constexpr int kGeluChunk = 2048;  // numbers that are worked on in cache

// Φ(x) and the normal density φ(x), by Abramowitz and Stegun 7.1.26: the tail beyond |x| is ½·poly(t)·e^{-x²/2}.
AVFMAE_INLINE void normal(float x, float& below, float& density) {
  const float t = 1 / (1 + 0.3275911f * 0.70710678f * std::abs(x)), e = fast_exp(-0.5f * x * x);
  const float poly = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  const float tail = 0.5f * poly * e;
  below = x < 0 ? tail : 1 - tail;
  density = 0.39894228f * e;
}

// Numbers of float32 are worked on in place, others in memory of their own.
void gelu_backward_chunk(const Numbers& grad, const Numbers& x, const Numbers& grad_x, const Numbers& out, int64_t first, int n) {
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
    grads[i] = upstream[i] * (below + at * density);
    outputs[i] = at * below;
  }
  if (!wide) grad_x.store(first, g, n), out.store(first, v, n);
}

void gelu_backward_into(const Tensor& grad, const Tensor& x, const Tensor grad_x, const Tensor out) {
  STD_TORCH_CHECK(x.is_contiguous() && grad.is_contiguous() && grad.numel() == x.numel(), "gelu_backward: grad must be contiguous, like x");
  for (const Tensor* to : {&grad_x, &out}) STD_TORCH_CHECK(to->is_contiguous() && to->numel() == x.numel(), "gelu_backward: results are like x");
  const Numbers upstream(grad), from(x), to(grad_x), answer(out);
  const int64_t numbers = x.numel();
  torch::stable::parallel_for(0, (numbers + kGeluChunk - 1) / kGeluChunk, /*grain_size=*/4, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin * kGeluChunk; c < std::min(end * kGeluChunk, numbers); c += kGeluChunk)
      gelu_backward_chunk(upstream, from, to, answer, c, static_cast<int>(std::min<int64_t>(kGeluChunk, numbers - c)));
  });
}

std::tuple<Tensor, Tensor> gelu_backward(const Tensor& grad, const Tensor& x) {
  Tensor grad_x = torch::stable::empty_like(x), out = torch::stable::empty_like(x);
  gelu_backward_into(grad, x, grad_x, out);
  return {grad_x, out};
}

}  // namespace
}  // namespace avfmae

STABLE_TORCH_LIBRARY_IMPL(avfmae, CPU, m) {
  m.impl("gelu_backward", TORCH_BOX(&avfmae::gelu_backward));
  m.impl("gelu_backward.out", TORCH_BOX(&avfmae::gelu_backward_into));
}
