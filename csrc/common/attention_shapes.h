// From tensors to an Attention: what the CPU and CUDA entries of region_attention and cross_attention check and derive.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>

#include "common/attention.h"

namespace avfmae {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Attention with_heads(int64_t batches, int64_t queries, int64_t keys, int64_t width, int64_t heads) {
  STD_TORCH_CHECK(heads > 0 && width % heads == 0, "attention: heads must divide the width");
  Attention a{};
  a.batches = batches;
  a.queries = static_cast<int>(queries), a.keys = static_cast<int>(keys);
  a.heads = static_cast<int>(heads), a.size = static_cast<int>(width / heads);
  a.scale = 1 / std::sqrt(static_cast<float>(a.size));
  a.out = {queries * width, width};
  return a;
}

// qkv (N, S, 3C): queries, keys and values side by side.
inline Attention region_attention_shape(const Tensor& qkv, int64_t heads) {
  STD_TORCH_CHECK(qkv.dim() == 3 && qkv.size(2) % 3 == 0 && qkv.stride(2) == 1,
                  "region_attention: qkv must be (N, S, 3C) with neighbouring columns");
  const int64_t S = qkv.size(1), C = qkv.size(2) / 3;
  Attention a = with_heads(qkv.size(0), S, S, C, heads);
  a.q = {qkv.stride(0), qkv.stride(1), 0}, a.k = {qkv.stride(0), qkv.stride(1), C}, a.v = {qkv.stride(0), qkv.stride(1), 2 * C};
  a.dq = {S * 3 * C, 3 * C, 0}, a.dk = {S * 3 * C, 3 * C, C}, a.dv = {S * 3 * C, 3 * C, 2 * C};
  return a;
}

// q (B, Nq, C), kv (B, Nk, 2C): keys and values side by side.
inline Attention cross_attention_shape(const Tensor& q, const Tensor& kv, int64_t heads) {
  STD_TORCH_CHECK(q.dim() == 3 && kv.dim() == 3 && q.size(0) == kv.size(0) && kv.size(2) == 2 * q.size(2) &&
                      q.stride(2) == 1 && kv.stride(2) == 1 && q.scalar_type() == kv.scalar_type(),
                  "cross_attention: q must be (B, Nq, C) and kv (B, Nk, 2C), of one dtype, with neighbouring columns");
  const int64_t Nq = q.size(1), Nk = kv.size(1), C = q.size(2);
  Attention a = with_heads(q.size(0), Nq, Nk, C, heads);
  a.q = {q.stride(0), q.stride(1)}, a.k = {kv.stride(0), kv.stride(1), 0}, a.v = {kv.stride(0), kv.stride(1), C};
  a.dq = {Nq * C, C}, a.dk = {Nk * 2 * C, 2 * C, 0}, a.dv = {Nk * 2 * C, 2 * C, C};
  return a;
}

inline void check_grad(const Tensor& grad, const Tensor& like, const Attention& a) {
  STD_TORCH_CHECK(grad.dim() == 3 && grad.is_contiguous() && grad.scalar_type() == like.scalar_type() && grad.size(0) == a.batches &&
                      grad.size(1) == a.queries && grad.size(2) == int64_t{a.heads} * a.size,
                  "attention: grad must be contiguous (B, queries, C), of the inputs' dtype");
}

inline void check_result(const Tensor& t, const Tensor& like, int64_t numbers) {
  STD_TORCH_CHECK(t.is_contiguous() && t.scalar_type() == like.scalar_type() && t.numel() == numbers,
                  "attention: results must be contiguous, of the inputs' dtype and of ", numbers, " numbers");
}

// A tensor's numbers; null where there is none, or nothing in it.
template <typename T>
T* data(const Tensor* tensor) {
  return tensor && tensor->numel() ? static_cast<T*>(const_cast<void*>(tensor->const_data_ptr())) : nullptr;
}

// (batches, queries, C): an attention's answer, or nothing.
inline Tensor new_answer(const Tensor& like, const Attention& a, bool wanted = true) {
  if (!wanted) return torch::stable::new_empty(like, {0});
  return torch::stable::new_empty(like, {a.batches, a.queries, int64_t{a.heads} * a.size});
}

}  // namespace avfmae
