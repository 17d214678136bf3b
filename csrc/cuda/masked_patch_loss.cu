// masked_patch_loss on the GPU: one block a token. A tubelet's numbers are read, or resampled, once into shared memory, where
// they lie as the prediction's row does; its statistics are block reductions, and no target is ever written. Bound by the
// predictions read (and, backward, the gradients written).
#include "common/masked_patch_loss.h"

#include <torch/csrc/stable/library.h>

#include "cuda/crop.cuh"
#include "cuda/shared_memory.cuh"

namespace avfmae {
namespace {

// A multiple of the channels, so that all numbers of a thread are of one channel, threadIdx.x % C.
template <int C>
constexpr int kThreads = C == 1 ? 128 : 64 * C;

// Bytes of a block that the kernels' own arrays take at most: channel_sum's.
constexpr int64_t kOwnShared = 96;

// The sum over the block's threads of the same channel; C = 1: over all of them.
template <int C, int Threads>
__device__ float channel_sum(float mine) {
  constexpr int kWarps = Threads / 32;
  __shared__ float warps[kWarps][C];
  static_assert(sizeof(warps) <= kOwnShared);
  const int channel = threadIdx.x % C;
#pragma unroll
  for (int c = 0; c < C; ++c) {
    float sum = channel == c ? mine : 0;
    for (int step = 16; step; step >>= 1) sum += __shfl_xor_sync(~0u, sum, step);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32][c] = sum;
  }
  __syncthreads();
  float total = 0;
  for (int w = 0; w < kWarps; ++w) total += warps[w][channel];
  __syncthreads();  // the next call writes there
  return total;
}

// Reads a token's numbers in the order (time, row, column, channel); of a source that has boxes, what these show.
template <int C, typename In>
__device__ void read_token(const In* source, const Tubelets& tubelets, const Boxes& boxes, int64_t clip, int token, float* numbers) {
  const Place first = tubelets.first(token);
  const int pixels = tubelets.grid.pixels();
  if constexpr (C == kChannels && sizeof(In) == 1) {
    if (boxes.data) {
      const Crop crop(boxes.data + 4 * clip, boxes.stored_height, boxes.stored_width, tubelets.grid);
      const In* stored = source + clip * boxes.stored_clip(tubelets.grid.T);
      for (int p = threadIdx.x; p < pixels; p += kThreads<C>) {
        float pixel[kChannels];
        cropped_pixel(stored, crop, tubelets.pixel(first, p), pixel);
        for (int c = 0; c < C; ++c) numbers[p * C + c] = pixel[c];
      }
      return;
    }
  }
  const In* whole = source + clip * tubelets.grid.clip_size();
  for (int p = threadIdx.x; p < pixels; p += kThreads<C>) {
    const In* pixel = whole + tubelets.offset(tubelets.pixel(first, p));
#pragma unroll
    for (int c = 0; c < C; ++c) numbers[p * C + c] = static_cast<float>(pixel[c]);
  }
}

// Calls visit(place in the prediction's row, target) for every number of a token, C·kThreads of them at a time.
template <int C, typename In, typename Visit>
__device__ void visit_targets(const In* source, const Tubelets& tubelets, const Boxes& boxes, int64_t clip, int token, float eps, Visit visit) {
  extern __shared__ float plain[];
  read_token<C>(source, tubelets, boxes, clip, token, plain);
  __syncthreads();
  const int numbers = tubelets.grid.row(), pixels = tubelets.grid.pixels(), frame = tubelets.grid.ph * tubelets.grid.pw * C;
  float sum = 0, squares = 0;
  for (int i = threadIdx.x; i < numbers; i += kThreads<C>) sum += plain[i];
  const float mean = channel_sum<C, kThreads<C>>(sum) / pixels;
  for (int i = threadIdx.x; i < numbers; i += kThreads<C>) squares += (plain[i] - mean) * (plain[i] - mean);
  const float inverse = 1 / (sqrtf(channel_sum<C, kThreads<C>>(squares) / (pixels - 1)) + eps);
  for (int i = threadIdx.x; i < numbers; i += kThreads<C>) visit(i, (plain[i] - (i < frame ? mean : plain[i - frame])) * inverse);
}

template <int C, typename In, typename Pred>
__global__ void masked_patch_loss_kernel(const Pred* __restrict__ pred, const In* __restrict__ source,
                                         const int64_t* __restrict__ index, const bool* __restrict__ scored,
                                         float* __restrict__ errors, Tubelets tubelets, int64_t rows_per_clip, float eps, Boxes boxes) {
  const int64_t r = blockIdx.x, token = index[r];
  if (!scored[r] || !tubelets.contain(token)) {  // never read outside the clip; NaN makes the mistake visible
    if (threadIdx.x == 0) errors[r] = scored[r] ? __int_as_float(0x7fffffff) : 0;
    return;
  }
  const int numbers = tubelets.grid.row();
  const Pred* row = pred + r * numbers;
  float error = 0;
  visit_targets<C>(source, tubelets, boxes, r / rows_per_clip, static_cast<int>(token), eps, [&](int i, float target) {
    const float d = to_float(row[i]) - target;
    error += d * d;
  });
  error = channel_sum<1, kThreads<C>>(error);
  if (threadIdx.x == 0) errors[r] = error / numbers;
}

template <int C, typename In, typename Pred>
__global__ void masked_patch_loss_backward_kernel(const float* __restrict__ grad, const Pred* __restrict__ pred,
                                                  const In* __restrict__ source, const int64_t* __restrict__ index,
                                                  const bool* __restrict__ scored, Pred* __restrict__ grad_pred,
                                                  Tubelets tubelets, int64_t rows_per_clip, float eps, Boxes boxes) {
  const int64_t r = blockIdx.x, token = index[r];
  const int numbers = tubelets.grid.row();
  const Pred* row = pred + r * numbers;
  Pred* out = grad_pred + r * numbers;
  if (!scored[r] || !tubelets.contain(token)) {
    const float fill = scored[r] ? __int_as_float(0x7fffffff) : 0;
    for (int i = threadIdx.x; i < numbers; i += kThreads<C>) out[i] = from_float<Pred>(fill);
    return;
  }
  const float scale = 2 * grad[r] / numbers;
  visit_targets<C>(source, tubelets, boxes, r / rows_per_clip, static_cast<int>(token), eps,
                   [&](int i, float target) { out[i] = from_float<Pred>(scale * (to_float(row[i]) - target)); });
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
    constexpr int kC = decltype(channels)::value;
    using In = std::remove_cv_t<std::remove_pointer_t<decltype(in)>>;
    using Pred = std::remove_cv_t<std::remove_pointer_t<decltype(p)>>;
    const auto kernel = masked_patch_loss_kernel<kC, In, Pred>;
    allow_shared("masked_patch_loss", kernel, op.tile_bytes(), kOwnShared);
    kernel<<<static_cast<unsigned>(op.rows), kThreads<kC>, op.tile_bytes(), stream_of(pred)>>>(
        p, in, static_cast<const int64_t*>(index.const_data_ptr()), static_cast<const bool*>(scored.const_data_ptr()),
        static_cast<float*>(out.mutable_data_ptr()), Tubelets(op.grid, op.boxes), op.rows_per_clip, op.eps(), op.boxes);
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
    constexpr int kC = decltype(channels)::value;
    using In = std::remove_cv_t<std::remove_pointer_t<decltype(in)>>;
    using Pred = std::remove_cv_t<std::remove_pointer_t<decltype(p)>>;
    const auto kernel = masked_patch_loss_backward_kernel<kC, In, Pred>;
    allow_shared("masked_patch_loss_backward", kernel, op.tile_bytes(), kOwnShared);
    kernel<<<static_cast<unsigned>(op.rows), kThreads<kC>, op.tile_bytes(), stream_of(pred)>>>(
        static_cast<const float*>(grad.const_data_ptr()), p, in, static_cast<const int64_t*>(index.const_data_ptr()),
        static_cast<const bool*>(scored.const_data_ptr()), static_cast<Pred*>(out.mutable_data_ptr()), Tubelets(op.grid, op.boxes),
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
