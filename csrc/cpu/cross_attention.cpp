// cross_attention on the CPU.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "common/attention_shapes.h"
#include "cpu/attention.h"

namespace avfmae {
namespace {

void cross_attention_into(const Tensor& q, const Tensor& kv, int64_t heads, const Tensor out) {
  const Attention a = cross_attention_shape(q, kv, heads);
  check_result(out, q, q.numel());
  attention(a, {.q = Numbers(q), .kv = Numbers(kv), .out = Numbers(out)});
}

Tensor cross_attention(const Tensor& q, const Tensor& kv, int64_t heads) {
  Tensor out = new_answer(q, cross_attention_shape(q, kv, heads));
  cross_attention_into(q, kv, heads, out);
  return out;
}

void cross_attention_backward_into(const Tensor& grad, const Tensor& q, const Tensor& kv, int64_t heads, bool recompute, const Tensor dq,
                                   const Tensor dkv, const Tensor out) {
  const Attention a = cross_attention_shape(q, kv, heads);
  check_grad(grad, q, a);
  check_result(dq, q, q.numel());
  check_result(dkv, kv, kv.numel());
  check_result(out, q, recompute ? q.numel() : 0);
  attention(a, {.q = Numbers(q), .kv = Numbers(kv), .out = recompute ? Numbers(out) : Numbers(), .grad = Numbers(grad),
                .dq = Numbers(dq), .dkv = Numbers(dkv)});
}

std::tuple<Tensor, Tensor, Tensor> cross_attention_backward(const Tensor& grad, const Tensor& q, const Tensor& kv, int64_t heads,
                                                            bool recompute) {
  const Attention a = cross_attention_shape(q, kv, heads);
  Tensor dq = new_answer(q, a), dkv = torch::stable::new_empty(kv, {kv.size(0), kv.size(1), kv.size(2)}), out = new_answer(q, a, recompute);
  cross_attention_backward_into(grad, q, kv, heads, recompute, dq, dkv, out);
  return {dq, dkv, out};
}

}  // namespace
}  // namespace avfmae

STABLE_TORCH_LIBRARY_IMPL(avfmae, CPU, m) {
  m.impl("cross_attention", TORCH_BOX(&avfmae::cross_attention));
  m.impl("cross_attention.out", TORCH_BOX(&avfmae::cross_attention_into));
  m.impl("cross_attention_backward", TORCH_BOX(&avfmae::cross_attention_backward));
  m.impl("cross_attention_backward.out", TORCH_BOX(&avfmae::cross_attention_backward_into));
}
