// adamw on the GPU: hundreds of tensors a launch, whose addresses are arguments of the kernel. A captured step so has all that it
// needs, and nothing is uploaded. Bound by bytes: gradients of any dtype are read as they are, and copies written in the same pass.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <optional>
#include <vector>

#include "cuda/device.cuh"

namespace avfmae {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

constexpr int kTensors = 480;  // a launch: 30 of the 32 KB that arguments may take. benchmarks/recorder.py counts launches by it
constexpr int kThreads = 256;
constexpr int kAtOnce = 4;     // numbers that a thread has on their way
constexpr int64_t kPiece = 4 * kAtOnce * kThreads;  // numbers a block

enum class Kind : uint8_t { kNone, kFloat, kBFloat16, kHalf };

struct Lists {
  float *param[kTensors], *exp_avg[kTensors], *exp_avg_sq[kTensors];
  const void* grad[kTensors];
  void* copy[kTensors];
  const float* step[kTensors];
  int64_t numel[kTensors];
  uint32_t first[kTensors];  // block of each tensor
  Kind grad_kind[kTensors], copy_kind[kTensors];
  int count;
};
static_assert(sizeof(Lists) < 32000, "a kernel's arguments are at most 32,764 bytes");

struct Recipe {
  const float *lr, *divisor, *skip;
  float log_beta1, log_beta2, rest1, beta2, rest2, eps, weight_decay;  // rest = 1 - β
};

__device__ float number(const void* from, Kind kind, int64_t i) {
  if (kind == Kind::kFloat) return static_cast<const float*>(from)[i];
  return kind == Kind::kBFloat16 ? to_float(static_cast<const __nv_bfloat16*>(from)[i]) : to_float(static_cast<const __half*>(from)[i]);
}

__device__ void write(void* to, Kind kind, int64_t i, float x) {
  if (kind == Kind::kFloat) static_cast<float*>(to)[i] = x;
  else if (kind == Kind::kBFloat16) static_cast<__nv_bfloat16*>(to)[i] = from_float<__nv_bfloat16>(x);
  else if (kind == Kind::kHalf) static_cast<__half*>(to)[i] = from_float<__half>(x);
}

__global__ void __launch_bounds__(kThreads) adamw_kernel(const __grid_constant__ Lists all, Recipe r) {
  if (*r.skip != 0) return;
  int t = 0;  // the last tensor whose first block is not after this one
  for (int half = 512; half; half /= 2)
    if (t + half < all.count && all.first[t + half] <= blockIdx.x) t += half;
  float *w = all.param[t], *m = all.exp_avg[t], *v = all.exp_avg_sq[t];
  const float number_of_step = *all.step[t] + 1, lr = *r.lr, share = 1 / *r.divisor, keep = 1 - lr * r.weight_decay;
  const float rate = lr / -expm1f(number_of_step * r.log_beta1);                  // lr / (1 - β₁ᵗ)
  const float root_correction = 1 / sqrtf(-expm1f(number_of_step * r.log_beta2));  // 1 / √(1 - β₂ᵗ)
  const int64_t begin = (blockIdx.x - all.first[t]) * kPiece + threadIdx.x, end = all.numel[t];
  for (int64_t start = begin; start < begin + kPiece && start < end; start += kAtOnce * kThreads) {
    float g[kAtOnce], weight[kAtOnce], first[kAtOnce], second[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (const int64_t i = start + k * kThreads; i < end)
        g[k] = number(all.grad[t], all.grad_kind[t], i) * share, weight[k] = w[i], first[k] = m[i], second[k] = v[i];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (const int64_t i = start + k * kThreads; i < end) {
        first[k] += r.rest1 * (g[k] - first[k]);
        second[k] = r.beta2 * second[k] + r.rest2 * g[k] * g[k];
        weight[k] = keep * weight[k] - rate * first[k] / (sqrtf(second[k]) * root_correction + r.eps);
        w[i] = weight[k], m[i] = first[k], v[i] = second[k];
        write(all.copy[t], all.copy_kind[t], i, weight[k]);
      }
  }
}

struct Steps {
  float* of[kTensors];
  int count;
};

// Afterwards, since the blocks of a tensor have all read its step.
__global__ void count_steps_kernel(const __grid_constant__ Steps steps, const float* skip) {
  if (const int t = blockIdx.x * kThreads + threadIdx.x; t < steps.count) *steps.of[t] += 1 - *skip;
}

Kind kind_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return Kind::kFloat;
    case ScalarType::BFloat16: return Kind::kBFloat16;
    case ScalarType::Half: return Kind::kHalf;
    default: STD_TORCH_CHECK(false, "adamw: gradients and copies must be float32, bfloat16 or float16");
  }
}

void* data(const Tensor& t) { return const_cast<void*>(t.const_data_ptr()); }

float* floats(const Tensor& t) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, "adamw: parameters, moments, steps and scalars must be float32 on a GPU");
  return static_cast<float*>(data(t));
}

void adamw(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors steps, Tensors copies, const Tensor lr,
           double beta1, double beta2, double eps, double weight_decay, const Tensor divisor, const Tensor skip,
           std::optional<Tensor> squares) {
  const size_t n = params.size();
  STD_TORCH_CHECK(grads.size() == n && exp_avgs.size() == n && exp_avg_sqs.size() == n && steps.size() == n &&
                      (copies.empty() || copies.size() == n), "adamw: every parameter needs its gradient, moments and step");
  STD_TORCH_CHECK(!squares, "adamw: squares are summed on the CPU alone");
  if (n == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(params[0].get_device_index());
  const auto f = [](double x) { return static_cast<float>(x); };
  const Recipe recipe{floats(lr), floats(divisor), floats(skip), f(std::log(beta1)), f(std::log(beta2)), f(1 - beta1), f(beta2), f(1 - beta2),
                      f(eps), f(weight_decay)};
  const cudaStream_t stream = stream_of(params[0]);
  for (size_t from = 0; from < n;) {
    Lists all{};
    Steps counts{};
    uint32_t blocks = 0;
    for (; from < n && all.count < kTensors; ++from) {
      const Tensor& param = params[from];
      const Tensor& copy = copies.empty() ? param : copies[from];
      for (const Tensor& each : {param, grads[from], exp_avgs[from], exp_avg_sqs[from], copy})
        STD_TORCH_CHECK(each.numel() == param.numel() && each.is_contiguous(),
                        "adamw: parameters, gradients, moments and copies must be contiguous and of one size");
      const int t = all.count++;
      all.param[t] = floats(param), all.exp_avg[t] = floats(exp_avgs[from]), all.exp_avg_sq[t] = floats(exp_avg_sqs[from]);
      all.grad[t] = data(grads[from]), all.grad_kind[t] = kind_of(grads[from]), all.numel[t] = param.numel();
      if (!copies.empty()) all.copy[t] = data(copies[from]), all.copy_kind[t] = kind_of(copies[from]);
      counts.of[counts.count++] = floats(steps[from]);
      all.step[t] = floats(steps[from]), all.first[t] = blocks;
      blocks += static_cast<uint32_t>((param.numel() + kPiece - 1) / kPiece);
    }
    if (blocks) {
      adamw_kernel<<<blocks, kThreads, 0, stream>>>(all, recipe);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
    const unsigned groups = (counts.count + kThreads - 1) / kThreads;
    count_steps_kernel<<<groups, kThreads, 0, stream>>>(counts, recipe.skip);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

}  // namespace
}  // namespace avfmae

STABLE_TORCH_LIBRARY_IMPL(avfmae, CUDA, m) { m.impl("adamw", TORCH_BOX(&avfmae::adamw)); }
