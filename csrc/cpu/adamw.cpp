// AdamW on the CPU: all tensors' weights, moments and copies in one pass; and the norm of all gradients in another.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "cpu/adamw.h"

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

float squares_of(const Numbers& gradient, int64_t first, int n) {
  float g[kChunk];
  gradient.load(first, g, n);
  return dot(g, g, n);
}

Tensor gradient_norm(Tensors gradients) {
  STD_TORCH_CHECK(!gradients.empty(), "gradient_norm: no gradients");
  const std::vector<Piece> pieces = cut(gradients);
  const std::vector<Numbers> from = numbers(gradients);
  std::vector<float> sums(pieces.size());
  for_pieces(pieces, [&](int64_t i, const Piece& p) { sums[i] = squares_of(from[p.tensor], p.first, p.count); });
  Tensor norm = torch::stable::new_empty(gradients[0], {}, ScalarType::Float);
  scalar(norm) = static_cast<float>(std::sqrt(sum_in_order(sums)));
  return norm;
}

template <typename Number>
AVFMAE_INLINE void copy_lanes(const Number* from, Number* to, int n) {
  for (int i = 0; i < n; ++i) to[i] = from[i];
}

// A piece, whose gradient's squares are added up first if asked for; then what is not finite leaves the piece as it is.
template <typename Moments>
AVFMAE_INLINE void update(const Rule r, const Numbers& gradient, float* weight, const Moments& moments, const Numbers& copy, int64_t first, int n,
                          float* squares) {
  float g[kChunk];
  gradient.load(first, g, n);
  if (squares && !std::isfinite(*squares = dot(g, g, n))) return;
  const Moments here = moments.at(first);
  int i = 0;
  for (; i + kBlock <= n; i += kBlock) step(r, g + i, weight + first + i, here.at(i), first + i);
  if (const int left = n - i; left > 0) {
    float w[kBlock] = {}, last[kBlock] = {};
    std::remove_pointer_t<decltype(here.m)> m[kBlock] = {};
    std::remove_pointer_t<decltype(here.v)> v[kBlock] = {};
    copy_lanes(weight + first + i, w, left), copy_lanes(g + i, last, left), copy_lanes(here.m + i, m, left), copy_lanes(here.v + i, v, left);
    step(r, last, w, Moments{m, v}, first + i);
    copy_lanes(w, weight + first + i, left), copy_lanes(m, here.m + i, left), copy_lanes(v, here.v + i, left);
  }
  if (copy) copy.store(first, weight + first, n);
}

void adamw(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors steps, Tensors copies, const Tensor lr,
           double beta1, double beta2, double eps, double weight_decay, const Tensor divisor, const Tensor skip,
           std::optional<Tensor> squares) {
  const size_t n = params.size();
  STD_TORCH_CHECK(grads.size() == n && exp_avgs.size() == n && exp_avg_sqs.size() == n && steps.size() == n &&
                      (copies.empty() || copies.size() == n), "adamw: every parameter needs its gradient, moments and step");
  if (scalar(skip) != 0 || n == 0) return;
  const bool compact = exp_avgs[0].scalar_type() == ScalarType::Char;
  const ScalarType first = compact ? ScalarType::Char : ScalarType::Float, second = compact ? ScalarType::BFloat16 : ScalarType::Float;
  const Recipe recipe{scalar(lr), beta1, beta2, eps, weight_decay, scalar(divisor)};
  std::vector<Rule> rules(n);
  for (size_t t = 0; t < n; ++t) {
    const int64_t numel = params[t].numel();
    for (const Tensor* each : {&grads[t], &exp_avgs[t], &exp_avg_sqs[t], copies.empty() ? &params[t] : &copies[t]})
      STD_TORCH_CHECK(each->numel() == numel && each->is_contiguous(),
                      "adamw: gradients, moments and copies must be contiguous and as large as their parameters");
    STD_TORCH_CHECK(params[t].scalar_type() == ScalarType::Float && exp_avgs[t].scalar_type() == first && exp_avg_sqs[t].scalar_type() == second,
                    "adamw: parameters must be float32, and moments all float32 or all compact");
    rules[t] = recipe.rule(scalar(steps[t]) += 1);
  }
  const std::vector<Numbers> gradient = numbers(grads), copy = numbers(copies);
  const std::vector<Piece> pieces = cut(params);
  std::vector<float> sums(squares ? pieces.size() : 0);
  for_pieces(pieces, [&](int64_t i, const Piece& p) {
    const size_t t = p.tensor;
    const Numbers to = copies.empty() ? Numbers() : copy[t];
    float *w = data<float>(params[t]), *sum = squares ? &sums[i] : nullptr;
    if (compact)
      update(rules[t], gradient[t], w, Compact{data<int8_t>(exp_avgs[t]), data<uint16_t>(exp_avg_sqs[t])}, to, p.first, p.count, sum);
    else
      update(rules[t], gradient[t], w, Wide{data<float>(exp_avgs[t]), data<float>(exp_avg_sqs[t])}, to, p.first, p.count, sum);
  });
  if (squares) scalar(*squares) += static_cast<float>(sum_in_order(sums));
}

}  // namespace
}  // namespace avfmae

STABLE_TORCH_LIBRARY_IMPL(avfmae, CPU, m) {
  m.impl("adamw", TORCH_BOX(&avfmae::adamw));
  m.impl("gradient_norm", TORCH_BOX(&avfmae::gradient_norm));
}
