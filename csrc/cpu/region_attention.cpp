// region_attention on the CPU.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "common/attention_shapes.h"
#include "cpu/attention.h"

namespace avfmae {
namespace {

void region_attention_into(const Tensor& qkv, int64_t heads, const Tensor out) {
  const Attention a = region_attention_shape(qkv, heads);
  check_result(out, qkv, qkv.numel() / 3);
  attention(a, {.q = Numbers(qkv), .kv = Numbers(qkv), .out = Numbers(out)});
}

Tensor region_attention(const Tensor& qkv, int64_t heads) {
  Tensor out = new_answer(qkv, region_attention_shape(qkv, heads));
  region_attention_into(qkv, heads, out);
  return out;
}

void region_attention_backward_into(const Tensor& grad, const Tensor& qkv, int64_t heads, bool recompute, const Tensor dqkv, const Tensor out) {
  const Attention a = region_attention_shape(qkv, heads);
  check_grad(grad, qkv, a);
  check_result(dqkv, qkv, qkv.numel());
  check_result(out, qkv, recompute ? grad.numel() : 0);
  attention(a, {.q = Numbers(qkv), .kv = Numbers(qkv), .out = recompute ? Numbers(out) : Numbers(), .grad = Numbers(grad),
                .dq = Numbers(dqkv), .dkv = Numbers(dqkv)});
}

std::tuple<Tensor, Tensor> region_attention_backward(const Tensor& grad, const Tensor& qkv, int64_t heads, bool recompute) {
  Tensor dqkv = torch::stable::new_empty(qkv, {qkv.size(0), qkv.size(1), qkv.size(2)}), out = new_answer(qkv, region_attention_shape(qkv, heads), recompute);
  region_attention_backward_into(grad, qkv, heads, recompute, dqkv, out);
  return {dqkv, out};
}

}  // namespace
}  // namespace avfmae

STABLE_TORCH_LIBRARY_IMPL(avfmae, CPU, m) {
  m.impl("region_attention", TORCH_BOX(&avfmae::region_attention));
  m.impl("region_attention.out", TORCH_BOX(&avfmae::region_attention_into));
  m.impl("region_attention_backward", TORCH_BOX(&avfmae::region_attention_backward));
  m.impl("region_attention_backward.out", TORCH_BOX(&avfmae::region_attention_backward_into));
}
