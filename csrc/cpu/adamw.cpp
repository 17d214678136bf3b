// AdamW on the CPU: all tensors' weights, moments and copies in one pass; and the norm of all gradients in another.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "cpu/simd.h"

namespace avfmae {
namespace {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

constexpr int kChunk = 4096;  // numbers that are worked on in cache

// Equal pieces of many tensors, so that threads share the work evenly whatever the tensors' sizes.
struct Piece {
  size_t tensor;
  int64_t first;
  int count;
};

std::vector<Piece> cut(const Tensors& tensors) {
  std::vector<Piece> pieces;
  for (size_t t = 0; t < tensors.size(); ++t) {
    STD_TORCH_CHECK(tensors[t].is_contiguous(), "adamw: tensors must be contiguous");
    for (int64_t i = 0; i < tensors[t].numel(); i += kChunk)
      pieces.push_back({t, i, static_cast<int>(std::min<int64_t>(kChunk, tensors[t].numel() - i))});
  }
  return pieces;
}

template <typename Body>
void for_pieces(const std::vector<Piece>& pieces, Body body) {
  torch::stable::parallel_for(0, pieces.size(), /*grain_size=*/4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i, pieces[i]);
  });
}

std::vector<Numbers> numbers(const Tensors& tensors) { return {tensors.begin(), tensors.end()}; }

float scalar(const Tensor& t) {
  STD_TORCH_CHECK(t.numel() == 1 && t.scalar_type() == ScalarType::Float, "adamw: scalars must be float32 tensors of one number");
  return *static_cast<const float*>(t.const_data_ptr());
}

AVFMAE_CLONES float squares(const Numbers& gradient, int64_t first, int n) {
  float g[kChunk];
  gradient.load(first, g, n);
  return dot(g, g, n);
}

Tensor gradient_norm(Tensors gradients) {
  STD_TORCH_CHECK(!gradients.empty(), "gradient_norm: no gradients");
  const std::vector<Piece> pieces = cut(gradients);
  const std::vector<Numbers> from = numbers(gradients);
  std::vector<float> sums(pieces.size());
  for_pieces(pieces, [&](int64_t i, const Piece& p) { sums[i] = squares(from[p.tensor], p.first, p.count); });
  double total = 0;  // in one order, whatever the threads did
  for (float s : sums) total += s;
  Tensor norm = torch::stable::new_empty(gradients[0], {}, ScalarType::Float);
  *static_cast<float*>(norm.mutable_data_ptr()) = static_cast<float>(std::sqrt(total));
  return norm;
}

struct Rule {
  float lr, beta1, beta2, eps, weight_decay, divisor;
};

AVFMAE_CLONES void update(const Rule& r, const Numbers& gradient, float* __restrict__ w, float* __restrict__ m, float* __restrict__ v,
                          const Numbers& copy, int64_t first, int n, float correction1, float root_correction2) {
  float g[kChunk];
  gradient.load(first, g, n);
  const float rate = r.lr / correction1, keep = 1 - r.lr * r.weight_decay, share = 1 / r.divisor;
  for (int i = 0; i < n; ++i) {
    const float slope = g[i] * share;
    m[i] += (1 - r.beta1) * (slope - m[i]);
    v[i] = r.beta2 * v[i] + (1 - r.beta2) * slope * slope;
    w[i] = keep * w[i] - rate * m[i] / (std::sqrt(v[i]) / root_correction2 + r.eps);
  }
  if (copy) copy.store(first, w, n);
}

void adamw(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors steps, Tensors copies, const Tensor lr,
           double beta1, double beta2, double eps, double weight_decay, const Tensor divisor, const Tensor skip) {
  const size_t n = params.size();
  STD_TORCH_CHECK(grads.size() == n && exp_avgs.size() == n && exp_avg_sqs.size() == n && steps.size() == n &&
                      (copies.empty() || copies.size() == n), "adamw: every parameter needs its gradient, moments and step");
  if (scalar(skip) != 0) return;
  const Rule rule{scalar(lr), static_cast<float>(beta1), static_cast<float>(beta2), static_cast<float>(eps),
                  static_cast<float>(weight_decay), scalar(divisor)};
  std::vector<float> correction1(n), root_correction2(n);
  for (size_t t = 0; t < n; ++t) {
    const int64_t numel = params[t].numel();
    STD_TORCH_CHECK(grads[t].numel() == numel && exp_avgs[t].numel() == numel && exp_avg_sqs[t].numel() == numel &&
                        grads[t].is_contiguous() && exp_avgs[t].is_contiguous() && exp_avg_sqs[t].is_contiguous() &&
                        (copies.empty() || (copies[t].numel() == numel && copies[t].is_contiguous())),
                    "adamw: gradients, moments and copies must be contiguous and as large as their parameters");
    for (const Tensor* state : {&params[t], &exp_avgs[t], &exp_avg_sqs[t]})
      STD_TORCH_CHECK(state->scalar_type() == ScalarType::Float, "adamw: parameters and moments must be float32");
    float* step = static_cast<float*>(steps[t].mutable_data_ptr());
    *step += 1;
    correction1[t] = static_cast<float>(1 - std::pow(beta1, *step));
    root_correction2[t] = static_cast<float>(std::sqrt(1 - std::pow(beta2, *step)));
  }
  const std::vector<Numbers> gradient = numbers(grads), copy = numbers(copies);
  const auto at = [](const Tensor& t, int64_t first) { return static_cast<float*>(t.mutable_data_ptr()) + first; };
  for_pieces(cut(params), [&](int64_t, const Piece& p) {
    const size_t t = p.tensor;
    update(rule, gradient[t], at(params[t], p.first), at(exp_avgs[t], p.first), at(exp_avg_sqs[t], p.first),
           copies.empty() ? Numbers() : copy[t], p.first, p.count, correction1[t], root_correction2[t]);
  });
}

}  // namespace
}  // namespace avfmae

STABLE_TORCH_LIBRARY_IMPL(avfmae, CPU, m) {
  m.impl("adamw", TORCH_BOX(&avfmae::adamw));
  m.impl("gradient_norm", TORCH_BOX(&avfmae::gradient_norm));
}
