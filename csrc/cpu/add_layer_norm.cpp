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
  // A row's memory itself where it is whole vectors of float32.
  AVFMAE_INLINE float* in_place(int64_t r, int C) const {
    return numbers.type == ScalarType::Float && C % kBlock == 0 ? static_cast<float*>(numbers.data) + at(r) : nullptr;
  }
  // Where a row can be written before it is stored.
  AVFMAE_INLINE float* place(int64_t r, float* scratch, int C) const {
    float* here = in_place(r, C);
    return here ? here : scratch;
  }
  AVFMAE_INLINE const float* read(int64_t r, float* scratch, int C) const {
    if (const float* here = in_place(r, C)) return here;
    load(r, scratch, C);
    return scratch;
  }
  AVFMAE_INLINE void load(int64_t r, float* to, int C) const { numbers.load(at(r), to, C); }
  AVFMAE_INLINE void store(int64_t r, const float* from, int C) const { numbers.store(at(r), from, C); }
};

// What a call has in common for all rows. Weight and bias are converted once; scratch rows are padded to whole vectors.
struct Norm {
  int64_t rows;
  int C;
  float eps;
  int padded;
  std::vector<float> weight, bias;

  Norm(const Tensor& like, const Tensor& w, const Tensor& b, double eps = 0)
      : rows(like.size(0) * like.size(1)), C(static_cast<int>(like.size(2))), eps(static_cast<float>(eps)),
        padded((C + kBlock - 1) / kBlock * kBlock), weight(padded), bias(padded) {
    STD_TORCH_CHECK(w.numel() == C && b.numel() == C && w.is_contiguous() && b.is_contiguous(), "add_layer_norm: weight and bias must be (C)");
    Numbers(w).load(0, weight.data(), C), Numbers(b).load(0, bias.data(), C);
  }
};

// Sum of f(i) over whole vectors, in two parts so that additions need not wait for each other.
template <typename Term>
AVFMAE_INLINE float sum_over(int padded, Term term) {
  Vector sums[2] = {};
  int i = 0;
  for (; i + 2 * kBlock <= padded; i += 2 * kBlock) sums[0] += term(i), sums[1] += term(i + kBlock);
  if (i < padded) sums[0] += term(i);
  return sum_of(sums[0] + sums[1]);
}

// row and more: memory of a row each. Rows of whole float32 vectors are read and written in place instead.
void norm_row(const Norm& norm, const View& x, const View& residual, const View& sum_out, const View& out, float* stats, int64_t r, float* row,
              float* more) {
  const int C = norm.C, padded = norm.padded;
  const float *added = residual ? residual.read(r, more, C) : nullptr, *sum = x.read(r, row, C);
  if (residual || sum_out) {
    float* to = sum_out ? sum_out.place(r, row, C) : row;
    if (residual)
      for (int i = 0; i < padded; i += kBlock) vector_at(to + i) = vector_at(sum + i) + vector_at(added + i);
    else
      std::copy_n(sum, C, to);
    if (to == row && sum_out) sum_out.store(r, row, C), sum_out.load(r, row, C);  // what is normalised is the sum as it is stored
    sum = to;
  }
  if (sum == row) std::fill(row + C, row + padded, 0.0f);
  const float mean = sum_over(padded, [&](int i) __attribute__((always_inline)) { return vector_at(sum + i); }) / C;
  if (sum == row) std::fill(row + C, row + padded, mean);  // so that it adds no square
  const float squares = sum_over(padded, [&](int i) __attribute__((always_inline)) {
    const Vector d = vector_at(sum + i) - mean;
    return d * d;
  });
  const float inverse = 1 / std::sqrt(squares / C + norm.eps);
  const float *weight = norm.weight.data(), *bias = norm.bias.data();
  float* to = out.place(r, more, C);
  for (int i = 0; i < padded; i += kBlock)
    vector_at(to + i) = (vector_at(sum + i) - mean) * inverse * vector_at(weight + i) + vector_at(bias + i);
  if (to == more) out.store(r, more, C);
  stats[2 * r] = mean, stats[2 * r + 1] = inverse;
}

// Where the gradients to x and to the residual go.
struct Grads {
  View x, residual;
};

// Memory of a row each, with zeros behind the C numbers.
struct Scratch {
  float *x, *grad, *beside;
};

