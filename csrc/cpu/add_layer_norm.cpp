// add_layer_norm on the CPU. Rows may lie anywhere (slots of the regions' buffer), for reading and for writing.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <optional>
#include <vector>

#include "cpu/simd.h"

namespace avfmae {
namespace {

using torch::stable::Tensor;

// A (outer, inner, C) view; row r is (r / inner, r % inner).
struct View {
  Numbers numbers;
  int64_t inner = 1, outer_stride = 0, inner_stride = 0;

  View() = default;
  View(const Tensor& t, const Tensor& like) : numbers(t), inner(t.size(1)), outer_stride(t.stride(0)), inner_stride(t.stride(1)) {
    STD_TORCH_CHECK(t.dim() == 3 && (t.size(2) <= 1 || t.stride(2) == 1) && t.size(0) == like.size(0) && t.size(1) == like.size(1) &&
                        t.size(2) == like.size(2),
                    "add_layer_norm: tensors must be (outer, inner, C) of one shape, columns dense");
  }
  View(const std::optional<Tensor>& t, const Tensor& like) : View(t ? View(*t, like) : View()) {}

  explicit operator bool() const { return static_cast<bool>(numbers); }
  AVFMAE_INLINE int64_t at(int64_t r) const { return r / inner * outer_stride + r % inner * inner_stride; }
  AVFMAE_INLINE void load(int64_t r, float* out, int C) const { numbers.load(at(r), out, C); }
  AVFMAE_INLINE void prefetch_to_write(int64_t r, int C) const { numbers.prefetch_to_write(at(r), C); }
  AVFMAE_INLINE void store(int64_t r, const float* in, int C) const { numbers.store(at(r), in, C); }
};

struct Norm {
  int64_t rows;
  int C;
  float eps;
  std::vector<float> weight, bias;  // in float32, whatever they are kept in

  Norm(const Tensor& like, const Tensor& w, const Tensor& b, double eps = 0)
      : rows(like.size(0) * like.size(1)), C(static_cast<int>(like.size(2))), eps(static_cast<float>(eps)), weight(C), bias(C) {
    STD_TORCH_CHECK(w.numel() == C && b.numel() == C && w.is_contiguous() && b.is_contiguous(), "add_layer_norm: weight and bias must be (C)");
    Numbers(w).load(0, weight.data(), C);
    Numbers(b).load(0, bias.data(), C);
  }
};

AVFMAE_CLONES void norm_row(const Norm& norm, const View& x, const View& residual, const View& sum_out, const View& out, float* stats,
                            int64_t r, float* row, float* other) {
  const int C = norm.C;
  out.prefetch_to_write(r, C);
  if (sum_out) sum_out.prefetch_to_write(r, C);
  x.load(r, row, C);
  if (residual) {
    residual.load(r, other, C);
    for (int i = 0; i < C; ++i) row[i] += other[i];
  }
  if (sum_out) {
    sum_out.store(r, row, C);
    sum_out.load(r, row, C);  // what is normalised is the stored sum, rounded as it is
  }
  const float mean = sum(row, C) / C;
  float square = 0;
#pragma omp simd reduction(+ : square)
  for (int i = 0; i < C; ++i) {
    row[i] -= mean;
    square += row[i] * row[i];
  }
  const float inverse = 1 / std::sqrt(square / C + norm.eps), *weight = norm.weight.data(), *bias = norm.bias.data();
  for (int i = 0; i < C; ++i) row[i] = row[i] * inverse * weight[i] + bias[i];
  out.store(r, row, C);
  stats[2 * r] = mean, stats[2 * r + 1] = inverse;
}

struct Scratch {
  std::vector<float> x, g, d;
  explicit Scratch(int C) : x(C), g(C), d(C) {}
};

struct Slopes {
  View x, residual;
};

AVFMAE_CLONES void slope_row(const Norm& norm, const View& grad_sum, const View& grad, const View& sum_in, const float* stats,
                             const Slopes& slopes, const View& again, float* __restrict__ d_weight, float* __restrict__ d_bias, int64_t r, Scratch& s) {
  const int C = norm.C;
  float *__restrict__ x = s.x.data(), *__restrict__ g = s.g.data(), *__restrict__ d = s.d.data();
  for (const View* to : {&slopes.x, &slopes.residual, &again})
    if (*to) to->prefetch_to_write(r, C);
  if (grad_sum) grad_sum.load(r, d, C);
  else std::fill_n(d, C, 0.0f);
  if (grad) {
    const float mean = stats[2 * r], inverse = stats[2 * r + 1];
    sum_in.load(r, x, C);
    grad.load(r, g, C);
    const float *weight = norm.weight.data(), *bias = norm.bias.data();
    float level = 0, tilt = 0;
#pragma omp simd reduction(+ : level, tilt)
    for (int i = 0; i < C; ++i) {
      x[i] = (x[i] - mean) * inverse;
      d_weight[i] += g[i] * x[i];
      d_bias[i] += g[i];
      g[i] *= weight[i];
      level += g[i];
      tilt += g[i] * x[i];
    }
    level /= C, tilt /= C;
    for (int i = 0; i < C; ++i) {
      d[i] += inverse * (g[i] - level - x[i] * tilt);
      x[i] = x[i] * weight[i] + bias[i];
    }
    if (again) again.store(r, x, C);
  }
  slopes.x.store(r, d, C);
  if (slopes.residual) slopes.residual.store(r, d, C);
}

void check_sums(const Tensor& t, int64_t numbers) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.is_contiguous() && t.numel() == numbers,
                  "add_layer_norm: stats must be contiguous float32 (rows, 2), parts (1, 2, C)");
}

