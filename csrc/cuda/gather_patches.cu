// gather_patches on the GPU: one block a row. Neighbouring threads read neighbouring pixels of a 48-byte line and write
// neighbouring numbers of each channel plane, so both sides are coalesced. Bound by the bytes written.
#include "common/gather_patches.h"

#include <torch/csrc/stable/library.h>

#include "cuda/crop.cuh"

namespace avfmae {
namespace {

constexpr int kThreads = 256;

template <typename Out>
__global__ void gather_patches_kernel(const uint8_t* __restrict__ video, const int64_t* __restrict__ index, Out* __restrict__ out,
                                      Tubelets tubelets, Normalise normalise, int64_t rows_per_clip, Boxes boxes) {
  const int64_t r = blockIdx.x, token = index[r];
  const PatchGrid& grid = tubelets.grid;
  const int pixels = grid.pixels();
  Out* row = out + r * grid.row();
  if (!tubelets.contain(token)) {  // never read outside the clip; NaN makes the mistake visible without a host sync
    for (int i = threadIdx.x; i < grid.row(); i += kThreads) row[i] = from_float<Out>(__int_as_float(0x7fffffff));
    return;
  }
  const Place first = tubelets.first(static_cast<int>(token));
  const int64_t clip = r / rows_per_clip;
  if (boxes.data) {
    const Crop crop(boxes.data + 4 * clip, boxes.stored_height, boxes.stored_width, grid);
    const uint8_t* stored = video + clip * boxes.stored_clip(grid.T);
    for (int p = threadIdx.x; p < pixels; p += kThreads) {
      float pixel[kChannels];
      cropped_pixel(stored, crop, tubelets.pixel(first, p), pixel);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) row[c * pixels + p] = from_float<Out>(normalise(pixel[c], c));
    }
    return;
  }
  const uint8_t* whole = video + clip * grid.clip_size();
  for (int p = threadIdx.x; p < pixels; p += kThreads) {
    const uint8_t* pixel = whole + tubelets.offset(tubelets.pixel(first, p));
#pragma unroll
    for (int c = 0; c < kChannels; ++c) row[c * pixels + p] = from_float<Out>(normalise(static_cast<float>(pixel[c]), c));
  }
}

template <typename Out>
void launch(const GatherPatches& op, const Tensor& video, const Tensor& index, cudaStream_t stream) {
  gather_patches_kernel<Out><<<static_cast<unsigned>(op.rows), kThreads, 0, stream>>>(
      static_cast<const uint8_t*>(video.const_data_ptr()), static_cast<const int64_t*>(index.const_data_ptr()),
      static_cast<Out*>(op.out.mutable_data_ptr()), Tubelets(op.grid, op.boxes), op.normalise, op.rows_per_clip, op.boxes);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor gather_patches(const Tensor& video, const Tensor& index, std::vector<int64_t> patch, std::vector<double> mean,
                      std::vector<double> std, ScalarType dtype, std::optional<Tensor> boxes, std::vector<int64_t> size) {
  const torch::stable::accelerator::DeviceGuard guard(video.get_device_index());
  const GatherPatches op(video, index, patch, mean, std, dtype, boxes, size);
  if (op.rows == 0) return op.out;
  const auto cuda_stream = stream_of(video);
  switch (dtype) {
    case ScalarType::Float: launch<float>(op, video, index, cuda_stream); break;
    case ScalarType::BFloat16: launch<__nv_bfloat16>(op, video, index, cuda_stream); break;
    case ScalarType::Half: launch<__half>(op, video, index, cuda_stream); break;
    default: STD_TORCH_CHECK(false, "gather_patches: dtype must be float32, bfloat16 or float16");
  }
  return op.out;
}

}  // namespace
}  // namespace avfmae

STABLE_TORCH_LIBRARY_IMPL(avfmae, CUDA, m) { m.impl("gather_patches", TORCH_BOX(&avfmae::gather_patches)); }