void grad_row(const Norm& norm, const View& grad_sum, const View& grad, const View& sum_in, const float* stats, const Grads& grads,
              const View& normalised, float* d_weight, float* d_bias, int64_t r, const Scratch& s) {
  const int C = norm.C;
  if (grad_sum) grad_sum.load(r, s.beside, C);
  else std::fill_n(s.beside, C, 0.0f);
  if (grad) {
    const float mean = stats[2 * r], inverse = stats[2 * r + 1], *weight = norm.weight.data(), *bias = norm.bias.data();
    sum_in.load(r, s.x, C), grad.load(r, s.grad, C);
    Vector sum_g{}, sum_gx{};
    for (int i = 0; i < norm.padded; i += kBlock) {
      const Vector v = (vector_at(s.x + i) - mean) * inverse, u = vector_at(s.grad + i), w = u * vector_at(weight + i);
      vector_at(d_weight + i) += u * v;
      vector_at(d_bias + i) += u;
      vector_at(s.x + i) = v;
      vector_at(s.grad + i) = w;
      sum_g += w;
      sum_gx += w * v;
    }
    const float mean_g = sum_of(sum_g) / C, mean_gx = sum_of(sum_gx) / C;
    for (int i = 0; i < norm.padded; i += kBlock) {
      vector_at(s.beside + i) += inverse * (vector_at(s.grad + i) - mean_g - vector_at(s.x + i) * mean_gx);
      vector_at(s.x + i) = vector_at(s.x + i) * vector_at(weight + i) + vector_at(bias + i);
    }
    if (normalised) normalised.store(r, s.x, C);
    for (float* row : {s.x, s.grad}) std::fill(row + C, row + norm.padded, 0.0f);
  }
  grads.x.store(r, s.beside, C);
  if (grads.residual) grads.residual.store(r, s.beside, C);
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
    std::vector<float> rows(2 * norm.padded);
    for (int64_t r = begin; r < end; ++r) norm_row(norm, in, other, total, out, statistics, r, rows.data(), rows.data() + norm.padded);
  });
}

// `parts` (1, 2, C) float32 receives the gradients to weight and bias: summed by runs of rows, then over the runs, whatever the threads did.
void add_layer_norm_backward(std::optional<Tensor> grad_sum, std::optional<Tensor> grad_normalised, const Tensor& sum_in,
                             const Tensor& stats, const Tensor& weight, const Tensor& bias, const Tensor& grad_x,
                             std::optional<Tensor> grad_residual, std::optional<Tensor> normalised, const Tensor& parts) {
  const Norm norm(sum_in, weight, bias);
  const View g_sum(grad_sum, sum_in), g(grad_normalised, sum_in), x(sum_in, sum_in), output(normalised, sum_in);
  const Grads grads{View(grad_x, sum_in), View(grad_residual, sum_in)};
  check_sums(stats, norm.rows * 2);
  check_sums(parts, 2 * norm.C);
  const auto* statistics = static_cast<const float*>(stats.const_data_ptr());
  // powers of two share out evenly; few, since what a thread has summed up travels to the one that adds the runs
  const int64_t runs = std::bit_floor<uint64_t>(std::clamp<int64_t>(norm.rows / 16, 1, std::clamp<int64_t>(norm.rows / 128, 16, 64)));
  const int64_t size = 2 * norm.padded;
  static thread_local std::vector<float> memory;
  if (static_cast<int64_t>(memory.size()) < runs * size) memory.resize(runs * size);
  float* sums = memory.data();
  torch::stable::parallel_for(0, runs, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> rows(3 * norm.padded);
    const Scratch scratch{rows.data(), rows.data() + norm.padded, rows.data() + 2 * norm.padded};
    for (int64_t run = begin; run < end; ++run) {
      std::fill_n(sums + run * size, size, 0.0f);
      for (int64_t r = run * norm.rows / runs; r < (run + 1) * norm.rows / runs; ++r)
        grad_row(norm, g_sum, g, x, statistics, grads, output, sums + run * size, sums + run * size + norm.padded, r, scratch);
    }
  });
  for (int64_t run = 1; run < runs; ++run)
    for (int64_t i = 0; i < size; ++i) sums[i] += sums[run * size + i];
  for (int half = 0; half < 2; ++half) std::copy_n(sums + half * norm.padded, norm.C, static_cast<float*>(parts.mutable_data_ptr()) + half * norm.C);
}

}  // namespace
}  // namespace avfmae

STABLE_TORCH_LIBRARY_IMPL(avfmae, CPU, m) {
  m.impl("add_layer_norm", TORCH_BOX(&avfmae::add_layer_norm));
  m.impl("add_layer_norm_backward", TORCH_BOX(&avfmae::add_layer_norm_backward));
}
