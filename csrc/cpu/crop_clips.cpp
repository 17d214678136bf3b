// crop_clips on the CPU: a frame per iteration, frames spread over all cores.
#include "common/boxes.h"
#include "cpu/crop.h"

#include <torch/csrc/stable/library.h>

namespace avfmae {
namespace {

using torch::stable::Tensor;

void to_bytes(const float* in, uint8_t* out, int64_t size) {
  for (int64_t i = 0; i < size; ++i) out[i] = static_cast<uint8_t>(in[i]);
}

Tensor crop_clips(const Tensor& video, const Tensor& boxes, std::vector<int64_t> size, bool bicubic) {
  STD_TORCH_CHECK(video.dim() == 5 && video.size(4) == kChannels && video.scalar_type() == ScalarType::Byte && video.is_contiguous(),
                  "crop_clips: video must be contiguous uint8 (B, T, H, W, 3)");
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == 4 && boxes.scalar_type() == ScalarType::Float && boxes.is_contiguous() &&
                      boxes.size(0) % video.size(0) == 0 && size.size() == 2,
                  "crop_clips: boxes must be contiguous float32 (a multiple of B, 4), size two numbers");
  const int64_t T = video.size(1), H = video.size(2), W = video.size(3), views = boxes.size(0) / video.size(0);
  // A frame of the result is one tubelet of it.
  const PatchGrid grid{T, size[0], size[1], 1, static_cast<int>(size[0]), static_cast<int>(size[1])};
  Tensor out = torch::stable::new_empty(video, {boxes.size(0), T, size[0], size[1], kChannels});
  const auto* frames = static_cast<const uint8_t*>(video.const_data_ptr());
  const auto* box = static_cast<const float*>(boxes.const_data_ptr());
  auto* bytes = static_cast<uint8_t*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, boxes.size(0) * T, /*grain_size=*/1, [&](int64_t begin, int64_t end) {
    CroppedTubelet cropped(grid);
    for (int64_t f = begin; f < end; ++f) {
      const int64_t b = f / T;
      const float* frame = cropped(frames + b / views * T * H * W * kChannels, Crop(box + 4 * b, H, W, grid, bicubic), f % T);
      to_bytes(frame, bytes + f * grid.row(), grid.row());
    }
  });
  return out;
}

}  // namespace
}  // namespace avfmae

STABLE_TORCH_LIBRARY_IMPL(avfmae, CPU, m) { m.impl("crop_clips", TORCH_BOX(&avfmae::crop_clips)); }
