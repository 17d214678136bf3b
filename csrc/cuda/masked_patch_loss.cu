// masked_patch_loss on the GPU: one block a token. A tubelet's numbers sit in registers, a few a thread; its statistics
// are block reductions, and no target is ever written. Bound by the predictions read (and, backward, the slopes written).
#include "common/masked_patch_loss.h"

#include <torch/csrc/stable/library.h>

#include "cuda/crop.cuh"

namespace avfmae {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// Sums C values over the block; every thread gets them.
template <int C>
__device__ void block_sum(float (&value)[C]) {
  __shared__ float warps[kWarps][C];
#pragma unroll
  for (int c = 0; c < C; ++c)
    for (int step = 16; step; step >>= 1) value[c] += __shfl_xor_sync(~0u, value[c], step);
  __syncthreads();  // the last call's readers are done
  if (threadIdx.x % 32 == 0)
    for (int c = 0; c < C; ++c) warps[threadIdx.x / 32][c] = value[c];
  __syncthreads();
#pragma unroll
  for (int c = 0; c < C; ++c) {
    value[c] = 0;
    for (int w = 0; w < kWarps; ++w) value[c] += warps[w][c];
  }
}

// Walks a token's pixels, C numbers each: visit(place in the prediction's row, target[C]). Two passes for the
// statistics and one to visit; the tubelet's few bytes come from the cache after the first.
template <int C, typename In, typename Visit>
__device__ void visit_target(const In* tubelet, const PatchGrid& grid, float eps, Visit visit) {
  const int pixels = grid.pixels(), plane = grid.ph * grid.pw;
  const auto at = [&](int p, int c) {
    const int dt = p / plane, s = p % plane;
    return static_cast<float>(tubelet[grid.line(dt, s / grid.pw) + s % grid.pw * C + c]);
  };
  float mean[C] = {}, inverse[C] = {};
  for (int p = threadIdx.x; p < pixels; p += kThreads)
    for (int c = 0; c < C; ++c) mean[c] += at(p, c);
  block_sum<C>(mean);
  for (int c = 0; c < C; ++c) mean[c] /= pixels;
  for (int p = threadIdx.x; p < pixels; p += kThreads)
    for (int c = 0; c < C; ++c) inverse[c] += (at(p, c) - mean[c]) * (at(p, c) - mean[c]);
  block_sum<C>(inverse);
  for (int c = 0; c < C; ++c) inverse[c] = 1 / (sqrtf(inverse[c] / (pixels - 1)) + eps);
  for (int p = threadIdx.x; p < pixels; p += kThreads) {
    float target[C];
    for (int c = 0; c < C; ++c) target[c] = (at(p, c) - (p < plane ? mean[c] : at(p - plane, c))) * inverse[c];
    visit(p * C, target);
  }
}

// As visit_target, of a token of a source that is cropped where it has boxes: its pixels are resampled once, into shared memory.
template <int C, typename In, typename Visit>
__device__ void visit_token(const In* source, const PatchGrid& grid, const Boxes& boxes, int64_t clip, int64_t token, float eps, Visit visit) {
  if constexpr (C == kChannels && sizeof(In) == 1) {
    if (boxes.data) {
      extern __shared__ float plain[];
      const Crop crop(boxes.data + 4 * clip, boxes.stored_height, boxes.stored_width, grid);
      for (int p = threadIdx.x; p < grid.pixels(); p += kThreads) {
        float pixel[kChannels];
        cropped_pixel(source + clip * boxes.stored_clip(grid.T), crop, grid, token, p, pixel);
        for (int c = 0; c < C; ++c) plain[p * C + c] = pixel[c];
      }
      __syncthreads();
      visit_target<C>(static_cast<const float*>(plain), grid.tile(), eps, visit);
      return;
    }
  }
  visit_target<C>(source + clip * grid.clip_size() + grid.origin(token), grid, eps, visit);
}

template <int C, typename In, typename Pred>
__global__ void masked_patch_loss_kernel(const Pred* __restrict__ pred, const In* __restrict__ source,
                                         const int64_t* __restrict__ index, const bool* __restrict__ scored,
                                         float* __restrict__ errors, PatchGrid grid, int64_t rows_per_clip, float eps,
                                         Boxes boxes) {
  const int64_t r = blockIdx.x;
  if (!scored[r] || !grid.contains(index[r])) {  // never read outside the clip; NaN makes the mistake visible
    if (threadIdx.x == 0) errors[r] = scored[r] ? __int_as_float(0x7fffffff) : 0;
    return;
  }
  const Pred* row = pred + r * grid.row();
  float error[1] = {};
  visit_token<C>(source, grid, boxes, r / rows_per_clip, index[r], eps,
                  [&](int place, const float(&target)[C]) {
                    for (int c = 0; c < C; ++c) {
                      const float d = to_float(row[place + c]) - target[c];
                      error[0] += d * d;
                    }
                  });
  block_sum<1>(error);
  if (threadIdx.x == 0) errors[r] = error[0] / grid.row();
}

template <int C, typename In, typename Pred>
__global__ void masked_patch_loss_backward_kernel(const float* __restrict__ grad, const Pred* __restrict__ pred,
                                                  const In* __restrict__ source, const int64_t* __restrict__ index,
                                                  const bool* __restrict__ scored, Pred* __restrict__ slopes,
                                                  PatchGrid grid, int64_t rows_per_clip, float eps, Boxes boxes) {
  const int64_t r = blockIdx.x;
  const Pred* row = pred + r * grid.row();
  Pred* out = slopes + r * grid.row();
  if (!scored[r] || !grid.contains(index[r])) {
    const float fill = scored[r] ? __int_as_float(0x7fffffff) : 0;
    for (int i = threadIdx.x; i < grid.row(); i += kThreads) out[i] = from_float<Pred>(fill);
    return;
  }
  const float scale = 2 * grad[r] / grid.row();
  visit_token<C>(source, grid, boxes, r / rows_per_clip, index[r], eps,
                  [&](int place, const float(&target)[C]) {
                    for (int c = 0; c < C; ++c) out[place + c] = from_float<Pred>(scale * (to_float(row[place + c]) - target[c]));
                  });
}

// Calls launch(channels, source pointer, prediction pointer) with the types that the tensors have.
template <typename Launch>
void by_types(const MaskedPatchLoss& op, const Tensor& pred, const Tensor& source, Launch launch) {
  const auto with_pred = [&](auto channels, const auto* in) {
    const void* p = pred.const_data_ptr();
    switch (pred.scalar_type()) {
      case ScalarType::Float: launch(channels, in, static_cast<const float*>(p)); break;
      case ScalarType::BFloat16: launch(channels, in, static_cast<const __nv_bfloat16*>(p)); break;
      case ScalarType::Half: launch(channels, in, static_cast<const __half*>(p)); break;
      default: STD_TORCH_CHECK(false, "masked_patch_loss: pred must be float32, bfloat16 or float16");
    }
  };
  const void* s = source.const_data_ptr();
  using One = std::integral_constant<int, 1>;
  using Three = std::integral_constant<int, kChannels>;
  if (op.bytes && op.grid.channels == 3) with_pred(Three{}, static_cast<const uint8_t*>(s));
  else if (!op.bytes && op.grid.channels == 1) with_pred(One{}, static_cast<const float*>(s));
  else STD_TORCH_CHECK(false, "masked_patch_loss: source must be a uint8 clip or a float32 spectrogram");
}

Tensor masked_patch_loss(const Tensor& pred, const Tensor& source, const Tensor& index, const Tensor& scored,
                         std::vector<int64_t> patch, std::optional<Tensor> boxes, std::vector<int64_t> size) {
  const torch::stable::accelerator::DeviceGuard guard(pred.get_device_index());
  const MaskedPatchLoss op(pred, source, index, scored, patch, boxes, size);
  Tensor out = torch::stable::new_empty(pred, {pred.size(0), op.rows_per_clip}, ScalarType::Float);
  if (op.rows == 0) return out;
  by_types(op, pred, source, [&](auto channels, const auto* in, const auto* p) {
    masked_patch_loss_kernel<decltype(channels)::value><<<static_cast<unsigned>(op.rows), kThreads, op.tile_bytes(), stream_of(pred)>>>(
        p, in, static_cast<const int64_t*>(index.const_data_ptr()), static_cast<const bool*>(scored.const_data_ptr()),
        static_cast<float*>(out.mutable_data_ptr()), op.grid, op.rows_per_clip, op.eps(), op.boxes);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
}

Tensor masked_patch_loss_backward(const Tensor& grad, const Tensor& pred, const Tensor& source, const Tensor& index,
                                  const Tensor& scored, std::vector<int64_t> patch, std::optional<Tensor> boxes,
                                  std::vector<int64_t> size) {
  const torch::stable::accelerator::DeviceGuard guard(pred.get_device_index());
  const MaskedPatchLoss op(pred, source, index, scored, patch, boxes, size);
  STD_TORCH_CHECK(grad.scalar_type() == ScalarType::Float && grad.is_contiguous() && grad.numel() == op.rows,
                  "masked_patch_loss_backward: grad must be contiguous float32 (B, N)");
  Tensor out = torch::stable::new_empty(pred, {pred.size(0), op.rows_per_clip, op.grid.row()});
  if (op.rows == 0) return out;
  by_types(op, pred, source, [&](auto channels, const auto* in, const auto* p) {
    using Pred = std::remove_cv_t<std::remove_pointer_t<decltype(p)>>;
    masked_patch_loss_backward_kernel<decltype(channels)::value>
        <<<static_cast<unsigned>(op.rows), kThreads, op.tile_bytes(), stream_of(pred)>>>(
            static_cast<const float*>(grad.const_data_ptr()), p, in, static_cast<const int64_t*>(index.const_data_ptr()),
            static_cast<const bool*>(scored.const_data_ptr()), static_cast<Pred*>(out.mutable_data_ptr()), op.grid,
            op.rows_per_clip, op.eps(), op.boxes);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
}

}  // namespace
}  // namespace avfmae

STABLE_TORCH_LIBRARY_IMPL(avfmae, CUDA, m) {
  m.impl("masked_patch_loss", TORCH_BOX(&avfmae::masked_patch_loss));
  m.impl("masked_patch_loss_backward", TORCH_BOX(&avfmae::masked_patch_loss_backward));
}