void add_layer_norm(const Tensor& x, std::optional<Tensor> residual, const Tensor& weight, const Tensor& bias, double eps,
                    std::optional<Tensor> sum_out, const Tensor& normalised, const Tensor& stats) {
  const Norm norm(x, weight, bias, eps);
  const View in(x, x), other(residual, x), total(sum_out, x), out(normalised, x);
  check_sums(stats, norm.rows * 2);
  auto* statistics = static_cast<float*>(stats.mutable_data_ptr());
  torch::stable::parallel_for(0, norm.rows, std::max(1, 8192 / norm.C), [&](int64_t begin, int64_t end) {
    Scratch s(norm.C);
    for (int64_t r = begin; r < end; ++r) norm_row(norm, in, other, total, out, statistics, r, s.x.data(), s.g.data());
  });
}

// `parts` (1, 2, C) float32 receives the gradients to weight and bias: summed by runs of rows, then over the runs, whatever the threads did.
void add_layer_norm_backward(std::optional<Tensor> grad_sum, std::optional<Tensor> grad_normalised, const Tensor& sum_in,
                             const Tensor& stats, const Tensor& weight, const Tensor& bias, const Tensor& grad_x,
                             std::optional<Tensor> grad_residual, std::optional<Tensor> normalised, const Tensor& parts) {
  const Norm norm(sum_in, weight, bias);
  const View g_sum(grad_sum, sum_in), g(grad_normalised, sum_in), x(sum_in, sum_in), again(normalised, sum_in);
  const Slopes slopes{View(grad_x, sum_in), View(grad_residual, sum_in)};
  check_sums(stats, norm.rows * 2);
  check_sums(parts, 2 * norm.C);
  const auto* statistics = static_cast<const float*>(stats.const_data_ptr());
  const int64_t runs = std::clamp<int64_t>(norm.rows / 16, 1, 64), size = 2 * norm.C;
  static thread_local std::vector<float> memory;
  memory.assign(runs * size, 0.0f);
  float* sums = memory.data();
  torch::stable::parallel_for(0, runs, 1, [&](int64_t begin, int64_t end) {
    Scratch s(norm.C);
    for (int64_t run = begin; run < end; ++run)
      for (int64_t r = run * norm.rows / runs; r < (run + 1) * norm.rows / runs; ++r)
        slope_row(norm, g_sum, g, x, statistics, slopes, again, sums + run * size, sums + run * size + norm.C, r, s);
  });
  for (int64_t run = 1; run < runs; ++run)
    for (int64_t i = 0; i < size; ++i) sums[i] += sums[run * size + i];
  std::copy_n(sums, size, static_cast<float*>(parts.mutable_data_ptr()));
}

}  // namespace
}  // namespace avfmae

STABLE_TORCH_LIBRARY_IMPL(avfmae, CPU, m) {
  m.impl("add_layer_norm", TORCH_BOX(&avfmae::add_layer_norm));
  m.impl("add_layer_norm_backward", TORCH_BOX(&avfmae::add_layer_norm_backward));
}
