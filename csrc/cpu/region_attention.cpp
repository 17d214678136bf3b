// region_attention on the CPU.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "common/attention_shapes.h"
#include "cpu/attention.h"

namespace avfmae {
namespace {

Tensor region_attention(const Tensor& qkv, int64_t heads) {
  const Attention a = region_attention_shape(qkv, heads);
  Tensor out = new_answer(qkv, a);
  attention(a, {.q = Numbers(qkv), .kv = Numbers(qkv), .out = Numbers(out)});
  return out;
}

std::tuple<Tensor, Tensor> region_attention_backward(const Tensor& grad, const Tensor& qkv, int64_t heads, bool again) {
  const Attention a = region_attention_shape(qkv, heads);
  check_grad(grad, qkv, a);
  Tensor dqkv = torch::stable::new_empty(qkv, {qkv.size(0), qkv.size(1), qkv.size(2)}), out = new_answer(qkv, a, again);
  attention(a, {.q = Numbers(qkv), .kv = Numbers(qkv), .out = again ? Numbers(out) : Numbers(), .grad = Numbers(grad),
                .dq = Numbers(dqkv), .dkv = Numbers(dqkv)});
  return {dqkv, out};
}

}  // namespace
}  // namespace avfmae

STABLE_TORCH_LIBRARY_IMPL(avfmae, CPU, m) {
  m.impl("region_attention", TORCH_BOX(&avfmae::region_attention));
  m.impl("region_attention_backward", TORCH_BOX(&avfmae::region_attention_backward));
}
