// cross_attention on the CPU.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "common/attention_shapes.h"
#include "cpu/attention.h"

namespace avfmae {
namespace {

Tensor cross_attention(const Tensor& q, const Tensor& kv, int64_t heads) {
  const Attention a = cross_attention_shape(q, kv, heads);
  Tensor out = new_answer(q, a);
  const Numbers queries(q), context(kv), answer(out);
  for_heads(a, false, [&](int64_t b, int h, HeadScratch& s) { attend(a, queries, context, answer, b, h, s); });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> cross_attention_backward(const Tensor& grad, const Tensor& q, const Tensor& kv, int64_t heads,
                                                            bool again) {
  const Attention a = cross_attention_shape(q, kv, heads);
  check_grad(grad, q, a);
  Tensor dq = new_answer(q, a), dkv = torch::stable::new_empty(kv, {kv.size(0), kv.size(1), kv.size(2)}), out = new_answer(q, a, again);
  const Numbers upstream(grad), queries(q), context(kv), dqueries(dq), dcontext(dkv), answer = again ? Numbers(out) : Numbers();
  for_heads(a, true, [&](int64_t b, int h, HeadScratch& s) {
    attend_backward(a, upstream, queries, context, dqueries, dcontext, answer, b, h, s);
  });
  return {dq, dkv, out};
}

}  // namespace
}  // namespace avfmae

STABLE_TORCH_LIBRARY_IMPL(avfmae, CPU, m) {
  m.impl("cross_attention", TORCH_BOX(&avfmae::cross_attention));
  m.impl("cross_attention_backward", TORCH_BOX(&avfmae::cross_attention_backward));
}
