// gated_sum on the CPU: one row per iteration, rows spread over all cores.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

#include "cpu/simd.h"

namespace avfmae {
namespace {

using torch::stable::Tensor;

struct Branch {
  Numbers gate, x;
  int64_t gate_row, row;

  Branch(const Tensor& gate, const Tensor& x) : gate(gate), x(x), gate_row(gate.stride(0)), row(x.stride(0)) {
    STD_TORCH_CHECK(x.dim() == 2 && gate.dim() == 2 && x.stride(1) == 1 && gate.stride(1) == 1 && x.size(0) == gate.size(0) &&
                        x.size(1) == gate.size(1),
                    "gated_sum: gates and branches must be (rows, C) of one shape, with neighbouring columns");
  }
};

void sum_row(const Branch& a, const Branch& b, const Numbers& out, int64_t r, int C, float* scratch) {
  float *ga = scratch, *x = ga + C, *gb = x + C, *y = gb + C;
  a.gate.load(r * a.gate_row, ga, C), a.x.load(r * a.row, x, C), b.gate.load(r * b.gate_row, gb, C), b.x.load(r * b.row, y, C);
  for (int i = 0; i < C; ++i) x[i] = sigmoid(ga[i]) * x[i] + sigmoid(gb[i]) * y[i];
  out.store(r * C, x, C);
}

// One branch's gradients: to its gate and to itself.
void grad_row(const Branch& a, const Numbers& grad, const Numbers& d_gate, const Numbers& d_x, int64_t r, int C,
              float* scratch) {
  float *gate = scratch, *x = gate + C, *g = x + C;
  a.gate.load(r * a.gate_row, gate, C), a.x.load(r * a.row, x, C), grad.load(r * C, g, C);
  for (int i = 0; i < C; ++i) {
    const float w = sigmoid(gate[i]);
    gate[i] = g[i] * x[i] * w * (1 - w);
    x[i] = g[i] * w;
  }
  d_gate.store(r * C, gate, C), d_x.store(r * C, x, C);
}

template <typename Body>
void for_rows(int64_t rows, int C, Body body) {
  torch::stable::parallel_for(0, rows, std::max(1, 8192 / C), [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(4 * C);
    for (int64_t r = begin; r < end; ++r) body(r, scratch.data());
  });
}

Tensor like(const Tensor& x) { return torch::stable::new_empty(x, {x.size(0), x.size(1)}); }

Tensor gated_sum(const Tensor& gate_a, const Tensor& a, const Tensor& gate_b, const Tensor& b) {
  const Branch first(gate_a, a), second(gate_b, b);
  Tensor out = like(a);
  const Numbers to(out);
  const int C = static_cast<int>(a.size(1));
  for_rows(a.size(0), C, [&](int64_t r, float* scratch) { sum_row(first, second, to, r, C, scratch); });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gated_sum_backward(const Tensor& grad, const Tensor& gate_a, const Tensor& a,
                                                              const Tensor& gate_b, const Tensor& b) {
  const Branch first(gate_a, a), second(gate_b, b);
  STD_TORCH_CHECK(grad.is_contiguous() && grad.numel() == a.numel(), "gated_sum_backward: grad must be contiguous (rows, C)");
  Tensor d_gate_a = like(gate_a), d_a = like(a), d_gate_b = like(gate_b), d_b = like(b);
  const Numbers upstream(grad), to_gate_a(d_gate_a), to_a(d_a), to_gate_b(d_gate_b), to_b(d_b);
  const int C = static_cast<int>(a.size(1));
  for_rows(a.size(0), C, [&](int64_t r, float* scratch) {
    grad_row(first, upstream, to_gate_a, to_a, r, C, scratch);
    grad_row(second, upstream, to_gate_b, to_b, r, C, scratch);
  });
  return {d_gate_a, d_a, d_gate_b, d_b};
}

}  // namespace
}  // namespace avfmae

STABLE_TORCH_LIBRARY_IMPL(avfmae, CPU, m) {
  m.impl("gated_sum", TORCH_BOX(&avfmae::gated_sum));
  m.impl("gated_sum_backward", TORCH_BOX(&avfmae::gated_sum_backward));
}
