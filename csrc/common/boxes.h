// The boxes argument of the ops that read clips: which part of the stored frames the model looks at, and at what size.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <vector>

#include "common/crop.h"

namespace avfmae {

struct Boxes {
  const float* data = nullptr;              // (B, 4), on the clip's device; none: the frames as they are
  int64_t height, width;                    // of the clip that the model sees
  int64_t stored_height, stored_width;

  Boxes(const torch::stable::Tensor& clip, const std::optional<torch::stable::Tensor>& boxes, const std::vector<int64_t>& size)
      : height(clip.size(2)), width(clip.size(3)), stored_height(clip.size(2)), stored_width(clip.size(3)) {
    if (!boxes) return;
    STD_TORCH_CHECK(clip.dim() == 5 && boxes->dim() == 2 && boxes->size(0) == clip.size(0) && boxes->size(1) == 4 &&
                        boxes->scalar_type() == torch::headeronly::ScalarType::Float && boxes->is_contiguous() && size.size() == 2,
                    "boxes must be contiguous float32 (B, 4), with a size of two numbers");
    data = static_cast<const float*>(boxes->const_data_ptr());
    height = size[0], width = size[1];
  }

  // Numbers from one stored clip of T frames to the next.
  AVFMAE_HD int64_t stored_clip(int64_t T) const { return T * stored_height * stored_width * kChannels; }
};

}  // namespace avfmae
