// cross_attention on the GPU where one side has at most 16 rows: stages III and IV (warp_attention.cuh).
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "common/attention_shapes.h"
#include "cuda/warp_attention.cuh"

namespace avfmae {
namespace {

void launch(const Attention& a, const Tensor* grad, const Tensor& q, const Tensor& kv, const Tensor& out, const Tensor* dq, const Tensor* dkv) {
  if (!a.tasks()) return;
  const auto attend = [&](auto zero) {
    using T = decltype(zero);
    const AttentionData<T> t{data<const T>(&q), data<const T>(&kv), data<const T>(grad), data<T>(&out), data<T>(dq), data<T>(dkv)};
    return a.keys <= a.queries ? attend_by_warps<true>(t, a, stream_of(q)) : attend_by_warps<false>(t, a, stream_of(q));
  };
  const bool done = q.scalar_type() == ScalarType::BFloat16 ? attend(__nv_bfloat16{}) : q.scalar_type() == ScalarType::Half && attend(__half{});
  STD_TORCH_CHECK(done, "cross_attention: CUDA C++ takes bfloat16 or float16, heads of 32 or 64 columns, at most 16 rows of one side, and "
                        "rows that begin at multiples of 16 bytes");
}

Tensor cross_attention(const Tensor& q, const Tensor& kv, int64_t heads) {
  const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  const Attention a = cross_attention_shape(q, kv, heads);
  Tensor out = new_answer(q, a);
  launch(a, nullptr, q, kv, out, nullptr, nullptr);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> cross_attention_backward(const Tensor& grad, const Tensor& q, const Tensor& kv, int64_t heads,
                                                            bool recompute) {
  const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  const Attention a = cross_attention_shape(q, kv, heads);
  check_grad(grad, q, a);
  Tensor dq = new_answer(q, a), dkv = torch::stable::new_empty(kv, {kv.size(0), kv.size(1), kv.size(2)}), out = new_answer(q, a, recompute);
  launch(a, &grad, q, kv, out, &dq, &dkv);
  return {dq, dkv, out};
}

}  // namespace
}  // namespace avfmae

STABLE_TORCH_LIBRARY_IMPL(avfmae, CUDA, m) {
  m.impl("cross_attention", TORCH_BOX(&avfmae::cross_attention));
  m.impl("cross_attention_backward", TORCH_BOX(&avfmae::cross_attention_backward));
}
