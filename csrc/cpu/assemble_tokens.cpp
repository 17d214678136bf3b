// assemble_tokens on the CPU: one token per iteration, tokens spread over all cores.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "cpu/simd.h"

namespace avfmae {
namespace {

using torch::stable::Tensor;

// out row = x row + positions row
void place_token(const Numbers& x, int64_t from, const Numbers& positions, int64_t place, const Numbers& out, int64_t to,
                 int C, float* scratch) {
  x.load(from, scratch, C), positions.load(place * C, scratch + C, C);
  for (int i = 0; i < C; ++i) scratch[i] += scratch[C + i];
  out.store(to, scratch, C);
}

const int64_t* checked(const Tensor& index, int64_t rows) {
  STD_TORCH_CHECK(index.is_contiguous() && index.scalar_type() == ScalarType::Long, "assemble_tokens: indices must be contiguous int64");
  const auto* values = static_cast<const int64_t*>(index.const_data_ptr());
  for (int64_t i = 0; i < index.numel(); ++i)
    STD_TORCH_CHECK(values[i] >= 0 && values[i] < rows, "assemble_tokens: index holds ", values[i], ", expected 0 to ", rows - 1);
  return values;
}

Tensor assemble_tokens(const Tensor& visible, std::optional<Tensor> mask_token, const Tensor& positions, const Tensor& visible_index,
                       std::optional<Tensor> mask_index, ScalarType dtype) {
  STD_TORCH_CHECK(visible.dim() == 3 && visible.is_contiguous() && positions.dim() == 2 && positions.is_contiguous() &&
                      positions.size(1) == visible.size(2) && visible_index.numel() == visible.size(0) * visible.size(1) &&
                      mask_token.has_value() == mask_index.has_value(),
                  "assemble_tokens: visible must be contiguous (B, Nv, C), positions contiguous (T, C), the index (B, Nv)");
  const int64_t B = visible.size(0), Nv = visible.size(1), Nm = mask_index ? mask_index->size(1) : 0;
  const int C = static_cast<int>(visible.size(2));
  STD_TORCH_CHECK(!mask_token || (mask_token->numel() == C && mask_token->is_contiguous()), "assemble_tokens: mask_token must be (C)");
  const auto* seen = checked(visible_index, positions.size(0));
  const auto* hidden = mask_index ? checked(*mask_index, positions.size(0)) : nullptr;
  Tensor out = torch::stable::new_empty(visible, {B, Nv + Nm, C}, dtype);
  const Numbers tokens(visible), mask = mask_token ? Numbers(*mask_token) : Numbers(), table(positions), to(out);
  torch::stable::parallel_for(0, B * (Nv + Nm), /*grain_size=*/16, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(2 * C);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t b = r / (Nv + Nm), n = r % (Nv + Nm);
      if (n < Nv) place_token(tokens, (b * Nv + n) * C, table, seen[b * Nv + n], to, r * C, C, scratch.data());
      else place_token(mask, 0, table, hidden[b * Nm + n - Nv], to, r * C, C, scratch.data());
    }
  });
  return out;
}

}  // namespace
}  // namespace avfmae

STABLE_TORCH_LIBRARY_IMPL(avfmae, CPU, m) { m.impl("assemble_tokens", TORCH_BOX(&avfmae::assemble_tokens)); }
