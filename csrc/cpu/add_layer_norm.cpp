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
  AVFMAE_INLINE void prefetch_to_write(int64_t r, int C) const { numbers.prefetch_to_write(at(r), C); }
};

// A row of a view.
struct RowOf {
  Numbers numbers;
  int64_t first;

  AVFMAE_INLINE RowOf(const View& view, int64_t r) : numbers(view.numbers), first(view.at(r)) {}
  AVFMAE_INLINE explicit operator bool() const { return static_cast<bool>(numbers); }
  AVFMAE_INLINE Vector vector(int i, int n) const { return numbers.vector(first + i, n); }
  AVFMAE_INLINE void put(int i, const Vector& v, int n) const { numbers.put(first + i, v, n); }
};

struct Norm {
  int64_t rows;
  int C;
  float eps;
  int padded;  // to whole vectors
  Numbers weight, bias;

  Norm(const Tensor& like, const Tensor& w, const Tensor& b, double eps = 0)
      : rows(like.size(0) * like.size(1)), C(static_cast<int>(like.size(2))), eps(static_cast<float>(eps)),
        padded((C + kBlock - 1) / kBlock * kBlock), weight(w), bias(b) {
    STD_TORCH_CHECK(w.numel() == C && b.numel() == C && w.is_contiguous() && b.is_contiguous(), "add_layer_norm: weight and bias must be (C)");
  }
};

void norm_row(const Norm& norm, const View& x, const View& residual, const View& sum_out, const View& out, float* stats,
                                   int64_t r, float* row) {
  const int C = norm.C;
  out.prefetch_to_write(r, C);
  if (sum_out) sum_out.prefetch_to_write(r, C);
  const RowOf from(x, r), more(residual, r), total(sum_out, r), to(out, r);
  Vector sums{}, squares{};
  for_vectors(C, [&](int i, int n) {
    Vector v = from.vector(i, n);
    if (more) v += more.vector(i, n);
    if (total) total.put(i, v, n), v = total.vector(i, n);  // what is normalised is the stored sum, rounded as it is
    vector_at(row + i) = v;
    sums += v;
  });
  const float mean = sum_of(sums) / C;
  for_vectors(C, [&](int i, int n) {
    Vector v = vector_at(row + i) - mean;
    for (int l = n; l < kBlock; ++l) v[l] = 0;
    vector_at(row + i) = v;
    squares += v * v;
  });
  const float inverse = 1 / std::sqrt(sum_of(squares) / C + norm.eps);
  for_vectors(C, [&](int i, int n) { to.put(i, vector_at(row + i) * inverse * norm.weight.vector(i, n) + norm.bias.vector(i, n), n); });
  stats[2 * r] = mean, stats[2 * r + 1] = inverse;
}

struct Slopes {
  View x, residual;
};

// x and g: memory of a row each.
void slope_row(const Norm& norm, const View& grad_sum, const View& grad, const View& sum_in, const float* stats,
                                    const Slopes& slopes, const View& again, float* d_weight, float* d_bias, int64_t r, float* x, float* g) {
  const int C = norm.C;
  for (const View* to : {&slopes.x, &slopes.residual, &again})
    if (*to) to->prefetch_to_write(r, C);
  const RowOf from(sum_in, r), upstream(grad, r), beside(grad_sum, r), to(slopes.x, r), other(slopes.residual, r), answer(again, r);
  const float mean = stats[2 * r], inverse = grad ? stats[2 * r + 1] : 0;
  Vector levels{}, tilts{};
  if (grad)
    for_vectors(C, [&](int i, int n) {
      const Vector v = (from.vector(i, n) - mean) * inverse, u = upstream.vector(i, n), w = u * norm.weight.vector(i, n);
      vector_at(d_weight + i) += u * v;
      vector_at(d_bias + i) += u;
      vector_at(x + i) = v;
      vector_at(g + i) = w;
      levels += w;
      tilts += w * v;
    });
  const float level = sum_of(levels) / C, tilt = sum_of(tilts) / C;
  for_vectors(C, [&](int i, int n) {
    Vector d = beside ? beside.vector(i, n) : Vector{};
    if (grad) {
      d += inverse * (vector_at(g + i) - level - vector_at(x + i) * tilt);
      if (answer) answer.put(i, vector_at(x + i) * norm.weight.vector(i, n) + norm.bias.vector(i, n), n);
    }
    to.put(i, d, n);
    if (other) other.put(i, d, n);
  });
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
    std::vector<float> row(norm.padded);
    for (int64_t r = begin; r < end; ++r) norm_row(norm, in, other, total, out, statistics, r, row.data());
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
  // powers of two share out evenly; few, since what a thread has summed up travels to the one that adds the runs
  const int64_t runs = std::bit_floor<uint64_t>(std::clamp<int64_t>(norm.rows / 16, 1, std::clamp<int64_t>(norm.rows / 128, 16, 64)));
  const int64_t size = 2 * norm.padded;
  static thread_local std::vector<float> memory;
  if (static_cast<int64_t>(memory.size()) < runs * size) memory.resize(runs * size);
  float* sums = memory.data();
  torch::stable::parallel_for(0, runs, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> rows(size);
    for (int64_t run = begin; run < end; ++run) {
      std::fill_n(sums + run * size, size, 0.0f);
      for (int64_t r = run * norm.rows / runs; r < (run + 1) * norm.rows / runs; ++r)
        slope_row(norm, g_sum, g, x, statistics, slopes, again, sums + run * size, sums + run * size + norm.padded, r, rows.data(),
                  rows.data() + norm.padded);
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
